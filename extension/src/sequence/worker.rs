//! The sequencer of one database: a background worker that sleeps until a writer commits.

use super::step::{Era, State, step};
use crate::error::{Error, Result};
use crate::pg::background::{self, Wake};
use crate::pg::shmem::{self, Slot};
use crate::pg::{database, relation, xact};
use std::sync::atomic::Ordering;

/// How long it sleeps when nobody wakes it, in milliseconds.
const IDLE_MS: i64 = 1000;

/// Why a sequencer stops.
enum Stop {
    /// The extension is not in this database, or not any more.
    NoExtension,
    /// Somebody needs the database without connections, or the server shuts down.
    Asked,
}

/// Runs until told to stop. `database` is the oid that the launcher gave.
pub fn run(database: u32) {
    // Claimed before this process is in the way of DROP DATABASE: that finds the slot and asks us to go.
    let slot = shmem::slot(database);
    background::connect(database);
    let has_extension = || background::in_transaction(relation::our_extension).is_some();
    if !has_extension() {
        slot.inspect(|slot| slot.release());
        // Made meanwhile? Its maker has asked for us in the slot that we gave back.
        if !has_extension() {
            return;
        }
    }
    let Some(slot) = shmem::slot(database) else {
        pgrx::log!("shapefeed: no slot for this database; raise shapefeed.max_databases");
        return;
    };
    slot.wanted.store(true, Ordering::Release);
    background::use_sequencer_settings();
    background::unregister_at_exit(slot);
    if !slot.register_worker() {
        return;
    }
    pgrx::log!("shapefeed: sequencer started");
    match sequence_until_stopped(slot) {
        Stop::NoExtension => slot.wanted.store(false, Ordering::Release),
        Stop::Asked => {}
    }
    slot.unregister_worker();
    pgrx::log!("shapefeed: sequencer stopped");
}

fn sequence_until_stopped(slot: &Slot) -> Stop {
    let mut state: Option<State> = None;
    loop {
        if slot.paused_until_us.load(Ordering::Acquire) > xact::clock_us() {
            return Stop::Asked;
        }
        let begin_era = !slot.era_begun.load(Ordering::Acquire);
        let Some(next) = background::in_transaction(|| one_step(state.as_ref(), begin_era)) else {
            return Stop::NoExtension;
        };
        slot.era_begun.store(true, Ordering::Release);
        if slot.head.load(Ordering::Acquire) != next.position {
            slot.publish_head(next.position);
        }
        state = Some(next);
        if background::wait(IDLE_MS) == Wake::Stop {
            return Stop::Asked;
        }
    }
}

/// One step in the current transaction; None when the extension is gone.
fn one_step(state: Option<&State>, begin_era: bool) -> Option<State> {
    let extension = relation::our_extension()?;
    database::lock_sequencing(extension);
    // Dropped while we waited for the lock?
    relation::our_extension()?;
    xact::with_latest_snapshot(|| {
        let loaded = if state.is_none() {
            Some(State::load())
        } else {
            None
        };
        let era = match (begin_era, state.is_none()) {
            (true, _) => Era::Begin,
            (false, true) => Era::IfNew,
            (false, false) => Era::Same,
        };
        Some(step(
            state.or(loaded.as_ref()).expect("one of them is there"),
            era,
        ))
    })
}

/// One step in a session's own transaction, on a server where no worker takes it.
pub fn step_in_session(extension: pgrx::pg_sys::Oid) -> Result<()> {
    background::use_sequencer_settings_in_transaction();
    database::lock_sequencing(extension);
    // A worker registers before it takes the lock: so if none is there now, a later one reads what we write.
    if shmem::existing_slot(database::current()).is_some_and(|slot| slot.worker_pid() != 0) {
        let hint = "There is nothing to do: changes get their positions by themselves.";
        return Err(Error::Unsupported(
            "this database has a sequencer".into(),
            hint,
        ));
    }
    xact::with_latest_snapshot(|| step(&State::load(), Era::IfNew));
    Ok(())
}
