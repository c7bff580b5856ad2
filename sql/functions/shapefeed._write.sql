-- One transaction of a client, as one transaction here: a statement of its own.
--   client      names who sends it, across its connections
--   seq         its number: 1, 2, … of this client
--   operations  an array of {"operation": "insert" | "update" | "delete", "table": [schema, name], "key": {…}, "value": {…},
--               "base": {…}}; values are texts or null
--   role        whose rights decide; null for the current user. The session user must be a member
--   settings    an object of texts: who the caller is, as for _define
-- Returns an object with `status`:
--   applied   with `xid`, or without one if the record of it is gone
--   rejected  what `rejection` says; nothing was changed
--   gap       seq is above `last_seq` + 1
--   foreign   the client belongs to another caller
-- What was applied or rejected once is answered again and not done again. What may succeed later is raised as an error,
-- and leaves nothing behind.
create function shapefeed._write(client uuid, seq int8, operations jsonb, role text default null, settings jsonb default null)
  returns jsonb
language c volatile parallel unsafe
as 'MODULE_PATHNAME', '_write_wrapper';

-- Records that a transaction which failed only when it committed is rejected; nothing if it is done already. Returns what
-- _write would.
create function shapefeed._reject(client uuid, seq int8, rejection jsonb, role text default null, settings jsonb default null)
  returns jsonb
language c volatile parallel unsafe
as 'MODULE_PATHNAME', '_reject_wrapper';

-- Positions of transactions: null of one that has none yet. What is gone from the log has that of the newest batch, which is
-- as good: who has seen everything up to there has seen it. `head`: that of the newest batch, at the same moment. The log's tables
-- are never analyzed: their indexes are to be used however small they were when it was planned.
create function shapefeed._positions(xids xid8[], out xid xid8, out "position" int8, out head int8) returns setof record
  language plpgsql stable security definer
  set search_path = '' set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
  return query
    select x.xid,
           coalesce(c.position, case when pg_catalog.pg_visible_in_snapshot(x.xid, n.snapshot) then n.position end),
           n.position
    from unnest(xids) x (xid)
    left join shapefeed.commit c on c.xid = x.xid
    left join (select b.position, b.snapshot from shapefeed.batch b order by b.position desc limit 1) n on true;
end $$;

-- Forgets what nobody asks for any more: applied transactions from before the log's retention, and clients that have not
-- written for longer than shapefeed.write_client_retention, with what was rejected of theirs. A part of it: there may be more.
create function shapefeed._prune_writes() returns void
  language plpgsql set search_path = '' as $$
declare
  keep_from timestamptz := pg_catalog.now() - pg_catalog.current_setting('shapefeed.retention')::interval;
  keep_clients_from timestamptz := pg_catalog.now() - pg_catalog.current_setting('shapefeed.write_client_retention')::interval;
begin
  delete from shapefeed.write_result r
  where r.ctid = any (array(
    select o.ctid from shapefeed.write_result o
    where o.rejection is null and o.recorded_at < keep_from
    order by o.recorded_at limit 10000));
  with gone as (
    delete from shapefeed.write_client c
    where c.id = any (array(
      select o.id from shapefeed.write_client o where o.used_at < keep_clients_from limit 1000 for update skip locked))
    returning c.id
  )
  delete from shapefeed.write_result r using gone g where r.client = g.id;
end $$;
