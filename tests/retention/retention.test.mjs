// The log stays as small as it is told to, clients that stay do not notice, and those that come back too late refetch once.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { follow, untilSame } from '../lib/followers.mjs'
import { ShapeApi, startCluster, startProxy, startSidecar, waitFor } from '../lib/index.mjs'
import { database, filler, logBytes, retentionBytes, small, untilEmptied } from './setup.mjs'

let cluster
before(async () => { cluster = await startCluster({ conf: [...small, 'max_worker_processes=40'] }) })
after(async () => { await cluster.stop() })

async function sqlstate(promise) {
  try {
    await promise
  } catch (error) {
    return error.code ?? String(error)
  }
}

test('by size: the log stays bounded; a client that stays is not disturbed, one that was away refetches once', async () => {
  const site = await database(cluster)
  const fill = await filler(site)
  await site.query('create table items (id int primary key, v int); insert into items select g, 0 from generate_series(1, 20) g')
  const sidecar = await startSidecar({ databaseUrl: site.url, env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '1000' } })
  const proxy = await startProxy(sidecar.url)
  const api = new ShapeApi(sidecar.url)

  const away = await api.follow({ table: 'items' })
  await site.query('update items set v = 1 where id = 1')
  const left = await away.sync()
  assert.equal(left.seen.length, 1)
  const idle = follow(proxy.url, { table: 'items' }) // nothing happens to its table while the log is turned over
  await untilSame(idle, site.client, 'select * from items')
  const busy = follow(proxy.url, { table: 'big', columns: ['id'] })
  await untilSame(busy, site.client, 'select id from big')

  let most = 0
  for (let i = 0; i < 30; i++) {
    await fill(1, { pauseMs: 300 })
    await untilSame(busy, site.client, 'select id from big')
    most = Math.max(most, await logBytes(site))
  }
  await untilEmptied(site, Number(away.handle.split('-')[1]))
  assert.ok(most < 1.6 * retentionBytes, `the log had ${most} bytes`)
  await waitFor(async () => await logBytes(site) < retentionBytes * 1.2, { what: 'the log is down to its size' })
  assert.ok(await logBytes(site) > retentionBytes / 3, 'and it is not emptied for nothing')
  await site.query('update items set v = 2 where id = 2')
  await untilSame(idle, site.client, 'select * from items')
  await untilSame(busy, site.client, 'select id from big')
  assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 2 })

  const refused = await api.get({ table: 'items', handle: away.handle, offset: away.offset })
  assert.equal(refused.status, 409, refused.text)
  assert.notEqual(refused.handle, away.handle)
  const again = await api.follow({ table: 'items', handle: refused.handle })
  assert.deepEqual(again.values, (await site.query('select id::text, v::text from items order by id::text')))
  assert.equal(again.answers[0].handle, refused.handle, 'one 409, then a handle that holds')

  for (const client of [idle, busy]) client.stop()
  api.close()
  await proxy.stop()
  await sidecar.stop()
})

test('by time: what is older than the retention goes, resting positions keep an idle client', async () => {
  const timed = await startCluster({ conf: ['shapefeed.retention=10s', 'max_worker_processes=40'] })
  const site = await database(timed)
  await site.query('create table items (id int primary key, v int); insert into items values (1, 0)')
  await site.query('create table other (id int primary key, v int); insert into other values (1, 0)')
  await site.query(`call shapefeed.track('other')`)
  const sidecar = await startSidecar({ databaseUrl: site.url, env: { SHAPEFEED_LONG_POLL_TIMEOUT_MS: '1000' } })
  const proxy = await startProxy(sidecar.url)
  const api = new ShapeApi(sidecar.url)
  const away = await api.follow({ table: 'items' })
  const idle = follow(proxy.url, { table: 'items' })
  await untilSame(idle, site.client, 'select * from items')
  const pin = Number(away.handle.split('-')[1])
  const began = Date.now()
  await waitFor(async () => {
    await site.query('update other set v = v + 1')
    return Number(await site.value('select coalesce(max(position), 0) from shapefeed.floor')) > pin
  }, { timeoutMs: 40_000, intervalMs: 50, what: 'the log is emptied past the first handle' })
  assert.ok(Date.now() - began > 9000, 'not before its time')
  const oldest = await site.value('select extract(epoch from clock_timestamp() - min(ended_at)) from shapefeed.batch')
  assert.ok(Number(oldest) < 16, `the oldest batch is ${oldest} s old`)
  assert.equal((await api.get({ table: 'items', handle: away.handle, offset: away.offset })).status, 409)
  await site.query('update items set v = 7')
  await untilSame(idle, site.client, 'select * from items')
  assert.deepEqual(proxy.refetches(), { conflicts: 0, initial: 1 })
  idle.stop()
  api.close()
  await proxy.stop()
  await sidecar.stop()
  await timed.stop()
})

test('C5 a reader that is at it meanwhile gets all of a stretch, or an error; never a part', async () => {
  const site = await database(cluster)
  const fill = await filler(site)
  const reader = await site.connect()
  const outcomes = { whole: 0, refused: 0 }
  let reading = true
  const from = Number(await site.value('select head from shapefeed._head()'))
  let start = from
  const reads = (async () => {
    while (reading) {
      try {
        // Each transaction inserts 750 rows whose ids follow one another.
        const { rows } = await reader.query(`
          select min((value ->> 'id')::int) first, max((value ->> 'id')::int) last, count(*)::int n, max(position) upto
          from shapefeed.changes('big', from_position => $1)`, [start])
        const [{ first, last, n }] = rows
        if (n > 0) assert.equal(n, last - first + 1)
        if (start === from && n > 0) assert.equal(first, 1)
        outcomes.whole++
      } catch (error) {
        if (error.code !== 'SF409') throw error
        outcomes.refused++
        start = Number(await site.value('select min(position) from shapefeed.batch where position >= (select max(position) from shapefeed.floor)'))
      }
    }
  })()
  for (let i = 0; i < 40; i++) await fill(1)
  reading = false
  await reads
  assert.ok(outcomes.whole > 0 && outcomes.refused > 0, JSON.stringify(outcomes))
})

test('H4 a member that somebody reads stays until he has read it; readers of ours that take too long are cancelled', async () => {
  const site = await database(cluster)
  const fill = await filler(site)
  await fill(2)
  await waitFor(async () => (await site.query('select from shapefeed.commit c join shapefeed.change using (xid) limit 1')).length === 1)
  const members = await site.query('select distinct member from shapefeed.change')
  const held = await site.connect()
  await held.query('begin')
  for (const { member } of members) await held.query(`lock table shapefeed.change_${member} in access share mode`)
  const before = await site.value('select count(*)::int from shapefeed.commit')
  await fill(20)
  await waitFor(() => cluster.log().includes('cannot drop the oldest changes'), { timeoutMs: 20_000, what: 'the server log names who is in the way' })
  const kept = await site.value('select count(*)::int from shapefeed.change where member = $1', [members[0].member])
  assert.ok(kept > 0 && before > 0)
  assert.match(cluster.log(), new RegExp(`used by process ${held.processID}`))
  const heldBy = async () => (await site.status()).held_by
  await waitFor(async () => (await heldBy()).includes(held.processID), { what: 'status names it' })
  assert.deepEqual(await heldBy(), [held.processID])
  await held.query('commit')
  assert.deepEqual(await heldBy(), [])
  await untilEmptied(site)

  const ours = await site.connect()
  await ours.query('begin')
  for (let member = 0; member < 8; member++) await ours.query(`lock table shapefeed.change_${member} in access share mode`)
  await ours.query('lock table shapefeed.floor in access share mode')
  const reading = sqlstate(ours.query('select pg_sleep(60)'))
  const upTo = Number(await site.value('select max(position) from shapefeed.floor'))
  for (let i = 0; i < 12; i++) await fill(1)
  assert.equal(await reading, '57014')
  await ours.query('rollback')
  await untilEmptied(site, upTo)
})

test('I6 a writer does not wait for the one that empties', async () => {
  const site = await database(cluster)
  const fill = await filler(site)
  const locker = await site.connect()
  await locker.query('begin')
  for (let member = 0; member < 7; member++) await locker.query(`lock table shapefeed.change_${member} in access exclusive mode`)
  const writer = await site.connect()
  await writer.query(`set lock_timeout = '5s'`)
  const began = performance.now()
  await writer.query(`insert into big (v) values ('x')`)
  assert.ok(performance.now() - began < 1000)
  await locker.query('rollback')
  assert.deepEqual(await site.query('select distinct member from shapefeed.change c where c.xid = (select max(xid) from shapefeed.change)'), [{ member: 7 }])

  // With the log being turned over, no commit takes as long as a wait for a lock would.
  const slow = []
  let writing = true
  const writes = (async () => {
    while (writing) {
      const at = performance.now()
      await writer.query(`insert into big (v) values ('x')`)
      slow.push(performance.now() - at)
    }
  })()
  const emptied = () => site.value('select count(*)::int from shapefeed.floor')
  const before = await emptied()
  await waitFor(async () => {
    await fill(5)
    return await emptied() > before + 1
  }, { timeoutMs: 60_000, what: 'the log is emptied meanwhile' })
  writing = false
  await writes
  slow.sort((a, b) => a - b)
  console.log(`commits while the log is emptied: p50 ${slow[slow.length >> 1].toFixed(1)} ms, p99 ${slow[Math.floor(slow.length * 0.99)].toFixed(1)} ms, most ${slow.at(-1).toFixed(1)} ms`)
})

test('a transaction that is open, or prepared and forgotten, keeps what it wrote and nothing else', async () => {
  const site = await database(cluster)
  const fill = await filler(site)
  const open = await site.connect()
  await open.query(`begin; insert into big (v) values ('open')`)
  const prepared = await site.connect()
  await prepared.query(`begin; insert into big (v) values ('prepared'); prepare transaction 'forgotten ${site.name}'`)
  await fill(30, { pauseMs: 200 })
  await untilEmptied(site)
  const { prepared: named, gaps } = await site.status()
  assert.deepEqual(named, [`forgotten ${site.name}`])
  assert.deepEqual(gaps, [])
  assert.ok(await logBytes(site) < 2 * retentionBytes)
  await waitFor(() => cluster.log().includes(`prepared transaction 'forgotten ${site.name}'`), { timeoutMs: 20_000, what: 'a warning names it' })

  const head = Number(await site.value('select head from shapefeed._head()'))
  await open.query('commit')
  await prepared.query(`commit prepared 'forgotten ${site.name}'`)
  await waitFor(async () => {
    const rows = await site.query(`select value ->> 'v' v from shapefeed.changes('big', from_position => $1) order by 1`, [head])
    return JSON.stringify(rows) === JSON.stringify([{ v: 'open' }, { v: 'prepared' }])
  }, { what: 'both have arrived' })
  const member = await site.value(`select member from shapefeed.change order by xid limit 1`)
  assert.ok(member >= 0)
})

test('a snapshot that takes longer than the log reaches back is refused, and may be tried again', async () => {
  const site = await database(cluster)
  const fill = await filler(site)
  await fill(3)
  const reader = await site.connect()
  const definition = await site.value(`select shapefeed._define('{public,big}', null, null, null, 'default', 'full', null)`)
  const position = await waitFor(() => site.value('select position from shapefeed._pin($1)', [definition]))
  await reader.query('begin')
  const literal = JSON.stringify(definition).replaceAll("'", "''")
  await reader.query(`declare c no scroll cursor for select shapefeed._snapshot('${literal}', ${position}, 10000)`)
  await reader.query('fetch 2 from c')
  for (let i = 0; i < 25; i++) await fill(1)
  await untilEmptied(site, Number(position))
  assert.equal(await sqlstate(reader.query('fetch all from c')), 'SF503')
  await reader.query('rollback')
})

test('over HTTP a snapshot that takes longer than the log reaches back is a 503, and a later one succeeds', async () => {
  const site = await database(cluster)
  await site.query(`create function tarry(id int) returns boolean immutable language plpgsql as $$ begin perform pg_sleep(0.05); return id > 0; end $$;
    create table items (id int primary key); insert into items select generate_series(1, 100); call shapefeed.track('items')`)
  await site.query(`alter database "${site.name}" set shapefeed.allowed_functions = 'public.tarry'`)
  const fill = await filler(site)
  const sidecar = await startSidecar({ databaseUrl: site.url })
  const start = () => fetch(`${sidecar.url}/v1/shape?${new URLSearchParams({ table: 'items', where: 'tarry(id)', offset: '-1' })}`)
  const before = Number(await site.value('select head from shapefeed._head()'))
  const slow = start()
  await waitFor(async () => (await site.query(`select from pg_stat_activity where datname = $1 and query like '%_snapshot%' and state = 'active' and pid <> pg_backend_pid()`, [site.name])).length > 0,
    { what: 'the snapshot is being taken' })
  for (let i = 0; i < 25; i++) await fill(1)
  await untilEmptied(site, before)
  const answer = await slow
  assert.equal(answer.status, 503, await answer.text())
  assert.ok(Number(answer.headers.get('retry-after')) >= 1)
  await waitFor(async () => (await start()).status === 200, { timeoutMs: 60_000, what: 'a snapshot succeeds' })
  await sidecar.stop()
})
