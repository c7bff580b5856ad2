//! Statements that are made for a client's operation: run as the current user, their values parsed by the types' own input
//! functions.

use std::ffi::CString;

use pgrx::Spi;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, Datum, Oid};

/// A value for `$1`, `$2` …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// Its type.
    pub type_oid: u32,
    /// Its text; None is NULL.
    pub text: Option<&'a str>,
}

/// Runs a statement and returns how many rows it has touched or found.
pub fn run(sql: &str, values: &[Value<'_>]) -> usize {
    let arguments: Vec<DatumWithOid<'_>> = values.iter().map(argument).collect();
    let rows =
        Spi::connect_mut(|client| client.update(sql, None, &arguments).map(|rows| rows.len()));
    rows.expect("a statement that succeeds has a count")
}

fn argument<'a>(value: &Value<'_>) -> DatumWithOid<'a> {
    let type_oid = Oid::from_u32(value.type_oid);
    // SAFETY: the datum is a value of the type, in memory that lives as long as the statement that called us.
    match value.text {
        Some(text) => unsafe { DatumWithOid::new(parse(type_oid, text), type_oid) },
        None => DatumWithOid::null_oid(type_oid),
    }
}

fn parse(type_oid: Oid, text: &str) -> Datum {
    let text = CString::new(text).expect("no jsonb has a zero byte");
    let (mut function, mut parameter) = (Oid::INVALID, Oid::INVALID);
    // SAFETY: the input function of the type gets a C string, and raises an error if it is not one of its values.
    unsafe {
        pg_sys::getTypeInputInfo(type_oid, &mut function, &mut parameter);
        pg_sys::OidInputFunctionCall(function, text.as_ptr().cast_mut(), parameter, -1)
    }
}
