//! Writing a transaction's changes to the log, packed into chunks of a few kB.
//!
//! A chunk may carry notes, one JSON object: `ends` (epochs and shapes that end with this transaction; with `columns`, only
//! those shapes of a table that name one of them), `tracked`
//! (tables whose capture begins with it), `layouts` (layouts that its records use and readers may not know) and `gaps`
//! (tables whose changes are left out from here on because the log is full, see [`super::gap`]) and `catalogs` (the transaction
//! changes them, too).

use serde_json::{Map, Value};

use super::buffer::{Buffer, NOTE, Spill};
use super::gap::Gaps;
use super::layout::Layout;
use super::{known, room};
use crate::pg::log_tables::{ChangeRow, ChangeWriter};
use crate::pg::{relation, xact};
use crate::record::FORMAT_VERSION;

/// Bytes of a chunk: with its row's header, four of them fit two pages even uncompressed.
const CHUNK_BYTES: usize = 7600;
/// A chunk up to here is not toasted, so that writing it needs no snapshot: with several writers, taking one is a notable
/// part of capturing one row.
const INLINE_BYTES: usize = 1800;

/// Where a transaction's chunks go, and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct Flushed {
    member: usize,
    chunks: i32,
}

/// Writes all of `buffer`, after what `before` says was written already. `first`: with the lowest seq there is.
pub fn flush<S: Spill>(
    buffer: &mut Buffer<S>,
    before: Option<Flushed>,
    first: bool,
    layouts: &[(u64, Layout)],
) -> Option<Flushed> {
    let bytes = buffer.in_memory_bytes();
    let seq = if first {
        0
    } else {
        xact::wal_insert_position()
    };
    let packer = Packer::new(before, seq, layouts, bytes.min(CHUNK_BYTES));
    if layouts.is_empty() && !packer.full && !buffer.is_spilled() && bytes <= INLINE_BYTES {
        return xact::with_any_snapshot(|| packer.pack(buffer));
    }
    xact::with_transaction_snapshot(|| packer.pack(buffer))
}

/// Where chunks go, opened with the first one: a transaction that leaves everything out holds no member.
struct Target {
    writer: Option<ChangeWriter>,
    flushed: Option<Flushed>,
    missing: bool,
}

impl Target {
    fn add(&mut self, write: impl FnOnce(&mut ChangeWriter, i32)) {
        if self.writer.is_none() && !self.missing {
            self.open();
        }
        if let (Some(writer), Some(flushed)) = (&mut self.writer, &mut self.flushed) {
            write(writer, flushed.chunks);
            flushed.chunks += 1;
        }
    }

    fn open(&mut self) {
        let opened = match self.flushed {
            Some(Flushed { member, .. }) => {
                ChangeWriter::open(member).map(|writer| (writer, member))
            }
            None => ChangeWriter::open_free(room::member()),
        };
        let Some((writer, member)) = opened else {
            self.missing = true;
            pgrx::warning!("shapefeed's log is not there: changes are not captured");
            return;
        };
        self.writer = Some(writer);
        self.flushed.get_or_insert(Flushed { member, chunks: 0 });
    }
}

struct Packer {
    target: Target,
    xid: u64,
    seq: i64,
    data: Vec<u8>,
    notes: Map<String, Value>,
    /// Tables of this chunk that no earlier one named.
    relids: Vec<u32>,
    named: Vec<u32>,
    last_leaf: u32,
    /// The log is full: records are left out.
    full: bool,
    /// Tables that records were left out of.
    left_out: Vec<u32>,
}

impl Packer {
    fn new(flushed: Option<Flushed>, seq: i64, layouts: &[(u64, Layout)], bytes: usize) -> Packer {
        let mut data = Vec::with_capacity(1 + bytes);
        data.push(FORMAT_VERSION);
        let mut notes = Map::new();
        if !layouts.is_empty() {
            notes.insert("layouts".into(), layouts.iter().map(layout_note).collect());
        }
        if xact::has_messages() {
            notes.insert("catalogs".into(), Value::Array(vec![Value::Bool(true)]));
        }
        Packer {
            target: Target {
                writer: None,
                flushed,
                missing: false,
            },
            xid: xact::top_xid(),
            seq,
            data,
            notes,
            relids: Vec::new(),
            named: Vec::new(),
            last_leaf: 0,
            full: room::is_full(),
            left_out: Vec::new(),
        }
    }

    fn pack<S: Spill>(mut self, buffer: &mut Buffer<S>) -> Option<Flushed> {
        buffer.for_each(|entry| match entry.split_first() {
            Some((&NOTE, note)) => self.note(note),
            _ => self.record(entry),
        });
        self.note_gaps();
        self.end_chunk();
        if let Some(writer) = self.target.writer {
            writer.finish();
        }
        self.target.flushed
    }

    fn record(&mut self, record: &[u8]) {
        let leaf = u32::from_le_bytes([record[1], record[2], record[3], record[4]]);
        if self.data.len() > 1 && self.data.len() + record.len() > CHUNK_BYTES {
            self.end_chunk();
            self.full = self.full || room::is_full();
        }
        if self.full {
            if !self.left_out.contains(&leaf) {
                self.left_out.push(leaf);
            }
            return;
        }
        self.data.extend_from_slice(record);
        if leaf != self.last_leaf {
            self.last_leaf = leaf;
            for relid in known::relids(leaf) {
                self.name(relid);
            }
        }
    }

    /// Says of which tables records were left out, unless the log says so already.
    fn note_gaps(&mut self) {
        if self.left_out.is_empty() {
            return;
        }
        let Some(mut gaps) = Gaps::open() else { return };
        let mut relids: Vec<u32> = self
            .left_out
            .iter()
            .flat_map(|&leaf| known::relids(leaf))
            .collect();
        relids.sort_unstable();
        relids.dedup();
        relids.retain(|&relid| gaps.add(relid, self.xid));
        gaps.finish();
        if relids.is_empty() {
            return;
        }
        let mut note = super::end_note(&relids, "gap");
        note["gaps"] = relids.as_slice().into();
        self.note(note.to_string().as_bytes());
        let tables: Vec<_> = relids
            .iter()
            .map(|&relid| relation::quoted_name(relid))
            .collect();
        pgrx::warning!(
            "shapefeed's log is full: changes of {} are left out, and every shape on them ends",
            tables.join(", ")
        );
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
                Value::Array(all) => {
                    let is_new = |value: &Value| !all.contains(value);
                    let new: Vec<Value> = values.into_iter().filter(is_new).collect();
                    all.extend(new);
                }
                _ => unreachable!("notes hold arrays only"),
            }
        }
    }

    fn end_chunk(&mut self) {
        if self.data.len() == 1 && self.notes.is_empty() {
            return;
        }
        let notes = std::mem::take(&mut self.notes);
        let (xid, seq, relids, data) = (self.xid, self.seq, &self.relids, &self.data);
        self.target.add(|writer, chunk| {
            writer.add(ChangeRow {
                xid,
                chunk,
                seq,
                relids,
                notes: (!notes.is_empty()).then_some(Value::Object(notes)),
                data,
            });
        });
        room::spend(self.data.len());
        self.data.truncate(1);
        self.relids.clear();
    }
}

fn layout_note((hash, layout): &(u64, Layout)) -> Value {
    serde_json::json!({ "hash": (*hash as i64).to_string(), "definition": layout.json() })
}
