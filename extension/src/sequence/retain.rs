//! Retention: the log's oldest members are emptied, one by one, once nobody may need them any more.
//!
//! A member of the ring is judged by what is in it, not by when it was written. Its *cover* is the first batch that has
//! everything in it: all its transactions have a position up to there. A member whose cover is older than the retention,
//! or that is the oldest one of a log that is too large, is emptied, and the floor moves to the cover. The order is lock,
//! snapshot, decision, TRUNCATE, because TRUNCATE is not MVCC-safe: a reader that has the lock reads all, one that gets it
//! later sees the floor. A transaction that has written to the member and has not ended holds a lock on it.

use pgrx::Spi;

use super::batch;
use super::order::Snapshot;
use crate::capture::room::{self, Sizes};
use crate::guc::{self, RING_MEMBERS};
use crate::pg::log_tables::{self, Ring, open_member};
use crate::pg::relation::Lock;
use crate::pg::scan::{self, Direction, Key};
use crate::pg::snapshot::PgSnapshot;
use crate::pg::xact;

/// The first batch that has all of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    position: i64,
    ended_at_us: i64,
    snapshot: Snapshot,
}

/// A member that may be emptied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub member: usize,
    cover: Cover,
}

/// What came of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is due.
    Rest,
    /// A member was emptied; another one may be due.
    Emptied,
    /// A member is due, and somebody uses it.
    InUse(usize),
}

/// Members that are not to be tried, a bit each.
pub type Skip = u32;

/// Empties a member if one is due. Call in a transaction of its own, with the sequencing lock held.
pub fn look(skip: Skip) -> Outcome {
    let sizes = room::sizes_now();
    let Some(due) = xact::with_latest_snapshot(|| due(&sizes, skip)) else {
        return Outcome::Rest;
    };
    if log_tables::take_member(due.member).is_err() {
        return Outcome::InUse(due.member);
    }
    // What was true before we had the lock may not be true any more.
    if !xact::with_latest_snapshot(|| has_all(&due.cover, due.member) && !has_head(due.member)) {
        return Outcome::Rest;
    }
    empty(&due);
    Outcome::Emptied
}

fn due(sizes: &Sizes, skip: Skip) -> Option<Due> {
    let head = batch::newest()?;
    let keep_from_us = xact::clock_us() - guc::retention_s() * 1_000_000;
    let too_large = sizes.total() > guc::retention_bytes();
    let written = room::member();
    let candidates = (0..RING_MEMBERS).filter(|&member| {
        let newest_us = batch::newest_in(member).map_or(0, |newest| newest.ended_at_us);
        let wanted = member != written && skip & (1 << member) == 0;
        wanted && (too_large || newest_us < keep_from_us) && !is_empty(member) && !has_head(member)
    });
    let oldest = candidates
        .filter_map(|member| {
            Some(Due {
                member,
                cover: cover(member, head.position)?,
            })
        })
        .min_by_key(|due| due.cover.position)?;
    let is_due = too_large || oldest.cover.ended_at_us < keep_from_us;
    is_due.then_some(oldest)
}

fn is_empty(member: usize) -> bool {
    [Ring::Change, Ring::Commit, Ring::Batch]
        .into_iter()
        .all(|ring| !has_row(ring, member, &[]))
}

fn has_row(ring: Ring, member: usize, keys: &[Key]) -> bool {
    let Some((table, index)) = open_member(ring, member, Lock::AccessShare) else {
        return false;
    };
    let mut found = false;
    scan::scan(&table, index, keys, Direction::Forward, |_| {
        found = true;
        false
    });
    found
}

/// The state of the sequencer is the newest batch: it stays.
fn has_head(member: usize) -> bool {
    let newest = |batch: Option<batch::Newest>| batch.map(|batch| batch.position);
    newest(batch::newest_in(member)).is_some_and(|own| newest(batch::newest()) == Some(own))
}

/// Everything in a member has a position up to that of the cover.
fn has_all(cover: &Cover, member: usize) -> bool {
    let after = [Key::int8_above(1, cover.position)];
    let Snapshot { xmax, xip, .. } = &cover.snapshot;
    let not_seen = |key| has_row(Ring::Change, member, &[key]);
    !has_row(Ring::Commit, member, &after)
        && !has_row(Ring::Batch, member, &after)
        && !not_seen(Key::xid_from(1, *xmax))
        && !xip.iter().any(|&xid| not_seen(Key::xid_is(1, xid)))
}

/// The first batch that has all of a member: what one batch has, every later one has, so that it is found
/// by halving.
fn cover(member: usize, head: i64) -> Option<Cover> {
    let mut found = last_batch_up_to(head).filter(|batch| has_all(batch, member))?;
    let mut without = 0;
    while without < found.position {
        let middle = without + (found.position - without) / 2;
        match last_batch_up_to(middle).filter(|batch| batch.position > without) {
            Some(batch) if has_all(&batch, member) => found = batch,
            Some(_) | None => without = middle + i64::from(middle == without),
        }
    }
    Some(found)
}

fn last_batch_up_to(position: i64) -> Option<Cover> {
    let key = [Key::int8_up_to(1, position)];
    let last_in = |member| {
        let (table, index) = open_member(Ring::Batch, member, Lock::AccessShare)?;
        let mut found = None;
        scan::scan(&table, index, &key, Direction::Backward, |row| {
            found = Some(Cover {
                position: row.get(1).expect("position is not null"),
                snapshot: row.get::<PgSnapshot>(2).expect("snapshot is not null").0,
                ended_at_us: batch::ended_at_us(&row),
            });
            false
        });
        found
    };
    (0..RING_MEMBERS)
        .filter_map(last_in)
        .max_by_key(|batch| batch.position)
}

/// Empties a member that is locked. Floors are kept for people: a hundred of them.
fn empty(due: &Due) {
    let Due { member, cover } = due;
    Spi::run(&format!(
        "truncate shapefeed.change_{member}, shapefeed.commit_{member}, shapefeed.batch_{member}"
    ))
    .expect("the tables are locked");
    Spi::run_with_args(
        "insert into shapefeed.floor (position, member) values ($1, $2) on conflict do nothing",
        &[cover.position.into(), (*member as i16).into()],
    )
    .expect("table floor takes the row");
    Spi::run(
        "delete from shapefeed.floor where position <
           (select f.position from shapefeed.floor f order by f.position desc offset 99 limit 1)",
    )
    .expect("table floor can be written");
}

/// Says who keeps a member from being emptied, after it has cancelled statements of shapefeed's own readers among them.
pub fn make_way(member: usize) -> Option<String> {
    let holders =
        "select string_agg(h.holder, ', ') from shapefeed._make_way($1) h where not h.cancelled";
    Spi::get_one_with_args::<String>(holders, &[(member as i16).into()])
        .ok()
        .flatten()
}

/// Closes gaps that need not be open any more, by one step. Call in a transaction of its own.
pub fn close_gaps() {
    if !room::is_full() && has_gaps() {
        Spi::run("select shapefeed._close_gaps()").expect("the function is there");
    }
}

/// Forgets clients' transactions that nobody asks for any more. Call in a transaction of its own.
pub fn prune_writes() {
    Spi::run("select shapefeed._prune_writes()").expect("the function is there");
}

fn has_gaps() -> bool {
    Spi::get_one::<bool>(
        "select exists (select from shapefeed.gap) or exists (select from shapefeed.closing_gap)",
    )
    .ok()
    .flatten()
    .unwrap_or(false)
}
