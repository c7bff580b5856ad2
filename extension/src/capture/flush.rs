//! Writing a transaction's changes to the log, packed into chunks of a few kB.
//!
//! A chunk may carry notes, one JSON object: `ends` (epochs and shapes that end with this transaction), `tracked`
//! (tables whose capture begins with it) and `layouts` (layouts that its records use and readers may not know).

use serde_json::{Map, Value};

use super::buffer::{Buffer, NOTE, Spill};
use super::layout::Layout;
use crate::guc;
use crate::pg::log_tables::{ChangeRow, ChangeWriter};
use crate::pg::xact;
use crate::record::FORMAT_VERSION;

/// Bytes of a chunk: with its row's header, four of them fit two pages even uncompressed.
const CHUNK_BYTES: usize = 7600;

/// Where a transaction's chunks go, and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct Flushed {
    member: usize,
    chunks: i32,
}

/// Writes all of `buffer`, after what `before` says was written already.
pub fn flush<S: Spill>(
    buffer: &mut Buffer<S>,
    before: Option<Flushed>,
    layouts: &[(u64, Layout)],
) -> Flushed {
    let flushed = before.unwrap_or_else(|| Flushed {
        member: ring_member(),
        chunks: 0,
    });
    xact::with_transaction_snapshot(|| match ChangeWriter::open(flushed.member) {
        Some(writer) => Packer::new(writer, flushed, layouts).pack(buffer),
        None => {
            pgrx::warning!("shapefeed's log is not there: changes are not captured");
            flushed
        }
    })
}

fn ring_member() -> usize {
    (xact::clock_s() / guc::ring_interval_s()) as usize % guc::RING_MEMBERS
}

struct Packer {
    writer: ChangeWriter,
    flushed: Flushed,
    xid: u64,
    seq: i64,
    data: Vec<u8>,
    notes: Map<String, Value>,
    /// Tables of this chunk that no earlier one named.
    relids: Vec<u32>,
    named: Vec<u32>,
    last_leaf: u32,
}

impl Packer {
    fn new(writer: ChangeWriter, flushed: Flushed, layouts: &[(u64, Layout)]) -> Packer {
        let mut notes = Map::new();
        if !layouts.is_empty() {
            notes.insert("layouts".into(), layouts.iter().map(layout_note).collect());
        }
        Packer {
            writer,
            flushed,
            xid: xact::top_xid(),
            seq: xact::wal_insert_position(),
            data: vec![FORMAT_VERSION],
            notes,
            relids: Vec::new(),
            named: Vec::new(),
            last_leaf: 0,
        }
    }

    fn pack<S: Spill>(mut self, buffer: &mut Buffer<S>) -> Flushed {
        buffer.for_each(|entry| match entry.split_first() {
            Some((&NOTE, note)) => self.note(note),
            _ => self.record(entry),
        });
        self.end_chunk();
        self.writer.finish();
        self.flushed
    }

    fn record(&mut self, record: &[u8]) {
        if self.data.len() > 1 && self.data.len() + record.len() > CHUNK_BYTES {
            self.end_chunk();
        }
        self.data.extend_from_slice(record);
        let leaf = u32::from_le_bytes([record[1], record[2], record[3], record[4]]);
        if leaf != self.last_leaf {
            self.last_leaf = leaf;
            for relid in super::known::relids(leaf) {
                self.name(relid);
            }
        }
    }

    fn name(&mut self, relid: u32) {
        if !self.named.contains(&relid) {
            self.named.push(relid);
            self.relids.push(relid);
        }
    }

    fn note(&mut self, note: &[u8]) {
        let Ok(Value::Object(note)) = serde_json::from_slice(note) else {
            return;
        };
        for (key, values) in note {
            let Value::Array(values) = values else {
                continue;
            };
            for relid in values
                .iter()
                .filter_map(|value| value.get("relid").unwrap_or(value).as_u64())
            {
                self.name(relid as u32);
            }
            match self
                .notes
                .entry(key)
                .or_insert_with(|| Value::Array(Vec::new()))
            {
                Value::Array(all) => all.extend(values),
                _ => unreachable!("notes hold arrays only"),
            }
        }
    }

    fn end_chunk(&mut self) {
        if self.data.len() == 1 && self.notes.is_empty() {
            return;
        }
        let notes = std::mem::take(&mut self.notes);
        self.writer.add(ChangeRow {
            xid: self.xid,
            chunk: self.flushed.chunks,
            seq: self.seq,
            relids: &self.relids,
            notes: (!notes.is_empty()).then_some(Value::Object(notes)),
            data: &self.data,
        });
        self.flushed.chunks += 1;
        self.data.truncate(1);
        self.relids.clear();
    }
}

fn layout_note((hash, layout): &(u64, Layout)) -> Value {
    serde_json::json!({ "hash": (*hash as i64).to_string(), "definition": layout.json() })
}
