-- Rows of a shape as of the newest batch end: those that a client chooses, ordered and cut.
--   definition  as _define returns it
--   where       the client's clause or null, beside the shape's own; params: the values of $1, $2 ...
--   order_by    expressions with directions, or null; numbers stand for selected columns. Rows that are equal in it are
--               ordered by their key
--   limit, offset  rows; null for all
--   queryable   names of the columns that the clauses may name; null for all
--   mark        a number that every message carries
-- Returns pieces. The first byte says what a piece is:
--   'X'  the request is at fault: {field: [text]}; nothing follows
--   'M'  xmin, xmax and xip_list of the batch; position: its end; settled: where a client goes on that had nothing
--   'D'  rows: JSON objects joined by ",\n"; about 64 kB
--   'E'  the subset ends
create function shapefeed._subset(
  definition jsonb,
  "where"    text,
  params     text[],
  order_by   text,
  "limit"    int8,
  "offset"   int8,
  queryable  text[],
  mark       int4
) returns setof bytea
language c volatile parallel unsafe
as 'MODULE_PATHNAME', '_subset_wrapper';
