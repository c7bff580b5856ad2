//! Rows of a snapshot as they go on the wire, and the query that reads them.

use pgrx::pg_sys::Datum;

use super::definition::Definition;
use super::judge::unevaluated;
use super::tuple::{Table, changed, put_members};
use crate::error::Result;
use crate::pg::attempt::attempt_evaluation;
use crate::pg::encode::Column;
use crate::pg::memory::Context;
use crate::pg::query::{self, Cursor, Fetched, identifier, literal};

/// The order in which rows are read.
#[derive(Clone, Copy, Debug)]
pub enum Order<'a> {
    /// As they are stored.
    Physical,
    /// By key; only those after this one, if given.
    Key(Option<&'a [Vec<u8>]>),
}

/// Columns of a shape and its key, and where a query or a table has them.
pub struct Selection {
    /// Places of the selected columns in the table, from 0.
    pub selected: Vec<usize>,
    /// Places of what a query has to return: the selected columns, then what the key needs beside them.
    queried: Vec<usize>,
}

impl Selection {
    /// Of a shape.
    pub fn new(definition: &Definition, table: &Table) -> Result<Selection> {
        let selected = table.places(&definition.columns).ok_or_else(changed)?;
        let mut queried = selected.clone();
        queried.extend(table.key.iter().filter(|place| !selected.contains(place)));
        Ok(Selection { selected, queried })
    }

    /// Names of what a query has to return, for [`RowWriter::of_query`].
    pub fn names(&self, table: &Table) -> String {
        names(table, &self.queried)
    }

    /// The query that reads a shape's rows now. Its where clause is text that Postgres deparsed.
    pub fn query(&self, definition: &Definition, table: &Table, order: Order<'_>) -> String {
        let names = |places: &[usize]| names(table, places);
        let only = if table.partitioned { "" } else { "only " };
        let from = query::qualified(&definition.schema, &definition.table);
        let mut sql = format!("select {} from {only}{from}", names(&self.queried));
        let mut conditions: Vec<String> = definition
            .where_text
            .iter()
            .map(|text| format!("({text})"))
            .collect();
        if let Order::Key(Some(after)) = order {
            let values = after.iter().zip(&table.key).map(|(text, place)| {
                let text = String::from_utf8_lossy(text);
                format!(
                    "{}::{}",
                    literal(&text),
                    query::type_name(table.type_of(*place))
                )
            });
            conditions.push(format!(
                "({}) > ({})",
                names(&table.key),
                values.collect::<Vec<_>>().join(", ")
            ));
        }
        if !conditions.is_empty() {
            sql += &format!(" where {}", conditions.join(" and "));
        }
        if matches!(order, Order::Key(_)) {
            sql += &format!(" order by {}", names(&table.key));
        }
        sql
    }
}

/// Names of columns, as a list of identifiers.
pub fn names(table: &Table, places: &[usize]) -> String {
    let names: Vec<_> = places
        .iter()
        .map(|place| identifier(table.name_of(*place)))
        .collect();
    names.join(", ")
}

/// Writes rows as messages of a snapshot, or as plain objects.
pub struct RowWriter {
    head: Vec<u8>,
    key: Vec<Column>,
    members: Vec<Column>,
    tail: Vec<u8>,
    /// What the output functions keep: a writer outlives the table that it was made for.
    _functions: Context,
}

impl RowWriter {
    /// A writer for rows that [`Selection::query`] returns.
    pub fn of_query(selection: &Selection, table: &Table) -> RowWriter {
        let at = |place: &usize| {
            selection
                .queried
                .iter()
                .position(|other| other == place)
                .expect("all are queried")
        };
        RowWriter::new(selection, table, at)
    }

    /// Marks each message as one of a snapshot that the client knows by this number.
    pub fn marked(mut self, mark: i32) -> RowWriter {
        self.tail.truncate(self.tail.len() - 2);
        self.tail
            .extend_from_slice(format!(",\"snapshot_mark\":{mark}}}}}").as_bytes());
        self
    }

    /// A writer for rows of the table itself.
    pub fn of_table(selection: &Selection, table: &Table) -> RowWriter {
        RowWriter::new(selection, table, |place| *place)
    }

    fn new(selection: &Selection, table: &Table, at: impl Fn(&usize) -> usize) -> RowWriter {
        let functions = Context::new();
        let columns = |places: &[usize]| {
            places
                .iter()
                .map(|place| table.column(*place, at(place), &functions))
                .collect()
        };
        let mut head = b"{\"key\":\"".to_vec();
        table.message.begin_key(&mut head);
        RowWriter {
            head,
            key: columns(&table.key),
            members: columns(&selection.selected),
            tail: table.message.snapshot_tail(),
            _functions: functions,
        }
    }

    /// Appends a row, unless `wanted` does not want its key.
    #[inline]
    pub fn put(
        &mut self,
        value: impl Fn(usize) -> Option<Datum>,
        out: &mut Vec<u8>,
        wanted: impl FnOnce(&[u8]) -> bool,
    ) -> bool {
        let start = out.len();
        self.put_head(&value, out);
        if !wanted(&out[start + KEY_START..]) {
            out.truncate(start);
            return false;
        }
        out.extend_from_slice(b"\",\"value\":{");
        put_members(&mut self.members, value, out);
        out.extend_from_slice(&self.tail);
        true
    }

    #[inline]
    fn put_head(&mut self, value: impl Fn(usize) -> Option<Datum>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        self.key
            .iter_mut()
            .for_each(|column| column.put_key(value(column.index), out));
    }

    /// The key of a row, as its message has it.
    pub fn key(&mut self, value: impl Fn(usize) -> Option<Datum>) -> Vec<u8> {
        let mut out = Vec::new();
        self.put_head(value, &mut out);
        out.split_off(KEY_START)
    }

    /// The values of a row's key.
    pub fn key_values(&self, value: impl Fn(usize) -> Option<Datum>) -> Vec<Datum> {
        self.key
            .iter()
            .map(|column| value(column.index).unwrap_or(Datum::null()))
            .collect()
    }

    /// The texts of a row's key.
    pub fn key_texts(&mut self, value: impl Fn(usize) -> Option<Datum>) -> Vec<Vec<u8>> {
        let text = |column: &mut Column| {
            value(column.index)
                .map(|value| column.text(value))
                .unwrap_or_default()
        };
        self.key.iter_mut().map(text).collect()
    }
}

/// Bytes of `{"key":"`.
const KEY_START: usize = 8;

/// Hands the next rows of a query to `each`; returns how many there were. An error that one of them raises comes back
/// without the values that it may tell of.
pub fn fetch(query: &Cursor, count: usize, each: &mut dyn FnMut(Fetched<'_>)) -> Result<usize> {
    attempt_evaluation(|| query.fetch(count, each)).map_err(|caught| unevaluated(&caught))
}

/// Whole rows, joined as in a JSON array, in pieces of a size that is good to send.
#[derive(Default)]
pub struct Pieces {
    ready: std::collections::VecDeque<Vec<u8>>,
    open: Vec<u8>,
    /// Bytes of rows in all of them.
    pub bytes: u64,
}

/// First byte of a piece: rows.
pub const DATA: u8 = b'D';
/// First byte of a piece: a chunk ends, and more follow after this cursor.
pub const CUT: u8 = b'C';
/// First byte of a piece: the snapshot ends.
pub const END: u8 = b'E';

const PIECE_BYTES: usize = 64 * 1024;

impl Pieces {
    /// Appends a row by `put`, which says whether there is one. Returns its size.
    #[inline]
    pub fn put(&mut self, put: impl FnOnce(&mut Vec<u8>) -> bool) -> usize {
        if self.open.is_empty() {
            self.open.reserve(PIECE_BYTES + PIECE_BYTES / 8);
            self.open.push(DATA);
        } else if self.open.len() > 1 {
            self.open.extend_from_slice(b",\n");
        }
        let start = self.open.len();
        if !put(&mut self.open) {
            self.open.truncate(if start > 2 { start - 2 } else { 1 });
            return 0;
        }
        let bytes = self.open.len() - start;
        self.bytes += bytes as u64;
        if self.open.len() >= PIECE_BYTES {
            self.close();
        }
        bytes
    }

    /// Ends the open piece.
    pub fn close(&mut self) {
        if self.open.len() > 1 {
            self.ready.push_back(std::mem::take(&mut self.open));
        }
    }

    /// Appends a piece that is no rows.
    pub fn mark(&mut self, tag: u8, body: &str) {
        self.close();
        self.ready.push_back([&[tag], body.as_bytes()].concat());
    }

    /// The next whole piece.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }

    /// There is a whole piece.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_whole_rows() {
        fn row(pieces: &mut Pieces, text: &str, wanted: bool) -> usize {
            pieces.put(|out| {
                if wanted {
                    out.extend_from_slice(text.as_bytes());
                }
                wanted
            })
        }
        let mut pieces = Pieces::default();
        assert_eq!(row(&mut pieces, "x", false), 0);
        assert_eq!(row(&mut pieces, "{1}", true), 3);
        assert_eq!(row(&mut pieces, "x", false), 0);
        assert_eq!(row(&mut pieces, "{2}", true), 3);
        let large = "y".repeat(PIECE_BYTES);
        row(&mut pieces, &large, true);
        row(&mut pieces, "{3}", true);
        assert_eq!(pieces.bytes as usize, 6 + large.len() + 3);
        pieces.mark(END, "");
        assert_eq!(
            pieces.pop().unwrap(),
            [b"D{1},\n{2},\n", large.as_bytes()].concat()
        );
        assert_eq!(pieces.pop().unwrap(), b"D{3}");
        assert_eq!(pieces.pop().unwrap(), b"E");
        assert_eq!(pieces.pop(), None);
    }
}
