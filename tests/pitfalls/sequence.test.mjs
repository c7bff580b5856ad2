// Schedules that concern the sequencer. docs/proofs.md names for each the patch under which it was seen to fail.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { freshDatabase, sleep, startCluster, startStandby, waitFor } from '../lib/index.mjs'
import { sqlstate, trackedDatabase } from './setup.mjs'

const conf = ['max_worker_processes=40', 'wal_level=replica', 'autovacuum=off']
const pair = 'create table n (id int primary key, v int); insert into n values (1, 0), (2, 0)'

let cluster, plain
before(async () => {
  cluster = await startCluster({ conf })
  plain = await startCluster({ preload: false, conf })
})
after(async () => {
  await cluster.stop()
  await plain.stop()
})

const positions = (database) => database.query('select position, xid::text from shapefeed.commit order by position')
const eras = (database) => database.query('select first_position, timeline from shapefeed.era order by first_position')
const waitHead = (database, after) => waitFor(async () => BigInt(await database.head()) > BigInt(after), { what: `a head above ${after}` })

for (const start of ['off', 'on']) test(`C3 what has a position is durable, and so is its transaction; synchronous_commit = ${start} at start`, async (t) => {
  // A WAL writer that never comes: what is not flushed by a commit is lost at an immediate stop.
  const own = await startCluster({ conf: [`synchronous_commit=${start}`, 'wal_writer_delay=10s', 'checkpoint_timeout=1h', 'bgwriter_delay=10s'] })
  t.after(() => own.stop())
  const database = await trackedDatabase(own, pair, ['n'])
  const before = await database.head()
  // The default when the sequencer starts is one thing, what it becomes is another.
  await database.query('alter system set synchronous_commit = off')
  await database.query('select pg_reload_conf()')
  await waitFor(async () => (await database.query('show synchronous_commit'))[0].synchronous_commit === 'off', { what: 'the setting' })
  await database.query('update n set v = 6 where id = 1') // wakes a sequencer that may not have read it yet
  await waitHead(database, before)
  const head = await database.head()
  await database.query('update n set v = 7 where id = 1')
  await waitHead(database, head)
  const served = await positions(database)
  await database.query('update n set v = 8 where id = 2') // this one may be lost
  await own.stopImmediate()
  await own.start()
  const again = await own.connect({ database: database.name })
  const query = async (text) => (await again.query(text)).rows
  const kept = await positions({ query })
  assert.deepEqual(kept.slice(0, served.length), served)
  assert.deepEqual(await query('select v from n where id = 1'), [{ v: 7 }])
})

test('C3 an era begins at each start out of recovery: forked histories share no position', async (t) => {
  const primary = await startCluster({ conf })
  t.after(() => primary.stop())
  const standby = await startStandby(primary)
  t.after(() => standby.stop())
  const database = await trackedDatabase(primary, pair, ['n'])
  await database.query('update n set v = v + 1')
  const common = await database.sequenced()
  await waitFor(async () => await standby.psql('select count(*) from shapefeed.commit', { database: database.name }) === String(common.length),
    { what: 'the standby has it all' })
  await standby.psql('select pg_promote()') // from here on there are two histories
  for (let i = 0; i < 5; i++) await database.query('update n set v = v + 1')
  await database.sequenced()
  const here = await positions(database)
  const session = await standby.connect({ database: database.name })
  const there = { query: async (text) => (await session.query(text)).rows }
  for (let i = 0; i < 5; i++) await session.query('update n set v = v + 10')
  await waitFor(async () => (await positions(there)).length === common.length + 5, { what: 'the promoted standby sequences' })
  const after = (await positions(there)).slice(common.length)
  const known = new Set(here.map(({ position }) => position))
  assert.equal(here.length, common.length + 5)
  assert.deepEqual(after.filter(({ position }) => known.has(position)), [], 'positions that mean something else elsewhere')
  const [before, now] = [await eras(database), await eras(there)]
  assert.deepEqual(now.map(({ timeline }) => timeline), [...before.map(({ timeline }) => timeline), 2])
  assert.ok(BigInt(now.at(-1).first_position) >= BigInt(Date.now() - 600_000) * 1000n, 'an era begins above the clock')

  await database.client.end()
  await primary.restart({ mode: 'immediate' })
  const restarted = await primary.connect({ database: database.name })
  await waitFor(async () => (await eras({ query: async (text) => (await restarted.query(text)).rows })).length === before.length + 1,
    { what: 'an era after an immediate stop' })
})

test('C6 sequence() is refused where it would lose transactions', async () => {
  const database = await trackedDatabase(plain, pair, ['n'], { preloaded: false })
  const call = 'call shapefeed.sequence()'
  const session = await database.connect()
  const blocks = [
    ['begin'], ['begin', 'update n set v = 1'], ['begin', 'savepoint s'],
    [`set default_transaction_isolation = 'repeatable read'`], [`set default_transaction_isolation = 'serializable'`],
    ['create procedure inner_call() language plpgsql as $$ begin update n set v = v; call shapefeed.sequence(); end $$', 'begin'],
  ]
  for (const block of blocks) {
    for (const statement of block) await session.query(statement)
    assert.equal(await sqlstate(session.query(call)), '25001', block.join('; '))
    await session.query('rollback; reset all')
  }
  const inFunction = 'do $$ begin update n set v = v; call shapefeed.sequence(); end $$'
  assert.equal(await sqlstate(session.query(inFunction)), '25001', 'after a write in the same transaction')
  await session.query('create function inside() returns void language plpgsql as $$ begin call shapefeed.sequence(); end $$')
  assert.equal(await sqlstate(session.query('select inside()')), '25001', 'in a function')
  await session.query('set default_transaction_read_only = on')
  assert.equal(await sqlstate(session.query(call)), '25006')
  await session.query('reset all')
  await database.query(`do $$ begin create role nobody_special; exception when duplicate_object then null; end $$`)
  await session.query('set role nobody_special')
  assert.equal(await sqlstate(session.query(call)), '42501')
  assert.equal(await sqlstate((await trackedDatabase(cluster, '', [])).query(call)), '0A000', 'beside a sequencer')
})

test('C6 a writing transaction that calls sequence() loses nothing', async () => {
  const database = await trackedDatabase(plain, `${pair}; create table untracked (id int)`, ['n'], { preloaded: false })
  const writer = await database.connect()
  await writer.query('begin')
  await writer.query('update n set v = 5 where id = 1')
  await database.query('insert into untracked values (1)') // a later xid ends first
  await writer.query('call shapefeed.sequence()').then(() => writer.query('commit'), () => writer.query('rollback; update n set v = 5 where id = 1'))
  for (let i = 0; i < 3; i++) {
    await database.query('insert into untracked values (1)')
    await database.step()
  }
  const loose = await database.query('select xid from shapefeed.change except select xid from shapefeed.commit')
  assert.deepEqual(loose, [])
})

test('C6 the lock comes first, then the snapshot, then the state', async () => {
  const database = await trackedDatabase(plain, pair, ['n'], { preloaded: false })
  const [holder, one, other] = await Promise.all([database.connect(), database.connect(), database.connect()])
  await holder.query('begin')
  await holder.query(`comment on extension shapefeed is 'locked'`) // conflicts with the sequencing lock
  await database.query('update n set v = 1')
  const waiting = [one, other].map((session) => sqlstate(session.query('call shapefeed.sequence()')))
  await waitFor(async () => (await database.query(`select from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'`)).length === 2, { what: 'two calls wait' })
  await database.query('update n set v = 2')
  await holder.query('commit')
  assert.deepEqual(await Promise.all(waiting), [undefined, undefined])
  const both = (await database.query('select xid from shapefeed.change where xid in (select xid from shapefeed.commit)')).length
  assert.equal(both, (await database.query('select xid from shapefeed.change')).length, 'what committed before the lock was had is sequenced')
})

test('C6 extension, track and first changes in one transaction', async () => {
  for (const [where, step] of [[cluster, async () => {}], [plain, (client) => client.query('call shapefeed.sequence()')]]) {
    const database = await freshDatabase(where, { extension: false })
    const client = await database.connect()
    await client.query(pair)
    await client.query('begin')
    await client.query(`create extension shapefeed`)
    await client.query(`call shapefeed.track('n')`)
    await client.query('update n set v = v + 1')
    await client.query('commit')
    await waitFor(async () => {
      await step(client)
      const rows = await client.query(`select t.ready, c.xid is not null done from shapefeed.tracked_tables t,
        shapefeed.change w left join shapefeed.commit c using (xid)`)
      return rows.rows.length > 0 && rows.rows.every(({ ready, done }) => ready && done)
    }, { what: 'the first transaction is sequenced' })
  }
})

test('C3 a server without the library preloaded begins an era at each start', async (t) => {
  const own = await startCluster({ preload: false })
  t.after(() => own.stop())
  const name = (await trackedDatabase(own, pair, ['n'], { preloaded: false })).name
  const count = async () => Number(await own.psql('call shapefeed.sequence(); select count(*) from shapefeed.era', { database: name }))
  assert.deepEqual([await count(), await count()], [1, 1])
  await own.restart({ mode: 'immediate' })
  assert.deepEqual([await count(), await count()], [2, 2])
})

test('H2 no row of shapefeed is updated by sequencing, and an empty step writes nothing', async () => {
  const database = await trackedDatabase(cluster, pair, ['n'])
  const old = await database.connect()
  await old.query('begin isolation level repeatable read')
  await old.query('select pg_current_xact_id()')
  await database.query('create extension pgstattuple')
  const written = async () => (await database.query(`
    select sum(t.tuple_count)::int live, sum(t.dead_tuple_count)::int dead
    from pg_class c, pgstattuple(c.oid::regclass) t where c.relnamespace = 'shapefeed'::regnamespace and c.relkind = 'r'`))[0]
  const start = await database.head()
  await database.query('update n set v = v + 1 where id = 1') // the first one brings the table's layout along
  await waitHead(database, start)
  await database.sequenced()
  const before = await written()
  for (let i = 0; i < 100; i++) {
    const at = await database.head()
    await database.query('update n set v = v + 1 where id = 1')
    await waitHead(database, at)
  }
  const now = await written()
  assert.equal(now.live - before.live, 300, 'a change, a commit and a batch each')
  assert.equal(now.dead - before.dead, 0, 'nothing was updated: the open snapshot would keep what was')

  await database.sequenced()
  const lastBatch = async () => (await database.query('select count(*)::int batches from shapefeed.batch'))[0].batches
  const batches = await lastBatch()
  await sleep(2500) // two turns of an idle sequencer
  assert.equal(await lastBatch(), batches)
})

test('H12 databases with a sequencer can be copied, renamed and dropped; sequencers come and come back', async () => {
  const database = await trackedDatabase(cluster, pair, ['n'])
  await database.query('update n set v = 1')
  await database.sequenced()
  await database.client.end()
  const name = database.name
  const running = (of) => cluster.psql(`select coalesce(worker, '') from shapefeed.status`, { database: of })
  assert.equal(await running(name), 'running')

  const started = Date.now()
  await cluster.psql(`create database ${name}_copy template ${name}`)
  assert.ok(Date.now() - started < 4000, 'Postgres itself waits five seconds for others to go')
  // Source and copy are sequenced each for itself.
  await waitFor(async () => await running(name) === 'running', { what: 'the sequencer of the source is back' })
  const pending = (of) => cluster.psql('select count(*) from (select xid from shapefeed.change except select xid from shapefeed.commit) x', { database: of })
  for (const of of [name, `${name}_copy`]) await cluster.psql('update n set v = v + 1', { database: of })
  for (const of of [name, `${name}_copy`]) await waitFor(async () => await pending(of) === '0', { what: `${of} is sequenced` })
  const feed = (of) => cluster.psql('select feed from shapefeed._head()', { database: of })
  assert.notEqual(await feed(name), await feed(`${name}_copy`), 'a copy is a feed of its own')
  assert.equal(await cluster.psql('select count(*) from shapefeed.era', { database: `${name}_copy` }), '2')

  await cluster.psql(`alter database ${name}_copy rename to ${name}_other`)
  await cluster.psql('update n set v = v + 1', { database: `${name}_other` })
  await waitFor(async () => await pending(`${name}_other`) === '0', { what: 'the renamed one is sequenced' })
  await cluster.psql(`drop database ${name}_other`)
  const before = await cluster.psql(`select worker_pid from shapefeed.status`, { database: name })
  await cluster.psql(`select pg_terminate_backend(${before})`)
  await cluster.psql('update n set v = v + 1', { database: name })
  await waitFor(async () => await pending(name) === '0', { what: 'a sequencer that was killed is started again' })
  await cluster.psql(`drop database ${name}`)
})

test('H12 who may not drop or copy a database does not stop its sequencer', async () => {
  const database = await trackedDatabase(cluster, pair, ['n'])
  await database.query(`do $$ begin create role h12_stranger login; exception when duplicate_object then null; end $$`)
  const stranger = await cluster.connect({ user: 'h12_stranger' })
  const pid = async () => (await database.query('select worker_pid from shapefeed.status'))[0].worker_pid
  const before = await pid()
  assert.ok(before)
  for (const statement of [`drop database ${database.name}`, `create database h12_copy template ${database.name}`,
    `alter database ${database.name} rename to h12_other`]) {
    assert.equal(await sqlstate(stranger.query(statement)), '42501', statement)
    assert.equal(await pid(), before, statement)
  }
  // Nor does what its owner may say of a database that others are in.
  for (const option of ['connection limit 50', 'is_template false', 'set work_mem = default', 'reset all']) {
    await cluster.psql(`alter database ${database.name} ${option}`)
    assert.equal(await pid(), before, option)
  }
})

test('H12 databases can be dropped as soon as the server has started', async (t) => {
  const own = await startCluster({ conf })
  t.after(() => own.stop())
  for (let round = 0; round < 3; round++) {
    const database = await trackedDatabase(own, pair, ['n'])
    assert.deepEqual(await database.query('select worker from shapefeed.status'), [{ worker: 'running' }])
    await database.client.end()
    await own.restart()
    await own.psql(`drop database ${database.name}`)
  }
})

test('H12 the slots of databases that are gone serve others, while the server goes on', async (t) => {
  const own = await startCluster({ conf: [...conf, 'shapefeed.max_databases=2'] })
  t.after(() => own.stop())
  for (let round = 0; round < 3; round++) {
    // The second is dropped without the extension: its slot is nobody's as well.
    const [first, second] = [await trackedDatabase(own, pair, ['n']), await trackedDatabase(own, pair, ['n'])]
    for (const one of [first, second]) assert.deepEqual(await one.query('select worker from shapefeed.status'), [{ worker: 'running' }])
    await second.query('drop extension shapefeed')
    await Promise.all([first.client.end(), second.client.end()])
    await first.drop()
    await second.drop()
  }
})

test('H12 a database that found no slot gets its sequencer when another one is dropped, without a writer', async (t) => {
  const own = await startCluster({ conf: [...conf, 'shapefeed.max_databases=1'] })
  t.after(() => own.stop())
  const first = await trackedDatabase(own, pair, ['n'])
  const second = await freshDatabase(own)
  await second.psql(`${pair}; call shapefeed.track('n')`)
  const worker = () => second.psql('select worker from shapefeed.status')
  assert.notEqual(await worker(), 'running')
  await first.client.end()
  await first.drop()
  await waitFor(async () => await worker() === 'running', { what: 'a sequencer runs', timeoutMs: 20_000 })
  await waitFor(async () => await second.psql('select ready from shapefeed.tracked_tables') === 't', { what: 'what waited is sequenced' })
})

test('H12 a database without the extension keeps no slot from others, and gets one when it has it again', async (t) => {
  const own = await startCluster({ conf: [...conf, 'shapefeed.max_databases=1'] })
  t.after(() => own.stop())
  const first = await trackedDatabase(own, pair, ['n'])
  const second = await freshDatabase(own)
  await second.psql(`${pair}; call shapefeed.track('n')`)
  const running = (database, what) => waitFor(async () => await database.psql('select worker from shapefeed.status') === 'running',
    { what, timeoutMs: 20_000 })
  await first.query('drop extension shapefeed')
  await running(second, 'the second has a sequencer')
  await first.query('create extension shapefeed')
  await second.psql('drop extension shapefeed')
  await running(first, 'the first has one again')
})

test('H12 the launcher finds the databases at start, without a writer', async (t) => {
  const own = await startCluster({ conf })
  t.after(() => own.stop())
  const name = (await trackedDatabase(own, pair, ['n'])).name
  await own.restart()
  await waitFor(async () => await own.psql('select worker from shapefeed.status', { database: name }) === 'running',
    { what: 'a sequencer runs' })
})

test('H13 wait() wakes on the primary and on a standby, and nothing is notified', async (t) => {
  const primary = await startCluster({ conf })
  t.after(() => primary.stop())
  const standby = await startStandby(primary)
  t.after(() => standby.stop())
  const database = await trackedDatabase(primary, pair, ['n'])
  const remote = await standby.connect()
  assert.equal(await sqlstate(remote.query('listen x')), '25006', 'a standby refuses LISTEN')
  await remote.end()
  // A listener that never reads: what is notified stays in the queue.
  const listener = await database.connect()
  await listener.query('listen x')
  await listener.query('begin')
  await listener.query('select 1')

  await waitFor(() => standby.psql('select 1 from shapefeed.batch', { database: database.name }), { what: 'the standby has the database' })
  for (const server of [primary, standby]) {
    const waiter = await server.connect({ database: database.name })
    const head = async () => (await waiter.query('select head from shapefeed._head()')).rows[0].head
    await waitFor(async () => await head() === await database.head(), { what: 'the same head' })
    for (let round = 0; round < 3; round++) {
      const after = await head()
      const started = Date.now()
      const waited = waiter.query(`call shapefeed.wait(${after}, 5000)`).then(() => Date.now() - started)
      await sleep(100)
      await database.query('update n set v = v + 1')
      assert.ok(await waited < 2500, 'woken, not timed out')
      assert.ok(BigInt(await head()) > BigInt(after))
    }
    await waiter.end()
  }
  const session = await standby.connect({ database: database.name })
  assert.equal(await sqlstate(session.query('call shapefeed.sequence()')), '25006', 'a standby does not sequence')
  assert.equal(await sqlstate(session.query(`call shapefeed.track('n')`)), '25006')

  for (let i = 0; i < 300; i++) {
    const at = await database.head()
    await database.query('update n set v = v + 1 where id = 1')
    await database.query(`call shapefeed.wait(${at}, 5000)`)
  }
  assert.deepEqual(await database.query('select pg_notification_queue_usage() usage'), [{ usage: 0 }])
})

test('H13 a waiting session holds nothing back, and says where it would', async () => {
  const database = await trackedDatabase(cluster, pair, ['n'])
  for (const [server, target] of [['preloaded', database], ['not preloaded', await trackedDatabase(plain, pair, ['n'], { preloaded: false })]]) {
    const waiter = await target.connect()
    const { pid } = (await waiter.query('select pg_backend_pid() pid')).rows[0]
    const head = await target.head()
    const waiting = waiter.query(`call shapefeed.wait(${head}, 1500)`)
    await sleep(300)
    const seen = []
    for (let i = 0; i < 20; i++) {
      seen.push(...await target.query(`select state, wait_event_type, backend_xmin from pg_stat_activity where pid = ${pid}`))
      await sleep(20)
    }
    assert.ok(seen.every(({ state }) => state === 'active'), 'it waits')
    const holding = seen.filter((row) => row.backend_xmin !== null).length
    assert.ok(server === 'preloaded' ? holding === 0 : holding < 10, `${server}: xmin held in ${holding} of ${seen.length} looks`)
    await waiting
    for (const block of [['begin'], [`set default_transaction_isolation = 'repeatable read'`]]) {
      for (const statement of block) await waiter.query(statement)
      assert.equal(await sqlstate(waiter.query(`call shapefeed.wait(${head}, 100)`)), '25001', block.join())
      await waiter.query('rollback; reset all')
    }
  }
})

test('H14 the sequencer is no party to serializable transactions', async () => {
  const database = await trackedDatabase(cluster, `${pair}; create table other (id int primary key, v int); insert into other values (1, 0)`, ['n'])
  const serializable = `default_transaction_isolation = 'serializable'`
  await database.query(`alter database ${database.name} set ${serializable}`)
  const [{ worker_pid: pid }] = await database.query('select worker_pid from shapefeed.status')
  await database.query('select pg_terminate_backend($1)', [pid]) // the next one begins with that default
  await database.sequenced()
  await waitFor(async () => {
    await database.query('update n set v = v where id = 2')
    const [row] = await database.query('select worker_pid from shapefeed.status')
    return row.worker_pid && row.worker_pid !== pid
  }, { what: 'another sequencer' })
  await database.sequenced()

  const [writer, reader, holder] = await Promise.all([database.connect(), database.connect(), database.connect()])
  const head = await database.head()
  await writer.query('begin isolation level serializable')
  await writer.query('select v from other where id = 1')
  await writer.query('update n set v = v + 1 where id = 1')
  // The sequencer reads the log now, and is kept from ending its transaction.
  await holder.query('begin isolation level read committed')
  await holder.query(`do $$ begin for i in 0..7 loop execute format('lock table shapefeed.batch_%s in share mode', i); end loop; end $$`)
  await database.query('begin isolation level read committed; update n set v = v + 1 where id = 2; commit')
  await waitFor(async () => (await database.query(`select from pg_stat_activity where backend_type = 'shapefeed sequencer'
    and datname = current_database() and wait_event_type = 'Lock'`)).length === 1, { what: 'the sequencer is held' })
  await reader.query('begin isolation level serializable')
  await reader.query('update other set v = v + 1 where id = 1')
  await reader.query('commit')
  assert.equal(await sqlstate(writer.query('commit')), undefined)
  await holder.query('commit')
  await waitHead(database, head)
  const log = await database.sequenced()
  assert.equal(log.at(-1).records.length, 1)
})

test('M8 COMMIT PREPARED wakes the sequencer', async () => {
  const database = await trackedDatabase(cluster, pair, ['n'])
  const slow = []
  for (let round = 0; round < 10; round++) {
    await database.query(`begin; update n set v = v + 1; prepare transaction 'm8_${round}'`)
    const head = await database.head()
    const started = Date.now()
    await database.query(`commit prepared 'm8_${round}'`)
    await waitHead(database, head)
    if (Date.now() - started > 300) slow.push(Date.now() - started)
    assert.deepEqual(await database.query('select gid from pg_prepared_xacts where database = current_database()'), [])
  }
  assert.ok(slow.length < 3, `ms from COMMIT PREPARED to its position, above 300: ${slow}`)
})

test('H12 a slot that is given back in front of a database\'s own does not become its second one', async (t) => {
  const own = await startCluster({ conf })
  t.after(() => own.stop())
  const [first, second] = [await trackedDatabase(own, pair, ['n']), await trackedDatabase(own, pair, ['n'])]
  await first.client.end()
  await first.drop()
  const sequencers = async () => own.psql(`select count(*) from pg_stat_activity
    where datname = '${second.name}' and backend_type = 'shapefeed sequencer'`)
  for (let i = 0; i < 30; i++) {
    await second.query('update n set v = v + 1')
    assert.equal(await sequencers(), '1')
    await sleep(50)
  }
  const twice = await second.query('select xid from shapefeed.commit group by xid having count(*) > 1')
  assert.deepEqual(twice, [])
  assert.equal((await eras(second)).length, 1)
})

test('an extension that is made anew goes on above every position of the old one', async () => {
  const database = await trackedDatabase(cluster, pair, ['n'])
  let before = BigInt(await database.head())
  for (let i = 0; i < 6; i++) {
    await database.query('drop extension shapefeed cascade')
    await database.query('create extension shapefeed')
    await database.query(`call shapefeed.track('n')`)
    await waitFor(async () => (await eras(database)).length === 1, { what: 'an era' })
    const [{ first_position: first }] = await eras(database)
    assert.ok(BigInt(first) > before, `${first} after ${before}`)
    before = BigInt(first)
  }
})
