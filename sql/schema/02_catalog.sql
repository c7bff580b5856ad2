-- An era: a stretch of positions that one history of this database issued. Its first position carries no transaction.
create table shapefeed.era (
  first_position int8        not null primary key check (first_position between 1 and 9007199254740991),
  timeline       int4        not null,
  feed           int8        not null,  -- random, made by CREATE EXTENSION; names this log whatever cluster it is in
  database       oid         not null,
  started_at     timestamptz not null,  -- of the postmaster
  began_at       timestamptz not null default clock_timestamp()
);

create table shapefeed.feed (
  only_row bool not null primary key default true check (only_row),
  id       int8 not null,
  database oid  not null,
  secret   bytea not null check (length(secret) = 16)  -- that digests of definitions are made with
);
-- Of a random uuid 122 bits are random, here all of 128.
insert into shapefeed.feed (secret, id, database)
  select substr(sha256(convert_to(concat(gen_random_uuid(), gen_random_uuid()), 'UTF8')), 1, 16),
         ('x' || translate(left(gen_random_uuid()::text, 18), '-', ''))::bit(60)::int8, d.oid
  from pg_catalog.pg_database d where d.datname = pg_catalog.current_database();

-- Tables that are captured. `since` is filled in by the sequencer. pg_dump does not take them along, but their triggers: a
-- table that has all of them is tracked (extension/src/capture/adopt.rs).
create table shapefeed.tracked (
  relid       oid         not null primary key,
  since       int8,                 -- position from which the log is whole; null until the track is sequenced
  fingerprint jsonb       not null, -- of the table as of the last look (extension/src/capture/fingerprint.rs)
  partitions  oid[]       not null, -- itself and all below it, likewise
  tracked_at  timestamptz not null default clock_timestamp(),
  given_by    xid8                  -- the newest transaction that gave somebody a right to it
);

-- What roles may by themselves and by what they are members of, as of the last look (extension/src/capture/roles.rs).
create table shapefeed.role (
  name       name  not null primary key,
  state      jsonb not null,
  changed_by xid8
);
create view shapefeed.role_now as
  select r.rolname as name,
         pg_catalog.jsonb_build_object('super', r.rolsuper, 'bypass', r.rolbypassrls, 'of', coalesce((
           select pg_catalog.jsonb_agg(g.rolname order by g.rolname)
           from pg_catalog.pg_auth_members m join pg_catalog.pg_roles g on g.oid = m.roleid
           where m.member = r.oid and r.rolinherit), '[]')) as state
  from pg_catalog.pg_roles r;
insert into shapefeed.role (name, state) select name, state from shapefeed.role_now;

-- Shapes that have a name: requests that are kept. What they name is looked up when they are used, with the rights of who
-- uses them: so they outlive that a table is made anew. pg_dump takes them along.
create table shapefeed.shape (
  name       text        not null primary key check (name <> ''),
  "schema"   text        not null,
  "table"    text        not null,
  "where"    text,
  columns    text[],
  replica    text        not null check (replica in ('default', 'full')),
  params     jsonb       not null default '{}',  -- parameters of the condition by name: a type, or a type and the claim
  created_at timestamptz not null default clock_timestamp()
);
select pg_catalog.pg_extension_config_dump('shapefeed.shape', '');

-- Tuple layouts that images in the log have, by the hash that their records carry.
create table shapefeed.layout (
  hash       int8  not null primary key,
  definition jsonb not null
);

-- Up to where retention has emptied the log, the newest positions. What is above the greatest one is whole.
create table shapefeed.floor (
  position int8        not null primary key,
  member   int2        not null,  -- of the ring, that was emptied
  moved_at timestamptz not null default clock_timestamp()
);

-- Tables whose changes are left out because the log is full, with the transaction that was the first to do so (or one of
-- the first: writers do not wait for each other).
create table shapefeed.gap (
  relid oid  not null,
  xid   xid8 not null,
  primary key (relid, xid)
);

-- Gaps that are being closed: there is room again, but a transaction that runs may have left something out.
create table shapefeed.closing_gap (
  relid     oid not null primary key,
  waits_for xid[]  -- transactions; null: still to be looked up
);
