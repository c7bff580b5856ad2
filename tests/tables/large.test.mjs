// Changes larger than the log takes: the write succeeds, the shapes of the table end with it, and a WARNING says why.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { served, waitFor } from '../lib/index.mjs'

const limit = 1 << 20
const site = served({ conf: ['shapefeed.max_change_size=1MB', 'shared_buffers=8MB'] }) // the memory of a process counts what it touches of these

/** A table with values out of line, tracked, with a follower of its small rows; `warnings` of its connection. */
async function table(name, columns = 'id int primary key, n int, a text, b text') {
  const client = await site.database.connect()
  const warnings = []
  client.on('notice', ({ severity, message }) => severity === 'WARNING' && warnings.push(message))
  await client.query(`create table ${name} (${columns})`)
  await client.query(`alter table ${name} alter a set storage external, alter b set storage external`)
  await client.query(`insert into ${name} (id, n) values (1, 0), (2, 0)`)
  const follower = await site.api.follow({ table: name })
  const refetch = async () => {
    const { handle, offset } = follower
    await waitFor(async () => (await site.api.get({ table: name, handle, offset })).status === 409, { what: 'the handle has ended' })
    Object.assign(follower, { handle: undefined, offset: '-1', rows: new Map() })
    await follower.sync()
  }
  return { client, warnings, follower, refetch, query: async (text, values) => (await client.query(text, values)).rows }
}

const text = (bytes, letter = 'x') => letter.repeat(bytes)
const copies = (follower) => follower.values.map(({ id, a, b }) => [id, a?.length ?? 0, b?.length ?? 0])

test('what fits is in the log; what does not ends the shapes, and capture goes on', async () => {
  const { client, warnings, follower, refetch } = await table('fits')
  await client.query('update fits set a = $1 where id = 1', [text(limit - 2000)])
  await follower.until(({ values }) => values[0].a?.length === limit - 2000)
  assert.deepEqual(warnings, [])

  await client.query('update fits set b = $1, n = n + 1 where id = 2', [text(limit + 1)])
  assert.deepEqual(warnings, ['a change is larger than shapefeed.max_change_size: shapefeed leaves changes of table public.fits out, and every shape on the table ends'])
  await refetch()
  assert.deepEqual(copies(follower), [['1', limit - 2000, 0], ['2', 0, limit + 1]])
  // Left alone, the value is nothing that has to be copied.
  await client.query('update fits set n = 7')
  await follower.until(({ values }) => values.every(({ n }) => n === '7'))
  assert.deepEqual(copies(follower), [['1', limit - 2000, 0], ['2', 0, limit + 1]])
  assert.equal(warnings.length, 1)
  const { rows: [{ reasons }] } = await client.query(`
    select array_agg(e ->> 'reason' order by position) reasons from shapefeed.commit, jsonb_array_elements(ends) e where (e ->> 'relid')::oid = 'fits'::regclass`)
  assert.deepEqual(reasons, ['track', 'too large'])
})

test('compressed values count as what they are', async () => {
  const { client, warnings, refetch } = await table('compressed', 'id int primary key, n int, a text, b text')
  await client.query('alter table compressed alter b set storage extended')
  await client.query(`update compressed set b = repeat('x', 4 * $1::int)`, [limit])
  assert.equal((await client.query('select max(pg_column_size(b)) stored from compressed')).rows[0].stored < limit / 4, true)
  assert.equal(warnings.length, 1)
  await refetch()
})

test('old and new values count together; each of them fits', async () => {
  const { client, warnings, follower, refetch } = await table('pair')
  await client.query('update pair set a = $1 where id = 1', [text(0.6 * limit)])
  await follower.until(({ values }) => values[0].a)
  await client.query('update pair set a = $1 where id = 1', [text(0.6 * limit, 'y')])
  assert.equal(warnings.length, 1)
  await refetch()
  assert.equal(follower.values[0].a[0], 'y')
  // Values that came in one by one, each by a change that fits, go at once.
  await client.query('update pair set b = $1 where id = 1', [text(0.6 * limit)])
  await follower.until(({ values }) => values[0].b)
  await client.query('delete from pair where id = 1')
  assert.equal(warnings.length, 2)
  await refetch()
  assert.deepEqual(copies(follower), [['2', 0, 0]])
})

test('many of them in one transaction: one warning, one end, the other changes are there', async () => {
  const { client, warnings, follower, refetch } = await table('many')
  await client.query('begin')
  await client.query('insert into many (id, a) select g, $1 from generate_series(10, 14) g', [text(limit)])
  await client.query('update many set n = 1 where id < 10')
  await client.query('commit')
  assert.equal(warnings.length, 1)
  await refetch()
  assert.deepEqual(copies(follower).length, 7)
  const { rows } = await client.query(`select ends from shapefeed.commit where ends @> '[{"reason": "too large"}]' order by position desc limit 1`)
  assert.equal(rows[0].ends.length, 1)
  const { rows: [{ updates }] } = await client.query(`select count(*)::int updates from shapefeed.changes_decoded where relation = 'many'::regclass and operation = 'update'`)
  assert.equal(updates, 2)
})

test('rolled back, it ends nothing', async () => {
  const { client, warnings, follower } = await table('undone')
  await client.query('begin; savepoint s')
  await client.query('update undone set a = $1 where id = 1', [text(2 * limit)])
  await client.query('rollback to s; update undone set n = 1; commit')
  assert.equal(warnings.length, 1)
  const { handle } = follower
  await follower.until(({ values }) => values.every(({ n }) => n === '1'))
  assert.equal(follower.handle, handle)
})

test('of a partition: shapes on the partition and above it end, others do not', async () => {
  const { client } = await table('unused')
  await client.query(`
    create table parts (id int primary key, a text) partition by range (id);
    create table parts_1 partition of parts for values from (1) to (10);
    create table parts_2 partition of parts for values from (10) to (20);
    alter table parts_1 alter a set storage external;
    insert into parts values (1), (11);`)
  const [root, first, second] = await Promise.all(['parts', 'parts_1', 'parts_2'].map((name) => site.api.follow({ table: name })))
  await client.query('update parts set a = $1 where id = 1', [text(2 * limit)])
  const status = async ({ params, handle, offset }) => (await site.api.get({ ...params, handle, offset })).status
  await waitFor(async () => await status(root) === 409 && await status(first) === 409, { what: 'both have ended' })
  assert.equal(await status(second), 200)
})

test('nothing of a value that does not fit is copied into memory', async () => {
  const { client } = await table('bounded')
  // Two values that came in by changes that were not captured, then go by one that is.
  await client.query(`set session_replication_role = replica`)
  await client.query(`alter table bounded disable trigger all`)
  await client.query(`update bounded set a = repeat('x', 64 << 20), b = repeat('y', 64 << 20) where id = 1`)
  await client.query(`alter table bounded enable trigger all`)
  const fresh = await site.database.connect()
  await fresh.query('select 1')
  const peak = () => Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${fresh.processID}/status`, 'utf8'))[1]) / 1024
  const before = peak()
  await fresh.query('delete from bounded where id = 1')
  const grown = peak() - before
  assert.ok(grown < 32, `${grown} MiB more`)
})

test('a transaction whose changes take more than they may ends the shapes of its tables; what is rolled back does not count', async () => {
  const { client, warnings, follower, refetch, query } = await table('heavy')
  await query(`set shapefeed.capture_file_limit = '1MB'`)
  await query(`set shapefeed.capture_memory = '64kB'`)
  const insert = `insert into heavy select i, 1, repeat('x', 1000) from generate_series(10, 3000) i`
  const files = async () => Number((await query('select coalesce(sum(size), 0) bytes from pg_ls_tmpdir()'))[0].bytes)
  const why = 'the changes of a transaction take more than shapefeed.capture_file_limit: shapefeed leaves changes of table public.heavy out, and every shape on the table ends'
  // Rolled back: the transaction is as small as the rest of it.
  for (const statement of ['begin', 'savepoint a', insert, 'rollback to a', 'insert into heavy values (3, 3)', 'commit']) await client.query(statement)
  await follower.until(({ rows }) => rows.size === 3)
  assert.deepEqual(warnings, [why])
  // Twice too much, the first time rolled back: what is noted the second time is not what was noted the first time.
  for (const statement of ['begin', 'savepoint a', insert, 'rollback to a', insert]) await client.query(statement)
  const bytes = await files()
  assert.ok(bytes > 500_000 && bytes < 1_500_000, `${bytes} bytes`)
  await client.query('commit')
  assert.deepEqual(warnings, [why, why].slice(0, warnings.length))
  await refetch()
  assert.equal(follower.rows.size, 3 + 2991)
  await query('delete from heavy where id >= 1000')
  await refetch()
  assert.equal(follower.rows.size, 3 + 990)
  await query('update heavy set n = 2 where id = 1')
  await follower.until(({ values }) => values.some(({ n }) => n === '2'))
})

test('a row that is too large to be sent is refused, not a failure; the shape can be had without the column', async () => {
  const { client } = await table('unsendable', 'id int primary key, n int, a text, b bytea')
  await client.query('alter table unsendable alter b set storage extended, alter b set compression lz4')
  // As text it has 1.09 GB; Postgres cannot print it, either.
  await client.query(`update unsendable set b = convert_to(repeat('x', 520 << 20), 'UTF8') where id = 1`)
  await waitFor(async () => {
    const answer = await site.api.get({ table: 'unsendable', offset: '-1' })
    return answer.status !== 503 && assert.equal(answer.status, 400, answer.text) === undefined && /54000/.test(answer.text)
  }, { what: 'refused' })
  for (const params of [{ columns: 'id,n,a' }, { where: 'id = 2' }]) {
    const follower = await site.api.follow({ table: 'unsendable', ...params })
    assert.equal(follower.rows.size, params.where ? 1 : 2)
  }
  await assert.rejects(client.query(`select * from shapefeed.visible_rows('unsendable')`), { code: '54000', hint: 'Leave its large columns out of the shape.' })

  // A row that comes into shapes that are followed: the one ends, the other, which leaves the column out, goes on in the same session.
  const feed = await site.database.connect()
  const define = `select shapefeed._define('{public,unsendable}', 'n = 5', null, $1, 'default', 'full', null) as it`
  for (const [id, columns] of [[1, null], [2, ['id', 'n']]]) {
    const { rows: [{ it }] } = await feed.query(define, [columns])
    await feed.query('select shapefeed._attach($1, $2::jsonb[])', [[id], [JSON.stringify(it)]])
  }
  await client.query('update unsendable set n = 5 where id = 1')
  const told = []
  await waitFor(async () => {
    told.push(...(await feed.query('select kind, ids, message from shapefeed._feed(1000)')).rows)
    return told.some(({ kind }) => kind === 'op')
  }, { what: 'the feed tells of it' })
  assert.deepEqual(told.filter(({ kind }) => kind === 'op').map(({ ids }) => ids), [[2]])
  assert.deepEqual(told.filter(({ kind }) => kind === 'clause'), [{ kind: 'clause', ids: [1], message: 'evaluation failed with SQLSTATE 54000' }])
})
