-- The definition of a shape: what a request asks for, resolved against the catalogs under the rights of a role.
--   relation  {schema, table}, not quoted; or {name} of a shape that create_shape keeps, without clause, params and columns
--   where     the clause or null; params: the values of $1, $2 ...
--   columns   names, not quoted; null for all
--   replica   'default' or 'full'; of a named shape, 'default' is what it is kept with
--   log       'full' or 'changes_only'
--   role      for whom the shape is evaluated; null for the current user. The session user must be a member
--   settings  an object of texts: what else says who the caller is, as request.jwt.claims; settings with a dot in their name
--   named     an object of texts: values of the parameters of a shape that has a name
-- Returns the definition, which the other functions take; or, when the request is at fault,
-- {"errors": {field: [text]}}; or {"denied": text} when the role may not have the shape.
create function shapefeed._define(
  relation text[],
  "where"  text,
  params   text[],
  columns  text[],
  replica  text,
  log      text,
  role     text,
  settings jsonb default null,
  named    jsonb default null
) returns jsonb
language c volatile parallel unsafe
as 'MODULE_PATHNAME', '_define_wrapper';

revoke execute on function shapefeed._define(text[], text, text[], text[], text, text, text, jsonb, jsonb) from public;
