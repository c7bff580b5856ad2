// Everything that runs: a cluster with random tables, writers, two sidecars, a third one beside a standby, and clients; and
// rounds in which they all work.
import assert from 'node:assert/strict'
import { setMaxListeners } from 'node:events'
import { freshDatabase, sleep, startCluster, startSidecar, startStandby, waitFor } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'
import { Books, Client } from './clients.mjs'
import { randomTables, schemaSql } from './schema.mjs'
import { assertSelect, compare, describe, randomShapes } from './shapes.mjs'
import { Truth, auditFunctionSql, auditSql, newTransitions } from './truth.mjs'
import { Writer, newCounts } from './workload.mjs'

const writers = 4

export class Site {
  env = { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '3000', SHAPEFEED_CHUNK_BYTES: '4000', SHAPEFEED_AUTO_TRACK: 'false' }
  books = new Books()
  counts = newCounts()
  transitions = newTransitions()
  ends = [] // { table, shape, position }: what may be answered with 409
  ddl = {}
  killed = []

  constructor(seed) {
    Object.assign(this, { seed, random: randomFrom(seed) })
  }

  async start(shapeCount) {
    this.cluster = await startCluster()
    this.database = await freshDatabase(this.cluster)
    this.tables = randomTables(this.random)
    await this.database.psql(schemaSql(this.random, this.tables))
    await this.database.psql(auditSql(this.tables))
    await this.connect()
    for (const { sqlName } of this.tables) await this.query(`call shapefeed.track('${sqlName}')`)
    await waitFor(async () => (await this.query('select bool_and(ready) ok from shapefeed.tracked_tables')).rows[0].ok)
    this.truth = new Truth(this, this.tables)
    await this.truth.read()
    this.shapes = await randomShapes(this.random, this.tables, shapeCount, this)
    for (const shape of this.shapes) await this.truth.judge(shape)
    this.standby = await startStandby(this.cluster, { conf: ['wal_retrieve_retry_interval=200ms'] })
    const far = await startSidecar({ databaseUrl: this.standby.urlOf(this.database.name), env: this.env })
    this.sidecars = [await this.sidecar(), await this.sidecar(), Object.assign(far, { isFar: true })]
    this.clients = this.shapes.map((shape, i) => this.client(shape, i))
    this.writers = Array.from({ length: writers }, (_, number) => new Writer({ ...this, number }))
    return this
  }

  sidecar() {
    return startSidecar({ databaseUrl: this.database.url, env: this.env })
  }

  client(shape, i) {
    const { sidecars, books, seed } = this
    return new Client({ shape, sidecars, books, random: randomFrom(seed * 7919 + i) })
  }

  async connect() {
    this.session?.end().catch(() => {})
    this.session = await this.database.connect()
  }

  query(...query) {
    return this.session.query(...query)
  }

  async stop() {
    for (const client of this.clients ?? []) client.stop()
    await Promise.all((this.sidecars ?? []).map((sidecar) => sidecar.stop()))
    await this.standby?.stop()
    await this.cluster?.stop()
  }

  /** Writers commit `transactions`, clients follow, `meanwhile` happens in the midst of it; then all is compared. */
  async round(transactions, meanwhile) {
    const abort = new AbortController()
    setMaxListeners(0, abort.signal)
    const goal = { position: undefined, abort: abort.signal }
    const following = Promise.all(this.clients.map((client) => follow(client, goal)))
    await Promise.race([this.write(transactions, meanwhile), following])
    goal.position = await this.settled()
    abort.abort()
    await inTime(following, this.clients)
    await this.compare()
    return goal.position
  }

  async write(transactions, meanwhile) {
    const { counts } = this
    const from = counts.committed
    const half = () => counts.committed >= from + transactions / 2
    let busy = true
    const writing = Promise.all(this.writers.map((writer) => writer.run(() => busy || counts.committed < from + transactions)))
    const other = (async () => {
      while (!half()) await sleep(5)
      await meanwhile?.(this)
    })().finally(() => { busy = false })
    await Promise.all([writing, other])
  }

  /** Waits until all that was committed has a position; returns the newest one. */
  async settled() {
    await waitFor(async () => (await this.query('select pending = 0 done from shapefeed.status')).rows[0].done, { what: 'all is sequenced' })
    return this.head()
  }

  async compare() {
    const { truth, books } = this
    await truth.read()
    for (const shape of this.shapes) {
      await truth.judge(shape)
      truth.count(shape, this.transitions)
      books.checked += compare(truth, shape, this.clients.filter((client) => client.shape === shape))
      await assertSelect(this, shape)
    }
    for (const conflict of books.conflicts) await this.assertLegal(conflict)
  }

  /**
   * A 409 is legal when something ended the handle: after its snapshot, and before it was used; or when all columns are not
   * what they were, so that the request now is for another shape.
   */
  async assertLegal({ shape, handle, offset, replacement, trail = [] }) {
    const [hash, pin] = handle.split('-')
    const ended = this.ends.some((end) => (end.table === shape.table || end.shape === shape) && end.position >= BigInt(pin))
    const another = shape.table.added.length > 0 && shape.request.columns === undefined && ![undefined, hash].includes(replacement?.split('-')[0])
    if (ended || another) return
    const reasons = await Promise.all(this.sidecars.map(reasonsOf))
    assert.fail(`409 for ${handle} at ${offset}, now ${replacement}, which nothing ended: ${describe(shape)}\n${trail.join('\n')}\n${reasons.join('\n')}`)
  }

  /** Kills something, and counts whether requests were under way. */
  async kill([name, how]) {
    await waitFor(() => this.books.inFlight > 0, { what: 'a request is in flight' })
    this.killed.push({ name, inFlight: this.books.inFlight })
    await how(this)
  }

  /** Empties a table, which ends its shapes. */
  async truncate(table) {
    await this.query(`begin; truncate ${table.sqlName}`)
    const { rows: [{ xid }] } = await this.query('select pg_current_xact_id()::text xid')
    await this.query('commit')
    this.ends.push({ table, position: await this.positionOf(xid) })
  }

  /** The position of a transaction that touched a table. */
  async positionOf(xid) {
    const place = 'select position from shapefeed.commit where xid = $1::xid8'
    return BigInt(await waitFor(async () => (await this.query(place, [xid])).rows[0]?.position, { what: `transaction ${xid} has a position` }))
  }

  /**
   * Adds a column, which ends shapes that select all of them and no others: without a key, where a row is all of its
   * columns, every shape of the table. It stays null.
   */
  async addColumn(table) {
    const added = `added_${table.added.length}`
    table.added.push(added)
    table.stored.push({ sql: added })
    const results = await this.alter('add column', `begin; alter table ${table.sqlName} add column ${added} int; ${auditFunctionSql(table)};
      select pg_current_xact_id()::text xid; commit`)
    if (table.keyless) this.ends.push({ table, position: await this.positionOf(results.at(-2).rows[0].xid) })
  }

  /** What changes nothing that a shape could tell. */
  async maintain({ sqlName }) {
    await this.alter('create index', `create index some_index on ${sqlName} (grp)`)
    await this.alter('reindex', `reindex table ${sqlName}`)
    await this.alter('drop index', 'drop index some_index')
    await this.alter('vacuum full', `vacuum full ${sqlName}`)
  }

  /** Writers may be in the way so that one of both has to give in. */
  async alter(what, sql) {
    const results = await waitFor(() => this.query(sql).catch((error) => this.query('rollback').then(() => { throw error })), { what: sql, timeoutMs: 30_000 })
    this.ddl[what] = (this.ddl[what] ?? 0) + 1
    return results
  }

  /** Has a client's shape deleted over HTTP. */
  async rotate(shape) {
    const query = new URLSearchParams(Object.entries(shape.request).filter(([, value]) => value !== undefined))
    const answer = await fetch(`${this.sidecars[0].url}/v1/shape?${query}`, { method: 'DELETE' })
    assert.equal(answer.status, 202, await answer.text())
    this.ends.push({ shape, position: await this.head() }) // 202: it has been sequenced
  }

  async head() {
    return BigInt((await this.query('select head from shapefeed._head()')).rows[0].head)
  }

  /** Asks all sidecars for chunks that were closed before; `Books` compares. Returns how many answers were chunks. */
  async askAgain(count) {
    const asked = [...this.books.chunks.keys()]
    const before = this.books.repeated
    for (let i = 0; i < count && asked.length > 0; i++) {
      const [path, shape] = this.books.paths.get(this.random.pick(asked))
      for (const sidecar of this.sidecars) {
        const answer = await fetch(`${sidecar.url}${path}`)
        const text = await answer.text()
        if (answer.status === 200) this.books.keep(path, text, answer.headers, shape)
        else if (answer.status === 409) await this.assertLegal({ shape, handle: new URLSearchParams(path.split('?')[1]).get('handle') ?? '0-0-0', offset: path, replacement: answer.headers.get('electric-handle') ?? undefined })
        else assert.equal(answer.status, 503, text)
      }
    }
    return this.books.repeated - before
  }
}

/** Why a sidecar has answered with 409. */
async function reasonsOf({ url, port }) {
  const lines = (await (await fetch(`${url}/metrics`)).text()).split('\n')
  return lines.filter((line) => line.startsWith('shapefeed_refetches_total')).map((line) => `${port} ${line}`).join('\n')
}

function follow(client, goal) {
  return client.follow(goal).catch((error) => {
    throw new Error(`${error.message}\n  ${client.describe()}`, { cause: error })
  })
}

async function inTime(following, clients) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => {
      const stuck = clients.filter(({ arrived }) => !arrived)
      reject(new Error(`${stuck.length} clients are not up to date after 60 s; one: ${stuck[0].describe()}`))
    }, 60_000)
  })
  await Promise.race([following, late]).finally(() => clearTimeout(timer))
}
