-- Shapes read from SQL: snapshots as of a batch end, logs, the feed, and what people see.
create procedure settle() language plpgsql as $$
begin
  loop
    exit when (select pending = 0 and head is not null from shapefeed.status);
    perform pg_sleep(0.02);
  end loop;
end $$;
-- A snapshot as text, a piece a line.
create function snapshot(definition jsonb, at int8, threshold int8, cursor text default null) returns setof text language sql as
  $$ select convert_from(s, 'UTF8') from (select shapefeed._snapshot(definition, at, threshold, cursor) s) x $$;
-- A message without what differs from run to run.
create function plain(message text) returns text language sql as
  $$ select regexp_replace(regexp_replace(message, '"txids":\[\d+\]', '"txids":[?]'), '"lsn":"\d+"', '"lsn":"?"') $$;

create table item (id int primary key, owner text, done bool, price numeric, code char(4), at timestamptz);
create table tag (name text, n int);
create table place (id int, area text, v text, primary key (area, id)) partition by list (area);
create table place_n partition of place for values in ('north/1');
create table place_s (gone int, v text, area text not null, id int not null);
alter table place_s drop column gone;
alter table place attach partition place_s for values in ('so"uth');
call shapefeed.track('item');
call shapefeed.track('tag');
call shapefeed.track('place');
insert into item select g, 'o' || g % 2, g % 2 = 0, g * 1.50, 'c' || g, '2024-01-01 12:00+02' from generate_series(1, 5) g;
insert into tag values ('a', 1), ('a', 1), ('b', null);
insert into place values (1, 'north/1', 'one'), (2, 'so"uth', 'two');
call settle();
select shapefeed._define('{public,item}', null, null, null, 'default', 'full', null) as items \gset
select shapefeed._define('{public,item}', 'owner = $1', '{o1}', '{id,price}', 'full', 'full', null) as mine \gset
select shapefeed._define('{public,tag}', null, null, null, 'default', 'full', null) as tags \gset
select shapefeed._define('{public,place}', null, null, null, 'default', 'full', null) as places \gset
select position as pin from shapefeed._pin(:'items') \gset
select xmin > 0 as has_xmin, xmax >= xmin as has_xmax, xip from shapefeed._batch(:pin);

-- One chunk: physical order.
select snapshot(:'items', :pin, 1000000);
select snapshot(:'tags', :pin, 1000000);
select snapshot(:'places', :pin, 1000000);

-- Changes after the pin do not show in a snapshot of the pin, in whatever chunks it is read.
select shapefeed._attach('{1,2,3,4}', array[:'items', :'mine', :'tags', :'places']::jsonb[]) >= :pin as attached;
update item set price = price + 1 where id = 1;
update item set id = 10 where id = 2;
delete from item where id = 3;
begin;
insert into item values (7, 'o1', null, null, null, null);
update item set owner = 'o1' where id = 4;
update item set owner = 'o0' where id = 5;
savepoint s;
delete from item;
rollback to s;
commit;
update item set owner = owner; -- changes nothing
begin; insert into item values (8); delete from item where id = 8; commit; -- leaves nothing
delete from tag where ctid = (select min(ctid) from tag where name = 'a');
delete from tag where name = 'a';
update tag set n = 2;
insert into tag values ('b', 2);
update place set area = 'so"uth' where id = 1;
update place set v = 'zwei' where id = 2;
call settle();
select snapshot(:'items', :pin, 300);
select snapshot(:'items', :pin, 300, '16777524');
select snapshot(:'mine', :pin, 1000000);
select snapshot(:'tags', :pin, 80);
select snapshot(:'places', :pin, 1000000);

-- Logs: from a position, from inside a transaction, cut by size.
select head from shapefeed._head() \gset
select position - :pin as p, n, plain(message), last, upto = :head as all from shapefeed._log(:'items', :pin, 0, :head, 1000000);
select position - :pin as p, n, plain(message), last, upto = :head as all from shapefeed._log(:'mine', :pin, 0, :head, 1000000);
select position - :pin as p, n, plain(message), last, upto = :head as all from shapefeed._log(:'tags', :pin, 0, :head, 1000000);
select position - :pin as p, n, plain(message), last, upto = :head as all from shapefeed._log(:'places', :pin, 0, :head, 1000000);
select position - :pin as p, n, last, upto = :head as all from shapefeed._log(:'items', :pin + 4, 1, :head, 1000000);
select position - :pin as p, n, last, upto from shapefeed._log(:'items', :pin, 0, :head, 300);

-- The feed tells the same, each message once.
select ids, position - :pin as p, n, plain(message), last, kind from shapefeed._feed(1000000) where kind not in ('touch', 'changed');
select shapefeed._detach('{1,2,3}');
insert into item values (20);
truncate place;
call settle();
select ids, message, kind from shapefeed._feed(1000000) where kind not in ('touch', 'changed');
select state, reason from shapefeed._place(:'items', :pin, :head);
select state, reason from shapefeed._place(:'places', :pin, :pin);
select state, reason from shapefeed._place(:'items', :pin, 1);
\set VERBOSITY sqlstate
select snapshot(:'places', :pin, 1000);
select * from shapefeed._log(:'places', :pin, 0, :head, 1000);
select snapshot(:'items', :pin, 1000, '123');
select snapshot(:'items', :pin - 1000000000, 1000);
begin isolation level serializable;
select * from shapefeed._batch(:pin);
rollback;
\set VERBOSITY default

-- A where clause that fails on a row ends its own shape, and tells no values.
select shapefeed._define('{public,item}', 'id / (id - 21) < 99', null, null, 'default', 'full', null) as failing \gset
select shapefeed._attach('{5,6}', array[:'failing', :'items']::jsonb[]) is not null as attached;
insert into item values (21);
call settle();
select ids, plain(message), kind from shapefeed._feed(1000000) where kind not in ('touch', 'changed');
select snapshot(:'failing', (select position from shapefeed._pin(:'failing')), 1000);
drop table item;
call settle();
select ids, message, kind from shapefeed._feed(1000000) where kind not in ('touch', 'changed');

-- From the pin on once more, for somebody who is behind.
select shapefeed._attach_at('{7}', array[:'tags']::jsonb[], :pin) = :pin as attached;
select ids, plain(message), kind from shapefeed._feed(1000000) where kind not in ('touch', 'changed');
select shapefeed._attach_at('{8}', array[:'tags']::jsonb[], 1);
select shapefeed._detach('{7}');

-- For people.
create table note (id int primary key, body text, secret text);
call shapefeed.track('note');
create role regress_reader;
grant select (id, body) on note to regress_reader;
insert into note values (1, 'one', 's'), (2, 'two', 's');
update note set body = 'zwei' where id = 2;
call settle();
select shapefeed._define('{public,note}', 'id in (select id from note)', null, null, 'default', 'full', null) as member \gset
select shapefeed._attach_at('{8}', array[:'member']::jsonb[], :pin);
select * from shapefeed.visible_rows('note');
select * from shapefeed.visible_rows('note', 'body = $1', '{one}', '{id}');
select operation, key, value, old_value from shapefeed.changes('note', replica => 'full');
select relation, operation, old, new from shapefeed.changes_decoded where relation = 'note'::regclass;
set role regress_reader;
select * from shapefeed.visible_rows('note', columns => '{id,body}');
select * from shapefeed.visible_rows('note');
select * from shapefeed.visible_rows('note', 'secret = ''s''', columns => '{id}');
select operation, value from shapefeed.changes('note', columns => '{id,body}');
select count(*) from shapefeed.changes_decoded;
select * from shapefeed._feed(1);
reset role;
drop owned by regress_reader;
drop role regress_reader;
select * from shapefeed.visible_rows('place_n', at_position => 1);
select * from shapefeed.visible_rows('pg_class');
