//! Transactions: their ids and snapshots, and being told when they end.

use std::cell::Cell;
use std::ffi::c_void;

use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, Oid};

use crate::{capture, sequence};

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Asks Postgres to tell this module of the end of each transaction, and of changes of relations; once per backend.
pub fn register_callbacks() {
    if REGISTERED.replace(true) {
        return;
    }
    // SAFETY: the functions stay loaded as long as the process lives.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), std::ptr::null_mut());
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), Datum::null());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn transaction_event(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => capture::write_log(),
        XACT_EVENT_COMMIT if capture::end_transaction(true) => sequence::transaction_committed(),
        XACT_EVENT_ABORT | XACT_EVENT_PREPARE => {
            capture::end_transaction(false);
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    use pg_sys::SubXactEvent::*;
    match event {
        SUBXACT_EVENT_ABORT_SUB => capture::roll_back_to(subtransaction),
        SUBXACT_EVENT_COMMIT_SUB => capture::keep_in_parent(subtransaction, parent),
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: Datum, relid: Oid) {
    capture::known::forget(relid.to_u32());
    capture::survey::forget(relid.to_u32());
    super::log_tables::forget(relid.to_u32());
    crate::write::target::forget(relid.to_u32());
}

// pgrx's declarations catch errors, which costs more than these calls, and they are made for each captured row or transaction.
unsafe extern "C" {
    safe fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;
    safe fn GetXLogInsertRecPtr() -> pg_sys::XLogRecPtr;
    safe fn GetCurrentTimestamp() -> pg_sys::TimestampTz;
}

/// The subtransaction that runs; 1 is the top.
pub fn subtransaction() -> u32 {
    GetCurrentSubTransactionId()
}

/// Id of the top-level transaction, with its epoch; assigned now if it has none.
pub fn top_xid() -> u64 {
    // SAFETY: inside a transaction that is in progress.
    unsafe { pg_sys::GetTopFullTransactionId().value }
}

/// The top-level transaction has an id.
pub fn has_xid() -> bool {
    // SAFETY: reads a variable of the transaction state.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// The top-level transaction, which is about to commit, has messages for other backends: it changes catalogs.
pub fn has_messages() -> bool {
    let (mut messages, mut file_is_stale) = (std::ptr::null_mut(), false);
    // SAFETY: at pre-commit no subtransaction is open; the messages are copied into the current memory context.
    unsafe {
        let count = pg_sys::xactGetCommittedInvalidationMessages(&mut messages, &mut file_is_stale);
        if !messages.is_null() {
            pg_sys::pfree(messages.cast());
        }
        count > 0
    }
}

/// Waits for the end of a transaction that has committed already: a commit shows before its messages are sent, and the lock on
/// its id is given back after that.
pub fn wait_for_messages_of(xid: u64) {
    let (xid, none) = (
        pg_sys::TransactionId::from(xid as u32),
        std::ptr::null_mut(),
    );
    let operation = pg_sys::XLTW_Oper::XLTW_None;
    // SAFETY: who holds this lock waits for none any more; without an operation no tuple is looked at.
    unsafe { pg_sys::XactLockTableWait(xid, none, none.cast(), operation) }
}

/// Where the next WAL record will go. What was read before a commit is below what is read after it, in any backend.
pub fn wal_insert_position() -> i64 {
    GetXLogInsertRecPtr() as i64
}

/// Microseconds from 1970 to Postgres' epoch, 2000.
pub const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// The clock, in seconds since 1970.
pub fn clock_s() -> i64 {
    clock_us() / 1_000_000
}

/// The clock, in microseconds since 1970.
pub fn clock_us() -> i64 {
    GetCurrentTimestamp() + POSTGRES_EPOCH_US
}

/// The server is replaying WAL.
pub fn in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Runs `f` with a new snapshot active that sees everything committed until now.
pub fn with_latest_snapshot<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: pushed and popped in pairs; after an error the transaction's abort pops it.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let value = f();
        pg_sys::PopActiveSnapshot();
        value
    }
}

/// Runs `f` with the transaction's own snapshot active; toasting needs one.
pub fn with_transaction_snapshot<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: as above.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let value = f();
        pg_sys::PopActiveSnapshot();
        value
    }
}

/// Runs `f`, which looks at no snapshot, where Postgres asserts that one is active: whoever writes to a table that has a TOAST
/// table might need it. Takes none, which would cost more than a small write.
pub fn with_any_snapshot<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: as above; what is pushed is a copy.
    unsafe {
        pg_sys::PushActiveSnapshot(&raw mut pg_sys::SnapshotAnyData);
        let value = f();
        pg_sys::PopActiveSnapshot();
        value
    }
}

/// Lets go of the snapshot that catalog look-ups keep.
pub fn forget_catalog_snapshot() {
    // SAFETY: no catalog scan is open.
    unsafe { pg_sys::InvalidateCatalogSnapshot() }
}

/// Raises an error if the transaction may not write.
pub fn require_writable(command: &'static std::ffi::CStr) {
    // SAFETY: both raise or return.
    unsafe {
        pg_sys::PreventCommandDuringRecovery(command.as_ptr());
        pg_sys::PreventCommandIfReadOnly(command.as_ptr());
    }
}

/// The session is inside BEGIN … COMMIT.
pub fn in_transaction_block() -> bool {
    // SAFETY: reads the transaction state.
    unsafe { pg_sys::IsTransactionBlock() }
}

/// The isolation level is READ COMMITTED (or lower, which Postgres treats alike).
pub fn is_read_committed() -> bool {
    // SAFETY: a variable of the process.
    unsafe { pg_sys::XactIsoLevel <= pg_sys::XACT_READ_COMMITTED as i32 }
}
