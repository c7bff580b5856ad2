-- For people.

create view shapefeed.tracked_tables as
  select t.relid::regclass as "table", t.since is not null as ready, t.since as since_position, t.tracked_at,
         cardinality(t.partitions) - 1 as partitions
  from shapefeed.tracked t;

-- The state of the feed, one row. `pending` transactions wrote the log and have no position yet. The log reaches back to
-- `emptied_up_to`. Changes of tables with `gaps` are left out: the log is full, or was until a moment ago. Part of the log
-- cannot be emptied because transactions that wrote to it are `prepared`, or because processes (`held_by`) use it in a
-- transaction that began more than 5 s ago: one that reads the log itself, or whose commit waits for a standby.
create view shapefeed.status as
  with newest as (
    select position, snapshot, ended_at from shapefeed.batch order by position desc limit 1
  ), waiting as (
    select count(distinct c.xid) as transactions
    from shapefeed.change c
    where c.xid >= coalesce((select pg_snapshot_xmin(snapshot) from newest), '0')
      and not pg_visible_in_snapshot(c.xid, (select snapshot from newest))
  )
  select n.position as head,
         n.ended_at as head_at,
         w.transactions as pending,
         case when w.transactions > 0 then clock_timestamp() - n.ended_at else interval '0' end as lag,
         case when pg_is_in_recovery() then 'standby: positions come from the primary'
              when not s.preloaded then 'not preloaded: call shapefeed.sequence(), or add shapefeed to shared_preload_libraries'
              when s.worker_pid is null then 'no worker: see the server log'
              else 'running' end as worker,
         s.worker_pid,
         (select count(*) from shapefeed.tracked) as tracked_tables,
         (select max(f.position) from shapefeed.floor f) as emptied_up_to,
         array(select distinct g.relid::regclass::text from (select relid from shapefeed.gap union all
                                                       select relid from shapefeed.closing_gap) g order by 1) as gaps,
         array(select distinct p.gid from pg_prepared_xacts p
               join pg_locks x on x.locktype = 'transactionid' and x.transactionid = p.transaction
               join pg_locks l on l.virtualtransaction = x.virtualtransaction and l.pid is null
               join pg_class c on c.oid = l.relation and c.relnamespace = 'shapefeed'::regnamespace
               where l.locktype = 'relation' and p.database = current_database() order by 1) as prepared,
         array(select distinct a.pid from pg_stat_activity a
               join pg_locks l on l.pid = a.pid and l.locktype = 'relation' and l.granted
               join pg_class c on c.oid = l.relation and c.relnamespace = 'shapefeed'::regnamespace
               where a.datname = current_database() and a.xact_start < clock_timestamp() - interval '5 s'
                 and l.database = (select d.oid from pg_database d where d.datname = current_database())
                 and c.relname ~ '^(change|commit|batch)_[0-7]$' and a.pid <> pg_backend_pid() order by 1) as held_by,
         (select sum(pg_total_relation_size(c.oid)) from pg_class c
          where c.relnamespace = 'shapefeed'::regnamespace and c.relkind = 'r')::int8 as disk_bytes
  from shapefeed._server() s cross join waiting w left join newest n on true;

comment on view shapefeed.status is
  'The state of the feed: head, lag, worker, disk.';
comment on view shapefeed.tracked_tables is
  'Tables that are captured, and from which position on.';
