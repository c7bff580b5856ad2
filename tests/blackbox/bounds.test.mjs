// What clients and poolers may not do to the sidecar: hold its connections, its memory, its disk.
import assert from 'node:assert/strict'
import net from 'node:net'
import { test } from 'node:test'
import { ShapeApi, send, served, startSidecar, waitFor } from '../lib/index.mjs'
import { startPooler } from '../lib/pooler.mjs'

const site = served({
  schema: `
    create table items (id int primary key, title text); insert into items values (1, 'a');
    create table large (id int primary key, v text); insert into large select i, repeat('x', 1000) from generate_series(1, 30000) i;`,
})

const metric = async (sidecar, name) => Number(new RegExp(`\n${name} (\\d+)\n`).exec((await send(sidecar.url, '/metrics')).text)[1])

/** A request on a connection of its own, of whose answer nothing is read. */
function askAndStare(sidecar, query) {
  const socket = net.connect({ host: '127.0.0.1', port: sidecar.port })
  socket.pause()
  socket.write(`GET /v1/shape?${query} HTTP/1.1\r\nhost: x\r\n\r\n`)
  const closed = new Promise((resolve) => socket.once('close', resolve))
  socket.on('error', () => {})
  return { socket, closed }
}

test('a client that takes nothing of its answer is cut off, and holds nothing after that', { timeout: 60_000 }, async () => {
  const { sidecar, api } = await site.another({ env: { SHAPEFEED_SEND_TIMEOUT: '1', SHAPEFEED_SPOOL_MAX_BYTES: '50000000', SHAPEFEED_CHUNK_BYTES: '1000000000', SHAPEFEED_COMPRESSION: 'false' } })
  const connections = async () => Number(await site.sql(`select count(*) from pg_stat_activity where application_name = 'shapefeed-sidecar' and state <> 'idle' and query like 'copy%'`))
  const first = await api.start({ table: 'large', where: 'id > 10' })
  const staring = Array.from({ length: 20 }, () => askAndStare(sidecar, 'offset=-1&table=large&where=id%20%3E%2010'))
  await waitFor(async () => await connections() === 0)
  // A shape of another definition needs the room that the first one takes: nobody reads that any more.
  await waitFor(async () => (await api.get({ table: 'large', offset: '-1' })).status === 200, { timeoutMs: 20_000, what: 'there is room again' })
  staring.forEach(({ socket }) => socket.resume())
  await Promise.all(staring.map(({ closed }) => closed))
  assert.equal((await api.get({ table: 'large', where: 'id > 10', offset: '0_0', handle: first.handle })).status, 200)
})

test('snapshots above what may be kept: 503', async () => {
  const { api } = await site.another({ env: { SHAPEFEED_SPOOL_MAX_BYTES: '1000000' } })
  const answer = await api.get({ table: 'large', offset: '-1' })
  assert.equal(answer.status, 503)
  assert.equal(answer.headers['retry-after'], '1')
  assert.equal(answer.headers['access-control-allow-origin'], '*')
  assert.equal((await api.get({ table: 'items', offset: '-1' })).status, 200, 'small ones go on')
})

test('a request whose client goes away takes its statement along', async () => {
  const { sidecar, api } = await site.another({ env: { SHAPEFEED_POOL_SIZE: '2' } })
  const { handle } = await api.start({ table: 'items' })
  const waiting = async () => Number(await site.sql("select count(*) from pg_stat_activity where application_name = 'shapefeed-sidecar' and wait_event_type = 'Lock'"))
  const locker = await site.database.connect()
  try {
    await locker.query('begin; lock table items in access exclusive mode')
    for (const query of ['table=items&offset=-1', `table=items&offset=0_0&handle=${handle}`, `table=items&offset=0_0&handle=${handle}&live`]) {
      const gone = Array.from({ length: 4 }, () => askAndStare(sidecar, query))
      await waitFor(async () => await waiting() > 0, { what: `${query} waits for the lock` })
      gone.forEach(({ socket }) => socket.destroy())
      await waitFor(async () => await waiting() === 0, { what: `nobody waits for ${query}` })
    }
    await waitFor(async () => await metric(sidecar, 'shapefeed_live_requests') === 0)
    assert.equal((await api.get({ table: 'large', where: 'id = 1', offset: '-1' })).status, 200, 'the pool is free')
  } finally {
    await locker.end()
  }
  assert.equal((await api.get({ table: 'items', offset: '0_0', handle })).status, 200)
})

test('a table that somebody has locked holds up no shape on another', async () => {
  const { api } = await site.another({ env: { SHAPEFEED_POOL_SIZE: '4' } })
  const follower = await api.follow({ table: 'large', where: 'id <= 0' })
  const shut = await api.follow({ table: 'items' })
  await site.sql('insert into large values (-1, $$first$$)')
  await follower.until(({ rows }) => rows.size === 1)
  const locker = await site.database.connect()
  try {
    await locker.query('begin; lock table items in access exclusive mode')
    const waiting = [1, 2, 3].map((n) => api.get({ table: 'items', where: `id = ${n}`, offset: '-1' }))
    const held = api.get({ table: 'items', handle: shut.handle, offset: shut.offset, live: 'true' })
    for (let i = 2; i < 12; i++) {
      const began = performance.now()
      const live = api.get({ table: 'large', where: 'id <= 0', handle: follower.handle, offset: follower.offset, live: 'true' })
      await site.sql(`insert into large values (${-i}, 'next')`)
      follower.take(await live)
      assert.ok(performance.now() - began < 2000, `${performance.now() - began} ms`)
    }
    for (const answer of await Promise.all(waiting)) assert.equal(answer.status, 503)
    await locker.query('rollback')
    await site.sql("insert into items values (2, 'b')")
    assert.equal((await held).operations.length, 1)
  } finally {
    await locker.end()
  }
})

test('a shape that cannot be attached takes no other one from the feed', async () => {
  const { api } = await site.another()
  await site.sql('create table a (id int primary key); create table b (id int primary key); create table c (id int primary key)')
  const [a, b, c] = await Promise.all(['a', 'b', 'c'].map((table) => api.follow({ table })))
  await site.sql('insert into a values (1)')
  await a.until(({ rows }) => rows.size === 1) // the feed has it
  const locker = await site.database.connect()
  try {
    await locker.query('begin; lock table b in access exclusive mode')
    const shut = api.get({ table: 'b', handle: b.handle, offset: b.offset, live: 'true' })
    const other = c.until(({ rows }) => rows.size === 1)
    await site.sql('insert into c values (1)')
    await other
    await site.sql('insert into a values (2)')
    await a.until(({ rows }) => rows.size === 2)
    await locker.query('rollback')
    await shut
    await site.sql('insert into a values (3)')
    await a.until(({ rows }) => rows.size === 3)
  } finally {
    await locker.end()
  }
})

test('an internal error of a function ends the shape that calls it, and no other', async () => {
  const { api } = await site.another()
  await site.sql('create table calls (id int primary key)')
  const other = await api.follow({ table: 'calls', where: 'id > 0 or id is null' })
  const raising = await api.follow({ table: 'calls', log: 'changes_only', where: `case when id is not null then array_in('{1}', 0, -1) is null end` })
  const [answer] = await Promise.all([
    api.get({ ...raising.params, handle: raising.handle, offset: raising.offset, live: 'true' }),
    other.until(({ rows }) => rows.size === 1),
    site.sql('insert into calls values (1)'),
  ])
  assert.ok([400, 409].includes(answer.status), answer.text)
  const first = await api.get({ ...raising.params, log: 'full', offset: '-1' })
  assert.equal(first.status, 400, first.text)
})

test('a pooler that lends backends by the transaction is refused', async () => {
  const pooler = await startPooler(site.database.url)
  const sidecar = await startSidecar({ databaseUrl: pooler.url, ready: false })
  const api = new ShapeApi(sidecar.url)
  try {
    await waitFor(() => /leads to a pooler/.test(sidecar.log()), { timeoutMs: 15_000, what: 'it says so' })
    assert.equal(await metric(sidecar, 'shapefeed_feed_connected'), 0)
  } finally {
    api.close()
    await sidecar.stop()
    await pooler.stop()
  }
})

test('its log names no secret', async () => {
  const url = new URL(site.database.url)
  url.password = 'pass-w0rd'
  const { sidecar, api } = await site.another({ databaseUrl: url.href, env: { SHAPEFEED_SECRET: 'hush-hush', SHAPEFEED_INSECURE: undefined, SHAPEFEED_LOG_LEVEL: 'trace' } })
  for (const secret of ['hush-hush', 'hush-hush2']) {
    await api.get({ table: 'items', offset: '-1', secret })
    await api.get({ table: 'items', offset: '-1', where: 'nonsense', secret })
    await api.get({ table: 'items', offset: '0_0', handle: '1-2-3', secret })
  }
  await api.delete({ table: 'items', secret: 'hush-hush' })
  assert.ok(sidecar.log().length > 1000)
  assert.doesNotMatch(sidecar.log(), /hush-hush|pass-w0rd/)
})
