//! Open relations and what the catalog says of them.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};

use super::list::cells;

/// Functions of Postgres that the bindings leave out.
mod catalog {
    #![allow(missing_docs)]
    use pgrx::pg_sys::{LOCKMODE, List, Oid};

    #[pgrx::pg_guard]
    unsafe extern "C-unwind" {
        pub fn get_partition_ancestors(relid: Oid) -> *mut List;
        pub fn find_all_inheritors(
            parent: Oid,
            lockmode: LOCKMODE,
            numparents: *mut *mut List,
        ) -> *mut List;
    }
}

/// A lock level, by its name in the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Conflicts with ACCESS EXCLUSIVE only.
    AccessShare,
    /// Taken by writers.
    RowExclusive,
    /// Taken by CREATE TRIGGER.
    ShareRowExclusive,
    /// Taken on a table to which a partition is attached.
    ShareUpdateExclusive,
    /// Conflicts with all.
    AccessExclusive,
}

impl Lock {
    fn mode(self) -> pg_sys::LOCKMODE {
        (match self {
            Lock::AccessShare => pg_sys::AccessShareLock,
            Lock::RowExclusive => pg_sys::RowExclusiveLock,
            Lock::ShareRowExclusive => pg_sys::ShareRowExclusiveLock,
            Lock::ShareUpdateExclusive => pg_sys::ShareUpdateExclusiveLock,
            Lock::AccessExclusive => pg_sys::AccessExclusiveLock,
        }) as pg_sys::LOCKMODE
    }
}

/// A relation that somebody holds open.
pub struct Opened {
    raw: pg_sys::Relation,
}

impl Opened {
    /// A relation that stays open while the value lives.
    ///
    /// # Safety
    /// `raw` is open and stays so.
    pub(super) unsafe fn new(raw: pg_sys::Relation) -> Opened {
        Opened { raw }
    }

    /// The relation as Postgres' own functions take it; valid while this value lives.
    pub fn raw(&self) -> pg_sys::Relation {
        self.raw
    }

    /// Its oid.
    pub fn relid(&self) -> u32 {
        // SAFETY: the relation is open, so its entry is valid.
        unsafe { (*self.raw).rd_id.to_u32() }
    }

    /// What the catalog says of it.
    pub fn facts(&self) -> Facts {
        // SAFETY: the relation is open, so its entry and its descriptor are valid.
        unsafe { facts(self.raw) }
    }

    /// Number of the file that holds its rows; a rewrite gives it another one.
    pub fn file(&self) -> u32 {
        // SAFETY: as above.
        unsafe {
            #[cfg(any(feature = "pg14", feature = "pg15"))]
            let file = (*self.raw).rd_node.relNode;
            #[cfg(not(any(feature = "pg14", feature = "pg15")))]
            let file = (*self.raw).rd_locator.relNumber;
            file.to_u32()
        }
    }
}

/// A relation that is open and locked; the lock lasts to the end of the transaction.
pub struct Relation(Opened);

impl std::ops::Deref for Relation {
    type Target = Opened;

    fn deref(&self) -> &Opened {
        &self.0
    }
}

impl Relation {
    /// Opens a relation if its lock is free, without waiting for it.
    pub fn open_at_once(relid: Oid, lock: Lock) -> Option<Relation> {
        // SAFETY: the lock manager takes any oid; with the lock held the relation is opened without another one.
        let raw = unsafe {
            if !pg_sys::ConditionalLockRelationOid(relid, lock.mode()) {
                return None;
            }
            pg_sys::try_relation_open(relid, pg_sys::NoLock as pg_sys::LOCKMODE)
        };
        (!raw.is_null()).then(|| Relation(Opened { raw }))
    }

    /// Oids of its indexes, those that are not valid as well.
    pub fn indexes(&self) -> Vec<u32> {
        // SAFETY: the relation is open; the list is one of oids.
        unsafe {
            let indexes = pg_sys::RelationGetIndexList(self.raw());
            let oids = cells(indexes).iter().map(|cell| cell.oid_value.to_u32());
            oids.collect()
        }
    }

    /// Opens a relation, or says that there is none.
    pub fn open(relid: Oid, lock: Lock) -> Option<Relation> {
        // SAFETY: try_relation_open() returns null when the relation is gone.
        let raw = unsafe { pg_sys::try_relation_open(relid, lock.mode()) };
        (!raw.is_null()).then(|| Relation(Opened { raw }))
    }
}

impl Drop for Relation {
    fn drop(&mut self) {
        // SAFETY: after an error the resource owner has closed it already.
        unsafe {
            if pg_sys::IsTransactionState() {
                pg_sys::relation_close(self.raw(), pg_sys::NoLock as pg_sys::LOCKMODE);
            }
        }
    }
}

/// One attribute of a table, dropped ones included.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Attribute {
    /// Attribute number, from 1.
    pub num: i16,
    /// Its name; that of a dropped one is made up by Postgres.
    pub name: String,
    /// Type oid; 0 when dropped.
    #[serde(rename = "type")]
    pub type_oid: u32,
    /// Type modifier, -1 for none.
    pub typmod: i32,
    /// Bytes of the type; -1 = varlena, -2 = C string.
    pub len: i16,
    /// Passed by value.
    pub byval: bool,
    /// `c`, `s`, `i` or `d`.
    pub align: char,
    /// Dropped, though older rows still have it.
    pub dropped: bool,
}

/// What capture needs to know of a relation.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its oid.
    pub relid: u32,
    /// Its schema's oid.
    pub namespace: u32,
    /// Its schema's name.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `r`, `p`, `v`, `f`, …
    pub kind: char,
    /// `p`ermanent, `u`nlogged, `t`emporary.
    pub persistence: char,
    /// Oid of its toast table; 0 = none.
    pub toast: u32,
    /// It is a partition.
    pub is_partition: bool,
    /// Its attributes in order.
    pub attributes: Vec<Attribute>,
}

/// Reads [`Facts`] from an open relation.
unsafe fn facts(rel: pg_sys::Relation) -> Facts {
    // SAFETY: an open relation's entry, rd_rel and rd_att are valid; get_namespace_name() returns a palloc'd string.
    unsafe {
        let form = &*(*rel).rd_rel;
        let desc = (*rel).rd_att;
        let attributes = (0..(*desc).natts as usize)
            .map(|i| attribute(pgrx::PgTupleDesc::from_pg_unchecked(desc).get(i)));
        Facts {
            relid: (*rel).rd_id.to_u32(),
            namespace: form.relnamespace.to_u32(),
            schema: cstr(pg_sys::get_namespace_name(form.relnamespace)),
            name: cstr(form.relname.data.as_ptr()),
            kind: form.relkind as u8 as char,
            persistence: form.relpersistence as u8 as char,
            toast: form.reltoastrelid.to_u32(),
            is_partition: form.relispartition,
            attributes: attributes.collect(),
        }
    }
}

fn attribute(att: Option<&pg_sys::FormData_pg_attribute>) -> Attribute {
    let att = att.expect("the index is below natts");
    Attribute {
        num: att.attnum,
        name: att.name().to_string(),
        type_oid: att.atttypid.to_u32(),
        typmod: att.atttypmod,
        len: att.attlen,
        byval: att.attbyval,
        align: att.attalign as u8 as char,
        dropped: att.attisdropped,
    }
}

unsafe fn cstr(p: *const std::ffi::c_char) -> String {
    if p.is_null() {
        return String::new();
    }
    // SAFETY: the caller passes a C string of Postgres', which ends in a zero byte.
    unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned()
}

/// The partitioned tables above a partition, nearest first; none above any other table.
pub fn ancestors(relid: u32) -> Vec<u32> {
    let relid = Oid::from_u32(relid);
    // SAFETY: look-ups in the catalogs in the current transaction; a list in the current memory context. Of a child by
    // inheritance the second one would return the parent.
    unsafe {
        if !pg_sys::get_rel_relispartition(relid) {
            return Vec::new();
        }
        oid_list(catalog::get_partition_ancestors(relid))
    }
}

/// A table and all partitions or children under it, itself first; none of them is locked.
pub fn inheritors(relid: u32) -> Vec<u32> {
    // SAFETY: as above; lock mode 0 takes none.
    unsafe {
        oid_list(catalog::find_all_inheritors(
            Oid::from_u32(relid),
            0,
            std::ptr::null_mut(),
        ))
    }
}

unsafe fn oid_list(list: *mut pg_sys::List) -> Vec<u32> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: an OidList has `length` cells that hold oids.
    unsafe {
        let cells = std::slice::from_raw_parts((*list).elements, (*list).length as usize);
        cells.iter().map(|cell| cell.oid_value.to_u32()).collect()
    }
}

/// Oid of a relation in a schema.
pub fn relation_oid(namespace: Oid, name: &str) -> Option<Oid> {
    let name = CString::new(name).ok()?;
    // SAFETY: a syscache look-up inside a transaction; returns InvalidOid when there is none.
    let oid = unsafe { pg_sys::get_relname_relid(name.as_ptr(), namespace) };
    (oid != Oid::INVALID).then_some(oid)
}

/// Where a relation's rows are, relative to the data directory; none when it is gone. Takes no lock.
pub fn file_path(relid: Oid) -> Option<String> {
    use pgrx::IntoDatum;
    // SAFETY: a syscache look-up inside a transaction; returns null when there is no such relation.
    unsafe { pgrx::direct_function_call(pg_sys::pg_relation_filepath, &[relid.into_datum()]) }
}

/// Oid of the schema that the extension's tables are in; none when the extension is not there.
pub fn our_namespace() -> Option<Oid> {
    // SAFETY: syscache look-ups inside a transaction.
    let oid = unsafe { pg_sys::get_namespace_oid(c"shapefeed".as_ptr(), true) };
    (oid != Oid::INVALID).then_some(oid)
}

/// Oid of the extension in this database; none when it is not created.
pub fn our_extension() -> Option<Oid> {
    // SAFETY: reads pg_extension inside a transaction.
    let oid = unsafe { pg_sys::get_extension_oid(c"shapefeed".as_ptr(), true) };
    (oid != Oid::INVALID).then_some(oid)
}

/// A relation's schema and name, quoted as SQL wants them; its oid in digits when there is no such relation.
pub fn quoted_name(relid: u32) -> String {
    let oid = Oid::from_u32(relid);
    // SAFETY: syscache look-ups inside a transaction; both names are palloc'd, or null when it is gone.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(oid));
        if name.is_null() || schema.is_null() {
            return relid.to_string();
        }
        cstr(pg_sys::quote_qualified_identifier(schema, name))
    }
}
