//! Tables without a primary key. Equal rows cannot be told apart, so rows are counted: a row is in as long as there is
//! one of it. Pages are cut by a hash of the row's text.

use std::collections::HashMap;

use super::cursor;
use super::definition::Definition;
use super::merge::Chunk;
use super::net::Keyed;
use super::operation::Side;
use super::overlay::{Filter, read_counts};
use super::rows::{Order, Pieces, RowWriter, Selection, fetch};
use super::snapshot::bad_cursor;
use super::tuple::{Effect, Key, Table};
use super::window::Log;
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::image::Row;
use crate::pg::memory::Context;
use crate::pg::query::{Cursor, Goal};
use crate::sequence::order::Snapshot;

struct Counted {
    hash: u128,
    count: i64,
    message: Vec<u8>,
}

/// What a snapshot is read from.
pub struct Source<'a> {
    /// The log.
    pub log: &'a Log,
    /// The shape.
    pub definition: &'a Definition,
    /// The snapshot of the batch.
    pub before: &'a Snapshot,
}

/// Reads the snapshot of a shape as of a batch, after `cursor` if that is given.
pub fn read(
    source: &Source<'_>,
    table: &mut Table,
    filter: &mut Filter,
    threshold: u64,
    cursor: Option<&str>,
    pieces: &mut Pieces,
) -> Result<()> {
    let mut rows = rows_as_of(source, table, filter)?;
    let bytes: usize = rows.iter().map(|row| row.message.len()).sum();
    if cursor.is_some() || bytes as u64 >= threshold {
        rows.sort_unstable_by_key(|row| row.hash);
    }
    if let Some(digits) = cursor {
        let key = cursor::decode(digits, 1).ok_or_else(bad_cursor)?;
        let hash: [u8; 16] = key[0].as_slice().try_into().map_err(|_| bad_cursor())?;
        rows.retain(|row| row.hash > u128::from_be_bytes(hash));
    }
    let mut chunk = Chunk {
        threshold,
        bytes: 0,
        cut: None,
    };
    for row in rows {
        chunk.begin_row(pieces);
        pieces.put(|out| {
            out.extend_from_slice(&row.message);
            true
        });
        if chunk.is_full_after(row.message.len()) {
            chunk.cut_after(vec![row.hash.to_be_bytes().to_vec()]);
        }
    }
    pieces.close();
    Ok(())
}

/// The distinct rows of a shape as of a batch: first those that are still there, as they are stored.
fn rows_as_of(source: &Source<'_>, table: &mut Table, filter: &mut Filter) -> Result<Vec<Counted>> {
    let changes = read_counts(source.log, source.definition, table, filter, source.before)?;
    let (mut rows, mut index) = read_now(source.definition, table)?;
    let selection = Selection::new(source.definition, table)?;
    let mut writer = RowWriter::of_table(&selection, table);
    let scratch = Context::new();
    let mut changes: Vec<_> = changes.into_iter().collect();
    changes.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    for (key, change) in changes {
        let Some(row) = change.row else { continue };
        let at = *index.entry(hash_of(&key)).or_insert_with(|| {
            let mut message = Vec::new();
            scratch.run(|| writer.put(|column| row.get(column), &mut message, |_| true));
            rows.push(Counted {
                hash: hash_of(&key),
                count: 0,
                message,
            });
            rows.len() - 1
        });
        rows[at].count -= change.gained;
    }
    rows.retain(|row| row.count > 0);
    Ok(rows)
}

/// The distinct rows that are in the shape now, and where each is by its hash.
fn read_now(
    definition: &Definition,
    table: &Table,
) -> Result<(Vec<Counted>, HashMap<u128, usize>)> {
    let selection = Selection::new(definition, table)?;
    let mut writer = RowWriter::of_query(&selection, table);
    let base = Cursor::open(
        &selection.query(definition, table, Order::Physical),
        Goal::AllRows,
    );
    let scratch = Context::new();
    let (mut rows, mut index): (Vec<Counted>, HashMap<u128, usize>) = Default::default();
    let mut read = 0;
    loop {
        let got = fetch(&base, FETCH_ROWS, &mut |row| {
            scratch.run(|| {
                let hash = hash_of(&writer.key(|column| row.get(column)));
                let at = *index.entry(hash).or_insert_with(|| {
                    let mut message = Vec::new();
                    writer.put(|column| row.get(column), &mut message, |_| true);
                    rows.push(Counted {
                        hash,
                        count: 0,
                        message,
                    });
                    rows.len() - 1
                });
                rows[at].count += 1;
            })
        })?;
        scratch.reset();
        read += got;
        if read as u64 > guc::keyless_max_rows() {
            return Err(Error::Unsupported(
                format!(
                    "table \"{}\".\"{}\" has no primary key and too many rows",
                    definition.schema, definition.table
                ),
                "Add a primary key, or raise shapefeed.keyless_max_rows.",
            ));
        }
        if got < FETCH_ROWS {
            base.close();
            return Ok((rows, index));
        }
    }
}

const FETCH_ROWS: usize = 500;

fn hash_of(key: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(key)
}

/// How often each row of a shape is there; rows that are not in the shape are not remembered.
#[derive(Default)]
pub struct Counts {
    counts: HashMap<u128, i64>,
    /// Places of the columns that a row is.
    columns: Vec<usize>,
}

impl Counts {
    /// The counts as of a batch.
    pub fn as_of(source: &Source<'_>, table: &mut Table, filter: &mut Filter) -> Result<Counts> {
        let rows = rows_as_of(source, table, filter)?;
        Ok(Counts {
            counts: rows.into_iter().map(|row| (row.hash, row.count)).collect(),
            columns: table.key.clone(),
        })
    }

    /// These are of rows as the table has them: it may have got or lost a column since.
    pub fn are_of(&self, table: &Table) -> bool {
        self.columns == table.key
    }

    /// Counts the rows of the shape that went and came: of each side, how many more there are. Those sides are left on
    /// which the first one came or the last one went.
    pub fn change(&mut self, gains: &Gains, mut sides: Vec<Side>) -> Vec<Side> {
        sides.retain(|side| {
            let (effect, gained) = (&gains.effects[side.effect], gains.gained[side.effect]);
            let count = self.counts.entry(hash_of(&effect.key)).or_insert(0);
            let before = *count;
            *count += gained;
            let after = *count;
            if after <= 0 {
                self.counts.remove(&hash_of(&effect.key));
            }
            (before <= 0) != (after <= 0)
        });
        sides
    }
}

/// What a transaction did to the numbers of rows: an effect for each of which there are more now, which has that row
/// after, or fewer, which has it before.
#[derive(Default)]
pub struct Gains {
    /// In order of `op_position`.
    pub effects: Vec<Effect>,
    /// For each effect: how much more often the row is there.
    pub gained: Vec<i64>,
}

/// One row, while a transaction's chains are added up.
struct Gain {
    op_position: u64,
    key: Key,
    row: Row,
    gained: i64,
}

impl Gains {
    /// Adds a transaction's chains up, by row.
    pub fn of(chains: Vec<Keyed<Key, Row>>) -> Gains {
        let mut gains = Gains::default();
        for gain in sums(chains).into_iter().filter(|gain| gain.gained != 0) {
            let (before, after) = match gain.gained {
                ..0 => (Some(gain.row), None),
                _ => (None, Some(gain.row)),
            };
            gains.gained.push(gain.gained);
            gains.effects.push(Effect {
                op_position: gain.op_position,
                key: gain.key,
                before,
                after,
                other_key: None,
            });
        }
        gains
    }
}

fn sums(chains: Vec<Keyed<Key, Row>>) -> Vec<Gain> {
    let mut all: Vec<Gain> = Vec::new();
    let mut index: HashMap<Key, usize> = HashMap::new();
    for chain in chains {
        let after_position = 2 * chain.start + u64::from(chain.before.is_some());
        for (end, gained, op_position) in [
            (chain.before, -1, 2 * chain.start),
            (chain.after, 1, after_position),
        ] {
            let Some((key, row)) = end else { continue };
            match index.get(&key) {
                Some(at) => all[*at].gained += gained,
                None => {
                    index.insert(key.clone(), all.len());
                    all.push(Gain {
                        op_position,
                        key,
                        row,
                        gained,
                    });
                }
            }
        }
    }
    all
}
