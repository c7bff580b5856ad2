//! The layout that a table's tuples have, by the hash that each record carries.

use std::cell::RefCell;

use serde::{Deserialize, Serialize};

use crate::pg::relation::{Attribute, Facts, Lock, Relation, our_namespace, relation_oid};
use crate::pg::scan::{self, Direction, Key};

/// What is needed to decode a table's images, and to see that it changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The table, a leaf where it is partitioned.
    pub relid: u32,
    /// Its schema's name.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// Oid of its toast table; 0 = none.
    pub toast: u32,
    /// Its attributes in order, dropped ones included.
    pub attributes: Vec<Attribute>,
}

impl From<Facts> for Layout {
    fn from(facts: Facts) -> Layout {
        let Facts {
            relid,
            schema,
            name,
            toast,
            attributes,
            ..
        } = facts;
        Layout {
            relid,
            schema,
            table: name,
            toast,
            attributes,
        }
    }
}

thread_local! {
    /// A layout and its hash.
    static LAST: RefCell<Option<(Layout, u64)>> = const { RefCell::new(None) };
}

impl Layout {
    /// The layout's name in the log. The same for the same catalog, in any session.
    pub fn hash(&self) -> u64 {
        // The one that was asked for last is asked for again and again.
        LAST.with_borrow_mut(|last| match last {
            Some((layout, hash)) if layout == self => *hash,
            _ => {
                let hash = xxhash_rust::xxh3::xxh3_64(self.json().to_string().as_bytes());
                *last = Some((self.clone(), hash));
                hash
            }
        })
    }

    /// As table `shapefeed.layout` holds it.
    pub fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a layout is plain data")
    }

    /// Images of this layout can be read with the `current` descriptor of the same table: no column was re-typed. Columns
    /// may have been added, dropped or renamed. A value that is out of line in a toast table that is no more is not found.
    pub fn decodes_with(&self, current: &Layout) -> bool {
        self.relid == current.relid
            && self.attributes.iter().enumerate().all(|(i, old)| {
                let Some(now) = current.attributes.get(i) else {
                    return false;
                };
                now.dropped || (!old.dropped && now.type_oid == old.type_oid)
            })
    }
}

/// The layout of an open table.
pub fn current(table: &Relation) -> Layout {
    Layout::from(table.facts())
}

/// Hash of the layout of an open table.
pub fn current_hash(table: &Relation) -> u64 {
    current(table).hash()
}

/// Looks a layout up in `shapefeed.layout`, as the active snapshot sees it.
pub fn load(hash: u64) -> Option<Layout> {
    let namespace = our_namespace()?;
    let table = Relation::open(relation_oid(namespace, "layout")?, Lock::AccessShare)?;
    let index = relation_oid(namespace, "layout_pkey")?;
    let mut found = None;
    scan::scan(
        &table,
        index,
        &[Key::int8_is(1, hash as i64)],
        Direction::Forward,
        |row| {
            found = row
                .get::<pgrx::JsonB>(2)
                .and_then(|definition| serde_json::from_value(definition.0).ok());
            false
        },
    );
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(num: i16, name: &str, type_oid: u32) -> Attribute {
        Attribute {
            num,
            name: name.into(),
            type_oid,
            typmod: -1,
            len: 4,
            byval: true,
            align: 'i',
            dropped: false,
        }
    }

    fn layout(attributes: Vec<Attribute>) -> Layout {
        Layout {
            relid: 1,
            schema: "public".into(),
            table: "t".into(),
            toast: 0,
            attributes,
        }
    }

    #[test]
    fn what_can_read_its_images() {
        let old = layout(vec![column(1, "id", 23), column(2, "n", 23)]);
        let added = layout(vec![
            column(1, "id", 23),
            column(2, "n", 23),
            column(3, "x", 25),
        ]);
        assert!(old.decodes_with(&added));
        assert!(!added.decodes_with(&old));

        let renamed = layout(vec![column(1, "id", 23), column(2, "m", 23)]);
        assert!(old.decodes_with(&renamed));

        let mut dropped = old.clone();
        dropped.attributes[1] = Attribute {
            dropped: true,
            type_oid: 0,
            name: "...".into(),
            ..column(2, "", 0)
        };
        assert!(old.decodes_with(&dropped));
        assert!(dropped.decodes_with(&dropped));

        let retyped = layout(vec![column(1, "id", 23), column(2, "n", 20)]);
        assert!(!old.decodes_with(&retyped));
        assert_ne!(old.hash(), renamed.hash());
        assert_eq!(old.hash(), old.clone().hash());
    }
}
