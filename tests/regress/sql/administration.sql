-- Who may call what, and what people see of the feed: status, wait, rotate, grant_sidecar, the functions of the sidecar.
set client_min_messages = warning;
create procedure settle() language plpgsql as $$
begin
  loop
    exit when (select pending = 0 and head is not null from shapefeed.status);
    perform pg_sleep(0.02);
  end loop;
end $$;
create table note (id int primary key, body text, secret text);
create table hidden (id int primary key);
call shapefeed.track('note');
call shapefeed.track('hidden');
create role regress_plain;
grant select on note to regress_plain; -- it may see what happens from here on
insert into note values (1, 'one', 's');
insert into hidden values (1);
call settle();

-- A role that may read one table calls what is for everybody, and reads no table of the extension but the list of tables.
select p.oid::regprocedure as for_everybody from pg_proc p
where p.pronamespace = 'shapefeed'::regnamespace and has_function_privilege('regress_plain', p.oid, 'execute') order by p.oid::regprocedure::text;
select c.oid::regclass as readable from pg_class c
where c.relnamespace = 'shapefeed'::regnamespace and c.relkind in ('r', 'v', 'p', 'm', 'S')
  and has_table_privilege('regress_plain', c.oid, 'select, insert, update, delete, truncate, references, trigger') order by 1;
select has_schema_privilege('regress_plain', 'shapefeed', 'create') as may_create;
set role regress_plain;
\set SHOW_CONTEXT never
select * from shapefeed.visible_rows('note');
select operation, value from shapefeed.changes('note');
select * from shapefeed.visible_rows('hidden');
select * from shapefeed.changes('hidden');
select * from shapefeed.visible_rows('note', 'exists (select from hidden)');
select * from shapefeed.visible_rows('shapefeed.tracked');
select count(*) from shapefeed.status;
select * from shapefeed._head();
select shapefeed._define('{public,note}', null, null, null, 'default', 'full', null);
call shapefeed._rotate('1');
call shapefeed._rotate_table(1);
select shapefeed.grant_sidecar('regress_plain');
select shapefeed._recheck(1, true);
select shapefeed._dropped(1);
select shapefeed._rotate_owned('note');
reset role;

-- A sidecar's role calls what a sidecar calls; it still reads what it may SELECT.
create role regress_sidecar;
select shapefeed.grant_sidecar('regress_sidecar');
select p.oid::regprocedure as for_a_sidecar from pg_proc p
where p.pronamespace = 'shapefeed'::regnamespace and has_function_privilege('regress_sidecar', p.oid, 'execute')
  and not has_function_privilege('regress_plain', p.oid, 'execute') order by p.oid::regprocedure::text;
select shapefeed._define('{public,note}', null, null, null, 'default', 'full', null) as definition \gset
set session authorization regress_sidecar;
select shapefeed._define('{public,note}', null, null, null, 'default', 'full', null);
-- Nor with a definition that somebody else has made, or that it has made up.
select position from shapefeed._pin(:'definition') \gset
select shapefeed._snapshot(:'definition', :position, 1000);
select * from shapefeed._log(:'definition', :position, 0, :position, 1000);
select shapefeed._snapshot(jsonb_set(:'definition', '{role}', '"regress_sidecar"'), :position, 1000);
select * from shapefeed._log(jsonb_set(:'definition', '{role}', '"regress_sidecar"'), :position, 0, :position, 1000);
select shapefeed._attach('{1}', array[:'definition']::jsonb[]) > 0 as attached;
select ids, kind, message from shapefeed._feed(1000) where kind <> 'upto';
select shapefeed._snapshot('{}', :position, 1000);
select shapefeed._attach('{1,2}', array['{}']::jsonb[]);
select shapefeed._attach('{1}', '{null}');
select shapefeed._attach('{null}', array[:'definition']::jsonb[]);
reset session authorization;

-- What was granted once is looked at again each time.
grant select on note to regress_sidecar;
call settle();
select position from shapefeed._pin(:'definition') \gset
set session authorization regress_sidecar;
select shapefeed._define('{public,note}', null, null, null, 'default', 'full', null) as its_own \gset
select shapefeed._snapshot(:'its_own', :position, 1000) is not null as read limit 1;
reset session authorization;
revoke select on note from regress_sidecar;
grant select (id, body) on note to regress_sidecar;
set session authorization regress_sidecar;
select shapefeed._snapshot(:'its_own', :position, 1000);
select * from shapefeed._log(:'its_own', :position, 0, :position, 1000);
select shapefeed._attach('{1}', array[:'its_own']::jsonb[]) > 0 as attached;
select ids, kind, message from shapefeed._feed(1000) where kind <> 'upto';
reset session authorization;

-- Status, head, and waiting for it.
call settle();
select head > 0 as head, pending, lag, worker, worker_pid > 0 as pid, tracked_tables, disk_bytes > 0 as disk from shapefeed.status;
select feed <> 0 as feed, head = (select head from shapefeed.status) as head, resting <= head as resting, in_recovery, preloaded from shapefeed._head();
select preloaded, worker_pid > 0 as pid, head = (select head from shapefeed._head()) as head from shapefeed._server();
select count(*) from shapefeed._batch(1);
select head from shapefeed._head() \gset
call shapefeed.wait(:head - 1, 60000);
call shapefeed.wait(:head, 1);
call shapefeed.wait(:head, -1);
call shapefeed.wait(null, null);
-- In a procedure as well, which goes on with a snapshot of its own.
do $$ begin call shapefeed.wait(0, 0); perform count(*) from pg_class; commit; call shapefeed.wait(0, 0); perform 1; end $$;
create function waiting() returns void language plpgsql as $$ begin call shapefeed.wait(0, 0); end $$;
select waiting();
do $$ declare r record; begin for r in select * from pg_class loop call shapefeed.wait(0, 0); end loop; end $$;
begin;
call shapefeed.wait(0, 0);
rollback;
insert into note values (2, 'two', 's');
call shapefeed.wait(:head, 60000);
select head > :head as moved from shapefeed._head();
call shapefeed.sequence();

-- Rotating ends the shapes of a table, or of one definition; nothing else.
create function place(definition jsonb, pin int8) returns text language sql as
  $$ select concat_ws(': ', state, reason) from shapefeed._place(definition, pin, pin) $$;
select shapefeed._define('{public,note}', 'id = 1', null, null, 'default', 'full', null) as other \gset
select shapefeed._define('{public,hidden}', null, null, null, 'default', 'full', null) as hidden \gset
call settle();
select position as pin from shapefeed._pin(:'definition') \gset
call shapefeed._rotate(:'other'::jsonb ->> 'hash');
call settle();
select place(:'definition', :pin), place(:'other', :pin), place(:'hidden', :pin);
call shapefeed.rotate('note');
call settle();
select place(:'definition', :pin), place(:'hidden', :pin);
call shapefeed._rotate_table('hidden'::regclass);
call settle();
select place(:'hidden', :pin);
call shapefeed.rotate(null);
call shapefeed.rotate('nonexistent');
call shapefeed._rotate(null);

-- What changes() and visible_rows() refuse.
\set VERBOSITY default
select head from shapefeed._head() \gset
select count(*) from shapefeed.changes('note', from_position => :head, to_position => :head - 5);
select * from shapefeed.changes('note', from_position => 1);
select * from shapefeed.changes('note', replica => 'some');
select * from shapefeed.changes('note', columns => '{body}');
select * from shapefeed.changes('note', 'id = $1', '{x}');
select * from shapefeed.changes(null);
select * from shapefeed.visible_rows(null);
select * from shapefeed.visible_rows(1);
select * from shapefeed.visible_rows('note', 'body = ''x'' and nothing');
create table untracked (id int);
select * from shapefeed.visible_rows('untracked');
select * from shapefeed.changes('untracked');
begin isolation level serializable;
select * from shapefeed.visible_rows('note');
rollback;
select count(*) from shapefeed._decoded(null, 1);

drop owned by regress_plain, regress_sidecar;
drop role regress_plain, regress_sidecar;
