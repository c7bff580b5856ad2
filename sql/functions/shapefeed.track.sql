-- Begins capturing a table: its triggers, and a note in the log that gives the beginning a position.
-- The caller must own the table. Doing it again repairs what is missing.
--
-- CREATE TRIGGER needs a lock that waits for open writers, and every later writer would queue behind it. So each try
-- waits 50 ms at most and lets go again; between tries, outside any transaction, the writers go on. In a transaction
-- block there is one try. A procedure that commits cannot set search_path: so what it calls is found exactly, or qualified.

create function shapefeed._track("table" regclass) returns void
  strict language c set lock_timeout = '50ms' as 'MODULE_PATHNAME', 'track_once_wrapper';

create function shapefeed._in_transaction_block() returns bool
  language c as 'MODULE_PATHNAME', 'in_transaction_block_wrapper';

create procedure shapefeed.track("table" regclass) language plpgsql as $$
declare
  give_up_at timestamptz := clock_timestamp() + interval '30 s';
  pause_s float8 := 0.01;
begin
  if "table" is null then
    raise exception using errcode = 'null_value_not_allowed', message = 'the table is null';
  end if;
  loop
    begin
      perform shapefeed._track("table");
      return;
    exception when lock_not_available then
      if shapefeed._in_transaction_block() then
        raise exception using errcode = 'lock_not_available',
          message = pg_catalog.format('table %s has open writers', "table"),
          hint = 'CALL shapefeed.track() outside a transaction block: there it tries again.';
      end if;
    end;
    if clock_timestamp() > give_up_at then
      raise exception using errcode = 'lock_not_available',
        message = pg_catalog.format('table %s had open writers for 30 s', "table"),
        hint = 'Call shapefeed.track() again when long transactions on the table have ended.';
    end if;
    commit;
    perform pg_sleep(pause_s);
    pause_s := least(pause_s + pause_s, 0.5);
  end loop;
end $$;

comment on procedure shapefeed.track(regclass) is
  'Begins capturing a table. Never queues writers; outside a transaction block it tries again for 30 s.';
