-- Where the log stands on this server: the newest position, and the newest one at which idle clients rest.
create function shapefeed._head(out feed int8, out head int8, out resting int8, out in_recovery bool, out preloaded bool)
  language sql stable security definer set search_path = '' as $$
  select f.id,
         (select b.position from shapefeed.batch b order by b.position desc limit 1),
         (select b.position from shapefeed.batch b where b.resting order by b.position desc limit 1),
         pg_catalog.pg_is_in_recovery(),
         (select s.preloaded from shapefeed._server() s)
  from shapefeed.feed f
$$;
