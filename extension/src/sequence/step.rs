//! One step of the sequencer: the transactions that became visible since the last one get their positions.

use std::sync::atomic::Ordering;

use pgrx::Spi;
use pgrx::pg_sys::Oid;

use super::batch::{self, Batch, Newest, noted};
use super::era;
use super::order::{self, Snapshot, Transaction, Transactions};
use super::rest::Rest;
use crate::capture::{room, survey};
use crate::guc::RING_MEMBERS;
use crate::pg::log_tables::{Ring, open_member};
use crate::pg::relation::Lock;
use crate::pg::scan::{self, Direction, Key};
use crate::pg::{database, shmem, snapshot, xact};

/// What the next step goes on from.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The head; 0 before the first batch.
    pub position: i64,
    /// What has a position up to there.
    pub snapshot: Snapshot,
    rest: Rest,
}

impl State {
    /// Reads it from the newest batch, as the active snapshot sees it. Call with the sequencing lock held, under a
    /// snapshot that was taken after it.
    pub fn load() -> State {
        batch::newest().map(State::after).unwrap_or_default()
    }

    fn after(newest: Newest) -> State {
        State {
            position: newest.position,
            snapshot: newest.snapshot,
            rest: Rest::recall(newest.ended_at_us, room::sizes()),
        }
    }
}

/// Whether this step begins an era.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// It does: the shared memory is new.
    Begin,
    /// It does if the newest one is of another history.
    IfNew,
    /// It does not.
    Same,
}

/// Takes one step under the active snapshot. Call with the sequencing lock held, the lock taken before the snapshot.
/// Returns the state for the next step; it counts only when the transaction has committed.
pub fn step(state: &State, era: Era) -> State {
    let (now, now_datum) = snapshot::active();
    let transactions = new_transactions(&state.snapshot, &now);
    let first = match era {
        Era::Same => None,
        Era::Begin | Era::IfNew => era::begin_if_new(highest_seen(state), era == Era::Begin),
    };
    if transactions.is_empty() && first.is_none() {
        // What `now` sees more than the last batch is not ours: nothing to write.
        return State {
            snapshot: now,
            ..state.clone()
        };
    }
    // What changes catalogs, rights among them, and rows is told to readers in this order.
    for transaction in transactions
        .iter()
        .filter(|it| noted(it, "catalogs").next().is_some())
    {
        xact::wait_for_messages_of(transaction.xid);
    }
    let ended_at_us = xact::clock_us();
    let (rests, rest) = state.rest.next(ended_at_us, room::sizes());
    let batch = Batch {
        position: first.unwrap_or(state.position) + transactions.len() as i64,
        snapshot: now_datum,
        ended_at_us,
        resting: rests || first.is_some(),
        transactions: &transactions,
    };
    batch.write();
    announce(batch.position);
    rest.leave();
    for (n, transaction) in transactions.iter().enumerate() {
        carry_out_notes(transaction, batch.position_of(n));
    }
    State {
        position: batch.position,
        snapshot: now,
        rest,
    }
}

/// Says that a position is about to commit. Between the commit record and the end of the commit here, a standby may have shown
/// the position already: who brings it here then is early, not wrong.
fn announce(position: i64) {
    if let Some(slot) = shmem::existing_slot(database::current()) {
        slot.committing.fetch_max(position, Ordering::AcqRel);
    }
}

/// The highest position that somebody may have seen here: the head, or that of an extension that was dropped since the start.
fn highest_seen(state: &State) -> i64 {
    let published = shmem::existing_slot(database::current())
        .map_or(0, |slot| slot.head.load(Ordering::Acquire));
    state.position.max(published).max(shmem::passed())
}

/// The transactions in the log that `now` sees and `before` does not, in order.
fn new_transactions(before: &Snapshot, now: &Snapshot) -> Vec<Transaction> {
    let candidates = order::candidates(before, now);
    let keys: Vec<Key> = (candidates.xids.iter().map(|&xid| Key::xid_is(1, xid)))
        .chain(candidates.from.map(|xid| Key::xid_from(1, xid)))
        .collect();
    let mut found = Transactions::default();
    if !keys.is_empty() {
        for member in 0..RING_MEMBERS {
            collect(member, &keys, before, &mut found);
        }
    }
    found.in_order()
}

fn collect(member: usize, keys: &[Key], before: &Snapshot, found: &mut Transactions) {
    let Some((table, index)) = open_member(Ring::Change, member, Lock::AccessShare) else {
        return;
    };
    for key in keys {
        scan::scan(&table, index, &[*key], Direction::Forward, |row| {
            let xid = row.xid(1);
            if before.sees(xid) {
                return true;
            }
            let seq = row.get(3).expect("seq is not null");
            let relids = row
                .get::<Vec<Option<pgrx::pg_sys::Oid>>>(4)
                .unwrap_or_default();
            let relids: Vec<u32> = relids
                .into_iter()
                .flatten()
                .map(|relid| relid.to_u32())
                .collect();
            let notes = row.get::<pgrx::JsonB>(5).map(|notes| notes.0);
            found.add(xid, seq, member, &relids, notes);
            true
        });
    }
}

/// Does what a transaction's notes ask the sequencer for. Rare: it may use SQL. Rows that a command of somebody else holds
/// are left alone: nothing here may wait for him.
fn carry_out_notes(transaction: &Transaction, position: i64) {
    for relid in noted(transaction, "tracked").filter_map(|relid| relid.as_i64()) {
        begin(relid as u32, position);
        survey::look_again();
    }
    for relid in noted(transaction, "gaps").filter_map(|relid| relid.as_i64()) {
        let unknown = "update shapefeed.tracked set since = null where relid = (
                         select t.relid from shapefeed.tracked t where t.relid = $1::int8::oid for update skip locked)";
        Spi::run_with_args(unknown, &[relid.into()]).expect("table tracked takes it");
    }
    for layout in noted(transaction, "layouts") {
        let insert = "insert into shapefeed.layout (hash, definition)
                      select (l ->> 'hash')::int8, l -> 'definition' from (values ($1)) x(l) on conflict do nothing";
        Spi::run_with_args(insert, &[pgrx::JsonB(layout.clone()).into()])
            .expect("table layout takes it");
    }
}

/// The log of a table is whole from a position on, unless it has a gap.
fn begin(relid: u32, position: i64) {
    let since = "update shapefeed.tracked set since = $1 where relid = (
                   select t.relid from shapefeed.tracked t where t.relid = $2 for update skip locked)
                 and not exists (select from shapefeed.gap g where g.relid = $2)";
    let relid = Oid::from_u32(relid);
    Spi::run_with_args(since, &[position.into(), relid.into()]).expect("table tracked takes it");
}

/// The same for a table whose row somebody held when its note was sequenced, up to that position.
pub fn begin_if_not(relid: u32, position: i64) {
    let since = "update shapefeed.tracked set since = $1 where relid = (
                   select t.relid from shapefeed.tracked t where t.relid = $2 and t.since is null for update skip locked)
                 and not exists (select from shapefeed.gap g where g.relid = $2)
                 and not exists (select from shapefeed.closing_gap g where g.relid = $2)";
    let relid = Oid::from_u32(relid);
    Spi::run_with_args(since, &[position.into(), relid.into()]).expect("table tracked takes it");
}
