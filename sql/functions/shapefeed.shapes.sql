-- Named shapes of tables of which the current user may read something; for the extension's owner all. `tracked`: their
-- table is, so that they can be read. For people.
create view shapefeed.shapes as
  select s.name, format('%I.%I', s."schema", s."table") as "table", s."where", s.columns, s.replica, s.created_at,
         exists (select from shapefeed.tracked t
                 where t.relid = c.oid or t.relid in (select a.relid from pg_partition_ancestors(c.oid) a)) as tracked
  from shapefeed.shape s
  left join pg_namespace n on n.nspname = s."schema"
  left join pg_class c on c.relnamespace = n.oid and c.relname = s."table"
  where coalesce(has_schema_privilege(n.oid, 'usage') and has_any_column_privilege(c.oid, 'select'), false)
     or pg_has_role((select e.extowner from pg_extension e where e.extname = 'shapefeed'), 'usage');

comment on view shapefeed.shapes is
  'Named shapes, as create_shape keeps them.';
