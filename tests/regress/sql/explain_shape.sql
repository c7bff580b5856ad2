-- explain_shape: how the rows of a shape are found, what is evaluated, and whether a row is one. What it costs differs from run to run.
set client_min_messages = warning;
create table item (id int primary key, owner text, company int, price numeric, "Spalte A" text, note text);
create function explained(clause text, params text[] default null, key text[] default null,
                          out step text, out condition text, out result text, out costs bool) returns setof record
  language sql as $$ select e.step, e.condition, e.result, e.cost_ns >= 0 from shapefeed.explain_shape('item', clause, params, key => key) e $$;
insert into item values (1, 'ann', 7, 1.5, 'a', 'x'), (2, 'bob', 7, null, 'b', 'y'), (3, 'ann', null, 2, null, null);

-- By an index: equality, one of several values, several columns, either of two.
select * from explained('company = $1', '{7}', '{1}');
select * from explained('company = 7', key => '{3}');
select * from explained('company in (7, 8, 9)', key => '{2}');
select * from explained('company = any ($1)', '{"{7,8}"}', '{3}');
select * from explained('company = 7 and owner = ''ann''', key => '{1}');
select * from explained('company = 7 or owner = ''ann''', key => '{3}');
select * from explained('"Spalte A" = ''a''', key => '{1}');
-- What the index leaves is evaluated for the rows found; without it, for all.
select * from explained('company = 7 and price > 1', key => '{1}');
select * from explained('company = 7 and price > 1', key => '{2}');
select * from explained('company = 8 and price > 1', key => '{1}');
select * from explained('note like ''%x%''', key => '{1}');
select * from explained('note like ''%x%''', key => '{3}');
select * from explained(null, key => '{1}');
select * from explained('true', key => '{1}');
select * from explained('false', key => '{1}');
-- Without a row, and with one that is not there.
select * from explained('company = 7');
select * from explained('company = 7', key => '{99}');
-- It says what SELECT says, of each row and a number of conditions.
create table condition (clause text);
insert into condition values
  ('company = 7'), ('company in (7, 8)'), ('company = 7 and price > 1'), ('company = 7 or price = 2'), ('owner = ''ann'''),
  ('note is null'), ('company is distinct from 7'), ('not (company = 7)'), ('price = 1.50'), ('owner in (''ann'', null)'),
  ('company between 1 and 9'), ('"Spalte A" || note = ''ax'''), ('id = company - 6'), ('true'), ('null');
do $$
declare
  c text;
  i int;
  expected bool;
  got text;
  agreed int := 0;
begin
  for c in select clause from condition loop
    for i in select id from item loop
      execute format('select coalesce((select (%s)::bool from item where id = %s), false)', c, i) into expected;
      select result into got from shapefeed.explain_shape('item', c, key => array[i::text]) where step = 'row';
      if (got = 'in') <> expected then
        raise exception '% of row %: %', c, i, got;
      end if;
      agreed := agreed + 1;
    end loop;
  end loop;
  raise warning 'agreed: %', agreed;
end $$;

-- A key of several columns is given in its order; a partitioned table's rows are its partitions'.
create table place (id int, area text, v text, primary key (area, id)) partition by list (area);
create table place_n partition of place for values in ('north');
insert into place values (1, 'north', 'one');
select step, condition, result from shapefeed.explain_shape('place', 'v = ''one''', key => '{north,1}');
select step, condition, result from shapefeed.explain_shape('place', 'v = ''one''', key => '{1,north}');

-- Without a key a row is all of its columns.
create table keyless (v text, n int, j json);
insert into keyless values ('x', null, '{}'), ('x', null, '{}'), ('y', 2, '[]');
select step, condition, result from shapefeed.explain_shape('keyless', 'v = ''x'' and n is null', key => '{x,null,"{}"}');
select step, condition, result from shapefeed.explain_shape('keyless', 'v = ''x'' and n is null', key => '{y,2,[]}');
select step, condition, result from shapefeed.explain_shape('keyless', key => '{y,3,[]}');

-- What is refused.
\set VERBOSITY default
\set SHOW_CONTEXT never
select * from shapefeed.explain_shape(null);
select * from shapefeed.explain_shape('item', 'nothing = 1');
select * from shapefeed.explain_shape('item', 'company = $1');
select * from shapefeed.explain_shape('item', key => '{1,2}');
select * from shapefeed.explain_shape('keyless', key => '{x}');
select * from shapefeed.explain_shape('item', key => '{x}');
select * from shapefeed.explain_shape('item', 'id / 0 = 1', key => '{1}');
create role explain_reader;
grant select (id, company) on item to explain_reader;
set role explain_reader;
select step, condition, result from shapefeed.explain_shape('item', 'company = 7', columns => '{id}', key => '{1}');
select step, condition, result from shapefeed.explain_shape('item', 'owner = ''ann''', columns => '{id}', key => '{1}');
select step, condition, result from shapefeed.explain_shape('item', 'company = 7', key => '{1}');
reset role;
drop owned by explain_reader;
drop role explain_reader;
