-- The records of the log between two positions, decoded: every captured change, in capture order inside a transaction. For
-- the owner. `old` and `new` are null where the table is not what it was when the change was made.
create function shapefeed._decoded(
  from_position int8 default null,
  to_position   int8 default null,
  out "position" int8,
  out xid       int8,
  out relation  oid,
  out operation text,
  out old       jsonb,
  out new       jsonb
) returns setof record
language c volatile parallel unsafe
as 'MODULE_PATHNAME', '_decoded_wrapper';

create view shapefeed.changes_decoded as
  select d."position", c.committed_at, d.xid, d.relation::regclass as relation, d.operation, d.old, d.new
  from shapefeed._decoded() d join shapefeed.commit c using ("position");

comment on view shapefeed.changes_decoded is
  'Every captured change, for the owner.';
