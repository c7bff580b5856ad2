//! What the server says has changed in its catalogs since we last asked.
//!
//! Postgres calls back while it holds locks and in the middle of anything: the callbacks only take notes.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;

use pgrx::pg_sys::{self, Datum, Oid};

use crate::capture::{roles, survey};

/// Tables that changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// All may have.
    pub all: bool,
    /// These have.
    pub relids: Vec<u32>,
}

impl Changed {
    /// A table may have changed.
    pub fn has(&self, relid: u32) -> bool {
        self.all || self.relids.contains(&relid)
    }
}

thread_local! {
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    static WATCHING_TABLES: Cell<bool> = const { Cell::new(false) };
    static CHANGED: RefCell<Changed> = const { RefCell::new(Changed { all: false, relids: Vec::new() }) };
    /// Hash values, in the type cache, of the types that matter.
    static TYPES: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// More tables than this are all tables.
const MOST_RELIDS: usize = 1000;

/// Begins to take notes, once per backend.
pub fn watch() {
    if WATCHING.replace(true) {
        return;
    }
    use pg_sys::SysCacheIdentifier::{
        AUTHMEMROLEMEM, AUTHOID, NAMESPACEOID, OPEROID, PROCOID, TYPEOID,
    };
    // SAFETY: callbacks are registered for the life of the backend; they do nothing but take notes.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), Datum::null());
        for cache in [PROCOID, OPEROID, AUTHOID, AUTHMEMROLEMEM, NAMESPACEOID] {
            pg_sys::CacheRegisterSyscacheCallback(cache as _, Some(object_changed), Datum::null());
        }
        pg_sys::CacheRegisterSyscacheCallback(TYPEOID as _, Some(type_changed), Datum::null());
    }
}

/// A change of this type matters. Others do not: each new table makes one.
pub fn watch_type(type_oid: u32) {
    // SAFETY: computes a hash.
    let hash = unsafe {
        let none = Datum::null();
        pg_sys::GetSysCacheHashValue(
            pg_sys::SysCacheIdentifier::TYPEOID as _,
            Datum::from(type_oid),
            none,
            none,
            none,
        )
    };
    TYPES.with_borrow_mut(|types| {
        if !types.contains(&hash) {
            types.push(hash);
        }
    });
}

/// Sends a message of a table, which there must be, when this transaction commits: whoever relies on something about it looks again.
pub fn tell_of(relid: u32) {
    // SAFETY: looks the table up in the catalogs, and raises an error if it is not there.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(Oid::from_u32(relid)) }
}

/// Reads the server's messages, and takes the notes.
pub fn take() -> Changed {
    accept();
    CHANGED.take()
}

/// Reads the server's messages.
pub fn accept() {
    // SAFETY: allowed wherever catalogs may be read.
    unsafe { pg_sys::AcceptInvalidationMessages() }
}

/// Has `capture/survey.rs` told of what is not a change of a relation and may change tables, and `capture/roles.rs` of
/// changes of roles, once per backend.
pub fn watch_tables() {
    if WATCHING_TABLES.replace(true) {
        return;
    }
    use pg_sys::SysCacheIdentifier::{AUTHMEMROLEMEM, AUTHOID, ENUMOID, NAMESPACEOID};
    for cache in [ENUMOID, NAMESPACEOID] {
        // SAFETY: as in watch().
        unsafe {
            pg_sys::CacheRegisterSyscacheCallback(cache as _, Some(tables_changed), Datum::null());
        }
    }
    for cache in [AUTHOID, AUTHMEMROLEMEM] {
        // SAFETY: as in watch().
        unsafe {
            pg_sys::CacheRegisterSyscacheCallback(cache as _, Some(roles_changed), Datum::null());
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn roles_changed(_argument: Datum, _cache: c_int, _hash: u32) {
    roles::forget();
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn tables_changed(_argument: Datum, _cache: c_int, _hash: u32) {
    survey::forget(0);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn relation_changed(_argument: Datum, relid: Oid) {
    CHANGED.with_borrow_mut(|changed| {
        if relid == Oid::INVALID || changed.relids.len() >= MOST_RELIDS {
            changed.all = true;
            changed.relids.clear();
        } else if !changed.all {
            changed.relids.push(relid.to_u32());
        }
    });
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn object_changed(_argument: Datum, _cache: c_int, _hash: u32) {
    CHANGED.with_borrow_mut(|changed| changed.all = true);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn type_changed(_argument: Datum, _cache: c_int, hash: u32) {
    if hash == 0 || TYPES.with_borrow(|types| types.contains(&hash)) {
        CHANGED.with_borrow_mut(|changed| changed.all = true);
    }
}
