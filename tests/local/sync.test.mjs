// What is in the local database is what the shapes have, whatever the values, and it comes cheaply.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served } from '../lib/index.mjs'
import { openClient } from './lib/client.mjs'

const rows = Number(process.env.SHAPEFEED_LOCAL_ROWS ?? 20_000)
const site = served({
  schema: `create type mood as enum ('good', 'bad'); create schema "My app";
    create table items (id int primary key, list int not null, name text, done boolean, amount numeric, big int8, small int2, ratio float8, made timestamptz,
      day date, span interval, doc jsonb, plain json, tags text[], numbers int[], bytes bytea, code char(4), mood mood, moods mood[]);
    insert into items select i, i % 10, 'item ' || i, i % 2 = 0, i / 3.0, i * 10000000000, i % 100, i / 7.0, '2026-01-01'::timestamptz + i * interval '1 minute',
      '2026-01-01'::date + i, i * interval '1 hour', jsonb_build_object('i', i, 'text', 'a"b\\c'), '{"a" : 1}', array['x', 'y "' || i, null], array[i, -i],
      decode('00ff', 'hex'), 'ab', 'bad', '{good}' from generate_series(1, 300) i;
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
