-- The rows of a table that the current user sees, as of a position.
--   relation     the table, which must be tracked
--   where        a condition on its rows; params: the values of $1, $2 ... in it
--   columns      names of columns; null for all
--   at_position  the end of a batch (shapefeed.batch); null for the newest
--   shape        name of a shape that create_shape keeps, instead of the table and what is said of it
--   named        values of that shape's parameters by name, but for those that are claims
-- Returns a row an object, its values as text. Of rows that are equal, where the table has no key, one.
--   select * from shapefeed.visible_rows('projects', 'company = $1', '{7}');
create function shapefeed.visible_rows(
  relation    regclass default null,
  "where"     text   default null,
  params      text[] default null,
  columns     text[] default null,
  at_position int8   default null,
  shape       text   default null,
  named       jsonb  default null
) returns setof jsonb
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'visible_rows_wrapper';

comment on function shapefeed.visible_rows is
  'The rows of a table that the current user sees under a condition, as of a position.';
