//! Stage 2. Gives each transaction that wrote the log its position: the order in which commits became visible.
//!
//! See README.md in this folder for the rules and what keeps them.

pub mod batch;
pub mod era;
pub mod launcher;
pub mod order;
pub mod rest;
pub mod retain;
pub mod step;
pub mod wait;
pub mod worker;

use std::sync::atomic::Ordering;

use crate::pg::{database, shmem};

/// A transaction of this backend that wrote the log has committed.
pub fn transaction_committed() {
    let Some(slot) = shmem::slot(database::current()) else {
        return;
    };
    if !slot.wake_worker() {
        slot.want_worker();
    }
}

/// A prepared transaction of this database may have committed: nothing of it is known here.
pub fn prepared_transaction_ended() {
    if let Some(slot) = shmem::existing_slot(database::current()) {
        slot.wake_worker();
    }
}

/// Newest position of this database that its sequencer has begun to commit; 0 if it has not since the server started.
pub fn committing() -> i64 {
    shmem::existing_slot(database::current())
        .map_or(0, |slot| slot.committing.load(Ordering::Acquire))
}
