//! Tables as a shape's definition sees them: their columns, their key, their partitions.

use std::ffi::{CStr, CString, c_int};

use pgrx::{PgRelation, pg_sys};

use super::list::cells;

/// A column that is not dropped.
#[derive(Debug)]
pub struct Column {
    /// Attribute number.
    pub number: i16,
    /// Name.
    pub name: String,
    /// Type, or for a declared array its element type.
    pub type_oid: pg_sys::Oid,
    /// Name of that type.
    pub type_name: String,
    /// Type modifier, -1 for none.
    pub typmod: i32,
    /// Declared dimensions of an array, else 0.
    pub dims: i32,
    /// Is it declared NOT NULL?
    pub not_null: bool,
    /// Is its value computed when it is read, so that no tuple has it?
    pub computed_on_read: bool,
}

/// A table that shapes can be made of.
#[derive(Debug)]
pub struct Table {
    /// Its oid.
    pub relid: pg_sys::Oid,
    /// Its schema's name.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its columns in order.
    pub columns: Vec<Column>,
    /// Attribute numbers of the primary key in the order of the key; empty when there is none.
    pub key: Vec<i16>,
    /// Its oid and, if it is partitioned, those of all partitions below.
    pub relids: Vec<pg_sys::Oid>,
}

/// What a name stands for.
#[derive(Debug)]
pub enum Found {
    /// A table that shapes can be made of.
    Table(Table),
    /// Nothing, or something that has no rows of its own.
    Missing,
    /// A table of a kind that is not captured; the text says which.
    Refused(&'static str),
}

/// Looks a table up as the current user and locks it in share mode until the (sub)transaction ends. Raises if the user
/// has no right to use the schema.
pub fn find(schema: &str, name: &str) -> Found {
    match relid_of(schema, name, pg_sys::AccessShareLock as pg_sys::LOCKMODE) {
        Some(relid) => by_oid(relid),
        None => Found::Missing,
    }
}

/// Looks a relation up as the current user, without a lock. Raises if the user has no right to use the schema.
pub fn look_up(schema: &str, name: &str) -> Option<pg_sys::Oid> {
    relid_of(schema, name, pg_sys::NoLock as pg_sys::LOCKMODE)
}

fn relid_of(schema: &str, name: &str, lock: pg_sys::LOCKMODE) -> Option<pg_sys::Oid> {
    let (schema, name) = (CString::new(schema).ok()?, CString::new(name).ok()?);
    // SAFETY: makeRangeVar() keeps the pointers, which outlive the lookup and are not written to. With
    // RVR_MISSING_OK an unknown name gives InvalidOid.
    let relid = unsafe {
        let range = pg_sys::makeRangeVar(schema.as_ptr().cast_mut(), name.as_ptr().cast_mut(), -1);
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        pg_sys::RangeVarGetRelidExtended(range, lock, flags, None, std::ptr::null_mut())
    };
    (relid != pg_sys::InvalidOid).then_some(relid)
}

/// Describes a relation on which a lock is held.
pub fn by_oid(relid: pg_sys::Oid) -> Found {
    // SAFETY: the caller's lock keeps the relation from going away.
    let relation = unsafe { PgRelation::open(relid) };
    if !is_table(relation.rd_rel_kind()) {
        return Found::Missing;
    }
    if let Some(why) = refusal(&relation) {
        return Found::Refused(why);
    }
    let columns = columns(&relation);
    if columns.is_empty() {
        return Found::Missing;
    }
    let relids = if relation.rd_rel_kind() == pg_sys::RELKIND_PARTITIONED_TABLE {
        inheritors(relid)
    } else {
        vec![relid]
    };
    if relids.iter().any(|&partition| !is_captured(partition)) {
        return Found::Refused("has a partition that is foreign or unlogged");
    }
    Found::Table(Table {
        relid,
        schema: relation.namespace().to_string(),
        name: relation.name().to_string(),
        columns,
        key: primary_key(&relation),
        relids,
    })
}

trait RelKind {
    fn rd_rel_kind(&self) -> u8;
}

impl RelKind for PgRelation {
    fn rd_rel_kind(&self) -> u8 {
        // SAFETY: rd_rel of an open relation points to its pg_class row.
        unsafe { (*self.rd_rel).relkind as u8 }
    }
}

fn is_table(relkind: u8) -> bool {
    relkind == pg_sys::RELKIND_RELATION || relkind == pg_sys::RELKIND_PARTITIONED_TABLE
}

fn refusal(relation: &PgRelation) -> Option<&'static str> {
    // SAFETY: rd_rel of an open relation points to its pg_class row.
    let persistence = unsafe { (*relation.rd_rel).relpersistence as u8 };
    if relation.oid().to_u32() < pg_sys::FirstNormalObjectId {
        Some("is a system catalog")
    } else if relation.namespace() == "shapefeed" {
        Some("belongs to shapefeed itself")
    } else if persistence == pg_sys::RELPERSISTENCE_TEMP {
        Some("is temporary")
    } else if persistence == pg_sys::RELPERSISTENCE_UNLOGGED {
        Some("is unlogged")
    } else {
        None
    }
}

fn is_captured(relid: pg_sys::Oid) -> bool {
    // SAFETY: both read the catalog cache and return 0 for a relation that is gone.
    let (kind, persistence) = unsafe {
        (
            pg_sys::get_rel_relkind(relid) as u8,
            pg_sys::get_rel_persistence(relid) as u8,
        )
    };
    is_table(kind) && persistence == pg_sys::RELPERSISTENCE_PERMANENT
}

fn inheritors(relid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let mut relids = super::relation::inheritors(relid.to_u32());
    relids[1..].sort_unstable();
    relids.into_iter().map(pg_sys::Oid::from_u32).collect()
}

fn columns(relation: &PgRelation) -> Vec<Column> {
    let attributes = relation.tuple_desc();
    attributes
        .iter()
        .filter(|attribute| !attribute.attisdropped)
        .map(column)
        .collect()
}

#[allow(
    clippy::useless_conversion,
    reason = "attndims is an int2 since Postgres 16"
)]
fn column(attribute: &pg_sys::FormData_pg_attribute) -> Column {
    // SAFETY: returns InvalidOid for what is not an array.
    let element = unsafe { pg_sys::get_element_type(attribute.atttypid) };
    let declared_array = attribute.attndims > 0 && element != pg_sys::InvalidOid;
    let type_oid = if declared_array {
        element
    } else {
        attribute.atttypid
    };
    Column {
        number: attribute.attnum,
        name: attribute.name().to_string(),
        type_oid,
        type_name: type_name(type_oid),
        typmod: attribute.atttypmod,
        dims: if declared_array {
            attribute.attndims.into()
        } else {
            0
        },
        not_null: attribute.attnotnull,
        computed_on_read: attribute.attgenerated as u8 == b'v',
    }
}

fn type_name(oid: pg_sys::Oid) -> String {
    // SAFETY: a pg_type tuple of the catalog cache, copied from before it is released.
    unsafe {
        let tuple =
            pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::TYPEOID as c_int, oid.into());
        if tuple.is_null() {
            return oid.to_u32().to_string();
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_type>();
        let name = CStr::from_ptr((*form).typname.data.as_ptr())
            .to_string_lossy()
            .into_owned();
        pg_sys::ReleaseSysCache(tuple);
        name
    }
}

/// The primary key's columns in key order. A deferrable key counts, which is why rd_pkindex does not do.
fn primary_key(relation: &PgRelation) -> Vec<i16> {
    // SAFETY: RelationGetIndexList() returns a fresh List of oids of indexes that the lock on the table protects.
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(relation.as_ptr());
        cells(indexes)
            .iter()
            .find_map(|cell| primary_key_of(cell.oid_value))
            .unwrap_or_default()
    }
}

/// # Safety
/// `index` is the oid of an index.
unsafe fn primary_key_of(index: pg_sys::Oid) -> Option<Vec<i16>> {
    // SAFETY: a pg_index tuple of the catalog cache; indkey is its first field of variable length, never null, and has
    // at least indnkeyatts members.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::INDEXRELID as c_int,
            index.into(),
        );
        if tuple.is_null() {
            return None;
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_index>();
        // A key WITHOUT OVERLAPS is an exclusion constraint: equal keys do not mean the same row.
        let unique = (*form).indisprimary && (*form).indisvalid && !(*form).indisexclusion;
        let key = unique.then(|| {
            (*form)
                .indkey
                .values
                .as_slice((*form).indnkeyatts as usize)
                .to_vec()
        });
        pg_sys::ReleaseSysCache(tuple);
        key
    }
}

/// Is the table captured?
pub fn is_tracked(relid: pg_sys::Oid) -> bool {
    // SAFETY: an index scan of a table of our own as the server reads its catalogs; each thing opened is closed, or the
    // abort of the transaction does it.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"shapefeed".as_ptr(), false);
        let tracked = pg_sys::get_relname_relid(c"tracked".as_ptr(), schema);
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let table = pg_sys::table_open(tracked, lock);
        let mut key = pg_sys::ScanKeyData::default();
        let equal = pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber;
        pg_sys::ScanKeyInit(
            &mut key,
            1,
            equal,
            pg_sys::Oid::from(pg_sys::F_OIDEQ),
            relid.into(),
        );
        #[cfg(not(feature = "pg18"))]
        let index = pg_sys::RelationGetPrimaryKeyIndex(table);
        #[cfg(feature = "pg18")]
        let index = pg_sys::RelationGetPrimaryKeyIndex(table, false);
        let scan =
            pg_sys::systable_beginscan(table, index, true, std::ptr::null_mut(), 1, &mut key);
        let found = !pg_sys::systable_getnext(scan).is_null();
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock);
        found
    }
}
