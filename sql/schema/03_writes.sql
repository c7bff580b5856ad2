-- Tables that are open for writing by clients (docs/writing.md). pg_dump takes them along: the name of a table stands for it there.
create table shapefeed.writable (
  relid      regclass    not null primary key,
  operations text[]      not null check (operations <@ '{insert,update,delete}' and operations <> '{}'),
  opened_at  timestamptz not null default clock_timestamp()
);
select pg_catalog.pg_extension_config_dump('shapefeed.writable', 'where exists (select from pg_catalog.pg_class c where c.oid = relid)');

-- Clients that have written, and up to where what they sent is done. A client belongs to the caller who first used its id.
create table shapefeed.write_client (
  id       uuid        not null primary key,
  role     text        not null,
  subject  text,                 -- claim `sub`; null without one
  last_seq int8        not null, -- greatest that was applied or rejected
  used_at  timestamptz not null
);

-- What became of their transactions, each written by the transaction itself: it is here exactly when that has committed.
create table shapefeed.write_result (
  client      uuid        not null,
  seq         int8        not null check (seq > 0),
  xid         xid8        not null,
  rejection   jsonb,                -- null: applied
  recorded_at timestamptz not null,
  primary key (client, seq)
);
create index write_result_applied on shapefeed.write_result (recorded_at) where rejection is null;
