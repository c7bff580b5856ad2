//! The snapshot of a shape: its rows as of a batch end, in chunks.
//!
//! Postgres plans and runs the base query; what has changed since the batch comes from the overlay. A snapshot that
//! fits one chunk goes in physical order. A larger one goes in key order, cut by size alone, so that any server cuts
//! the same chunks from (position, cursor, threshold). Memory is bounded by one chunk and the overlay.

use pgrx::JsonB;
use pgrx::prelude::*;

use super::definition::{Definition, Log as LogMode};
use super::member::frozen;
use super::merge::{Pace, Rows};
use super::overlay::{Filter, Overlay, concerns, ended};
use super::rows::{END, Order, Pieces, RowWriter, Selection, fetch};
use super::tuple::Table;
use super::window::Log;
use super::{cursor, keyless, place};
use crate::error::{Error, OrRaise, Result};
use crate::pg::attempt::attempt;
use crate::pg::memory::Context;
use crate::pg::query::{Cursor, Goal};
use crate::pg::reading::{self, Latest};
use crate::pg::role::AsRole;

/// What a snapshot is read for.
pub struct Request {
    /// The shape.
    pub definition: Definition,
    /// The batch end.
    pub position: i64,
    /// Bytes after which a chunk ends.
    pub threshold: u64,
    /// Where the chunk before ended.
    pub cursor: Option<String>,
}

/// A snapshot that is being read: pieces of it, in order.
pub struct Snapshot {
    request: Request,
    pieces: Pieces,
    /// None when all rows have been read.
    rows: Option<Rows>,
}

impl Snapshot {
    /// Reads what cannot wait: the overlay, and as much of the rows as is needed to know whether they fit one chunk.
    pub fn begin(request: Request) -> Result<Snapshot> {
        reading::may_read()?;
        let mut snapshot = Snapshot {
            request,
            pieces: Pieces::default(),
            rows: None,
        };
        if snapshot.request.definition.log == LogMode::Full {
            snapshot.read_first()?;
        }
        if snapshot.rows.is_none() {
            snapshot.pieces.mark(END, "");
        }
        Ok(snapshot)
    }

    fn read_first(&mut self) -> Result<()> {
        let Request {
            definition,
            position,
            threshold,
            cursor,
        } = &self.request;
        let (threshold, _role) = (*threshold, definition.enter()?);
        let mut table = place::open_table(definition)?;
        let log = Log::lock();
        let _latest = Latest::take();
        place::require_seen(&log, definition)?;
        place::require(&log, *position)?;
        check_ends(&log, definition, &table, *position)?;
        let no_batch = || Error::MustRefetch("the position is not the end of a batch".into());
        let before = log.batch(*position).ok_or_else(no_batch)?.snapshot;
        let definition = &frozen::at(definition, &log, *position)?;
        let selection = Selection::new(definition, &table)?;
        let mut filter = Filter::new(definition)?;
        if !table.keyed {
            let source = keyless::Source {
                log: &log,
                definition,
                before: &before,
            };
            keyless::read(
                &source,
                &mut table,
                &mut filter,
                threshold,
                cursor.as_deref(),
                &mut self.pieces,
            )?;
            drop(log);
            return self.check_again();
        }
        let overlay = Overlay::read(
            &log,
            definition,
            &mut table,
            &mut filter,
            &selection.selected,
            &before,
        )?;
        drop(log);
        let after = cursor.as_deref().map(|digits| {
            cursor::decode(digits, table.key.len())
                .filter(|key| !key.iter().any(|text| text.contains(&0)))
                .ok_or_else(bad_cursor)
        });
        let after = after.transpose()?;
        let query = |order| selection.query(definition, &table, order);
        let physical = query(Order::Physical);
        let by_key = query(Order::Key(after.as_deref()));
        if after.is_none() && self.fits_one_chunk(&physical, &table, &selection, &overlay)? {
            return self.check_again();
        }
        self.pieces = Pieces::default();
        // A key that the client made up may be no value of its type.
        let base = match after {
            None => Cursor::open(&by_key, Goal::FirstRows),
            Some(_) => {
                attempt(|| Cursor::open(&by_key, Goal::FirstRows)).map_err(|_| bad_cursor())?
            }
        };
        self.rows = Some(Rows::new(
            base,
            &table,
            &selection,
            overlay,
            after.as_deref(),
            threshold,
        )?);
        Ok(())
    }

    /// Reads rows as they are stored, those of the overlay last, until they are more than a chunk takes; true if they are not.
    fn fits_one_chunk(
        &mut self,
        query: &str,
        table: &Table,
        selection: &Selection,
        overlay: &Overlay,
    ) -> Result<bool> {
        let threshold = self.request.threshold;
        let pieces = &mut self.pieces;
        let scratch = Context::new();
        let mut writer = RowWriter::of_query(selection, table);
        let base = Cursor::open(query, Goal::AllRows);
        let mut pace = Pace::default();
        let mut more = true;
        while more && pieces.bytes < threshold {
            let (before, asked) = (pieces.bytes, pace.rows());
            let got = fetch(&base, asked, &mut |row| {
                let wanted = |key: &[u8]| !overlay.rows.contains_key(key);
                scratch.run(|| pieces.put(|out| writer.put(|index| row.get(index), out, wanted)));
            })?;
            scratch.reset();
            pace.learn(got, pieces.bytes - before);
            more = got == asked;
        }
        base.close();
        let mut writer = RowWriter::of_table(selection, table);
        for row in overlay.in_order() {
            scratch.run(|| pieces.put(|out| writer.put(|index| row.get(index), out, |_| true)));
        }
        pieces.close();
        Ok(!more && pieces.bytes < threshold)
    }

    /// Reads on until there is a whole piece.
    fn read_on(&mut self) -> Result<()> {
        let Some(rows) = &mut self.rows else {
            return Ok(());
        };
        let _role = AsRole::enter(&self.request.definition.role)?;
        while !self.pieces.is_ready() {
            if !rows.read_on(&mut self.pieces)? {
                self.rows.take().expect("it was there").close();
                self.pieces.close();
                self.check_again()?;
                self.pieces.mark(END, "");
                return Ok(());
            }
        }
        Ok(())
    }

    /// Nothing may have ended above the position while it was being read.
    fn check_again(&self) -> Result<()> {
        let Request {
            definition,
            position,
            ..
        } = &self.request;
        let table = place::open_table(definition)?;
        let log = Log::lock();
        let _latest = Latest::take();
        if log.floor().is_some_and(|floor| floor > *position) {
            let why = "reading the snapshot took longer than shapefeed.retention and retention_size allow for";
            return Err(Error::TryAgain(why.into()));
        }
        place::require(&log, *position)?;
        check_ends(&log, definition, &table, *position)
    }
}

impl Iterator for Snapshot {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if !self.pieces.is_ready() {
            self.read_on().or_raise();
        }
        self.pieces.pop()
    }
}

fn check_ends(log: &Log, definition: &Definition, table: &Table, position: i64) -> Result<()> {
    let ends = log.ends_above(position);
    match ends
        .iter()
        .flat_map(|(_, ends)| ends)
        .find(|end| concerns(end, definition, &table.family))
    {
        Some(end) => Err(ended(end)),
        None => Ok(()),
    }
}

/// The error for a cursor that this server cannot have given out for the shape.
pub fn bad_cursor() -> Error {
    let code = pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    Error::Sql(
        code,
        "invalid cursor".into(),
        "Pass the digits that a chunk ended with.",
    )
}

/// `shapefeed._snapshot`: the rows of a shape as of a batch end, in pieces whose first byte says what they are.
#[pg_extern(sql = false)]
fn _snapshot(
    definition: JsonB,
    position: i64,
    threshold: i64,
    cursor: Option<String>,
) -> SetOfIterator<'static, Vec<u8>> {
    let definition = Definition::from_jsonb(definition).or_raise();
    let request = Request {
        definition,
        position,
        threshold: threshold.max(1) as u64,
        cursor,
    };
    SetOfIterator::new(Snapshot::begin(request).or_raise())
}
