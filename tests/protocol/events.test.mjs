// Server-sent events: live_sse.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isUpToDate, ok, openEvents, served, sleep, waitFor } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'

const site = served({
  schema: `create table items (id int primary key, v text);
    create table still (id int primary key, v text);
    create table large (id int primary key, v text);
    create table turning (id int primary key, v text);`,
  env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '2000', SHAPEFEED_SSE_TIMEOUT_MS: '6000', SHAPEFEED_CHUNK_BYTES: '10000' },
})

const query = (params) => new URLSearchParams(params).toString()

/** The stream of a table from where a fresh client is. */
async function opened(table, { api = site.api, base = site.sidecar.url, at, flag = 'live_sse', headers } = {}) {
  const from = at ?? (await api.follow({ table }))
  const params = { table, offset: from.offset, handle: from.handle, live: 'true', [flag]: 'true', cursor: '' }
  return { from, ...(await openEvents(base, query(params), { headers })) }
}

const lsn = (message) => message.headers.lsn ?? message.headers.global_last_seen_lsn
const keys = (messages) => messages.filter((message) => 'key' in message).map((message) => message.key)

test('an idle stream says nothing at first, then how far it is, and ends', async () => {
  const began = Date.now()
  const stream = await opened('still', { flag: 'experimental_live_sse' })
  assert.equal(stream.status, 200)
  assert.equal(stream.headers['content-type'], 'text/event-stream')
  assert.equal(stream.headers['cache-control'], 'public, max-age=5')
  assert.equal(stream.headers['electric-handle'], stream.from.handle)
  assert.match(stream.headers['electric-offset'], /^\d+_\d+$/)
  assert.match(stream.headers['electric-cursor'], /^\d+$/)
  assert.equal(stream.headers['access-control-allow-origin'], '*')
  for (const name of ['electric-schema', 'electric-up-to-date', 'content-encoding']) assert.equal(stream.headers[name], undefined)
  await sleep(1000)
  assert.equal(stream.raw(), '')
  await stream.until((messages) => messages.length === 2)
  assert.ok(Date.now() - began >= 3800, 'one per hold')
  assert.ok(stream.messages.every(isUpToDate))
  assert.equal(await stream.ended, 'whole')
  const lasted = Date.now() - began
  assert.ok(lasted >= 5900 && lasted < 9000, `${lasted} ms`)
})

test('each message is an event, each batch is closed by up-to-date, and the next stream goes on behind it', async () => {
  const stream = await opened('items')
  await site.sql("insert into items values (1, 'a'), (2, E'line\\nbreak')")
  await stream.until((messages) => isUpToDate(messages.at(-1)))
  await site.sql("update items set v = 'c' where id = 1")
  await stream.until((messages) => messages.filter(isUpToDate).length === 2)
  const [one, two, done, update, again] = stream.messages
  assert.deepEqual([one.value, two.value], [{ id: '1', v: 'a' }, { id: '2', v: 'line\nbreak' }])
  assert.deepEqual([one.headers.last, two.headers.last], [undefined, true])
  assert.equal(lsn(done), lsn(two))
  assert.deepEqual([update.headers.operation, lsn(update)], ['update', lsn(again)])
  stream.close()
  // As the client does: position and zero. Nothing of the position comes again, and what is there already comes at once.
  await site.sql("update items set v = 'd' where id = 1")
  const next = await opened('items', { at: { handle: stream.from.handle, offset: `${lsn(done)}_0` } })
  await next.until((messages) => isUpToDate(messages.at(-1)))
  assert.deepEqual(next.messages.filter((message) => 'key' in message).map((message) => message.value.v), ['c', 'd'])
  // What the header says is adopted before anything is read: it must not be past what is still to come.
  assert.equal(next.headers['electric-offset'], `${lsn(done)}_0`)
  await site.sql("update items set v = 'e' where id = 1")
  await next.until((messages) => messages.filter((message) => 'key' in message).length === 3)
  next.close()
})

test('batches that fill several chunks are sent on, and closed', async () => {
  const stream = await opened('large')
  await site.sql("insert into large select i, repeat('x', 1000) from generate_series(1, 100) i")
  await stream.until((messages) => isUpToDate(messages.at(-1)))
  assert.equal(new Set(keys(stream.messages)).size, 100)
  assert.equal(stream.messages.length, 101, 'one up-to-date')
  // One that just fills a chunk has nothing behind it that would close it.
  await site.sql("insert into large values (101, repeat('y', 10000))")
  await stream.until((messages) => isUpToDate(messages.at(-1)) && messages.length === 103, { timeoutMs: 1500 })
  stream.close()
})

test('a client that does not read for a while misses nothing', async () => {
  const { api, sidecar } = await site.another({ env: { SHAPEFEED_SSE_TIMEOUT_MS: '60000' } })
  const stream = await opened('large', { api, base: sidecar.url })
  stream.pause()
  for (let i = 0; i < 40; i++) await site.client.query(`insert into large select i, repeat('x', 100000) from generate_series(${1000 + i * 10}, ${1009 + i * 10}) i`)
  stream.resume()
  await stream.until((messages) => keys(messages).length === 400 && isUpToDate(messages.at(-1)), { timeoutMs: 30_000 })
  const inserted = keys(stream.messages)
  assert.deepEqual(inserted, [...inserted].sort((a, b) => Number(/\d+/.exec(a)[0]) - Number(/\d+/.exec(b)[0])))
  stream.close()
})

test('many clients get the same bytes', async () => {
  const from = await site.api.follow({ table: 'items' })
  const streams = await Promise.all(Array.from({ length: 30 }, () => opened('items', { at: from })))
  for (let i = 0; i < 20; i++) await site.sql(`insert into items values (${100 + i}, '${i}')`)
  const whole = (messages) => keys(messages).length === 20 && isUpToDate(messages.at(-1))
  await Promise.all(streams.map((stream) => stream.until(whole)))
  for (const stream of streams) {
    assert.deepEqual(keys(stream.messages), keys(streams[0].messages))
    stream.close()
  }
  await waitFor(async () => (await site.sidecar.metric('shapefeed_streams')) === 0, { what: 'no stream is left' })
})

test('what is wrong is said before the stream begins', async () => {
  const { handle, offset } = await site.api.follow({ table: 'items' })
  const gone = await openEvents(site.sidecar.url, query({ table: 'items', offset, handle: '1-2-0', live: 'true', live_sse: 'true' }))
  await gone.ended
  assert.equal(gone.status, 409)
  assert.deepEqual(gone.json(), [{ headers: { control: 'must-refetch' } }])
  assert.notEqual(gone.headers['electric-handle'], '1-2-0')
  const bad = await openEvents(site.sidecar.url, query({ table: 'items', offset, handle, live: 'true', live_sse: 'true', where: 'x' }))
  await bad.ended
  assert.equal(bad.status, 400)
  assert.equal(bad.headers['content-type'], 'application/json; charset=utf-8')
  const head = await site.api.get({ table: 'items', offset, handle, live: 'true', live_sse: 'true' }, { method: 'HEAD' })
  assert.deepEqual([head.status, head.text], [200, ''])
  const accepting = await opened('items', { headers: { 'accept-encoding': 'gzip, br, zstd' } })
  assert.equal(accepting.headers['content-encoding'], undefined)
  accepting.close()
})

test('who is still reading the snapshot gets its next chunk, and then a stream', async () => {
  await site.sql("create table chunks (id int primary key, v text); insert into chunks select i, repeat('x', 1000) from generate_series(1, 30) i")
  let at = await site.api.start({ table: 'chunks' })
  const rows = [...at.operations]
  while (at.offset !== '0_0') {
    at = ok(await site.api.get({ table: 'chunks', offset: at.offset, handle: at.handle, live: 'true', live_sse: 'true' }))
    assert.equal(at.headers['content-type'], 'application/json; charset=utf-8')
    rows.push(...at.operations)
  }
  assert.deepEqual([new Set(rows.map(({ key }) => key)).size, rows.length], [30, 30])
  const stream = await opened('chunks', { at })
  await site.sql("insert into chunks values (31, 'y')")
  await stream.until((messages) => keys(messages).length === 1)
  stream.close()
  assert.equal((await site.api.get({ table: 'chunks', offset: '0_7', handle: at.handle, live: 'true', live_sse: 'true' })).status, 409)
})

test('a rotation closes the stream, and the next request is told', async () => {
  const stream = await opened('turning')
  await site.sql('truncate turning')
  assert.equal(await stream.ended, 'whole')
  assert.equal(stream.raw(), '')
  const next = await opened('turning', { at: stream.from })
  assert.equal(next.status, 409)
})

test('a restart of the database interrupts no stream', async () => {
  const { api, sidecar } = await site.another({ env: { SHAPEFEED_SSE_TIMEOUT_MS: '60000' } })
  const stream = await opened('items', { api, base: sidecar.url })
  await site.sql("insert into items values (201, 'before')")
  await stream.until((messages) => isUpToDate(messages.at(-1)))
  site.client.on('error', () => {})
  await site.cluster.restart()
  site.client = await site.database.connect()
  await site.sql("insert into items values (202, 'after')")
  await stream.until((messages) => keys(messages).length === 2 && isUpToDate(messages.at(-1)), { timeoutMs: 20_000 })
  stream.close()
})

test('a sidecar that stops ends its streams, whole', async () => {
  const { api, sidecar } = await site.another()
  const stream = await opened('items', { api, base: sidecar.url })
  const began = Date.now()
  const stopped = sidecar.stop()
  assert.equal(await stream.ended, 'whole')
  await stopped
  assert.ok(Date.now() - began < 1500)
})

test('the stock client with liveSse', async () => {
  const follower = follow(site.sidecar.url, { table: 'still' }, { liveSse: true })
  try {
    await untilSame(follower, site.client, 'select * from still')
    for (let i = 0; i < 30; i++) {
      await site.client.query(`insert into still values (${i}, 'v${i}')`)
      if (i % 3 === 0) await site.client.query(`update still set v = v || '!' where id <= ${i}`)
      if (i % 10 === 9) await site.client.query(`delete from still where id = ${i - 5}`)
    }
    await untilSame(follower, site.client, 'select * from still')
    await sleep(7000) // over the end of a stream
    await site.client.query("update still set v = 'last' where id = 1")
    await untilSame(follower, site.client, 'select * from still')
    assert.deepEqual(follower.errors, [])
    const requests = (of) => site.sidecar.metric(`shapefeed_requests_total{class="${of}",status="200"}`)
    assert.deepEqual([(await requests('events')) > 0, await requests('live')], [true, 0], 'it did not fall back to long-polling')
  } finally {
    follower.stop()
  }
})
