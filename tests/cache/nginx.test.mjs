// A real nginx in front, as docker/nginx.conf has it: what clients cost the sidecar, and that no cached answer keeps a client
// from what is true, whatever is rotated or restarted.
import assert from 'node:assert/strict'
import http from 'node:http'
import { after, afterEach, before, test } from 'node:test'
import zlib from 'node:zlib'
import { ShapeApi, freshDatabase, isUpToDate, openEvents, send, sleep, startCluster, startNginx, startSidecar, waitFor } from '../lib/index.mjs'
import { follow, untilSame } from '../lib/followers.mjs'

const hold = 5000
let cluster, database, sidecar, nginx, client, cached, direct
const followers = []

const start = (port) => startSidecar({ databaseUrl: database.url, port, env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: String(hold) } })

before(async () => {
  cluster = await startCluster()
  database = await freshDatabase(cluster)
  sidecar = await start()
  nginx = await startNginx([sidecar.port])
  client = await database.connect()
  cached = new ShapeApi(nginx.url)
  direct = new ShapeApi(sidecar.url)
})

// The clients of one test are not counted in the next.
afterEach(() => followers.splice(0).forEach((follower) => follower.stop()))

after(async () => {
  cached?.close()
  direct?.close()
  await nginx?.stop()
  await sidecar?.stop()
  await cluster?.stop()
})

/** Numbers of requests for shapes that this sidecar has answered: { initial, live, …, refused, conflicts, all }. */
async function cost() {
  const counts = { all: 0, conflicts: 0, initial: 0, live: 0 }
  for (const line of (await send(sidecar.url, '/metrics')).text.split('\n')) {
    const [, kind, status, n] = line.match(/^shapefeed_requests_total\{class="(\w+)",status="(\d+)"\} (\d+)/) ?? []
    if (!kind) continue
    counts[kind] = (counts[kind] ?? 0) + Number(n)
    counts.all += Number(n)
    if (status === '409') counts.conflicts += Number(n)
  }
  return counts
}

const held = async () => Number((await send(sidecar.url, '/metrics')).text.match(/shapefeed_live_requests (\d+)/)[1])

/** Requests that nginx has answered, by status. */
async function passed() {
  await sleep(1200) // its log is flushed once a second
  return nginx.accessLog().split('\n').map((line) => line.split(' ')[4]).filter(Boolean)
}

/** Runs some work of stock clients and returns the statuses of the requests it took, and of those in a time of rest after it. */
async function observed(work) {
  const before = (await passed()).length
  await work()
  const during = await passed()
  const rest = 3000
  await sleep(rest)
  const afterwards = await passed()
  return { during: during.slice(before), resting: afterwards.slice(during.length) }
}

function following(params, n = 1) {
  const made = Array.from({ length: n }, () => follow(nginx.url, params))
  followers.push(...made)
  return made
}

const allSame = (those, query) => Promise.all(those.map((it) => untilSame(it, client, query, { timeoutMs: 30_000 })))

/** Clients at rest: each asks once per hold, and few of them may have been late. */
function assertNoLoop({ during, resting }, clients, perClient) {
  assert.ok(during.length <= clients * perClient, `${during.length} requests of ${clients} clients: ${tally(during)}`)
  assert.ok(resting.length <= clients * 3, `${resting.length} requests of ${clients} clients at rest: ${tally(resting)}`)
  assert.ok(!resting.includes('409'), 'no conflict at rest')
}

const tally = (statuses) => JSON.stringify(statuses.reduce((counts, it) => ({ ...counts, [it]: (counts[it] ?? 0) + 1 }), {}))

test('1,000 live clients cost five requests per change, or fewer', async () => {
  await client.query("create table crowd (id int primary key, v text); insert into crowd select i, 'v' from generate_series(1, 100) i")
  const clients = Array.from({ length: 1000 }, () => ({ seen: new Set(), offset: '-1' }))
  let stopped = false
  const run = async (it) => {
    while (!stopped) {
      const live = it.upToDate ? { live: 'true', cursor: it.cursor ?? '' } : {}
      const answer = await cached.get({ table: 'crowd', handle: it.handle, offset: it.offset, ...live }, { headers: { 'accept-encoding': 'identity' } })
      if (stopped) return
      assert.equal(answer.status, 200, answer.text)
      Object.assign(it, { handle: answer.handle, offset: answer.offset, cursor: answer.cursor ?? it.cursor, upToDate: answer.upToDate })
      for (const { value } of answer.operations) it.seen.add(Number(value.id))
    }
  }
  const running = clients.map(run)
  const failed = Promise.race(running.map((it) => it.then(() => new Promise(() => {}))))
  const until = (condition, what) => Promise.race([waitFor(condition, { timeoutMs: 30_000, what }), failed])

  await until(() => clients.every(({ seen, upToDate }) => seen.size === 100 && upToDate), 'all of them have the snapshot')
  const initial = await cost()
  assert.ok(initial.all <= 10, `1,000 starts cost ${JSON.stringify(initial)}`)

  const changes = 8
  const began = await cost()
  let slow = 0
  for (let i = 1; i <= changes; i++) {
    await until(async () => await held() >= 1, 'a held request')
    const { all } = await cost()
    const at = performance.now()
    await client.query('insert into crowd values ($1, $2)', [1000 + i, 'new'])
    await until(() => clients.every(({ seen }) => seen.has(1000 + i)), `all of them have change ${i}`)
    slow = Math.max(slow, performance.now() - at)
    await until(async () => await held() >= 1, 'a held request')
    const spent = (await cost()).all - all
    assert.ok(spent <= 5, `change ${i} cost ${spent} requests`)
  }
  const spent = (await cost()).all - began.all
  console.log(`1,000 clients, ${changes} changes: ${spent} requests; the slowest change was with all of them after ${Math.round(slow)} ms`)
  assert.ok(spent >= changes && spent <= 5 * changes)
  stopped = true
  await client.query('insert into crowd values (2000)')
  await Promise.all(running)
})

test('each coding has its copy, and it is the right one', async () => {
  await client.query("create table coded (id int primary key, v text); insert into coded select i, repeat('v', 100) from generate_series(1, 100) i")
  const get = (accept) => new Promise((resolve, reject) => {
    http.get(`${nginx.url}/v1/shape?table=coded&offset=-1`, { headers: { 'accept-encoding': accept } }, async (response) => {
      const chunks = []
      for await (const chunk of response) chunks.push(chunk)
      resolve({ coding: response.headers['content-encoding'], vary: response.headers.vary, cache: response.headers['x-cache'], body: Buffer.concat(chunks) })
    }).on('error', reject)
  })
  const plain = await get('identity')
  assert.equal(plain.coding, undefined)
  for (const [accept, coding, unpack] of [['gzip, deflate', 'gzip', zlib.gunzipSync], ['br', 'br', zlib.brotliDecompressSync]]) {
    const first = await get(accept)
    assert.deepEqual([first.coding, first.cache], [coding, 'MISS'])
    assert.match(first.vary, /accept-encoding/i)
    assert.ok(unpack(first.body).equals(plain.body))
    const again = await get(`${accept}, x`)
    assert.deepEqual([again.coding, again.cache], [coding, 'HIT'])
    assert.ok(again.body.equals(first.body))
  }
  assert.equal((await get('identity')).cache, 'HIT')
})

test('what must not be kept is not: refreshes and errors', async () => {
  await client.query('create table fresh (id int primary key)')
  const follower = await cached.follow({ table: 'fresh' })
  const refresh = () => cached.get({ table: 'fresh', handle: follower.handle, offset: follower.offset, cursor: '1' })
  const began = performance.now()
  const together = await Promise.all(Array.from({ length: 20 }, refresh))
  assert.ok(performance.now() - began < 3000, 'they do not wait for each other')
  assert.ok(together.every(({ status, headers }) => status === 200 && headers['x-cache'] === 'BYPASS'))
  await client.query('insert into fresh values (1)')
  await waitFor(async () => (await refresh()).operations.length === 1, { what: 'a refresh has the change' })
  const wrong = () => cached.get({ table: 'later', offset: '-1' })
  assert.equal((await wrong()).status, 400)
  await client.query('create table later (id int primary key)')
  assert.equal((await wrong()).status, 200)
})

test('streams of events pass as they come: neither held back nor kept, and each has its own', async () => {
  await client.query('create table streamed (id int primary key, v text)')
  const at = await direct.follow({ table: 'streamed' })
  const query = new URLSearchParams({ table: 'streamed', handle: at.handle, offset: at.offset, live: 'true', live_sse: 'true', experimental_live_sse: 'true', cursor: '' })
  const [first, second] = [await openEvents(nginx.url, query), await openEvents(nginx.url, query)]
  for (const stream of [first, second]) {
    assert.equal(stream.headers['content-type'], 'text/event-stream')
    assert.equal(stream.headers['x-cache'], undefined)
  }
  for (let i = 1; i <= 5; i++) {
    await client.query('insert into streamed values ($1)', [i])
    // Each before the next is written: a small event in a buffer would be there only later.
    for (const stream of [first, second]) await stream.until((messages) => messages.filter((message) => 'key' in message).length === i && isUpToDate(messages.at(-1)), { timeoutMs: 3000 })
  }
  first.close()
  second.close()
  // Who comes later to the same URL gets what is true now, not what the first of them was sent.
  await client.query('delete from streamed where id = 1')
  const later = await openEvents(nginx.url, query)
  await later.until((messages) => messages.filter((message) => 'key' in message).length === 6)
  later.close()
  const follower = follow(nginx.url, { table: 'streamed' }, { liveSse: true })
  followers.push(follower)
  await untilSame(follower, client, 'select * from streamed')
  await client.query("update streamed set v = 'x'")
  await untilSame(follower, client, 'select * from streamed')
})

test('what is kept is served for its time, then as it was while the sidecar is asked whether it still is', async () => {
  await client.query("create table aged (id int primary key, v text); insert into aged select i, repeat('v', 100) from generate_series(1, 50) i")
  const other = await startSidecar({ databaseUrl: database.url, env: { SHAPEFEED_CACHE_MAX_AGE: '1', SHAPEFEED_CACHE_STALE_AGE: '2' } })
  const front = await startNginx([other.port])
  const api = new ShapeApi(front.url)
  try {
    const { handle } = await api.start({ table: 'aged' })
    const catchUp = async () => {
      const { status, etag, offset, upToDate, headers: { 'x-cache': cache } } = await api.get({ table: 'aged', handle, offset: '0_0' })
      return { status, etag, offset, upToDate, cache }
    }
    const first = await catchUp()
    assert.deepEqual([first.status, first.cache, first.upToDate], [200, 'MISS', true])
    assert.deepEqual(await catchUp(), { ...first, cache: 'HIT' })
    const seen = new Set()
    await waitFor(async () => {
      const answer = await catchUp()
      seen.add(answer.cache)
      assert.deepEqual({ ...answer, cache: '' }, { ...first, cache: '' })
      return ['STALE', 'UPDATING'].some((it) => seen.has(it))
    }, { what: `it is served stale: ${[...seen]}` })
    const revalidated = () => other.metric('shapefeed_requests_total{class="catch_up",status="304"}')
    await waitFor(async () => (await catchUp()).etag === first.etag && await revalidated() > 0, { what: 'the sidecar said 304' })
    await client.query('insert into aged values (51)')
    await waitFor(async () => (await catchUp()).etag !== first.etag, { what: 'what is new is there after that' })
  } finally {
    api.close()
    await front.stop()
    await other.stop()
  }
})

test('rotation: TRUNCATE, deletion, DDL; those who follow and those who come with a cached snapshot', async () => {
  await client.query("create table turned (id int primary key, v text); insert into turned select i, 'v' from generate_series(1, 50) i")
  const query = 'select * from turned'
  const those = following({ table: 'turned' }, 20)
  await allSame(those, query)
  const turns = [
    () => client.query("truncate turned; insert into turned select i, 'w' from generate_series(1, 30) i"),
    () => direct.delete({ table: 'turned' }),
    () => client.query('alter table turned alter v type varchar(20)'),
    () => client.query('truncate turned'),
  ]
  for (const turn of turns) {
    const seen = await observed(async () => {
      await turn()
      await client.query(`insert into turned select max(id) + 1, 'after' from (select id from turned union select 100) it`)
      await allSame(those, query)
    })
    assertNoLoop(seen, 20, 12)
    assert.ok(seen.during.filter((status) => status === '409').length <= 20 * 3, tally(seen.during))
  }
  // The snapshot under the plain URL is of before: who starts there has one conflict, and then what is true.
  const stale = await cached.get({ log: 'full', offset: '-1', table: 'turned' }, { headers: { 'accept-encoding': 'gzip, deflate' } })
  assert.equal(stale.headers['x-cache'], 'HIT')
  const newcomers = await observed(async () => allSame(following({ table: 'turned' }, 20), query))
  assertNoLoop(newcomers, 20, 12)
  const { conflicts } = await cost()
  assert.ok(conflicts <= 20, `collapsed: the sidecar has answered ${conflicts} conflicts in all`)
})

test('a restart of the sidecar, also an unclean one: nobody starts over', async () => {
  await client.query("create table kept (id int primary key, v text); insert into kept select i, 'v' from generate_series(1, 50) i")
  const query = 'select * from kept'
  const those = following({ table: 'kept' }, 20)
  await allSame(those, query)
  for (const stop of ['stop', 'kill9']) {
    const seen = await observed(async () => {
      await sidecar[stop]()
      await client.query('insert into kept select max(id) + 1 from kept')
      sidecar = await start(sidecar.port)
      await client.query('insert into kept select max(id) + 1 from kept')
      await allSame(those, query)
    })
    // While it was away they tried again and again.
    assert.ok(!seen.during.includes('409') && !seen.resting.includes('409'), `${tally(seen.during)} ${tally(seen.resting)}`)
    assert.ok(seen.resting.length <= those.length * 3, tally(seen.resting))
    const { initial, conflicts } = await cost()
    assert.deepEqual({ initial, conflicts }, { initial: 0, conflicts: 0 }, stop)
  }
})

test('a restart of the cache, with what it kept and without: nobody starts over', async () => {
  await client.query("create table kept_too (id int primary key, v text); insert into kept_too select i, 'v' from generate_series(1, 50) i")
  const query = 'select * from kept_too'
  const those = following({ table: 'kept_too' }, 20)
  await allSame(those, query)
  const before = await cost()
  for (const empty of [false, true]) {
    const seen = await observed(async () => {
      await client.query('insert into kept_too select max(id) + 1 from kept_too')
      await nginx.restart({ empty })
      await client.query('insert into kept_too select max(id) + 1 from kept_too')
      await allSame(those, query)
    })
    assert.ok(!seen.during.includes('409') && !seen.resting.includes('409'), `${tally(seen.during)} ${tally(seen.resting)}`)
    assert.ok(seen.resting.length <= those.length * 3, tally(seen.resting))
  }
  const now = await cost()
  assert.deepEqual([now.initial, now.conflicts], [before.initial, before.conflicts])
  // Those that are new find what is true as well.
  await allSame(following({ table: 'kept_too' }, 5), query)
})

test('two sidecars behind the cache: changes, a rotation, and one of them killed', async () => {
  await client.query("create table paired (id int primary key, v text); insert into paired select i, 'v' from generate_series(1, 50) i")
  const query = 'select * from paired'
  const pair = [await start(), await start()]
  const front = await startNginx(pair.map(({ port }) => port))
  const those = Array.from({ length: 20 }, (_, i) => follow(front.url, { table: 'paired' }, { liveSse: i % 4 === 0 }))
  followers.push(...those)
  const conflicts = async () => (await Promise.all(pair.map(({ url }) => send(url, '/metrics'))))
    .flatMap(({ text }) => [...text.matchAll(/^shapefeed_requests_total\{class="\w+",status="409"\} (\d+)$/gm)]).reduce((sum, [, n]) => sum + Number(n), 0)
  try {
    await allSame(those, query)
    for (let i = 0; i < 5; i++) {
      await client.query('insert into paired select max(id) + 1 from paired')
      await allSame(those, query)
    }
    assert.equal(await conflicts(), 0)
    await client.query("truncate paired; insert into paired values (1, 'after')")
    await allSame(those, query)
    const turned = await conflicts()
    assert.ok(turned > 0 && turned <= those.length * 3, `${turned} conflicts`)
    await pair[0].kill9()
    await client.query("insert into paired values (2, 'one is left')")
    await allSame(those, query)
    pair.shift()
    assert.ok(await conflicts() <= turned, 'nobody started over')
    assert.ok(those.every(({ errors }) => errors.length === 0))
  } finally {
    those.forEach((it) => it.stop())
    await front.stop()
    await Promise.all(pair.map((it) => it.stop()))
  }
})
