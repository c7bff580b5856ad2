-- How the feed finds the rows of a shape of the current user, and whether a row is one.
--   relation     the table
--   where        a condition on its rows; params: the values of $1, $2 ... in it
--   columns      names of columns; null for all
--   key          the values of a row's primary key, in its order, or of all columns where there is no key; null for no row
--   shape        name of a shape that create_shape keeps, instead of the table and what is said of it
--   named        values of that shape's parameters by name, but for those that are claims
-- Returns rows of a step:
--   'index'      an entry of the routing index by which rows are found; looking up costs cost_ns in all
--   'every row'  there is no condition; 'no index': the conditions are evaluated for each row
--   'evaluate'   a condition that is evaluated for each row that is found; cost_ns: for the row, or any row of the table
--   'row'        the row is 'in' or 'not in', or there is 'no such row'
-- select * from shapefeed.explain_shape('projects', 'company = $1 and name ilike ''a%''', '{7}', key => '{42}');
create function shapefeed.explain_shape(
  relation regclass default null,
  "where"  text   default null,
  params   text[] default null,
  columns  text[] default null,
  key      text[] default null,
  shape    text   default null,
  named    jsonb  default null,
  out step      text,
  out condition text,
  out result    text,
  out cost_ns   float8
) returns setof record
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'explain_shape_wrapper';

comment on function shapefeed.explain_shape is
  'How the feed finds the rows of a condition, what evaluating it costs, and whether a row is one.';
