//! Reading and writing batches: the rows of `commit_N` and `batch_N`.

use pgrx::pg_sys::Datum;
use pgrx::{IntoDatum, JsonB};

use super::order::{Snapshot, Transaction};
use crate::capture::room;
use crate::guc::RING_MEMBERS;
use crate::pg::heap::{Partial, Writer};
use crate::pg::log_tables::{Ring, oids, open_member, or_null};
use crate::pg::relation::Lock;
use crate::pg::scan::{self, Direction};
use crate::pg::snapshot::PgSnapshot;
use crate::pg::xact::POSTGRES_EPOCH_US;

/// The newest batch.
#[derive(Clone, Debug)]
pub struct Newest {
    /// Its end: the head.
    pub position: i64,
    /// What has a position up to there.
    pub snapshot: Snapshot,
    /// When it ended, in microseconds since 1970.
    pub ended_at_us: i64,
}

/// Reads the newest batch, as the active snapshot sees it: one backward probe in each member.
pub fn newest() -> Option<Newest> {
    (0..RING_MEMBERS)
        .filter_map(newest_in)
        .max_by_key(|batch| batch.position)
}

/// Reads the newest batch of a member.
pub fn newest_in(member: usize) -> Option<Newest> {
    let (table, key) = open_member(Ring::Batch, member, Lock::AccessShare)?;
    let mut newest = None;
    scan::scan(&table, key, &[], Direction::Backward, |row| {
        newest = Some(Newest {
            position: row.get(1).expect("position is not null"),
            snapshot: row.get::<PgSnapshot>(2).expect("snapshot is not null").0,
            ended_at_us: ended_at_us(&row),
        });
        false
    });
    newest
}

/// When the batch of a row of `batch_N` ended, in microseconds since 1970.
pub fn ended_at_us(row: &scan::Row<'_>) -> i64 {
    row.get::<i64>(3).expect("ended_at is not null") + POSTGRES_EPOCH_US
}

/// A batch that is to be written.
pub struct Batch<'a> {
    /// Its end.
    pub position: i64,
    /// The snapshot that it was made under, as a datum.
    pub snapshot: Datum,
    /// When, in microseconds since 1970.
    pub ended_at_us: i64,
    /// It is the first of its interval.
    pub resting: bool,
    /// Its transactions, in order; the last one has the batch's position.
    pub transactions: &'a [Transaction],
}

impl Batch<'_> {
    /// Position of its transaction number `n`.
    pub fn position_of(&self, n: usize) -> i64 {
        self.position - (self.transactions.len() - 1 - n) as i64
    }

    /// Writes it to the ring member of the moment. By the size as it is now: a burst, or one large transaction, would
    /// else keep the newest batch, and so itself, in the member that it has filled.
    pub fn write(&self) {
        let member = room::member_now();
        let ended_at = Datum::from(self.ended_at_us - POSTGRES_EPOCH_US);
        if !self.transactions.is_empty() {
            let mut writer = writer(Ring::Commit, member);
            for (n, transaction) in self.transactions.iter().enumerate() {
                let (relids, ends) = (
                    oids(&transaction.relids),
                    ends(transaction).map(JsonB).into_datum(),
                );
                let mut nulls = [
                    false,
                    false,
                    false,
                    false,
                    false,
                    relids.is_none(),
                    ends.is_none(),
                ];
                let mut values = [
                    Datum::from(self.position_of(n)),
                    Datum::from(transaction.xid),
                    ended_at,
                    Datum::from(self.position),
                    Datum::from(transaction.member as i16),
                    or_null(relids),
                    or_null(ends),
                ];
                let partial = if ends.is_some() {
                    Partial::In
                } else {
                    Partial::Out
                };
                writer.insert_as(&mut values, &mut nulls, partial);
            }
            writer.finish();
        }
        let mut writer = writer(Ring::Batch, member);
        let mut values = [
            Datum::from(self.position),
            self.snapshot,
            ended_at,
            Datum::from(self.resting),
        ];
        let partial = if self.resting {
            Partial::In
        } else {
            Partial::Out
        };
        writer.insert_as(&mut values, &mut [false; 4], partial);
        writer.finish();
    }
}

fn writer(ring: Ring, member: usize) -> Writer {
    let (table, _) = open_member(ring, member, Lock::RowExclusive)
        .expect("the extension is locked, so its tables are there");
    Writer::new(table)
}

/// What ends with a transaction, as `commit.ends` holds it.
fn ends(transaction: &Transaction) -> Option<serde_json::Value> {
    let all: Vec<_> = noted(transaction, "ends").cloned().collect();
    (!all.is_empty()).then(|| all.into())
}

/// The items that a transaction's notes have under `key`.
pub fn noted<'a>(
    transaction: &'a Transaction,
    key: &'a str,
) -> impl Iterator<Item = &'a serde_json::Value> {
    transaction
        .notes
        .iter()
        .filter_map(move |note| note.get(key)?.as_array())
        .flatten()
}
