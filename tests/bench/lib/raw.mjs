// HTTP/1.1 with as little of Node's machinery as can be, for thousands of clients in one process: a socket, a request in the
// air at most, answers with a content-length.
import net from 'node:net'
import { nowMs } from './load.mjs'

const END_OF_HEAD = Buffer.from('\r\n\r\n')
const NOTHING = Buffer.alloc(0)

/** What any connection reads is here until its callback returns: no buffer, and no stream, for each of them. */
const received = Buffer.allocUnsafe(256 << 10)

export class RawConnection {
  /** Resolves to a connected one. `base` is a URL; `lines`: headers of each request, each with its end. */
  static connect(base, lines = '') {
    const { hostname, port } = new URL(base)
    return new Promise((resolve, reject) => {
      let connection
      const onread = { buffer: received, callback: (length, buffer) => connection.take(buffer.subarray(0, length)) }
      const socket = net.connect({ host: hostname, port: Number(port), noDelay: true, onread })
      connection = new RawConnection(socket, lines)
      socket.once('error', reject).once('connect', () => resolve(connection))
    })
  }

  /** `begun`: what has come of a head; `body`: as much as is to come, of which `filled` bytes are there. */
  constructor(socket, lines) {
    Object.assign(this, { socket, lines })
    socket.on('error', (error) => this.reject?.(error))
    socket.on('close', () => this.reject?.(new Error('the connection was closed')))
  }

  /** Answers a request for a shape: { head, body, at }, `at` the instant of the last byte. Fails unless the status is 200. */
  get(query) {
    return new Promise((resolve, reject) => {
      Object.assign(this, { resolve, reject, query })
      this.socket.write(`GET /v1/shape?${query} HTTP/1.1\r\nhost: bench\r\n${this.lines}\r\n`, 'latin1')
    })
  }

  take(piece) {
    if (this.head) {
      piece.copy(this.body, this.filled)
      this.filled += piece.length
    } else {
      const all = this.begun ? Buffer.concat([this.begun, piece]) : piece
      const end = all.indexOf(END_OF_HEAD)
      this.begun = end < 0 ? Buffer.from(all) : undefined
      if (end < 0) return
      this.head = all.toString('latin1', 0, end)
      const length = Number(header(this.head, 'content-length'))
      this.body = length ? Buffer.allocUnsafe(length) : NOTHING
      this.filled = all.copy(this.body, 0, end + END_OF_HEAD.length)
    }
    if (this.filled === this.body.length) this.done()
  }

  done() {
    const [{ head, body }, at] = [this, nowMs()]
    Object.assign(this, { head: undefined, body: undefined })
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
