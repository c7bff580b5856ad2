//! The rows of a snapshot in key order, cut into chunks.

use std::cmp::Ordering;
use std::collections::{HashSet, VecDeque};

use pgrx::pg_sys::Datum;

use super::cursor;
use super::overlay::Overlay;
use super::rows::{CUT, Pieces, RowWriter, Selection, fetch};
use super::tuple::{Key, Table};
use crate::error::Result;
use crate::pg::image::Row;
use crate::pg::memory::Context;
use crate::pg::order::KeyOrder;
use crate::pg::query::{Cursor, Fetched};

/// Bytes after which the first chunk of several ends at the latest, so that a client soon has something to do.
const FIRST_CHUNK_BYTES: u64 = 1024 * 1024;

/// Rows in key order: those of the base query and those of the overlay, merged.
pub struct Rows {
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
    /// The rows that a query finds, in key order, and those of the overlay after the same cursor.
    pub fn new(
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
        // The first chunk counts as full but for a small part.
        let bytes = match after {
            None => threshold.saturating_sub(FIRST_CHUNK_BYTES),
            Some(_) => 0,
        };
        let chunk = Chunk {
            threshold,
            bytes,
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
    pub fn read_on(&mut self, pieces: &mut Pieces) -> Result<bool> {
        let before = pieces.bytes;
        let asked = self.pace.rows();
        let (merge, scratch) = (&mut self.merge, &self.scratch);
        let got = fetch(&self.base, asked, &mut |row| {
            scratch.run(|| merge.put_base(&row, pieces))
        })?;
        if got < asked {
            scratch.run(|| while merge.put_other(None, pieces) {});
        }
        scratch.reset();
        self.pace.learn(got, pieces.bytes - before);
        Ok(got == asked)
    }

    /// Ends the query.
    pub fn close(self) {
        self.base.close();
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
pub struct Pace {
    row_bytes: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { row_bytes: 4096 }
    }
}

impl Pace {
    const FETCH_BYTES: u64 = 256 * 1024;

    /// How many rows to ask for next.
    pub fn rows(&self) -> usize {
        (Pace::FETCH_BYTES / self.row_bytes).clamp(1, 2000) as usize
    }

    /// Takes note of how large rows were.
    pub fn learn(&mut self, rows: usize, bytes: u64) {
        if rows > 0 {
            self.row_bytes = (bytes / rows as u64).max(1);
        }
    }
}
