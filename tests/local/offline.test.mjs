// Writes without a connection: they are kept, sent once, and confirmed.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { refusal } from './lib/line.mjs'
import { equal, lists } from './lib/site.mjs'

let a, b
const site = lists({
  ready: async () => {
    a = await site.open(1)
    b = await site.open(2)
  },
})

test('what is written shows at once, reaches the server, and other clients', async () => {
  await a.sync.db.transaction(async (tx) => {
    await tx.query(`insert into todos (id, list, title) values (1001, 1, 'new'), (1002, 2, 'newer')`)
    await tx.query(`update todos set done = true, title = title || '!' where id <= 4`)
    await tx.query('delete from todos where id = 6')
  })
  assert.deepEqual(await a.query('select title, done from todos where id in (1001, 4) order by id'), [{ title: 'todo 4!', done: true }, { title: 'new', done: null }])
  await equal(a, b)
  assert.equal(await site.one('select title from todos where id = 1001'), 'new')
  assert.equal(await a.one('select done from todos where id = 1001'), false, "the server's default has come")
  assert.equal(await a.one('select count(*)::int from sync.shadow'), 0)
})

test('twenty writes offline survive a reload and meet what others did meanwhile', async () => {
  a.line.cut()
  for (let i = 0; i < 10; i++) {
    await a.query('insert into todos (id, list, title, rank) values ($1, 1, $2, $3)', [2000 + i, `offline ${i}`, 2000 + i])
    await a.query(`update todos set body = 'offline' where id = $1`, [12 + 3 * i])
  }
  await a.query('delete from todos where id in (2003, 40)')
  await a.until(() => !a.sync.status().online && a.sync.status().pending === 21)
  await site.sql(`update todos set title = 'online ' || id where id between 12 and 20; delete from todos where id = 34; insert into todos values (3000, 2, 'online')`)
  const before = await a.lines('todos')
  a = await a.reload()
  a.line.cut()
  for (const table of ['lists', 'members', 'todos']) a.sync.shape({ table })
  assert.deepEqual(await a.lines('todos'), before)
  await a.until(() => a.sync.status().pending === 21)
  a.line.join()
  a.sync.wake()
  await equal(a, b)
  assert.deepEqual(await site.client.query('select title, body from todos where id = 15').then(({ rows }) => rows), [{ title: 'online 15', body: 'offline' }])
})

test('a transaction of many changes is done as one', async () => {
  await a.query(`insert into todos (id, list, title) select 5000 + n, 1, 'one of many' from generate_series(1, 150) n`)
  await equal(a, b)
  assert.equal(await site.one(`select count(*) || ' rows of ' || count(distinct xmin::text) from todos where title = 'one of many'`), '150 rows of 1')
})

test('a reply that is lost, or cut off, is asked for again: applied once', async () => {
  await site.sql(`create table counted (n int); create function count_it() returns trigger language plpgsql security definer as $$ begin insert into counted values (1); return null; end $$;
    create trigger counted after insert or update on todos for each row execute function count_it()`)
  const id = await a.one('select client_id from sync.meta')
  let replies = ['lost', 'lost', 'cut off']
  a.line.interfere(({ path }) => (path === '/v1/write' ? replies.shift() : undefined))
  await a.query(`insert into todos (id, list, title) values (1100, 1, 'once')`)
  await equal(a)
  replies = ['cut off', 'lost', 'cut off']
  await a.query(`update todos set title = 'once more' where id = 1100`)
  await a.query(`update todos set title = 'and again' where id = 1100`)
  await equal(a, b)
  assert.deepEqual(replies, [])
  a.line.interfere()
  assert.equal(await site.one('select count(*)::int from counted'), 3)
  assert.deepEqual([(await a.sync.rejections()).length, await a.one('select client_id from sync.meta')], [0, id])
  await site.sql('drop trigger counted on todos')
})

test('the server is busy, away or does not know the client: it goes on when it can, in order', async () => {
  const answers = [refusal(429, 'slow', { 'retry-after': '1' }), refusal(503), new Response('{"results": [', { status: 200 })]
  let at
  a.line.interfere(({ path }) => {
    if (path !== '/v1/write') return undefined
    at ??= Date.now()
    return answers.shift()
  })
  await a.query(`insert into todos (id, list, title) values (1200, 1, 'late')`)
  await a.query(`update todos set body = 'later' where id = 1200`)
  await equal(a, b)
  a.line.interfere()
  assert.ok(Date.now() - at >= 1000, 'as late as it was told')
  const id = await a.one('select client_id from sync.meta')
  await site.sql('delete from shapefeed.write_result; delete from shapefeed.write_client') // as after a restore, or 90 days
  await a.query(`update todos set body = 'again' where id = 1200`)
  await equal(a, b)
  assert.equal(await site.one('select body from todos where id = 1200'), 'again')
  assert.notEqual(await a.one('select client_id from sync.meta'), id)
})

test('a database that is older than what it has sent goes on behind it', async () => {
  await a.query(`insert into todos (id, list, title) values (1300, 1, 'sent')`)
  await equal(a)
  // As if its last writes had not reached the disk.
  await a.query('update sync.meta set last_seq = last_seq - 1, sent_seq = last_seq - 1')
  a = await a.reload()
  for (const table of ['lists', 'members', 'todos']) await a.follow({ table })
  await a.query(`insert into todos (id, list, title) values (1301, 1, 'not mistaken for the other')`)
  await equal(a, b)
  assert.equal(await site.one('select count(*)::int from todos where id in (1300, 1301)'), 2)
})

test('a transaction without any visible change is confirmed as well', async () => {
  await a.query(`update todos set title = 'same' where id = 7`)
  await site.sql(`update todos set title = 'same' where id = 7`)
  await equal(a, b)
  await a.query(`update lists set color = 'blue' where id = 1`)
  await a.query(`update lists set color = 'red' where id = 1`)
  await equal(a, b)
})

test('what the server has taken stays as it was written here until its shape brings it', async () => {
  a.line.cut()
  a.line.interfere(({ path }) => (path === '/v1/shape' ? refusal(503) : undefined))
  a.line.join()
  let seen = []
  const stop = await a.sync.live('select title from todos where id = 22', [], (rows) => seen.push(rows[0]?.title))
  await a.query(`update todos set title = 'taken' where id = 22`)
  await a.sync.sent()
  assert.equal(await site.one('select title from todos where id = 22'), 'taken')
  assert.deepEqual(await a.query('select t.title, s.server ->> \'title\' as server from todos t, sync.shadow s where t.id = 22'), [{ title: 'taken', server: 'todo 22' }])
  a.line.interfere()
  a.sync.wake()
  await equal(a, b)
  await stop()
  assert.deepEqual(new Set(seen), new Set(['todo 22', 'taken']))
  seen = seen.slice(seen.indexOf('taken'))
  assert.ok(!seen.includes('todo 22'), 'never back')
})

test('a token that is refused is replaced, and nothing is fetched again', async () => {
  let good = true
  const asked = []
  const client = await site.open(1, {
    getToken: (refused) => {
      asked.push(refused)
      return good ? site.tokenOf(1) : site.tokenOf(1, { exp: 1 })
    },
  })
  await client.query(`update todos set body = 'sent' where id = 10`)
  await client.settled()
  good = false
  client.line.interfere(({ authorization, path }) => (good || path === '/v1/health' ? undefined : refusal(401)))
  await client.query(`update todos set body = 'waits' where id = 10`)
  await client.until(() => client.sync.status().unauthorized)
  await client.until(() => client.sync.status().pending === 1)
  good = true
  client.line.interfere()
  client.sync.wake()
  await equal(client)
  assert.equal(client.line.requests.filter(({ params }) => params.get('offset') === '-1').length, 3, 'each shape once')
  assert.equal(await site.one('select body from todos where id = 10'), 'waits')
  assert.deepEqual(await client.sync.rejections(), [])
  assert.ok(asked.length >= 2 && asked.slice(1).every(Boolean), 'told which was refused')
  await client.close()
})
