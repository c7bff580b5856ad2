//! A table as writes see it: what the catalog says of it, kept until it changes.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use pgrx::pg_sys::Oid;
use pgrx::{JsonB, Spi, spi};

use crate::capture::tracked::as_owner;

const QUERY: &str = include_str!("target.sql");
/// Tables that are kept at most.
const KEPT: usize = 1000;

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// It has rows of its own.
    pub is_table: bool,
    /// Its name in statements that change rows: with `only` where other tables may inherit from it.
    pub rows: String,
    /// Its name.
    pub name: String,
    /// Its columns, and the type of each.
    pub columns: BTreeMap<String, u32>,
    /// Its primary key's columns, and the operator by which the key compares each.
    pub key: Vec<(String, String)>,
    /// It has nothing but its key: two rows with the same key are the same.
    pub is_key_only: bool,
    /// A trigger may have it that a row is not updated, not deleted.
    pub may_skip: (bool, bool),
}

thread_local! {
    static TARGETS: RefCell<HashMap<u32, Rc<Target>>> = RefCell::default();
}

/// A table has changed, or with 0 any may have.
pub fn forget(relid: u32) {
    // Not while they are being looked at: the caches are told of changes only where the catalog is read.
    TARGETS.with_borrow_mut(|targets| {
        if relid == 0 {
            targets.clear();
        } else {
            targets.remove(&relid);
        }
    });
}

/// What a table is now; None when it is gone. Call it with a lock on the table.
pub fn find(relid: u32) -> Option<Rc<Target>> {
    if let Some(target) = TARGETS.with_borrow(|targets| targets.get(&relid).cloned()) {
        return Some(target);
    }
    let target = Rc::new(as_owner(|| read(relid)).expect("the catalog can be read")?);
    TARGETS.with_borrow_mut(|targets| {
        if targets.len() >= KEPT {
            targets.clear();
        }
        targets.insert(relid, target.clone());
    });
    Some(target)
}

fn read(relid: u32) -> Result<Option<Target>, spi::Error> {
    Spi::connect(|client| {
        let rows = client.select(QUERY, Some(1), &[Oid::from_u32(relid).into()])?;
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.first();
        let kind: String = row.get(1)?.unwrap_or_default();
        let name: String = row.get(3)?.unwrap_or_default();
        let only = if row.get(2)? == Some(true) {
            "only "
        } else {
            ""
        };
        let json = |place| Ok::<_, spi::Error>(row.get::<JsonB>(place)?.map(|json| json.0));
        let columns = json(4)?.and_then(|columns| serde_json::from_value(columns).ok());
        let key = json(5)?.and_then(|key| serde_json::from_value(key).ok());
        Ok(Some(Target {
            is_table: kind == "r" || kind == "p",
            rows: format!("{only}{name}"),
            name,
            columns: columns.unwrap_or_default(),
            key: key.unwrap_or_default(),
            is_key_only: row.get(8)? == Some(true),
            may_skip: (row.get(6)? == Some(true), row.get(7)? == Some(true)),
        }))
    })
}
