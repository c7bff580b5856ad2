//! The log as readers use it: batches, positions, and the transactions behind them.
//!
//! A reader locks first, *then* takes its snapshot: retention truncates, and truncation is not MVCC-safe. It gives the
//! locks on the log back as soon as it has read it.

use std::cell::OnceCell;
use std::collections::HashMap;

use pgrx::pg_sys::Oid;
use serde::Deserialize;

use super::family::Family;
use crate::capture::layout::Layout;
use crate::capture::rights::PUBLIC;
use crate::error::Result;
use crate::guc::RING_MEMBERS;
use crate::pg::log_tables::{self, Ring};
use crate::pg::memory::Context;
use crate::pg::reading::{self, Holder};
use crate::pg::relation::{Lock, Relation, our_namespace, relation_oid};
use crate::pg::role;
use crate::pg::scan::{self, Direction, Key};
use crate::pg::snapshot::PgSnapshot;
use crate::record::{self, Record};
use crate::sequence::order::{Snapshot, Transaction as Summary, Transactions};

/// The end of a batch: a position at which what is visible is known.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The position of its last transaction.
    pub position: i64,
    /// Sees what has a position up to there.
    pub snapshot: Snapshot,
}

/// A transaction that has a position.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Its position.
    pub position: i64,
    /// Its id.
    pub xid: u64,
    /// Ring member of its chunks.
    pub member: usize,
    /// Tables that it touched, with the partitioned tables above them.
    pub relids: Vec<u32>,
    /// What ends with it.
    pub ends: Vec<End>,
}

/// An end of a table's epoch or of a shape's handles, as the log has it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct End {
    /// The table whose epoch ends.
    pub relid: Option<u32>,
    /// The definition whose handles end, by its hash.
    pub shape: Option<String>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Only shapes that name one of these columns end.
    pub columns: Option<Vec<String>>,
    /// Only shapes of these roles and of their members end, who have been given a right: to the table, or to any.
    pub roles: Option<Vec<String>>,
}

impl End {
    /// It ends the epoch of a table with this family, for all shapes or for some. That one relation of the family was
    /// tracked takes nothing away from the others: those among them that were captured before go on being captured.
    pub fn concerns(&self, family: &Family) -> bool {
        match self.relid {
            _ if self.roles.is_some() => false,
            Some(relid) if self.reason == "track" => relid == family.relid,
            Some(relid) => family.has(relid),
            None => false,
        }
    }

    /// It ends a role's handles of a table with this family: the role may see more of it from here on.
    pub fn concerns_rights_of(&self, name: &str, family: &Family) -> bool {
        let roles = self.roles.iter().flatten();
        let of_table = |relid| relid == family.relid && !role::is_superuser(name);
        self.relid.is_none_or(of_table)
            && roles
                .into_iter()
                .any(|given| given == PUBLIC || role::is_or_is_member_of(name, given))
    }

    /// Among the shapes that it concerns, one that names these columns ends.
    pub fn ends_those_with<'a>(&self, mut names: impl Iterator<Item = &'a String>) -> bool {
        match &self.columns {
            None => true,
            Some(columns) => names.any(|name| columns.contains(name)),
        }
    }
}

/// What of a transaction's chunks is needed to apply it.
pub struct Transaction {
    /// Its id.
    pub xid: u64,
    chunks: Vec<Vec<u8>>,
    /// Layouts that its records may use and `shapefeed.layout` may not have yet.
    pub layouts: Vec<(u64, Layout)>,
}

impl Transaction {
    /// Its records in the order in which they were captured.
    pub fn records(&self) -> Result<Vec<Record<'_>>> {
        let mut all = Vec::new();
        for chunk in &self.chunks {
            for record in record::records(chunk)? {
                all.push(record?);
            }
        }
        Ok(all)
    }
}

struct Member {
    number: usize,
    table: Relation,
    oid: Oid,
    key: Oid,
}

/// The log's tables, open and locked, to be read under one snapshot. The locks are given back when this is dropped.
///
/// A member of the ring is emptied as a whole: the lock on its table of batches keeps the other two as well, which are
/// opened when they are read.
pub struct Log {
    holder: Holder,
    changes: Lazy,
    commits: Lazy,
    batches: Vec<Member>,
    /// Positions up to which the log was emptied. Its lock says that one of shapefeed's own readers is at work.
    floors: Option<Member>,
    /// The newest batch of each member.
    newest: OnceCell<[Option<Batch>; RING_MEMBERS]>,
    copies: OnceCell<HashMap<(u32, u32), Place>>,
    memory: Context,
}

type Lazy = [OnceCell<Option<Member>>; RING_MEMBERS];

/// Where a transaction's chunks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    member: usize,
    xid: u64,
}

impl Log {
    /// Opens and locks the log. Take the snapshot to read it under after this.
    pub fn lock() -> Log {
        Log {
            holder: Holder::current(),
            changes: Lazy::default(),
            commits: Lazy::default(),
            batches: (0..RING_MEMBERS)
                .filter_map(|number| open(Ring::Batch, number))
                .collect(),
            floors: open_floors(),
            newest: OnceCell::new(),
            copies: OnceCell::new(),
            memory: Context::new(),
        }
    }

    fn changes(&self, number: usize) -> Option<&Member> {
        let open = || self.holder.run(|| open(Ring::Change, number));
        self.changes[number].get_or_init(open).as_ref()
    }

    fn commits_of(&self, number: usize) -> Option<&Member> {
        let open = || self.holder.run(|| open(Ring::Commit, number));
        self.commits[number].get_or_init(open).as_ref()
    }

    /// Runs a scan whose values are not needed after it.
    fn scan(
        &self,
        member: &Member,
        index: Oid,
        keys: &[Key],
        direction: Direction,
        each: impl FnMut(scan::Row<'_>) -> bool,
    ) {
        self.memory
            .run(|| scan::scan(&member.table, index, keys, direction, each));
        self.memory.reset();
    }

    /// The newest batch: its position is the head.
    pub fn newest_batch(&self) -> Option<Batch> {
        self.newest_batch_up_to(i64::MAX)
    }

    /// What is in the log as of a transaction has a position.
    pub fn has_position(&self, xid: u64) -> bool {
        self.newest_batch()
            .is_some_and(|newest| newest.snapshot.sees(xid))
    }

    /// The newest batch that ends at or before a position.
    pub fn newest_batch_up_to(&self, position: i64) -> Option<Batch> {
        let newest_up_to = |member| match self.newest_of(member) {
            Some(newest) if newest.position > position => self.newest_batch_of(member, position),
            newest => newest.cloned(),
        };
        self.batches
            .iter()
            .filter_map(newest_up_to)
            .max_by_key(|b| b.position)
    }

    /// The newest batch of a member, which has the commits of its batches.
    fn newest_of(&self, member: &Member) -> Option<&Batch> {
        let newest = self.newest.get_or_init(|| {
            let mut newest = [const { None }; RING_MEMBERS];
            for member in &self.batches {
                newest[member.number] = self.newest_batch_of(member, i64::MAX);
            }
            newest
        });
        newest[member.number].as_ref()
    }

    /// The position from which the log is whole: the first end of a batch that retention has not passed.
    pub fn floor(&self) -> Option<i64> {
        let mut emptied_up_to = 0;
        if let Some(floors) = &self.floors {
            self.scan(floors, floors.key, &[], Direction::Backward, |row| {
                emptied_up_to = row.get(1).expect("position is not null");
                false
            });
        }
        let first = |member: &Member| {
            let mut found = None;
            let from = [Key::int8_from(1, emptied_up_to)];
            self.scan(member, member.key, &from, Direction::Forward, |row| {
                found = row.get::<i64>(1);
                false
            });
            found
        };
        let reaches = |member: &&Member| {
            self.newest_of(member)
                .is_some_and(|newest| newest.position >= emptied_up_to)
        };
        self.batches.iter().filter(reaches).filter_map(first).min()
    }

    fn newest_batch_of(&self, member: &Member, up_to: i64) -> Option<Batch> {
        let mut found = None;
        let keys = [Key::int8_up_to(1, up_to)];
        self.scan(member, member.key, &keys, Direction::Backward, |row| {
            found = Some(batch_of(&row));
            false
        });
        found
    }

    /// The newest batch that ended so many microseconds before the one that ends exactly here.
    pub fn batch_before(&self, position: i64, microseconds: i64) -> Option<i64> {
        let keys = [Key::int8_up_to(1, position)];
        let backward = |member: &Member, each: &mut dyn FnMut(i64, i64) -> bool| {
            self.scan(member, member.key, &keys, Direction::Backward, |row| {
                let ended_at = row.get(3).expect("ended_at is not null");
                each(row.get(1).expect("position is not null"), ended_at)
            });
        };
        let mut limit = None;
        for member in &self.batches {
            backward(member, &mut |at, ended_at| {
                if at == position {
                    limit = Some(ended_at - microseconds);
                }
                false
            });
        }
        let (limit, mut found) = (limit?, None);
        for member in &self.batches {
            backward(member, &mut |at, ended_at| {
                if ended_at <= limit {
                    found = found.max(Some(at));
                }
                ended_at > limit
            });
        }
        found
    }

    /// The batch that ends exactly here.
    pub fn batch(&self, position: i64) -> Option<Batch> {
        self.newest_batch_up_to(position)
            .filter(|batch| batch.position == position)
    }

    /// Transactions with a position above `after`, up to `to`, that touched what `wanted` says, in order; about as many
    /// as `limit` says. Also the position up to which these are all.
    pub fn commits(
        &self,
        after: i64,
        to: i64,
        wanted: impl Fn(&Commit) -> bool,
        limit: usize,
    ) -> (Vec<Commit>, i64) {
        let (mut found, mut complete_to) = (Vec::new(), to);
        let reaches = |member: &&Member| {
            self.newest_of(member)
                .is_some_and(|newest| newest.position > after)
        };
        let numbers = self.batches.iter().filter(reaches).map(|it| it.number);
        for member in numbers.filter_map(|number| self.commits_of(number)) {
            let keys = [Key::int8_above(1, after), Key::int8_up_to(1, complete_to)];
            let mut of_member = 0;
            self.scan(member, member.key, &keys, Direction::Forward, |row| {
                let commit = commit_of(&row);
                if wanted(&commit) {
                    if of_member == limit {
                        complete_to = commit.position - 1;
                        return false;
                    }
                    of_member += 1;
                    found.push(commit);
                }
                true
            });
        }
        found.retain(|commit: &Commit| commit.position <= complete_to);
        found.sort_unstable_by_key(|commit| commit.position);
        (found, complete_to)
    }

    /// What ended above a position, in order.
    pub fn ends_above(&self, position: i64) -> Vec<(i64, Vec<End>)> {
        let Some(namespace) = our_namespace() else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for number in self.batches.iter().map(|member| member.number) {
            let Some(member) = self.commits_of(number) else {
                continue;
            };
            let Some(index) = relation_oid(namespace, &format!("commit_{number}_ends")) else {
                continue;
            };
            self.scan(
                member,
                index,
                &[Key::int8_above(1, position)],
                Direction::Forward,
                |row| {
                    let commit = commit_of(&row);
                    all.push((commit.position, commit.ends));
                    true
                },
            );
        }
        all.sort_unstable_by_key(|(position, _)| *position);
        all
    }

    /// Transactions that the active snapshot sees and `before` does not, in commit order; without their records.
    pub fn unseen_by(&self, before: &Snapshot) -> Vec<Summary> {
        let keys = before
            .xip
            .iter()
            .map(|xid| Key::xid_is(1, *xid))
            .chain([Key::xid_from(1, before.xmax)]);
        let keys: Vec<Key> = keys.collect();
        let mut all = Transactions::default();
        for number in self.batches.iter().map(|member| member.number) {
            let Some(member) = self.changes(number) else {
                continue;
            };
            for key in &keys {
                self.scan(member, member.key, &[*key], Direction::Forward, |row| {
                    let seq = row.get(3).expect("seq is not null");
                    all.add(
                        row.xid(1),
                        seq,
                        number,
                        &relids(row.get(4)),
                        row.get::<pgrx::JsonB>(5).map(|notes| notes.0),
                    );
                    true
                });
            }
        }
        all.in_order()
    }

    /// Reads a transaction's chunks.
    pub fn transaction(&self, member: usize, xid: u64) -> Transaction {
        let mut transaction = Transaction {
            xid,
            chunks: Vec::new(),
            layouts: Vec::new(),
        };
        let Some(member) = self.changes(member) else {
            return transaction;
        };
        self.scan(
            member,
            member.key,
            &[Key::xid_is(1, xid)],
            Direction::Forward,
            |row| {
                transaction
                    .chunks
                    .push(row.get::<Vec<u8>>(6).expect("data is not null"));
                if let Some(notes) = row.get::<pgrx::JsonB>(5) {
                    transaction.layouts.extend(layouts(&notes.0));
                }
                true
            },
        );
        transaction
    }

    /// The transaction that has a copy of an out-of-line value, because it replaced or removed it.
    pub fn copy_of(
        &self,
        leaf: u32,
        value_id: u32,
        since: &Snapshot,
    ) -> Result<Option<Transaction>> {
        if self.copies.get().is_none() {
            let _ = self.copies.set(self.find_copies(since)?);
        }
        let copies = self.copies.get().expect("it was just set");
        Ok(copies
            .get(&(leaf, value_id))
            .map(|place| self.transaction(place.member, place.xid)))
    }

    fn find_copies(&self, since: &Snapshot) -> Result<HashMap<(u32, u32), Place>> {
        let mut copies = HashMap::new();
        for Summary { member, xid, .. } in self.unseen_by(since) {
            let transaction = self.transaction(member, xid);
            for record in transaction.records()? {
                let Some(old) = record.old else { continue };
                copies.extend(
                    old.copied()
                        .map(|(_, value_id)| ((record.relid, value_id), Place { member, xid })),
                );
            }
        }
        Ok(copies)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // the transaction's abort gives the locks back
        }
        let lazy = [&mut self.changes, &mut self.commits].into_iter().flatten();
        let opened = lazy.filter_map(|member| member.take().flatten());
        // The batches' last: these locks keep the others.
        let members = opened.chain(std::mem::take(&mut self.batches));
        for member in members.chain(self.floors.take()) {
            drop(member.table);
            reading::unlock_shared(member.oid);
        }
    }
}

fn open(ring: Ring, number: usize) -> Option<Member> {
    let (table, key) = log_tables::open_member(ring, number, Lock::AccessShare)?;
    let oid = log_tables::member(ring, number)?.table;
    Some(Member {
        number,
        table,
        oid,
        key,
    })
}

fn open_floors() -> Option<Member> {
    let namespace = our_namespace()?;
    let oid = relation_oid(namespace, "floor")?;
    let table = Relation::open(oid, Lock::AccessShare)?;
    let key = relation_oid(namespace, "floor_pkey")?;
    Some(Member {
        number: 0,
        table,
        oid,
        key,
    })
}

fn batch_of(row: &scan::Row<'_>) -> Batch {
    Batch {
        position: row.get(1).expect("position is not null"),
        snapshot: row.get::<PgSnapshot>(2).expect("snapshot is not null").0,
    }
}

fn commit_of(row: &scan::Row<'_>) -> Commit {
    let ends = row
        .get::<pgrx::JsonB>(7)
        .and_then(|ends| serde_json::from_value(ends.0).ok());
    Commit {
        position: row.get(1).expect("position is not null"),
        xid: row.xid(2),
        member: row.get::<i16>(5).expect("member is not null") as usize,
        relids: relids(row.get(6)),
        ends: ends.unwrap_or_default(),
    }
}

fn relids(array: Option<Vec<Option<Oid>>>) -> Vec<u32> {
    array
        .unwrap_or_default()
        .into_iter()
        .flatten()
        .map(|relid| relid.to_u32())
        .collect()
}

/// The ends that a transaction's notes name.
pub fn ends_of(summary: &Summary) -> impl Iterator<Item = End> {
    let notes = summary
        .notes
        .iter()
        .filter_map(|note| note.get("ends")?.as_array())
        .flatten();
    notes.filter_map(|end| serde_json::from_value(end.clone()).ok())
}

fn layouts(notes: &serde_json::Value) -> Vec<(u64, Layout)> {
    let layout = |note: &serde_json::Value| {
        let hash: i64 = note.get("hash")?.as_str()?.parse().ok()?;
        Some((
            hash as u64,
            serde_json::from_value(note.get("definition")?.clone()).ok()?,
        ))
    };
    notes
        .get("layouts")
        .and_then(|list| list.as_array())
        .into_iter()
        .flatten()
        .filter_map(layout)
        .collect()
}
