//! Databases of the server, and the lock that makes sequencing one at a time.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};

/// Oid of the database that this process is connected to; 0 = none.
pub fn current() -> u32 {
    // SAFETY: a variable of the process, set once.
    unsafe { pg_sys::MyDatabaseId.to_u32() }
}

/// Oid of a database by name.
pub fn by_name(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: reads pg_database inside a transaction.
    let oid = unsafe { pg_sys::get_database_oid(name.as_ptr(), true) };
    (oid != Oid::INVALID).then(|| oid.to_u32())
}

/// A database that allows connections.
pub struct Database {
    /// Its oid.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// All databases that allow connections. Needs a transaction, but no database.
pub fn all() -> Vec<Database> {
    let mut found = Vec::new();
    // SAFETY: as the autovacuum launcher reads pg_database: a catalog scan, each tuple valid until the next.
    unsafe {
        let table = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::table_beginscan_catalog(table, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let header = (*tuple).t_data;
            let form = header
                .cast::<u8>()
                .add((*header).t_hoff as usize)
                .cast::<pg_sys::FormData_pg_database>();
            if (*form).datallowconn && !(*form).datistemplate {
                let name = CStr::from_ptr((*form).datname.data.as_ptr())
                    .to_string_lossy()
                    .into_owned();
                found.push(Database {
                    oid: (*form).oid.to_u32(),
                    name,
                });
            }
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(table, pg_sys::AccessShareLock as i32);
    }
    found
}

/// Waits for the right to sequence this database, and keeps it to the end of the transaction. An advisory lock would
/// not do: anybody could hold it.
pub fn lock_sequencing(extension: Oid) {
    // SAFETY: a lock on the extension's object; DROP EXTENSION takes a stronger one on the same.
    unsafe {
        pg_sys::LockDatabaseObject(
            pg_sys::ExtensionRelationId,
            extension,
            0,
            pg_sys::ExclusiveLock as i32,
        );
    }
}

/// The timeline that WAL is written on.
pub fn timeline() -> i32 {
    // SAFETY: reads shared memory; out of recovery only.
    unsafe { pg_sys::GetWALInsertionTimeLine() as i32 }
}

/// A database belongs to the current user (or that is a superuser).
pub fn owns(database: u32) -> bool {
    // SAFETY: a syscache look-up inside a transaction.
    unsafe {
        let (database, user) = (Oid::from_u32(database), pg_sys::GetUserId());
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let owns = pg_sys::pg_database_ownercheck(database, user);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let owns = pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, user);
        owns
    }
}

/// The extension belongs to the current user (or that is a superuser).
pub fn owns_extension(extension: Oid) -> bool {
    // SAFETY: a syscache look-up inside a transaction.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let owns = pg_sys::pg_extension_ownercheck(extension, pg_sys::GetUserId());
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let owns =
            pg_sys::object_ownercheck(pg_sys::ExtensionRelationId, extension, pg_sys::GetUserId());
        owns
    }
}
