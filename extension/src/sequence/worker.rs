//! The sequencer of one database: a background worker that sleeps until a writer commits.

use super::retain::{self, Outcome};
use super::step::{Era, State, begin_if_not, step};
use crate::capture::roles;
use crate::capture::survey::{self, Look};
use crate::error::{Error, Result};
use crate::guc::{self, RING_MEMBERS};
use crate::pg::background::{self, Wake};
use crate::pg::shmem::{self, Slot};
use crate::pg::{database, relation, xact};
use pgrx::pg_sys::Oid;
use std::cell::Cell;
use std::sync::atomic::Ordering;

/// How long it sleeps when nobody wakes it, in milliseconds. Commands that nobody told of are noticed within this time.
const IDLE_MS: i64 = 250;

/// How often in a row it looks at tables before it takes a step all the same.
const MOST_LOOKS: u32 = 5;

/// The least time between the beginnings of two steps that found something, in microseconds. One that is told of each commit would
/// take a step, with a flush of the WAL, for each: with 4 writers at 7,000 commits a second on two cores, that took 51 µs of
/// CPU for a commit, and a seventh of the writers' throughput. A commit after a pause is not kept waiting.
const LEAST_BETWEEN_US: i64 = 5000;
/// The same when more than so many commits come in a second: there the sequencer is in the writers' way, on their processors,
/// and each step has a read of each feed after it, whose price is the same for a few commits as for twice as many.
const LEAST_BETWEEN_BUSY_US: i64 = 15_000;
const BUSY_PER_S: i64 = 1000;

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
    let stop = sequence_until_stopped(slot);
    if let Stop::NoExtension = stop {
        slot.wanted.store(false, Ordering::Release);
    }
    slot.unregister_worker();
    if let Stop::NoExtension = stop {
        slot.leave();
    }
    pgrx::log!("shapefeed: sequencer stopped");
}

fn sequence_until_stopped(slot: &Slot) -> Stop {
    let mut state: Option<State> = None;
    let mut retention = Retention::default();
    let mut surveyed = Surveyed::default();
    let (mut found_us, mut between_us) = (0, LEAST_BETWEEN_US);
    loop {
        let began_us = coalesce(found_us, between_us);
        if slot.paused_until_us.load(Ordering::Acquire) > xact::clock_us() {
            return Stop::Asked;
        }
        let begin_era = !slot.era_begun.load(Ordering::Acquire);
        let Some(next) = surveyed.then_step(state.as_ref(), begin_era) else {
            return Stop::NoExtension;
        };
        slot.era_begun.store(true, Ordering::Release);
        if slot.head.load(Ordering::Acquire) != next.position {
            slot.publish_head(next.position);
            let found = next.position - state.as_ref().map_or(next.position, |last| last.position);
            between_us = least_between(found, began_us - found_us);
            found_us = began_us;
        }
        state = Some(next);
        let Some(pause_ms) = retention.look_if_time() else {
            return Stop::NoExtension;
        };
        let pause_ms = if survey::is_stale_already() || roles::is_stale() {
            0
        } else {
            pause_ms
        };
        if background::wait(pause_ms.min(IDLE_MS)) == Wake::Stop {
            return Stop::Asked;
        }
    }
}

/// The least time until the next step, in microseconds, after one that found so many commits of so long a time.
fn least_between(found: i64, time_us: i64) -> i64 {
    let most = BUSY_PER_S.saturating_mul(time_us) / 1_000_000;
    match found > most {
        true => LEAST_BETWEEN_BUSY_US,
        false => LEAST_BETWEEN_US,
    }
}

/// Lets commits gather if the last step that found some began only just now. Returns what the time is then.
fn coalesce(found_us: i64, between_us: i64) -> i64 {
    let now_us = xact::clock_us();
    let rest_us = found_us + between_us - now_us;
    if !(1..=between_us).contains(&rest_us) {
        return now_us; // also when the clock was set back
    }
    background::nap(rest_us);
    now_us + rest_us
}

/// A hundredth of the retention, and a minute at most.
fn prune_pause_us() -> i64 {
    (guc::retention_s() * 10_000).clamp(1_000_000, 60_000_000)
}

/// When the worker looks whether something of the log can be emptied.
#[derive(Default)]
struct Retention {
    next_us: i64,
    tries: u32,
    /// Until when a member is left alone that somebody uses.
    skip_until_us: [i64; RING_MEMBERS],
    warned_us: i64,
    /// When the records of clients' transactions were looked through.
    pruned_us: i64,
}

impl Retention {
    /// Between two looks, and between two tries for a member that somebody uses.
    const LOOK_MS: i64 = 1000;
    const TRY_MS: i64 = 50;
    /// Tries before readers of ours are cancelled, and others left alone for a while.
    const TRIES: u32 = 10;
    const SKIP_US: i64 = 10_000_000;
    /// Between two warnings about what keeps the log.
    const WARN_US: i64 = 600_000_000;

    /// Looks if it is time. Returns after how many milliseconds it will be again; None when the extension is gone.
    fn look_if_time(&mut self) -> Option<i64> {
        let now_us = xact::clock_us();
        if now_us >= self.next_us {
            let skip = self.skip(now_us);
            let outcome = while_installed(|| retain::look(skip))?;
            while_installed(retain::close_gaps)?;
            if now_us - self.pruned_us >= prune_pause_us() {
                while_installed(|| xact::with_latest_snapshot(retain::prune_writes))?;
                self.pruned_us = now_us;
            }
            self.next_us = now_us + 1000 * self.pause_ms(outcome, now_us)?;
        }
        Some((self.next_us - now_us) / 1000)
    }

    fn skip(&self, now_us: i64) -> retain::Skip {
        let skipped = |&member: &usize| self.skip_until_us[member] > now_us;
        (0..RING_MEMBERS)
            .filter(skipped)
            .fold(0, |skip, member| skip | 1 << member)
    }

    /// None when the extension is gone.
    fn pause_ms(&mut self, outcome: Outcome, now_us: i64) -> Option<i64> {
        let Outcome::InUse(member) = outcome else {
            self.tries = 0;
            return Some(if outcome == Outcome::Rest {
                Self::LOOK_MS
            } else {
                0
            });
        };
        self.tries += 1;
        if self.tries < Self::TRIES {
            return Some(Self::TRY_MS);
        }
        self.tries = 0;
        if let Some(holders) = while_installed(|| retain::make_way(member))? {
            self.skip_until_us[member] = now_us + Self::SKIP_US;
            self.warn(member, &holders, now_us);
        }
        Some(Self::TRY_MS)
    }

    fn warn(&mut self, member: usize, holders: &str, now_us: i64) {
        if now_us - self.warned_us > Self::WARN_US {
            self.warned_us = now_us;
            pgrx::warning!(
                "shapefeed cannot drop the oldest changes, member {member} of its log: used by {holders}"
            );
        }
    }
}

thread_local! {
    static EXTENSION: Cell<Option<Oid>> = const { Cell::new(None) };
}

/// Runs `f` in a transaction of its own; None when the extension is gone. DROP EXTENSION waits for the end of it, with none of
/// its tables locked: so neither waits for the other.
fn while_installed<T>(
    f: impl FnOnce() -> T + std::panic::UnwindSafe + std::panic::RefUnwindSafe,
) -> Option<T> {
    background::in_transaction(|| {
        lock_extension()?;
        Some(f())
    })
}

/// Locks the extension for sequencing; None when it is gone.
fn lock_extension() -> Option<Oid> {
    let mut guess = EXTENSION.get().or_else(relation::our_extension)?;
    loop {
        database::lock_sequencing(guess);
        // Dropped while we waited for the lock, or before?
        let found = relation::our_extension();
        EXTENSION.set(found);
        if found? == guess {
            return found;
        }
        guess = found?;
    }
}

/// What a try to take a step came to.
enum Tried {
    NoExtension,
    /// Tables have changed: they are to be looked at first.
    LookFirst,
    Stepped(State),
}

/// Looks at tables that have changed, between steps.
#[derive(Default)]
struct Surveyed {
    last: Look,
    /// When to look again at a table that a command was at.
    again_us: i64,
}

impl Surveyed {
    /// Takes a step whose snapshot sees no command that was not looked at; None when the extension is gone.
    fn then_step(&mut self, state: Option<&State>, begin_era: bool) -> Option<State> {
        if self.last.again && xact::clock_us() >= self.again_us {
            survey::look_again();
        }
        for _ in 0..MOST_LOOKS {
            match self.try_step(state, begin_era, true) {
                Tried::NoExtension => return None,
                Tried::Stepped(next) => return Some(next),
                Tried::LookFirst => self.look()?,
            }
        }
        match self.try_step(state, begin_era, false) {
            Tried::Stepped(next) => Some(next),
            _ => None,
        }
    }

    fn try_step(&mut self, state: Option<&State>, begin_era: bool, may_look: bool) -> Tried {
        let begun = std::mem::take(&mut self.last.begun);
        // Whether they have begun now is for the next look.
        self.last.again |= !begun.is_empty();
        background::in_transaction(|| one_step(state, begin_era, may_look, &begun))
    }

    fn look(&mut self) -> Option<()> {
        self.last = while_installed(|| xact::with_latest_snapshot(survey::look))?;
        if roles::is_stale() {
            while_installed(roles::look)?;
        }
        self.again_us = xact::clock_us() + 1000 * IDLE_MS;
        Some(())
    }
}

/// One step in the current transaction. `begun`: tables that were tracked without a position at the last look; it is
/// sequenced by now.
fn one_step(state: Option<&State>, begin_era: bool, may_look: bool, begun: &[u32]) -> Tried {
    if lock_extension().is_none() {
        return Tried::NoExtension;
    }
    xact::with_latest_snapshot(|| {
        if (survey::is_stale() || roles::is_stale()) && may_look {
            return Tried::LookFirst;
        }
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
        let next = step(
            state.or(loaded.as_ref()).expect("one of them is there"),
            era,
        );
        begun
            .iter()
            .for_each(|relid| begin_if_not(*relid, next.position));
        Tried::Stepped(next)
    })
}

/// One step in a session's own transaction, on a server where no worker takes it.
pub fn step_in_session(extension: Oid) -> Result<()> {
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
