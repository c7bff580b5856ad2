-- Gives positions to the transactions that have committed since the last call: one step of the sequencer, for servers
-- whose shared_preload_libraries lack shapefeed. A statement of its own, by the extension's owner, READ COMMITTED.
create procedure shapefeed.sequence()
  language c as 'MODULE_PATHNAME', 'shapefeed_sequence';

comment on procedure shapefeed.sequence() is
  'One step of the sequencer, where shared_preload_libraries lacks shapefeed.';
