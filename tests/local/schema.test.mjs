// Tables change, on the server and in the application: columns come, go and get other types; what is not sent yet stays.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { served } from '../lib/index.mjs'
import { openClient } from './lib/client.mjs'
import { refusal } from './lib/line.mjs'

const site = served({
  schema: `create table notes (id int primary key, text text, n text);
    insert into notes select i, 'note ' || i, i::text from generate_series(1, 5) i;
    call shapefeed.track('notes'); call shapefeed.allow_writes('notes')`,
})

test('a table follows the server, live queries follow the table, and what is not sent yet stays', async () => {
  const client = await openClient(site)
  const handle = await client.follow({ table: 'notes' })
  let seen
  const stop = await client.sync.live('select * from notes order by id', [], (rows) => { seen = rows })
  client.line.interfere(({ path }) => (path === '/v1/write' ? refusal(503) : undefined))
  await client.query(`update notes set text = 'mine' where id = 1`)
  await client.query(`insert into notes (id, text) values (6, 'new')`)
  await site.sql(`alter table notes add column added int default 7; alter table notes alter column n type int using n::int; update notes set n = n + 1`)
  await client.until(() => seen.length === 6 && seen[1].added === 7 && seen[1].n === 3, () => JSON.stringify(seen))
  assert.equal(seen[0].text, 'mine')
  await site.sql('alter table notes drop column added; update notes set n = n + 1')
  await client.until(() => seen[1].n === 4)
  client.line.interfere()
  client.sync.wake()
  await client.settled()
  assert.equal(await site.client.query('select text from notes where id = 1').then(({ rows }) => rows[0].text), 'mine')
  await client.until(async () => (await client.one('select count(*)::int from notes where n is not null')) === 5)
  assert.deepEqual([handle.status, handle.error, client.errors], ['live', undefined, []])
  await stop()
  await client.close()
})

test('a table that gets another primary key, or another type of it, comes anew; what is not sent yet stays', async () => {
  await site.sql(`create table tasks (id int primary key, code text not null unique, text text, by text);
    insert into tasks select i, 'c' || i, 'task ' || i, 'x' from generate_series(1, 6) i;
    call shapefeed.track('tasks'); call shapefeed.allow_writes('tasks')`)
  const client = await openClient(site)
  const handles = [await client.follow({ table: 'tasks', where: 'id < 6' }), await client.follow({ table: 'tasks', where: 'id > 4' })]
  let seen
  const stop = await client.sync.live('select code, text from tasks order by code', [], (rows) => { seen = rows })
  const refused = () => client.line.interfere(({ path }) => (path === '/v1/write' ? refusal(503) : undefined))
  const rekeyed = async (sql, isDone) => {
    await site.sql(sql)
    await client.until(async () => handles.every(({ status, isUpToDate }) => status === 'live' && isUpToDate) && (await isDone()), () => JSON.stringify(handles.map(({ error }) => error)))
  }
  const key = () => client.one(`select key::text from sync.shape_table where name = 'tasks'`)
  refused()
  await client.query(`update tasks set text = 'mine' where id = 1`)
  await client.query(`insert into tasks (id, code, text, by) values (7, 'c7', 'new', 'me')`)
  await client.query('delete from tasks where id = 2')
  await client.query(`update tasks set by = 'me' where id = 3`)
  await rekeyed(`alter table tasks drop constraint tasks_pkey; alter table tasks add primary key (code); update tasks set text = 'theirs' where id in (1, 4)`,
    async () => (await key()) === '{code}' && seen.find(({ code }) => code === 'c4').text === 'theirs')
  assert.deepEqual(seen.map(({ code, text }) => `${code} ${text}`), ['c1 mine', 'c3 task 3', 'c4 theirs', 'c5 task 5', 'c6 task 6', 'c7 new'])
  client.line.interfere()
  client.sync.wake()
  await client.settled()
  assert.deepEqual(await client.sync.rejections(), [])
  await client.equals('tasks')
  refused()
  await client.query(`update tasks set text = 'again' where code = 'c5'`)
  await client.query(`update tasks set by = 'nobody' where code = 'c6'`)
  // What the new key is of is not known here.
  await rekeyed(`alter table tasks add column uid int generated always as identity; alter table tasks drop constraint tasks_pkey; alter table tasks add primary key (uid)`, async () => (await key()) === '{uid}')
  client.line.interfere()
  client.sync.wake()
  await client.settled()
  assert.deepEqual((await client.sync.rejections()).map(({ sqlstate }) => sqlstate), ['22023', '22023'])
  await client.equals('tasks')
  refused()
  await client.query(`update tasks set text = 'big' where code = 'c5'`)
  await rekeyed(`alter table tasks alter column uid type bigint; alter table tasks alter column id drop not null`,
    async () => (await client.one(`select columns ->> 'uid' from sync.shape_table where name = 'tasks'`)) === 'bigint')
  client.line.interfere()
  client.sync.wake()
  await client.settled()
  await client.equals('tasks')
  assert.equal(await site.client.query(`select text from tasks where code = 'c5'`).then(({ rows }) => rows[0].text), 'big')
  assert.equal(await client.one('select count(*)::int from sync.shadow'), 0)
  assert.deepEqual([(await client.sync.rejections()).length, client.errors], [2, []])
  await stop()
  await client.close()
})

test('an answer from before a table was changed, out of a cache, takes nothing of the rows that are here', async () => {
  await site.sql(`create table old (id int primary key, n int not null, v int); insert into old select i, i % 2, i from generate_series(1, 6) i; call shapefeed.track('old')`)
  const client = await openClient(site)
  for (const change of [`alter table old alter v type text using 'v' || v`, 'alter table old drop constraint old_pkey, add primary key (n, id)']) {
    const part = { table: 'old', where: 'n = 1' }
    const answer = await fetch(`${site.sidecar.url}/v1/shape?offset=-1&table=old&where=n+%3D+1`)
    const body = await answer.text()
    await site.sql(change)
    await client.follow({ table: 'old' })
    await client.equals('old')
    const handle = client.sync.shape(part)
    client.line.interfere(({ params, cache }) => (params.get('where') === 'n = 1' && params.get('offset') === '-1' && !params.has('handle') && cache !== 'no-cache' ? new Response(body, { headers: answer.headers }) : undefined))
    await client.until(() => handle.status === 'live', () => JSON.stringify(handle.error))
    await client.equals('old')
    client.line.interfere()
    handle.release()
    await client.sync.forget(part)
  }
  await client.close()
})

test("the application's own schema: columns that it has not are ignored and told; a newer version gets them", async () => {
  const first = { version: 1, sql: 'create table notes (id int primary key, text text); create view short as select id, left(text, 3) as start from notes' }
  let client = await openClient(site, { schema: first })
  let handle = await client.follow({ table: 'notes' })
  assert.deepEqual(handle.unknownColumns, ['n'])
  assert.equal(await client.one('select start from short where id = 2'), 'not')
  await client.query(`update notes set text = 'from version 1' where id = 3`)
  await client.settled()
  client.line.cut()
  await client.query(`update notes set text = 'not sent by version 1' where id = 4`)
  client = await client.reload({ schema: { version: 2, sql: 'alter table notes add column n int' } })
  assert.equal(await client.one('select text from notes where id = 4'), 'not sent by version 1')
  handle = await client.follow({ table: 'notes' })
  assert.equal(handle.unknownColumns, undefined)
  await client.settled()
  await client.equals('notes')
  await client.close()
})

test("what is written to the application's own table before its shape has come is sent, or undone", async () => {
  const client = await openClient(site, { schema: { version: 1, sql: 'create table notes (id int primary key, text text, n int)' } })
  client.line.cut()
  client.sync.shape({ table: 'notes' })
  await client.query(`insert into notes (id, text) values (20, 'early')`)
  await client.query(`insert into notes (id, text) values (1, 'there is one')`)
  await client.until(() => client.sync.status().pending === 2)
  client.line.join()
  client.sync.wake()
  await client.settled()
  await client.equals('notes')
  assert.equal(await client.one('select text from notes where id = 20'), 'early')
  assert.deepEqual((await client.sync.rejections()).map(({ sqlstate }) => sqlstate), ['23505'])
  await client.close()
})

test('a shape of a table that the local database cannot have says so', async () => {
  const client = await openClient(site, { schema: { version: 1, sql: 'create table notes (id int, text text primary key)' } })
  const handle = client.sync.shape({ table: 'notes' })
  await client.until(() => handle.error !== undefined)
  assert.match(handle.error.message, /primary key of notes/)
  await client.close()
})

test('a local database from before shapes were kept is brought up to date', async () => {
  const client = await openClient(site)
  await client.follow({ table: 'notes' })
  await client.sync.close()
  await client.pglite.exec('alter table sync.stream drop column released')
  const again = await client.reload()
  await again.follow({ table: 'notes' })
  await again.equals('notes')
  await again.close()
})
