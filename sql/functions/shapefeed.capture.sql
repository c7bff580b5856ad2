-- The trigger function. EXECUTE stays with PUBLIC: a table's owner who adds a partition has the row trigger cloned as
-- himself. Called in any other way than as a trigger of ours it raises an error.
create function shapefeed.capture() returns trigger
  language c as 'MODULE_PATHNAME', 'shapefeed_capture';
