//! The log's tables, found by name and remembered until the relation cache says that one changed.

use std::cell::RefCell;
use std::rc::Rc;

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
    /// Files of each member, those of its indexes and its toast table included, relative to the data directory.
    static FILES: RefCell<Option<Rc<Files>>> = const { RefCell::new(None) };
}

type Files = [Vec<String>; RING_MEMBERS];

const RINGS: [Ring; 3] = [Ring::Change, Ring::Commit, Ring::Batch];

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
                FILES.set(None);
            }
        }
    });
}

/// Bytes that each member of the ring has on disk. Takes no lock: a member that is being truncated counts for something
/// in between.
pub fn member_bytes() -> [u64; RING_MEMBERS] {
    std::array::from_fn(bytes_of_member)
}

/// Bytes of one member, as `member_bytes` has them.
pub fn bytes_of_member(number: usize) -> u64 {
    let files = FILES.with_borrow(|files| files.clone()).unwrap_or_else(|| {
        let files = Rc::new(std::array::from_fn(files_of));
        FILES.set(Some(Rc::clone(&files)));
        files
    });
    files[number].iter().map(|path| bytes_of(path)).sum()
}

fn files_of(number: usize) -> Vec<String> {
    RINGS
        .iter()
        .filter_map(|&ring| Some((ring, member(ring, number)?.table)))
        .flat_map(|(ring, table)| relations_of(ring, number, table))
        .filter_map(super::relation::file_path)
        .collect()
}

fn relations_of(ring: Ring, number: usize, table: Oid) -> Vec<Oid> {
    let indexes: &[&str] = match ring {
        Ring::Commit => &["pkey", "xid_key", "ends"],
        Ring::Batch => &["pkey", "resting"],
        Ring::Change => &["pkey"],
    };
    let index = |name| {
        relation_oid(
            our_namespace()?,
            &format!("{}_{number}_{name}", ring.name()),
        )
    };
    let toast = || {
        relation_oid(
            pg_sys::Oid::from_u32(pg_sys::PG_TOAST_NAMESPACE),
            &format!("pg_toast_{}", table.to_u32()),
        )
    };
    std::iter::once(table)
        .chain(indexes.iter().filter_map(index))
        .chain(toast())
        .collect()
}

/// A relation's file, and the further ones that it has past each gigabyte.
fn bytes_of(path: &str) -> u64 {
    const SEGMENT_BYTES: u64 = pg_sys::RELSEG_SIZE as u64 * pg_sys::BLCKSZ as u64;
    let size = |path: &str| std::fs::metadata(path).map_or(0, |file| file.len());
    let mut bytes = size(path);
    while bytes > 0 && bytes % SEGMENT_BYTES == 0 {
        match size(&format!("{path}.{}", bytes / SEGMENT_BYTES)) {
            0 => break,
            more => bytes += more,
        }
    }
    bytes
}

/// Why a member cannot be had for oneself.
pub struct InUse;

/// Takes the three tables of a member for this transaction alone, waiting 10 ms at most for each: until then, whoever
/// wants one of them waits behind us. That of batches first: a reader locks it first, and the others as it needs them.
pub fn take_member(number: usize) -> Result<(), InUse> {
    let first_locked = [Ring::Batch, Ring::Change, Ring::Commit];
    let tables = first_locked.map(|ring| member(ring, number).map(|member| member.table));
    super::attempt::attempt_locks(|| {
        super::background::set_lock_timeout_in_transaction("10ms");
        for table in tables.into_iter().flatten() {
            // SAFETY: the lock manager takes any oid.
            unsafe {
                pg_sys::LockRelationOid(table, pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE)
            }
        }
    })
    .map_err(|_| InUse)
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

    /// A writer for member `first` or, where that is being emptied, the next one that nobody has for himself: a writer
    /// does not wait for retention. Returns the member's number, too.
    pub fn open_free(first: usize) -> Option<(ChangeWriter, usize)> {
        (first..first + RING_MEMBERS)
            .map(|number| number % RING_MEMBERS)
            .find_map(|number| {
                let table = Relation::open_at_once(
                    member(Ring::Change, number)?.table,
                    Lock::RowExclusive,
                )?;
                let current = member(Ring::Change, number)
                    .is_some_and(|now| now.table.to_u32() == table.relid());
                let writer = current.then(|| Writer::new(table))?;
                Some((ChangeWriter { writer }, number))
            })
            .or_else(|| Some((ChangeWriter::open(first)?, first)))
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
