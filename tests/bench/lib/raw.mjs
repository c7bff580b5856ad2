// HTTP/1.1 with as little of Node's machinery as can be, for thousands of clients in one process: a socket, a request in the
// air at most, answers with a content-length.
import net from 'node:net'
import { nowMs } from './load.mjs'

const END_OF_HEAD = Buffer.from('\r\n\r\n')

export class RawConnection {
  /** Resolves to a connected one. `base` is a URL. */
  static connect(base) {
    const { hostname, port } = new URL(base)
    return new Promise((resolve, reject) => {
      const socket = net.connect({ host: hostname, port: Number(port), noDelay: true })
      socket.once('error', reject).once('connect', () => resolve(new RawConnection(socket)))
    })
  }

  constructor(socket) {
    this.socket = socket
    this.pieces = []
    socket.on('data', (piece) => this.take(piece))
    socket.on('error', (error) => this.reject?.(error))
    socket.on('close', () => this.reject?.(new Error('the connection was closed')))
  }

  /** Answers a request for a shape: { head, body, at }, `at` the instant of the last byte. Fails unless the status is 200. */
  get(query) {
    return new Promise((resolve, reject) => {
      Object.assign(this, { resolve, reject, query })
      this.socket.write(`GET /v1/shape?${query} HTTP/1.1\r\nhost: bench\r\n\r\n`)
    })
  }

  take(piece) {
    this.pieces.push(piece)
    if (!this.head) {
      const all = this.pieces.length > 1 ? Buffer.concat(this.pieces) : piece
      const end = all.indexOf(END_OF_HEAD)
      this.pieces = [all]
      if (end < 0) return
      this.head = all.toString('latin1', 0, end)
      this.missing = end + END_OF_HEAD.length + Number(header(this.head, 'content-length')) - all.length
      this.pieces = [all.subarray(end + END_OF_HEAD.length)]
    } else {
      this.missing -= piece.length
    }
    if (this.missing === 0) this.done()
  }

  done() {
    const [head, body, at] = [this.head, Buffer.concat(this.pieces), nowMs()]
    Object.assign(this, { head: undefined, pieces: [] })
    if (head.startsWith('HTTP/1.1 200')) this.resolve({ head, body, at })
    else this.reject(new Error(`${this.query}: ${head.split('\r\n')[0]}: ${body}`))
  }
}

/** A header of an answer, or undefined. */
export function header(head, name) {
  const start = head.indexOf(`\r\n${name}: `)
  if (start < 0) return undefined
  const end = head.indexOf('\r\n', start + 2)
  return head.slice(start + name.length + 4, end < 0 ? undefined : end)
}
