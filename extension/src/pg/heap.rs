//! Adding rows to the log's tables with their indexes, past the planner and the executor.

use pgrx::pg_sys::{self, Datum};

use super::relation::Relation;

/// Writes rows to one table. Rows become part of the current (sub)transaction.
pub struct Writer {
    table: Relation,
    indexes: pg_sys::CatalogIndexState,
}

impl Writer {
    /// A writer for a table that is open with ROW EXCLUSIVE. An active snapshot must be set, for toasting.
    pub fn new(table: Relation) -> Writer {
        // SAFETY: the relation is open; the state lives in the current memory context, which outlives the writer.
        let indexes = unsafe { pg_sys::CatalogOpenIndexes(table.raw()) };
        Writer { table, indexes }
    }

    /// The table.
    pub fn table(&self) -> &Relation {
        &self.table
    }

    /// Adds one row. (Not many at once: CatalogTuplesMultiInsertWithInfo() gives the index the TID of the tuple that it
    /// was handed, which is not the one stored when the row was compressed on its way.)
    pub fn insert(&mut self, values: &mut [Datum], nulls: &mut [bool]) {
        // SAFETY: one value and one flag for each column, of the columns' types; only whole-column indexes on it.
        unsafe {
            let tuple = pg_sys::heap_form_tuple(
                (*self.table.raw()).rd_att,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            pg_sys::CatalogTupleInsertWithInfo(self.table.raw(), tuple, self.indexes);
            pg_sys::heap_freetuple(tuple);
        }
    }

    /// Lets go of the indexes.
    pub fn finish(self) {
        // SAFETY: opened in new(), closed once.
        unsafe { pg_sys::CatalogCloseIndexes(self.indexes) }
    }
}
