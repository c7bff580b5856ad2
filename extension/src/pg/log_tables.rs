//! The log's tables, found by name and remembered until the relation cache says that one changed.

use std::cell::RefCell;

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{IntoDatum, JsonB};

use super::heap::Writer;
use super::relation::{Lock, Relation, our_namespace, relation_oid};
use crate::guc::RING_MEMBERS;

/// One kind of ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Changes, by transaction.
    Change,
    /// Positions of transactions.
    Commit,
    /// Ends of batches.
    Batch,
}

impl Ring {
    fn name(self) -> &'static str {
        match self {
            Ring::Change => "change",
            Ring::Commit => "commit",
            Ring::Batch => "batch",
        }
    }
}

/// Oids of one member: its table and its primary key's index.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// The table.
    pub table: Oid,
    /// The index of its primary key.
    pub key: Oid,
}

type Members = [Option<Member>; RING_MEMBERS];

thread_local! {
    static MEMBERS: RefCell<[Option<Members>; 3]> = const { RefCell::new([None; 3]) };
}

/// A member of a ring; none when the extension is not there.
pub fn member(ring: Ring, number: usize) -> Option<Member> {
    let known = MEMBERS.with_borrow(|members| members[ring as usize]);
    let members = match known {
        Some(members) => members,
        None => {
            let members = look_up(ring);
            MEMBERS.with_borrow_mut(|known| known[ring as usize] = Some(members));
            members
        }
    };
    members[number]
}

fn look_up(ring: Ring) -> Members {
    super::xact::register_callbacks();
    std::array::from_fn(|number| {
        let namespace = our_namespace()?;
        let table = relation_oid(namespace, &format!("{}_{number}", ring.name()))?;
        let key = relation_oid(namespace, &format!("{}_{number}_pkey", ring.name()))?;
        Some(Member { table, key })
    })
}

/// Forgets the oids if `relid` is one of them, or 0.
pub fn forget(relid: u32) {
    MEMBERS.with_borrow_mut(|rings| {
        for ring in rings {
            let stale =
                |m: &Option<Member>| relid == 0 || m.is_none_or(|m| m.table.to_u32() == relid);
            if ring.is_some_and(|members| members.iter().any(stale)) {
                *ring = None;
            }
        }
    });
}

/// A row of `change_N`.
pub struct ChangeRow<'a> {
    /// Top-level transaction.
    pub xid: u64,
    /// Number of the chunk in its transaction.
    pub chunk: i32,
    /// WAL insert position at pre-commit.
    pub seq: i64,
    /// Tables that no earlier chunk of the transaction names.
    pub relids: &'a [u32],
    /// What is not a row.
    pub notes: Option<serde_json::Value>,
    /// The records.
    pub data: &'a [u8],
}

/// Writes chunks to one member of the ring.
pub struct ChangeWriter {
    writer: Writer,
}

impl ChangeWriter {
    /// A writer for member `number`; none when the log is not there. An active snapshot must be set.
    pub fn open(number: usize) -> Option<ChangeWriter> {
        let table = open_member(Ring::Change, number, Lock::RowExclusive)?.0;
        Some(ChangeWriter {
            writer: Writer::new(table),
        })
    }

    /// Adds one chunk.
    pub fn add(&mut self, row: ChangeRow) {
        let relids = oids(row.relids);
        let notes = row.notes.map(JsonB).into_datum();
        let data = row.data.into_datum();
        let mut nulls = [
            false,
            false,
            false,
            relids.is_none(),
            notes.is_none(),
            false,
        ];
        let mut values = [
            Datum::from(row.xid),
            Datum::from(row.chunk),
            Datum::from(row.seq),
            or_null(relids),
            or_null(notes),
            or_null(data),
        ];
        self.writer.insert(&mut values, &mut nulls);
        for datum in [relids, notes, data].into_iter().flatten() {
            // SAFETY: made above by palloc; the tuple holds a copy.
            unsafe { pg_sys::pfree(datum.cast_mut_ptr()) }
        }
    }

    /// Writes what is left.
    pub fn finish(self) {
        self.writer.finish();
    }
}

/// An oid[], or none when it would be empty.
pub fn oids(relids: &[u32]) -> Option<Datum> {
    if relids.is_empty() {
        return None;
    }
    let mut elements: Vec<Datum> = relids.iter().map(|relid| Datum::from(*relid)).collect();
    // SAFETY: oid is a 4-byte by-value type of alignment `i`.
    let array = unsafe {
        let count = elements.len() as i32;
        pg_sys::construct_array(
            elements.as_mut_ptr(),
            count,
            pg_sys::OIDOID,
            4,
            true,
            pg_sys::TYPALIGN_INT as _,
        )
    };
    Some(Datum::from(array))
}

/// The datum of a column that may be null.
pub fn or_null(datum: Option<Datum>) -> Datum {
    datum.unwrap_or(Datum::null())
}

/// Opens a member's table; its primary key's index comes along. None when the log is not there.
pub fn open_member(ring: Ring, number: usize, lock: Lock) -> Option<(Relation, Oid)> {
    // What is remembered may be gone although nothing has told us yet: the lock makes Postgres tell, so look again.
    (0..2).find_map(|_| {
        let found = member(ring, number)?;
        let table = Relation::open(found.table, lock);
        let current = member(ring, number).is_some_and(|now| now.table == found.table);
        if table.is_none() || !current {
            forget(0);
        }
        table.filter(|_| current).map(|table| (table, found.key))
    })
}
