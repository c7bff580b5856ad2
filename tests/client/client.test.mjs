// The stock client from npm, unmodified, against a real sidecar: what it holds is what a SELECT says.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { FetchError, ShapeStream } from '@electric-sql/client'
import { freshDatabase, scale, sleep, startCluster, startProxy, startSidecar, waitFor } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'

let cluster, database, sidecar, client
const followers = []

before(async () => {
  cluster = await startCluster()
  database = await freshDatabase(cluster)
  sidecar = await startSidecar({ databaseUrl: database.url, env: { SHAPEFEED_CHUNK_BYTES: '10000' } })
  client = await database.connect()
})

after(async () => {
  followers.forEach((follower) => follower.stop())
  await sidecar?.stop()
  await cluster?.stop()
})

function following(params, url = sidecar.url) {
  const follower = follow(url, params)
  followers.push(follower)
  return follower
}

test('initial sync, live insert, update, delete and key change', async () => {
  await client.query('create table basics (id int primary key, v text)')
  await client.query("insert into basics select i, 'v' || i from generate_series(1, 10) i")
  const follower = following({ table: 'basics' })
  const query = 'select * from basics'
  await untilSame(follower, client, query)
  const steps = [
    "insert into basics values (11, 'new')", "update basics set v = 'changed' where id = 1", 'delete from basics where id = 2',
    'update basics set id = 100 where id = 3', 'update basics set id = id + 1000', "begin; delete from basics where id = 1004; insert into basics values (1004, 'again'); commit",
  ]
  for (const step of steps) {
    await client.query(step)
    await untilSame(follower, client, query)
  }
})

test('where, params and columns', async () => {
  await client.query('create table chosen (id int primary key, kind text, n numeric, hidden text)')
  await client.query("insert into chosen select i, 'k' || i % 3, i / 4.0, 'secret' from generate_series(1, 60) i")
  const params = { table: 'chosen', where: 'kind = $1 and n > $2', params: ['k1', '2.5'], columns: ['id', 'n'] }
  const follower = following(params)
  const query = "select id, n from chosen where kind = 'k1' and n > 2.5"
  assert.ok((await untilSame(follower, client, query)) > 5)
  await client.query("update chosen set kind = 'k1' where id % 7 = 0") // rows move in
  await client.query('update chosen set n = 0 where id % 5 = 0') // rows move out
  await client.query("update chosen set hidden = 'other'") // nothing that is selected changes
  assert.ok((await untilSame(follower, client, query)) > 5)
  assert.ok(follower.rows().every((row) => !row.includes('hidden')))
})

test('a snapshot of many chunks, changed while it is read', async () => {
  await client.query('create table many (a int, b text, v text, primary key (b, a))')
  await client.query("insert into many select i, 'key/' || i % 17, repeat(md5(i::text), 3) from generate_series(1, 3000) i")
  const proxy = await startProxy(sidecar.url)
  const follower = following({ table: 'many' }, proxy.url)
  for (let i = 0; i < 20; i++) {
    await client.query('update many set v = $1 where a % 20 = $2', [`round ${i}`, i])
    await client.query('delete from many where a = $1', [i * 10])
    await sleep(5)
  }
  await untilSame(follower, client, 'select * from many')
  const chunks = proxy.requests.filter(({ params }) => /^0_[1-9]/.test(params.get('offset')))
  assert.ok(chunks.length > 10, `${chunks.length} chunks`)
  assert.equal(proxy.refetches().conflicts, 0)
  await proxy.stop()
})

test('values are the same in snapshot and stream', async () => {
  await client.query(`create type mood as enum ('ok', 'so "so"'); create domain positive as int check (value > 0);
    create table typed (id int primary key, i2 int2, i8 int8, f4 float4, f8 float8, num numeric, b bool, t text, c char(5), vc varchar(9),
      bytes bytea, d date, ts timestamp, tz timestamptz, iv interval, u uuid, j json, jb jsonb, arr int[], texts text[], m mood, p positive,
      r int4range, net inet, bits bit(3), pt point)`)
  const row = (id) => `insert into typed values (${id}, -7, 9007199254740993, 1.5, 'NaN', 12345678901234567890.123, true, E'a\\n"b"\\\\c', 'ab', 'x',
    '\\x00ff', '2024-02-29', '2024-01-01 10:00', '2024-01-01 10:00+02', '1 day 02:03', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a" : 1}',
    '{"a" : 1}', '{1,NULL,3}', '{"a b",c}', 'so "so"', 5, '[1,5)', '10.0.0.1/8', '101', '(1,2)')`
  await client.query(row(1))
  const follower = following({ table: 'typed' })
  await waitFor(() => follower.rows().length === 1)
  await client.query(row(2))
  await client.query('insert into typed (id) values (3)')
  await waitFor(() => follower.rows().length === 3)
  const [one, two] = [1, 2].map((id) => follower.shape.currentRows.find((each) => each.id === String(id)))
  assert.deepEqual({ ...one, id: 0 }, { ...two, id: 0 })
  assert.equal(one.i8, '9007199254740993')
  const empty = follower.shape.currentRows.find(({ id }) => id === '3')
  assert.ok(Object.entries(empty).every(([name, value]) => name === 'id' || value === null))
})

for (const liveSse of [false, true]) test(`resume by handle and offset, ${liveSse ? 'by events' : 'by long-polling'}`, async () => {
  const table = `resumed_${liveSse}`
  await client.query(`create table ${table} (id int primary key, v text)`)
  await client.query(`insert into ${table} select i, 'v' from generate_series(1, 5) i`)
  const url = `${sidecar.url}/v1/shape`
  const until = async (options, enough) => {
    const abort = new AbortController()
    const stream = new ShapeStream({ url, params: { table }, liveSse, signal: abort.signal, ...options })
    const messages = []
    stream.subscribe((batch) => messages.push(...batch), () => {})
    await waitFor(() => stream.isUpToDate && enough(messages))
    const { lastOffset: offset, shapeHandle: handle } = stream
    abort.abort()
    return { offset, handle, changes: messages.filter(({ key }) => key) }
  }
  const first = await until({}, () => true)
  assert.equal(first.changes.length, 5)
  await client.query(`insert into ${table} values (6, 'later'); delete from ${table} where id = 1`)
  const second = await until({ offset: first.offset, handle: first.handle }, (messages) => messages.some(({ headers }) => headers.operation === 'delete'))
  assert.equal(second.handle, first.handle)
  assert.deepEqual(second.changes.map(({ headers }) => headers.operation), ['insert', 'delete'])
})

test('a deleted shape and a truncated table are read again', async () => {
  await client.query("create table rotated (id int primary key, v text); insert into rotated values (1, 'a'), (2, 'b')")
  const follower = following({ table: 'rotated' })
  await untilSame(follower, client, 'select * from rotated')
  const handle = follower.stream.shapeHandle
  assert.equal((await fetch(`${sidecar.url}/v1/shape?table=rotated&handle=${handle}`, { method: 'DELETE' })).status, 202)
  await client.query("insert into rotated values (3, 'c')")
  await untilSame(follower, client, 'select * from rotated')
  assert.notEqual(follower.stream.shapeHandle, handle)
  await client.query("truncate rotated; insert into rotated values (9, 'after')")
  assert.equal(await untilSame(follower, client, 'select * from rotated'), 1)
})

test('errors reach the client as errors', async () => {
  const refused = async (params) => {
    const stream = new ShapeStream({ url: `${sidecar.url}/v1/shape`, params })
    return new Promise((resolve) => stream.subscribe(() => {}, resolve))
  }
  const missing = await refused({ table: 'nowhere' })
  assert.ok(missing instanceof FetchError && missing.status === 400)
  assert.match(JSON.stringify(missing.json), /does not exist/)
  const syntax = await refused({ table: 'basics', where: '1 x 1' })
  assert.deepEqual(syntax.json.errors.where, ['At location 17: syntax error at or near "x"'])
})

test('a transaction that is open while the first shape on its table is made is not lost', async () => {
  await client.query("create table opened (id int primary key, v text); insert into opened values (1, 'before')")
  const writer = await database.connect()
  await writer.query("begin; insert into opened values (2, 'open')")
  const follower = following({ table: 'opened' })
  await sleep(1000)
  await writer.query('commit')
  await writer.end()
  assert.equal(await untilSame(follower, client, 'select * from opened'), 2)
  await client.query("insert into opened values (3, 'after')")
  assert.equal(await untilSame(follower, client, 'select * from opened'), 3)
})

test('under a random load each of many shapes equals its SELECT', async () => {
  await client.query('create table load (id int primary key, kind int not null, n int, note text)')
  await client.query('insert into load select i, i % 8, i, md5(i::text) from generate_series(1, 400) i')
  const clauses = ['kind = 1', 'kind in (2, 3) and n % 2 = 0', "note like 'a%'", 'n between 50 and 250', 'n is null or kind > 5', "note ~ '[0-9]{3}'", 'id % 3 = kind % 3', 'coalesce(n, 0) * 2 > 300']
  const shapes = clauses.map((where) => [following({ table: 'load', where }), `select * from load where ${where}`])
  for (const [follower, query] of shapes) await untilSame(follower, client, query)
  const done = { insert: 0, update: 0, delete: 0, key: 0 }
  const end = Date.now() + 10_000 * scale
  const write = async () => {
    const own = await database.connect()
    const number = (below) => Math.floor(Math.random() * below)
    while (Date.now() < end || Math.min(...Object.values(done)) < 100) {
      const [id, what] = [number(500), Math.random()]
      try {
        if (what < 0.25) done.insert += (await own.query('insert into load values ($1, $2, $3, md5(random()::text)) on conflict do nothing', [id, number(8), number(400)])).rowCount
        else if (what < 0.4) done.delete += (await own.query('delete from load where id = $1', [id])).rowCount
        else if (what < 0.55) done.key += (await own.query('update load set id = $2 where id = $1 and not exists (select from load where id = $2)', [id, number(500)])).rowCount
        else done.update += (await own.query('update load set kind = $2, n = nullif($3::int, 7), note = md5(random()::text) where id between $1 and $1 + 2', [id, number(8), number(400)])).rowCount
      } catch (error) {
        if (!['23505', '40P01'].includes(error.code)) throw error
      }
    }
    await own.end()
  }
  await Promise.all([write(), write(), write()])
  const counts = []
  for (const [follower, query] of shapes) counts.push(await untilSame(follower, client, query))
  const total = Number((await client.query('select count(*) from load')).rows[0].count)
  const partial = counts.filter((count) => count > total * 0.01 && count < total * 0.99)
  assert.ok(partial.length >= shapes.length * 0.3, `selecting: ${counts} of ${total}`)
  assert.ok(Object.values(done).every((count) => count >= 100), JSON.stringify(done))
})
