//! Gaps: tables whose changes are left out because the log is full.
//!
//! The first transaction that leaves changes of a table out says so in the log, which ends the table's epoch there, and
//! in `shapefeed.gap`. Later ones find that and write nothing, so a full log does not grow. No shape of the table begins
//! until sequence/retain.rs has closed the gap, and every transaction that could have left something out has ended.

use crate::pg::heap::Writer;
use crate::pg::relation::{Lock, Relation, our_namespace, relation_oid};
use crate::pg::scan::{self, Key};
use pgrx::pg_sys::Datum;

/// The table of gaps, open.
pub struct Gaps {
    writer: Writer,
    key: pgrx::pg_sys::Oid,
}

impl Gaps {
    /// Opens it; none when the extension is not there. An active snapshot must be set.
    pub fn open() -> Option<Gaps> {
        let namespace = our_namespace()?;
        let table = Relation::open(relation_oid(namespace, "gap")?, Lock::RowExclusive)?;
        let key = relation_oid(namespace, "gap_pkey")?;
        Some(Gaps {
            writer: Writer::new(table),
            key,
        })
    }

    /// Opens a gap for a table; false when there is one.
    pub fn add(&mut self, relid: u32, xid: u64) -> bool {
        let is_open = scan::exists_now(self.writer.table(), self.key, &[Key::oid_is(1, relid)]);
        if !is_open {
            let mut values = [Datum::from(relid), Datum::from(xid)];
            self.writer.insert(&mut values, &mut [false; 2]);
        }
        !is_open
    }

    /// Lets go of the indexes.
    pub fn finish(self) {
        self.writer.finish();
    }
}
