//! A query that Postgres plans and runs, read through a cursor without copying its rows.

use std::ffi::{CStr, CString, c_int};

use pgrx::pg_sys::{self, Datum};

use super::image::Row;

/// A row of a query; its values live until the next row.
pub struct Fetched<'a> {
    values: &'a [Datum],
    nulls: &'a [bool],
}

impl Fetched<'_> {
    /// The value of a column, from 0; None is NULL.
    #[inline]
    pub fn get(&self, column: usize) -> Option<Datum> {
        (!self.nulls[column]).then(|| self.values[column])
    }

    /// As a row of a table whose columns the query selects, each at its place. Its values live until the next row.
    pub fn row(&self) -> Row {
        Row::new(self.values.to_vec(), self.nulls.to_vec())
    }
}

/// What the reader of a query is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// All rows: the plan that is cheapest in total.
    AllRows,
    /// The first rows soon.
    FirstRows,
}

/// An open cursor. It belongs to the transaction, which closes it if nobody else does, and is found by its name: what
/// runs between two fetches may have closed it.
pub struct Cursor {
    name: CString,
}

impl Cursor {
    /// Plans a SELECT under the active snapshot, with the rights of the current user, and gets ready to run it.
    pub fn open(sql: &str, goal: Goal) -> Cursor {
        Cursor::open_with(sql, &[], goal)
    }

    /// The same of a SELECT with parameters, none of them NULL: the type and value of each.
    pub fn open_with(sql: &str, params: &[(pg_sys::Oid, Datum)], goal: Goal) -> Cursor {
        let (mut types, mut values): (Vec<_>, Vec<_>) = params.iter().copied().unzip();
        let sql = CString::new(sql).expect("text that comes from Postgres has no zero bytes");
        let fast = if goal == Goal::FirstRows {
            pg_sys::CURSOR_OPT_FAST_PLAN
        } else {
            0
        };
        let options = (pg_sys::CURSOR_OPT_NO_SCROLL | fast) as c_int;
        // SAFETY: the portal that SPI makes lives until the transaction ends, also after SPI_finish(); read_only runs
        // it under the active snapshot. The name is copied, and so are the parameters; without nulls none of them is.
        let name = unsafe {
            pg_sys::SPI_connect();
            let (name, nulls) = (std::ptr::null(), std::ptr::null());
            let portal = pg_sys::SPI_cursor_open_with_args(
                name,
                sql.as_ptr(),
                params.len() as c_int,
                types.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls,
                true,
                options,
            );
            let name = CStr::from_ptr((*portal).name).to_owned();
            pg_sys::SPI_finish();
            name
        };
        Cursor { name }
    }

    /// Hands the next `count` rows to `each`; returns how many there were.
    pub fn fetch(&self, count: usize, each: &mut dyn FnMut(Fetched<'_>)) -> usize {
        let mut receiver = Receiver {
            base: pg_sys::DestReceiver {
                receiveSlot: Some(receive),
                rStartup: Some(start_up),
                rShutdown: Some(shut_down),
                rDestroy: Some(shut_down),
                mydest: pg_sys::CommandDest::DestNone,
            },
            each,
        };
        // SAFETY: the portal is looked up anew; PortalRunFetch() gives each row to the receiver, which outlives it.
        unsafe {
            let portal = pg_sys::SPI_cursor_find(self.name.as_ptr());
            if portal.is_null() {
                return 0;
            }
            let forward = pg_sys::FetchDirection::FETCH_FORWARD;
            pg_sys::PortalRunFetch(portal, forward, count as _, (&raw mut receiver).cast()) as usize
        }
    }

    /// Closes the cursor before the transaction ends.
    pub fn close(self) {
        // SAFETY: looked up anew; closing a portal that is not being run is always allowed.
        unsafe {
            let portal = pg_sys::SPI_cursor_find(self.name.as_ptr());
            if !portal.is_null() {
                pg_sys::SPI_cursor_close(portal);
            }
        }
    }
}

#[repr(C)]
struct Receiver<'a> {
    base: pg_sys::DestReceiver,
    each: &'a mut dyn FnMut(Fetched<'_>),
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn receive(
    slot: *mut pg_sys::TupleTableSlot,
    receiver: *mut pg_sys::DestReceiver,
) -> bool {
    // SAFETY: the executor passes the receiver that fetch() gave it, whose first field is the base; after
    // slot_getsomeattrs_int() as many values of the slot are valid.
    unsafe {
        let width = (*(*slot).tts_tupleDescriptor).natts;
        if c_int::from((*slot).tts_nvalid) < width {
            pg_sys::slot_getsomeattrs_int(slot, width);
        }
        let values = std::slice::from_raw_parts((*slot).tts_values, width as usize);
        let nulls = std::slice::from_raw_parts((*slot).tts_isnull, width as usize);
        ((*receiver.cast::<Receiver>()).each)(Fetched { values, nulls });
    }
    true
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn start_up(
    _receiver: *mut pg_sys::DestReceiver,
    _operation: c_int,
    _desc: pg_sys::TupleDesc,
) {
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn shut_down(_receiver: *mut pg_sys::DestReceiver) {}

/// `"schema"."table"`, quoted where needed.
pub fn qualified(schema: &str, table: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(table))
}

/// A name as an identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text as a string literal.
pub fn literal(text: &str) -> String {
    let escaped = text.replace('\'', "''");
    if escaped.contains('\\') {
        format!(" E'{}'", escaped.replace('\\', "\\\\"))
    } else {
        format!("'{escaped}'")
    }
}

/// The name of a type, so that a literal can be cast to it without losing anything.
pub fn type_name(type_oid: pg_sys::Oid) -> String {
    let flags = pg_sys::FORMAT_TYPE_TYPEMOD_GIVEN | pg_sys::FORMAT_TYPE_FORCE_QUALIFY;
    // SAFETY: returns a C string; with a type modifier of -1 given, bpchar and bit are written without a length.
    unsafe {
        let base = pg_sys::getBaseType(type_oid);
        CStr::from_ptr(pg_sys::format_type_extended(base, -1, flags as _))
            .to_string_lossy()
            .into_owned()
    }
}

/// An array of texts, in the current memory context, as a parameter of a query.
pub fn text_array(texts: &[Vec<u8>]) -> (pg_sys::Oid, Datum) {
    // SAFETY: each text is copied into a varlena of its own, and these into the array.
    unsafe {
        let mut datums: Vec<Datum> = texts
            .iter()
            .map(|text| {
                pg_sys::cstring_to_text_with_len(text.as_ptr().cast(), text.len() as c_int).into()
            })
            .collect();
        let length = datums.len() as c_int;
        let align = pg_sys::TYPALIGN_INT as std::ffi::c_char;
        let array = pg_sys::construct_array(
            datums.as_mut_ptr(),
            length,
            pg_sys::TEXTOID,
            -1,
            false,
            align,
        );
        (pg_sys::TEXTARRAYOID, array.into())
    }
}

/// An array of int8, likewise.
pub fn int8_array(numbers: &[i64]) -> (pg_sys::Oid, Datum) {
    let mut datums: Vec<Datum> = numbers.iter().map(|number| Datum::from(*number)).collect();
    let align = pg_sys::TYPALIGN_DOUBLE as std::ffi::c_char;
    // SAFETY: the values are copied into the array.
    let array = unsafe {
        pg_sys::construct_array(
            datums.as_mut_ptr(),
            datums.len() as c_int,
            pg_sys::INT8OID,
            8,
            true,
            align,
        )
    };
    (pg_sys::INT8ARRAYOID, array.into())
}

/// Values as the literal of an array of texts; None is NULL.
pub fn array_literal(values: impl Iterator<Item = Option<Vec<u8>>>) -> Vec<u8> {
    let mut literal = vec![b'{'];
    for (i, value) in values.enumerate() {
        if i > 0 {
            literal.push(b',');
        }
        let Some(value) = value else {
            literal.extend_from_slice(b"NULL");
            continue;
        };
        literal.push(b'"');
        for byte in value {
            if matches!(byte, b'"' | b'\\') {
                literal.push(b'\\');
            }
            literal.push(byte);
        }
        literal.push(b'"');
    }
    literal.push(b'}');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_literals() {
        let values = [Some(b"a\"b\\,{".to_vec()), None, Some(vec![])];
        let literal = array_literal(values.into_iter());
        assert_eq!(literal, br#"{"a\"b\\,{",NULL,""}"#);
    }
}
