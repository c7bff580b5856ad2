-- Whether a client of a shape can go on from where it stands.
--   definition  as _define returns it
--   pin         the position of the snapshot that the client began with
--   position    where it stands now
-- Returns state 'ok'; 'later': this server has not replayed the position yet; 'gone': the client must refetch, and why.
create function shapefeed._place(
  definition jsonb,
  pin        int8,
  "position"   int8,
  out state  text,
  out reason text
) returns setof record
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', '_place_wrapper';
