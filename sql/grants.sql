-- Who may call what. Internal functions start with `_` and are nobody's but the owner's, until grant_sidecar() says so.
do $$
declare
  f regprocedure;
begin
  for f in select p.oid from pg_catalog.pg_proc p
           where p.pronamespace = 'shapefeed'::regnamespace and (p.proname like '\_%' or p.proname in ('sequence', 'retain'))
             and p.proname not in ('_track', '_untrack', '_rotate_owned', '_in_transaction_block', '_allow_writes', '_disallow_writes') -- these check the caller
  loop
    execute format('revoke all on routine %s from public', f);
  end loop;
end $$;

grant usage on schema shapefeed to public;
grant select on shapefeed.tracked_tables, shapefeed.shapes, shapefeed.writable_tables to public;
grant select on shapefeed.shape, shapefeed.writable to public; -- or pg_dump would fail for a role that may read what it dumps

-- Lets a role be a sidecar's connection: the functions that it calls, and nothing else. Rows of user tables are read
-- with that role's own rights, or with those of a role that it is a member of.
create function shapefeed.grant_sidecar("role" regrole) returns void
  language plpgsql set search_path = '' as $$
declare
  f regprocedure;
begin
  for f in select p.oid from pg_catalog.pg_proc p
           where p.pronamespace = 'shapefeed'::regnamespace
             and p.proname in ('_define', '_head', '_pin', '_batch', '_place', '_snapshot', '_subset', '_log', '_attach', '_attach_at', '_detach',
                               '_feed', '_rotate', '_rotate_table', '_write', '_reject', '_positions')
  loop
    execute pg_catalog.format('grant execute on routine %s to %s', f, "role");
  end loop;
end $$;
revoke all on function shapefeed.grant_sidecar(regrole) from public;

-- Called once by CREATE EXTENSION: the first record of the log, whose commit starts the sequencer.
select shapefeed._note('{"created": []}');
