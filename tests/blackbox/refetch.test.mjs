// What ends a handle, and how its clients go on: 409, deletion, truncation, a table that goes.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { openEvents, send, served, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `
    create table items (id int primary key, title text); insert into items values (1, 'a'), (2, 'b');
    create table others (id int primary key); insert into others values (1);`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '8000' },
})

/** A 409 as it must be: nothing to go on with but another handle. */
function assertRefetch(answer, refused) {
  assert.equal(answer.status, 409, answer.text)
  assert.deepEqual(answer.json, [{ headers: { control: 'must-refetch' } }])
  assert.match(answer.headers['content-type'], /^application\/json/)
  assert.ok(answer.handle && answer.handle !== refused, `${answer.handle} after ${refused}`)
  assert.equal(answer.etag, `"${answer.handle}::"`)
  assert.equal(answer.cacheControl, 'public, max-age=60, must-revalidate')
  for (const name of ['offset', 'schema', 'cursor', 'up-to-date']) assert.equal(answer.headers[`electric-${name}`], undefined, name)
  return answer.handle
}

/** A live request that is held. */
async function hold(follower, api = site.api, sidecar = site.sidecar) {
  const count = async () => Number(/\nshapefeed_live_requests (\d+)\n/.exec((await send(sidecar.url, '/metrics')).text)[1])
  const before = await count()
  const { params, handle, offset } = follower
  const answer = api.get({ ...params, handle, offset, live: 'true', cursor: '' })
  await waitFor(async () => await count() > before, { what: 'the request is held' })
  return { answer }
}

/** What held requests are answered. */
const answersOf = (waiting) => Promise.all(waiting.map(({ answer }) => answer))

test('an offset that cannot be: the 409 names another handle, and its client gets just that one', async () => {
  const follower = await site.api.follow({ table: 'items' })
  const { handle } = follower
  const pin = BigInt(handle.split('-')[1])
  for (const offset of ['1_0', `${pin - 10n ** 9n}_0`, `${pin + 10n ** 9n}_0`, '9007199254740991_0']) {
    for (const live of [undefined, 'true']) {
      const next = assertRefetch(await site.api.get({ table: 'items', handle, offset, live }), handle)
      for (const extra of [{}, { expired_handle: handle }]) {
        const start = await site.api.start({ table: 'items', handle: next, ...extra })
        assert.equal(start.handle, next)
        assert.equal(start.operations.length, 2)
      }
      const caughtUp = await site.api.get({ table: 'items', handle: next, offset: '0_0' })
      assert.ok(caughtUp.upToDate)
    }
  }
  assert.equal((await site.api.get({ table: 'items', handle, offset: '0_0' })).status, 200, 'the handle was never at fault')
})

test('a handle that is expired for a client is not given to it', async () => {
  const { handle } = await site.api.start({ table: 'items' })
  for (const params of [{ offset: '-1' }, { offset: 'now' }, { offset: '-1', handle }, { offset: '-1', log: 'changes_only' }]) {
    const first = await site.api.get({ table: 'items', ...params })
    const second = await site.api.get({ table: 'items', ...params, expired_handle: first.handle })
    assert.equal(second.status, 200)
    assert.notEqual(second.handle, first.handle, JSON.stringify(params))
    const third = await site.api.get({ table: 'items', ...params, expired_handle: second.handle })
    assert.notEqual(third.handle, second.handle)
  }
  const refused = await site.api.get({ table: 'items', handle: '1-2-3', offset: '0_0', expired_handle: handle })
  assert.notEqual(assertRefetch(refused, '1-2-3'), handle)
})

test("another shape's handle, and one of nobody", async () => {
  const { handle } = await site.api.start({ table: 'others' })
  for (const given of [handle, '1-2-3', 'nonsense']) {
    for (const live of [undefined, 'true']) {
      const next = assertRefetch(await site.api.get({ table: 'items', handle: given, offset: '0_0', live }), given)
      assert.equal((await site.api.start({ table: 'items', handle: next })).handle, next)
    }
    assert.equal((await site.api.get({ table: 'items', handle: given, offset: '-1' })).status, 200, 'a start is never refused for its handle')
  }
})

test('a deletion ends the handle on every sidecar, held requests too', async () => {
  const another = await site.another()
  const follower = await site.api.follow({ table: 'items' })
  const waiting = [await hold(follower), await hold(follower, another.api, another.sidecar)]
  const answer = await site.api.delete({ table: 'items', handle: follower.handle })
  assert.equal(answer.status, 202)
  assert.equal(answer.cacheControl, 'no-cache')
  for (const held of await answersOf(waiting)) assertRefetch(held, follower.handle)
  for (const api of [site.api, another.api]) {
    for (const live of [undefined, 'true']) {
      const next = assertRefetch(await api.get({ table: 'items', handle: follower.handle, offset: follower.offset, live }), follower.handle)
      const start = await api.start({ table: 'items', handle: next, expired_handle: follower.handle })
      assert.equal(start.handle, next)
      assert.equal(start.operations.length, 2)
    }
  }
})

test('what a deletion names', async () => {
  const start = async (params = {}) => (await site.api.start({ table: 'items', ...params })).handle
  const dead = async (handle, params = {}) => (await site.api.get({ table: 'items', ...params, handle, offset: '0_0' })).status === 409
  let handle = await start()
  const where = { where: 'id = 1' }
  const other = await start(where)
  for (const named of [{ handle }, { table: 'items' }, { table: 'items', handle }]) {
    handle = await start()
    const answer = await site.api.delete({ ...named, ...(named.handle ? { handle } : {}) })
    assert.equal(answer.status, 202, JSON.stringify(named))
    assert.equal(answer.text, '')
    await waitFor(() => dead(handle))
    assert.notEqual(await start(), handle)
    assert.ok(!await dead(other, where), 'the other definition goes on')
  }
  handle = await start()
  // With an old handle of the same definition, too.
  assert.equal((await site.api.delete({ table: 'items', handle: `${handle.split('-')[0]}-1-0` })).status, 202)
  assert.ok(await dead(handle))
  // What does not fit together, or is not there, changes nothing.
  handle = await start()
  for (const named of [{ table: 'items', handle: other }, { table: 'items', handle: 'x' }, { handle: 'x' }, { handle: `${handle}-` }]) {
    const answer = await site.api.delete(named)
    assert.equal(answer.status, 404, JSON.stringify(named))
    assert.deepEqual(answer.json, { message: 'No existing shape found' })
  }
  assert.equal((await site.api.delete({ table: 'nothing' })).status, 400)
  assert.ok(!await dead(handle) && !await dead(other, where))
})

test('TRUNCATE', async () => {
  const follower = await site.api.follow({ table: 'items' })
  const narrow = await site.api.follow({ table: 'items', where: 'id = 1' })
  const waiting = [await hold(follower), await hold(narrow)]
  await site.sql("begin; truncate items; insert into items values (1, 'new'); commit")
  const [first, second] = await answersOf(waiting)
  const next = assertRefetch(first, follower.handle)
  assertRefetch(second, narrow.handle)
  const start = await site.api.start({ table: 'items', handle: next, expired_handle: follower.handle })
  assert.equal(start.handle, next)
  assert.deepEqual(start.operations.map(({ value }) => value), [{ id: '1', title: 'new' }])
  await site.sql("insert into items values (2, 'b')")
})

test('a table that goes: 409 for those who wait, then the 400', async () => {
  await site.sql('create table passing (id int primary key); insert into passing values (1)')
  const follower = await site.api.follow({ table: 'passing' })
  const waiting = await hold(follower)
  await site.sql('drop table passing')
  assertRefetch(await waiting.answer, follower.handle)
  const answer = await site.api.get({ table: 'passing', offset: '-1' })
  assert.equal(answer.status, 400)
  assert.match(answer.json.errors.table[0], /does not exist/)
  await site.sql('create table passing (id int primary key)')
  const again = await site.api.get({ table: 'passing', handle: follower.handle, offset: follower.offset })
  assertRefetch(again, follower.handle)
})

// The shape of the columns that were named, or were there, goes on: who asked for all of them asks for another one now.
test('ADD COLUMN: those who wait for all columns are told soon, also a stream; those who named theirs go on', async () => {
  const { api, sidecar } = await site.another({ env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '60000', SHAPEFEED_SSE_TIMEOUT_MS: '60000' } })
  await site.sql("create table growing (id int primary key, v text); insert into growing values (1, 'a')")
  const all = await api.follow({ table: 'growing' })
  const named = await api.follow({ table: 'growing', columns: 'id,v' })
  const waiting = await hold(all, api, sidecar)
  const held = await hold(named, api, sidecar)
  const stream = await openEvents(sidecar.url, new URLSearchParams({ table: 'growing', handle: all.handle, offset: all.offset, live: 'true', live_sse: 'true' }))
  const began = performance.now()
  await site.sql('alter table growing add w int not null default 7')
  const next = assertRefetch(await waiting.answer, all.handle)
  assert.equal(await stream.ended, 'whole')
  assert.ok(performance.now() - began < 20_000, 'long before the end of the hold')
  const start = await api.start({ table: 'growing', handle: next, expired_handle: all.handle })
  assert.equal(start.handle, next)
  assert.deepEqual([start.operations[0].value, start.schema.w], [{ id: '1', v: 'a', w: '7' }, { type: 'int4', not_null: true }])
  await site.sql('update growing set w = 8; update growing set v = \'b\'')
  const answer = await held.answer
  assert.deepEqual(answer.operations.map(({ value }) => value), [{ id: '1', v: 'b' }])
  assert.equal(answer.handle, named.handle)
})

test('clients that start while the shape ends again and again all get there', async () => {
  await site.sql("truncate items; insert into items values (1, 'x')")
  let stop = false
  const ending = (async () => {
    while (!stop) await site.sql("begin; truncate items; insert into items values (1, 'x'); commit")
  })()
  const client = async () => {
    for (let i = 0; i < 15; i++) {
      const start = await site.api.start({ table: 'items' })
      assert.equal(start.operations.length, 1)
      const next = await site.api.get({ table: 'items', handle: start.handle, offset: start.offset })
      assert.ok([200, 409].includes(next.status), next.text)
      if (next.status === 409) assertRefetch(next, start.handle)
    }
  }
  await Promise.all([client(), client(), client(), client()]).finally(() => { stop = true })
  await ending
})
