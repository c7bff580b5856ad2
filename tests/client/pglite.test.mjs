// @electric-sql/pglite-sync from npm, unmodified, into a PGlite in this process: it holds what the server holds.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { join } from 'node:path'
import { PGlite } from '@electric-sql/pglite'
import { electricSync } from '@electric-sql/pglite-sync'
import { scale, scratchDir, served, startProxy, waitFor } from '../lib/index.mjs'

const site = served()
const stops = []
after(async () => {
  for (const stop of stops) await stop()
})

/** A PGlite with these tables; in the folder, if there is one. */
async function local(schema, dir) {
  const pg = await PGlite.create({ dataDir: dir, extensions: { electric: electricSync() } })
  if (schema) await pg.exec(schema)
  const stop = () => pg.closed || pg.close()
  stops.push(stop)
  return pg
}

const shape = (table, { url = site.sidecar.url, liveSse = false, ...params } = {}) => ({ url: `${url}/v1/shape`, params: { table, ...params }, liveSse })
const into = (table, options) => ({ shape: shape(table, options), table, primaryKey: ['id'] })

/** Both sides of a query as text: it runs on the server and in the PGlite alike. */
async function untilSame(pg, query, { timeoutMs = 20_000 } = {}) {
  const text = `select md5(string_agg(it::text, '|' order by it::text)) as hash, count(*)::int as count from (${query}) it`
  let sides
  await waitFor(async () => {
    sides = [(await site.client.query(text)).rows[0], (await pg.query(text)).rows[0]]
    return sides[0].hash === sides[1].hash
  }, { timeoutMs, intervalMs: 50, what: `${query} gives the same` }).catch((error) => {
    throw new Error(`${error.message}: ${JSON.stringify(sides)}`, { cause: error.cause })
  })
  return sides[0].count
}

// Once is enough for the largest: what two sidecars make different does not depend on size.
const largest = process.env.SHAPEFEED_TEST_SIDECARS ? 30_000 : 300_000
for (const [initialInsertMethod, size] of [['csv', largest], ['json', 30_000], ['insert', 30_000]]) {
  const rows = size * scale

  test(`${rows} rows at once, by ${initialInsertMethod}, then what changes`, async () => {
    const table = `bulk_${initialInsertMethod}`
    const schema = `create table ${table} (id int primary key, name text not null, amount numeric(10,2), at timestamptz, note text, done bool);`
    await site.sql(`${schema} insert into ${table} select i, 'row "' || i || '", ' || md5(i::text), i / 7.0, '2024-01-01Z'::timestamptz + i * interval '1 min',
      case when i % 5 > 0 then E'a\\nb' || i end, i % 2 = 0 from generate_series(1, ${rows}) i`)
    const pg = await local(schema)
    const began = performance.now()
    let initial = 0
    const sync = await pg.electric.syncShapeToTable({ ...into(table), shapeKey: null, initialInsertMethod, onInitialSync: () => initial++ })
    await waitFor(() => initial === 1, { timeoutMs: 30_000 + rows })
    assert.equal(await untilSame(pg, `select * from ${table}`), rows)
    console.log(`${rows} rows by ${initialInsertMethod}: ${Math.round(performance.now() - began)} ms`)
    await site.sql(`update ${table} set name = 'changed', note = null where id % 1000 = 1; delete from ${table} where id % 1000 = 2; insert into ${table} (id, name) values (-1, 'late'); update ${table} set id = -2 where id = 5`)
    await untilSame(pg, `select * from ${table}`)
    sync.unsubscribe()
  })
}

// What is the client's: it parses json, takes NULL for a text if an array of texts does not begin with one, and wants bytes for bytea; it has no arrays of enums.
test('columns of many types', async () => {
  const schema = `create type mood as enum ('sad', 'happy'); create table typed (id int primary key, i8 int8, f float8, n numeric, b bool, t text, c char(4), by bytea, d date,
    ts timestamp, tz timestamptz, iv interval, u uuid, j json, jb jsonb, ints int[], texts text[], nested int[][], m mood, r int4range, ip inet, bits bit(3), p point);`
  await site.sql(schema)
  const row = (id) => `(${id}, 9007199254740993, 'NaN', 1.50, true, E'a\\n"b"\\t\\\\c', 'ab', '\\x00ff', '2024-02-29', '2024-01-01 10:00', '2024-01-01 10:00+02', '1 day 02:03', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
    '{"a":[1]}', '{"a" : "x"}', '{1,NULL,3}', '{NULL,"a b","NULL","\\"q\\""}', '{{1,2},{3,4}}', 'happy', '[1,5)', '10.0.0.1/8', '101', '(1,2)')`
  await site.sql(`insert into typed values ${row(1)}; insert into typed (id) values (2)`)
  const pg = await local(schema)
  const parser = { bytea: (text) => Buffer.from(text.slice(2), 'hex') }
  const sync = await pg.electric.syncShapeToTable({ ...into('typed'), shape: { ...shape('typed'), parser }, shapeKey: null })
  const query = 'select * from typed'
  await pg.exec("set timezone = 'UTC'; set intervalstyle = 'postgres'")
  await site.client.query("set timezone = 'UTC'; set intervalstyle = 'postgres'")
  assert.equal(await untilSame(pg, query), 2)
  await site.sql(`insert into typed values ${row(3)}; update typed set (i8, f, j, ints, m, tz) = (1, 2.5, '[]', '{}', 'sad', now()) where id = 1; update typed set jb = '[1.5]' where id = 2`)
  assert.equal(await untilSame(pg, query), 3)
  sync.unsubscribe()
})

for (const liveSse of [false, true]) {
  const how = liveSse ? 'by events' : 'by long-polling'
  const [accounts, entries] = ['accounts', 'entries'].map((name) => `${name}_${liveSse ? 'events' : 'polls'}`)

  test(`transactions over several tables arrive whole, ${how}`, async () => {
    const schema = `create table ${accounts} (id int primary key, balance int not null); create table ${entries} (id int primary key, account int, amount int not null);`
    await site.sql(`${schema} insert into ${accounts} select i, 0 from generate_series(1, 8) i`)
    const pg = await local(schema)
    const sync = await pg.electric.syncShapesToTables({ key: null, shapes: { a: into(accounts, { liveSse }), e: into(entries, { liveSse }) } })
    await untilSame(pg, `select * from ${accounts}`)
    let writing = true, looks = 0
    const looking = (async () => {
      while (writing) {
        const { rows: [{ differ }] } = await pg.query(`select (select sum(balance) from ${accounts}) - coalesce((select sum(amount) from ${entries}), 0) as differ`)
        assert.equal(Number(differ), 0, 'a transaction in part')
        looks++
        await new Promise((resolve) => setTimeout(resolve, 2))
      }
    })()
    const rounds = 40 * scale
    await Promise.all([0, 1, 2].map(async (writer) => {
      const client = await site.database.connect()
      for (let i = 0; i < rounds; i++) {
        const [account, amount] = [1 + Math.floor(Math.random() * 8), 1 + Math.floor(Math.random() * 100)]
        await client.query(`begin; insert into ${entries} values (${writer * 100_000 + i}, ${account}, ${amount}); update ${accounts} set balance = balance + ${amount} where id = ${account}; commit`)
      }
      await client.end()
    }))
    assert.equal(await untilSame(pg, `select * from ${entries}`), 3 * rounds)
    await untilSame(pg, `select * from ${accounts}`)
    writing = false
    await looking
    assert.ok(looks > 10)
    sync.unsubscribe()
  })

  test(`a new process goes on from the data directory, ${how}`, async () => {
    const [one, two] = ['resumed', 'beside'].map((name) => `${name}_${liveSse ? 'events' : 'polls'}`)
    const schema = `create table ${one} (id int primary key, v text); create table ${two} (id int primary key, v text);`
    await site.sql(`${schema} insert into ${one} select i, 'v' || i from generate_series(1, 500) i; insert into ${two} values (1, 'x')`)
    const proxy = await startProxy(site.sidecar.url)
    const dir = join(scratchDir('pglite'), 'data')
    for (let round = 0; round < 4; round++) {
      const pg = await local(round === 0 ? schema : undefined, dir)
      const options = { url: proxy.url, liveSse }
      const sync = await pg.electric.syncShapesToTables({ key: 'both', shapes: { one: into(one, options), two: into(two, options) } })
      await untilSame(pg, `select * from ${one}`)
      await site.sql(`begin; update ${one} set v = 'round ${round}' where id % 7 = ${round}; insert into ${two} values (${10 + round}, 'live'); commit`)
      await untilSame(pg, `select * from ${one}`)
      await untilSame(pg, `select * from ${two}`)
      sync.unsubscribe()
      await pg.close()
      if (round === 0) proxy.reset()
      await site.sql(`begin; delete from ${one} where id = ${100 + round}; insert into ${one} values (${1000 + round}, 'away'); update ${two} set v = 'away ${round}' where id = 1; commit`)
    }
    assert.ok(proxy.requests.length > 6)
    assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 0 })
    await proxy.stop()
  })

  test(`a shape that must be fetched again is replaced, ${how}`, async () => {
    const [table, kept] = ['replaced', 'kept'].map((name) => `${name}_${liveSse ? 'events' : 'polls'}`)
    const schema = `create table ${table} (id int primary key, v text); create table ${kept} (id int primary key, v text);`
    await site.sql(`${schema} insert into ${table} select i, 'v' from generate_series(1, 50) i; insert into ${kept} values (1, 'a'), (2, 'b')`)
    const pg = await local(schema)
    await pg.exec(`insert into ${kept} values (99, 'local')`)
    let refetches = 0
    const onMustRefetch = async (tx) => {
      refetches++
      await tx.exec(`delete from ${kept} where id < 90`)
    }
    const sync = await pg.electric.syncShapesToTables({ key: 'replaced', shapes: { table: into(table, { liveSse }), kept: { ...into(kept, { liveSse }), onMustRefetch } } })
    await untilSame(pg, `select * from ${table}`)
    await untilSame(pg, `select * from ${kept} where id < 90`)
    await site.sql(`begin; truncate ${table}; insert into ${table} values (7, 'after'); update ${kept} set v = 'too' where id = 1; commit`)
    assert.equal(await untilSame(pg, `select * from ${table}`), 1)
    await untilSame(pg, `select * from ${kept} where id < 90`)
    const gone = await fetch(`${site.sidecar.url}/v1/shape?table=${kept}&handle=${sync.streams.kept.shapeHandle}`, { method: 'DELETE' })
    assert.equal(gone.status, 202)
    await site.sql(`insert into ${kept} values (3, 'c'); insert into ${table} values (8, 'next')`)
    await waitFor(() => refetches === 1)
    assert.equal(await untilSame(pg, `select * from ${kept} where id < 90`), 3)
    assert.equal(await untilSame(pg, `select * from ${table}`), 2)
    assert.equal((await pg.query(`select v from ${kept} where id = 99`)).rows[0].v, 'local')
    sync.unsubscribe()
  })
}
