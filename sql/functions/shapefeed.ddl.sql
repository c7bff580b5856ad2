-- DDL on tracked tables. Event triggers, also for sessions with session_replication_role = replica. What they do not see the
-- sequencer notices, a moment later (extension/src/capture/survey.rs); they have it in the transaction of the command.

create function shapefeed._recheck("table" oid, created bool) returns void
  strict language c as 'MODULE_PATHNAME', 'recheck_wrapper';

create function shapefeed._dropped("table" oid) returns void
  strict language c as 'MODULE_PATHNAME', 'dropped_wrapper';

-- Who may read a table (extension/src/capture/rights.rs).
create function shapefeed._rights("table" oid) returns jsonb
  stable language sql set search_path = pg_catalog, pg_temp as $$
  with given(role, "column") as (
    select a.grantee, 0
    from pg_class c cross join aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
    where c.oid = "table" and a.privilege_type = 'SELECT'
    union
    select a.grantee, c.attnum
    from pg_attribute c cross join aclexplode(c.attacl) a
    where c.attrelid = "table" and not c.attisdropped and a.privilege_type = 'SELECT'
  ), columns(role, columns) as (
    select case g.role when 0 then 'public' else pg_get_userbyid(g.role) end, jsonb_agg(g."column" order by g."column")
    from given g group by 1
  )
  select jsonb_build_object(
    'owner', pg_get_userbyid(c.relowner), 'secured', c.relrowsecurity, 'forced', c.relforcerowsecurity,
    'schema', (
      select coalesce(jsonb_agg(u.role order by u.role), '[]')
      from (select distinct case a.grantee when 0 then 'public' else pg_get_userbyid(a.grantee) end as role
            from aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a where a.privilege_type = 'USAGE') u),
    'columns', (select coalesce(jsonb_object_agg(g.role, g.columns), '{}') from columns g),
    'policies', (
      select coalesce(jsonb_object_agg(p.polname, jsonb_build_object(
        'roles', (select jsonb_agg(case r when 0 then 'public' else pg_get_userbyid(r) end) from unnest(p.polroles) r),
        'text', md5(format('%s %s', p.polpermissive, p.polqual)))), '{}')
      from pg_policy p where p.polrelid = c.oid and p.polcmd in ('r', '*')))
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where c.oid = "table"
$$;

create function shapefeed._ddl_command_start() returns event_trigger
  language c as 'MODULE_PATHNAME', 'shapefeed_ddl_command_start';

create function shapefeed._table_rewrite() returns event_trigger
  language c as 'MODULE_PATHNAME', 'shapefeed_table_rewrite';

create function shapefeed._ddl_command_end() returns event_trigger
  language plpgsql security definer set search_path = '' as $$
begin
  perform shapefeed._recheck(c.relid, pg_catalog.bool_and(c.created))
  from (
    select case c.classid
             when 'pg_catalog.pg_class'::pg_catalog.regclass then c.objid
             when 'pg_catalog.pg_trigger'::pg_catalog.regclass
               then (select t.tgrelid from pg_catalog.pg_trigger t where t.oid = c.objid)
             when 'pg_catalog.pg_policy'::pg_catalog.regclass
               then (select p.polrelid from pg_catalog.pg_policy p where p.oid = c.objid)
           end as relid, c.command_tag = 'CREATE TABLE' as created
    from pg_catalog.pg_event_trigger_ddl_commands() c
    where c.schema_name is distinct from 'pg_temp'
    union all
    -- A schema's name is part of those of its tables, and a type may be used by any.
    select t.relid, false from shapefeed.tracked t where tg_tag in ('ALTER SCHEMA', 'ALTER TYPE')
    union all
    -- Of these Postgres does not say which objects they are about.
    select t.relid, false from shapefeed.tracked t
    where tg_tag in ('GRANT', 'REVOKE') and t.fingerprint -> 'rights' <> shapefeed._rights(t.relid)
  ) c
  where c.relid is not null
    and (exists (select from shapefeed.tracked)
         or exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.relid and t.tgname = 'shapefeed_capture'))
  group by c.relid;
end $$;

create function shapefeed._sql_drop() returns event_trigger
  language plpgsql security definer set search_path = '' as $$
begin
  if pg_catalog.to_regclass('shapefeed.writable') is not null and exists (select from shapefeed.writable) then
    delete from shapefeed.writable w using pg_catalog.pg_event_trigger_dropped_objects() d
    where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objsubid = 0 and d.objid = w.relid::oid;
  end if;
  if pg_catalog.to_regclass('shapefeed.tracked') is not null and exists (select from shapefeed.tracked) then
    perform shapefeed._dropped(d.objid)
    from pg_catalog.pg_event_trigger_dropped_objects() d
    where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objsubid = 0
      and (d.objid in (select t.relid from shapefeed.tracked t)
           or exists (select from shapefeed.tracked t where d.objid = any (t.partitions)));
    -- Columns, with a type that they were of; triggers; policies.
    perform shapefeed._recheck(d.relid, false)
    from (
      select case d.classid
               when 'pg_catalog.pg_class'::pg_catalog.regclass then d.objid
               else pg_catalog.to_regclass(pg_catalog.format('%I.%I', d.address_names[1], d.address_names[2]))::oid
             end as relid
      from pg_catalog.pg_event_trigger_dropped_objects() d
      where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objsubid <> 0
         or d.classid in ('pg_catalog.pg_trigger'::pg_catalog.regclass, 'pg_catalog.pg_policy'::pg_catalog.regclass)
    ) d
    where exists (select from shapefeed.tracked t where d.relid = any (t.partitions))
    group by d.relid;
  end if;
end $$;

create event trigger shapefeed_ddl_command_start on ddl_command_start
  when tag in ('ALTER TABLE') execute function shapefeed._ddl_command_start();
alter event trigger shapefeed_ddl_command_start enable always;

create event trigger shapefeed_table_rewrite on table_rewrite execute function shapefeed._table_rewrite();
alter event trigger shapefeed_table_rewrite enable always;

create event trigger shapefeed_ddl_command_end on ddl_command_end
  when tag in ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'CREATE SCHEMA', 'ALTER SCHEMA', 'ALTER TYPE', 'ALTER TRIGGER',
               'GRANT', 'REVOKE', 'CREATE POLICY', 'ALTER POLICY')
  execute function shapefeed._ddl_command_end();
alter event trigger shapefeed_ddl_command_end enable always;

create event trigger shapefeed_sql_drop on sql_drop execute function shapefeed._sql_drop();
alter event trigger shapefeed_sql_drop enable always;
