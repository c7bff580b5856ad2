-- create_shape, drop_shape, shapes: a shape is kept under a name, and looked up when it is used, with the rights of who uses it.
set client_min_messages = warning;
create procedure settle() language plpgsql as $$
begin
  loop
    exit when (select pending = 0 and head is not null from shapefeed.status);
    perform pg_sleep(0.02);
  end loop;
end $$;
create table project (id int primary key, company int not null, owner text, done bool not null default false, secret text);
call shapefeed.track('project');
insert into project values (1, 7, 'ann', false, 's'), (2, 7, 'bob', true, 's'), (3, 8, 'ann', false, 's');
call settle();

select shapefeed.create_shape('open', 'project', 'not done');
select shapefeed.create_shape('Ünïcode ''n''', 'project', columns => '{id,owner}', replica => 'full');
select name, "table", "where", columns, replica, tracked from shapefeed.shapes order by name collate "C";
select * from shapefeed.visible_rows(shape => 'open') r order by r ->> 'id';
select * from shapefeed.visible_rows(shape => 'Ünïcode ''n''') r order by r ->> 'id';
select key, value from shapefeed.changes(shape => 'open') order by key;
select step, condition, result from shapefeed.explain_shape(shape => 'open', key => '{2}');
-- Its replica mode is the shape's, unless another one is given.
select head from shapefeed._head() \gset
update project set owner = 'eve' where id = 3;
call settle();
select value, old_value from shapefeed.changes(shape => 'open', from_position => :head);
select value, old_value from shapefeed.changes(shape => 'Ünïcode ''n''', from_position => :head);
select value, old_value from shapefeed.changes(shape => 'open', from_position => :head, replica => 'full');

-- A sidecar asks for it by its name: it is the shape that its words make.
select named.d ->> 'where' as "where", named.d ->> 'hash' = words.d ->> 'hash' as same
from shapefeed._define('{open}', null, null, null, 'default', 'full', null) named (d),
     shapefeed._define('{public,project}', 'not done', null, null, 'default', 'full', null) words (d);
select shapefeed._define('{open}', 'true', null, null, 'default', 'full', null);

-- What is refused.
\set VERBOSITY default
\set SHOW_CONTEXT never
select shapefeed.create_shape('open', 'project');
select shapefeed.create_shape('', 'project');
select shapefeed.create_shape(null, 'project');
select shapefeed.create_shape('x', null);
select shapefeed.create_shape('x', 'nonexistent');
select shapefeed.create_shape('x', 'pg_class');
select shapefeed.create_shape('x', 'project', 'nothing = 1');
select shapefeed.create_shape('x', 'project', 'id = $1');
select shapefeed.create_shape('x', 'project', 'now() > ''2024-01-01''');
select shapefeed.create_shape('x', 'project', columns => '{owner}');
select shapefeed.create_shape('x', 'project', columns => '{id,nothing}');
select shapefeed.create_shape('x', 'project', replica => 'some');
select * from shapefeed.visible_rows(shape => 'x');
select * from shapefeed.changes(shape => 'x');
select * from shapefeed.explain_shape(shape => 'x');
select * from shapefeed.visible_rows('project', shape => 'open');
select * from shapefeed.visible_rows("where" => 'true', shape => 'open');
select * from shapefeed.changes(shape => 'open', params => '{1}');
select * from shapefeed.changes(shape => 'open', replica => 'some');
select shapefeed.drop_shape('x');
select shapefeed.drop_shape(null);
begin read only;
select shapefeed.create_shape('x', 'project');
rollback;
begin read only;
select shapefeed.drop_shape('open');
rollback;

-- Rights: naming is for the table's owner, using for whoever may read what the shape reads.
create role shape_reader;
create role shape_stranger;
grant select (id, owner) on project to shape_reader;
call settle();
set role shape_reader;
select name, "where" from shapefeed.shapes order by name collate "C";
select * from shapefeed.visible_rows(shape => 'Ünïcode ''n''') r order by r ->> 'id';
select * from shapefeed.visible_rows(shape => 'open');
select shapefeed.create_shape('x', 'project', columns => '{id,owner}');
select shapefeed.drop_shape('open');
insert into shapefeed.shape values ('x', 'public', 'project');
set role shape_stranger;
select name, "table" from shapefeed.shapes where name = 'open';
select * from shapefeed.visible_rows(shape => 'open');
reset role;
-- An owner who may not read his own table names no shape of it, either.
create table theirs (id int primary key, owner text);
alter table theirs owner to shape_stranger;
revoke all on theirs from shape_stranger;
set role shape_stranger;
select shapefeed.create_shape('theirs', 'theirs');
reset role;
grant select on theirs to shape_stranger, shape_reader;
set role shape_stranger;
select shapefeed.create_shape('theirs', 'theirs', 'owner = current_user');
reset role;
call shapefeed.track('theirs');
insert into theirs values (1, 'shape_stranger'), (2, 'shape_reader');
call settle();
-- current_user is who uses it.
set role shape_reader;
select * from shapefeed.visible_rows(shape => 'theirs');
set role shape_stranger;
select * from shapefeed.visible_rows(shape => 'theirs');
reset role;

-- The name outlives that its table is made anew; it is its owner's to drop, and the extension's owner's while there is no table.
drop table theirs;
set role shape_stranger;
select * from shapefeed.visible_rows(shape => 'theirs');
select shapefeed.drop_shape('theirs');
reset role;
create table theirs (id int primary key, owner text);
select name, "table", tracked from shapefeed.shapes where name = 'theirs';
select * from shapefeed.visible_rows(shape => 'theirs');
call shapefeed.track('theirs');
insert into theirs values (3, current_user);
call settle();
select * from shapefeed.visible_rows(shape => 'theirs');
drop table theirs;
select shapefeed.drop_shape('theirs');
select shapefeed.drop_shape('open');
select name from shapefeed.shapes;
select * from shapefeed.visible_rows(shape => 'open');

-- A partition of a tracked table is tracked, too.
create table parts (id int primary key) partition by range (id);
create table parts_1 partition of parts for values from (1) to (10);
call shapefeed.track('parts');
select shapefeed.create_shape('part', 'parts_1');
select name, tracked from shapefeed.shapes where name = 'part';

-- What pg_dump takes along of the extension's tables.
select c.oid::regclass, cond from pg_extension e, unnest(e.extconfig, e.extcondition) u (oid, cond) join pg_class c using (oid) where extname = 'shapefeed';
drop owned by shape_reader, shape_stranger;
drop role shape_reader, shape_stranger;
