-- Returns when the head is above `after`, or when `timeout_ms` have passed. Sleeps without a snapshot: nothing is held
-- back by it. A statement of its own, under READ COMMITTED; the next statement sees the new head.
create procedure shapefeed.wait("after" int8, timeout_ms int4)
  language c as 'MODULE_PATHNAME', 'shapefeed_wait';

comment on procedure shapefeed.wait(int8, int4) is
  'Returns when the head is above a position, or after so many milliseconds.';
