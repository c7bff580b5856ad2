// Schedules that concern shapes and rights. docs/proofs.md names for each the patch under which it was seen to fail.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { sleep, startCluster, waitFor } from '../lib/index.mjs'
import { sqlstate, trackedDatabase } from './setup.mjs'

let cluster
before(async () => {
  cluster = await startCluster({ conf: ['max_worker_processes=40'] }) // a sequencer for each database
})
after(() => cluster.stop())

const rowsAsOf = async (database, table, position) => (await database.query(
  `select v from shapefeed.visible_rows('${table}', at_position => $1) v order by v::text collate "C"`, [position])).map(({ v }) => v)

/** Runs statements one after the other; returns the table's rows at each position in between, by a SELECT of that moment. */
async function history(database, table, statements) {
  const seen = []
  for (const statement of statements) {
    await database.query(statement)
    await database.sequenced()
    const [{ rows }] = await database.query(`select coalesce(jsonb_agg(v order by v::text collate "C"), '[]') rows
      from (select jsonb_object_agg(key, value) v from (select ctid, * from ${table}) t, jsonb_each_text(to_jsonb(t)) where key <> 'ctid' group by ctid) x`)
    seen.push({ position: await database.head(), rows })
  }
  return seen
}

test('C2 rows as of a position: keys that are swapped and shifted, rows without a key', async () => {
  const database = await trackedDatabase(cluster, `
    create table sw (id int primary key deferrable, v text);
    create table bag (v text);
  `, ['sw', 'bag'])
  const swapped = await history(database, 'sw', [
    `insert into sw values (1, 'x'), (2, 'y')`,
    'update sw set id = 3 - id',
    `insert into sw values (3, 'z')`,
    'update sw set id = id + 1',
    'update sw set id = id - 1',
    `begin; delete from sw where id = 1; insert into sw values (1, 'new'); update sw set id = 9 where id = 2; update sw set id = 2 where id = 9; commit`,
  ])
  const bag = await history(database, 'bag', [
    `insert into bag values ('a'), ('a'), ('b')`,
    `delete from bag where ctid = (select min(ctid) from bag)`,
    `update bag set v = 'a' where v = 'b'`,
    `update bag set v = 'b' where ctid = (select min(ctid) from bag)`,
    'delete from bag',
  ])
  for (const [table, moments] of [['sw', swapped], ['bag', bag]]) {
    for (const { position, rows } of moments) {
      const distinct = rows.filter((row, i) => i === 0 || JSON.stringify(row) !== JSON.stringify(rows[i - 1]))
      assert.deepEqual(await rowsAsOf(database, table, position), distinct, `${table} at ${position}`)
    }
  }

  // A client that applies one operation after the other ends with the same rows, whatever each transaction did.
  const client = new Map()
  let at = 0
  for (const { operation, key, value, position } of await database.query(`select * from shapefeed.changes('sw', replica => 'full')`)) {
    while (BigInt(position) > BigInt(swapped[at].position)) at++
    if (operation === 'insert') assert.ok(!client.has(key), `${key} is there already at ${position}`)
    else assert.ok(client.has(key), `${key} is not there at ${position}`)
    if (operation === 'delete') client.delete(key)
    else client.set(key, value)
  }
  const final = [...client.values()].sort((a, b) => a.id - b.id)
  assert.deepEqual(final, (await database.query('select id::text, v from sw order by sw.id')))
})

test('C5 a rewrite takes the defaults of added columns out of the catalog: images from before have them', async () => {
  for (const key of ['primary key', '']) {
    const database = await trackedDatabase(cluster, `
      create table n (id int ${key}, v int);
      insert into n values (1, 1), (2, 2), (3, 3);
      alter table n add w text default 'w'`, ['n'])
    await database.query('insert into n values (4, 4)')
    await database.sequenced()
    const position = await database.head()
    const before = await rowsAsOf(database, 'n', position)
    assert.equal(before.length, 4)
    await database.query('delete from n where id = 1; update n set v = 20 where id = 2')
    await database.query('vacuum full n')
    assert.deepEqual(await database.query(`select id from n where w is distinct from 'w'`), [])
    assert.deepEqual(await rowsAsOf(database, 'n', position), before)
    await database.sequenced()
    const of = async (where) => (await database.query(`select operation, value from shapefeed.changes('n', $1, from_position => $2, replica => 'full')`, [where, position]))
      .map(({ operation, value }) => `${operation} ${value.id} ${value.v} ${value.w}`).sort()
    assert.deepEqual(await of('w is null'), [])
    assert.deepEqual(await of(`w = 'w'`), key ? ['delete 1 1 w', 'update 2 20 w'] : ['delete 1 1 w', 'delete 2 2 w', 'insert 2 20 w'])
  }
})

test('C5 a reader whose snapshot is older than a TRUNCATE or a rewrite does not take the empty table for the truth', async () => {
  for (const change of ['truncate n', 'alter table n alter v type text']) {
    const database = await trackedDatabase(cluster, 'create table n (id int primary key, v int)', ['n'])
    await database.query('insert into n select g, g from generate_series(1, 50) g')
    await database.sequenced()
    const position = await database.head()
    assert.equal((await rowsAsOf(database, 'n', position)).length, 50)
    const read = `select count(*)::int rows from shapefeed.visible_rows('n', at_position => ${position})`
    const [ddl, waiting, old] = await Promise.all([database.connect(), database.connect(), database.connect()])
    await old.query('begin isolation level repeatable read')
    await old.query('select count(*) from pg_class')
    await ddl.query(`begin; ${change}`)
    const late = waiting.query(read).then(({ rows }) => rows, ({ code }) => code) // has its snapshot, waits for the lock
    await waitFor(async () => (await database.query(`select from pg_stat_activity
      where datname = current_database() and wait_event_type = 'Lock'`)).length === 1, { what: 'the reader waits' })
    await ddl.query('commit')
    assert.equal(await late, 'SF409', `${change}: a reader that waited for the lock`)
    assert.equal(await sqlstate(old.query(read)), 'SF409', `${change}: a reader with an old snapshot`)
    await old.query('rollback')
  }
})

test('C11 a where clause runs under the rights of the role that the shape is for, whoever asks', async () => {
  const database = await trackedDatabase(cluster, `
    create table n (id int primary key, v text);
    create schema hostile;
    create function whoami() returns text immutable language plpgsql as $$ begin return current_user || ' ' || current_setting('search_path'); end $$;
    create function escape() returns text immutable language plpgsql as $$ begin perform set_config('role', 'postgres', true); return 'x'; end $$;
    create function hostile.always(text, text) returns bool immutable language sql as 'select true';
    create operator hostile.= (leftarg = text, rightarg = text, function = hostile.always);
    do $$ begin create role c11_reader; exception when duplicate_object then null; end $$;
    grant select on n to c11_reader; grant usage on schema hostile to c11_reader;
  `, ['n'])
  const session = await database.connect()
  await session.query(`set shapefeed.allowed_functions = 'public.whoami, public.escape'`)
  await session.query('set search_path = hostile, pg_catalog, public')
  const define = async (clause) => (await session.query(
    `select shapefeed._define('{public,n}', $1, null, null, 'default', 'full', 'c11_reader') d`, [clause])).rows[0].d
  assert.equal((await define('v = whoami()')).where, `(v = 'c11_reader pg_catalog, public, pg_temp'::text)`)
  assert.match((await define('v = escape()')).errors.where[0], /security-restricted operation/)
  assert.equal((await define(`v = 'x'`)).where, `(v = 'x'::text)`, 'the operator is the one of pg_catalog')
  assert.match((await define(`v operator(hostile.=) 'x'`)).errors.where[0], /hostile\.always\(text,text\) may not be called/)
  assert.equal((await session.query('select current_user u')).rows[0].u, 'postgres')
})

test('C11 track and untrack run nothing of the caller with the rights of the owner', async () => {
  const database = await trackedDatabase(cluster, `
    create table other (id int primary key);
    do $$ begin create role c11_owner; exception when duplicate_object then null; end $$;
    create schema hostile authorization c11_owner;
    grant create on schema public to c11_owner;
  `, ['other'])
  const session = await database.connect()
  const ran = []
  session.on('notice', ({ message }) => ran.push(message))
  await session.query(`
    set role c11_owner;
    create function hostile.same(oid, oid) returns bool language plpgsql as $$ begin
      raise notice '%', current_user; return $1 operator(pg_catalog.=) $2; end $$;
    create operator hostile.= (leftarg = oid, rightarg = oid, function = hostile.same);
    create table mine (id int primary key);
    set search_path = hostile, pg_catalog, public`)
  for (const statement of ['track', 'track', 'rotate', 'untrack']) await session.query(`call shapefeed.${statement}('public.mine')`)
  assert.deepEqual([...new Set(ran)], ['c11_owner'], 'as whom its operator ran')
})

test('H1 track and untrack do not queue writers behind a long one', async () => {
  const database = await trackedDatabase(cluster, `
    create table n (id int primary key, v int); insert into n values (1, 0), (2, 0);
    create table parts (id int primary key, v int) partition by range (id);
    create table parts_1 partition of parts for values from (0) to (10); insert into parts values (1, 0), (2, 0)`, [])
  for (const [table, command] of [['n', 'track'], ['parts', 'track'], ['n', 'untrack'], ['parts', 'untrack']]) {
    const [long, caller, writer] = await Promise.all([database.connect(), database.connect(), database.connect()])
    await long.query(`begin; update ${table} set v = v + 1 where id = 1`)
    await writer.query(`set statement_timeout = '5s'`)
    let done = false
    const called = caller.query(`call shapefeed.${command}('${table}')`).then(() => { done = true })
    let slowest = 0
    const until = Date.now() + 1500
    while (Date.now() < until) {
      const started = performance.now()
      await writer.query(`update ${table} set v = v + 1 where id = 2`)
      slowest = Math.max(slowest, performance.now() - started)
      await sleep(2)
    }
    assert.ok(slowest < 700, `${command} ${table}: a writer took ${slowest} ms`)
    assert.equal(done, false, `${command} ${table}: it waits for the long writer`)
    const block = await sqlstate(writer.query(`begin; call shapefeed.${command}('${table}')`))
    assert.equal(block, '55P03', 'in a transaction block there is one try')
    await writer.query('rollback')
    await long.query('commit')
    await called
    await Promise.all([long, caller, writer].map((session) => session.end()))
  }
})
