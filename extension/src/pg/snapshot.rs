//! Postgres' MVCC snapshots as `pg_snapshot` values, with 64-bit transaction ids.

use pgrx::FromDatum;
use pgrx::pg_sys::{self, Datum};

use crate::sequence::order::Snapshot;

/// A `pg_snapshot` as it is read from a column.
pub struct PgSnapshot(pub Snapshot);

impl FromDatum for PgSnapshot {
    unsafe fn from_polymorphic_datum(
        datum: Datum,
        is_null: bool,
        _type: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the caller says that the column is a pg_snapshot.
        Some(PgSnapshot(unsafe { decode(datum) }))
    }
}

/// The active snapshot, and as a datum of type `pg_snapshot`.
pub fn active() -> (Snapshot, Datum) {
    // SAFETY: pg_current_snapshot() takes no arguments and reads the active snapshot; not in recovery, where it does
    // not know which transactions are in progress.
    unsafe {
        let datum = pgrx::direct_function_call_as_datum(pg_sys::pg_current_snapshot, &[]);
        let datum = datum.expect("pg_current_snapshot() is never null");
        (decode(datum), datum)
    }
}

unsafe fn decode(datum: Datum) -> Snapshot {
    // SAFETY: a detoasted pg_snapshot is: length word, count u32, xmin, xmax, count × xip, eight bytes each.
    unsafe {
        let value = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<u8>();
        let count = value.add(4).cast::<u32>().read_unaligned() as usize;
        let word = |n: usize| value.add(8 + 8 * n).cast::<u64>().read_unaligned();
        Snapshot {
            xmin: word(0),
            xmax: word(1),
            xip: (0..count).map(|n| word(2 + n)).collect(),
        }
    }
}
