-- Opens a table for writing by clients through POST /v1/write. What a caller may write there is decided by his role's rights
-- and by policies, as in SQL. The caller must own the table. Doing it again replaces the operations.
--   operations  of insert, update and delete
create function shapefeed._allow_writes("table" regclass, operations text[]) returns void
  language c as 'MODULE_PATHNAME', 'allow_writes_wrapper';

create procedure shapefeed.allow_writes("table" regclass, operations text[] default '{insert,update,delete}')
  language plpgsql set search_path = '' as $$
begin
  perform shapefeed._allow_writes("table", operations);
end $$;

comment on procedure shapefeed.allow_writes(regclass, text[]) is
  'Opens a table for writing by clients, within their rights.';

-- Closes it again.
create function shapefeed._disallow_writes("table" regclass) returns void
  language c as 'MODULE_PATHNAME', 'disallow_writes_wrapper';

create procedure shapefeed.disallow_writes("table" regclass)
  language plpgsql set search_path = '' as $$
begin
  perform shapefeed._disallow_writes("table");
end $$;

comment on procedure shapefeed.disallow_writes(regclass) is
  'Closes a table for writing by clients.';

create view shapefeed.writable_tables as
  select w.relid as "table", w.operations, w.opened_at from shapefeed.writable w;

comment on view shapefeed.writable_tables is
  'Tables that are open for writing by clients.';
