/** Schema `sync` of the local database: what is kept beside the application's tables, and the steps on it that are SQL. */

const tables = /* sql */ `
create schema if not exists sync;

-- One row. client_id is made at the first start, never with a prebuilt database. last_seq: the newest transaction that the
-- server has answered. sent_seq: the newest that was ever on its way.
create table if not exists sync.meta (
  only_row       boolean primary key default true check (only_row),
  client_id      uuid,
  last_seq       bigint not null default 0,
  sent_seq       bigint not null default 0,
  schema_version int not null default 0
);
insert into sync.meta default values on conflict do nothing;

-- Tables that shapes fill. relation: quoted, for SQL. columns: name -> type of the local column. described: position of the newest
-- snapshot whose description the table has followed.
create table if not exists sync.shape_table (
  name      text primary key,
  relation  text not null,
  key       text[] not null,
  columns   jsonb not null,
  generated boolean not null,
  described bigint not null default 0
);
alter table sync.shape_table add column if not exists described bigint not null default 0;

-- Shapes and how far they are. position: everything up to it is here; null until
-- the shape is complete. epoch: raised when a shape starts over; rows of an older
-- one go when the new one is complete. has_rows: sync.row_shape says which rows are in this shape.
-- released: when it was followed last.
create table if not exists sync.stream (
  id          int generated always as identity primary key,
  definition  jsonb not null unique,
  name        text,
  columns     text[],
  handle      text,
  "offset"    text,
  position    bigint,
  epoch       int not null default 0,
  has_rows    boolean not null default false,
  active      boolean not null default false,
  last_synced timestamptz
);
alter table sync.stream add column if not exists released timestamptz;

-- Which rows are in which shape, where a table has more than one, or while a shape starts over. Else all rows are.
create table if not exists sync.row_shape (
  stream   int not null references sync.stream on delete cascade,
  key      jsonb not null,
  epoch    int not null,
  position bigint not null,
  primary key (stream, key)
);

-- Local changes, in order, until the shapes of their table have them. tx: the local transaction. ack: position on the server.
create table if not exists sync.outbox (
  id        bigint generated always as identity primary key,
  tx        bigint not null,
  name      text not null,
  key       jsonb not null,
  operation text not null check (operation in ('insert', 'update', 'delete')),
  value     jsonb,
  base      jsonb,
  ack       bigint
);
create index if not exists outbox_row on sync.outbox (name, key);

-- Rows with local changes, as the server has them; server is null where it has none.
create table if not exists sync.shadow (
  name   text not null,
  key    jsonb not null,
  server jsonb,
  primary key (name, key)
);

create table if not exists sync.rejection (
  id           int generated always as identity primary key,
  rejected_at  timestamptz not null default now(),
  sqlstate     text not null,
  "constraint" text,
  message      text not null,
  operation    int,
  operations   jsonb not null
);
`

// Per table there are, by overloading on its row type (table.ts): sync.image(row): all columns as text; sync.key_of(row);
// sync.present(row, key): image of the row with this key; sync.put(row, image): upsert; sync.remove(row, key).
const functions = /* sql */ `
create or replace function sync.relation_of(table_name text) returns text language sql stable as
$$ select relation from sync.shape_table where name = table_name $$;

-- The first local change of a row keeps what the server has; every one is queued.
create or replace function sync.note(table_name text, row_key jsonb, was jsonb, op text, new_value jsonb, old_value jsonb)
returns void language sql as $$
  insert into sync.shadow values (table_name, row_key, was) on conflict do nothing;
  insert into sync.outbox (tx, name, key, operation, value, base)
    values (pg_current_xact_id()::text::bigint, table_name, row_key, op, new_value, old_value);
$$;

-- Row trigger of each table, while the client does not write itself. A changed key is a delete and an insert. Nulls of an
-- insert are left out: the server's defaults apply.
create or replace function sync.capture() returns trigger language plpgsql as $$
declare
  old_key jsonb; new_key jsonb; old_image jsonb; new_image jsonb; changed jsonb; base jsonb;
begin
  if tg_op <> 'INSERT' then old_key := sync.key_of(old); old_image := sync.image(old); end if;
  if tg_op <> 'DELETE' then new_key := sync.key_of(new); new_image := sync.image(new); end if;
  if tg_op = 'UPDATE' and old_key = new_key then
    select jsonb_object_agg(n.key, n.value), jsonb_object_agg(n.key, old_image -> n.key) into changed, base
      from jsonb_each(new_image) n where n.value is distinct from old_image -> n.key;
    if changed is null then return null; end if;
    perform sync.note(tg_argv[0], new_key, old_image, 'update', changed, base);
  else
    if old_key is not null then perform sync.note(tg_argv[0], old_key, old_image, 'delete', null, old_image); end if;
    if new_key is not null then perform sync.note(tg_argv[0], new_key, null, 'insert', jsonb_strip_nulls(new_image), null); end if;
  end if;
  perform pg_notify('sync_outbox', '');
  return null;
end $$;

-- What a row looks like: the server's image and the local changes that it does not have yet, in order. A change of a row that the
-- server has deleted does not bring it back.
create or replace function sync.merged(server jsonb, table_name text, row_key jsonb) returns jsonb language plpgsql stable as $$
declare
  image jsonb := server; change record;
begin
  for change in select operation, value from sync.outbox o where o.name = table_name and o.key = row_key order by id loop
    image := case change.operation
      when 'insert' then coalesce(image, '{}') || change.value
      when 'update' then image || change.value
    end;
  end loop;
  return image;
end $$;

-- Shows a row with local changes as it is now; once it has none left, it is an ordinary row again.
create or replace function sync.recompute(table_name text, row_key jsonb) returns void language plpgsql as $$
declare
  relation text := sync.relation_of(table_name); server_image jsonb; image jsonb; present jsonb;
begin
  select server into server_image from sync.shadow s where s.name = table_name and s.key = row_key;
  if not found then return; end if;
  image := sync.merged(server_image, table_name, row_key);
  execute format('select sync.present(null::%s, $1)', relation) into present using row_key;
  if image is null then
    if present is not null then execute format('select sync.remove(null::%s, $1)', relation) using row_key; end if;
  elsif present is null or jsonb_strip_nulls(present) <> jsonb_strip_nulls(image) then
    execute format('select sync.put(null::%s, $1)', relation) using image;
  end if;
  delete from sync.shadow s where s.name = table_name and s.key = row_key
    and not exists (select from sync.outbox o where o.name = table_name and o.key = row_key);
end $$;

-- An operation of a shape for a row with local changes. Returns false if it does not fit.
create or replace function sync.receive(table_name text, row_key jsonb, op text, new_value jsonb) returns boolean
language plpgsql as $$
begin
  update sync.shadow s set server = case op when 'insert' then coalesce(server, '{}') || new_value when 'update' then server || new_value end
    where s.name = table_name and s.key = row_key and (op <> 'update' or server is not null);
  if not found then return false; end if;
  perform sync.recompute(table_name, row_key);
  return true;
end $$;

-- Drops local changes that all followed shapes of their table have. True if there were any.
create or replace function sync.confirm() returns boolean language plpgsql as $$
declare
  touched record; any_done boolean := false;
begin
  for touched in
    with done as (
      delete from sync.outbox o where o.ack is not null
        and (select bool_and(coalesce(s.position, -1) >= o.ack) from sync.stream s where s.name = o.name and s.active)
      returning o.name, o.key)
    select distinct name, key from done
  loop
    any_done := true;
    perform sync.recompute(touched.name, touched.key);
  end loop;
  return any_done;
end $$;

-- Undoes a local transaction that the server rejected, and keeps what it was.
create or replace function sync.reject(local_tx bigint, code text, constraint_name text, at int, text text) returns void
language plpgsql as $$
declare
  touched record; changes jsonb;
begin
  with gone as (delete from sync.outbox where tx = local_tx returning *)
  select jsonb_agg(jsonb_build_object('operation', operation, 'table', name, 'key', key)
    || case when value is null then '{}' else jsonb_build_object('value', value) end
    || case when base is null then '{}' else jsonb_build_object('base', base) end order by id) into changes from gone;
  if changes is null then return; end if;
  insert into sync.rejection (sqlstate, "constraint", message, operation, operations) values (code, constraint_name, text, at, changes);
  for touched in select distinct c ->> 'table' as name, c -> 'key' as key from jsonb_array_elements(changes) c loop
    perform sync.recompute(touched.name, touched.key);
  end loop;
end $$;

-- Makes the changes of a rejected transaction again, as new local changes of what is there now.
create or replace function sync.retry(rejection int) returns void language plpgsql as $$
declare
  changes jsonb; change jsonb; relation text; image jsonb;
begin
  delete from sync.rejection r where r.id = rejection returning r.operations into changes;
  for change in select jsonb_array_elements(changes) loop
    relation := sync.relation_of(change ->> 'table');
    execute format('select sync.present(null::%s, $1)', relation) into image using change -> 'key';
    if change ->> 'operation' = 'delete' then
      execute format('select sync.remove(null::%s, $1)', relation) using change -> 'key';
    elsif image is not null or change ->> 'operation' = 'insert' then
      execute format('select sync.put(null::%s, $1)', relation) using coalesce(image, '{}') || (change -> 'value');
    end if;
  end loop;
end $$;

-- From now on sync.row_shape says which rows are in a shape: those that are there, and as new as the shape is: as its
-- offset says, or, within its snapshot, its handle (docs/protocol.md, "Handles").
create or replace function sync.keep_rows(of int) returns void language plpgsql as $$
declare
  this sync.stream; since bigint;
begin
  update sync.stream set has_rows = true where id = of and not has_rows and name is not null returning * into this;
  if not found then return; end if;
  since := greatest(this.position, split_part(this."offset", '_', 1)::bigint, substring(this.handle from '-([0-9]+)-')::bigint, 0);
  execute format($sql$
    insert into sync.row_shape select $1, k, $2, $4 from (select sync.key_of(t) as k from %s t) t
      where not exists (select from sync.shadow s where s.name = $3 and s.key = k)
    union all select $1, s.key, $2, $4 from sync.shadow s where s.name = $3 and s.server is not null
  $sql$, sync.relation_of(this.name)) using of, this.epoch, this.name, since;
end $$;

-- Rows that were in a shape and are in no other one of the table: gone, here as well.
create or replace function sync.leave(of int, keys jsonb[]) returns void language plpgsql as $$
declare
  this sync.stream; left_all jsonb[]; row_key jsonb;
begin
  select * into this from sync.stream where id = of;
  if keys is null then return; end if;
  delete from sync.row_shape r where r.stream = of and r.key = any(keys);
  select array_agg(k) into left_all from unnest(keys) k where not exists (
    select from sync.row_shape r join sync.stream s on s.id = r.stream where s.name = this.name and s.id <> of and r.key = k);
  execute format('select sync.remove(null::%s, k) from unnest($1) k where not exists (select from sync.shadow s where s.name = $2 and s.key = k)',
    sync.relation_of(this.name)) using left_all, this.name;
  for row_key in select key from sync.shadow s where s.name = this.name and s.key = any(left_all) loop
    perform sync.receive(this.name, row_key, 'delete', null);
  end loop;
end $$;

-- A shape that is not followed any more takes its rows along, unless another one has them.
create or replace function sync.forget(of int) returns void language plpgsql as $$
begin
  perform sync.keep_rows(of);
  perform sync.leave(of, (select array_agg(key) from sync.row_shape where stream = of));
  delete from sync.stream where id = of;
end $$;

-- A shape starts over: what is there stays until the new rows are.
create or replace function sync.start_over(of int) returns void language plpgsql as $$
declare
  this sync.stream; filled boolean := false;
begin
  select * into this from sync.stream where id = of;
  if this.name is not null then execute format('select exists (select from %s)', sync.relation_of(this.name)) into filled; end if;
  if filled then perform sync.keep_rows(of); end if;
  update sync.stream set epoch = epoch + 1, handle = null, "offset" = null, position = null where id = of;
end $$;

-- All rows of a shape's epoch are here: those of older ones go. A shape that is alone needs no sync.row_shape any more.
create or replace function sync.finish_over(of int) returns void language plpgsql as $$
declare
  this sync.stream; old_keys jsonb[];
begin
  select * into this from sync.stream where id = of and has_rows;
  if not found then return; end if;
  select array_agg(key) into old_keys from sync.row_shape where stream = of and epoch < this.epoch;
  perform sync.leave(of, old_keys);
  if not exists (select from sync.stream where name = this.name and id <> of) then
    delete from sync.row_shape where stream = of;
    update sync.stream set has_rows = false where id = of;
  end if;
end $$;

-- A table gets another primary key, and its rows come anew. Local changes stay: under the new key, where what the server has of their
-- row, or what they make of it, says what that is; where not, the server will say that they name no row. sync.resume ends it.
create or replace function sync.rekey(table_name text, new_key text[]) returns void language plpgsql as $$
declare
  relation text := sync.relation_of(table_name); old_key text; moved record;
begin
  for moved in
    select s.key as old_key, s.server, (select jsonb_object_agg(k, image -> k) from unnest(new_key) k) as key
      from sync.shadow s, lateral coalesce(s.server, sync.merged(null, table_name, s.key)) image where s.name = table_name
  loop
    delete from sync.shadow s where s.name = table_name and s.key = moved.old_key;
    if moved.key is null or moved.key <> jsonb_strip_nulls(moved.key) then continue; end if;
    insert into sync.shadow values (table_name, moved.key, moved.server) on conflict do nothing;
    update sync.outbox o set key = moved.key where o.name = table_name and o.key = moved.old_key;
  end loop;
  delete from sync.row_shape r using sync.stream s where s.id = r.stream and s.name = table_name;
  update sync.stream s set has_rows = false where s.name = table_name;
  execute format('delete from %s', relation);
  select conname into old_key from pg_constraint where conrelid = relation::regclass and contype = 'p';
  if found then execute format('alter table %s drop constraint %I cascade', relation, old_key); end if;
  execute format('alter table %s add primary key (%s)', relation,
    (select string_agg(quote_ident(k), ', ' order by at) from unnest(new_key) with ordinality u (k, at)));
  for old_key in select k from sync.shape_table t, unnest(t.key) k where t.name = table_name and k <> all (new_key) loop
    execute format('alter table %s alter column %I drop not null', relation, old_key);
  end loop;
end $$;

-- The table's functions know its new key: local changes are seen again, and its shapes start over.
create or replace function sync.resume(table_name text) returns void language plpgsql as $$
begin
  perform sync.recompute(table_name, key) from sync.shadow s where s.name = table_name;
  perform sync.keep_rows(id), sync.start_over(id) from sync.stream s where s.name = table_name;
end $$;
`

/** Makes schema `sync`, or brings it up to date. */
export const install = tables + functions
