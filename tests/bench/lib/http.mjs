// The least that follows a shape: requests over one kept connection, headers as they come, the body whole or thrown away.
import http from 'node:http'
import { nowMs } from './load.mjs'

export class Connection {
  constructor(base, headers = {}) {
    this.base = new URL(base)
    this.headers = headers
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  }

  /**
   * Sends a request for a shape. `onData`: called with each piece of the body, which is not kept then.
   * Returns { handle, offset, cursor, upToDate, bytes, body, at }; `at` is the instant of its last byte.
   */
  async get(params, onData) {
    const path = `/v1/shape?${new URLSearchParams(params)}`
    const response = await this.send('GET', path)
    const pieces = []
    let bytes = 0
    response.on('data', (piece) => {
      bytes += piece.length
      if (onData) onData(piece)
      else pieces.push(piece)
    })
    await new Promise((resolve, reject) => response.once('end', resolve).once('error', reject))
    const at = nowMs()
    if (response.statusCode !== 200) throw new Error(`GET ${path}: ${response.statusCode} ${Buffer.concat(pieces)}`)
    const header = (name) => response.headers[`electric-${name}`]
    return {
      handle: header('handle'), offset: header('offset'), cursor: header('cursor'), upToDate: 'electric-up-to-date' in response.headers,
      bytes, body: onData ? undefined : Buffer.concat(pieces), at,
    }
  }

  /** Ends all handles of a shape, so that the next request for it starts anew. */
  async delete(params) {
    const response = await this.send('DELETE', `/v1/shape?${new URLSearchParams(params)}`)
    response.resume()
    await new Promise((resolve) => response.once('end', resolve))
    if (response.statusCode !== 202) throw new Error(`DELETE: ${response.statusCode}`)
  }

  send(method, path) {
    const { hostname, port } = this.base
    const { agent, headers } = this
    return new Promise((resolve, reject) => {
      http.request({ hostname, port, method, path, agent, headers }).once('response', resolve).once('error', reject).end()
    })
  }

  close() {
    this.agent.destroy()
  }
}

/** Where the answer says that the next request starts. */
export function next(params, answer) {
  const { handle, offset, cursor, upToDate } = answer
  return { ...params, handle, offset, ...(upToDate && { live: 'true', ...(cursor && { cursor }) }) }
}
