// Operations as they are written: keys, values, and where in its transaction each is; the same by long-polling and by events.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { openEvents, served, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `create table items (id int primary key, kind text, n int, note text); create table others (id int primary key, v text);
    create table pairs (a int, b text, v int, primary key (b, a)); create table bag (v text, n int);`,
})

/** What a transaction is in a shape, from where a client is: [headers without what differs from run to run, key, value, old value]. */
const written = ({ key, value, old_value: old, headers: { relation, txids, lsn, ...rest } }) => [rest, key, value, ...(old ? [old] : [])]

/** Runs the SQL for each way to listen and returns the operations that came, which must be of one transaction each time. */
async function told(params, sql, undo) {
  const all = []
  for (const events of [false, true]) {
    // What was done before must not come as news.
    await waitFor(async () => (await site.client.query('select pending from shapefeed.status')).rows[0].pending === '0', { what: 'all is sequenced' })
    const from = await site.api.follow(params)
    const before = from.seen.length
    let operations
    if (events) {
      const query = new URLSearchParams({ ...params, handle: from.handle, offset: from.offset, live: 'true', live_sse: 'true' })
      const stream = await openEvents(site.sidecar.url, query)
      await site.sql(sql)
      await stream.until((messages) => messages.some(({ headers }) => headers.last))
      operations = stream.messages.filter((message) => 'key' in message)
      stream.close()
    } else {
      const live = from.live()
      await site.sql(sql)
      await live
      await from.until(({ seen }) => seen.slice(before).some(({ headers }) => headers.last))
      operations = from.answers.flatMap((answer) => answer.operations).filter(({ headers }) => headers.lsn).slice(before)
    }
    assert.equal(new Set(operations.map(({ headers }) => `${headers.lsn} ${headers.txids}`)).size, 1, 'one transaction')
    assert.deepEqual(operations.map(({ headers }) => headers.last).filter(Boolean), [true], 'one is the last')
    assert.equal(operations.at(-1).headers.last, true)
    assert.match(operations[0].headers.lsn, /^\d+$/)
    all.push(operations.map(written))
    if (undo) await site.sql(undo)
  }
  assert.deepEqual(all[1], all[0], 'by events as by long-polling')
  return all[0]
}

const key = (table, ...values) => `"public"."${table}"/${values.map((value) => `"${value}"`).join('/')}`

test('insert, update and delete in one transaction with another table between', async () => {
  await site.sql("insert into items values (1, 'a', 1, 'x'), (2, 'a', 2, 'y')")
  await site.api.start({ table: 'others' }) // tracked from now on: positions count over all tables that are
  const sql = "begin; insert into items values (3, 'a', 3, null); insert into others values (1, 'o'); update items set n = 10 where id = 1; delete from items where id = 2; commit"
  const undo = "delete from items where id = 3; delete from others; update items set n = 1 where id = 1; insert into items values (2, 'a', 2, 'y')"
  assert.deepEqual(await told({ table: 'items' }, sql, undo), [
    [{ operation: 'insert', op_position: 0 }, key('items', 3), { id: '3', kind: 'a', n: '3', note: null }],
    [{ operation: 'update', op_position: 4 }, key('items', 1), { id: '1', n: '10' }],
    [{ operation: 'delete', op_position: 6, last: true }, key('items', 2), { id: '2' }],
  ])
  assert.deepEqual(await told({ table: 'others' }, sql, undo), [[{ operation: 'insert', op_position: 2, last: true }, key('others', 1), { id: '1', v: 'o' }]])
  assert.deepEqual(await told({ table: 'items', replica: 'full' }, sql, undo), [
    [{ operation: 'insert', op_position: 0 }, key('items', 3), { id: '3', kind: 'a', n: '3', note: null }],
    [{ operation: 'update', op_position: 4 }, key('items', 1), { id: '1', kind: 'a', n: '10', note: 'x' }, { n: '1' }],
    [{ operation: 'delete', op_position: 6, last: true }, key('items', 2), { id: '2', kind: 'a', n: '2', note: 'y' }],
  ])
})

test('an update into a shape is an insert, one out of it a delete, and what is not selected is none', async () => {
  const params = { table: 'items', where: "kind = 'a'", columns: 'id,n' }
  const sql = "begin; update items set kind = 'b' where id = 1; update items set note = 'silent' where id = 2; insert into items values (4, 'b', 4, null); update items set kind = 'a' where id = 5; commit"
  await site.sql("insert into items values (5, 'b', 5, 'z')")
  assert.deepEqual(await told(params, sql, "delete from items where id = 4; update items set kind = 'a' where id = 1; update items set note = 'y' where id = 2; update items set kind = 'b' where id = 5"), [
    [{ operation: 'delete', op_position: 0 }, key('items', 1), { id: '1' }],
    [{ operation: 'insert', op_position: 6, last: true }, key('items', 5), { id: '5', n: '5' }],
  ])
})

test('a key that changes is a delete and an insert, side by side, that name each other', async () => {
  await site.sql("insert into pairs values (1, 'x', 0), (2, 'x', 0)")
  const sql = "begin; update pairs set v = 1 where a = 2; update pairs set b = 'y/z', v = 5 where a = 1; commit"
  const undo = "update pairs set b = 'x' where a = 1; update pairs set v = 0"
  const moved = { from: key('pairs', 'x', 1), to: key('pairs', 'y//z', 1) }
  assert.deepEqual(await told({ table: 'pairs' }, sql, undo), [
    [{ operation: 'update', op_position: 0 }, key('pairs', 'x', 2), { a: '2', b: 'x', v: '1' }],
    [{ operation: 'delete', op_position: 2, key_change_to: moved.to }, moved.from, { a: '1', b: 'x' }],
    [{ operation: 'insert', op_position: 3, key_change_from: moved.from, last: true }, moved.to, { a: '1', b: 'y/z', v: '5' }],
  ])
  // Where only one of the two is in the shape it is a delete or an insert like others.
  assert.deepEqual(await told({ table: 'pairs', where: "b = 'x'" }, sql, undo), [
    [{ operation: 'update', op_position: 0 }, key('pairs', 'x', 2), { a: '2', b: 'x', v: '1' }],
    [{ operation: 'delete', op_position: 2, last: true }, moved.from, { a: '1', b: 'x' }],
  ])
  assert.deepEqual(await told({ table: 'pairs', where: "b <> 'x'" }, sql, undo), [[{ operation: 'insert', op_position: 3, last: true }, moved.to, { a: '1', b: 'y/z', v: '5' }]])
})

test('without a key, each change of a row is a delete and an insert', async () => {
  await site.sql("insert into bag values ('x', 1), (null, 2)")
  const operations = await told({ table: 'bag' }, "update bag set n = 7 where v is null", 'update bag set n = 2 where v is null')
  assert.deepEqual(operations.map(([{ operation, last }, at, value]) => [operation, last, at, value]), [
    ['delete', undefined, '"public"."bag"/_/"2"', { v: null, n: '2' }], ['insert', true, '"public"."bag"/_/"7"', { v: null, n: '7' }],
  ])
})

test('a row that a transaction makes and takes away, and one that it leaves as it was, are no operations', async () => {
  const operations = await told({ table: 'others' }, `begin; insert into others values (50, 'gone'); delete from others where id = 50; insert into others values (51, 'new');
    update others set v = 'newer' where id = 51; insert into others values (52, 'x'); commit`, 'delete from others')
  assert.deepEqual(operations.map(([{ operation }, , value]) => [operation, value]), [['insert', { id: '51', v: 'newer' }], ['insert', { id: '52', v: 'x' }]])
})
