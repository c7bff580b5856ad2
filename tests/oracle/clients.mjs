// Clients as the world has them: their connections break in the middle of an answer, they ask this sidecar and then
// another, stay away, and now and then begin again. Each checks every message against what it holds, and keeps what it held
// at each position where it was told that it is up to date.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import http from 'node:http'
import { sleep } from '../lib/index.mjs'
import { lineOf } from './truth.mjs'

const gone = Symbol('no answer')

/** What all clients of a run count together. */
export class Books {
  constructor() {
    Object.assign(this, { requests: 0, initial: 0, restarts: 0, cut: 0, failed: 0, unavailable: 0, far: 0, conflicts: [], inFlight: 0,
      operations: { insert: 0, update: 0, delete: 0 }, keyChanges: 0, checked: 0, chunks: new Map(), paths: new Map(), repeated: 0 })
  }

  /** A closed chunk has the same bytes whenever and wherever it is asked for (I4). A snapshot in one chunk is in no order. */
  keep(path, body, headers, shape) {
    const params = new URL(path, 'http://sidecar').searchParams
    const closed = headers.get('electric-up-to-date') === null && !params.has('live')
    if (!closed || (params.get('offset') === '-1' && headers.get('electric-offset') === '0_0')) return
    const name = `${headers.get('electric-handle')} ${params.get('offset')}`
    const bytes = createHash('sha1').update(body).digest('base64')
    const before = this.chunks.get(name)
    if (before !== undefined) {
      this.repeated++
      assert.equal(bytes, before, `a chunk has other bytes than before: ${path}`)
    }
    this.chunks.set(name, bytes)
    this.paths.set(name, [path, shape])
  }
}

export class Client {
  constructor({ shape, sidecars, books, random }) {
    const manner = random.pick(['steady', 'steady', 'cutter', 'absent', 'restarter'])
    Object.assign(this, { shape, sidecars, books, random, manner, records: [], trail: [] })
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 4 })
    this.begin()
  }

  begin(expired) {
    Object.assign(this, { rows: new Map(), offset: '-1', handle: undefined, expired, cursor: undefined, upToDate: false, changed: true, last: [0n, -1] })
  }

  /** Follows until `until()` gives a position that it has reached. */
  async follow(goal) {
    this.arrived = false
    while (!this.arrived) {
      const target = goal.position
      if (target === undefined) await this.misbehave()
      await this.request(goal, target === undefined && this.upToDate)
      this.arrived = target !== undefined && this.upToDate && this.evaluated >= target
    }
  }

  async misbehave() {
    const { manner, random } = this
    if (manner === 'absent' && random.chance(0.2)) await sleep(random.below(1500))
    if (manner === 'restarter' && random.chance(0.03)) {
      this.books.restarts++
      this.begin()
    }
  }

  async request(goal, live) {
    const { books, random, shape } = this
    const params = { ...shape.request, offset: this.offset, handle: this.handle, expired_handle: this.expired }
    if (live) Object.assign(params, { live: 'true', cursor: this.cursor ?? '' })
    const sidecar = random.pick(this.sidecars)
    books.requests++
    if (this.offset === '-1') books.initial++
    const asked = this.offset
    const cut = this.manner === 'cutter' && goal.position === undefined && random.chance(0.15) ? { bytes: random.below(3000), ms: 20 + random.below(400) } : undefined
    const answer = await this.send(sidecar, params, cut, live ? goal.abort : undefined)
    if (answer === gone) return
    this.trail.push(`${new Date().toISOString().slice(17, 23)} ${sidecar.port} ${live ? 'live ' : ''}${asked} -> ${answer.status} ${answer.headers['electric-offset']}`)
    if (this.trail.length > 12) this.trail.shift()
    if (answer.status === 503) {
      books.unavailable++
      await sleep(50 + random.below(100))
    } else if (answer.status === 409) this.refused(answer)
    else this.accept(answer, sidecar, asked)
  }

  /** The whole answer, or `gone`. */
  async send(sidecar, params, cut, abort) {
    const { books } = this
    const query = Object.entries(params).filter(([, value]) => value !== undefined).map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`)
    const path = `/v1/shape?${query.join('&')}`
    books.inFlight++
    const request = http.request({ host: '127.0.0.1', port: sidecar.port, path, agent: this.agent, signal: abort })
    const timer = cut && setTimeout(() => request.destroy(), cut.ms)
    try {
      const response = await new Promise((resolve, reject) => request.once('response', resolve).once('error', reject).end())
      const parts = []
      let length = 0
      for await (const part of response) {
        parts.push(part)
        length += part.length
        if (cut && length > cut.bytes) {
          books.cut++
          request.destroy()
          return gone
        }
      }
      if (!response.complete) return gone
      return { status: response.statusCode, headers: response.headers, text: Buffer.concat(parts).toString(), path }
    } catch (error) {
      if (cut) books.cut++
      else if (error.name !== 'AbortError') {
        books.failed++
        await sleep(30 + this.random.below(100))
      }
      return gone
    } finally {
      clearTimeout(timer)
      books.inFlight--
    }
  }

  refused(answer) {
    const handle = answer.headers['electric-handle']
    assert.notEqual(handle, this.handle, 'a 409 names another handle')
    this.books.conflicts.push({ shape: this.shape, handle: this.handle, offset: this.offset, replacement: handle, trail: [...this.trail] })
    this.begin(this.handle)
  }

  accept({ status, headers, text, path }, sidecar, asked) {
    assert.equal(status, 200, `${status} ${text}`)
    const header = (name) => headers[`electric-${name}`]
    const messages = JSON.parse(text)
    const same = asked === '-1' || /^0_[1-9]/.test(asked) ? (handle) => handle : (handle) => handle.split('-')[0]
    if (this.handle) assert.equal(same(header('handle')), same(this.handle), 'an answer stays with the definition, and with the snapshot while that is read')
    this.books.keep(path, text, new Headers(headers), this.shape)
    this.handle = header('handle')
    if (sidecar.isFar) this.books.far++
    this.offset = header('offset')
    this.cursor = header('cursor') ?? this.cursor
    this.expired = undefined
    this.upToDate = header('up-to-date') !== undefined
    for (const message of messages) if ('key' in message) this.apply(message)
    const control = messages.at(-1)?.headers.control
    if (control === 'snapshot-end') this.record(BigInt(this.handle.split('-')[1]))
    assert.equal(control === 'up-to-date', this.upToDate, 'header and message agree')
    if (this.upToDate) {
      this.evaluated = BigInt(messages.at(-1).headers.global_last_seen_lsn)
      assert.ok(this.evaluated >= BigInt(this.offset.split('_')[0]), `${this.evaluated} is evaluated, and the offset is ${this.offset}`)
      this.record(this.evaluated)
    }
  }

  record(position) {
    const before = this.records.at(-1)
    const rows = before && !this.changed ? before.rows : [...this.rows].map(([key, value]) => [key, lineOf(this.shape.columns, value)])
    this.records.push({ position, rows, trail: [...this.trail] })
    this.changed = false
  }

  apply({ key, value, headers, old_value: old }) {
    const { shape, rows, books } = this
    this.strip(value)
    const { operation, lsn } = headers
    this.changed = true
    if (lsn !== undefined) {
      this.place(headers)
      books.operations[operation]++
      if (headers.key_change_to) books.keyChanges++
    }
    const held = rows.get(key)
    if (operation === 'insert') {
      assert.equal(held, undefined, `insert of ${key}, which is there`)
      assert.deepEqual(Object.keys(value).sort(), shape.names, 'an insert has all selected columns')
      rows.set(key, value)
      return
    }
    assert.ok(held, `${operation} of ${key}, which is not there`)
    if (operation === 'delete') {
      const members = shape.full || shape.table.keyless ? shape.names : shape.keyNames
      assert.deepEqual(value, Object.fromEntries(members.map((name) => [name, held[name]])), `delete of ${key}`)
      rows.delete(key)
    } else this.update(key, held, value, old)
  }

  /** Columns that came later are in shapes of all columns, and null. */
  strip(value) {
    for (const name of this.shape.table.added.filter((added) => added in value)) {
      assert.deepEqual([value[name], this.shape.request.columns], [null, undefined], name)
      delete value[name]
    }
  }

  update(key, held, value, old) {
    const { shape, rows } = this
    const now = { ...held, ...value }
    const changed = Object.keys(value).filter((name) => value[name] !== held[name]).sort()
    assert.ok(changed.length > 0, `update of ${key} that changes nothing`)
    if (shape.full) {
      assert.deepEqual(Object.keys(value).sort(), shape.names, 'a full update has all selected columns')
      assert.deepEqual(old, Object.fromEntries(changed.map((name) => [name, held[name]])), `old_value of ${key}`)
    } else {
      assert.deepEqual(Object.keys(value).sort(), [...new Set([...shape.keyNames, ...changed])].sort(), `an update of ${key} has key and changes`)
    }
    rows.set(key, now)
  }

  /** Operations come in order, each once. */
  place({ lsn, op_position: at }) {
    const [position, before] = this.last
    assert.ok(BigInt(lsn) > position || (BigInt(lsn) === position && at > before), `${lsn}/${at} after ${position}/${before}`)
    this.last = [BigInt(lsn), at]
  }

  describe() {
    return `${JSON.stringify(this.shape.request)} (${this.manner}; ${this.trail.join('; ')})`
  }

  stop() {
    this.agent.destroy()
  }
}
