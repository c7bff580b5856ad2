//! Statements that are made for a client's operation: run as the current user, their values parsed by the types' own input
//! functions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;

use pgrx::Spi;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, Datum, Oid, PgOid};
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiResult, SpiTupleTable};

/// Plans that are kept at most.
const KEPT: usize = 500;

type Plans = HashMap<(String, Vec<Oid>), Rc<OwnedPreparedStatement>>;

thread_local! {
    static PLANS: RefCell<Plans> = RefCell::default();
}

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
    execute(sql, &arguments, |rows| Ok(rows.len()))
}

/// Runs a statement, whose plan is kept, and reads what it gives. Raises what is wrong with it.
pub fn execute<T>(
    sql: &str,
    arguments: &[DatumWithOid<'_>],
    read: impl FnOnce(SpiTupleTable<'_>) -> SpiResult<T>,
) -> T {
    let result = Spi::connect_mut(|client| {
        let plan = planned(client, sql, arguments)?;
        read(client.update(&*plan, None, arguments)?)
    });
    result.expect("what Postgres finds wrong it raises")
}

fn planned(
    client: &SpiClient<'_>,
    sql: &str,
    arguments: &[DatumWithOid<'_>],
) -> SpiResult<Rc<OwnedPreparedStatement>> {
    let types: Vec<Oid> = arguments.iter().map(DatumWithOid::oid).collect();
    let key = (sql.to_owned(), types);
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(&key).cloned()) {
        return Ok(plan);
    }
    let types: Vec<PgOid> = key.1.iter().map(|oid| PgOid::from(*oid)).collect();
    let plan = Rc::new(client.prepare_mut(sql, &types)?.keep());
    PLANS.with_borrow_mut(|plans| {
        if plans.len() >= KEPT {
            plans.clear();
        }
        plans.insert(key, plan.clone());
    });
    Ok(plan)
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
