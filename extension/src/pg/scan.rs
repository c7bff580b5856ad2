//! Index scans over the log's own tables. Privileges are not asked: callers decide who may see what.

use pgrx::pg_sys::{self, Datum, Oid};

use super::relation::Relation;

/// One condition on a column that the index leads with.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    column: i16,
    strategy: u16,
    function: u32,
    value: Datum,
}

impl Key {
    /// `column = xid`.
    pub fn xid_is(column: i16, xid: u64) -> Key {
        Key {
            column,
            strategy: EQUAL,
            function: pg_sys::F_XID8EQ,
            value: Datum::from(xid),
        }
    }

    /// `column >= xid`.
    pub fn xid_from(column: i16, xid: u64) -> Key {
        Key {
            column,
            strategy: GREATER_OR_EQUAL,
            function: pg_sys::F_XID8GE,
            value: Datum::from(xid),
        }
    }

    /// `column = oid`.
    pub fn oid_is(column: i16, oid: u32) -> Key {
        Key {
            column,
            strategy: EQUAL,
            function: pg_sys::F_OIDEQ,
            value: Datum::from(oid),
        }
    }

    /// `column >= value` of an int8 column.
    pub fn int8_from(column: i16, value: i64) -> Key {
        Key {
            column,
            strategy: GREATER_OR_EQUAL,
            function: pg_sys::F_INT8GE,
            value: Datum::from(value),
        }
    }

    /// `column = value` of an int8 column.
    pub fn int8_is(column: i16, value: i64) -> Key {
        Key {
            column,
            strategy: EQUAL,
            function: pg_sys::F_INT8EQ,
            value: Datum::from(value),
        }
    }

    /// `column > value` of an int8 column.
    pub fn int8_above(column: i16, value: i64) -> Key {
        Key {
            column,
            strategy: GREATER,
            function: pg_sys::F_INT8GT,
            value: Datum::from(value),
        }
    }

    /// `column <= value` of an int8 column.
    pub fn int8_up_to(column: i16, value: i64) -> Key {
        Key {
            column,
            strategy: LESS_OR_EQUAL,
            function: pg_sys::F_INT8LE,
            value: Datum::from(value),
        }
    }
}

const LESS_OR_EQUAL: u16 = pg_sys::BTLessEqualStrategyNumber as u16;
const EQUAL: u16 = pg_sys::BTEqualStrategyNumber as u16;
const GREATER_OR_EQUAL: u16 = pg_sys::BTGreaterEqualStrategyNumber as u16;
const GREATER: u16 = pg_sys::BTGreaterStrategyNumber as u16;

/// A row of a scan: its columns in order. Values live until the next row is read.
pub struct Row<'a> {
    values: &'a [Datum],
    nulls: &'a [bool],
}

impl Row<'_> {
    /// Column `number`, from 1; None is NULL.
    pub fn get<T: pgrx::FromDatum>(&self, number: usize) -> Option<T> {
        // SAFETY: the caller names the type that the column has in sql/schema.
        unsafe { T::from_datum(self.values[number - 1], self.nulls[number - 1]) }
    }

    /// Column `number` as 64 unsigned bits (xid8).
    pub fn xid(&self, number: usize) -> u64 {
        self.values[number - 1].value() as u64
    }
}

/// Which end of the index to begin at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Lowest first.
    Forward,
    /// Highest first.
    Backward,
}

/// Reads the rows of `table` that match `keys`, in index order, as the active snapshot sees them, until `each` says no.
pub fn scan(
    table: &Relation,
    index: Oid,
    keys: &[Key],
    direction: Direction,
    each: impl FnMut(Row<'_>) -> bool,
) {
    // SAFETY: the active snapshot stays pushed while the scan lasts.
    unsafe {
        let snapshot = pg_sys::GetActiveSnapshot();
        scan_under(snapshot, table, index, keys, direction, each);
    }
}

/// Whether a row that matches `keys` is committed by now or written by this transaction. Not an MVCC read: it leaves no
/// predicate lock in a SERIALIZABLE transaction.
pub fn exists_now(table: &Relation, index: Oid, keys: &[Key]) -> bool {
    let mut found = false;
    // SAFETY: a snapshot of this kind has no state.
    unsafe {
        let snapshot = &raw mut pg_sys::SnapshotSelfData;
        scan_under(snapshot, table, index, keys, Direction::Forward, |_| {
            found = true;
            false
        });
    }
    found
}

unsafe fn scan_under(
    snapshot: pg_sys::Snapshot,
    table: &Relation,
    index: Oid,
    keys: &[Key],
    direction: Direction,
    mut each: impl FnMut(Row<'_>) -> bool,
) {
    // SAFETY: the relation is open and locked; the scan keys name columns of the index in its order; the caller keeps
    // the snapshot while the scan lasts; a tuple is valid until the next is fetched.
    unsafe {
        let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
        let mut raw: Vec<pg_sys::ScanKeyData> = vec![std::mem::zeroed(); keys.len()];
        for (raw, key) in raw.iter_mut().zip(keys) {
            pg_sys::ScanKeyInit(
                raw,
                key.column,
                key.strategy,
                Oid::from_u32(key.function),
                key.value,
            );
        }
        let desc = (*table.raw()).rd_att;
        let width = (*desc).natts as usize;
        let (mut values, mut nulls) = (vec![Datum::null(); width], vec![false; width]);
        let scan = pg_sys::systable_beginscan_ordered(
            table.raw(),
            index,
            snapshot,
            raw.len() as i32,
            raw.as_mut_ptr(),
        );
        let way = match direction {
            Direction::Forward => pg_sys::ScanDirection::ForwardScanDirection,
            Direction::Backward => pg_sys::ScanDirection::BackwardScanDirection,
        };
        loop {
            let tuple = pg_sys::systable_getnext_ordered(scan, way);
            if tuple.is_null() {
                break;
            }
            pg_sys::heap_deform_tuple(tuple, desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            if !each(Row {
                values: &values,
                nulls: &nulls,
            }) {
                break;
            }
        }
        pg_sys::systable_endscan_ordered(scan);
        pg_sys::index_close(index, pg_sys::AccessShareLock as i32);
    }
}
