-- The rows of a shape as of a batch end, in chunks. To be used as
--   copy (select shapefeed._snapshot(...)) to stdout (format binary)
-- where it streams.
--   definition  as _define returns it
--   position    the batch end
--   threshold   bytes of rows after which a chunk ends
--   cursor      where the chunk before ended; null: from the start
-- Returns pieces. The first byte says what a piece is:
--   'D'  rows: JSON objects joined by ",\n"; about 64 kB
--   'C'  a chunk ends; its cursor follows, in decimal digits
--   'E'  the snapshot ends
-- Without a cursor, rows that fit one chunk come in physical order. All others come in key order, and each chunk is a
-- function of the position, the cursor and the threshold.
create function shapefeed._snapshot(
  definition jsonb,
  "position"   int8,
  threshold  int8,
  cursor     text default null
) returns setof bytea
language c volatile parallel unsafe
as 'MODULE_PATHNAME', '_snapshot_wrapper';
