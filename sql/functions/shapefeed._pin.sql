-- The newest batch end at which a snapshot of a shape can be read: not before its table's capture was sequenced, nor before
-- anything that ended its handles.
--   definition  as _define returns it
-- Returns the position and what is visible there: exactly what has a position up to it.
create function shapefeed._pin(
  definition jsonb,
  out "position" int8, out xmin int8, out xmax int8, out xip int8[]
) returns setof record
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', '_pin_wrapper';
