-- shapefeed._define: what a request asks for, or what is wrong with it. Never an exception.
set client_min_messages = warning;
create extension if not exists shapefeed;
begin;
create type mood as enum ('ok', 'bad');
create domain positive as int check (value > 0);
create domain word as text;
create table items (
  id int8 primary key, title text, status varchar(10), amount numeric(8,2), due timestamptz, day date, feel mood,
  tags text[], meta jsonb, size positive, name word, at time(3), span interval day to second, code char(3),
  doubled numeric generated always as (amount * 2) stored
);
create role define_reader;
create role define_stranger;
grant select (id, title) on items to define_reader;

create function define(clause text, variadic params text[] default '{}') returns text language sql as $$
  select coalesce(d ->> 'denied', 'where: ' || (d #>> '{errors,where,0}'), d ->> 'where', 'every row')
  from shapefeed._define('{public,items}', clause, params, null, 'default', 'full', null) d
$$;
create function define_columns(relation text, variadic columns text[]) returns jsonb language sql as $$
  select case when d ? 'relid' then jsonb_build_object('columns', d -> 'columns', 'key', d -> 'key') else d end
  from shapefeed._define(array['public', relation], null, null, columns, 'default', 'full', null) d
$$;

-- A definition. It is a function of the request: its hash changes with every part of it.
select d - array['relid', 'relids', 'hash', 'schema_header', 'role', 'untracked'] as definition,
       d -> 'relids' = jsonb_build_array('items'::regclass::oid::int8) as relids, d ->> 'hash' ~ '^\d+$' as hash
from shapefeed._define('{public,items}', 'id > $1', '{7}', '{title,id}', 'full', 'changes_only', null) d;
select column_name, info
from shapefeed._define('{public,items}', null, null, null, 'default', 'full', null) d,
     jsonb_each(d -> 'schema_header') as header (column_name, info) order by column_name;
select count(distinct d ->> 'hash') as hashes, count(*) as requests
from (values ('id = 1', null::text[], 'default', 'full', null::text), ('id = $1', '{1}', 'default', 'full', null),
             ('(id) = 1', '{}', 'default', 'full', 'postgres'), ('id = 2', null, 'default', 'full', null),
             ('id = 1', null, 'full', 'full', null), ('id = 1', null, 'default', 'changes_only', null))
       as request (clause, params, replica, log, role),
     shapefeed._define('{public,items}', clause, params, '{id}', replica, log, coalesce(role, current_user)) d;

-- Canonical text
select define('true'), define(null), define('1 = 1'), define('false'), define('null');
select define('id IN (1, 2) AND NOT items.status LIKE ''a%'' OR title IS NULL');
select define('id = $1 AND status = $2 AND tags @> $3 AND due > $4', '9007199254740993', 'it''s', '{a,"b c"}', '2024-01-01T00:00:00.000Z');
select define('feel = ''ok'' and feel = $1 and day between $2 and ''2024-02-03''', 'bad', '2024-01-01');
select define('$1 is not null and title = lower($1)', 'ABC'), define('title = any($1)', '{a,b}');
select define('meta ->> ''who'' = ''me'' and meta @> ''{"k": 3}'''), define('name = ''x'' and size > 3');
select define('case when amount > 10 then title ~ ''^a'' else coalesce(title, ''x'') = upper(status) end');
select define('due::date = ''2024-01-01'' and to_char(due, ''YYYY'') = ''2024''');
select define('due > ''2024-01-01''::timestamptz - interval ''1 day'' and due at time zone ''UTC'' < ''2025-01-01''');
select define('id::text || title = concat(title, id)'), define('(id, title) > (1, ''a'')'), define('tags[1] = ''a''');
select define('-id = -1 and amount > 1.50 and amount < 1e3');

-- The session's user and settings are folded, and so are SQL functions that inline to them.
set app.tenant = '42';
select define('title = current_user'), define('title = session_user::text'), define('id = current_setting(''app.tenant'')::int');
create function tenant() returns int8 stable language sql as $$ select current_setting('app.tenant')::int8 $$;
create function clock() returns timestamptz stable language sql as $$ select now() $$;
create function plain(int8) returns int8 immutable language plpgsql as $$ begin return $1; end $$;
select define('id = tenant()'), define('id = plain(1)');
set shapefeed.allowed_functions = 'public.tenant, public.clock,public.plain';
select define('id = tenant()'), define('due < clock()'), define('id = plain(1)'), define('id = plain(id)');
select define('id = current_setting(title)::int');

-- What changes while no row does is refused.
select define('due > now()'), define('id = 1 and day < current_date'), define('due < localtimestamp');
select define('random() < 0.5'), define('id = pg_backend_pid()'), define('age(due) > ''1 day''');
select define('due > ''now'''), define('day = date ''Tomorrow'''), define('day = $1', 'today'), define('title = ''today''');
select define('title::timestamptz > due'), define('tags::date[] = ''{}'''), define('(meta->>''due'')::date = day'), define('to_date(title, ''YYYY'') = day');
select define('title @@ ''x''::tsquery'), define('id = ''pg_class''::regclass::oid::int8');
select define('size = 3::positive'), define('ctid = ''(0,1)'''), define('items is null'), define('items = items');

-- Errors have the protocol's words and positions.
select define('1 x 1');
select define('id ='), define('true; drop table items'), define('true;'), define('true limit 1');
select define('true group by id'), define('true union select 1'), define('true) or (true'), define('id = 1 order by 1');
select define('id = 1 and foo = 2'), define('other.id = 1'), define('id'), define('id = ''x'''), define('title = 1');
select define('é = 1'), define('title = ''é'' and foo = 1'), define('nofunction(id) = 1'), define('id @@@ 1');
select define('id in (select 1)'), define('count(*) > 1'), define('rank() over () = 1'), define('generate_series(1, 2) = id');
select define('id = $2', '1'), define('id = $1', 'x'), define('id = $1 and title = $1', '1'), define('id = $0');
select define('1 / 0 = id'), define('id = 99999999999999999999'), left(define(repeat('x', 70000)), 60);
select define(repeat('(', 30000)) ~ 'memory exhausted', define(repeat('not ', 16000) || 'true'), define('');

-- Tables and columns
create view a_view as select 1 as id;
create temp table a_temporary (id int);
create unlogged table an_unlogged (id int primary key);
create table "Keyless" (a int, b text);
create table keyed (b int, a int, c text, primary key (a, b) deferrable);
create table empty ();
select case when d ? 'relid' then d -> 'key' else d end
from unnest('{keyed,Keyless,nonexistent,a_view,an_unlogged,empty}'::text[]) name,
     shapefeed._define(array['public', name], null, null, null, 'default', 'full', null) d;
select d from unnest('{pg_catalog.pg_class,information_schema.sql_features,shapefeed.tracked,nowhere.x,pg_temp.a_temporary,items}'::text[]) name,
     shapefeed._define(string_to_array(name, '.'), null, null, null, 'default', 'full', null) d;
select define_columns('keyed', 'c', 'x'), define_columns('keyed', 'b', 'a', 'y', 'x'), define_columns('keyed', 'b', 'a');
select define_columns('items', 'id', 'doubled'), define_columns('Keyless', 'b');
select shapefeed._define('{public,items}', null, null, null, 'some', 'full', null),
       shapefeed._define('{public,items}', null, null, null, 'full', 'some', null);
create table parts (id int primary key) partition by range (id);
create table parts_1 partition of parts for values from (0) to (10) partition by range (id);
create table parts_11 partition of parts_1 for values from (0) to (5);
select array(select jsonb_array_elements_text(d -> 'relids')::oid::regclass) from
  shapefeed._define('{public,parts}', null, null, null, 'default', 'full', null) d;
insert into shapefeed.tracked (relid, fingerprint, partitions) values ('parts'::regclass, '{}', '{}');
select d -> 'tracked' as tracked from shapefeed._define('{public,parts}', null, null, null, 'default', 'full', null) d;
delete from shapefeed.tracked;

-- Rights
create function define_as(role text, clause text, columns text[]) returns text language sql as $$
  select coalesce(d ->> 'denied', d ->> 'errors', d ->> 'where', 'granted')
  from shapefeed._define('{public,items}', clause, null, columns, 'default', 'full', role) d
$$;
select define_as('define_reader', null, '{id,title}'), define_as('define_reader', null, null);
select define_as('define_reader', 'title = current_user', '{id}');
select define_as('define_reader', 'amount > 3', '{id}'), define_as('define_reader', 'true or amount > 3', '{id}');
select define_as('define_stranger', null, '{id}'), define_as('nobody', null, '{id}');
grant usage on schema shapefeed to define_reader;
grant execute on all functions in schema shapefeed to define_reader;
grant execute on function define_as to define_reader;
set session authorization define_reader;
select define_as(null, null, '{id}'), define_as('postgres', null, '{id}'), define_as('define_stranger', null, '{id}');
reset session authorization;
alter table items enable row level security;
select define_as('define_reader', null, '{id}'), define_as(null, null, '{id}');
alter table items disable row level security;

-- Nothing of it stays behind.
set timezone = 'Asia/Tokyo';
set datestyle = 'German';
select define_as('define_reader', 'due > now()', '{id}'), define_as(null, 'due > ''1.2.2024''', null),
       current_user, current_setting('timezone'), current_setting('datestyle');
rollback;
