//! As-of reads: a table as it was at the end of a batch.
//!
//! Transactions after batch P are those that its snapshot does not see and the reader's does. For each key that one of
//! them touched, the row as of P is its *before* image in the first such transaction, if it has one; for every other
//! key it is the row now. Without a key rows are counted: count(P) = count(now) - news + olds.

use std::collections::{HashMap, HashSet};

use super::definition::{Definition, Inner};
use super::family::Family;
use super::net;
use super::tuple::{Around, Key, Table};
use super::window::{End, Log, Transaction, ends_of};
use crate::error::{Error, Result};
use crate::pg::expr::Predicate;
use crate::pg::image::Row;
use crate::sequence::order::Snapshot;

/// A where clause, compiled for a table.
pub struct Filter {
    predicate: Option<Predicate>,
    columns: Vec<usize>,
}

impl Filter {
    /// The filter of a shape. Call it while acting as the shape's role.
    pub fn new(definition: &Definition) -> Result<Filter> {
        let relid = pgrx::pg_sys::Oid::from_u32(definition.relid);
        let predicate = definition
            .where_text
            .as_deref()
            .map(|text| Predicate::compile(relid, text))
            .transpose()?;
        let columns = predicate
            .iter()
            .flat_map(|p| p.columns())
            .map(|attnum| *attnum as usize - 1)
            .collect();
        Ok(Filter { predicate, columns })
    }

    /// Columns that it reads, from 0.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Is a row in, whose columns have been fetched?
    pub fn matches(&mut self, row: &Row) -> bool {
        self.predicate
            .as_mut()
            .is_none_or(|predicate| predicate.matches(row))
    }
}

/// Does this end a shape's handles?
pub fn concerns(end: &End, definition: &Definition, family: &Family) -> bool {
    let names = definition.columns.iter().chain(&definition.where_columns);
    let is_over =
        |family: &Family| end.concerns(family) || end.concerns_rights_of(&definition.role, family);
    let of_inner = |table: &Inner| Family::of(table.relid).is_none_or(|family| is_over(&family));
    (is_over(family) && end.ends_those_with(names))
        || end.shape.as_deref() == Some(&definition.hash)
        || definition.inner.iter().any(of_inner)
}

/// The error for a shape whose handles ended.
pub fn ended(end: &End) -> Error {
    Error::MustRefetch(format!("the shape has ended: {}", end.reason))
}

/// What keeps a transaction's rows comparable with those of a shape, and calls `each` for every transaction after a
/// batch that touched the table.
fn after(
    log: &Log,
    definition: &Definition,
    table: &mut Table,
    before: &Snapshot,
    mut each: impl FnMut(&mut Table, &Transaction, &[net::Chain<'_>], &Around<'_>) -> Result<()>,
) -> Result<()> {
    for summary in log.unseen_by(before) {
        if let Some(end) = ends_of(&summary).find(|end| concerns(end, definition, &table.family)) {
            return Err(ended(&end));
        }
        if !summary.relids.contains(&definition.relid) {
            continue;
        }
        let transaction = log.transaction(summary.member, summary.xid);
        let records = transaction.records()?;
        let around = Around {
            log,
            records: &records,
            before,
        };
        each(table, &transaction, &net::chains(&records), &around)?;
    }
    Ok(())
}

/// The rows of a shape that differ now from what they were at the end of a batch.
#[derive(Default)]
pub struct Overlay {
    /// Each key that was touched since; with the row that it had then if that was in the shape.
    pub rows: HashMap<Key, Option<Row>>,
}

impl Overlay {
    /// Reads the overlay of a table with a key: `before` is the batch's snapshot, the active one is the reader's.
    pub fn read(
        log: &Log,
        definition: &Definition,
        table: &mut Table,
        filter: &mut Filter,
        needed: &[usize],
        before: &Snapshot,
    ) -> Result<Overlay> {
        let mut rows: HashMap<Key, Option<Row>> = HashMap::new();
        after(
            log,
            definition,
            table,
            before,
            |table, transaction, chains, around| {
                for effect in table.effects(transaction, chains, around)? {
                    if rows.contains_key(&effect.key) {
                        continue;
                    }
                    let row = effect
                        .before
                        .map(|row| keep(row, table, filter, needed, around))
                        .transpose()?
                        .flatten();
                    rows.insert(effect.key, row);
                }
                Ok(())
            },
        )?;
        Ok(Overlay { rows })
    }
}

impl Overlay {
    /// The rows that are in the shape, in an order that depends on nothing else.
    pub fn in_order(&self) -> Vec<&Row> {
        let mut rows: Vec<_> = self
            .rows
            .iter()
            .filter_map(|(key, row)| Some((key, row.as_ref()?)))
            .collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

/// A row that is in the shape, with all that is needed of it.
fn keep(
    mut row: Row,
    table: &mut Table,
    filter: &mut Filter,
    needed: &[usize],
    around: &Around<'_>,
) -> Result<Option<Row>> {
    table.fetch(&mut row, filter.columns(), around)?;
    if !filter.matches(&row) {
        return Ok(None);
    }
    table.fetch(&mut row, needed, around)?;
    Ok(Some(row))
}

/// What transactions after a batch did to rows of a table.
#[derive(Default)]
pub struct Touched {
    /// Literals of the keys that rows now may have and are not to be taken for.
    pub keys: Vec<Vec<u8>>,
    /// Rows of the shape that were there.
    pub rows: Vec<Row>,
    /// Without a key: how much more often each of these rows is there now than it was.
    pub gained: Vec<i64>,
}

impl Touched {
    /// Reads it, as [`Overlay::read`] does.
    pub fn read(
        log: &Log,
        definition: &Definition,
        table: &mut Table,
        filter: &mut Filter,
        needed: &[usize],
        before: &Snapshot,
    ) -> Result<Touched> {
        if !table.keyed {
            return Touched::counted(read_counts(log, definition, table, filter, before)?, table);
        }
        let (mut touched, mut seen) = (Touched::default(), HashSet::new());
        after(
            log,
            definition,
            table,
            before,
            |table, transaction, chains, around| {
                for effect in table.effects(transaction, chains, around)? {
                    let row = effect.before.as_ref().or(effect.after.as_ref());
                    let Some(row) = row.filter(|_| seen.insert(effect.key)) else {
                        continue;
                    };
                    touched.keys.push(table.key_literal(row));
                    if let Some(row) = effect.before {
                        touched
                            .rows
                            .extend(keep(row, table, filter, needed, around)?);
                    }
                }
                Ok(())
            },
        )?;
        Ok(touched)
    }

    fn counted(counts: HashMap<Key, Count>, table: &mut Table) -> Result<Touched> {
        let mut touched = Touched::default();
        for count in counts.into_values() {
            let Some(row) = count.row else { continue };
            touched.keys.push(table.key_literal(&row));
            touched.rows.push(row);
            touched.gained.push(count.gained);
        }
        Ok(touched)
    }
}

/// How often a row is there, for tables without a key.
#[derive(Default)]
pub struct Count {
    /// How much more often it is there now than it was.
    pub gained: i64,
    /// The row, if it is in the shape.
    pub row: Option<Row>,
}

/// Rows of a shape on a table without a key, by what became of them since the end of a batch.
pub fn read_counts(
    log: &Log,
    definition: &Definition,
    table: &mut Table,
    filter: &mut Filter,
    before: &Snapshot,
) -> Result<HashMap<Key, Count>> {
    let mut counts: HashMap<Key, Count> = HashMap::new();
    after(
        log,
        definition,
        table,
        before,
        |table, transaction, chains, around| {
            let all = table.key.clone();
            for chain in table.keyed_chains(transaction, chains, around)? {
                for (end, sign) in [(chain.before, -1), (chain.after, 1)] {
                    let Some((key, row)) = end else { continue };
                    match counts.get_mut(&key) {
                        Some(count) => count.gained += sign,
                        None => {
                            let row = keep(row, table, filter, &all, around)?;
                            counts.insert(key, Count { gained: sign, row });
                        }
                    }
                }
            }
            Ok(())
        },
    )?;
    Ok(counts)
}
