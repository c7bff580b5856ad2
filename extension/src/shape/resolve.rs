//! Shapes looked at again, many in a row: whether their roles still have the right to them, and their where clauses.

use std::collections::HashMap;
use std::rc::Rc;

use pgrx::PgSqlErrorCode::{ERRCODE_INSUFFICIENT_PRIVILEGE, ERRCODE_INVALID_PARAMETER_VALUE};

use super::definition::{check_rights, identity, numbers_of, require_policies, undefined};
use crate::error::{Error, Result};
use crate::pg::attempt::attempt;
use crate::pg::expr::{self, Lifted, Refused};
use crate::pg::memory::Context;
use crate::pg::role::AsRole;
use crate::pg::table::{self, Found, Table};

/// What is looked at of a shape.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// For whom it is evaluated.
    pub role: &'a str,
    /// Its table.
    pub relid: u32,
    /// The table's schema.
    pub schema: &'a str,
    /// The table's name.
    pub table: &'a str,
    /// What it selects.
    pub columns: &'a [String],
    /// Its where clause in canonical form; None if every row is in.
    pub where_text: Option<&'a str>,
    /// The digest of the table's policies that are a part of it; None if row-level security does not apply.
    pub policies: Option<&'a str>,
}

/// What has been found out about roles and tables stays known while this lives, which must not be beyond a transaction.
#[derive(Default)]
pub struct Resolver {
    role: Option<(String, AsRole)>,
    /// Of the current role.
    tables: HashMap<u32, Rc<Table>>,
    scratch: Context,
}

impl Resolver {
    /// Hands the where clause of a shape whose role still has the right to it to `then`, which acts as that role and whose
    /// memory is free afterwards; or says why the shape is no more.
    pub fn resolve<T>(
        &mut self,
        asked: Asked<'_>,
        then: impl FnOnce(Option<&Lifted>) -> Result<T>,
    ) -> std::result::Result<T, String> {
        self.act_as(asked.role).map_err(|error| error.to_string())?;
        let known = self.tables.get(&asked.relid).cloned();
        let scratch = &self.scratch;
        let outcome = attempt(|| {
            scratch.run(|| {
                let table = known.map_or_else(|| find(asked), Ok)?;
                let lifted = check(asked, &table)?;
                Ok((then(lifted.as_ref())?, table))
            })
        });
        self.scratch.reset();
        let outcome = outcome.map_err(|caught| caught.message)?;
        let (value, table) = outcome.map_err(|error: Error| error.to_string())?;
        self.tables.insert(asked.relid, table);
        Ok(value)
    }

    /// Acts as a role from here on.
    pub fn act_as(&mut self, role: &str) -> Result<()> {
        if self
            .role
            .as_ref()
            .is_none_or(|(current, _)| current != role)
        {
            self.role = None; // one is left before another is entered
            self.tables.clear();
            self.role = Some((role.to_string(), AsRole::enter(role)?));
        }
        Ok(())
    }
}

fn find(asked: Asked<'_>) -> Result<Rc<Table>> {
    match table::find(asked.schema, asked.table) {
        Found::Table(table) if table.relid.to_u32() == asked.relid => Ok(Rc::new(table)),
        _ => Err(undefined(asked.schema, asked.table)),
    }
}

fn check(asked: Asked<'_>, table: &Table) -> Result<Option<Lifted>> {
    require_policies(asked.relid, asked.policies)?;
    let mut columns = numbers_of(table, asked.columns)?;
    if table.key.is_empty() {
        columns.extend(identity(table)); // a key is among the columns of a shape; inner selects need none
    }
    let clause = asked
        .where_text
        .map(|text| expr::reanalyze(table.relid, text))
        .transpose();
    let clause =
        clause.map_err(|Refused(why)| Error::Sql(ERRCODE_INVALID_PARAMETER_VALUE, why, ""))?;
    columns.extend(clause.iter().flat_map(|clause| &clause.columns));
    check_rights(table, columns)
        .map_err(|message| Error::Sql(ERRCODE_INSUFFICIENT_PRIVILEGE, message, ""))?;
    Ok(clause.map(|clause| clause.lift()))
}
