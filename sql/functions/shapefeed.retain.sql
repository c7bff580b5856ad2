-- Retention, for servers whose shared_preload_libraries lack shapefeed (elsewhere the worker does it each second): drops
-- the oldest part of the log once it is older than shapefeed.retention, or the log larger than shapefeed.retention_size.
-- A statement of its own, by the extension's owner. Sidecars call it.
create function shapefeed._retain(skip int4) returns int4
  language c strict as 'MODULE_PATHNAME', 'retain_once_wrapper';

create function shapefeed._retain_gaps() returns void
  language c as 'MODULE_PATHNAME', 'retain_gaps_wrapper';

-- Looks at tables that have changed, and notes what has ended by it.
create function shapefeed._look() returns void
  language c set search_path = pg_catalog, pg_temp as 'MODULE_PATHNAME', 'look_wrapper';

create procedure shapefeed.retain() language plpgsql as $$
declare
  tries int := 0;
  skip int := 0;
  member int;
  holders text;
begin
  loop
    member := shapefeed._retain(skip);
    commit;
    exit when member is null;
    tries := case when member < 0 then 0 else tries + 1 end;
    if tries >= 10 then
      select pg_catalog.string_agg(h.holder, ', ') into holders from shapefeed._make_way(member::int2) h where not h.cancelled;
      if holders is not null then
        raise warning 'shapefeed cannot drop the oldest changes, member % of its log: used by %', member, holders;
        skip := skip | (1 << member);
      end if;
      tries := 0;
    elsif tries > 0 then
      perform pg_catalog.pg_sleep(0.05);
    end if;
  end loop;
  perform shapefeed._retain_gaps();
  commit;
  perform shapefeed._prune_writes();
  commit;
  perform shapefeed._look();
end $$;

-- Who uses a member of the ring. Statements of shapefeed's own readers, which lock table floor as well, are cancelled: they
-- should have ended within a second.
create function shapefeed._make_way(member int2, out holder text, out cancelled bool) returns setof record
  language sql volatile set search_path = '' as $$
  with holders as (
    select distinct l.pid, l.virtualtransaction,
           exists (select from pg_catalog.pg_locks f
                   where f.pid = l.pid and f.locktype = 'relation' and f.database = l.database
                     and f.relation = 'shapefeed.floor'::pg_catalog.regclass) as is_reader
    from pg_catalog.pg_locks l
    where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_catalog.pg_backend_pid()
      and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
      and l.relation in (select c.oid from pg_catalog.pg_class c
                         where c.relnamespace = 'shapefeed'::pg_catalog.regnamespace
                           and c.relname in ('change_' || "member", 'commit_' || "member", 'batch_' || "member"))
  )
  select case when h.pid is null
              then (select 'prepared transaction ' || pg_catalog.string_agg(pg_catalog.quote_literal(p.gid), ', ')
                    from pg_catalog.pg_locks x join pg_catalog.pg_prepared_xacts p on p.transaction = x.transactionid
                    where x.virtualtransaction = h.virtualtransaction and x.locktype = 'transactionid' and x.pid is null)
              else 'process ' || h.pid end,
         h.is_reader and pg_catalog.pg_cancel_backend(h.pid)
  from holders h
$$;

-- Closes gaps, one step for each call, each in a transaction of its own:
-- a gap is closed for those that look from now on; then it is noted who may have looked before; then, when these have
-- ended, capture of the table begins anew, by a note in the log. Meanwhile no shape of the table begins.
create function shapefeed._close_gaps() returns void language plpgsql set search_path = '' as $$
declare
  whole oid[];
begin
  with ended as (
    delete from shapefeed.closing_gap g
    where not exists (select from pg_catalog.pg_locks l
                      where l.locktype = 'transactionid' and l.granted and l.transactionid = any (g.waits_for))
      and g.waits_for is not null
    returning g.relid
  )
  select pg_catalog.array_agg(e.relid) into whole from ended e;
  if whole is not null then
    perform shapefeed._note(pg_catalog.jsonb_build_object('tracked', pg_catalog.to_jsonb(whole::int8[])));
  end if;

  -- Whoever leaves changes of a table or partition out has an id and, on what it wrote to, a lock.
  update shapefeed.closing_gap g
  set waits_for = array(
    select distinct x.transactionid
    from pg_catalog.pg_locks r
    join pg_catalog.pg_locks x on x.virtualtransaction = r.virtualtransaction and x.pid is not distinct from r.pid
    where r.locktype = 'relation' and r.mode not in ('AccessShareLock', 'RowShareLock')
      and r.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
      and r.relation in (select g.relid union select t.relid from pg_catalog.pg_partition_tree(g.relid) t)
      and x.locktype = 'transactionid' and x.granted)
  where g.waits_for is null;

  with opened as (delete from shapefeed.gap g returning g.relid)
  insert into shapefeed.closing_gap (relid)
  select distinct o.relid from opened o
  on conflict (relid) do update set waits_for = null;
end $$;
