//! The snapshot of a shape: its rows as of a batch end, in chunks.
//!
//! Postgres plans and runs the base query; what has changed since the batch comes from the overlay. A snapshot that
//! fits one chunk goes in physical order. A larger one goes in key order, cut by size alone, so that any server cuts
//! the same chunks from (position, cursor, threshold). Memory is bounded by one chunk and the overlay.

use std::cmp::Ordering;
use std::collections::{HashSet, VecDeque};

use pgrx::JsonB;
use pgrx::pg_sys::Datum;
use pgrx::prelude::*;

use super::definition::{Definition, Log as LogMode};
use super::overlay::{Filter, Overlay, concerns, ended};
use super::rows::{CUT, END, Order, Pieces, RowWriter, Selection};
use super::tuple::{Key, Table};
use super::window::Log;
use super::{cursor, keyless, place};
use crate::error::{Error, OrRaise, Result};
use crate::pg::image::Row;
use crate::pg::memory::Context;
use crate::pg::order::KeyOrder;
use crate::pg::query::{Cursor, Fetched, Goal};
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
        place::require(&log, *position)?;
        check_ends(&log, definition, &table, *position)?;
        let no_batch = || Error::MustRefetch("the position is not the end of a batch".into());
        let before = log.batch(*position).ok_or_else(no_batch)?.snapshot;
        let selection = Selection::new(definition, &table)?;
        let mut filter = Filter::new(definition)?;
        if !table.keyed {
            let source = keyless::Source {
                log: &log,
                definition,
                before: &before,
            };
            return keyless::read(
                &source,
                &mut table,
                &mut filter,
                threshold,
                cursor.as_deref(),
                &mut self.pieces,
            );
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
        let after = cursor
            .as_deref()
            .map(|digits| cursor::decode(digits, table.key.len()).ok_or_else(bad_cursor));
        let after = after.transpose()?;
        if after.is_none() && self.fits_one_chunk(&table, &selection, &overlay) {
            return Ok(());
        }
        self.pieces = Pieces::default();
        let query = selection.query(
            &self.request.definition,
            &table,
            Order::Key(after.as_deref()),
        );
        let base = Cursor::open(&query, Goal::FirstRows);
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

    /// Reads rows in physical order until they are more than a chunk takes; true if they are not.
    fn fits_one_chunk(&mut self, table: &Table, selection: &Selection, overlay: &Overlay) -> bool {
        let threshold = self.request.threshold;
        let pieces = &mut self.pieces;
        let mut writer = RowWriter::of_table(selection, table);
        let scratch = Context::new();
        for row in overlay.rows.values().flatten() {
            scratch.run(|| pieces.put(|out| writer.put(|index| row.get(index), out, |_| true)));
        }
        let mut writer = RowWriter::of_query(selection, table);
        let query = selection.query(&self.request.definition, table, Order::Physical);
        let base = Cursor::open(&query, Goal::AllRows);
        let mut pace = Pace::default();
        while pieces.bytes < threshold {
            let before = pieces.bytes;
            let asked = pace.rows();
            let got = base.fetch(asked, &mut |row| {
                let wanted = |key: &[u8]| !overlay.rows.contains_key(key);
                scratch.run(|| pieces.put(|out| writer.put(|index| row.get(index), out, wanted)));
            });
            scratch.reset();
            pace.learn(got, pieces.bytes - before);
            if got < asked {
                pieces.close();
                base.close();
                return pieces.bytes < threshold;
            }
        }
        base.close();
        false
    }

    /// Reads on until there is a whole piece.
    fn read_on(&mut self) -> Result<()> {
        let Some(rows) = &mut self.rows else {
            return Ok(());
        };
        let _role = AsRole::enter(&self.request.definition.role)?;
        while !self.pieces.is_ready() {
            if !rows.read_on(&mut self.pieces) {
                self.rows.take().expect("it was there").base.close();
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
        .find(|end| concerns(end, definition, table))
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

/// Rows in key order: those of the base query and those of the overlay, merged.
struct Rows {
    base: Cursor,
    merge: Merge,
    scratch: Context,
    pace: Pace,
}

struct Merge {
    writer: RowWriter,
    touched: HashSet<Key>,
    /// Rows of the overlay, in key order, that come after what has been read.
    others: VecDeque<Row>,
    other_writer: RowWriter,
    order: KeyOrder,
    chunk: Chunk,
}

impl Rows {
    fn new(
        base: Cursor,
        table: &Table,
        selection: &Selection,
        overlay: Overlay,
        after: Option<&[Vec<u8>]>,
        threshold: u64,
    ) -> Result<Rows> {
        let mut order = KeyOrder::new(table.relation(), &table.key)?;
        let other_writer = RowWriter::of_table(selection, table);
        let key = |row: &Row| other_writer.key_values(|index| row.get(index));
        let (mut touched, mut others) = (HashSet::new(), Vec::new());
        for (key, row) in overlay.rows {
            touched.insert(key);
            others.extend(row);
        }
        if let Some(after) = after {
            let after = order.parse(after)?;
            others.retain(|row| order.compare(&key(row), &after) == Ordering::Greater);
        }
        others.sort_by(|a, b| order.compare(&key(a), &key(b)));
        let writer = RowWriter::of_query(selection, table);
        let chunk = Chunk {
            threshold,
            bytes: 0,
            cut: None,
        };
        let merge = Merge {
            writer,
            touched,
            others: others.into(),
            other_writer,
            order,
            chunk,
        };
        Ok(Rows {
            base,
            merge,
            scratch: Context::new(),
            pace: Pace::default(),
        })
    }

    /// Reads some rows more; false when there are none left.
    fn read_on(&mut self, pieces: &mut Pieces) -> bool {
        let before = pieces.bytes;
        let asked = self.pace.rows();
        let (merge, scratch) = (&mut self.merge, &self.scratch);
        let got = self.base.fetch(asked, &mut |row| {
            scratch.run(|| merge.put_base(&row, pieces))
        });
        if got < asked {
            scratch.run(|| while merge.put_other(None, pieces) {});
        }
        scratch.reset();
        self.pace.learn(got, pieces.bytes - before);
        got == asked
    }
}

impl Merge {
    fn put_base(&mut self, row: &Fetched<'_>, pieces: &mut Pieces) {
        if !self.others.is_empty() {
            let key = self.writer.key_values(|index| row.get(index));
            while self.put_other(Some(&key), pieces) {}
        }
        let (writer, touched) = (&mut self.writer, &self.touched);
        let wanted = |key: &[u8]| touched.is_empty() || !touched.contains(key);
        // Only a row that is put may end the chunk before it.
        if self.chunk.cut.is_some()
            && (touched.is_empty() || wanted(&writer.key(|index| row.get(index))))
        {
            self.chunk.begin_row(pieces);
        }
        let bytes = pieces.put(|out| writer.put(|index| row.get(index), out, wanted));
        if self.chunk.is_full_after(bytes) {
            self.chunk
                .cut_after(self.writer.key_texts(|index| row.get(index)));
        }
    }

    /// Puts the next row of the overlay, if it comes before this key.
    fn put_other(&mut self, limit: Option<&[Datum]>, pieces: &mut Pieces) -> bool {
        let Some(row) = self.others.front() else {
            return false;
        };
        let writer = &mut self.other_writer;
        let is_next = limit.is_none_or(|limit| {
            let key = writer.key_values(|index| row.get(index));
            self.order.compare(&key, limit) == Ordering::Less
        });
        if !is_next {
            return false;
        }
        self.chunk.begin_row(pieces);
        let bytes = pieces.put(|out| writer.put(|index| row.get(index), out, |_| true));
        if self.chunk.is_full_after(bytes) {
            self.chunk
                .cut_after(writer.key_texts(|index| row.get(index)));
        }
        self.others.pop_front();
        true
    }
}

/// The chunk that is being filled.
pub struct Chunk {
    /// Bytes after which it ends.
    pub threshold: u64,
    /// Bytes of its rows.
    pub bytes: u64,
    /// It is full: another row begins the next one, after this cursor.
    pub cut: Option<String>,
}

impl Chunk {
    /// A row follows: the chunk that is full has ended.
    pub fn begin_row(&mut self, pieces: &mut Pieces) {
        if let Some(cursor) = self.cut.take() {
            pieces.mark(CUT, &cursor);
            self.bytes = 0;
        }
    }

    /// Counts a row; true when it fills the chunk.
    pub fn is_full_after(&mut self, bytes: usize) -> bool {
        self.bytes += bytes as u64;
        bytes > 0 && self.bytes >= self.threshold
    }

    /// The chunk ends at this key, unless that makes too long a cursor: then it runs on.
    pub fn cut_after(&mut self, key: Vec<Vec<u8>>) {
        self.cut = cursor::encode(&key);
    }
}

/// How many rows to fetch at once: as many as make a few pieces.
struct Pace {
    row_bytes: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { row_bytes: 4096 }
    }
}

impl Pace {
    const FETCH_BYTES: u64 = 256 * 1024;

    fn rows(&self) -> usize {
        (Pace::FETCH_BYTES / self.row_bytes).clamp(1, 2000) as usize
    }

    fn learn(&mut self, rows: usize, bytes: u64) {
        if rows > 0 {
            self.row_bytes = (bytes / rows as u64).max(1);
        }
    }
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
