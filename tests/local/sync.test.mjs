// What is in the local database is what the shapes have, whatever the values, and it comes cheaply.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { createSync } from '../../client/dist/index.js'
import { served } from '../lib/index.mjs'
import { newDatabase, openClient } from './lib/client.mjs'
import { refusal } from './lib/line.mjs'

const rows = Number(process.env.SHAPEFEED_LOCAL_ROWS ?? 20_000)
const site = served({
  schema: `create type mood as enum ('good', 'bad'); create schema "My app";
    create table items (id int primary key, list int not null, name text, done boolean, amount numeric, big int8, small int2, ratio float8, made timestamptz,
      day date, span interval, doc jsonb, plain json, tags text[], numbers int[], bytes bytea, code char(4), mood mood, moods mood[]);
    insert into items select i, i % 10, 'item ' || i, i % 2 = 0, i / 3.0, i * 10000000000, i % 100, i / 7.0, '2026-01-01'::timestamptz + i * interval '1 minute',
      '2026-01-01'::date + i, i * interval '1 hour', jsonb_build_object('i', i, 'text', 'a"b\\c'), '{"a" : 1}', array['x', 'y "' || i, null], array[i, -i],
      decode('00ff', 'hex'), 'ab', 'bad', '{good}' from generate_series(1, 300) i;
    insert into items (id, list, name) values (301, 1, e'a\\tb\\nc\\rd\\\\e\\n\\\\.\\n'), (302, 1, ''), (303, 1, '\\N'), (304, 1, ' é😀 ');
    create table "My app"."Big ""one""" (a uuid default gen_random_uuid(), "B" text, "key" int generated always as identity, title text, doc jsonb, made timestamptz default now(), done bool, n numeric, primary key ("key", a));
    insert into "My app"."Big ""one""" ("B", title, doc, done, n) select 'b' || i, 'title of ' || i, jsonb_build_object('n', i), i % 3 = 0, i / 7.0 from generate_series(1, ${rows}) i;
    call shapefeed.track('items'); call shapefeed.track('"My app"."Big ""one"""'); call shapefeed.allow_writes('items')`,
})

test('every value of every type arrives as it is, and goes back so', async () => {
  const client = await openClient(site)
  await client.follow({ table: 'items' })
  await client.equals('items')
  await site.sql(`update items set name = null, doc = '[1, null]', tags = '{}' where id % 7 = 0; delete from items where id % 11 = 0;
    insert into items (id, list, doc, made) values (5001, 1, 'null', 'infinity')`)
  await client.equals('items')
  await client.query(`insert into items select 6000 + id, list, name, done, amount, big, small, ratio, made, day, span, doc, plain, tags, numbers, bytes, code, mood, moods from items where id < 20`
    .replace('select 6000', '(id, list, name, done, amount, big, small, ratio, made, day, span, doc, plain, tags, numbers, bytes, code, mood, moods) select 6000'))
  await client.query(`update items set tags = array['n"1', null], numbers = '{3}', doc = '{"a": [1]}', plain = '[ 1 ]', made = '-infinity', bytes = '\\x01', ratio = 'NaN', name = null where id = 1`)
  await client.settled()
  assert.equal((await client.sync.rejections()).length, 0, JSON.stringify(await client.sync.rejections()))
  await client.equals('items')
  await client.close()
})

const big = '"My app"."Big ""one"""'

test(`${rows} rows of a table with any name: all equal, soon visible, and not fetched again`, async () => {
  const client = await openClient(site)
  const started = performance.now()
  const handle = client.sync.shape({ table: big })
  await client.until(async () => (await client.one(`select count(*)::int from ${big}`).catch(() => 0)) > 0)
  const visible = performance.now()
  await client.until(() => handle.status === 'live', () => JSON.stringify(handle.error), 300_000)
  const took = performance.now() - started
  console.log(`${rows} rows in ${Math.round(took)} ms, ${Math.round(rows / took * 1000)} rows/s; the first after ${Math.round(visible - started)} ms`)
  const sum = `select md5(string_agg(to_jsonb(t)::text, '' order by t."key", t.a)) from ${big} t`
  assert.equal(await client.one(sum), (await site.client.query(sum)).rows[0].md5)
  const again = await client.reload()
  assert.equal(await again.one(`select count(*)::int from ${big}`), rows, 'there without a request')
  await again.follow({ table: big })
  const bytes = again.line.requests.reduce((total, request) => total + (request.bytes ?? 0), 0)
  assert.ok(bytes < 50_000, `${bytes} bytes`)
  await site.sql(`update ${big} set title = 'news' where "key" = 7`)
  await again.until(async () => (await again.one(`select title from ${big} where "key" = 7`)) === 'news')
  await again.close()
})

/** A database, and how many rows each COPY into it took; undefined for one that failed. */
async function watchedDatabase() {
  const pglite = await newDatabase()
  const copied = []
  const transaction = pglite.transaction.bind(pglite)
  pglite.transaction = (work) => transaction((tx) => work({
    ...tx,
    query: async (sql, ...rest) => {
      if (!sql.startsWith('copy ')) return tx.query(sql, ...rest)
      const at = copied.push(undefined) - 1
      const result = await tx.query(sql, ...rest)
      copied[at] = result.affectedRows
      return result
    },
  }))
  return { pglite, copied }
}

test('what waits to be read is asked for once, even if Node.js cleans up meanwhile', async () => {
  setFlagsFromString('--expose-gc')
  const cleanUp = runInNewContext('gc')
  const { sidecar } = await site.another({ env: { SHAPEFEED_CHUNK_BYTES: '300000' } })
  const asked = []
  const pglite = await newDatabase()
  const ask = async (url, init) => {
    asked.push(new URL(url).searchParams.get('offset'))
    const answer = await fetch(url, init)
    setTimeout(cleanUp, 20)
    return answer
  }
  const sync = await createSync({ url: sidecar.url, userId: 'test', pglite, fetch: ask })
  await sync.shape({ table: big }).upToDate()
  assert.equal((await pglite.query(`select count(*)::int as n from ${big}`)).rows[0].n, rows)
  const parts = asked.filter((offset) => /^0_[1-9]/.test(offset))
  assert.ok(parts.length > 5, 'there are parts')
  assert.deepEqual(parts, [...new Set(parts)])
  await sync.close()
  await pglite.close()
})

test('rows of a first load are copied; those that are here already, have local changes, or are odd, become what they should', async () => {
  const { rows: [{ count }] } = await site.client.query('select count(*)::int from items')
  const plain = await watchedDatabase()
  let client = await openClient(site, { pglite: plain.pglite })
  await client.follow({ table: 'items' })
  assert.ok(plain.copied.length === 1 && plain.copied[0] > 300, `${plain.copied}`)
  await client.equals('items')
  await client.close()

  const filled = await watchedDatabase()
  const sql = `create table items (id int primary key, list int, name text); insert into items values (20, 0, 'old'), (21, 1, 'item 21')`
  client = await openClient(site, { pglite: filled.pglite, schema: { version: 1, sql } })
  const name = (id) => client.one('select name from items where id = $1', [id])
  await client.follow({ table: 'items' })
  assert.deepEqual(filled.copied, [undefined])
  assert.equal(await name(20), 'item 20')
  assert.equal(await client.one('select count(*)::int from items'), count)
  await client.close()

  const odd = await watchedDatabase()
  await site.sql(`insert into items (id, list, name) values (7001, 1, e'a\\x01\\x1f\\x7f\\n')`)
  client = await openClient(site, { pglite: odd.pglite })
  await client.follow({ table: 'items', where: 'id = 7001' })
  assert.deepEqual(odd.copied, [], 'the one escape that COPY reads otherwise')
  await client.equals('items', 'id = 7001')
  await client.close()

  const one = { table: 'items', where: 'id = 20' }
  client = await openClient(site)
  await client.follow(one)
  client.line.interfere(({ path }) => (path === '/v1/write' ? refusal(503) : undefined))
  await client.query('delete from items where id = 20')
  await client.query(`update sync.stream set "offset" = null`)
  client = await client.reload()
  client.line.interfere(({ path }) => (path === '/v1/write' ? refusal(503) : undefined))
  await client.follow(one)
  assert.equal(await name(20), undefined, 'deleted here, which the server does not know yet')
  await client.query('delete from sync.outbox')
  await client.close()
})

test('a named shape has its table from its definition or from its first row', async () => {
  await site.sql(`select shapefeed.create_shape('few', 'items', 'list = :list and id < 100', params => '{"list": "int4"}'); create table nothing (id int primary key); call shapefeed.track('nothing'); select shapefeed.create_shape('none', 'nothing')`)
  const client = await openClient(site)
  const few = await client.follow({ shape: 'few', params: { list: 3 } })
  assert.equal(few.table, 'items')
  await client.equals('items', 'list = 3 and id < 100')
  await client.follow({ shape: 'none', table: 'nothing' })
  assert.deepEqual(await client.query('select * from nothing'), [])
  await client.close()
})
