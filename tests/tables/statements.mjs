// The matrix of docs/tables.md: what each statement does to the shapes of a table that clients follow.
//
// `all` follows table t, all columns; `some` names columns id and v, n where it is part of the key, and filters by n; `other`
// what the case says.
// For each: 'goes on' (same handle), 'again' (one 409, then its rows), or the text of the error that follows the one 409.
// `ends`: reasons that the log gives, each once. `blind`: what differs when the event triggers are disabled.
// Statements run in a schema of their own; `then` is written afterwards.

export const table = `
  create type mood as enum ('sad', 'ok');
  create type pair as (a int, b int);
  create function big(n int) returns bool language sql immutable set search_path = pg_catalog as 'select n > 2';
  create table t (id int primary key, v text not null default 'v', n int not null default 0, w varchar(10) default 'w',
    m mood default 'sad', c pair default '(1,2)', extra int default 7);
  insert into t (id, n) select i, i from generate_series(1, 5) i;`

/** A table with partitions p1, p2 and one that has partitions, p3. */
export const parts = `
  create table t (id int, v text not null default 'v', n int not null default 0, primary key (id, n)) partition by list (n);
  create table p1 partition of t for values in (0, 1);
  create table p2 partition of t for values in (2, 3);
  create table p3 partition of t for values in (4, 5, 6) partition by list (n);
  create table p3_4 partition of p3 for values in (4);
  create table p3_5 partition of p3 for values in (5);
  insert into t (id, n) select i, i from generate_series(1, 5) i;
  create table q (id int not null, v text not null default 'q', n int not null default 0, primary key (id, n), check (n in (8, 9)));
  insert into q (id, n) values (80, 8);`

const keyless = `
  create table t (id int, v text not null default 'v', n int not null default 0, extra int default 7);
  insert into t (id, n) select i, i from generate_series(1, 5) i;`

const goesOn = { all: 'goes on', some: 'goes on', ends: [] }
const again = (reason) => ({ all: 'again', some: 'again', ends: [reason] })
const gone = (reason, error) => ({ all: error, some: error, ends: [reason], then: '' })
const unnamed = { all: 'again', some: 'goes on', ends: ['layout'] }
/** Nobody can say what a file has that was written while nobody looked. */
const unseen = { blind: again('storage') }

const missing = /does not exist/
const unknown = /unknown reference n/
const nn = 'insert into t (id, nn) values (100, 3); delete from t where id = 4'
const withoutN = 'insert into t (id) values (100); delete from t where id = 4'

export const statements = [
  // Rows
  { statement: 'truncate t', ...again('truncate'), blind: { ends: ['storage', 'truncate'] } },
  { statement: 'truncate t; insert into t (id) values (1)', ...again('truncate'), blind: { ends: ['storage', 'truncate'] } },
  { statement: 'begin; truncate t; rollback', ...goesOn },
  { statement: 'delete from t', ...goesOn },
  { statement: "set session_replication_role = replica; update t set v = 'replica'; delete from t where id = 3", ...goesOn },
  { statement: "copy t (id) from program 'seq 20 25'", ...goesOn },

  // Names
  { statement: 'alter table t rename to u', ...gone('rename', missing) },
  { statement: 'alter schema %s rename to %s_new', ...gone('rename', missing) },
  { statement: 'create schema %s_other; alter table t set schema %s_other', ...gone('rename', missing) },
  { statement: 'alter table t rename v to vv', all: 'again', some: /not found/, ends: ['layout'] },
  { statement: 'alter table t rename n to nn', all: 'again', some: unknown, ends: ['layout'], then: nn },
  { statement: 'alter table t rename extra to more', ...unnamed },
  { statement: 'drop table t', ...gone('drop', missing) },

  // Columns
  { statement: 'alter table t add column z int', ...goesOn, all: 'again' },
  { statement: 'alter table t add column z text not null default clock_timestamp()', ...goesOn, all: 'again', ...unseen },
  { statement: 'alter table t drop column extra', ...unnamed },
  { statement: 'alter table t drop column v', all: 'again', some: /not found/, ends: ['layout'] },
  { statement: 'alter table t drop column n', all: 'again', some: unknown, ends: ['layout'], then: withoutN },
  { statement: 'begin; alter table t drop column v; rollback', ...goesOn },
  { statement: 'drop type pair cascade', ...unnamed },
  { statement: 'alter table t alter n type bigint', ...again('layout'), ...unseen },
  { statement: 'alter table t alter extra type bigint', ...unnamed, ...unseen },
  { statement: 'alter table t alter w type text', ...unnamed },
  { statement: 'alter table t alter w type varchar(20)', ...goesOn },
  { statement: 'alter table t alter w type varchar(5)', ...unnamed, ...unseen },
  { statement: 'alter table t alter n type int using n + 1', ...again('layout'), ...unseen },
  { statement: 'alter table t alter extra type int using extra + 1', ...unnamed, ...unseen },
  { statement: "alter table t alter v set default 'x', alter v drop not null, alter extra set not null, alter w drop default", ...goesOn },
  { statement: 'alter table t add check (n >= 0), add unique (extra, id)', ...goesOn },
  { statement: 'alter table t replica identity full', ...goesOn },
  { statement: 'alter table t alter v set storage external, alter v set statistics 10, alter v set compression pglz', ...goesOn },

  // Types and functions
  { statement: "alter type mood add value 'happy' before 'ok'", ...goesOn },
  { statement: "alter type mood rename value 'sad' to 'blue'", ...unnamed },
  { statement: 'alter type mood rename to temper', ...goesOn },
  { statement: 'alter type pair add attribute d int', ...unnamed },
  {
    statement: "create or replace function big(n int) returns bool language sql immutable set search_path = pg_catalog as 'select n > 3'",
    ...goesOn, other: 'again', shape: { columns: 'id,n', where: '%s.big(n)' },
  },

  // The key
  { statement: 'alter table t drop constraint t_pkey, add primary key (id, v)', ...again('key') },
  { statement: 'alter table t drop constraint t_pkey', ...again('key') },
  { statement: 'create unique index i on t (id); alter table t drop constraint t_pkey, add primary key using index i', ...goesOn },

  // Storage
  { statement: 'vacuum (full) t', ...goesOn, ...unseen },
  { statement: 'cluster t using t_pkey', ...goesOn, ...unseen },
  { statement: 'create index on t (n); analyze t; reindex table t', ...goesOn },
  { statement: 'alter table t set (fillfactor = 50)', ...goesOn },
  { statement: 'alter table t set unlogged', ...gone('gap', /unlogged/) },

  // Triggers
  { statement: 'alter table t disable trigger shapefeed_capture', ...again('gap') },
  { statement: "alter table t disable trigger all; update t set v = 'unseen'; alter table t enable trigger all", ...again('gap') },
  { statement: 'alter table t disable trigger user', ...again('gap') },
  { statement: 'alter table t enable trigger shapefeed_capture', ...again('gap') },
  { statement: "drop trigger shapefeed_capture on t; update t set v = 'unseen'", ...again('gap') },
  { statement: 'drop trigger shapefeed_truncate on t; truncate t', ...again('gap') },
  { statement: "alter trigger shapefeed_capture on t rename to mine; update t set v = 'unseen'", ...again('gap') },
  {
    statement: `create function nothing() returns trigger language plpgsql as 'begin return new; end';
      create trigger theirs before insert on t for each row execute function nothing()`,
    ...goesOn,
  },

  // Rights: of a superuser nothing changes. For others see rights.test.mjs.
  { statement: 'alter table t enable row level security; create policy p on t using (n > 3)', ...goesOn, ends: ['rights'] },
  { statement: 'alter table t owner to pg_monitor; grant select on t to public; revoke select on t from public', ...goesOn, ends: ['rights'] },

  // Partitions
  { statement: 'create table p7 partition of t for values in (7); insert into t (id, n) values (70, 7)', on: parts, ...goesOn, blind: again('gap') },
  { statement: 'create table p3_6 partition of p3 for values in (6); insert into t (id, n) values (60, 6)', on: parts, ...goesOn, blind: again('gap') },
  { statement: 'update t set n = 3 where n = 1; update t set n = 4 where n = 5', on: parts, ...goesOn },
  { statement: 'alter table t attach partition q for values in (8, 9)', on: parts, ...again('partitions'), blind: again('gap') },
  { statement: 'alter table p3 detach partition p3_4', on: parts, ...again('partitions') },
  { statement: "alter table t detach partition p1; insert into p1 (id, n) values (10, 0)", on: parts, ...again('partitions') },
  { statement: 'alter table t detach partition p1 concurrently', on: parts, ...again('partitions') },
  { statement: 'drop table p1', on: parts, ...again('partitions'), then: 'insert into t (id, n) values (100, 2)' },
  { statement: 'truncate p3_5', on: parts, ...again('truncate'), blind: { ends: ['storage', 'truncate'] } },
  { statement: 'truncate p3', on: parts, ...again('truncate'), blind: { ends: ['storage', 'truncate'] } },
  { statement: "alter table p2 disable trigger all; update t set v = 'unseen' where n = 2", on: parts, ...again('gap') },
  { statement: 'alter table p1 rename to p1_new; vacuum (full) p2', on: parts, ...goesOn, ...unseen },
  { statement: 'alter table t add column z int', on: parts, ...goesOn, all: 'again' },

  // Inheritance
  { statement: 'create table child (more int) inherits (t); insert into child (id) values (90)', ...goesOn },
  { statement: 'create table child (like t including all); insert into child (id) values (90); alter table child inherit t', ...goesOn },

  // Without a key a row is all of its columns.
  { statement: 'alter table t add column z int', on: keyless, ...again('layout') },
  { statement: 'alter table t drop column extra', on: keyless, ...again('layout') },
  { statement: 'alter table t add primary key (id)', on: keyless, ...again('key') },
  { statement: 'vacuum (full) t', on: keyless, ...goesOn, ...unseen },
]
