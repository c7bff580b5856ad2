-- DDL on tracked tables. Event triggers, also for sessions with session_replication_role = replica.

create function shapefeed._recheck("table" oid, created bool) returns void
  strict language c as 'MODULE_PATHNAME', 'recheck_wrapper';

create function shapefeed._dropped("table" oid) returns void
  strict language c as 'MODULE_PATHNAME', 'dropped_wrapper';

create function shapefeed._ddl_command_end() returns event_trigger
  language plpgsql security definer set search_path = '' as $$
begin
  perform shapefeed._recheck(c.objid, pg_catalog.bool_and(c.command_tag = 'CREATE TABLE'))
  from pg_catalog.pg_event_trigger_ddl_commands() c
  where c.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and c.schema_name <> 'pg_temp'
    and (exists (select from shapefeed.tracked)
         or exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.objid and t.tgname = 'shapefeed_capture'))
  group by c.objid;
end $$;

create function shapefeed._sql_drop() returns event_trigger
  language plpgsql security definer set search_path = '' as $$
begin
  if pg_catalog.to_regclass('shapefeed.tracked') is not null and exists (select from shapefeed.tracked) then
    perform shapefeed._dropped(d.objid)
    from pg_catalog.pg_event_trigger_dropped_objects() d
    where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objsubid = 0
      and (d.objid in (select t.relid from shapefeed.tracked t)
           or exists (select from shapefeed.tracked t where d.objid = any (t.partitions)));
  end if;
end $$;

create event trigger shapefeed_ddl_command_end on ddl_command_end
  when tag in ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'CREATE SCHEMA', 'ALTER TRIGGER', 'DROP TRIGGER')
  execute function shapefeed._ddl_command_end();
alter event trigger shapefeed_ddl_command_end enable always;

create event trigger shapefeed_sql_drop on sql_drop execute function shapefeed._sql_drop();
alter event trigger shapefeed_sql_drop enable always;
