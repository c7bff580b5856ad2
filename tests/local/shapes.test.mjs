// Shapes of one table that overlap, that start over, that fail, and that are not allowed any more.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createSync } from '../../client/dist/index.js'
import { Notifier } from '../../client/dist/wait.js'
import { waitFor } from '../lib/index.mjs'
import { newDatabase } from './lib/client.mjs'
import { refusal } from './lib/line.mjs'
import { equal, lists } from './lib/site.mjs'

let a
const site = lists({
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '20000', SHAPEFEED_ALLOW_DELETE: 'true' },
  ready: async () => {
    a = await site.open(1, { tables: [] })
  },
})

const count = (sql) => a.one(`select count(*)::int from ${sql}`)

test('a row of two shapes stays until both have lost it, and is as new as the newer one', async () => {
  const first = await a.follow({ table: 'todos', where: 'list = 1' })
  assert.equal(await count('sync.row_shape'), 0, 'nothing is kept for a shape that is alone')
  const low = await a.follow({ table: 'todos', where: 'id <= 30' })
  await a.equals('todos', 'list = 1 or (list = 2 and id <= 30)')
  await site.sql(`update todos set list = 2 where id = 3; update todos set list = 2 where id = 60; update todos set title = 'both' where id = 6; delete from todos where id = 9; update todos set id = 300 where id = 12`)
  await a.equals('todos', 'list = 1 or (list = 2 and id <= 30)')
  await a.query(`update todos set body = 'mine' where id in (3, 6, 63)`)
  await a.settled()
  await a.equals('todos', 'list = 1 or (list = 2 and id <= 30)')
  low.release()
  await a.sync.forget({ table: 'todos', where: 'id <= 30' })
  await a.equals('todos', 'list = 1')
  await site.sql(`update todos set title = 'alone' where id = 6`)
  await a.equals('todos', 'list = 1')
  const other = await a.follow({ table: 'todos', where: 'list = 2', columns: ['id', 'list', 'title'] })
  await a.equals('todos', 'list = 1')
  assert.equal(await count('todos where list = 2 and title is not null'), await site.one('select count(*)::int from todos where list = 2'))
  for (const handle of [first, other]) handle.release()
  for (const { definition } of [first, other]) await a.sync.forget(definition)
  assert.equal(await count('todos'), 0)
})

test('a shape that is behind does not bring back what another one has replaced', async () => {
  const shapes = [{ table: 'todos', where: 'list = 1' }, { table: 'todos', where: 'id <= 30' }]
  const handles = []
  for (const shape of shapes) handles.push(await a.follow(shape))
  let release
  const holdOlder = (text) => text.includes('older') && new Promise((resolve) => { release = resolve })
  a.line.cut()
  a.line.interfere(({ params }) => (params.get('where') === 'id <= 30' ? holdOlder : undefined))
  a.line.join()
  a.sync.wake()
  const title = () => a.one('select title from todos where id = 27')
  const position = () => a.one(`select position::text from sync.stream where definition ->> 'where' = 'id <= 30'`)
  await a.until(() => a.line.requests.at(-1).params.get('live') && handles.every(({ status }) => status === 'live'))
  for (const value of ['older', 'newer']) {
    await site.sql(`update todos set title = '${value}' where id = 27`)
    await a.until(async () => (await title()) === value)
    if (value === 'older') await a.until(() => release !== undefined)
  }
  const before = await position()
  const seen = []
  const stop = await a.sync.live('select title from todos where id = 27', [], ([row]) => seen.push(row.title))
  release()
  await a.until(async () => (await position()) !== before)
  await stop()
  assert.deepEqual([...new Set(seen), await title()], ['newer', 'newer'])
  a.line.interfere()
  for (const handle of handles) handle.release()
  for (const shape of shapes) await a.sync.forget(shape)
})

test('a shape whose snapshot is older than rows that are here does not make them what they were', async () => {
  await site.sql(`insert into todos (id, list, title) select i, 2, 'before' from generate_series(401, 404) i`)
  const other = await site.open(1, { tables: [] })
  const cases = [{ id: 401 }, { id: 402, columns: ['id', 'list', 'title'] }, { id: 403, isChangedHere: true }, { id: 404, isIncomplete: true }]
  for (const { id, columns, isChangedHere, isIncomplete } of cases) {
    const row = async (client) => (await client.query(`select list, title from todos where id = ${id}`)).at(0)
    const older = { table: 'todos', where: `list = 2 and id <= ${id}` }
    await other.follow(older)
    const newer = { table: 'todos', columns }
    const handles = [await a.follow(newer)]
    await site.sql(`update todos set list = 1, title = 'after' where id = ${id}`)
    await a.until(async () => (await row(a)).title === 'after')
    if (isChangedHere) {
      a.line.interfere(({ path }) => (path === '/v1/write' ? refusal(503) : undefined))
      await a.query(`update todos set body = 'mine' where id = ${id}`)
    }
    // As while it reads a long log for the first time.
    if (isIncomplete) await a.query('update sync.stream set position = null')
    handles.push(await a.follow(older))
    assert.deepEqual(await row(a), { list: 1, title: 'after' }, `row ${id}`)
    a.line.interfere()
    a.sync.wake()
    await a.settled()
    assert.deepEqual(await row(a), { list: 1, title: 'after' }, `row ${id}, when nothing is left to send`)
    for (const handle of handles) handle.release()
    for (const shape of [newer, older]) await a.sync.forget(shape)
  }
  await other.close()
})

test('a shape that starts over is never seen with fewer rows, and keeps what is not sent yet', async () => {
  const handles = []
  for (const table of ['lists', 'members', 'todos']) handles.push(await a.follow({ table }))
  await equal(a)
  const rows = await count('todos')
  let fewest = rows
  const stop = await a.sync.live('select count(*)::int as n from todos', [], ([{ n } = { n: 0 }]) => { fewest = Math.min(fewest, n) })
  a.line.interfere(({ path }) => (path === '/v1/write' ? refusal(503) : undefined))
  await a.query(`insert into todos (id, list, title) values (7001, 1, 'pending')`)
  await a.query(`update todos set title = 'mine' where id = 15`)
  await a.query('delete from todos where id = 18')
  a.line.requests.length = 0
  await site.sql(`delete from todos where id = 21; update todos set body = 'theirs' where id in (15, 18);
    alter table todos alter column body set default 'x'; alter table todos add column extra int; alter table todos alter column rank type bigint`)
  const [todos] = handles.slice(-1)
  await a.until(() => a.line.requests.some(({ status }) => status === 409), () => 'the shape has not started over')
  await a.until(async () => todos.status === 'live' && (await a.one(`select has_rows from sync.stream where name = 'todos'`)) === false)
  assert.equal(await count('todos where id = 21'), 0)
  assert.equal(await a.one('select title from todos where id = 15'), 'mine')
  assert.equal(await count('todos where id in (7001, 18)'), 1)
  await stop()
  assert.equal(fewest, rows - 1, 'one was deleted here, one was added here, one is gone')
  a.line.interfere()
  a.sync.wake()
  await equal(a)
  assert.equal(await site.one('select title || body from todos where id = 15'), 'minetheirs')
})

test('what may not be seen any more goes, comes back with the right, and pending changes of it are rejected', async () => {
  await equal(a)
  a.line.cut()
  await a.query(`update todos set title = 'not mine any more' where id = 4`)
  await site.sql('delete from members where list = 2 and user_id = 1')
  a.line.join()
  a.sync.wake()
  await a.until(() => a.sync.status().rejected === 1)
  await a.equals('todos', 'list = 1')
  await a.equals('lists', 'id = 1')
  const [{ id }] = await a.sync.rejections()
  await a.sync.discard(id)
  await site.sql('insert into members values (2, 1)')
  await equal(a)
})

test('a shape that nobody follows loses what may not be seen any more, and is forgotten where it is refused or old', async () => {
  await site.sql('create table notes (id int primary key, v text); insert into notes values (1, \'kept\'); grant select on notes to app')
  await site.sql(`call shapefeed.track('notes')`)
  const mine = { table: 'todos', where: 'list = 2', columns: ['id', 'list', 'done'] }
  const client = await site.open(1, { tables: [] })
  const open = []
  for (const shape of [{ table: 'members' }, mine, { table: 'notes' }]) open.push(await client.follow(shape))
  const rows = () => client.one('select count(*)::int from todos where list = 2')
  assert.ok(await rows())
  const before = await client.one(`select "offset" from sync.stream where name = 'todos'`)
  for (const handle of open.slice(1)) handle.release()
  await site.sql(`revoke select on notes from app; delete from members where list = 2 and user_id = 1`)
  await client.until(async () => (await rows()) === 0, () => 'rows of a kept shape stay')
  await client.until(async () => (await client.one(`select count(*)::int from sync.stream where name = 'notes'`)) === 0, () => 'a refused shape is kept')
  assert.equal(await client.one('select count(*)::int from notes'), 0)
  assert.notEqual(await client.one(`select "offset" from sync.stream where name = 'todos'`), before)
  assert.equal(await client.one(`select active from sync.stream where name = 'todos'`), false, 'it was not followed for that')
  const asked = client.line.requests.filter(({ params }) => params.get('table') === 'notes').at(-1)
  assert.equal(asked.cache, 'no-cache', 'what a browser keeps is not what there is now')

  await site.sql('insert into members values (2, 1)')
  const again = await client.follow(mine)
  await client.equals('(select id, list, done from todos)', 'list = 2')
  again.release()
  await client.until(async () => (await client.one(`select active from sync.stream where name = 'todos'`)) === false)
  await client.query(`update sync.stream set released = now() - interval '31 days' where not active`)
  const later = await client.reload()
  await later.until(async () => (await later.one(`select count(*)::int from sync.stream where name = 'todos'`)) === 0, () => 'an old shape is kept')
  assert.equal(await later.one('select count(*)::int from todos'), 0)
  await later.close()
})

test('a shape that is let go of at once is not followed', async () => {
  const shape = { table: 'todos', where: 'id < 5' }
  a.sync.shape(shape).release()
  await a.sync.forget(shape)
  assert.equal(await a.one(`select count(*)::int from sync.stream where definition ->> 'where' = 'id < 5'`), 0)
})

test('an answer that comes after the client is closed changes nothing, even if the fetch that brings it knows no signal', async () => {
  const pglite = await newDatabase()
  const asked = new Notifier()
  const answers = new Notifier()
  let answered
  const fetchOf = async (url, init) => {
    asked.fire()
    await answers.wait(60_000)
    return answered = fetch(url, { headers: init.headers })
  }
  const sync = await createSync({ url: site.sidecar.url, userId: '1', getToken: () => site.tokenOf(1), fetch: fetchOf, pglite })
  const isAsked = asked.wait(60_000)
  sync.shape({ table: 'todos' })
  await isAsked
  await sync.close()
  answers.fire()
  await waitFor(() => answered, { what: 'the answer is asked for' })
  assert.equal((await answered).status, 200)
  await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual((await pglite.query(`select to_regclass('todos') as table, name from sync.stream`)).rows, [{ table: null, name: null }])
  await pglite.close()
})

test('a shape that the server refuses says why; others go on, and so does it once it may', async () => {
  await site.sql('create table later (id int primary key, v text)')
  const handle = a.sync.shape({ table: 'later' })
  await a.until(() => handle.error?.httpStatus === 400, () => JSON.stringify(handle.error))
  assert.deepEqual([handle.status, handle.isUpToDate], ['waiting', false])
  let rows
  const stop = await a.sync.live('select * from later', [], (now) => { rows = now })
  assert.deepEqual(rows, [], 'a table that is not there yet has no rows')
  await site.sql(`update lists set color = 'black' where id = 1`)
  await equal(a)
  await site.sql(`grant select on later to app; call shapefeed.track('later'); insert into later values (1, 'now')`)
  a.sync.wake()
  await a.until(() => handle.isUpToDate && rows.length === 1)
  assert.deepEqual([handle.error, rows], [undefined, [{ id: 1, v: 'now' }]])
  await stop()
  handle.release()
})

const change = (operation, value, lsn) => ({ key: `"public"."todos"/"${value.id}"`, value, headers: { operation, lsn: String(lsn), op_position: 0, txids: [1], relation: ['public', 'todos'] } })

/** Answers to the next request for more of a shape, as a broken server or line would give them. */
const poison = {
  'a value that does not fit its column': (at) => [change('update', { id: '24', rank: 'no number' }, at)],
  'a change of a row that is not there': (at) => [change('update', { id: '99999', title: 'x' }, at)],
  'a body that is cut off': () => '[{"key": "\\"public\\".',
  'no JSON': () => '<html>',
}
for (const [what, body] of Object.entries(poison)) {
  test(`${what}: nothing of it is kept, the shape says so, and recovers`, async () => {
    await equal(a)
    const handle = a.sync.shape({ table: 'todos' })
    const errors = []
    const off = handle.subscribe(({ error }) => error && errors.push(error.message))
    const poisoned = new Set()
    a.line.interfere(({ params }) => {
      const offset = params.get('offset')
      if (params.get('table') !== 'todos' || !params.get('live') || poisoned.size) return undefined
      poisoned.add(offset)
      const at = BigInt(offset.split('_')[0]) + 5n
      const text = body(at)
      return new Response(typeof text === 'string' ? text : JSON.stringify([...text, { headers: { control: 'up-to-date', global_last_seen_lsn: String(at) } }]), {
        headers: { 'electric-handle': params.get('handle'), 'electric-offset': `${at}_0`, 'electric-cursor': '1', 'electric-up-to-date': '' },
      })
    })
    await site.sql(`update todos set title = title || '.' where id = 24`)
    await a.until(() => errors.length > 0)
    await site.sql(`update todos set title = title || ';' where id = 27`)
    await equal(a)
    await a.until(() => handle.status === 'live' && handle.error === undefined)
    a.line.interfere()
    off()
    handle.release()
  })
}

test('a batch that is repeated changes nothing', async () => {
  await equal(a)
  await a.query(`update sync.stream set "offset" = '0_0' where name = 'lists'`)
  const again = await a.reload()
  await again.follow({ table: 'lists' })
  await again.equals('lists', 'id in (1, 2)')
  await again.sync.close()
})

test('a protocol client that begins again by itself, as behind a proxy that always says the same, leaves no rows behind', async () => {
  const again = await site.open(1)
  const client = await again.reload()
  await site.sql('delete from todos where id = 33')
  const offsets = () => client.line.requests.map(({ params }) => params.get('offset'))
  client.line.interfere(({ path, params }) => {
    if (path !== '/v1/shape' || offsets().includes('-1')) return undefined
    return new Response('[]', { headers: { 'electric-handle': params.get('handle'), 'electric-offset': params.get('offset'), 'electric-schema': '{}' } })
  })
  // What it gets then is a snapshot without the row, and no word of its deletion.
  const handle = await client.one(`select handle from sync.stream where name = 'todos'`)
  const headers = { authorization: `Bearer ${site.tokenOf(1)}` }
  assert.equal((await fetch(`${site.sidecar.url}/v1/shape?table=todos&handle=${handle}`, { method: 'DELETE', headers })).status, 202)
  client.sync.shape({ table: 'todos' })
  await client.until(() => offsets().includes('-1'))
  await client.equals('todos', 'list in (1, 2)')
  await client.sync.close()
})

test('a change of a row that is lost here brings it back: the shape starts over', async () => {
  const handle = await a.follow({ table: 'lists' })
  const there = await a.lines('lists')
  await a.pglite.transaction(async (tx) => {
    await tx.query(`select set_config('sync.applying', 'on', true)`)
    await tx.query('delete from lists where id = 1')
  })
  assert.equal(await count('lists'), there.length - 1)
  await site.sql(`update lists set color = 'lost' where id = 1`)
  await a.equals('lists', 'id in (1, 2)')
  handle.release()
})
