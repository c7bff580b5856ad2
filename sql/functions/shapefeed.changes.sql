-- What happened to the rows of a table that the current user sees, between two positions: an operation for each row and
-- transaction, in order.
--   relation       the table, which must be tracked
--   where          a condition on its rows; params: the values of $1, $2 ... in it
--   columns        names of columns; null for all
--   from_position  after this one; null: from where the log of the table begins
--   to_position    up to this one; null: to the newest
--   replica        'default', also if null: an update has the key and the columns that changed; 'full': all columns, and what changed
--                  as it was
--   shape          name of a shape that create_shape keeps, instead of the table and what is said of it
--   named          values of that shape's parameters by name, but for those that are claims
-- Returns values as text; `txid`: the transaction.
--   select * from shapefeed.changes('projects', 'company = $1', '{7}');
create function shapefeed.changes(
  relation      regclass default null,
  "where"       text   default null,
  params        text[] default null,
  columns       text[] default null,
  from_position int8   default null,
  to_position   int8   default null,
  replica       text   default null,
  shape         text   default null,
  named         jsonb  default null,
  out "position" int8,
  out operation text,
  out key       text,
  out value     jsonb,
  out old_value jsonb,
  out txid      int8
) returns setof record
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'changes_wrapper';

comment on function shapefeed.changes is
  'What happened between two positions to the rows that the current user sees under a condition.';
