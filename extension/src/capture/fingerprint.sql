-- What a table is, as far as its log and the shapes on it depend on it; see fingerprint.rs. $1: its oid.
-- Read under a snapshot, without a lock on anything: whoever asks waits for nobody.
with recursive member(relid) as (
  select $1
  union all
  select i.inhrelid
  from member m
  join pg_class c on c.oid = m.relid and c.relkind = 'p'
  join pg_inherits i on i.inhparent = m.relid and not i.inhdetachpending
), attribute as (
  select a.* from pg_attribute a where a.attrelid = $1 and a.attnum > 0
), used(attnum, typid) as (
  select a.attnum, a.atttypid from attribute a where a.atttypid >= 16384
  union
  select u.attnum, part.typid
  from used u
  join pg_type t on t.oid = u.typid
  cross join lateral (
    select t.typbasetype union all select t.typelem
    union all select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
    union all select p.atttypid from pg_attribute p where p.attrelid = t.typrelid and p.attnum > 0
  ) part(typid)
  where part.typid >= 16384
), described as (
  select u.attnum, t.oid, t.typrelid,
         case t.typtype
           when 'e' then (select jsonb_object_agg(e.oid, e.enumlabel) from pg_enum e where e.enumtypid = t.oid)
           when 'c' then (select jsonb_agg(jsonb_build_array(p.attnum, p.atttypid::int8) order by p.attnum)
                          from pg_attribute p where p.attrelid = t.typrelid and p.attnum > 0 and not p.attisdropped)
         end as definition
  from used u join pg_type t on t.oid = u.typid and t.typtype in ('e', 'c')
)
select jsonb_build_object(
  'layout', jsonb_build_object(
    'relid', c.oid::int8, 'schema', n.nspname, 'table', c.relname, 'toast', c.reltoastrelid::int8,
    'attributes', coalesce((
      select jsonb_agg(jsonb_build_object(
        'num', a.attnum, 'name', a.attname, 'type', a.atttypid::int8, 'typmod', a.atttypmod, 'len', a.attlen,
        'byval', a.attbyval, 'align', a.attalign, 'dropped', a.attisdropped) order by a.attnum)
      from attribute a), '[]')),
  'key', coalesce((
    select jsonb_agg(k.attnum order by k.n)
    from pg_index i cross join unnest(i.indkey::int2[]) with ordinality k(attnum, n)
    where i.indrelid = c.oid and i.indisprimary and i.indisvalid and not i.indisexclusion and k.n <= i.indnkeyatts), '[]'),
  'members', (
    select jsonb_agg(jsonb_build_object(
      'relid', m.relid::int8, 'file', p.relfilenode::int8,
      'captured', p.relpersistence = 'p' and p.relkind in ('r', 'p')
        -- Rows are captured by the leaf's trigger; a partitioned table's makes those of partitions to come.
        and exists (select from pg_trigger g
                    where g.tgrelid = m.relid and g.tgname = 'shapefeed_capture' and g.tgtype = 29 and g.tgqual is null
                      and g.tgfoid = 'shapefeed.capture'::regproc and cardinality(g.tgattr::int2[]) = 0
                      and (g.tgenabled = 'A' or p.relkind = 'p'))
        and (p.relkind = 'p' or exists (
          select from pg_trigger g
          where g.tgrelid = m.relid and g.tgname = 'shapefeed_truncate' and g.tgtype = 32 and g.tgqual is null
            and g.tgfoid = 'shapefeed.capture'::regproc and g.tgenabled = 'A'))) order by m.relid)
    from member m join pg_class p on p.oid = m.relid),
  'types', coalesce((
    select jsonb_object_agg(d.attnum, d.types)
    from (select d.attnum, jsonb_object_agg(d.oid, d.definition) as types
          from described d where d.definition is not null group by d.attnum) d), '{}'),
  'rights', shapefeed._rights(c.oid),
  'rows', coalesce((select jsonb_agg(distinct d.typrelid::int8) from described d where d.typrelid <> 0), '[]'),
  -- Whether event triggers of ours have seen each rewrite: these rows are as they were, then.
  'witness', coalesce((
    select jsonb_agg(e.evtname || ' ' || e.evtenabled::text || ' ' || e.xmin::text order by e.evtname)
    from pg_event_trigger e where e.evtname like 'shapefeed\_%'), '[]'))
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = $1
