// The shape protocol over plain HTTP: requests as a test writes them, and a strict client that applies what it is sent.
import assert from 'node:assert/strict'
import http from 'node:http'

/** Parameters, as an object or as the text of a query string, as that text. */
function queryString(params) {
  if (typeof params === 'string') return params
  const given = Object.entries(params).filter(([, value]) => value !== undefined)
  return given.map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`).join('&')
}

/**
 * Sends one request, as it is: nothing is normalised or followed. `path`: path and query.
 * Returns { status, headers, text, json, ms }; `json` is undefined where the body is none.
 */
export async function send(base, path, { method = 'GET', headers = {}, body, signal, agent } = {}) {
  const { hostname, port } = new URL(base)
  const started = performance.now()
  const response = await new Promise((resolve, reject) => {
    const request = http.request({ hostname, port, method, path, headers, signal, agent })
    request.once('response', resolve).once('error', reject)
    request.end(body)
  })
  const chunks = []
  for await (const chunk of response) chunks.push(chunk)
  const text = Buffer.concat(chunks).toString()
  return { status: response.statusCode, headers: response.headers, text, json: parsed(text), ms: performance.now() - started }
}

function parsed(text) {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** Requests to /v1/shape of one sidecar. Connections are kept, as a client does. */
export class ShapeApi {
  constructor(base) {
    this.base = base
    this.agent = new http.Agent({ keepAlive: true, maxSockets: Infinity })
  }

  /** An answer of `send`, with what the protocol puts into headers: handle, offset, upToDate, cursor, schema, etag. */
  async get(params, options = {}) {
    const answer = await send(this.base, `/v1/shape?${queryString(params)}`, { agent: this.agent, ...options })
    const header = (name) => answer.headers[`electric-${name}`]
    return {
      ...answer,
      handle: header('handle'),
      offset: header('offset'),
      cursor: header('cursor'),
      schema: header('schema') && JSON.parse(header('schema')),
      upToDate: header('up-to-date') !== undefined,
      hasData: header('has-data'),
      etag: answer.headers.etag,
      cacheControl: answer.headers['cache-control'],
      operations: Array.isArray(answer.json) ? answer.json.filter((message) => 'key' in message) : [],
      controls: Array.isArray(answer.json) ? answer.json.filter((message) => message.headers.control) : [],
    }
  }

  delete(params, options = {}) {
    return this.get(params, { ...options, method: 'DELETE' })
  }

  /** The first answer, which must be a 200. */
  async start(params) {
    return ok(await this.get({ ...params, offset: '-1' }))
  }

  /** Follows a shape up to where it is up to date. */
  async follow(params) {
    const follower = new Follower(this, params)
    await follower.sync()
    return follower
  }

  close() {
    this.agent.destroy()
  }
}

/** The answer, which must be a 200. */
export function ok(answer) {
  assert.equal(answer.status, 200, answer.text)
  return answer
}

/**
 * A client that trusts nothing: every message must fit what it holds, and every answer the rules of the protocol.
 * `rows`: values by key. `seen`: all operations of the log, in order.
 */
export class Follower {
  constructor(api, params) {
    Object.assign(this, { api, params, rows: new Map(), seen: [], answers: [], offset: '-1', upToDate: false })
    this.partial = params.log === 'changes_only'
    this.last = [0n, -1]
  }

  /** One request from where it is. */
  async step(extra = {}) {
    const { params, offset, handle } = this
    const answer = ok(await this.api.get({ ...params, offset, handle, ...extra }))
    this.take(answer)
    return answer
  }

  /** Requests until it is up to date; at least one. */
  async sync() {
    do await this.step()
    while (!this.upToDate)
    return this
  }

  /** One live request. */
  live(extra = {}) {
    return this.step({ live: 'true', cursor: this.cursor ?? '', ...extra })
  }

  /** Live requests until `condition(this)` holds. */
  async until(condition, { timeoutMs = 15_000 } = {}) {
    const deadline = Date.now() + timeoutMs
    while (!condition(this)) {
      assert.ok(Date.now() < deadline, `not within ${timeoutMs} ms: ${condition}; rows: ${JSON.stringify([...this.rows.values()]).slice(0, 2000)}`)
      await (this.upToDate ? this.live() : this.step())
    }
    return this
  }

  /** Copy of the rows' values, in the order of their keys. */
  get values() {
    return [...this.rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, value]) => value)
  }

  take(answer) {
    this.answers.push(answer)
    if (this.handle && this.offset !== '-1') assert.equal(answer.handle.split('-')[0], this.handle.split('-')[0])
    Object.assign(this, { handle: answer.handle, offset: answer.offset, upToDate: answer.upToDate })
    this.cursor = answer.cursor ?? this.cursor
    const last = answer.json.at(-1)
    assert.equal(last?.headers.control === 'up-to-date', answer.upToDate, 'header and message agree')
    for (const message of answer.json) if ('key' in message) this.apply(message)
  }

  apply({ key, value, headers }) {
    const { operation, lsn } = headers
    if (lsn === undefined) assert.deepEqual(Object.keys(headers).sort(), ['operation', 'relation'])
    else this.place(headers)
    if (lsn !== undefined) this.seen.push({ key, value, headers })
    if (operation === 'insert') {
      assert.ok(!this.rows.has(key), `insert of ${key}, which is there`)
      this.rows.set(key, value)
    } else if (operation === 'update') {
      assert.ok(this.partial || this.rows.has(key), `update of ${key}, which is not there`)
      this.rows.set(key, { ...this.rows.get(key), ...value })
    } else {
      assert.equal(operation, 'delete')
      assert.ok(this.rows.delete(key) || this.partial, `delete of ${key}, which is not there`)
    }
  }

  /** Operations come in order, each once. */
  place({ lsn, op_position: position, txids }) {
    assert.match(lsn, /^\d+$/)
    assert.ok(Number.isInteger(position) && position >= 0)
    assert.ok(txids.length === 1 && Number.isInteger(txids[0]))
    const [before, at] = this.last
    assert.ok(BigInt(lsn) > before || (BigInt(lsn) === before && position > at), `${lsn}/${position} after ${before}/${at}`)
    this.last = [BigInt(lsn), position]
  }
}
