// Random clauses with subqueries over three to five random linked tables, eight concurrent writers, clients that follow live or
// come back after each round, while the sidecar is killed and Postgres crashes. What a client held at a position is compared
// with what a REPEATABLE READ SELECT says whose snapshot is of just that position: the test maps it by the transactions
// that the snapshot sees.
//
// SHAPEFEED_TEST_SEED repeats shapes and statements, SHAPEFEED_TEST_SCALE=10 makes it 200 shapes and ten times the transactions.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { Follower, scale, served, sleep, startProxy, startSidecar, waitFor } from '../lib/index.mjs'
import { ShapeApi } from '../lib/shape.mjs'
import { randomFrom } from '../lib/random.mjs'
import { Clauses, domain, ids, randomSchema } from './predicates.mjs'

const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? Date.now() % 1_000_000)
const shapeCount = Number(process.env.SHAPEFEED_TEST_SHAPES ?? (scale > 1 ? 200 : 50))
const rounds = 5 * scale
const writers = 8
const transactionsEach = 13
/** The first one out of as many rounds has a killed sidecar, the next one a crash of Postgres. */
const killsEvery = 3

const random = randomFrom(seed)
const sampling = randomFrom(seed)
const { tables, sql: schema } = randomSchema(random)
const env = { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '1000' }
const site = served({ schema, env })
const clauses = new Clauses(random, tables)
const shapes = []
const samples = []
const counted = { insert: 0, update: 0, delete: 0, movedIn: 0, movedOut: 0, compared: 0, killsInFlight: 0 }

/** Requests by way of a proxy that keeps the books; one that the server is not there for is sent again. */
class PatientApi extends ShapeApi {
  async get(params, options) {
    const deadline = Date.now() + 60_000
    for (;;) {
      const answer = await super.get(params, options).catch((error) => ({ status: 0, text: error.message }))
      const gone = [0, 502, 503].includes(answer.status) || answer.json === undefined
      if (!gone) return answer
      assert.ok(Date.now() < deadline, `no answer for a minute: ${answer.status} ${answer.text}`)
      await sleep(50)
    }
  }
}

/** A shape, the rows that its client had first, and the client's whole history. */
class Followed {
  constructor(shape, mode) {
    Object.assign(this, { shape, mode })
  }

  async start(api) {
    this.client = new Follower(api, { table: this.shape.table, where: this.shape.where })
    do await this.client.step()
    while (this.client.offset !== '0_0')
    this.pin = BigInt(this.client.handle.split('-')[1])
    this.first = new Map(this.client.rows)
    await this.client.sync()
  }

  /** The rows at a position that it has come by. */
  at(position) {
    const rows = new Map(this.first)
    for (const { key, value, headers } of this.client.seen) {
      if (BigInt(headers.lsn) > position) break
      if (headers.operation === 'delete') rows.delete(key)
      else rows.set(key, { ...rows.get(key), ...value })
    }
    return rows
  }

  get upTo() {
    const last = this.client.answers.findLast(({ upToDate }) => upToDate)
    return BigInt(last.controls.at(-1).headers.global_last_seen_lsn)
  }
}

const line = (row) => JSON.stringify(Object.entries(row).map(([name, value]) => [name, value === null ? null : String(value)]).sort())

/** A connection that is made again when Postgres has crashed. */
class Connection {
  async run(work) {
    this.client ??= await this.open()
    try {
      return await work(this.client)
    } catch (error) {
      if (isData(error)) throw error
      await this.close()
      return undefined
    }
  }

  async open() {
    const connect = () => site.database.connect().catch(() => undefined)
    const client = await waitFor(connect, { timeoutMs: 60_000, what: 'Postgres is there again' })
    client.on('error', () => {})
    return client
  }

  async close() {
    const { client } = this
    this.client = undefined
    await client?.end().catch(() => {})
  }
}

/** An error of the statement itself: Postgres is there. */
const isData = ({ code }) => code !== undefined && /^(2|40|42|22|0A)/.test(code)
const connections = Array.from({ length: writers + 2 }, () => new Connection())
const [sampler, reader] = connections.slice(writers)
after(() => Promise.all(connections.map((connection) => connection.close())))
const query = (text, values) => waitFor(() => reader.run((client) => client.query(text, values)), { timeoutMs: 60_000, what: 'Postgres answers' })

/** The rows of some shapes and what a snapshot sees. */
async function sample(share = 0.2) {
  const taken = await sampler.run(async (client) => {
    await client.query('begin isolation level repeatable read read only')
    const { rows: [{ snapshot }] } = await client.query('select pg_current_snapshot()::text as snapshot')
    const found = new Map()
    for (const shape of shapes) {
      if (!sampling.chance(share)) continue
      found.set(shape, (await client.query(shape.query)).rows.map(({ row }) => line(row)).sort())
    }
    await client.query('commit')
    return { snapshot, found }
  })
  if (taken) samples.push(taken)
  return taken
}

function seesOf(snapshot) {
  const [xmin, xmax, xip] = snapshot.split(':')
  const open = new Set(xip.split(',').filter(Boolean))
  return (xid) => BigInt(xid) < BigInt(xmin) || (BigInt(xid) < BigInt(xmax) && !open.has(xid))
}

/** The position that a snapshot is of; undefined if it sees no prefix of the transactions. */
function positionOf(snapshot, commits) {
  const sees = seesOf(snapshot)
  const seen = commits.map(({ xid }) => sees(xid))
  const count = seen.filter(Boolean).length
  if (!seen.slice(0, count).every(Boolean) || count === 0) return undefined
  return [BigInt(commits[count - 1].position), BigInt(commits[count]?.position ?? 2n ** 53n)]
}

function randomRow() {
  const link = () => (random.chance(0.12) ? null : random.below(domain + 1))
  return [link(), link(), link(), random.below(100), ['x', 'y', 'z', 'xy', null][random.below(5)]]
}

const literal = (value) => (value === null ? 'null' : typeof value === 'string' ? `'${value}'` : String(value))
const asText = (value) => (value === null ? null : String(value))
const valuesOf = ([k1, k2, k3, v, t]) => [k1, k2, asText(k3), v, t].map(literal)

function statement() {
  const table = random.pick(tables)
  const id = random.below(ids)
  const some = random.pick([`id = ${id}`, `id between ${id} and ${id + 3}`, `k1 = ${random.below(domain + 1)}`, `k3 = '${random.below(domain + 1)}'`])
  const row = valuesOf(randomRow())
  const link = random.below(3)
  return random.pick([
    `insert into ${table} values (${id}, ${row}) on conflict (id) do update set (k1, k2, k3, v, t) = (${row})`,
    `insert into ${table} values (${id}, ${row}) on conflict do nothing`,
    `update ${table} set k${link + 1} = ${row[link]} where ${some}`,
    `update ${table} set k${link + 1} = ${row[link]} where ${some}`,
    `update ${table} set v = ${row[3]}, t = ${row[4]} where ${some}`,
    `delete from ${table} where ${some}`,
    `update ${table} set id = id + ${ids} where id = ${id} and not exists (select from ${table} o where o.id = ${id + ids})`,
    `update ${table} set id = id - ${ids} where id = ${id + ids} and not exists (select from ${table} o where o.id = ${id})`,
    `delete from ${table} where id = ${id}; insert into ${table} values (${id}, ${row})`,
  ])
}

async function write(connection) {
  for (let i = 0; i < transactionsEach; i++) {
    const count = random.pick([1, 1, 2, 3, 6])
    const parts = Array.from({ length: count }, statement)
    if (random.chance(0.2)) parts.splice(1, 0, 'savepoint s', statement(), 'rollback to s')
    const text = ['begin', ...parts, random.chance(0.1) ? 'rollback' : 'commit'].join('; ')
    await connection.run(async (client) => {
      try {
        await client.query(text)
      } catch (error) {
        if (!isData(error)) throw error
        await client.query('rollback')
        assert.match(error.code, /^(40P01|40001|23505)$/, `${error.message}: ${text}`)
      }
    })
  }
}

/** What happens in a round beside the writing. */
async function disturb(round, proxy) {
  const kind = round % killsEvery
  if (kind === 0) return
  await sleep(100)
  counted.killsInFlight += Number(proxy.requests.some(({ status }) => status === undefined))
  if (kind === 1) {
    await site.sidecar.kill9()
    site.sidecar = await startSidecar({ databaseUrl: site.database.url, env })
    proxy.setTarget(site.sidecar.url)
  } else {
    await site.cluster.stopImmediate()
    await site.cluster.start()
  }
}

async function fill() {
  for (const table of tables) {
    const rows = Array.from({ length: 20 }, (_, id) => `(${id}, ${valuesOf(randomRow())})`)
    await site.sql(`insert into ${table} values ${rows}`)
  }
  while (shapes.length < shapeCount) {
    const table = random.pick(tables)
    const where = clauses.clause(table)
    shapes.push({ table, where, query: `select to_jsonb(${table}) as row from ${table} where ${where}` })
  }
}

test(`clients hold what a SELECT says (seed ${seed})`, async () => {
  await fill()
  const proxy = await startProxy(site.sidecar.url)
  const api = new PatientApi(proxy.url)
  const all = []
  const begin = async (shape, mode) => {
    const followed = new Followed(shape, mode)
    await followed.start(api).catch((error) => {
      throw new Error(`${shape.table} where ${shape.where}: ${error.message}`)
    })
    all.push(followed)
  }
  for (const [i, shape] of shapes.entries()) await begin(shape, ['live', 'log'][i % 2])
  const live = all.filter(({ mode }) => mode === 'live')
  for (let round = 0; round < rounds; round++) {
    proxy.reset()
    let writing = true
    const following = live.map(async ({ client }) => {
      while (writing) await client.live()
    })
    const sampled = (async () => {
      while (writing) await sample()
    })()
    await Promise.all([...connections.slice(0, writers).map(write), disturb(round, proxy)])
    writing = false
    await Promise.all([...following, sampled])
    const head = await quiet()
    await Promise.all(all.map((followed) => caughtUp(followed, head)))
    assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 0 }, 'nobody starts over')
    await begin(random.pick(shapes), 'log') // one that has not been there yet begins in the middle
    await waitFor(() => sample(1), { what: 'all shapes are sampled' })
    await check(all)
    samples.length = 0
  }
  api.close()
  await proxy.stop()
  console.log(JSON.stringify(counted))
  for (const kind of ['insert', 'update', 'delete', 'movedIn', 'movedOut']) assert.ok(counted[kind] >= 100, `${kind}: ${counted[kind]}`)
  assert.ok(counted.compared >= shapes.length * rounds)
  assert.ok(counted.killsInFlight >= 3, `${counted.killsInFlight} kills with a request in flight`)
  const partly = shapes.filter((shape) => shape.least < 1 && shape.most > 0)
  assert.ok(partly.length >= shapes.length * 0.3, `${partly.length} shapes select some rows and not all`)
})

/** Waits until all that was written has a position; returns the last one. */
async function quiet() {
  const { rows: [{ xid }] } = await query(
    `with i as (insert into ${tables[0]} values (1000, null, null, null, 0, null) on conflict (id) do update set v = ${tables[0]}.v + 1 returning 1)
     select pg_current_xact_id()::text as xid from i`)
  return await waitFor(async () => {
    const { rows } = await query('select position::text from shapefeed.commit where xid::text = $1', [xid])
    return rows[0] && BigInt(rows[0].position)
  }, { what: 'the last transaction has a position' })
}

async function caughtUp({ client, shape }, head) {
  const followed = () => BigInt(client.answers.at(-1).controls.at(-1)?.headers.global_last_seen_lsn ?? 0)
  try {
    do await client.sync()
    while (followed() < head)
  } catch (error) {
    throw new Error(`${shape.table} where ${shape.where}: ${error.message}`)
  }
}

async function check(all) {
  const { rows: commits } = await query('select position::text, xid::text from shapefeed.commit order by position')
  for (const { snapshot, found } of samples) {
    const range = positionOf(snapshot, commits)
    if (!range) continue
    for (const followed of all) {
      const expected = found.get(followed.shape)
      if (!expected || range[1] <= followed.pin || range[0] > followed.upTo) continue
      const held = [...followed.at(range[1] - 1n).values()].map(line).sort()
      const { table, where } = followed.shape
      assert.deepEqual(held, expected, `${followed.mode} at ${range[0]}, from ${followed.pin}: ${table} where ${where}`)
      counted.compared += 1
      const count = expected.length
      followed.shape.most = Math.max(followed.shape.most ?? 0, count)
      followed.shape.least = Math.min(followed.shape.least ?? 1, count / (2 * ids))
    }
  }
  for (const { client } of all) {
    count(client.seen.slice(client.counted ?? 0))
    client.counted = client.seen.length
  }
}

/** Counts operations. What moved comes behind all that the transaction touched: its places are next to each other. */
function count(messages) {
  for (const [i, { headers }] of messages.entries()) {
    counted[headers.operation] += 1
    const before = messages[i - 1]?.headers
    const moved = before?.lsn === headers.lsn && headers.op_position === before.op_position + 1
    if (moved && headers.operation === 'insert') counted.movedIn += 1
    if (moved && headers.operation === 'delete') counted.movedOut += 1
  }
}
