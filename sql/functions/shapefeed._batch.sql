-- What is visible at a batch end; no row if there is no batch that ends at this position.
create function shapefeed._batch(
  "position" int8,
  out xmin int8, out xmax int8, out xip int8[]
) returns setof record
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', '_batch_wrapper';
