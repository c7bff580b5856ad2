//! Values as JSON text: Postgres' own text output, in a JSON string. Common types are written without a call.

use std::ffi::CStr;

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum, FmgrInfo, Oid};

use super::image::varlena_bytes;
use super::memory::Context;
use super::relation::Relation;
use crate::error::Error;
use crate::shape::message::{escape, escape_key, put_string};

/// How values of a type become text.
enum Output {
    Int2,
    Int4,
    Int8,
    Bool,
    /// The bytes of the varlena are the text.
    Text,
    Function {
        info: Box<FmgrInfo>,
        is_varlena: bool,
    },
}

/// A row goes to who asks for it as one value, and no value of Postgres has more than 1 GB.
const LARGEST_ROW_BYTES: usize = (1 << 30) - (1 << 20);
/// A larger value of bytea has a longer text than that.
const LARGEST_VALUE_BYTES: usize = LARGEST_ROW_BYTES / 2;

/// What the error says that a row raises which is larger than that, and its hint.
pub const TOO_LARGE: &str = "a row is too large to be sent";
/// See [`TOO_LARGE`].
pub const TOO_LARGE_HINT: &str = "Leave its large columns out of the shape.";

fn refuse_row() -> ! {
    let code = PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;
    Error::Sql(code, TOO_LARGE.into(), TOO_LARGE_HINT).raise()
}

impl Output {
    /// Of a type; the function's own memory comes from `context`.
    fn of(type_oid: Oid, context: &Context) -> Output {
        let (mut function, mut is_varlena) = (Oid::INVALID, false);
        // SAFETY: looks the type up in the catalog, and raises if it has no output function.
        unsafe { pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut is_varlena) };
        match function.to_u32() {
            pg_sys::F_INT2OUT => Output::Int2,
            pg_sys::F_INT4OUT => Output::Int4,
            pg_sys::F_INT8OUT => Output::Int8,
            pg_sys::F_BOOLOUT => Output::Bool,
            pg_sys::F_TEXTOUT | pg_sys::F_VARCHAROUT | pg_sys::F_BPCHAROUT | pg_sys::F_JSON_OUT => {
                Output::Text
            }
            _ => {
                let mut info = Box::<FmgrInfo>::default();
                // SAFETY: the function exists; the context outlives the info, which the same value owns.
                unsafe { pg_sys::fmgr_info_cxt(function, &mut *info, context.raw()) };
                Output::Function { info, is_varlena }
            }
        }
    }
}

/// A column of a table or query, to be written as JSON.
pub struct Column {
    /// Its place in a row, from 0.
    pub index: usize,
    /// `"name":`.
    label: Vec<u8>,
    output: Output,
}

impl Column {
    /// A column of a table, counted from 0; it is read at `index` of a row.
    pub fn new(table: &Relation, column: usize, index: usize, context: &Context) -> Column {
        // SAFETY: the relation is open, and the column is one of its own.
        let (name, type_oid) = unsafe {
            let desc = pgrx::PgTupleDesc::from_pg_unchecked((*table.raw()).rd_att);
            let attribute = desc.get(column).expect("the column is one of the table's");
            (attribute.name().to_string(), attribute.atttypid)
        };
        let mut label = Vec::new();
        put_string(name.as_bytes(), &mut label);
        label.push(b':');
        Column {
            index,
            label,
            output: Output::of(type_oid, context),
        }
    }

    /// Appends `"name":"value"`. What the output function allocates goes with the current memory context.
    #[inline]
    pub fn put_member(&mut self, value: Option<Datum>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.label);
        match value {
            None => out.extend_from_slice(b"null"),
            Some(value) => {
                out.push(b'"');
                self.with_text(value, |text, plain| {
                    if plain {
                        out.extend_from_slice(text)
                    } else {
                        escape(text, out)
                    }
                });
                out.push(b'"');
                if out.len() > LARGEST_ROW_BYTES {
                    refuse_row();
                }
            }
        }
    }

    /// Appends `/"value"`, escaped, as a key has it.
    pub fn put_key(&mut self, value: Option<Datum>, out: &mut Vec<u8>) {
        match value {
            None => out.extend_from_slice(b"/_"),
            Some(value) => {
                out.extend_from_slice(b"/\\\"");
                self.with_text(value, |text, plain| {
                    if plain {
                        out.extend_from_slice(text)
                    } else {
                        escape_key(text, out)
                    }
                });
                out.extend_from_slice(b"\\\"");
            }
        }
    }

    /// The value's text.
    pub fn text(&mut self, value: Datum) -> Vec<u8> {
        self.with_text(value, |text, _| text.to_vec())
    }

    /// Hands the text of a value to `f`, and whether it needs no escapes for sure.
    #[inline]
    fn with_text<T>(&mut self, value: Datum, f: impl FnOnce(&[u8], bool) -> T) -> T {
        match &mut self.output {
            Output::Int2 => with_integer(i64::from(value.value() as i16), |text| f(text, true)),
            Output::Int4 => with_integer(i64::from(value.value() as i32), |text| f(text, true)),
            Output::Int8 => with_integer(value.value() as i64, |text| f(text, true)),
            Output::Bool => f(if value.value() as u8 != 0 { b"t" } else { b"f" }, true),
            // SAFETY: the type's values are varlenas of text.
            Output::Text => f(unsafe { varlena_bytes(value) }, false),
            Output::Function { info, is_varlena } => {
                if *is_varlena && raw_size(value) > LARGEST_VALUE_BYTES {
                    refuse_row();
                }
                // SAFETY: the value is of the type that the function is for; it returns a C string.
                let text =
                    unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall(&mut **info, value)) };
                f(text.to_bytes(), false)
            }
        }
    }
}

/// Bytes of a varlena, not compressed.
fn raw_size(value: Datum) -> usize {
    // SAFETY: the value is a varlena, of which this reads the header.
    unsafe {
        let varlena = value.cast_mut_ptr::<pg_sys::varlena>();
        let is_short = pgrx::varatt_is_1b(varlena) && !pgrx::varatt_is_1b_e(varlena);
        if is_short {
            pgrx::varsize_1b(varlena)
        } else {
            pg_sys::toast_raw_datum_size(value)
        }
    }
}

/// The decimal digits of `value`, made on the stack.
#[inline]
fn with_integer<T>(value: i64, f: impl FnOnce(&[u8]) -> T) -> T {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    f(&digits[at..])
}
