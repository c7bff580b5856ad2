-- Utility commands pass a hook of the extension. Errors inside them come out with all that they have.
create extension if not exists shapefeed;
\set VERBOSITY sqlstate
do $$ begin raise exception using errcode = 'AB123', message = 'an error of an application'; end $$;
create procedure failing() language plpgsql as $$ begin raise exception using errcode = 'AB124'; end $$;
call failing();
copy (select 1 / 0) to stdout;
explain analyze select 1 / 0;
\set VERBOSITY default
\set SHOW_CONTEXT always
create table broken (id nosuchtype);
do $$ begin perform 1 / 0; end $$;
-- The name of a constraint crosses it too.
create table checked (id int constraint positive check (id > 0));
create procedure fill(id int) language sql as $$ insert into checked values (id) $$;
do $$
declare name text;
begin
  execute 'call fill(-1)';
exception when check_violation then
  get stacked diagnostics name = constraint_name;
  raise notice 'constraint %', name;
end $$;
