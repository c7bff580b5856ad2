//! Which tables are open for writing: `shapefeed.writable`.

use pgrx::PgSqlErrorCode as Code;
use pgrx::Spi;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

use crate::capture::tracked::as_owner;
use crate::error::{Error, OrRaise, Result};
use crate::pg::owner::owns_relation;
use crate::pg::relation::{self, Lock, Relation};
use crate::pg::statement::execute;
use crate::pg::xact;

/// Operations that clients may do on a table. Call it with the owner's rights.
pub fn operations(relid: u32) -> Vec<String> {
    let query = "select operations from shapefeed.writable where relid = $1::oid";
    execute(query, &[Oid::from_u32(relid).into()], |rows| {
        let found = if rows.is_empty() {
            None
        } else {
            rows.first().get_one()?
        };
        Ok(found.unwrap_or_default())
    })
}

fn check(relid: Oid) -> Result<()> {
    let facts = Relation::open(relid, Lock::AccessShare).map(|table| table.facts());
    let Some(facts) = facts else {
        let message = format!("there is no table with oid {}", relid.to_u32());
        return Err(Error::Sql(Code::ERRCODE_UNDEFINED_TABLE, message, ""));
    };
    let name = relation::quoted_name(facts.relid);
    let is_system = ["pg_catalog", "information_schema", "shapefeed"].contains(&&*facts.schema);
    if !matches!(facts.kind, 'r' | 'p') || is_system || facts.persistence == 't' {
        let message = format!("{name} cannot be opened for writing");
        return Err(Error::Unsupported(message, "Only user tables can."));
    }
    check_owner(facts.relid)
}

fn check_owner(relid: u32) -> Result<()> {
    if owns_relation(relid) {
        return Ok(());
    }
    let message = format!("must be owner of table {}", relation::quoted_name(relid));
    let hint = "What clients may write is for the table's owner to say.";
    Err(Error::Sql(
        Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
        message,
        hint,
    ))
}

fn given(table: Option<Oid>) -> Result<Oid> {
    let message = "the table is null".into();
    table.ok_or(Error::Sql(
        Code::ERRCODE_NULL_VALUE_NOT_ALLOWED,
        message,
        "",
    ))
}

fn open(table: Option<Oid>, operations: Option<Vec<String>>) -> Result<()> {
    let table = given(table)?;
    check(table)?;
    let mut operations = operations.unwrap_or_default();
    operations.sort_unstable();
    operations.dedup();
    let is_known = |it: &String| ["insert", "update", "delete"].contains(&it.as_str());
    if operations.is_empty() || !operations.iter().all(is_known) {
        let message = "operations are some of insert, update and delete".into();
        return Err(Error::Sql(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            message,
            "",
        ));
    }
    let insert = "insert into shapefeed.writable (relid, operations) values ($1::oid, $2)
                  on conflict (relid) do update set operations = excluded.operations";
    as_owner(|| Spi::run_with_args(insert, &[table.into(), operations.into()]))
        .expect("table writable takes the row");
    Ok(())
}

/// `shapefeed._allow_writes`: opens a table.
#[pg_extern(sql = false)]
fn allow_writes(table: Option<Oid>, operations: Option<Vec<String>>) {
    xact::require_writable(c"shapefeed.allow_writes()");
    open(table, operations).or_raise();
}

/// `shapefeed._disallow_writes`: closes a table.
#[pg_extern(sql = false)]
fn disallow_writes(table: Option<Oid>) {
    xact::require_writable(c"shapefeed.disallow_writes()");
    let table = given(table).or_raise();
    check_owner(table.to_u32()).or_raise();
    let delete = "delete from shapefeed.writable where relid = $1::oid";
    as_owner(|| Spi::run_with_args(delete, &[table.into()]))
        .expect("table writable can be written");
}
