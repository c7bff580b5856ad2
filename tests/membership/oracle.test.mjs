// Random clauses with subqueries over five linked tables, concurrent writers, clients that follow live or come back after
// each round. What a client held at a position is compared with what a REPEATABLE READ SELECT says whose snapshot is of
// just that position: the test maps it by the transactions that the snapshot sees.
//
// SHAPEFEED_TEST_SEED repeats shapes and statements, SHAPEFEED_TEST_SCALE multiplies the rounds.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { Follower, scale, served, waitFor } from '../lib/index.mjs'
import { randomFrom } from '../lib/random.mjs'
import { Clauses, domain, schema, tables } from './predicates.mjs'

const seed = Number(process.env.SHAPEFEED_TEST_SEED ?? Date.now() % 1_000_000)
const shapeCount = Number(process.env.SHAPEFEED_TEST_SHAPES ?? 40)
const rounds = 6 * scale
const writers = 4
const transactionsEach = 40

const site = served({ schema, env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '1000' } })
const random = randomFrom(seed)
const sampling = randomFrom(seed)
const clauses = new Clauses(random)
const shapes = []
const samples = []
const counted = { insert: 0, update: 0, delete: 0, compared: 0 }

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

/** The rows of some shapes and what a snapshot sees. */
async function sample(client, share = 0.2) {
  await client.query('begin isolation level repeatable read read only')
  const { rows: [{ snapshot }] } = await client.query('select pg_current_snapshot()::text as snapshot')
  const found = new Map()
  for (const shape of shapes) {
    if (!sampling.chance(share)) continue
    found.set(shape, (await client.query(shape.query)).rows.map(({ row }) => line(row)).sort())
  }
  await client.query('commit')
  samples.push({ snapshot, found })
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
  const id = random.below(31)
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
    `update ${table} set id = id + 31 where id = ${id} and not exists (select from ${table} o where o.id = ${id + 31})`,
    `update ${table} set id = id - 31 where id = ${id + 31} and not exists (select from ${table} o where o.id = ${id})`,
    `delete from ${table} where id = ${id}; insert into ${table} values (${id}, ${row})`,
  ])
}

async function write(client) {
  for (let i = 0; i < transactionsEach; i++) {
    const count = random.pick([1, 1, 2, 3, 6])
    const parts = Array.from({ length: count }, statement)
    if (random.chance(0.2)) parts.splice(1, 0, 'savepoint s', statement(), 'rollback to s')
    const text = ['begin', ...parts, random.chance(0.1) ? 'rollback' : 'commit'].join('; ')
    try {
      await client.query(text)
    } catch (error) {
      await client.query('rollback')
      assert.match(error.code, /^(40P01|40001|23505)$/, `${error.message}: ${text}`)
    }
  }
}

const connections = []

async function begin() {
  for (let i = 0; i < writers + 2; i++) connections.push(await site.database.connect())
  for (const table of tables) {
    const rows = Array.from({ length: 20 }, (_, id) => `(${id}, ${valuesOf(randomRow())})`)
    await site.sql(`insert into ${table} values ${rows}`)
  }
}
after(() => Promise.all(connections.map((client) => client.end())))

test(`clients hold what a SELECT says (seed ${seed})`, async () => {
  await begin()
  while (shapes.length < shapeCount) {
    const table = random.pick(tables)
    const where = clauses.clause(table)
    const query = `select to_jsonb(${table}) as row from ${table} where ${where}`
    shapes.push({ table, where, query })
  }
  const all = []
  for (const [i, shape] of shapes.entries()) {
    const followed = new Followed(shape, ['live', 'log'][i % 2])
    await followed.start(site.api).catch((error) => {
      throw new Error(`${shape.table} where ${shape.where}: ${error.message}`)
    })
    all.push(followed)
  }
  const live = all.filter(({ mode }) => mode === 'live')
  for (let round = 0; round < rounds; round++) {
    let writing = true
    const following = live.map(async ({ client }) => {
      while (writing) await client.live()
    })
    const sampler = (async () => {
      while (writing) await sample(connections[writers])
    })()
    await Promise.all(connections.slice(0, writers).map(write))
    writing = false
    await Promise.all([...following, sampler])
    const head = await quiet()
    await Promise.all(all.map((followed) => caughtUp(followed, head)))
    // One that has not been there yet begins in the middle.
    const shape = random.pick(shapes)
    const late = new Followed(shape, 'log')
    await late.start(site.api)
    all.push(late)
    await sample(connections[writers], 1)
    await check(all)
    samples.length = 0
  }
  console.log(JSON.stringify(counted))
  for (const kind of ['insert', 'update', 'delete']) assert.ok(counted[kind] >= 100, `${kind}: ${counted[kind]}`)
  const partly = shapes.filter((shape) => shape.least < 1 && shape.most > 0)
  assert.ok(partly.length >= shapes.length * 0.3, `${partly.length} shapes select some rows and not all`)
})

/** Waits until all that was written has a position; returns the last one. */
async function quiet() {
  const { rows: [{ xid }] } = await site.client.query(
    "with i as (insert into a values (1000, null, null, null, 0, null) on conflict (id) do update set v = a.v + 1 returning 1) select pg_current_xact_id()::text as xid from i")
  return await waitFor(async () => {
    const { rows } = await site.client.query('select position::text from shapefeed.commit where xid::text = $1', [xid])
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
  const { rows: commits } = await site.client.query('select position::text, xid::text from shapefeed.commit order by position')
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
      followed.shape.least = Math.min(followed.shape.least ?? 1, count / 62)
    }
  }
  for (const { client } of all) {
    for (const { headers } of client.seen.slice(client.counted ?? 0)) counted[headers.operation] += 1
    client.counted = client.seen.length
  }
}
