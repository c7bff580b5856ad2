-- Forgets a named shape. The caller must own its table or, where that is gone, the extension.
create function shapefeed.drop_shape(name text) returns void
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'drop_shape_wrapper';

comment on function shapefeed.drop_shape is
  'Forgets a named shape.';
