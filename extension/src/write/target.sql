select c.relkind::text,
       -- `only`: the rows of tables that inherit from an ordinary one are other rows, and may have the same keys
       c.relkind = 'r',
       pg_catalog.format('%I.%I', n.nspname, c.relname),
       (select pg_catalog.jsonb_object_agg(a.attname, a.atttypid::int8) from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
       (select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(a.attname, pg_catalog.format('operator(%I.%s)', s.nspname, o.oprname)) order by p.place)
        from pg_catalog.pg_index i
        cross join pg_catalog.generate_series(0, i.indnkeyatts - 1) p (place)
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[p.place]
        join pg_catalog.pg_opclass t on t.oid = i.indclass[p.place]
        join pg_catalog.pg_amop f on f.amopfamily = t.opcfamily and f.amoplefttype = t.opcintype and f.amoprighttype = t.opcintype
                                 and f.amopstrategy = 3
        join pg_catalog.pg_operator o on o.oid = f.amopopr
        join pg_catalog.pg_namespace s on s.oid = o.oprnamespace
        where i.indrelid = c.oid and i.indisprimary and i.indisvalid and not i.indisexclusion),
       -- row triggers that may have a row left alone: BEFORE, for UPDATE and for DELETE
       exists (select from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgtype & 19 = 19),
       exists (select from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgtype & 11 = 11),
       -- nothing but a key, and no other rows that exclude each other: who has the key has the row
       (select pg_catalog.count(*) = 1
               and pg_catalog.bool_and(i.indisprimary and i.indimmediate and i.indnkeyatts =
                 (select pg_catalog.count(*) from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped))
        from pg_catalog.pg_index i where i.indrelid = c.oid and (i.indisunique or i.indisexclusion))
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.oid = $1
