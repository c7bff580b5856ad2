//! A query that Postgres plans and runs, read through a cursor without copying its rows.

use std::ffi::{CStr, CString, c_char, c_int};

use pgrx::pg_sys::{self, Datum};

use super::image::Row;
use super::list::cells;

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
    /// Plans a SELECT of tables under the active snapshot, as the current user, and gets ready to run it. The right to its
    /// columns is for the caller to check, and so are the policies of row-level security: they are a part of a shape's where
    /// clause, as they are at its position, and Postgres would add those that are now.
    pub fn open(sql: &str, goal: Goal) -> Cursor {
        Cursor::open_with(sql, &[], goal)
    }

    /// The same of a SELECT with parameters, none of them NULL: the type and value of each.
    pub fn open_with(sql: &str, params: &[(pg_sys::Oid, Datum)], goal: Goal) -> Cursor {
        let sql = CString::new(sql).expect("text that comes from Postgres has no zero bytes");
        let fast = if goal == Goal::FirstRows {
            pg_sys::CURSOR_OPT_FAST_PLAN
        } else {
            0
        };
        let options = (pg_sys::CURSOR_OPT_NO_SCROLL | fast) as c_int;
        // SAFETY: as PerformCursorOpen() does for a query without views. What the portal needs is made in its memory; it lives
        // until the transaction ends.
        let name = unsafe {
            let portal = pg_sys::CreateNewPortal();
            (*portal).visible = false;
            let caller = pg_sys::MemoryContextSwitchTo((*portal).portalContext);
            let (params, mut types) = parameters(params);
            let text = pg_sys::pstrdup(sql.as_ptr());
            let query = analyzed(text, &mut types);
            let plan = pg_sys::pg_plan_query(query, text, options, params);
            let plans = pg_sys::lappend(std::ptr::null_mut(), plan.cast());
            let tag = pg_sys::CommandTag::CMDTAG_SELECT;
            let none = std::ptr::null_mut();
            pg_sys::PortalDefineQuery(portal, std::ptr::null(), text, tag, plans, none);
            (*portal).cursorOptions = options;
            pg_sys::MemoryContextSwitchTo(caller);
            pg_sys::PortalStart(portal, params, 0, pg_sys::GetActiveSnapshot());
            CStr::from_ptr((*portal).name).to_owned()
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

/// Parameters in the current memory context, where their values need not be, and their types.
unsafe fn parameters(params: &[(pg_sys::Oid, Datum)]) -> (pg_sys::ParamListInfo, Vec<pg_sys::Oid>) {
    // SAFETY: the list has room for as many parameters; copyParamList() copies their values, too.
    unsafe {
        let list = pg_sys::makeParamList(params.len() as c_int);
        let places = (*list).params.as_mut_slice(params.len());
        for (place, (type_oid, value)) in places.iter_mut().zip(params) {
            place.ptype = *type_oid;
            place.value = *value;
            place.isnull = false;
            place.pflags = pg_sys::PARAM_FLAG_CONST as u16;
        }
        let types = params.iter().map(|(type_oid, _)| *type_oid);
        (pg_sys::copyParamList(list), types.collect())
    }
}

/// A SELECT of tables, for whose columns nobody's right is asked for.
unsafe fn analyzed(text: *const c_char, types: &mut [pg_sys::Oid]) -> *mut pg_sys::Query {
    // SAFETY: the parser gives one statement for the text of one.
    unsafe {
        let statements = pg_sys::raw_parser(text, pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        let statement = cells(statements)[0].ptr_value.cast::<pg_sys::RawStmt>();
        let none = std::ptr::null_mut();
        let count = types.len() as c_int;
        #[cfg(feature = "pg14")]
        let query = pg_sys::parse_analyze(statement, text, types.as_mut_ptr(), count, none);
        #[cfg(not(feature = "pg14"))]
        let query =
            pg_sys::parse_analyze_fixedparams(statement, text, types.as_mut_ptr(), count, none);
        ask_for_no_right(query);
        query
    }
}

#[cfg(any(feature = "pg14", feature = "pg15"))]
unsafe fn ask_for_no_right(query: *mut pg_sys::Query) {
    // SAFETY: the cells of a range table are its entries, a subquery's is a query.
    unsafe {
        for cell in cells((*query).rtable) {
            let entry = cell.ptr_value.cast::<pg_sys::RangeTblEntry>();
            (*entry).requiredPerms = 0;
            if !(*entry).subquery.is_null() {
                ask_for_no_right((*entry).subquery);
            }
        }
    }
}

#[cfg(not(any(feature = "pg14", feature = "pg15")))]
unsafe fn ask_for_no_right(query: *mut pg_sys::Query) {
    // SAFETY: the cells of a range table are its entries, a subquery's is a query.
    unsafe {
        for cell in cells((*query).rteperminfos) {
            (*cell.ptr_value.cast::<pg_sys::RTEPermissionInfo>()).requiredPerms = 0;
        }
        for cell in cells((*query).rtable) {
            let entry = cell.ptr_value.cast::<pg_sys::RangeTblEntry>();
            if !(*entry).subquery.is_null() {
                ask_for_no_right((*entry).subquery);
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
