-- Named shapes. Like views and policies, everybody may see what they are; reading their rows is another matter. `tracked`:
-- their table is, so that they can be read. For people.
create view shapefeed.shapes as
  select s.name, format('%I.%I', s."schema", s."table") as "table", s."where", s.columns, s.replica, s.params, s.created_at,
         exists (select from shapefeed.tracked t
                 where t.relid = c.oid or t.relid in (select a.relid from pg_partition_ancestors(c.oid) a)) as tracked
  from shapefeed.shape s
  left join pg_namespace n on n.nspname = s."schema"
  left join pg_class c on c.relnamespace = n.oid and c.relname = s."table";

comment on view shapefeed.shapes is
  'Named shapes, as create_shape keeps them.';
