//! Waiting for the head to pass a position, without a snapshot.

use super::batch;
use crate::guc::RING_MEMBERS;
use crate::pg::log_tables::{self, Ring};
use crate::pg::{background, database, reading, shmem, xact};

/// How often a standby, or a server that did not preload the library, looks for a new head, in milliseconds.
const LOOK_MS: i64 = 4;

/// Returns when the head is above `after`, or after `timeout_ms`. The caller holds no snapshot.
pub fn for_head_above(after: i64, timeout_ms: i64) {
    match shmem::slot(database::current()) {
        Some(slot) if !xact::in_recovery() => slot.wait_for_head(after, timeout_ms),
        _ => look_until(after, timeout_ms),
    }
}

fn look_until(after: i64, timeout_ms: i64) {
    let deadline = xact::clock_us() + timeout_ms * 1000;
    while !is_above(after) && xact::clock_us() < deadline {
        background::sleep(LOOK_MS);
    }
}

fn is_above(after: i64) -> bool {
    let above = xact::with_latest_snapshot(|| {
        batch::newest().is_some_and(|newest| newest.position > after)
    });
    // A lock that lasts as long as the sleep would keep retention from the log.
    (0..RING_MEMBERS)
        .filter_map(|number| log_tables::member(Ring::Batch, number))
        .for_each(|member| reading::unlock_shared(member.table));
    xact::forget_catalog_snapshot();
    above
}
