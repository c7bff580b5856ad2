//! The launcher: starts a sequencer in each database that has the extension, and again when one ended by accident.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use crate::guc;
use crate::pg::background::{self, Wake};
use crate::pg::shmem::{self, Slot};
use crate::pg::{database, xact};

/// How long it sleeps when nobody wakes it, in milliseconds.
const IDLE_MS: i64 = 10_000;
/// How long it waits before it starts a sequencer again, in milliseconds.
const RETRY_MS: i64 = 1000;
/// How long it waits for a database's first answer, in milliseconds.
const VISIT_MS: i64 = 10_000;

/// Runs until the server stops.
pub fn run() {
    background::connect_without_database();
    shmem::register_launcher();
    if visit_without_slot() == Wake::Stop {
        return;
    }
    let mut started_us: HashMap<u32, i64> = HashMap::new();
    loop {
        let Started { waiting, released } = start_wanted(&mut started_us);
        if released && visit_without_slot() == Wake::Stop {
            return;
        }
        if background::wait(if waiting { RETRY_MS } else { IDLE_MS }) == Wake::Stop {
            return;
        }
    }
}

/// Looks into each database that has no slot for the extension, one after the other.
fn visit_without_slot() -> Wake {
    let only = guc::databases();
    let databases = background::in_transaction(database::all);
    for database in databases
        .into_iter()
        .filter(|d| only.is_empty() || only.contains(&d.name))
        .filter(|d| shmem::existing_slot(d.oid).is_none())
    {
        let Some(worker) = background::start_sequencer(database.oid) else {
            continue;
        };
        let deadline = xact::clock_us() + VISIT_MS * 1000;
        let settled = || {
            shmem::existing_slot(database.oid).is_some_and(|slot| slot.worker_pid() != 0)
                || worker.has_ended()
        };
        while !settled() && xact::clock_us() < deadline {
            if background::wait(20) == Wake::Stop {
                return Wake::Stop;
            }
        }
    }
    Wake::Look
}

/// What came of a look at the slots.
#[derive(Default)]
struct Started {
    /// One must be looked at again soon.
    waiting: bool,
    /// One is free now: a database that found none may have it.
    released: bool,
}

/// Starts the sequencers that are wanted and do not run.
fn start_wanted(started_us: &mut HashMap<u32, i64>) -> Started {
    let mut outcome = Started::default();
    let without = |slot: &&Slot| slot.database() != 0 && slot.worker_pid() == 0;
    if !shmem::slots().iter().any(|slot| without(&slot)) {
        return outcome;
    }
    let databases = background::in_transaction(database::all);
    let exists = |oid| databases.iter().any(|database| database.oid == oid);
    for slot in shmem::slots().iter().filter(without) {
        if !exists(slot.database()) || slot.is_left() {
            // Asked for just now? A database without a slot is visited.
            slot.release();
            outcome.released = true;
            continue;
        }
        if !slot.wanted.load(Ordering::Acquire) {
            continue;
        }
        let now = xact::clock_us();
        let last = started_us.get(&slot.database()).copied().unwrap_or(0);
        let paused = slot.paused_until_us.load(Ordering::Acquire) > now;
        if !paused && now - last >= RETRY_MS * 1000 {
            started_us.insert(slot.database(), now);
            background::start_sequencer(slot.database());
        }
        outcome.waiting = true;
    }
    outcome
}
