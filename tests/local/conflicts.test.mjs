// What happens when two users change the same thing, or one what he may not: docs/local-first.md says so case by case.
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

const todo = (client, id) => client.query('select title, body, rank from todos where id = $1', [id]).then(([row]) => row)

/** What a client writes while it is cut off; then it is joined again. */
async function offline(client, ...statements) {
  client.line.cut()
  for (const sql of statements) await client.query(sql)
  return () => {
    client.line.join()
    client.sync.wake()
  }
}

/** The one rejection of a client, which must have this SQLSTATE; it is discarded. */
async function rejected(client, sqlstate) {
  await client.until(() => client.sync.status().rejected === 1)
  const [rejection, ...more] = await client.sync.rejections()
  assert.deepEqual([rejection.sqlstate, more], [sqlstate, []], JSON.stringify(rejection))
  await client.sync.discard(rejection.id)
  assert.equal(client.sync.status().rejected, 0)
  return rejection
}

test('changes of different columns are merged', async () => {
  const join = await offline(a, `update todos set title = 'from a' where id = 1`)
  await b.query(`update todos set body = 'from b' where id = 1`)
  await equal(b)
  join()
  await equal(a, b)
  assert.deepEqual(await todo(b, 1), { title: 'from a', body: 'from b', rank: 1 })
})

test('of changes of the same column, the one that the server commits last stays', async () => {
  const join = await offline(a, `update todos set title = 'a, written first' where id = 3`)
  await b.query(`update todos set title = 'b, sent first' where id = 3`)
  await equal(b)
  assert.equal((await todo(a, 3)).title, 'a, written first')
  join()
  await equal(a, b)
  assert.equal((await todo(b, 3)).title, 'a, written first')
})

test('all changes of a row that are not sent yet are seen, in order, on top of what comes', async () => {
  a.line.interfere(({ path }) => (path === '/v1/write' ? refusal(503) : undefined))
  const changes = [`insert into todos (id, list, title) values (5300, 1, 'one')`, `update todos set title = 'two', body = 'b' where id = 5300`, `update todos set title = 'three' where id = 5300`,
    `update todos set title = 'first' where id = 19`, `update todos set body = 'second' where id = 19`, `update todos set title = 'third' where id = 19`,
    `delete from todos where id = 25`, `insert into todos (id, list, title) values (25, 1, 'anew')`]
  for (const sql of changes) await a.query(sql)
  await b.query(`update todos set rank = id * 100, body = 'theirs' where id in (19, 25)`)
  await a.until(async () => (await todo(a, 19)).rank === 1900 && (await a.one(`select count(*)::int from sync.shadow where server ->> 'body' = 'theirs'`)) === 2)
  const seen = async (client) => [await todo(client, 5300), await todo(client, 19), await todo(client, 25)]
  const expected = [{ title: 'three', body: 'b', rank: null }, { title: 'third', body: 'second', rank: 1900 }, { title: 'anew', body: null, rank: null }]
  assert.deepEqual(await seen(a), expected)
  a.line.interfere()
  a.sync.wake()
  await equal(a, b)
  assert.deepEqual([await seen(b), a.sync.status().rejected], [expected, 0])
})

test('a deletion wins over a change', async () => {
  const join = await offline(a, `update todos set title = 'too late' where id = 4`)
  await b.query('delete from todos where id = 4')
  await equal(b)
  join()
  const { operations, operation } = await rejected(a, 'P0002')
  assert.equal(operation, 0)
  assert.deepEqual(operations[0].value, { title: 'too late' })
  await equal(a, b)
  assert.equal(await todo(a, 4), undefined)
})

test('a row that two delete is gone', async () => {
  const join = await offline(a, 'delete from todos where id = 6')
  await b.query('delete from todos where id = 6')
  await equal(b)
  join()
  await equal(a, b)
  assert.equal(a.sync.status().rejected + b.sync.status().rejected, 0)
})

test('a member that two add is a member', async () => {
  const join = await offline(a, 'insert into members values (1, 7)', 'insert into members values (1, 8)')
  await b.query('insert into members values (1, 7)')
  await equal(b)
  join()
  await equal(a, b)
  assert.equal(a.sync.status().rejected, 0)
  assert.equal(await site.one('select count(*)::int from members where list = 1 and user_id in (7, 8)'), 2)
})

const refusals = {
  'a value that must be unique': ['23505', `update todos set rank = 2, title = 'clash' where id = 7`],
  'a key that a row has which the user does not see': ['23505', `insert into todos (id, list, title) values (2, 1, 'taken')`],
  'a parent that is gone': ['23503', `insert into todos (id, list, title) values (5001, 1, 'x'); insert into members values (77, 1)`],
  'a check': ['23514', `update todos set title = '' where id in (7, 9)`],
  'a policy': ['42501', `update todos set list = 3 where id = 9`],
  'a value that is missing': ['23502', `insert into todos (id, list) values (5003, 1)`],
}
for (const [what, [sqlstate, sql]] of Object.entries(refusals)) {
  test(`${what}: the whole transaction is undone here, exactly, and later ones go on`, async () => {
    await equal(a, b)
    const before = await a.lines('todos')
    a.line.cut()
    await a.sync.db.transaction(async (tx) => {
      await tx.exec(sql)
      await tx.query(`update lists set color = 'green' where id = 2`)
    })
    assert.notDeepEqual(await a.lines('todos'), before)
    await a.query(`update lists set name = name || '.' where id = 1`)
    const name = await a.one('select name from lists where id = 1')
    a.line.join()
    a.sync.wake()
    const { operations, message } = await rejected(a, sqlstate)
    assert.ok(operations.length >= 2 && message, 'it is told what was undone, and why')
    assert.deepEqual(await a.lines('todos'), before)
    await equal(a, b)
    assert.equal(await a.one('select color from lists where id = 2'), 'red')
    assert.equal(await site.one('select name from lists where id = 1'), name)
  })
}

test('what depends on a rejected insert is rejected as well', async () => {
  const join = await offline(a, `insert into todos (id, list, title) values (5100, 77, 'lost')`, `update todos set body = 'on it' where id = 5100`)
  join()
  await a.until(() => a.sync.status().rejected === 2)
  assert.deepEqual((await a.sync.rejections()).map(({ sqlstate }) => sqlstate), ['42501', 'P0002'])
  await equal(a, b)
  for (const { id } of await a.sync.rejections()) await a.sync.discard(id)
})

test('what was rejected can be written again once it is possible', async () => {
  await a.query(`insert into todos (id, list, title, body) values (5200, 4, 'early', 'kept')`)
  await a.until(() => a.sync.status().rejected === 1)
  assert.equal(await todo(a, 5200), undefined)
  await site.sql(`insert into lists values (4, 'now there'); insert into members values (4, 1)`)
  const [{ id }] = await a.sync.rejections()
  await a.sync.retry(id)
  assert.equal((await todo(a, 5200)).title, 'early')
  await a.settled()
  assert.equal(a.sync.status().rejected, 0)
  await a.equals('todos', 'list in (1, 2, 4)')
  await site.sql('delete from lists where id = 4')
  await equal(a, b)
})

test('rejectIfChanged: a change of what is not there any more is rejected', async () => {
  const careful = await site.open(1, { rejectIfChanged: ['todos'] })
  careful.line.cut()
  await careful.query(`update todos set title = 'on top of what I saw' where id = 16`)
  await careful.query(`update todos set title = 'fine' where id = 19`)
  await site.sql(`update todos set title = 'something else' where id = 16`)
  careful.line.join()
  careful.sync.wake()
  const { operations } = await rejected(careful, 'SF412')
  assert.deepEqual(operations[0].base, { title: 'todo 16' })
  await equal(careful, a)
  assert.equal(await site.one('select title from todos where id = 19'), 'fine')
  await careful.sync.close()
})

test('a transaction that is too large is rejected, and those behind it are sent', async () => {
  await a.sync.db.transaction(async (tx) => {
    for (let i = 0; i < 6; i++) await tx.query('update todos set body = $1 where id = $2', ['x'.repeat(1 << 20), 12 + i * 3])
  })
  await a.query(`update todos set body = 'small' where id = 13`)
  await rejected(a, '54000')
  await equal(a, b)
  assert.equal(await site.one('select body from todos where id = 13'), 'small')
})
