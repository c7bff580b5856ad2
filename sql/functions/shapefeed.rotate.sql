-- Ends every shape on a table, so that its clients read it again. The caller must own the table.
create function shapefeed._rotate_owned("table" regclass) returns void
  strict language c as 'MODULE_PATHNAME', 'rotate_once_wrapper';

create procedure shapefeed.rotate("table" regclass)
  language sql as $$ select shapefeed._rotate_owned("table") $$;

-- The same for a sidecar, which may.
create procedure shapefeed._rotate_table("table" oid)
  language sql security definer set search_path = '' as $$
  select shapefeed._note(pg_catalog.jsonb_build_object('ends',
    pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object('relid', "table"::int8, 'reason', 'rotate'))))
$$;

-- Ends the shapes of one definition, named by its hash.
create procedure shapefeed._rotate(definition_hash text)
  language sql security definer set search_path = '' as $$
  select shapefeed._note(pg_catalog.jsonb_build_object('ends',
    pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object('shape', definition_hash, 'reason', 'rotate'))))
$$;

comment on procedure shapefeed.rotate(regclass) is
  'Ends every shape on a table, so that its clients read it again.';
