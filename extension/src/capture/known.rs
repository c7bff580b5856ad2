//! What this backend knows of the tables that it captures. Dropped whenever Postgres says that a relation changed.

use std::cell::RefCell;
use std::collections::HashMap;
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
}

#[derive(Default)]
struct Cache {
    tables: HashMap<u32, Rc<Known>>,
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(Cache::default());
}

/// What is known of an open table.
pub fn of(table: &relation::Opened) -> Rc<Known> {
    if let Some(known) = by_relid(table.relid()) {
        return known;
    }
    let known = Rc::new(look_up(table.facts()));
    CACHE.with_borrow_mut(|cache| cache.tables.insert(known.relid, known.clone()));
    known
}

fn by_relid(relid: u32) -> Option<Rc<Known>> {
    CACHE.with_borrow(|cache| cache.tables.get(&relid).cloned())
}

fn look_up(facts: Facts) -> Known {
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
                ..
            } = &**known;
            *known = Rc::new(Known {
                relid: *relid,
                layout: *layout,
                relids: relids.clone(),
                unannounced: None,
            });
        }
    });
}

/// Forgets a table, or all of them: the relation cache said that it changed.
pub fn forget(relid: u32) {
    CACHE.with_borrow_mut(|cache| {
        if relid == 0 {
            cache.tables.clear();
        } else {
            cache.tables.remove(&relid);
        }
    });
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
