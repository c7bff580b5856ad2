//! Adding rows to the log's tables with their indexes, past the planner and the executor.

use pgrx::pg_sys::{self, Datum};

use super::relation::Relation;

/// Columns that an index of ours has at most.
const MOST_KEYS: usize = 2;

/// Whether a row belongs into the partial indexes of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partial {
    /// It does.
    In,
    /// It does not.
    Out,
}

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
        self.insert_as(values, nulls, Partial::Out);
    }

    /// Adds one row, and says whether it belongs into the partial indexes: nobody evaluates their predicates.
    pub fn insert_as(&mut self, values: &mut [Datum], nulls: &mut [bool], partial: Partial) {
        // SAFETY: one value and one flag for each column, of the columns' types.
        unsafe {
            let table = self.table.raw();
            let tuple =
                pg_sys::heap_form_tuple((*table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::simple_heap_insert(table, tuple);
            for number in 0..(*self.indexes).ri_NumIndices as usize {
                self.insert_into(number, &raw mut (*tuple).t_self, values, nulls, partial);
            }
            pg_sys::heap_freetuple(tuple);
        }
    }

    unsafe fn insert_into(
        &self,
        number: usize,
        tid: pg_sys::ItemPointer,
        values: &[Datum],
        nulls: &[bool],
        partial: Partial,
    ) {
        // SAFETY: as CatalogIndexInsert() does it; our indexes have whole columns only, and their number.
        unsafe {
            let index = *(*self.indexes).ri_IndexRelationDescs.add(number);
            let info = *(*self.indexes).ri_IndexRelationInfo.add(number);
            if !(*info).ii_Predicate.is_null() && partial == Partial::Out {
                return;
            }
            let columns = &(&(*info).ii_IndexAttrNumbers)[..(*info).ii_NumIndexAttrs as usize];
            let (mut keys, mut empty) = ([Datum::null(); MOST_KEYS], [true; MOST_KEYS]);
            for (place, &column) in columns.iter().enumerate() {
                keys[place] = values[column as usize - 1];
                empty[place] = nulls[column as usize - 1];
            }
            let unique = if (*info).ii_Unique {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
            } else {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
            };
            pg_sys::index_insert(
                index,
                keys.as_mut_ptr(),
                empty.as_mut_ptr(),
                tid,
                self.table.raw(),
                unique,
                false,
                info,
            );
        }
    }

    /// Lets go of the indexes.
    pub fn finish(self) {
        // SAFETY: opened in new(), closed once.
        unsafe { pg_sys::CatalogCloseIndexes(self.indexes) }
    }
}
