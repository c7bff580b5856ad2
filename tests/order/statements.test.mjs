// Every way to write a row that Postgres has, one after the other: the log replays to the tables, and what people read of it too.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { startCluster } from '../lib/index.mjs'
import { replay, sqlstate, trackedDatabase } from '../pitfalls/setup.mjs'

let cluster
before(async () => {
  cluster = await startCluster()
})
after(() => cluster.stop())

const schema = `
  create table n (id int primary key, v int, t text);
  create table parent (id int primary key, v int);
  create table child (id int primary key, parent int references parent on delete cascade on update cascade deferrable initially deferred, v int);
  create table parts (id int, v int, primary key (id)) partition by range (id);
  create table parts_1 partition of parts for values from (0) to (100);
  create table parts_2 (v int, gone int, id int not null);
  alter table parts_2 drop column gone;
  alter table parts attach partition parts_2 for values from (100) to (200);
  create table deferred (id int primary key, v int);
  create function at_commit() returns trigger language plpgsql as $$ begin
    insert into deferred values (new.id, 1) on conflict (id) do update set v = deferred.v + 1; return null; end $$;
  create constraint trigger at_commit after insert or update on n deferrable initially deferred for each row execute function at_commit();
`
const tables = ['n', 'parent', 'child', 'parts_1', 'parts_2', 'deferred']

/** What is written, by its name. A string is run as it is; a list, statement by statement. */
const writes = {
  'COPY': ['begin', `copy n (id, v, t) from program 'printf "1\\t1\\tone\\n2\\t2\\ttwo\\n3\\t3\\t\\\\N\\n"'`, 'commit'],
  'ON CONFLICT': `insert into n values (2, 20, 'b'), (4, 4, 'd') on conflict (id) do update set v = excluded.v where n.id <> 3`,
  'ON CONFLICT DO NOTHING': `insert into n values (2, 0, ''), (5, 5, 'e') on conflict do nothing`,
  'MERGE': `merge into n using (values (1, 100), (2, 200), (6, 600)) s (id, v) on n.id = s.id
    when matched and s.id = 1 then delete when matched then update set v = s.v when not matched then insert values (s.id, s.v, 'merged')`,
  'a CTE that writes twice': `with gone as (delete from n where id = 5 returning *) insert into n select id + 10, v, t from gone`,
  'UPDATE FROM and RETURNING': `update n set v = s.v from (values (2, -2)) s (id, v) where n.id = s.id returning *`,
  'a key that moves': 'update n set id = id + 100 where id in (2, 3)',
  'savepoints': ['begin', 'insert into n values (20, 1)', 'savepoint a', 'update n set v = 2 where id = 20', 'savepoint b', 'delete from n',
    'rollback to b', 'update n set v = v + 1 where id = 20', 'release a', 'savepoint a', 'insert into n values (21)', 'rollback to a', 'commit'],
  'an error that is caught': `do $$ begin for i in 30..60 loop begin insert into n values (i); if i % 2 = 0 then perform 1 / (i - i); end if;
    exception when division_by_zero then null; end; end loop; end $$`,
  'a procedure that commits': `do $$ begin for i in 61..64 loop insert into n values (i); if i % 2 = 0 then rollback; else commit; end if; end loop; end $$`,
  'two-phase commit': ['begin', 'insert into n values (70, 1)', 'savepoint a', 'delete from n where id = 70', 'rollback to a', `prepare transaction 'p'`,
    'update n set v = 1 where id = 4', `commit prepared 'p'`],
  'two-phase rollback': ['begin', 'insert into n values (71, 1)', `prepare transaction 'p'`, `rollback prepared 'p'`],
  'FK cascades': ['insert into parent select g, g from generate_series(1, 5) g; insert into child select g, g % 5 + 1, g from generate_series(1, 20) g',
    'update parent set id = id + 10 where id < 3', 'delete from parent where id in (11, 4)', 'begin; insert into child values (99, 77, 0); insert into parent values (77, 0); commit'],
  'rows that move between partitions': ['insert into parts values (1, 1), (2, 2), (150, 3)', 'update parts set id = id + 100 where id = 1', 'update parts set id = id - 100 where id > 100',
    'begin; update parts set id = id + 100; update parts set id = id - 100 where v < 3; update parts set v = v + 1; commit', 'merge into parts using (values (2)) s (id) on parts.id = s.id when matched then update set id = 160'],
  'session_replication_role = replica': ['set session_replication_role = replica', 'update n set v = 7 where id = 4', 'insert into n values (80)', 'set session_replication_role = origin'],
  'SERIALIZABLE': ['begin isolation level serializable', 'update n set v = v + 1', 'insert into n values (81)', 'commit'],
  'REPEATABLE READ and a cursor': ['begin isolation level repeatable read', 'declare c cursor for select * from n where id = 4 for update', 'fetch c', 'update n set v = 8 where current of c',
    'delete from n where current of c', 'rollback', 'begin', 'declare c cursor for select * from n where id = 4 for update', 'fetch c', 'update n set v = 9 where current of c', 'commit'],
  'a read-only transaction': ['begin read only', 'select count(*) from n', 'commit'],
  'a transaction that writes nothing in the end': ['begin', 'insert into n values (90)', 'update n set v = 1 where id = 90', 'delete from n where id = 90', 'commit'],
  'deferred constraints': ['begin', 'set constraints all deferred', 'update n set v = v + 1 where id < 30', 'set constraints all immediate', 'delete from deferred where id = 4', 'commit'],
  'all of it spilled': ['set shapefeed.capture_memory = 64', `do $$ begin insert into n select g, g, repeat('x', 500) from generate_series(1000, 1500) g;
      for i in 1501..2000 loop begin insert into n values (i, i, repeat('y', 500)); if i % 3 = 0 then perform 1 / (i - i); end if; exception when division_by_zero then null; end; end loop;
      update n set v = -v where id > 1000; delete from n where id % 7 = 0; end $$`, 'reset shapefeed.capture_memory'],
}

for (const isolation of ['read committed', 'serializable']) {
  test(`the log has what each statement did, default_transaction_isolation = ${isolation}`, async () => {
    const database = await trackedDatabase(cluster, schema, ['n', 'parent', 'child', 'parts', 'deferred'])
    const writer = await database.connect()
    await writer.query(`set default_transaction_isolation = '${isolation}'`)
    const shown = new Map(tables.map((table) => [table, []]))
    for (const [name, statements] of Object.entries(writes)) {
      for (const statement of [statements].flat()) {
        assert.equal(await sqlstate(writer.query(statement)), undefined, `${name}: ${statement}`)
      }
      const log = await database.sequenced()
      for (const table of tables) {
        const truth = await database.query(`select * from ${table} order by id`)
        assert.deepEqual(replay(log, table).map(sorted), truth.map(sorted), `${name}: ${table}`)
        shown.set(table, truth)
      }
    }
    // The same through the eyes of a shape: what changes() tells, applied one by one.
    for (const table of ['n', 'parts', 'child']) {
      const rows = new Map()
      for (const { operation, key, value } of await database.query(`select * from shapefeed.changes('${table}', replica => 'full')`)) {
        assert.equal(rows.has(key), operation !== 'insert', `${operation} of ${key}`)
        if (operation === 'delete') rows.delete(key)
        else rows.set(key, value)
      }
      const truth = await database.query(`select to_jsonb(x) v from (select * from ${table}) x`)
      assert.deepEqual([...rows.values()].map(texts).sort(), truth.map(({ v }) => texts(v)).sort())
      const visible = await database.query(`select v from shapefeed.visible_rows('${table}') v`)
      assert.deepEqual(visible.map(({ v }) => texts(v)).sort(), truth.map(({ v }) => texts(v)).sort())
    }
    assert.equal(shown.get('n').length > 100, true)
    assert.doesNotMatch(cluster.log(), /PANIC|terminated by signal|leak/)
  })
}

const sorted = (row) => Object.fromEntries(Object.entries(row).sort())
const texts = (row) => JSON.stringify(Object.entries(row).map(([name, value]) => [name, value === null ? null : String(value)]).sort())
