-- A schema of somebody else would stay his: what he puts there would run with our rights. A superuser may have made it, as
-- pg_restore does.
do $$
begin
  if exists (select from pg_catalog.pg_namespace n join pg_catalog.pg_roles r on r.oid operator(pg_catalog.=) n.nspowner
             where n.nspname operator(pg_catalog.=) 'shapefeed' and not r.rolsuper
               and r.rolname operator(pg_catalog.<>) current_user) then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = 'schema "shapefeed" belongs to another role',
      hint = 'Drop or rename that schema; CREATE EXTENSION makes its own.';
  end if;
end $$;

-- The log: a ring of plain tables. A transaction's chunks go to the member that its pre-commit clock names;
-- the sequencer's rows go to the member of the batch. Rows are only ever added; retention truncates whole members.
-- Written by C code with index inserts of its own, which decides what goes into partial ones (sequence/batch.rs): no other
-- index, constraint or trigger belongs on these tables.

do $$
begin
  for member in 0..7 loop
    execute format($sql$
      create table shapefeed.change_%1$s (
        xid    xid8  not null,  -- top-level transaction
        chunk  int4  not null,  -- 0.. in the order written
        seq    int8  not null,  -- WAL insert position at pre-commit; the transaction's is the greatest of its chunks
        relids oid[],           -- tables touched, partition ancestors included; once per flush
        notes  jsonb,           -- what is not a row: epochs that end, tables tracked, layouts seen first
        data   bytea not null,  -- records, see extension/src/record.rs
        primary key (xid, chunk)
      ) with (autovacuum_enabled = off, toast.autovacuum_enabled = off);
      alter table shapefeed.change_%1$s alter column data set storage main;

      create table shapefeed.commit_%1$s (
        position     int8        not null primary key,
        xid          xid8        not null unique,
        committed_at timestamptz not null,  -- when it was sequenced
        batch        int8        not null,  -- position of the batch it belongs to
        member       int2        not null,  -- ring member of its chunks
        relids       oid[],
        ends         jsonb                  -- epochs and shapes that end here
      ) with (autovacuum_enabled = off);
      create index commit_%1$s_ends on shapefeed.commit_%1$s (position) where ends is not null;

      create table shapefeed.batch_%1$s (
        position int8        not null primary key,
        snapshot pg_snapshot not null,      -- what it sees is what has a position up to this one
        ended_at timestamptz not null,
        resting  bool        not null       -- first batch end of its interval: idle clients rest here
      ) with (autovacuum_enabled = off);
      create index batch_%1$s_resting on shapefeed.batch_%1$s (position) where resting;
    $sql$, member);
    begin
      execute format('alter table shapefeed.change_%s alter column data set compression lz4', member);
    exception when feature_not_supported then
      null;  -- this server was built without lz4; pglz does
    end;
  end loop;
end $$;

create view shapefeed.change as
  select 0::int2 as member, c.* from shapefeed.change_0 c union all
  select 1::int2 as member, c.* from shapefeed.change_1 c union all
  select 2::int2 as member, c.* from shapefeed.change_2 c union all
  select 3::int2 as member, c.* from shapefeed.change_3 c union all
  select 4::int2 as member, c.* from shapefeed.change_4 c union all
  select 5::int2 as member, c.* from shapefeed.change_5 c union all
  select 6::int2 as member, c.* from shapefeed.change_6 c union all
  select 7::int2 as member, c.* from shapefeed.change_7 c;

create view shapefeed.commit as
  select * from shapefeed.commit_0 union all select * from shapefeed.commit_1 union all
  select * from shapefeed.commit_2 union all select * from shapefeed.commit_3 union all
  select * from shapefeed.commit_4 union all select * from shapefeed.commit_5 union all
  select * from shapefeed.commit_6 union all select * from shapefeed.commit_7;

create view shapefeed.batch as
  select * from shapefeed.batch_0 union all select * from shapefeed.batch_1 union all
  select * from shapefeed.batch_2 union all select * from shapefeed.batch_3 union all
  select * from shapefeed.batch_4 union all select * from shapefeed.batch_5 union all
  select * from shapefeed.batch_6 union all select * from shapefeed.batch_7;
