//! Row images of the log as rows of a table.

use pgrx::pg_sys::{self, Datum, Oid};

use super::relation::{Lock, Relation};
use crate::record::SKIPPED_HEADER_BYTES;

/// A row of a table in memory of its own. Columns are counted from 0 and are those of the table that the shape names,
/// whichever leaf the row is from.
pub struct Row {
    values: Vec<Datum>,
    nulls: Vec<bool>,
    leaf: u32,
    /// The image as a heap tuple; `values` point into it.
    _bytes: Vec<u64>,
    /// Values that were fetched.
    owned: Vec<Vec<u64>>,
    external: bool,
}

/// Where the server stores a value out of line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// The toast table.
    pub toast: Oid,
    /// The value's id in it.
    pub value_id: u32,
    stored_bytes: usize,
    compression: u32,
    raw_size: i32,
}

impl Row {
    /// The value of a column; None is NULL. Valid while the row lives.
    pub fn get(&self, column: usize) -> Option<Datum> {
        (!self.nulls[column]).then(|| self.values[column])
    }

    /// The column's value is stored out of line, and has not been fetched.
    pub fn pointer(&self, column: usize, kind: &Kind) -> Option<Pointer> {
        if !self.external || kind.length != -1 || self.nulls[column] {
            return None;
        }
        // SAFETY: a varlena column that is not null points to a varlena.
        unsafe { pointer(self.values[column]) }
    }

    /// Puts a value that was fetched in the place of a pointer to it.
    pub fn set_fetched(&mut self, column: usize, value: Vec<u64>) {
        self.values[column] = Datum::from(value.as_ptr());
        self.owned.push(value);
    }

    /// Makes of a value with a short header what functions take without making a copy for each call of theirs.
    pub fn unpack(&mut self, column: usize, kind: &Kind) {
        if kind.length != -1 || self.nulls[column] {
            return;
        }
        // SAFETY: a varlena column that is not null points to a varlena; one with a short header, which is no pointer, is
        // its own bytes.
        let bytes: &[u8] = unsafe {
            let varlena = self.values[column].cast_mut_ptr::<pg_sys::varlena>();
            if !pgrx::varatt_is_1b(varlena) || pgrx::varatt_is_1b_e(varlena) {
                return;
            }
            varlena_bytes(self.values[column])
        };
        self.set_fetched(column, with_header(bytes, false));
    }

    /// Some of its values may be stored out of line.
    pub fn is_external(&self) -> bool {
        self.external
    }

    /// The leaf relation that the row is from.
    pub fn leaf(&self) -> u32 {
        self.leaf
    }

    /// A row of values that somebody else keeps.
    pub(super) fn new(values: Vec<Datum>, nulls: Vec<bool>) -> Row {
        Row {
            values,
            nulls,
            leaf: 0,
            _bytes: Vec::new(),
            owned: Vec::new(),
            external: false,
        }
    }

    /// A copy in memory of its own, with no value out of line.
    pub fn copy(&self, kinds: &[Kind]) -> Row {
        let mut copy = Row {
            leaf: self.leaf,
            ..Row::new(self.values.clone(), self.nulls.clone())
        };
        let by_reference = kinds.iter().enumerate().filter(|(_, kind)| !kind.byval);
        for (column, kind) in by_reference {
            if !self.nulls[column] {
                // SAFETY: a value of this kind that is not null.
                let value = unsafe { kind.copy(self.values[column]) };
                copy.set_fetched(column, value);
            }
        }
        copy
    }

    /// Its columns: values, and which are NULL.
    pub(super) fn columns(&self) -> (&[Datum], &[bool]) {
        (&self.values, &self.nulls)
    }
}

/// Rows as an array of a table's row type, in the current memory context, as a parameter of a query. Only `columns` of
/// them are kept, whose out-of-line values must have been fetched.
pub fn array(rows: &mut [Row], columns: &[usize], table: &Relation) -> (Oid, Datum) {
    // SAFETY: the table's descriptor describes values and nulls; what is formed is copied into the array.
    unsafe {
        let desc = (*table.raw()).rd_att;
        let composite = |row: &mut Row| {
            let mut nulls = vec![true; row.nulls.len()];
            columns
                .iter()
                .for_each(|column| nulls[*column] = row.nulls[*column]);
            let tuple = pg_sys::heap_form_tuple(desc, row.values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::heap_copy_tuple_as_datum(tuple, desc)
        };
        let mut datums: Vec<Datum> = rows.iter_mut().map(composite).collect();
        let row_type = (*desc).tdtypeid;
        let length = datums.len() as std::ffi::c_int;
        let align = pg_sys::TYPALIGN_DOUBLE as std::ffi::c_char;
        let array =
            pg_sys::construct_array(datums.as_mut_ptr(), length, row_type, -1, false, align);
        (pg_sys::get_array_type(row_type), array.into())
    }
}

unsafe fn pointer(value: Datum) -> Option<Pointer> {
    // SAFETY: the caller passes a varlena. VARTAG_ONDISK is followed by a varatt_external that is not aligned.
    unsafe {
        let varlena = value.cast_mut_ptr::<pg_sys::varlena>();
        if !pgrx::varatt_is_1b_e(varlena)
            || *varlena.cast::<u8>().add(1) != pg_sys::vartag_external::VARTAG_ONDISK as u8
        {
            return None;
        }
        let external: pg_sys::varatt_external = varlena
            .cast::<u8>()
            .add(2)
            .cast::<pg_sys::varatt_external>()
            .read_unaligned();
        Some(Pointer {
            toast: external.va_toastrelid,
            value_id: external.va_valueid.to_u32(),
            stored_bytes: (external.va_extinfo & SIZE_MASK) as usize,
            compression: external.va_extinfo >> SIZE_BITS,
            raw_size: external.va_rawsize,
        })
    }
}

/// `VARLENA_EXTSIZE_BITS` of postgres.h.
const SIZE_BITS: u32 = 30;
const SIZE_MASK: u32 = (1 << SIZE_BITS) - 1;
/// `VARHDRSZ`.
const HEADER_BYTES: usize = 4;

/// How values of a column are stored.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    byval: bool,
    length: i16,
}

impl Kind {
    /// Of a column of an open table, counted from 0.
    pub fn of(table: &Relation, column: usize) -> Kind {
        // SAFETY: the relation is open, and the column is one of its own.
        let attribute = unsafe {
            let desc = pgrx::PgTupleDesc::from_pg_unchecked((*table.raw()).rd_att);
            *desc.get(column).expect("the column is one of the table's")
        };
        Kind {
            byval: attribute.attbyval,
            length: attribute.attlen,
        }
    }

    /// # Safety
    /// `value` is of this kind, which is not passed by value.
    unsafe fn copy(&self, value: Datum) -> Vec<u64> {
        // SAFETY: as the caller says; what detoasting allocates goes with the current context.
        unsafe {
            match self.length {
                -1 => {
                    let varlena = value.cast_mut_ptr::<pg_sys::varlena>();
                    copy_varlena(if pgrx::varatt_is_1b_e(varlena) {
                        pg_sys::pg_detoast_datum(varlena).into()
                    } else {
                        value
                    })
                }
                -2 => aligned(
                    std::ffi::CStr::from_ptr(value.cast_mut_ptr()).to_bytes_with_nul(),
                    0,
                ),
                length => aligned(
                    std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), length as usize),
                    0,
                ),
            }
        }
    }

    /// Two values are the same, byte for byte. Values stored out of line are the same if they are the same stored
    /// value; a stored one that has to be compared with another must have been fetched.
    pub fn same(&self, a: Datum, b: Datum) -> bool {
        if self.byval || a.value() == b.value() {
            return a.value() == b.value();
        }
        // SAFETY: both are values of a by-reference type of this length; what detoasting allocates goes with the
        // current context.
        unsafe {
            match self.length {
                -1 => match (pointer(a), pointer(b)) {
                    (Some(a), Some(b)) => a == b,
                    (None, None) => varlena_bytes(a) == varlena_bytes(b),
                    _ => false,
                },
                -2 => {
                    std::ffi::CStr::from_ptr(a.cast_mut_ptr())
                        == std::ffi::CStr::from_ptr(b.cast_mut_ptr())
                }
                length => {
                    let bytes = |datum: Datum| {
                        std::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), length as usize)
                    };
                    bytes(a) == bytes(b)
                }
            }
        }
    }
}

/// The bytes of a varlena, decompressed.
///
/// # Safety
/// `value` is a varlena that outlives `'a`; a compressed one is unpacked into the current memory context.
pub(super) unsafe fn varlena_bytes<'a>(value: Datum) -> &'a [u8] {
    // SAFETY: as the caller says.
    unsafe {
        let varlena = value.cast_mut_ptr::<pg_sys::varlena>();
        let plain = pgrx::varatt_is_4b_u(varlena)
            || (pgrx::varatt_is_1b(varlena) && !pgrx::varatt_is_1b_e(varlena));
        let varlena = if plain {
            varlena
        } else {
            pg_sys::pg_detoast_datum_packed(varlena)
        };
        std::slice::from_raw_parts(
            pgrx::vardata_any(varlena).cast::<u8>(),
            pgrx::varsize_any_exhdr(varlena),
        )
    }
}

/// A copy of a value, as an image holds it, to put into another row.
///
/// # Safety
/// `value` is a varlena.
unsafe fn copy_varlena(value: Datum) -> Vec<u64> {
    // SAFETY: as the caller says.
    unsafe {
        let length = pgrx::varsize_any(value.cast_mut_ptr::<pg_sys::varlena>());
        aligned(
            std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), length),
            0,
        )
    }
}

/// Bytes at an address that is a multiple of 8, after `skipped` zeros.
fn aligned(bytes: &[u8], skipped: usize) -> Vec<u64> {
    let mut words = vec![0u64; (skipped + bytes.len()).div_ceil(8)];
    // SAFETY: the vector has room for that many bytes, and u64 has no invalid values.
    unsafe {
        std::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            words.as_mut_ptr().cast::<u8>().add(skipped),
            bytes.len(),
        )
    }
    words
}

/// A relation that images are of, and how its columns map to those of the table that a shape names.
pub struct Leaf {
    relation: Relation,
    /// For each column of the shape's table the one of this leaf, from 1; 0 = it has none.
    map: Option<Vec<i16>>,
}

impl Leaf {
    /// The leaf of a table, which may be the table itself.
    pub fn new(relation: Relation, table: &Relation) -> Leaf {
        // SAFETY: both are open. A null map says that the descriptors match; the list is copied before it is freed.
        let map = unsafe {
            let map =
                pg_sys::convert_tuples_by_name((*relation.raw()).rd_att, (*table.raw()).rd_att);
            (!map.is_null()).then(|| {
                let attributes = &*(*map).attrMap;
                let numbers =
                    std::slice::from_raw_parts(attributes.attnums, attributes.maplen as usize)
                        .to_vec();
                pg_sys::free_conversion_map(map);
                numbers
            })
        };
        Leaf { relation, map }
    }

    /// The leaf itself.
    pub fn relation(&self) -> &Relation {
        &self.relation
    }

    /// Decodes an image. Its layout must be one that the leaf's descriptor can read.
    pub fn row(&self, image: &[u8]) -> Row {
        self.decode(image, self.map.as_deref())
    }

    fn decode(&self, image: &[u8], map: Option<&[i16]>) -> Row {
        let mut bytes = aligned(image, SKIPPED_HEADER_BYTES);
        // SAFETY: the bytes are a heap tuple of this relation, its first fields zero. Columns added later are filled in
        // with their missing values, which the relation's descriptor holds.
        unsafe {
            let desc = (*self.relation.raw()).rd_att;
            let width = (*desc).natts as usize;
            let (mut values, mut nulls) = (vec![Datum::null(); width], vec![true; width]);
            let header = bytes.as_mut_ptr().cast::<pg_sys::HeapTupleHeaderData>();
            let mut tuple = pg_sys::HeapTupleData {
                t_len: (SKIPPED_HEADER_BYTES + image.len()) as u32,
                t_self: pg_sys::ItemPointerData::default(),
                t_tableOid: (*self.relation.raw()).rd_id,
                t_data: header,
            };
            pg_sys::heap_deform_tuple(&mut tuple, desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            let external = (*header).t_infomask & pg_sys::HEAP_HASEXTERNAL as u16 != 0;
            if let Some(map) = map {
                (values, nulls) = remap(map, &values, &nulls);
            }
            Row {
                values,
                nulls,
                leaf: tuple.t_tableOid.to_u32(),
                _bytes: bytes,
                owned: Vec::new(),
                external,
            }
        }
    }

    /// The inline value of a column of this leaf (from 1) in an image, to put into another row.
    pub fn inline_value(&self, image: &[u8], attnum: u16) -> Option<Vec<u64>> {
        let row = self.decode(image, None);
        let column = usize::from(attnum).checked_sub(1)?;
        let kind = Kind::of(&self.relation, column);
        if kind.length != -1 || row.pointer(column, &kind).is_some() {
            return None;
        }
        // SAFETY: a varlena column that is not null points to a varlena.
        row.get(column).map(|value| unsafe { copy_varlena(value) })
    }
}

fn remap(map: &[i16], values: &[Datum], nulls: &[bool]) -> (Vec<Datum>, Vec<bool>) {
    let pick = |number: &i16| match usize::try_from(*number - 1) {
        Ok(from) => (values[from], nulls[from]),
        Err(_) => (Datum::null(), true),
    };
    map.iter().map(pick).unzip()
}

/// Reads an out-of-line value, also of a row version that is dead. None when not all of it is there any more.
pub fn fetch(pointer: &Pointer) -> Option<Vec<u64>> {
    let toast = Relation::open(pointer.toast, Lock::AccessShare)?;
    let mut data: Vec<u8> = Vec::with_capacity(pointer.stored_bytes);
    // SAFETY: a toast table's columns are (chunk_id oid, chunk_seq int4, chunk_data bytea), and its valid index has the
    // first two. SnapshotAny also sees what vacuum has not removed yet; a value id is not used twice while it is there.
    unsafe {
        let index = valid_index(&toast)?;
        let mut key = pg_sys::ScanKeyData::default();
        let equal = pg_sys::BTEqualStrategyNumber as u16;
        let value_id = Datum::from(pointer.value_id as usize);
        pg_sys::ScanKeyInit(&mut key, 1, equal, Oid::from_u32(pg_sys::F_OIDEQ), value_id);
        let snapshot = &raw mut pg_sys::SnapshotAnyData;
        let scan = pg_sys::systable_beginscan_ordered(toast.raw(), index, snapshot, 1, &mut key);
        loop {
            let tuple =
                pg_sys::systable_getnext_ordered(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let (mut values, mut nulls) = ([Datum::null(); 3], [true; 3]);
            pg_sys::heap_deform_tuple(
                tuple,
                (*toast.raw()).rd_att,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            data.extend_from_slice(varlena_bytes(values[2]));
        }
        pg_sys::systable_endscan_ordered(scan);
        pg_sys::index_close(index, pg_sys::AccessShareLock as i32);
    }
    (data.len() == pointer.stored_bytes).then(|| pointer.varlena(&data))
}

/// The index of a toast table that has all of it: beside it may lie one that REINDEX CONCURRENTLY builds or has left behind.
unsafe fn valid_index(toast: &Relation) -> Option<pg_sys::Relation> {
    let lock = pg_sys::AccessShareLock as i32;
    // SAFETY: index_open() raises rather than returning null; an index has its row of pg_index while it is open.
    unsafe {
        for index in toast.indexes() {
            let index = pg_sys::index_open(pg_sys::Oid::from_u32(index), lock);
            if (*(*index).rd_index).indisvalid {
                return Some(index);
            }
            pg_sys::index_close(index, lock);
        }
    }
    None
}

impl Pointer {
    /// The stored bytes with a header of their own, compressed if they are.
    fn varlena(&self, data: &[u8]) -> Vec<u64> {
        let compressed = (self.stored_bytes as i32) < self.raw_size - HEADER_BYTES as i32;
        debug_assert!(compressed || self.compression == 0);
        with_header(data, compressed)
    }
}

/// A varlena with a header of four bytes.
fn with_header(data: &[u8], compressed: bool) -> Vec<u64> {
    let length = (HEADER_BYTES + data.len()) as u32;
    // SET_VARSIZE_COMPRESSED and SET_VARSIZE. What is stored of a compressed value begins with its raw size and method
    // already.
    let header = match (cfg!(target_endian = "little"), compressed) {
        (true, true) => (length << 2) | 0x02,
        (true, false) => length << 2,
        (false, true) => (length & SIZE_MASK) | 0x4000_0000,
        (false, false) => length & SIZE_MASK,
    };
    let bytes = [&header.to_ne_bytes()[..], data].concat();
    aligned(&bytes, 0)
}
