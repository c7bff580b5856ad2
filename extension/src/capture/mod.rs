//! Stage 1. A row trigger appends each change to a buffer of its backend; at pre-commit the buffer is written to the
//! log as packed chunks. Until then nothing of an open transaction is anywhere but here.

pub mod adopt;
pub mod buffer;
pub mod flush;
pub mod gap;
pub mod known;
pub mod layout;
pub mod room;

pub mod ddl;
pub mod fingerprint;
pub mod rights;
pub mod roles;
pub mod survey;
pub mod track;
pub mod tracked;

use std::cell::{Cell, RefCell};

use crate::guc;
use crate::pg::relation;
use crate::pg::spill::SpillFile;
use crate::pg::trigger::Change;
use crate::pg::xact;
use crate::record::{self, Kind};
use buffer::Buffer;
use known::{Known, Storage};
use layout::Layout;

/// What this backend has captured in the transaction that runs.
#[derive(Default)]
struct Capture {
    buffer: Buffer<SpillFile>,
    flushed: Option<flush::Flushed>,
    /// Pre-commit is over: what is captured from now on goes to the log at once.
    late: bool,
    /// Layouts that readers may not know yet, by hash.
    layouts: Vec<(u64, Layout)>,
    /// How many of these are in the log already.
    layouts_flushed: usize,
    wrote: bool,
    /// Tables of which the user was told that a change is too large.
    warned: Vec<u32>,
    /// Tables of which changes are left out because there are too many, and how large the buffer was before the note of that.
    left_out: Vec<(u32, u64)>,
    /// It comes before all others of its batch, see [`come_first`].
    first: bool,
}

thread_local! {
    static CAPTURE: RefCell<Capture> = RefCell::new(Capture::default());
    /// Counts this backend's transactions.
    static TRANSACTION: Cell<u64> = const { Cell::new(1) };
}

/// Takes one row change, or a TRUNCATE, from the trigger.
pub fn take(change: &Change) {
    xact::register_callbacks();
    let (known, storage) = known::of(change.relation(), TRANSACTION.get());
    if let Some(layout) = &known.unannounced {
        carry(known.layout, layout);
    }
    if storage == Storage::Swapped {
        // Changes of a transaction are paired by TID, and those before the rewrite have others.
        take_end(&[known.relid], "storage");
    }
    if CAPTURE.with_borrow(|capture| capture.buffer.bytes() >= guc::capture_file_limit_bytes()) {
        leave_out(known.relid);
    } else {
        let mut fits = true;
        append(|out| fits = put_change(out, change, &known));
        if !fits {
            let why = "a change is larger than shapefeed.max_change_size";
            warn_left_out(known.relid, why);
        }
    }
    if change.kind() == Kind::Truncate {
        take_end(&[known.relid], "truncate");
    }
}

fn carry(hash: u64, layout: &Layout) {
    CAPTURE.with_borrow_mut(|capture| {
        if !capture.layouts.iter().any(|(carried, _)| *carried == hash) {
            capture.layouts.push((hash, layout.clone()));
        }
    });
}

/// Takes a note: something that the log says and that is not a row. `note` is a JSON object, see [`flush`].
pub fn take_note(note: &serde_json::Value) {
    append(|out| {
        out.push(buffer::NOTE);
        out.extend_from_slice(note.to_string().as_bytes());
    });
}

/// Takes the note that a table's epoch ends here, and with it those of the partitioned tables above it and of all partitions
/// below.
pub fn take_end(relids: &[u32], reason: &str) {
    if !relids.is_empty() {
        take_note(&end_note(relids, reason));
    }
}

/// Takes the note that those shapes of a table end here that name one of these columns.
pub fn take_end_of_columns(relid: u32, columns: &[String]) {
    let end = serde_json::json!({ "relid": relid, "reason": "layout", "columns": columns });
    take_note(&serde_json::json!({ "ends": [end] }));
}

/// Takes the note that handles of these roles, and of their members, end here: of a table, or of all.
pub fn take_end_of_roles(relid: Option<u32>, roles: impl IntoIterator<Item = String>) {
    let roles: Vec<String> = roles.into_iter().collect();
    let mut end = serde_json::json!({ "reason": "rights", "roles": roles });
    if let Some(relid) = relid {
        end["relid"] = relid.into();
    }
    take_note(&serde_json::json!({ "ends": [end] }));
}

/// Has this transaction come before all others that get their positions in the same step. For what the sequencer has
/// noticed itself: its notes end what came before the others, and touch no row.
pub fn come_first() {
    CAPTURE.with_borrow_mut(|capture| capture.first = true);
}

fn append(write: impl FnOnce(&mut Vec<u8>)) {
    xact::register_callbacks();
    CAPTURE.with_borrow_mut(|capture| {
        capture.wrote = true;
        capture.buffer.append(xact::subtransaction(), write);
        if capture.buffer.in_memory_bytes() > guc::capture_memory_bytes() {
            capture.buffer.spill(SpillFile::create);
        }
    });
    if CAPTURE.with_borrow(|capture| capture.late) {
        // A callback that ran after ours at pre-commit wrote a tracked table: too late to wait for the others.
        write_log();
    }
}

/// Appends the record of a change. One that is too large is left out (false), and its table's epoch ends instead.
fn put_change(out: &mut Vec<u8>, change: &Change, known: &Known) -> bool {
    let start = out.len();
    record::put_head(out, change.kind(), known.relid, known.layout);
    let fits = change.put_images(out, guc::max_change_bytes());
    if !fits {
        out.truncate(start);
        out.push(buffer::NOTE);
        let note = end_note(&[known.relid], "too large");
        out.extend_from_slice(note.to_string().as_bytes());
    }
    fits
}

/// The transaction's changes take as much room as they may: a table's epoch ends instead of there being more of them. That is
/// noted once, unless the note is rolled back.
fn leave_out(relid: u32) {
    let noted = CAPTURE.with_borrow_mut(|capture| {
        let noted = capture.left_out.iter().any(|(other, _)| *other == relid);
        if !noted {
            capture.left_out.push((relid, capture.buffer.bytes()));
        }
        noted
    });
    if !noted {
        take_end(&[relid], "too large");
        let why = "the changes of a transaction take more than shapefeed.capture_file_limit";
        warn_left_out(relid, why);
    }
}

fn warn_left_out(relid: u32, why: &str) {
    let told = CAPTURE.with_borrow_mut(|capture| {
        let told = capture.warned.contains(&relid);
        if !told {
            capture.warned.push(relid);
        }
        told
    });
    if !told {
        pgrx::warning!(
            "{why}: shapefeed leaves changes of table {} out, and every shape on the table ends",
            relation::quoted_name(relid)
        );
    }
}

fn end_note(relids: &[u32], reason: &str) -> serde_json::Value {
    let ends: Vec<_> = relids
        .iter()
        .map(|relid| serde_json::json!({ "relid": relid, "reason": reason }))
        .collect();
    serde_json::json!({ "ends": ends })
}

/// At pre-commit and pre-prepare: everything captured so far goes to the log.
pub fn write_log() {
    let mut capture = CAPTURE.take();
    capture.late = true;
    if !capture.buffer.is_empty() {
        // An error in here aborts the transaction, and with it what was captured.
        let layouts = &capture.layouts[capture.layouts_flushed..];
        capture.flushed =
            flush::flush(&mut capture.buffer, capture.flushed, capture.first, layouts);
        capture.layouts_flushed = capture.layouts.len();
        if let Some(file) = std::mem::take(&mut capture.buffer).into_file() {
            file.close();
        }
    }
    CAPTURE.set(capture);
}

/// A subtransaction is rolled back: what it and those inside it captured goes.
pub fn roll_back_to(subtransaction: u32) {
    CAPTURE.with_borrow_mut(|capture| {
        capture.buffer.drop_from(subtransaction);
        let end = capture.buffer.bytes();
        capture.left_out.retain(|(_, before)| *before < end);
    });
}

/// A subtransaction is committed: what it captured is its parent's.
pub fn keep_in_parent(subtransaction: u32, parent: u32) {
    CAPTURE.with_borrow_mut(|capture| capture.buffer.keep(subtransaction, parent));
}

/// The transaction has ended, or was prepared. True if it put something into the log.
pub fn end_transaction(committed: bool) -> bool {
    let ended = CAPTURE.take();
    TRANSACTION.set(TRANSACTION.get() + 1);
    known::end_transaction();
    if committed {
        // Not those of changes that were all rolled back: nobody has written them down.
        let written = &ended.layouts[..ended.layouts_flushed];
        known::announced(&written.iter().map(|(hash, _)| *hash).collect::<Vec<_>>());
        if !ended.buffer.is_empty() {
            pgrx::warning!(
                "shapefeed lost changes that were captured after the last moment to write them"
            );
        }
    }
    if let Some(file) = ended.buffer.into_file() {
        file.forget();
    }
    ended.wrote
}
