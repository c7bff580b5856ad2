-- Puts a note into the log: epochs and shapes that end (`ends`), tables whose capture begins (`tracked`).
create function shapefeed._note(note jsonb) returns void
  strict language c as 'MODULE_PATHNAME', 'note_wrapper';
