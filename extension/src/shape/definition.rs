//! A shape's definition: what a request asks for, resolved against the catalogs under the caller's rights.

use std::cell::Cell;
use std::collections::BTreeMap;

use pgrx::JsonB;
use pgrx::PgSqlErrorCode::{
    ERRCODE_INSUFFICIENT_PRIVILEGE, ERRCODE_INVALID_PARAMETER_VALUE, ERRCODE_UNDEFINED_COLUMN,
    ERRCODE_UNDEFINED_TABLE,
};
use pgrx::pg_sys::Oid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use siphasher::sip::SipHasher24;

use super::place;
use crate::error::{Error, Result};
use crate::pg::expr::{self, Refused};
use crate::pg::relation::{our_namespace, relation_oid};
use crate::pg::role::{self, AsRole};
use crate::pg::table::{self, Column, Found, Table};

/// Which columns an update carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replica {
    /// The key and what changed.
    Default,
    /// Every column.
    Full,
}

/// Whether a client starts with the rows that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Log {
    /// It does.
    Full,
    /// It sees changes only.
    ChangesOnly,
}

/// A table of a subquery.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Inner {
    /// The table.
    pub relid: u32,
    /// Its schema's name.
    pub schema: String,
    /// Its name.
    pub table: String,
}

/// What a shape is. Up to `key` it is a function of the request and the catalogs alone, and `hash` names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Definition {
    /// The table.
    pub relid: u32,
    /// Its schema's name.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// The where clause in canonical form, every parameter and session value folded; None if all rows are in.
    #[serde(rename = "where")]
    pub where_text: Option<String>,
    /// Names of the selected columns in the table's order.
    pub columns: Vec<String>,
    /// Were the columns left to the table?
    pub all_columns: bool,
    /// Which columns an update carries.
    pub replica: Replica,
    /// Whether the shape starts with a snapshot.
    pub log: Log,
    /// The role that it is evaluated for.
    pub role: String,
    /// For each table that it is about to which row-level security applies, a digest of the policies, which are a part of the
    /// where clause.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub policies: BTreeMap<u32, String>,
    /// Digest of everything else up to here, of `key` and of `uses`, in decimal digits, made with the log's secret.
    pub hash: String,
    /// Names of the primary key's columns in key order; empty for a table without one.
    pub key: Vec<String>,
    /// A digest of the functions and collations that the where clause depends on; empty if it depends on none.
    #[serde(default)]
    pub uses: String,
    /// Names of the columns that the where clause reads.
    #[serde(default)]
    pub where_columns: Vec<String>,
    /// The tables of the where clause's subqueries, at any depth.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inner: Vec<Inner>,
    /// The table and the partitions below it.
    #[serde(default)]
    pub relids: Vec<u32>,
    /// The `electric-schema` header; nobody asks for it again.
    #[serde(skip_deserializing)]
    pub schema_header: Value,
    /// Are the table and those of subqueries captured?
    #[serde(default)]
    pub tracked: bool,
    /// Those that are not.
    #[serde(skip_deserializing, skip_serializing_if = "Vec::is_empty")]
    pub untracked: Vec<Inner>,
}

impl Definition {
    /// The tables that it is about: its own, and those of its subqueries.
    pub fn relations(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.relid).chain(self.inner.iter().map(|inner| inner.relid))
    }

    /// Reads a definition that `shapefeed._define` gave out.
    pub fn from_jsonb(jsonb: JsonB) -> Result<Definition> {
        Definition::checked(serde_json::from_value(jsonb.0))
    }

    /// The same, from its text.
    pub fn from_text(text: &str) -> Result<Definition> {
        Definition::checked(serde_json::from_str(text))
    }

    fn checked(definition: serde_json::Result<Definition>) -> Result<Definition> {
        let invalid = |why: String| {
            Error::Sql(
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("invalid definition: {why}"),
                "",
            )
        };
        let definition = definition.map_err(|error| invalid(error.to_string()))?;
        if definition.hash != definition.digest() {
            return Err(invalid("its hash is of another one".into()));
        }
        Ok(definition)
    }

    /// Starts to act as the shape's role, whose rights are checked again: they may have been taken away.
    pub fn enter(&self) -> Result<AsRole> {
        let guard = AsRole::enter(&self.role)?;
        let undefined = || undefined(&self.schema, &self.table);
        let Found::Table(table) = table::find(&self.schema, &self.table) else {
            return Err(undefined());
        };
        if table.relid.to_u32() != self.relid {
            return Err(undefined());
        }
        self.require_same_policies()?;
        let mut columns = [numbers_of(&table, &self.columns)?, identity(&table)].concat();
        if !self.inner.is_empty() {
            self.analyzed()?;
        } else if let Some(text) = &self.where_text {
            let invalid = |Refused(why)| Error::Sql(ERRCODE_INVALID_PARAMETER_VALUE, why, "");
            let clause = expr::reanalyze(table.relid, text).map_err(invalid)?;
            self.require_same(&clause.uses)?;
            columns.extend(clause.columns);
        }
        let denied = |message| Error::Sql(ERRCODE_INSUFFICIENT_PRIVILEGE, message, "");
        check_rights(&table, columns).map_err(denied)?;
        Ok(guard)
    }

    /// An error if the policies of its tables are not what they were. To be called while acting as the shape's role.
    pub fn require_same_policies(&self) -> Result<()> {
        self.relations()
            .try_for_each(|relid| require_policies(relid, self.policies_of(relid)))
    }

    /// The digest of a table's policies; none where row-level security does not apply.
    pub fn policies_of(&self, relid: u32) -> Option<&str> {
        self.policies.get(&relid).map(String::as_str)
    }

    /// An error if what the where clause depends on is not what it was.
    pub fn require_same(&self, uses: &str) -> Result<()> {
        require_same(&self.uses, uses)
    }

    /// `hash` as a number.
    pub fn number(&self) -> u64 {
        self.hash.parse().unwrap_or_default()
    }

    /// What `hash` should be.
    pub(super) fn digest(&self) -> String {
        let parts = (
            (
                self.relid,
                &self.schema,
                &self.table,
                &self.where_text,
                &self.columns,
                self.all_columns,
            ),
            (self.replica, self.log, &self.role, &self.key, &self.uses),
        );
        let mut bytes = serde_json::to_vec(&parts)
            .expect("strings, numbers and lists of them have a JSON form");
        if !self.inner.is_empty() {
            let inner = serde_json::to_vec(&self.inner);
            bytes.extend(inner.expect("numbers and strings have a JSON form"));
        }
        if !self.policies.is_empty() {
            let policies = serde_json::to_vec(&self.policies);
            bytes.extend(policies.expect("numbers and strings have a JSON form"));
        }
        SipHasher24::new_with_key(&secret())
            .hash(&bytes)
            .to_string()
    }
}

/// What digests of definitions are made with. Nobody who does not know it can find two with the same one, which would share what
/// is kept of a shape, or make up a definition without policies.
fn secret() -> [u8; 16] {
    thread_local! {
        /// With the table that it is from: the extension may have been made anew.
        static KNOWN: Cell<Option<(Oid, [u8; 16])>> = const { Cell::new(None) };
    }
    let table = our_namespace().and_then(|namespace| relation_oid(namespace, "feed"));
    let table = table.expect("the extension is there: its function runs");
    if let Some((of, secret)) = KNOWN.get()
        && of == table
    {
        return secret;
    }
    let mut secret = [0; 16];
    place::each_row("feed", |row| {
        let bytes: Vec<u8> = row.get(4).expect("secret is not null");
        secret.copy_from_slice(&bytes);
    });
    KNOWN.set(Some((table, secret)));
    secret
}

/// An error if what a where clause depends on is not what it was.
pub(super) fn require_same(old: &str, now: &str) -> Result<()> {
    if old == now {
        return Ok(());
    }
    let why = "a function or collation that the where clause uses is another one now";
    Err(Error::MustRefetch(why.into()))
}

/// An error if the policies for the current user on a table have another digest.
pub(super) fn require_policies(relid: u32, policies: Option<&str>) -> Result<()> {
    let relid = pgrx::pg_sys::Oid::from_u32(relid);
    if expr::policy_state(relid).as_deref() == policies {
        return Ok(());
    }
    let why = "row-level security is not what it was";
    Err(Error::MustRefetch(why.into()))
}

/// The error for a table that is gone.
pub(super) fn undefined(schema: &str, table: &str) -> Error {
    let message = format!("table \"{schema}\".\"{table}\" does not exist");
    Error::Sql(ERRCODE_UNDEFINED_TABLE, message, "")
}

/// Attribute numbers of columns by their names.
pub(super) fn numbers_of(table: &Table, names: &[String]) -> Result<Vec<i16>> {
    let number = |name: &String| {
        let column = table
            .columns
            .iter()
            .find(|column| column.name == *name)
            .map(|column| column.number);
        column.ok_or_else(|| {
            Error::Sql(
                ERRCODE_UNDEFINED_COLUMN,
                format!("column \"{name}\" does not exist"),
                "",
            )
        })
    };
    names.iter().map(number).collect()
}

/// Whether the current user may read these columns, of the rows that policies let pass; if not, why.
pub(super) fn check_rights(table: &Table, columns: Vec<i16>) -> std::result::Result<(), String> {
    if !role::may_use_schema(table.relid) {
        return Err(format!("permission denied for schema \"{}\"", table.schema));
    }
    let name = format!("\"{}\".\"{}\"", table.schema, table.name);
    let Some(unreadable) = role::first_unreadable(table.relid, &columns) else {
        return Ok(());
    };
    let column = table
        .columns
        .iter()
        .find(|column| column.number == unreadable);
    let column = column.map_or("?", |column| column.name.as_str());
    Err(format!(
        "permission denied for column \"{column}\" of table {name}"
    ))
}

/// The columns that tell a row from others: the key's, or all.
pub(super) fn identity(table: &Table) -> Vec<i16> {
    if table.key.is_empty() {
        numbers(&table.columns)
    } else {
        table.key.clone()
    }
}

pub(super) fn numbers<'c>(columns: impl IntoIterator<Item = &'c Column>) -> Vec<i16> {
    columns.into_iter().map(|column| column.number).collect()
}

pub(super) fn key_names(table: &Table) -> Vec<String> {
    names_of(table, &table.key)
}

/// Names of columns by their attribute numbers.
pub(super) fn names_of(table: &Table, numbers: &[i16]) -> Vec<String> {
    let name = |number: &i16| {
        table
            .columns
            .iter()
            .find(|column| column.number == *number)
            .map(|c| c.name.clone())
    };
    numbers.iter().filter_map(name).collect()
}
