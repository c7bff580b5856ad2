//! The log of one shape: its operations between two positions, in order.

use std::collections::VecDeque;

use pgrx::JsonB;
use pgrx::prelude::*;

use super::definition::Definition;
use super::family::Family;
use super::judge::{Tally, judge, judge_counts};
use super::keyless::Counts;
use super::member;
use super::message::Operation;
use super::net;
use super::operation::{self, At, Job, Planned, Projection};
use super::overlay::{Filter, concerns, ended};
use super::place;
use super::tuple::{Around, Effect, Table};
use super::window::{Commit, Log};
use crate::error::{Error, OrRaise, Result};
use crate::pg::reading::{self, Latest};
use crate::sequence::order::Snapshot;

/// A stretch of a shape's log.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// Operations after this one ...
    pub from: (i64, i64),
    /// ... up to this position.
    pub to: i64,
    /// The message whose size makes the sum reach this is the last.
    pub max_bytes: u64,
}

/// An operation with its message.
pub struct Entry {
    /// Position of the transaction.
    pub position: i64,
    /// Place in the transaction plus one: what an offset has.
    pub n: i64,
    /// What happened.
    pub operation: Operation,
    /// The transaction.
    pub xid: u64,
    /// The whole message.
    pub message: String,
    /// It is the shape's last in its transaction.
    pub last: bool,
}

/// What a stretch of a shape's log has.
pub struct Read {
    /// Operations, in order.
    pub entries: Vec<Entry>,
    /// The position up to which the log was evaluated; none if the stretch was cut by its size, and there is more.
    pub upto: Option<i64>,
    /// The newest transactions that touched the table and are no operation of the shape.
    pub silent: VecDeque<u64>,
}

/// As many of them are told of.
pub(super) const SILENT: usize = 100;

/// Reads a stretch of a shape's log.
///
/// The log is locked for some transactions at a time: each look is complete in itself, so retention gets its turn.
pub fn read(definition: &Definition, stretch: Stretch) -> Result<Read> {
    reading::may_read()?;
    let _role = definition.enter()?;
    let mut table = place::open_table(definition)?;
    let family = table.family.clone();
    if !definition.inner.is_empty() {
        return member::log::read(definition, &family, stretch);
    }
    let mut shape = None;
    // The rest of a transaction that a chunk has cut is read with all of it.
    let mut after = stretch.from.0 - i64::from(stretch.from.1 > 0);
    let mut to = None;
    let mut silent = VecDeque::new();
    let mut entries = Entries::new(stretch);
    loop {
        let log = Log::lock();
        let _latest = Latest::take();
        let head = end_of(&log, definition, &family, after, stretch.to)?;
        // What comes later may be in a partition that was not there when the table was opened.
        let to = *to.get_or_insert(head);
        if shape.is_none() {
            shape = Some(Shape::new(&log, definition, &mut table, after)?);
        }
        let shape = shape.as_mut().expect("it was just set");
        let about = |commit: &Commit| commit.relids.contains(&definition.relid);
        let (commits, complete_to) = log.commits(after, to, about, COMMITS_AT_ONCE);
        for commit in commits {
            let read = entries.len();
            if !shape.read(&log, &commit, &mut entries)? {
                return Ok(entries.end(None, silent));
            }
            if entries.len() == read && commit.position > stretch.from.0 {
                silent.push_back(commit.xid);
            }
            if silent.len() > SILENT {
                silent.pop_front();
            }
        }
        if complete_to >= to {
            return Ok(entries.end(Some(to), silent));
        }
        after = complete_to;
    }
}

pub(super) const COMMITS_AT_ONCE: usize = 1000;

/// The position up to which to read. An error when the log cannot be read from a position on.
pub(super) fn end_of(
    log: &Log,
    definition: &Definition,
    family: &Family,
    position: i64,
    to: i64,
) -> Result<i64> {
    place::require(log, position)?;
    // As a standby that lags: what is to be read from here is not there yet.
    place::require_seen(log, definition).map_err(|_| Error::NotYet(position))?;
    for (_, ends) in log.ends_above(position) {
        if let Some(end) = ends.iter().find(|end| concerns(end, definition, family)) {
            return Err(ended(end));
        }
    }
    let head = log.newest_batch().map_or(position, |batch| batch.position);
    Ok(to.min(head))
}

/// One shape, ready to be told of transactions in order.
struct Shape<'a> {
    table: &'a mut Table,
    filter: Filter,
    projection: Projection,
    /// Does not see any transaction that is read.
    before: Snapshot,
    /// How often each row is in, where there is no key.
    counts: Option<Counts>,
}

impl<'a> Shape<'a> {
    /// A shape that has been told of everything up to a position.
    fn new(
        log: &Log,
        definition: &Definition,
        table: &'a mut Table,
        after: i64,
    ) -> Result<Shape<'a>> {
        let mut filter = Filter::new(definition)?;
        let projection = Projection::new(table, &definition.columns, definition.replica)?;
        // A position inside the oldest batch there is: nothing before it is needed.
        let batch = log.newest_batch_up_to(after);
        let (batch, before) = batch
            .map(|batch| (batch.position, batch.snapshot))
            .unwrap_or_default();
        let counts = if table.keyed {
            None
        } else {
            let filter = &mut filter;
            let mut tally = Tally {
                log,
                definition,
                table,
                filter,
            };
            Some(tally.at(batch, after, &before)?)
        };
        Ok(Shape {
            table,
            filter,
            projection,
            before,
            counts,
        })
    }

    /// Adds the operations of one transaction; false when the stretch is full.
    fn read(&mut self, log: &Log, commit: &Commit, entries: &mut Entries) -> Result<bool> {
        let transaction = log.transaction(commit.member, commit.xid);
        let records = transaction.records()?;
        let around = Around {
            log,
            records: &records,
            before: &self.before,
        };
        let chains = net::chains(&records);
        let (mut effects, sides) = match &mut self.counts {
            None => judge(self.table, &mut self.filter, &transaction, &chains, &around)?,
            Some(counts) => judge_counts(
                counts,
                self.table,
                &mut self.filter,
                &transaction,
                &chains,
                &around,
            )?,
        };
        let mut changes: Vec<Vec<bool>> = vec![Vec::new(); effects.len()];
        for side in sides.iter().filter(|side| side.was_in && side.is_in) {
            let i = side.effect;
            let Effect {
                before: Some(before),
                after: Some(after),
                ..
            } = &mut effects[i]
            else {
                continue;
            };
            changes[i] = self
                .projection
                .changes(self.table, before, after, &around)?;
        }
        let planned = operation::plan(&effects, &sides, |i| Ok(changes[i].contains(&true)))?;
        let at = At {
            xid: commit.xid,
            position: commit.position,
        };
        for (
            i,
            Planned {
                effect,
                operation,
                pair,
            },
        ) in planned.iter().enumerate()
        {
            let n = effects[*effect].op_position as i64 + 1;
            if commit.position == entries.stretch.from.0 && n <= entries.stretch.from.1 {
                continue;
            }
            let (projection, table) = (&mut self.projection, &mut *self.table);
            let job = Job {
                operation: *operation,
                changes: &changes[*effect],
                pair: *pair,
            };
            let begun = projection.write(table, &mut effects[*effect], job, at, &around)?;
            let last = i + 1 == planned.len();
            let message = operation::text(&begun, last);
            let (position, xid) = (commit.position, commit.xid);
            if !entries.add(Entry {
                position,
                n,
                operation: *operation,
                xid,
                message,
                last,
            }) {
                return Ok(false);
            }
        }
        self.table.scratch.reset();
        Ok(true)
    }
}

/// Entries of a stretch that is being read.
pub(super) struct Entries {
    /// Which stretch.
    pub stretch: Stretch,
    entries: Vec<Entry>,
    bytes: u64,
}

impl Entries {
    /// There are none yet.
    pub fn new(stretch: Stretch) -> Entries {
        Entries {
            stretch,
            entries: Vec::new(),
            bytes: 0,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The end of the stretch.
    pub fn end(self, upto: Option<i64>, silent: VecDeque<u64>) -> Read {
        Read {
            entries: self.entries,
            upto,
            silent,
        }
    }

    /// Adds an entry; false when it does not fit any more. Only that cuts the stretch: a full one without a next
    /// entry has reached the end.
    pub fn add(&mut self, entry: Entry) -> bool {
        let fits = self.bytes < self.stretch.max_bytes;
        if fits {
            self.bytes += entry.message.len() as u64;
            self.entries.push(entry);
        }
        fits
    }
}

/// `shapefeed._log`: operations of a shape after one of them, as messages.
#[pg_extern(sql = false)]
#[allow(
    clippy::type_complexity,
    reason = "the macro wants the row type spelled out"
)]
fn _log(
    definition: JsonB,
    from_position: i64,
    from_n: i64,
    to_position: i64,
    max_bytes: i64,
) -> TableIterator<
    'static,
    (
        name!(position, Option<i64>),
        name!(n, Option<i64>),
        name!(message, Option<String>),
        name!(last, Option<bool>),
        name!(upto, Option<i64>),
        name!(silent, Option<Vec<i64>>),
    ),
> {
    let definition = Definition::from_jsonb(definition).or_raise();
    let stretch = Stretch {
        from: (from_position, from_n),
        to: to_position,
        max_bytes: max_bytes.max(1) as u64,
    };
    let Read {
        entries,
        upto,
        silent,
    } = read(&definition, stretch).or_raise();
    let silent = place::as_int8(silent);
    let rows = entries.into_iter().map(|e| {
        (
            Some(e.position),
            Some(e.n),
            Some(e.message),
            Some(e.last),
            None,
            None,
        )
    });
    let end = (None, None, None, None, upto, Some(silent));
    TableIterator::new(rows.chain(std::iter::once(end)))
}
