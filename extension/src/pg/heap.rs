//! Adding rows to the log's tables with their indexes, past the planner and the executor.

use pgrx::pg_sys::{self, Datum};

use super::relation::Relation;

/// Rows that one multi-insert takes at once.
const BATCH_ROWS: usize = 64;

/// Writes rows to one table. Rows become part of the current (sub)transaction.
pub struct Writer {
    table: Relation,
    indexes: pg_sys::CatalogIndexState,
    pending: Vec<*mut pg_sys::TupleTableSlot>,
}

impl Writer {
    /// A writer for a table that is open with ROW EXCLUSIVE. An active snapshot must be set, for toasting.
    pub fn new(table: Relation) -> Writer {
        // SAFETY: the relation is open; the state lives in the current memory context, which outlives the writer.
        let indexes = unsafe { pg_sys::CatalogOpenIndexes(table.raw()) };
        Writer { table, indexes, pending: Vec::new() }
    }

    /// Adds one row, together with others that follow: call [`Writer::finish`] after the last.
    pub fn queue(&mut self, values: &mut [Datum], nulls: &mut [bool]) {
        // SAFETY: as in insert(); the slot owns the tuple and is dropped in flush().
        unsafe {
            let desc = (*self.table.raw()).rd_att;
            let tuple = pg_sys::heap_form_tuple(desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            let slot = pg_sys::MakeSingleTupleTableSlot(desc, &raw const pg_sys::TTSOpsHeapTuple);
            pg_sys::ExecStoreHeapTuple(tuple, slot, true);
            self.pending.push(slot);
        }
        if self.pending.len() >= BATCH_ROWS {
            self.flush();
        }
    }

    fn flush(&mut self) {
        match self.pending[..] {
            [] => return,
            [only] => self.insert_one(only),
            _ => self.insert_many(),
        }
        for slot in self.pending.drain(..) {
            // SAFETY: made in queue(), dropped once.
            unsafe { pg_sys::ExecDropSingleTupleTableSlot(slot) }
        }
    }

    fn insert_one(&mut self, slot: *mut pg_sys::TupleTableSlot) {
        let mut ours = false;
        // SAFETY: the slot holds a heap tuple of this table, so what is fetched is the slot's own.
        unsafe {
            let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, true, &mut ours);
            pg_sys::CatalogTupleInsertWithInfo(self.table.raw(), tuple, self.indexes);
        }
    }

    fn insert_many(&mut self) {
        let (slots, count) = (self.pending.as_mut_ptr(), self.pending.len() as i32);
        // SAFETY: the slots hold tuples of this table; the insert materializes them and is done with them on return.
        unsafe {
            pg_sys::CatalogTuplesMultiInsertWithInfo(self.table.raw(), slots, count, self.indexes);
        }
    }

    /// Writes what is queued and lets go of the indexes.
    pub fn finish(mut self) {
        self.flush();
        // SAFETY: opened in new(), closed once.
        unsafe { pg_sys::CatalogCloseIndexes(self.indexes) }
    }
}
