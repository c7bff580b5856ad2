-- Keeps a shape under a name, by which visible_rows, changes and explain_shape know it. The caller must
-- own the table and be allowed to read what the shape reads; who uses it later needs the right to read, too.
--   name      not the empty text
--   relation  the table; its name is kept, and looked up when the shape is used
--   where     a condition on its rows, with :name for a parameter; what it says of current_user is about who uses the shape
--   columns   names of columns; null for all
--   replica   'default': an update has the key and the columns that changed; 'full': all columns
--   params    an object with the type of each parameter, whose value who asks for the shape gives:
--             {"user_id": "int4"}; or of which claim of the caller it is the value: {"user_id": {"type": "int4", "claim": "sub"}}
--   select shapefeed.create_shape('open_projects', 'projects', 'not done');
create function shapefeed.create_shape(
  name     text,
  relation regclass,
  "where"  text   default null,
  columns  text[] default null,
  replica  text   default 'default',
  params   jsonb  default null
) returns void
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'create_shape_wrapper';

comment on function shapefeed.create_shape is
  'Keeps a shape under a name.';
