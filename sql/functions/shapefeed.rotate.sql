-- Ends every shape on a table, so that its clients read it again. The caller must own the table.
create function shapefeed._rotate_table("table" oid) returns void
  strict language sql security definer set search_path = '' as $$
  select shapefeed._note(pg_catalog.jsonb_build_object('ends',
    pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object('relid', "table"::int8, 'reason', 'rotate'))))
$$;

-- Ends the shapes of one definition, named by its hash.
create function shapefeed._rotate(definition_hash text) returns void
  strict language sql security definer set search_path = '' as $$
  select shapefeed._note(pg_catalog.jsonb_build_object('ends',
    pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object('shape', definition_hash, 'reason', 'rotate'))))
$$;

create procedure shapefeed.rotate("table" regclass) language plpgsql security definer set search_path = '' as $$
begin
  if not exists (select from pg_catalog.pg_class c where c.oid = "table"
                 and pg_catalog.pg_has_role(session_user, c.relowner, 'usage')) then
    raise exception using errcode = 'insufficient_privilege', message = format('must be owner of table %s', "table");
  end if;
  perform shapefeed._rotate_table("table");
end $$;
