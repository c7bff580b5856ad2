//! MVCC snapshots and locks for readers.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;

use crate::error::{Error, Result};

/// The newest snapshot there is, active while this lives: scans of ours and queries run under it.
///
/// Take it after the locks: TRUNCATE and rewrites are not MVCC-safe, and a snapshot that is older than the lock may
/// see an empty table.
pub struct Latest(());

impl Latest {
    /// Takes a snapshot and makes it the active one.
    pub fn take() -> Latest {
        // SAFETY: GetLatestSnapshot() is allowed at any isolation level; pushing copies and registers it.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
        Latest(())
    }
}

impl Drop for Latest {
    fn drop(&mut self) {
        // After an error the (sub)transaction's abort empties the stack.
        if !std::thread::panicking() {
            // SAFETY: what is pushed later is popped earlier, so the top of the stack is ours.
            unsafe { pg_sys::PopActiveSnapshot() }
        }
    }
}

/// Who holds what is opened and locked now: the (sub)transaction or portal that runs.
pub struct Holder(pg_sys::ResourceOwner);

impl Holder {
    /// The one of now.
    pub fn current() -> Holder {
        // SAFETY: a variable of the backend.
        Holder(unsafe { pg_sys::CurrentResourceOwner })
    }

    /// What `f` opens and locks is held as if it had been then, also when a subtransaction that began later ends.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: the holder encloses all that runs while this lives; after an error the (sub)transaction's abort sets
        // the variable anew.
        unsafe {
            let current = pg_sys::CurrentResourceOwner;
            pg_sys::CurrentResourceOwner = self.0;
            let result = f();
            pg_sys::CurrentResourceOwner = current;
            result
        }
    }
}

/// Refuses where the log must not be read: a SERIALIZABLE reader would leave predicate locks on the log, and make
/// writers fail; and only UTF-8 databases speak JSON without conversion.
pub fn may_read() -> Result<()> {
    // SAFETY: XactIsoLevel is a plain global of the backend.
    let serializable = unsafe { pg_sys::XactIsoLevel } == pg_sys::XACT_SERIALIZABLE as i32;
    if serializable {
        return Err(Error::Sql(
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "the log cannot be read in a SERIALIZABLE transaction".into(),
            "Use isolation level READ COMMITTED or REPEATABLE READ.",
        ));
    }
    // SAFETY: reads a global of the backend.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    if encoding != pg_sys::pg_enc::PG_UTF8 as i32 {
        return Err(Error::Unsupported(
            "the database's encoding is not UTF8".into(),
            "Changes are served as JSON.",
        ));
    }
    Ok(())
}

/// Waits for an ACCESS SHARE lock on a relation, which need not exist.
pub fn lock_shared(relid: pg_sys::Oid) {
    // SAFETY: the lock manager takes any oid.
    unsafe { pg_sys::LockRelationOid(relid, pg_sys::AccessShareLock as pg_sys::LOCKMODE) }
}

/// Gives one ACCESS SHARE lock back before the transaction ends.
pub fn unlock_shared(relid: pg_sys::Oid) {
    // SAFETY: the caller took this lock in this transaction, and has closed the relation.
    unsafe { pg_sys::UnlockRelationOid(relid, pg_sys::AccessShareLock as pg_sys::LOCKMODE) }
}
