// Schedules that concern what is captured. docs/proofs.md names for each the patch under which it was seen to fail.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { pgBin, root, scratchDir, startCluster } from '../lib/index.mjs'
import { applied, endsOf, replay, sqlstate, trackedDatabase } from './setup.mjs'

let cluster, plain
before(async () => {
  cluster = await startCluster({ conf: ['max_worker_processes=40'] }) // a sequencer for each database
  plain = await startCluster({ preload: false })
})
after(async () => {
  await cluster.stop()
  await plain.stop()
})

test('C1 triggers that write siblings: the effect goes by versions, not by the order of capture', async () => {
  const database = await trackedDatabase(cluster, `
    create table n (id int primary key, v int);
    create function bump_others() returns trigger language plpgsql as $$ begin
      if pg_trigger_depth() = 1 then update n set v = v + 100 where id <> new.id and id < 5; end if; return null; end $$;
    create function delete_other() returns trigger language plpgsql as $$ begin
      delete from n where id = new.id + 1; return null; end $$;
    create function replace() returns trigger language plpgsql as $$ begin
      delete from n where id = new.id; return new; end $$;
    create trigger a_bump after insert on n for each row when (new.id < 5) execute function bump_others();
    create trigger z_delete after insert on n for each row when (new.id = 5) execute function delete_other();
    create trigger a_replace before insert on n for each row when (new.id = 7) execute function replace();
  `, ['n'])
  await database.query('insert into n values (1, 1), (2, 2)')
  await database.query('insert into n values (5, 5), (6, 6)') // the row 6 is deleted before its insert is captured
  await database.query('insert into n values (7, 0)')
  await database.query('begin; insert into n values (7, 70); savepoint s; update n set v = -1; rollback to s; commit')
  await database.query('begin; update n set v = v + 1; update n set v = v + 1 where id < 3; delete from n where id = 7; commit')
  const truth = await database.query('select * from n order by id')
  assert.deepEqual(truth.map(({ id }) => id), [1, 2, 5])
  const log = await database.sequenced()
  assert.deepEqual(replay(log, 'n'), truth)
  const operations = await database.query(`select operation, key, value from shapefeed.changes('n', columns => '{id,v}')`)
  assert.deepEqual(applied(operations), truth.map(({ id, v }) => ({ id: String(id), v: String(v) })))
  // The schedule is what it says: captured one after the other, the changes would give something else.
  const last = new Map()
  for (const record of log.flatMap(({ records }) => records)) {
    if (record.old) last.delete(record.old.row.id)
    if (record.new) last.set(record.new.row.id, record.new.row)
  }
  assert.notDeepEqual([...last.values()].sort((a, b) => a.id - b.id), truth)
})

test('C1 storage swapped between two changes of a transaction ends the epoch', async () => {
  const database = await trackedDatabase(cluster, 'create table n (id int primary key, v int)', ['n'])
  await database.query('insert into n select g, 0 from generate_series(1, 5) g')
  await database.query('cluster n using n_pkey')
  await database.query('update n set v = 1')
  const [{ relid }] = await database.query(`select 'n'::regclass::oid relid`)
  assert.deepEqual(endsOf(await database.sequenced(), relid), ['track'], 'alone it ends nothing')
  await database.query('begin; update n set v = v + 1; cluster n; update n set v = v + 1; commit')
  assert.deepEqual(endsOf(await database.sequenced(), relid), ['track', 'storage'])
})

test('tracked by several at the same time: one of them begins the table, the others find it begun', async () => {
  const database = await trackedDatabase(cluster, '', [])
  const sessions = await Promise.all([1, 2, 3, 4].map(() => database.connect()))
  for (let i = 0; i < 10; i++) {
    await database.query(`create table t${i} (id int primary key)`)
    await Promise.all(sessions.map((session) => session.query(`call shapefeed.track('t${i}')`)))
    const [{ relid }] = await database.query(`select 't${i}'::regclass::oid relid`)
    assert.deepEqual(endsOf(await database.sequenced(), relid), ['track'])
  }
})

test('C7 the first capture of a session, inside a savepoint, of a library that was not preloaded', async () => {
  const database = await trackedDatabase(plain, 'create table n (id int primary key, v int); insert into n values (1, 0), (2, 0)', ['n'],
    { preloaded: false })
  const before = (await database.sequenced()).length
  const run = async (...statements) => {
    const session = await database.connect()
    for (const statement of statements) await session.query(statement)
    await session.end()
    return (await database.sequenced()).slice(before).map(({ records }) => records.map((r) => `${r.kind}${r.new.row.id}`).join())
  }
  assert.deepEqual(await run('begin', 'savepoint s', 'update n set v = 9', 'rollback to s', 'commit'), [])
  assert.deepEqual(await run('begin', 'savepoint a', 'savepoint b', 'update n set v = 9', 'release b', 'rollback to a', 'commit'), [])
  assert.deepEqual(await run('begin', 'savepoint a', 'update n set v = 9 where id = 1', 'release a', 'savepoint b',
    'update n set v = 9 where id = 2', 'rollback to b', 'commit'), ['U1'])
  assert.deepEqual(await database.query('select v from n order by id'), [{ v: 9 }, { v: 0 }])
})

test('C7 the layout of changes that were all rolled back is written down with the next ones', async () => {
  const database = await trackedDatabase(cluster, 'create table n (id int primary key, v int); insert into n values (1, 1)', ['n'])
  const session = await database.connect()
  const run = async (...statements) => { for (const statement of statements) await session.query(statement) }
  await run('alter table n add column w int')
  await database.sequenced()
  const [{ head }] = await database.query('select head from shapefeed.status')
  await run('begin', 'savepoint s', 'insert into n values (2, 2, 2)', 'rollback to s', 'commit', 'insert into n values (3, 3, 3)')
  await session.end()
  await database.sequenced()
  assert.deepEqual(await database.query(`select key, operation from shapefeed.changes('n', from_position => ${head})`), [{ key: '"public"."n"/"3"', operation: 'insert' }])
})

/** Private memory of a client's backend, in MB. */
async function memoryOf(session) {
  const { pid } = (await session.query('select pg_backend_pid() pid')).rows[0]
  return Number(/RssAnon:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024
}

test('H9 a loop of subtransactions spills: memory is bounded, and what is rolled back is cut from the file', async () => {
  const database = await trackedDatabase(cluster, 'create table m (id int primary key, pad text)', ['m'])
  const session = await database.connect()
  await session.query(`set shapefeed.capture_memory = '1MB'`)
  const grown = async (body) => {
    await session.query(`begin; insert into m values (0, '')`)
    const before = await memoryOf(session)
    await session.query(`do $$ begin for i in 1..40000 loop ${body} end loop; end $$`)
    const growth = await memoryOf(session) - before
    await session.query('rollback')
    return growth
  }
  const insert = `insert into m values (i, repeat(md5(i::text), 30));`
  const plainLoop = await grown(insert)
  const subtransactions = await grown(`begin ${insert} exception when others then null; end;`)
  assert.ok(plainLoop < 20, `${plainLoop} MB for 38 MB of rows`)
  assert.ok(subtransactions - plainLoop < 15, `${subtransactions} MB, without subtransactions ${plainLoop} MB, for 38 MB of rows`)

  // The file is made in a subtransaction that is rolled back, and is written on and cut after that.
  const rows = (from, to) => `insert into m select g, repeat(md5(g::text), 30) from generate_series(${from}, ${to}) g`
  for (const statement of ['begin', rows(1, 10), 'savepoint a', rows(11, 3000), 'rollback to a', rows(21, 3000), 'savepoint b',
    rows(3001, 6000), 'savepoint c', rows(6001, 9000), 'release c', 'rollback to b', rows(9001, 9010), 'commit']) {
    await session.query(statement)
  }
  const log = await database.sequenced()
  const captured = log.flatMap(({ records }) => records).map((record) => record.new.row.id)
  const truth = await database.query('select id from m order by id')
  assert.equal(truth.length, 3000)
  assert.deepEqual(captured, truth.map(({ id }) => id))
})

test('H9 the file is not counted against temp_file_limit, which must not fail a write that it would not fail untracked', async () => {
  const database = await trackedDatabase(cluster, 'create table m (id int primary key, pad text)', ['m'])
  await database.query(`set temp_file_limit = '1MB'; set shapefeed.capture_memory = '64kB'`)
  const rows = (from) => `insert into m select g, repeat(md5(g::text), 30) from generate_series(${from}, ${from} + 4999) g`
  await database.query(rows(1))
  await database.query(`begin; savepoint a; ${rows(5001)}; savepoint b; ${rows(10001)}; rollback to b; commit`)
  assert.equal((await database.sequenced()).flatMap(({ records }) => records).length, 10_000)
  assert.equal(await sqlstate(database.query('select count(*) from (select * from m order by pad) x')), '53400', 'it still holds for queries')
})

test('H10 a counter beside a large out-of-line value: the value is not copied until it changes', async () => {
  const database = await trackedDatabase(cluster, `
    create table d (id int primary key, n int, body text);
    alter table d alter body set storage external;
  `, ['d'])
  await database.query(`insert into d select 1, 0, string_agg(md5(g::text), '') from generate_series(1, 32768) g`)
  const bytesPerUpdate = async () => {
    const [{ at }] = await database.query('select pg_current_wal_insert_lsn() at')
    for (let i = 0; i < 20; i++) await database.query('update d set n = n + 1')
    await database.sequenced()
    const [{ bytes }] = await database.query('select (pg_current_wal_insert_lsn() - $1::pg_lsn)::int8 / 20 bytes', [at])
    return Number(bytes)
  }
  await database.query('checkpoint')
  await bytesPerUpdate() // with the full pages that follow a checkpoint
  const bytes = await bytesPerUpdate()
  assert.ok(bytes < 3000, `${bytes} bytes of WAL for an update beside 1 MB`)

  await database.query(`update d set body = 'short'`)
  const records = (await database.sequenced()).flatMap((transaction) => transaction.records).filter(({ kind }) => kind === 'U')
  const [counted, changed] = [records[0], records.at(-1)]
  assert.ok(counted.old.row.body.external > 0)
  assert.deepEqual(counted.old.row.body, counted.new.row.body, 'left alone: the same pointer in both images')
  assert.deepEqual(counted.old.copied, [])
  assert.equal(changed.old.row.body.length, 1 << 20, 'changed: the old value is in the old image')
  assert.deepEqual(changed.old.copied, [{ attribute: 3, valueId: counted.old.row.body.external }])
  assert.equal(changed.new.row.body, 'short')
})

test('H11 TRUNCATE of a leaf ends the epoch of all tables above it, also of a leaf that came later; of no other leaf', async () => {
  const database = await trackedDatabase(cluster, `
    create table p (id int) partition by range (id);
    create table p1 partition of p for values from (0) to (100);
    create table p2 partition of p for values from (100) to (200) partition by range (id);
    create table p2a partition of p2 for values from (100) to (150);
  `, ['p'])
  const shapes = await database.query(`
    select t as "table", shapefeed._define(array['public', t], null, null, null, 'default', 'full', null) as definition
    from unnest('{p,p1,p2,p2a}'::text[]) t`)
  /** Names of the tables whose shapes end by a statement. */
  const ended = async (statement) => {
    await database.sequenced()
    const head = await database.head()
    await database.query(statement)
    await database.sequenced()
    const gone = []
    for (const { table, definition } of shapes) {
      const [{ state, reason }] = await database.query('select * from shapefeed._place($1, $2, $2)', [definition, head])
      if (state === 'gone') gone.push(`${table}: ${reason}`)
    }
    return gone
  }
  const truncated = (...tables) => tables.map((table) => `${table}: truncate`)
  assert.deepEqual(await ended('truncate p1'), truncated('p', 'p1'))
  assert.deepEqual(await ended('truncate p2a'), truncated('p', 'p2', 'p2a'))
  await database.query('create table p2b partition of p2 for values from (150) to (200)')
  assert.deepEqual(await ended('truncate p2b'), truncated('p', 'p2'))
  await database.query('create table p3 (id int); alter table p attach partition p3 for values from (200) to (300)')
  assert.deepEqual(await ended('truncate p3'), truncated('p'))
  await database.query('create schema s create table p4 partition of public.p for values from (300) to (400)')
  assert.deepEqual(await ended('truncate s.p4'), truncated('p'))
  assert.deepEqual(await ended('truncate p2'), truncated('p', 'p2', 'p2a'))
  assert.deepEqual(await ended('begin; truncate p1; rollback'), [])
})

test('M1 a pooled session survives DROP and CREATE EXTENSION, and a log table that is gone', async () => {
  const database = await trackedDatabase(cluster, 'create table n (id int primary key, v int); insert into n values (1, 0)', ['n'])
  const pooled = await database.connect()
  const warnings = []
  pooled.on('notice', ({ severity, message }) => severity === 'WARNING' && warnings.push(message))
  await pooled.query('update n set v = v + 1')
  await database.query('drop extension shapefeed')
  await pooled.query('update n set v = v + 1')
  await database.query('create extension shapefeed')
  await pooled.query('update n set v = v + 1')
  await database.query(`call shapefeed.track('n')`)
  await pooled.query('update n set v = v + 1')
  const log = await database.sequenced()
  assert.deepEqual(log.flatMap(({ records }) => records).map((record) => record.new.row), [{ id: 1, v: 4 }])
  assert.deepEqual(warnings, [])

  await database.query(`do $$ begin for i in 0..7 loop
    execute format('alter extension shapefeed drop table shapefeed.change_%s', i);
    execute format('alter table shapefeed.change_%s set schema public', i);
  end loop; end $$`)
  await pooled.query('update n set v = v + 1')
  assert.equal(warnings.length, 1)
  assert.deepEqual(await database.query('select v from n'), [{ v: 5 }])
})

let lateWriter

/** The module whose callback writes at the end of pre-commit, compiled. */
function lateWriterLibrary() {
  if (!lateWriter) {
    lateWriter = join(scratchDir('late-writer'), 'late_writer.so')
    const headers = execFileSync(join(pgBin, 'pg_config'), ['--includedir-server'], { encoding: 'utf8' }).trim()
    const source = join(root, 'tests/pitfalls/late_writer/late_writer.c')
    execFileSync('gcc', ['-shared', '-fPIC', '-O1', `-I${headers}`, '-o', lateWriter, source])
  }
  return lateWriter
}

const lateStatement = `set late_writer.statement = 'update n set v = v + 100 where id = 2'`

test('M5 a callback that writes a tracked table after our own pre-commit', async () => {
  const database = await trackedDatabase(plain, 'create table n (id int primary key, v int); create table untracked (id int)', ['n'],
    { preloaded: false })
  await database.query('insert into n values (1, 0), (2, 0)')
  const session = await database.connect()
  const warnings = []
  session.on('notice', ({ severity, message }) => severity === 'WARNING' && warnings.push(message))
  await session.query(`load '${lateWriterLibrary()}'`) // before ours: its callback runs after ours
  await session.query(lateStatement)
  await session.query('update n set v = v + 1')
  await session.query('begin; update n set v = v + 1 where id = 2; savepoint s; update n set v = -1; rollback to s; commit')
  await session.query('insert into untracked values (1)')
  const log = await database.sequenced()
  assert.deepEqual(await database.query('select * from n order by id'), [{ id: 1, v: 1 }, { id: 2, v: 302 }])
  assert.deepEqual(replay(log, 'n'), [{ id: 1, v: 1 }, { id: 2, v: 302 }])
  assert.deepEqual(warnings, [])
  const chunks = await database.query('select count(*)::int chunks, count(distinct seq)::int seqs from shapefeed.change group by xid order by xid desc limit 3')
  assert.deepEqual(chunks.map(({ chunks, seqs }) => [chunks, seqs]), [[1, 1], [2, 2], [2, 2]])
})

test('M5 the late write is the first that the session captures', async (t) => {
  const late = await startCluster({ conf: [`shared_preload_libraries='${lateWriterLibrary()}, shapefeed'`] })
  t.after(() => late.stop())
  const database = await trackedDatabase(late, 'create table n (id int primary key, v int); create table untracked (id int)', ['n'])
  await database.query('insert into n values (1, 0), (2, 0)')
  const session = await database.connect()
  await session.query(lateStatement)
  await session.query('insert into untracked values (1)')
  await session.query('insert into n values (3, 0)')
  assert.deepEqual(replay(await database.sequenced(), 'n'), await database.query('select * from n order by id'))
})

test('M6 images from before and after DDL in one transaction have the layouts that they were made with', async () => {
  const database = await trackedDatabase(cluster, 'create table n (id int primary key, v int)', ['n'])
  await database.query('insert into n values (1, 7)')
  for (const statement of ['begin', 'update n set v = 8', 'alter table n alter v type int8', 'update n set v = 9',
    `alter table n add w text not null default 'w'`, 'update n set v = 10', 'alter table n rename v to u', 'update n set u = 11', 'commit']) {
    await database.query(statement)
  }
  const log = await database.sequenced()
  const { records } = log.at(-1)
  assert.deepEqual(records.map((record) => [record.old.row, record.new.row]), [
    [{ id: 1, v: 7 }, { id: 1, v: 8 }],
    [{ id: 1, v: 8n }, { id: 1, v: 9n }],
    [{ id: 1, v: 9n, w: 'w' }, { id: 1, v: 10n, w: 'w' }], // stored before the column was, whose default is in the catalog
    [{ id: 1, u: 10n, w: 'w' }, { id: 1, u: 11n, w: 'w' }],
  ])
  const [{ relid }] = await database.query(`select 'n'::regclass::oid relid`)
  assert.ok(endsOf(log, relid).includes('layout'))
})

test('H16 two writers that are the first with a new layout do not wait for each other', async () => {
  const database = await trackedDatabase(cluster, 'create table n (id int primary key, v int)', ['n'])
  await database.query('alter table n add w int')
  const [one, other] = [await database.connect(), await database.connect()]
  await one.query(`begin; insert into n values (1, 1, 1); prepare transaction 'first ${database.name}'`) // its changes are written
  await other.query(`set lock_timeout = '2s'`)
  assert.equal(await sqlstate(other.query('insert into n values (2, 2, 2)')), undefined)
  await one.query(`commit prepared 'first ${database.name}'`)
  await database.sequenced()
  const [{ position }] = await database.query('select min(position) position from shapefeed.commit')
  const told = await database.query(`select value ->> 'w' w from shapefeed.changes('n', columns => '{id,w}', from_position => (
    select max(position) from shapefeed.batch where position < (select max(position) - 1 from shapefeed.commit))) order by 1`)
  assert.deepEqual(told, [{ w: '1' }, { w: '2' }], `from ${position}`)
})
