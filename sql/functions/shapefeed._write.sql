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

-- Positions of transactions, of those that have one. One that is gone from the log has at most that up to which it was
-- emptied.
create function shapefeed._positions(xids xid8[], out xid xid8, out "position" int8) returns setof record
  language plpgsql stable security definer set search_path = '' as $$
begin
  return query select c.xid, c.position from shapefeed.commit c where c.xid = any (xids);
end $$;

-- Forgets what nobody asks for any more: applied transactions of before the log's retention, and clients that have not
-- written for longer than shapefeed.write_client_retention. Part of it: there may be more.
create function shapefeed._prune_writes(retention interval, client_retention interval) returns void
  language plpgsql set search_path = '' as $$
begin
  delete from shapefeed.write_result r
  where r.ctid = any (array(
    select o.ctid from shapefeed.write_result o
    where o.rejection is null and o.recorded_at < pg_catalog.now() - retention
    order by o.recorded_at limit 10000));
  with gone as (
    delete from shapefeed.write_client c
    where c.id = any (array(
      select o.id from shapefeed.write_client o
      where o.used_at < pg_catalog.now() - client_retention
      for update skip locked limit 1000))
    returning c.id
  )
  delete from shapefeed.write_result r using gone g where r.client = g.id;
end $$;
