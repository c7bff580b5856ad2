-- The feed of one sidecar. Shapes are attached in the session, so these need one connection of their own.

-- Has the feed tell of shapes, too.
--   ids          names of the caller's; one that is attached already is replaced
--   definitions  as _define returns them, one for each id
-- Returns the position after which the feed tells of all that are attached. A shape that cannot be attached is told of as
-- ended by the next read.
create function shapefeed._attach(ids int4[], definitions jsonb[]) returns int8
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', '_attach_wrapper';

-- Has the feed tell of these shapes alone, as far back as the log reaches: for those who are behind. Arguments as above;
--   position  after which it tells of them; what ended up to there was over before
create function shapefeed._attach_at(ids int4[], definitions jsonb[], "position" int8) returns int8
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', '_attach_at_wrapper';

-- Has the feed tell of shapes no more.
create function shapefeed._detach(ids int4[]) returns void
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', '_detach_wrapper';

-- What has happened to the attached shapes since the last call, in order of position; as much as half a second allows.
--   max_bytes  the transaction whose messages make the sum reach this is the last
-- Returns rows of a kind:
--   'op'    an operation: `message` for the shapes `ids`; `last`: it is the last of its transaction for them
--   'touch' a transaction, whose id is `n` (its low 32 bits), touched the tables `ids`; before its operations
--   'changed' what the catalogs say of the tables `ids`, or of what their shapes use, has changed: ask _define again
--   'skip'  the transaction at `position` moves too many rows of the shapes `ids` to be told here: _log tells
--   'end'   the shapes `ids` have ended at `position`, and are detached; `message` says why
--   'clause' the same, and it is their where clause that is at fault: it raises an error, or takes too long
--   'upto'  the last row: everything up to `position` is evaluated
-- SQLSTATE SF410 in a session without shapes, also after an error: attach all again.
create function shapefeed._feed(
  max_bytes      int8,
  out ids        int4[],
  out "position" int8,
  out n          int8,
  out message    text,
  out last       bool,
  out kind       text
) returns setof record
language c volatile strict parallel unsafe
as 'MODULE_PATHNAME', '_feed_wrapper';
