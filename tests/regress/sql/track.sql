-- track, untrack, tracked_tables: what can be tracked, and what a table looks like that is.
set client_min_messages = warning;
create extension if not exists shapefeed;

create table plain (id int primary key, v text);
create table "Ünïcode ""T""" ("Spalte A" text, "b/c" int, primary key ("b/c", "Spalte A"));
create table keyless (v text);
create schema "other.schema";
create table "other.schema".plain (id int primary key);

call shapefeed.track('plain');
call shapefeed.track('"Ünïcode ""T"""');
call shapefeed.track('keyless');
call shapefeed.track('"other.schema".plain');
call shapefeed.track('plain'); -- again: nothing to do
select "table", partitions from shapefeed.tracked_tables order by "table"::text collate "C";

-- Always enabled, and no obstacle to DROP EXTENSION.
select tgname, tgenabled, pg_get_triggerdef(oid) from pg_trigger where tgrelid = 'plain'::regclass order by tgname;
select count(*) as depend_on_extension from pg_depend where deptype = 'x' and refclassid = 'pg_extension'::regclass;

-- Partitions: those that are there, and those to come.
create table parts (id int, day date, primary key (id, day)) partition by range (day);
create table parts_1 partition of parts for values from ('2024-01-01') to ('2025-01-01');
call shapefeed.track('parts');
create table parts_2 partition of parts for values from ('2025-01-01') to ('2026-01-01');
select c.relname, t.tgname, t.tgenabled from pg_trigger t join pg_class c on c.oid = t.tgrelid
where c.relname like 'parts%' order by 1, 2;

-- What cannot be tracked.
create view a_view as select 1 as x;
create materialized view a_matview as select 1 as x;
create unlogged table an_unlogged (id int primary key);
create temporary table a_temporary (id int primary key);
create sequence a_sequence;
create foreign data wrapper nowhere;
create server nowhere foreign data wrapper nowhere;
create foreign table a_foreign (id int) server nowhere;
create table secured (id int primary key);
alter table secured enable row level security;
alter table secured force row level security;
create table with_foreign (id int, primary key (id)) partition by range (id);
create table with_foreign_1 partition of with_foreign for values from (1) to (2);
create table with_unlogged (id int) partition by range (id);
create unlogged table with_unlogged_1 partition of with_unlogged for values from (1) to (2);
\set VERBOSITY default
\set SHOW_CONTEXT never
call shapefeed.track('a_view');
call shapefeed.track('a_matview');
call shapefeed.track('an_unlogged');
\set VERBOSITY sqlstate
call shapefeed.track('a_temporary'); -- its schema's name differs from run to run
\set VERBOSITY default
call shapefeed.track('a_sequence');
call shapefeed.track('a_foreign');
call shapefeed.track('with_unlogged');
call shapefeed.track('pg_class');
call shapefeed.track('shapefeed.era');
call shapefeed.track('nonexistent');
call shapefeed.track(null);
create role track_somebody;
grant create on schema public to track_somebody;
set role track_somebody;
call shapefeed.track('plain');
call shapefeed.untrack('plain');
call shapefeed.rotate('plain');
create table their_own (id int primary key);
call shapefeed.track('their_own');
call shapefeed.untrack('their_own');
reset role;
alter table secured owner to track_somebody;
set role track_somebody;
call shapefeed.track('secured');
select * from shapefeed.change;
select shapefeed._note('{}');
call shapefeed.sequence();
reset role;

-- The trigger function is no function to call.
select shapefeed.capture();
create function not_ours() returns trigger language plpgsql as $$ begin return null; end $$;
create table tricky (id int);
create trigger not_shapefeed after insert on tricky for each row execute function shapefeed.capture();
insert into tricky values (1);
create trigger shapefeed_before before insert on tricky for each row execute function shapefeed.capture();
drop trigger not_shapefeed on tricky;
insert into tricky values (1);
drop trigger shapefeed_before on tricky;
-- A second one would have each change in the log twice; one of our name that fires less would lose changes.
call shapefeed.track('tricky');
create trigger shapefeed_second after insert on tricky for each row execute function shapefeed.capture();
insert into tricky values (1);
call shapefeed.untrack('tricky');
drop trigger shapefeed_second on tricky;
create trigger shapefeed_capture after insert on tricky for each row when (false) execute function shapefeed.capture();
call shapefeed.track('tricky');
drop trigger shapefeed_capture on tricky;
create trigger shapefeed_capture after insert or delete or update of id on tricky for each row execute function shapefeed.capture();
call shapefeed.track('tricky');

-- Untracking takes the triggers away.
call shapefeed.untrack('plain');
call shapefeed.untrack('plain');
call shapefeed.untrack('parts');
select count(*) from pg_trigger where tgname like 'shapefeed%' and tgrelid in ('plain'::regclass, 'parts'::regclass, 'parts_1'::regclass);

-- Dropping a tracked table, and the extension with tables tracked, needs nothing special.
drop table keyless;
select "table" from shapefeed.tracked_tables order by "table"::text collate "C";
drop table tricky;
drop extension shapefeed;
insert into "Ünïcode ""T""" values ('a', 1);
select count(*) from pg_trigger where tgname like 'shapefeed\_%' and not tgisinternal;
drop table their_own, secured;
revoke create on schema public from track_somebody;
drop role track_somebody;
