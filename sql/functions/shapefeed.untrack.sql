-- Ends capturing a table: its triggers go, and every shape on it ends. Waits for locks as track does.
create function shapefeed._untrack("table" regclass) returns void
  strict language c set lock_timeout = '50ms' as 'MODULE_PATHNAME', 'untrack_once_wrapper';

create procedure shapefeed.untrack("table" regclass) language plpgsql as $$
declare
  give_up_at timestamptz := clock_timestamp() + interval '30 s';
  pause_s float8 := 0.01;
begin
  if "table" is null then
    raise exception using errcode = 'null_value_not_allowed', message = 'the table is null';
  end if;
  loop
    begin
      perform shapefeed._untrack("table");
      return;
    exception when lock_not_available then
      if shapefeed._in_transaction_block() or clock_timestamp() > give_up_at then
        raise exception using errcode = 'lock_not_available',
          message = pg_catalog.format('table %s is in use', "table"),
          hint = 'CALL shapefeed.untrack() outside a transaction block when long transactions on the table have ended.';
      end if;
    end;
    commit;
    perform pg_sleep(pause_s);
    pause_s := least(pause_s + pause_s, 0.5);
  end loop;
end $$;

comment on procedure shapefeed.untrack(regclass) is
  'Ends capturing a table, and every shape on it.';
