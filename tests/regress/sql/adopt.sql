-- A table that has all triggers of ours, and none switched off, is tracked: a dump brings the triggers, not the catalog.
set client_min_messages = error;
create function tracked() returns table ("table" regclass, partitions int) language sql as
  $$ select "table", partitions from shapefeed.tracked_tables order by "table"::text collate "C" $$;
create procedure settle() language plpgsql as $$
begin
  loop
    exit when (select pending = 0 and head is not null from shapefeed.status)
          and not exists (select from shapefeed.tracked_tables where not ready);
    perform pg_sleep(0.02);
  end loop;
end $$;

-- As pg_restore makes them: one after the other.
create table plain (id int primary key, v text);
insert into plain values (1, 'restored');
create trigger shapefeed_capture after insert or delete or update on plain for each row execute function shapefeed.capture();
alter trigger shapefeed_capture on plain depends on extension shapefeed;
alter table plain enable always trigger shapefeed_capture;
select * from tracked();
create trigger shapefeed_truncate after truncate on plain for each statement execute function shapefeed.capture();
alter trigger shapefeed_truncate on plain depends on extension shapefeed;
alter table plain enable always trigger shapefeed_truncate;
select * from tracked();
call settle();
select * from shapefeed.visible_rows('plain');
insert into plain values (2, 'new');
call settle();
select operation, value from shapefeed.changes('plain');

-- A partitioned table when its last partition is complete; partitions are not tracked by themselves.
create table parts (id int primary key, v text) partition by range (id);
create table parts_1 partition of parts for values from (1) to (10) partition by range (id);
create table parts_1_1 partition of parts_1 for values from (1) to (5);
create table parts_2 partition of parts for values from (10) to (20);
create trigger shapefeed_capture after insert or delete or update on parts for each row execute function shapefeed.capture();
alter table parts enable always trigger shapefeed_capture;
do $$
declare
  part regclass;
begin
  foreach part in array '{parts,parts_1,parts_1_1,parts_2}'::regclass[] loop
    if exists (select from tracked() t where t."table" = 'parts'::regclass) then
      raise exception 'tracked before %', part;
    end if;
    execute format('create trigger shapefeed_truncate after truncate on %s for each statement execute function shapefeed.capture()', part);
    execute format('alter table only %s enable always trigger shapefeed_truncate', part);
  end loop;
end $$;
select * from tracked();
call settle();
insert into parts values (1, 'a'), (11, 'b');
update parts set id = 12 where id = 1;
call settle();
select operation, value from shapefeed.changes('parts') order by position, operation, key;

-- Switched off and on again, as pg_restore --disable-triggers does: what was not captured ends the shapes, capture goes on.
select shapefeed._define('{public,plain}', null, null, null, 'default', 'full', null) as definition \gset
select position as pin from shapefeed._pin(:'definition') \gset
alter table plain disable trigger all;
select * from tracked();
insert into plain values (3, 'not captured');
alter table plain enable trigger all;
select * from tracked();
select tgname, tgenabled from pg_trigger where tgrelid = 'plain'::regclass order by 1;
call settle();
select state from shapefeed._place(:'definition', :pin, :pin);
select * from shapefeed.visible_rows('plain') r order by r ->> 'id';
alter table plain set unlogged;
select * from tracked();
alter table plain set logged;
select * from tracked();

-- What is not as track would make it, or cannot be tracked, is left alone.
create table less (id int primary key);
create trigger shapefeed_capture after insert on less for each row execute function shapefeed.capture();
create trigger shapefeed_truncate after truncate on less for each statement execute function shapefeed.capture();
alter table less enable always trigger shapefeed_capture, enable always trigger shapefeed_truncate;
create unlogged table unlogged (id int primary key);
create trigger shapefeed_capture after insert or delete or update on unlogged for each row execute function shapefeed.capture();
create trigger shapefeed_truncate after truncate on unlogged for each statement execute function shapefeed.capture();
alter table unlogged enable always trigger shapefeed_capture, enable always trigger shapefeed_truncate;
create table off (id int primary key);
create trigger shapefeed_capture after insert or delete or update on off for each row execute function shapefeed.capture();
create trigger shapefeed_truncate after truncate on off for each statement execute function shapefeed.capture();
alter table off disable trigger shapefeed_truncate;
select * from tracked();

-- Untracked is untracked.
call shapefeed.untrack('plain');
call shapefeed.untrack('parts');
alter table plain add column w int;
alter table parts add column w int;
select * from tracked();
select count(*) from pg_trigger where tgrelid in ('plain'::regclass, 'parts'::regclass) and not tgisinternal;
drop table less, unlogged, off;
drop extension shapefeed;
select count(*) from pg_trigger where tgname like 'shapefeed%';
