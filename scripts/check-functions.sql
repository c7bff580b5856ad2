-- Creates each SQL and PL function of the extension again, this time with its body checked.
do $$
declare
  function record;
begin
  for function in
    select p.oid::regprocedure as name, pg_get_functiondef(p.oid) as definition
    from pg_proc p
    join pg_language l on l.oid = p.prolang
    join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
    join pg_extension e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
    where e.extname = 'shapefeed' and l.lanname not in ('c', 'internal')
  loop
    begin
      execute function.definition;
    exception when others then
      raise exception '%: %', function.name, sqlerrm;
    end;
  end loop;
end
$$;
