//! What this backend knows of the tables that it captures. Dropped whenever Postgres says that a relation changed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::layout::{self, Layout};
use crate::pg::relation::{self, Facts};
use crate::pg::xact;

/// What capture needs to know of a leaf table.
pub struct Known {
    /// The table.
    pub relid: u32,
    /// Hash of its layout.
    pub layout: u64,
    /// It and the partitioned tables above it.
    pub relids: Vec<u32>,
    /// Its layout, while readers may not know it yet.
    pub unannounced: Option<Layout>,
    /// Number of the file that holds its rows.
    file: u32,
    /// The transaction of this backend that captured from it last.
    captured_in: Cell<u64>,
}

#[derive(Default)]
struct Cache {
    // Asked once for each row: no hash is as fast as a look at the one or two keys that are usual.
    tables: BTreeMap<u32, Rc<Known>>,
    /// Tables that were forgotten: what file they had, and which transaction captured from it last.
    files: HashMap<u32, (u32, u64)>,
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(Cache::default());
}

/// Whether row versions are where they were when this transaction last captured from the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// They are, or it has not captured from the table.
    Same,
    /// The table was rewritten in between: its TIDs mean something else now.
    Swapped,
}

/// What is known of an open table from which transaction number `transaction` of this backend captures.
pub fn of(table: &relation::Opened, transaction: u64) -> (Rc<Known>, Storage) {
    let (known, storage) = match by_relid(table.relid()) {
        Some(known) => (known, Storage::Same),
        None => remember(look_up(table), transaction),
    };
    known.captured_in.set(transaction);
    (known, storage)
}

fn remember(known: Known, transaction: u64) -> (Rc<Known>, Storage) {
    let known = Rc::new(known);
    CACHE.with_borrow_mut(|cache| {
        cache.tables.insert(known.relid, known.clone());
        match cache.files.remove(&known.relid) {
            Some((file, captured_in)) if captured_in == transaction && file != known.file => {
                (known, Storage::Swapped)
            }
            _ => (known, Storage::Same),
        }
    })
}

fn by_relid(relid: u32) -> Option<Rc<Known>> {
    CACHE.with_borrow(|cache| cache.tables.get(&relid).cloned())
}

fn look_up(table: &relation::Opened) -> Known {
    let facts: Facts = table.facts();
    let relid = facts.relid;
    let mut relids = vec![relid];
    if facts.is_partition {
        relids.extend(relation::ancestors(relid));
    }
    let layout = Layout::from(facts);
    let hash = layout.hash();
    let announced = xact::with_latest_snapshot(|| layout::load(hash).is_some());
    Known {
        relid,
        layout: hash,
        relids,
        unannounced: (!announced).then_some(layout),
        file: table.file(),
        captured_in: Cell::new(0),
    }
}

/// A transaction that carried these layouts has committed: readers know them now.
pub fn announced(hashes: &[u64]) {
    CACHE.with_borrow_mut(|cache| {
        for known in cache
            .tables
            .values_mut()
            .filter(|known| hashes.contains(&known.layout))
        {
            let Known {
                relid,
                layout,
                relids,
                file,
                captured_in,
                ..
            } = &**known;
            *known = Rc::new(Known {
                relid: *relid,
                layout: *layout,
                relids: relids.clone(),
                unannounced: None,
                file: *file,
                captured_in: captured_in.clone(),
            });
        }
    });
}

/// Forgets a table, or all of them: the relation cache said that it changed.
pub fn forget(relid: u32) {
    CACHE.with_borrow_mut(|cache| {
        if relid == 0 {
            let Cache { tables, files } = cache;
            files.extend(
                std::mem::take(tables)
                    .into_iter()
                    .map(|(relid, known)| (relid, known.last_capture())),
            );
        } else if let Some(known) = cache.tables.remove(&relid) {
            cache.files.insert(relid, known.last_capture());
        }
    });
}

impl Known {
    /// What file it had when which transaction last captured from it.
    fn last_capture(&self) -> (u32, u64) {
        (self.file, self.captured_in.get())
    }
}

/// The transaction has ended: where row versions were in it means nothing any more.
pub fn end_transaction() {
    CACHE.with_borrow_mut(|cache| cache.files.clear());
}

/// A table and the partitioned tables above it.
pub fn relids(relid: u32) -> Vec<u32> {
    match by_relid(relid) {
        Some(known) => known.relids.clone(),
        None => std::iter::once(relid)
            .chain(relation::ancestors(relid))
            .collect(),
    }
}
