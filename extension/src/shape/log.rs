//! The log of one shape: its operations between two positions, in order.

use pgrx::JsonB;
use pgrx::prelude::*;

use super::definition::Definition;
use super::keyless::{self, Counts};
use super::message::Operation;
use super::net::{self, Chain};
use super::operation::{self, At, Planned, Projection};
use super::overlay::{Filter, concerns, ended};
use super::place;
use super::tuple::{Around, Effect, Table};
use super::window::{Commit, Log, Transaction};
use crate::error::{Error, OrRaise, Result};
use crate::pg::attempt::{Caught, attempt};
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

/// Reads a stretch of a shape's log. Also returns the position up to which the log is evaluated; none if the stretch was
/// cut by its size.
pub fn read(definition: &Definition, stretch: Stretch) -> Result<(Vec<Entry>, Option<i64>)> {
    reading::may_read()?;
    let _role = definition.enter()?;
    let mut table = place::open_table(definition)?;
    let log = Log::lock();
    let _latest = Latest::take();
    let (from, to) = bounds(&log, definition, &table, &stretch)?;
    let mut shape = Shape::new(&log, definition, &mut table, stretch.from)?;
    let mut entries = Entries {
        stretch,
        entries: Vec::new(),
        bytes: 0,
    };
    let mut after = from;
    while after < to {
        let about = |commit: &Commit| commit.relids.contains(&definition.relid);
        let (commits, complete_to) = log.commits(after, to, about, COMMITS_AT_ONCE);
        for commit in commits {
            if !shape.read(&commit, &mut entries)? {
                return Ok((entries.entries, None));
            }
        }
        after = complete_to;
    }
    Ok((entries.entries, Some(to)))
}

const COMMITS_AT_ONCE: usize = 4096;

/// The positions to read: after the first, up to the second. An error when the log cannot be read from there on.
fn bounds(
    log: &Log,
    definition: &Definition,
    table: &Table,
    stretch: &Stretch,
) -> Result<(i64, i64)> {
    let (position, n) = stretch.from;
    place::require(log, position)?;
    let head = log.newest_batch().map_or(position, |batch| batch.position);
    for (_, ends) in log.ends_above(position) {
        if let Some(end) = ends.iter().find(|end| concerns(end, definition, table)) {
            return Err(ended(end));
        }
    }
    Ok((
        if n > 0 { position - 1 } else { position },
        stretch.to.min(head),
    ))
}

/// One shape, ready to be told of transactions in order.
struct Shape<'a> {
    log: &'a Log,
    definition: &'a Definition,
    table: &'a mut Table,
    filter: Filter,
    projection: Projection,
    /// Does not see any transaction that is read.
    before: Snapshot,
    /// How often each row is in, where there is no key.
    counts: Option<Counts>,
}

impl<'a> Shape<'a> {
    fn new(
        log: &'a Log,
        definition: &'a Definition,
        table: &'a mut Table,
        from: (i64, i64),
    ) -> Result<Shape<'a>> {
        let filter = Filter::new(definition)?;
        let projection = Projection::new(table, &definition.columns, definition.replica)?;
        let after = if from.1 > 0 { from.0 - 1 } else { from.0 };
        // A position inside the oldest batch there is: nothing before it is needed.
        let before = log
            .newest_batch_up_to(after)
            .map(|batch| (batch.position, batch.snapshot))
            .unwrap_or_default();
        let keyed = table.keyed;
        let mut shape = Shape {
            log,
            definition,
            table,
            filter,
            projection,
            before: before.1,
            counts: None,
        };
        if !keyed {
            let mut tally = Tally {
                log,
                definition,
                table: shape.table,
                filter: &mut shape.filter,
            };
            shape.counts = Some(tally.at(before.0, after, &shape.before)?);
        }
        Ok(shape)
    }

    /// Adds the operations of one transaction; false when the stretch is full.
    fn read(&mut self, commit: &Commit, entries: &mut Entries) -> Result<bool> {
        let transaction = self.log.transaction(commit.member, commit.xid);
        let records = transaction.records()?;
        let around = Around {
            log: self.log,
            records: &records,
            before: &self.before,
        };
        let chains = net::chains(&records);
        let (mut effects, was_in, is_in) = match &mut self.counts {
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
        for i in (0..effects.len()).filter(|i| was_in[*i] && is_in[*i]) {
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
        let planned =
            operation::plan(
                &effects,
                &was_in,
                &is_in,
                |i| Ok(changes[i].contains(&true)),
            )?;
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
            let begun = projection.write(
                table,
                &mut effects[*effect],
                *operation,
                &changes[*effect],
                *pair,
                at,
                &around,
            )?;
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

struct Entries {
    stretch: Stretch,
    entries: Vec<Entry>,
    bytes: u64,
}

impl Entries {
    /// Adds an entry; false when that was the last to fit.
    fn add(&mut self, entry: Entry) -> bool {
        self.bytes += entry.message.len() as u64;
        self.entries.push(entry);
        self.bytes < self.stretch.max_bytes
    }
}

/// What a transaction did to a table, and on which side of each effect the row was in the shape.
pub type Judged = (Vec<Effect>, Vec<bool>, Vec<bool>);

/// Asks a filter about both sides of each effect of a transaction.
fn judge(
    table: &mut Table,
    filter: &mut Filter,
    transaction: &Transaction,
    chains: &[Chain<'_>],
    around: &Around<'_>,
) -> Result<Judged> {
    let mut effects = table.effects(transaction, chains, around)?;
    fetch(&mut effects, filter.columns(), table, around)?;
    let (was_in, is_in) =
        attempt(|| sides(&mut effects, filter, table)).map_err(|caught| unevaluated(&caught))?;
    Ok((effects, was_in, is_in))
}

/// Fetches what these columns have out of line, on both sides of each effect.
pub fn fetch(
    effects: &mut [Effect],
    columns: &[usize],
    table: &mut Table,
    around: &Around<'_>,
) -> Result<()> {
    let rows = effects
        .iter_mut()
        .flat_map(|effect| [&mut effect.before, &mut effect.after])
        .flatten();
    rows.filter(|row| row.is_external())
        .try_for_each(|row| table.fetch(row, columns, around))
}

/// On which side of each effect the row is in. Raises what the where clause raises.
pub fn sides(effects: &mut [Effect], filter: &mut Filter, table: &Table) -> (Vec<bool>, Vec<bool>) {
    let mut is_in = |row: &mut Option<crate::pg::image::Row>| {
        row.as_mut()
            .is_some_and(|row| filter.matches(row, table.relation()))
    };
    effects
        .iter_mut()
        .map(|effect| (is_in(&mut effect.before), is_in(&mut effect.after)))
        .unzip()
}

/// An error of a where clause, without the values that it may tell of.
pub fn unevaluated(caught: &Caught) -> Error {
    Error::Sql(
        caught.sqlstate,
        "the where clause cannot be evaluated for a row of the table".into(),
        "Write it so that it raises no error for any row.",
    )
}

/// For a table without a key: an effect for each row of the shape of which there came to be the first, or no more.
pub fn judge_counts(
    counts: &mut Counts,
    table: &mut Table,
    filter: &mut Filter,
    transaction: &Transaction,
    chains: &[Chain<'_>],
    around: &Around<'_>,
) -> Result<Judged> {
    let mut judged: Judged = Default::default();
    for mut gain in keyless::gains(table.keyed_chains(transaction, chains, around)?) {
        let matches = attempt(|| filter.matches(&mut gain.row, table.relation()));
        if !matches.map_err(|caught| unevaluated(&caught))? {
            continue;
        }
        let (before, after) = counts.change(&gain.key, gain.gained);
        let (came, went) = (before <= 0 && after > 0, before > 0 && after <= 0);
        if !came && !went {
            continue;
        }
        let (old, new) = if went {
            (Some(gain.row), None)
        } else {
            (None, Some(gain.row))
        };
        let (op_position, key) = (gain.op_position, gain.key);
        judged.0.push(Effect {
            op_position,
            key,
            before: old,
            after: new,
            other_key: None,
        });
        judged.1.push(went);
        judged.2.push(came);
    }
    Ok(judged)
}

/// Counts the rows of a shape on a table without a key.
pub struct Tally<'a> {
    /// The log.
    pub log: &'a Log,
    /// The shape.
    pub definition: &'a Definition,
    /// Its table.
    pub table: &'a mut Table,
    /// Its filter.
    pub filter: &'a mut Filter,
}

impl Tally<'_> {
    /// The counts as of a position: those of the batch before it, and what came between.
    pub fn at(&mut self, batch: i64, position: i64, before: &Snapshot) -> Result<Counts> {
        let source = keyless::Source {
            log: self.log,
            definition: self.definition,
            before,
        };
        let mut counts = Counts::as_of(&source, self.table, self.filter)?;
        let about = |commit: &Commit| commit.relids.contains(&self.definition.relid);
        for commit in self.log.commits(batch, position, about, usize::MAX).0 {
            let transaction = self.log.transaction(commit.member, commit.xid);
            let records = transaction.records()?;
            let around = Around {
                log: self.log,
                records: &records,
                before,
            };
            judge_counts(
                &mut counts,
                self.table,
                self.filter,
                &transaction,
                &net::chains(&records),
                &around,
            )?;
        }
        Ok(counts)
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
    ),
> {
    let definition = Definition::from_jsonb(definition).or_raise();
    let stretch = Stretch {
        from: (from_position, from_n),
        to: to_position,
        max_bytes: max_bytes.max(1) as u64,
    };
    let (entries, upto) = read(&definition, stretch).or_raise();
    let rows = entries.into_iter().map(|e| {
        (
            Some(e.position),
            Some(e.n),
            Some(e.message),
            Some(e.last),
            None,
        )
    });
    TableIterator::new(rows.chain(std::iter::once((None, None, None, None, upto))))
}
