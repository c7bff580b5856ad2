//! Which rows of a transaction are in a shape, before and after.

use pgrx::PgSqlErrorCode;

use super::definition::Definition;
use super::keyless::{self, Counts, Gains};
use super::net::{self, Chain};
use super::operation::Side;
use super::overlay::Filter;
use super::tuple::{Around, Effect, Table};
use super::window::{Commit, Log, Transaction};
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::attempt::{Caught, TOO_SLOW, attempt_evaluation_within};
use crate::pg::encode::{TOO_LARGE, TOO_LARGE_HINT};
use crate::pg::image::Row;
use crate::sequence::order::Snapshot;

/// What a transaction did to a table, and on which sides of it rows were in the shape.
pub type Judged = (Vec<Effect>, Vec<Side>);

/// Asks a filter about both sides of each effect of a transaction.
pub fn judge(
    table: &mut Table,
    filter: &mut Filter,
    transaction: &Transaction,
    chains: &[Chain<'_>],
    around: &Around<'_>,
) -> Result<Judged> {
    let mut effects = table.effects(transaction, chains, around)?;
    fetch(&mut effects, filter.columns(), table, around)?;
    let sides = sides(&effects, filter)?;
    Ok((effects, sides))
}

/// Fetches what these columns have out of line, on both sides of each effect.
pub fn fetch(
    effects: &mut [Effect],
    columns: &[usize],
    table: &mut Table,
    around: &Around<'_>,
) -> Result<()> {
    rows(effects)
        .filter(|row| row.is_external())
        .try_for_each(|row| table.fetch(row, columns, around))
}

/// Both sides of each effect.
pub fn rows(effects: &mut [Effect]) -> impl Iterator<Item = &mut Row> {
    let effects = effects.iter_mut();
    let sides = effects.flat_map(|effect| [&mut effect.before, &mut effect.after]);
    sides.flatten()
}

/// On which side of each effect the row is in.
fn sides(effects: &[Effect], filter: &mut Filter) -> Result<Vec<Side>> {
    let mut is_in = |row: &Option<Row>| row.as_ref().is_some_and(|row| filter.matches(row));
    let mut side = |(number, effect): (usize, &Effect)| {
        pgrx::check_for_interrupts!();
        let (was_in, is_in) = (is_in(&effect.before), is_in(&effect.after));
        (was_in || is_in).then_some(Side {
            effect: number,
            was_in,
            is_in,
        })
    };
    let limit = guc::clause_time_limit(effects.len());
    attempt_evaluation_within(limit, || {
        effects.iter().enumerate().filter_map(&mut side).collect()
    })
    .map_err(|caught| unevaluated(&caught))
}

/// An error of a where clause, without the values that it may tell of; or that a row is too large, or takes too long, which may be told.
pub fn unevaluated(caught: &Caught) -> Error {
    // What is no error of data is one all the same for whoever wrote the clause: the server itself is well.
    let code = match caught.is_of_data() {
        true => caught.sqlstate,
        false => PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
    };
    let (message, hint) = match caught.message.as_str() {
        TOO_SLOW => return Error::Clause(TOO_SLOW.into()),
        TOO_LARGE => (TOO_LARGE, TOO_LARGE_HINT),
        _ => (
            "the where clause cannot be evaluated for a row of the table",
            "Write it so that it raises no error for any row.",
        ),
    };
    Error::Sql(code, message.into(), hint)
}

/// For a table without a key, whose effects are [`Gains`].
pub fn judge_counts(
    counts: &mut Counts,
    table: &mut Table,
    filter: &mut Filter,
    transaction: &Transaction,
    chains: &[Chain<'_>],
    around: &Around<'_>,
) -> Result<Judged> {
    let gains = Gains::of(table.keyed_chains(transaction, chains, around)?);
    let sides = counts.change(&gains, sides(&gains.effects, filter)?);
    Ok((gains.effects, sides))
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
