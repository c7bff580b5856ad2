// The log behind a snapshot: offsets, chunks, etags, what caches are told, and requests that wait.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { send, served, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `
    create table items (id int primary key, title text); insert into items select i, 'title ' || i from generate_series(1, 3) i;
    create table others (id int primary key);
    create table wide (id int primary key, v text);`,
  conf: ["shapefeed.retention = '60s'"],
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '3000', SHAPEFEED_CHUNK_BYTES: '2000', SHAPEFEED_CACHE_MAX_AGE: '7', SHAPEFEED_CACHE_STALE_AGE: '9' },
})

const position = (offset) => BigInt(offset.split('_')[0])
const seen = (answer) => BigInt(answer.controls.at(-1).headers.global_last_seen_lsn)
const live = (follower, extra = {}) =>
  site.api.get({ ...follower.params, handle: follower.handle, offset: follower.offset, live: 'true', cursor: '', ...extra })

/** Waits until a sidecar holds this many requests. */
async function held(count, sidecar = site.sidecar) {
  await waitFor(async () => {
    const { text } = await send(sidecar.url, '/metrics')
    return text.includes(`\nshapefeed_live_requests ${count}\n`)
  }, { what: `${count} requests are held` })
}

test('from every place just what comes after it', async () => {
  const follower = await site.api.follow({ table: 'items' })
  const { handle } = follower
  const at = async (offset) => (await site.api.get({ table: 'items', handle, offset }))
  assert.deepEqual((await at('0_0')).operations, [])
  await site.sql("begin; insert into items values (10, 'a'); insert into items values (11, 'b'); delete from items where id = 1; commit;")
  await site.sql("update items set title = 'c' where id = 10")
  await follower.until(({ rows }) => [...rows.values()].some(({ title }) => title === 'c'))
  const names = (answer) => answer.operations.map(({ headers, value }) => `${headers.operation} ${value.id}`)
  const all = ['insert 10', 'insert 11', 'delete 1', 'update 10']
  for (const offset of ['0_0', '0_inf']) assert.deepEqual(names(await at(offset)), all)
  const [first, second] = [...new Set((await at('0_0')).operations.map(({ headers }) => headers.lsn))]
  assert.deepEqual(names(await at(`${BigInt(first) - 1n}_0`)), all, 'a place that was never handed out')
  assert.deepEqual(names(await at(`${first}_1`)), all.slice(1), 'inside a transaction')
  assert.deepEqual(names(await at(`${first}_2`)), all.slice(1), 'between two operations')
  assert.deepEqual(names(await at(`${first}_0`)), all.slice(3), 'the whole transaction was delivered')
  assert.deepEqual(names(await at(`${first}_inf`)), all.slice(3))
  const end = await at(`${second}_0`)
  assert.deepEqual(names(end), [])
  assert.ok(end.upToDate && position(end.offset) >= BigInt(second))
  const whole = await at('0_0')
  assert.equal(whole.offset, `${second}_0`)
  assert.ok(whole.upToDate && seen(whole) >= BigInt(second))
  assert.equal(whole.hasData, 'true')
  assert.ok(whole.schema && !whole.cursor)
})

test('a log in chunks: the same bytes from every sidecar, also from inside a transaction', async () => {
  const another = await site.another()
  const follower = await site.api.follow({ table: 'wide' })
  const from = follower.offset
  await site.sql("insert into wide select i, repeat('x', 300) from generate_series(1, 20) i")
  await site.sql("update wide set v = repeat('y', 300) where id <= 4")
  await site.api.get({ table: 'wide', handle: follower.handle, offset: from })
  let offset = from
  let chunks = 0
  for (let done = false; !done; chunks++) {
    const params = { table: 'wide', handle: follower.handle, offset }
    const [a, b] = [await site.api.get(params), await another.api.get(params)]
    assert.equal(a.status, 200)
    done = a.upToDate
    assert.equal(a.offset, b.offset)
    assert.equal(a.etag, b.etag)
    assert.equal(a.etag, `"${follower.handle}:${offset}:${a.offset}"`)
    if (!done) {
      assert.equal(a.text, b.text)
      assert.ok(a.operations.length > 0 && a.controls.length === 0)
    }
    offset = a.offset
  }
  assert.ok(chunks >= 4, `${chunks}`)
  assert.ok(follower.answers.length > 0)
  await follower.sync()
  assert.equal(follower.rows.size, 20)
})

test('a chunk that is full at the end of the log says so: nobody waits for more to be up to date', async () => {
  await site.sql('delete from wide')
  const follower = await site.api.follow({ table: 'wide' })
  const offset = follower.offset
  const waiting = live(follower)
  await held(1)
  await site.sql("insert into wide values (1000, repeat('z', 3000))")
  const answer = await waiting
  assert.equal(answer.operations.length, 1)
  assert.ok(answer.upToDate, 'live')
  const again = await site.api.get({ table: 'wide', handle: follower.handle, offset })
  assert.equal(again.operations.length, 1)
  assert.ok(again.upToDate, 'not live')
  // What is behind a full chunk is still to come.
  await site.sql("insert into wide values (1001, repeat('z', 3000))")
  await follower.until(({ rows }) => rows.size === 2)
  for (const extra of [{}, { live: 'true' }]) {
    const first = await site.api.get({ table: 'wide', handle: follower.handle, offset, ...extra })
    assert.deepEqual([first.operations.length, first.upToDate], [1, false])
  }
})

test('not modified', async () => {
  const follower = await site.api.follow({ table: 'items' })
  const { handle } = follower
  const params = { table: 'items', handle, offset: '0_0' }
  await site.sql("insert into items values (20, 'x')")
  await follower.until(({ rows }) => rows.has('"public"."items"/"20"'))
  const whole = await site.api.get(params)
  const given = (etag) => ({ headers: { 'if-none-match': etag } })
  for (const etag of [whole.etag, `W/${whole.etag}`, `"x", ${whole.etag}`]) {
    const answer = await site.api.get(params, given(etag))
    assert.equal(answer.status, 304, etag)
    assert.equal(answer.text, '')
    assert.equal(answer.offset, whole.offset)
    assert.equal(answer.handle, handle)
    assert.equal(answer.cacheControl, 'public, max-age=7, stale-while-revalidate=9')
    assert.equal(answer.schema, undefined)
  }
  assert.equal((await site.api.get(params, given('"x"'))).status, 200)
  const answer = await site.api.get({ ...params, live: 'true' }, given(whole.etag))
  assert.equal(answer.status, 304)
  assert.ok(answer.cursor)
  // Before the hold: at the end of the log it is answered at once. (Another handle may be given out meanwhile.)
  await waitFor(async () => {
    const atEnd = await site.api.get({ table: 'items', handle, offset: follower.offset })
    const began = performance.now()
    const quick = await site.api.get({ table: 'items', handle, offset: follower.offset, live: 'true' }, given(atEnd.etag))
    if (quick.status !== 304) console.log(`${quick.status}: ${atEnd.etag} ${quick.etag} ${follower.offset} ${atEnd.offset} ${handle} ${atEnd.handle}`)
    return quick.status === 304 && performance.now() - began < 2000
  }, { timeoutMs: 15_000, what: 'it is not modified' })
})

test('HEAD is never held', async () => {
  const follower = await site.api.follow({ table: 'items' })
  const began = performance.now()
  const answer = await site.api.get({ table: 'items', handle: follower.handle, offset: follower.offset, live: 'true' }, { method: 'HEAD' })
  assert.ok(performance.now() - began < 2000)
  assert.equal(answer.status, 200)
  assert.equal(answer.text, '')
  assert.ok(answer.cursor && answer.upToDate)
})

test('what caches are told', async () => {
  const follower = await site.api.follow({ table: 'items' })
  const { handle, offset } = follower
  const told = async (params) => (await site.api.get({ table: 'items', ...params })).cacheControl
  const catchUp = 'public, max-age=7, stale-while-revalidate=9'
  assert.equal(await told({ offset: '-1' }), 'public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746')
  assert.equal(await told({ offset: '-1', log: 'changes_only' }), catchUp)
  assert.equal(await told({ offset: 'now' }), catchUp)
  assert.equal(await told({ offset, handle }), catchUp)
  assert.equal(await told({ offset, handle, cursor: '5' }), 'no-store', 'a refresh from a cache would hide what is new')
  assert.equal(await told({ offset: '0_0', handle, live: 'true' }), 'public, max-age=5, stale-while-revalidate=5')
  assert.equal(await told({ offset: '1_0', handle }), 'public, max-age=60, must-revalidate')
  assert.equal(await told({ offset: 'x' }), 'no-store')
})

test('a refresh covers what any sidecar has already told', async () => {
  const another = await site.another()
  const follower = await site.api.follow({ table: 'items' })
  const there = await another.api.follow({ table: 'others' })
  for (let i = 0; i < 20; i++) {
    const waiting = live(follower)
    await site.sql(`insert into items values (${100 + i}, 'x')`)
    const told = await waiting
    follower.take(told)
    const refresh = await another.api.get({ table: 'others', handle: there.handle, offset: there.offset, cursor: '1' })
    assert.ok(refresh.upToDate)
    assert.ok(seen(refresh) >= seen(told), `${seen(refresh)} after ${seen(told)}`)
  }
})

test('a live request waits for its own shape, and ends in time', async () => {
  await site.sql('insert into others values (1)')
  const follower = await site.api.follow({ table: 'items', where: 'id < 0' })
  const began = performance.now()
  const waiting = live(follower)
  await held(1)
  await site.sql("insert into items values (200, 'x'); insert into others values (2)")
  const idle = await waiting
  assert.ok(performance.now() - began >= 2900, 'what concerns others wakes nobody')
  assert.equal(idle.status, 200)
  assert.deepEqual([idle.operations.length, idle.upToDate, idle.hasData], [0, true, 'false'])
  assert.equal(idle.schema, undefined)
  assert.match(idle.cursor, /^\d+$/)
  assert.equal(idle.etag.split(':').length, 4, 'an etag that nobody else has')
  assert.ok(seen(idle) > position(follower.offset), 'what was seen goes on')
  const next = await live(follower, { cursor: idle.cursor })
  assert.ok(BigInt(next.cursor) > BigInt(idle.cursor))
})

test('all who wait for the same get the same bytes', async () => {
  const follower = await site.api.follow({ table: 'items' })
  const waiting = Array.from({ length: 50 }, () => live(follower))
  await held(50)
  await site.sql("begin; insert into items values (300, 'x'); insert into items values (301, 'y'); commit")
  const answers = await Promise.all(waiting)
  assert.equal(new Set(answers.map(({ text, etag, offset }) => text + etag + offset)).size, 1)
  assert.equal(answers[0].operations.length, 2)
  assert.equal(seen(answers[0]), position(answers[0].offset))
})

test('an answer without operations moves the offset to a resting position', async () => {
  const follower = await site.api.follow({ table: 'others' })
  const resting = () => site.sql('select resting from shapefeed._head()')
  const before = BigInt(await resting())
  const first = follower.offset
  await waitFor(async () => {
    await site.sql("update items set title = title || '.' where id = 2")
    return BigInt(await resting()) > before
  }, { intervalMs: 200, what: 'another resting position' })
  const answer = await follower.step()
  assert.equal(answer.operations.length, 0)
  assert.notEqual(answer.offset, first)
  assert.ok(position(answer.offset) <= seen(answer))
})

test('a client that goes away frees its request', async () => {
  const follower = await site.api.follow({ table: 'items' })
  const abort = new AbortController()
  const waiting = Array.from({ length: 10 }, () => live(follower, {}).catch(() => {}))
  const left = site.api.get({ table: 'items', handle: follower.handle, offset: follower.offset, live: 'true' }, { signal: abort.signal, agent: undefined }).catch((error) => error)
  await held(11)
  abort.abort()
  assert.ok(await left instanceof Error)
  await held(10)
  await Promise.all(waiting)
  await held(0)
})

test('a stop answers those who wait', async () => {
  const { sidecar, api } = await site.another({ env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '60000' } })
  const follower = await api.follow({ table: 'items' })
  const waiting = Array.from({ length: 20 }, () =>
    api.get({ table: 'items', handle: follower.handle, offset: follower.offset, live: 'true' }))
  await held(20, sidecar)
  const began = performance.now()
  const stopped = sidecar.stop()
  for (const answer of await Promise.all(waiting)) {
    assert.equal(answer.status, 200)
    assert.ok(answer.upToDate)
    assert.equal(answer.headers.connection, 'close')
  }
  assert.deepEqual(await stopped, { code: 0, signal: null })
  assert.ok(performance.now() - began < 5000)
})
