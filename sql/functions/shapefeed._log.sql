-- Operations of a shape, in order, as messages.
--   definition               as _define returns it
--   from_position, from_n    the operation after which to begin; n = 0: the whole transaction was read
--   to_position              up to there; not beyond the head
--   max_bytes                the message whose size makes the sum reach this is the last
-- Returns an operation a row; `last`: it is the shape's last in its transaction. The final row has no message: `upto` is the
-- position up to which the log was evaluated, null when max_bytes cut it; `silent`: the newest 100 transactions up to there that
-- touched the table and are no operation of the shape and more operations follow.
create function shapefeed._log(
  definition    jsonb,
  from_position int8,
  from_n        int8,
  to_position   int8,
  max_bytes     int8,
  out "position" int8,
  out n         int8,
  out message   text,
  out last      bool,
  out upto      int8,
  out silent    int8[]
) returns setof record
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', '_log_wrapper';
