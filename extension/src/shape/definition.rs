//! A shape's definition: what a request asks for, resolved against the catalogs under the caller's rights.

use pgrx::PgSqlErrorCode::{
    ERRCODE_INSUFFICIENT_PRIVILEGE, ERRCODE_INVALID_PARAMETER_VALUE, ERRCODE_UNDEFINED_COLUMN, ERRCODE_UNDEFINED_TABLE,
};
use pgrx::JsonB;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::schema_header::schema_header;
use crate::error::{Error, Result};
use crate::pg::attempt::attempt;
use crate::pg::expr::{self, Refused};
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
    /// Digest of everything else up to here and of `key`, in decimal digits.
    pub hash: String,
    /// Names of the primary key's columns in key order; empty for a table without one.
    pub key: Vec<String>,
    /// The table and the partitions below it.
    #[serde(default)]
    pub relids: Vec<u32>,
    /// The `electric-schema` header.
    #[serde(default)]
    pub schema_header: Value,
    /// Is the table captured?
    #[serde(default)]
    pub tracked: bool,
}

impl Definition {
    /// Reads a definition that [`_define`] gave out.
    pub fn from_jsonb(jsonb: JsonB) -> Result<Definition> {
        let invalid = |why: String| Error::Sql(ERRCODE_INVALID_PARAMETER_VALUE, format!("invalid definition: {why}"), "");
        let definition: Definition = serde_json::from_value(jsonb.0).map_err(|error| invalid(error.to_string()))?;
        if definition.hash != definition.digest() {
            return Err(invalid("its hash is of another one".into()));
        }
        Ok(definition)
    }

    /// Starts to act as the shape's role, whose rights are checked again: they may have been taken away.
    pub fn enter(&self) -> Result<AsRole> {
        let guard = AsRole::enter(&self.role)?;
        let undefined = || {
            let message = format!("table \"{}\".\"{}\" does not exist", self.schema, self.table);
            Error::Sql(ERRCODE_UNDEFINED_TABLE, message, "")
        };
        let Found::Table(table) = table::find(&self.schema, &self.table) else { return Err(undefined()) };
        if table.relid.to_u32() != self.relid {
            return Err(undefined());
        }
        let mut columns = [numbers_of(&table, &self.columns)?, identity(&table)].concat();
        if let Some(text) = &self.where_text {
            let invalid = |Refused(why)| Error::Sql(ERRCODE_INVALID_PARAMETER_VALUE, why, "");
            columns.extend(expr::analyze(table.relid, text, &[]).map_err(invalid)?.columns);
        }
        let denied = |message| Error::Sql(ERRCODE_INSUFFICIENT_PRIVILEGE, message, "");
        check_rights(&table, columns).map_err(denied)?;
        Ok(guard)
    }

    fn digest(&self) -> String {
        let parts = (
            (self.relid, &self.schema, &self.table, &self.where_text, &self.columns, self.all_columns),
            (self.replica, self.log, &self.role, &self.key),
        );
        let bytes = serde_json::to_vec(&parts).expect("strings, numbers and lists of them have a JSON form");
        xxhash_rust::xxh3::xxh3_64(&bytes).to_string()
    }
}

fn numbers_of(table: &Table, names: &[String]) -> Result<Vec<i16>> {
    let number = |name: &String| {
        let column = table.columns.iter().find(|column| column.name == *name).map(|column| column.number);
        column.ok_or_else(|| Error::Sql(ERRCODE_UNDEFINED_COLUMN, format!("column \"{name}\" does not exist"), ""))
    };
    names.iter().map(number).collect()
}

/// Why there is no definition.
enum Answer {
    /// The request is wrong in this field.
    Wrong(&'static str, String),
    /// The role may not have this shape.
    Denied(String),
}

impl Answer {
    fn into_json(self) -> Value {
        match self {
            Answer::Wrong(field, text) => json!({"errors": {field: [text]}}),
            Answer::Denied(text) => json!({"denied": text}),
        }
    }
}

struct Request {
    relation: Vec<String>,
    clause: Option<String>,
    params: Vec<Option<String>>,
    columns: Option<Vec<String>>,
    replica: String,
    log: String,
    role: Option<String>,
}

/// `shapefeed._define`: the definition of the shape that is asked for, or what is wrong with the request.
#[allow(clippy::too_many_arguments)]
#[pgrx::pg_extern(sql = false)]
fn _define(
    relation: Vec<String>,
    clause: Option<String>,
    params: Option<Vec<Option<String>>>,
    columns: Option<Vec<String>>,
    replica: String,
    log: String,
    role: Option<String>,
) -> JsonB {
    let request = Request { relation, clause, params: params.unwrap_or_default(), columns, replica, log, role };
    JsonB(match define(request) {
        Ok(definition) => json!(definition),
        Err(answer) => answer.into_json(),
    })
}

fn define(request: Request) -> std::result::Result<Definition, Answer> {
    let replica = serde_json::from_value(json!(request.replica)).map_err(|_| Answer::Wrong("replica", "is invalid".into()))?;
    let log = serde_json::from_value(json!(request.log)).map_err(|_| Answer::Wrong("log", "is invalid".into()))?;
    let role = request.role.unwrap_or_else(role::current);
    let guard = AsRole::enter(&role).map_err(|error| Answer::Denied(error.to_string()))?;
    let table = find_table(&request.relation)?;
    let selected = select_columns(&table, request.columns.as_deref())?;
    let (where_text, where_columns) = read_clause(&table, request.clause.as_deref(), &request.params)?;
    let read = [numbers(selected.iter().copied()), where_columns, identity(&table)].concat();
    check_rights(&table, read).map_err(Answer::Denied)?;
    drop(guard);

    let mut definition = Definition {
        relid: table.relid.to_u32(),
        where_text,
        columns: selected.iter().map(|column| column.name.clone()).collect(),
        all_columns: request.columns.is_none(),
        replica,
        log,
        role,
        hash: String::new(),
        key: key_names(&table),
        relids: table.relids.iter().map(|relid| relid.to_u32()).collect(),
        schema_header: schema_header(selected.into_iter(), &table.key),
        tracked: table::is_tracked(table.relid),
        schema: table.schema,
        table: table.name,
    };
    definition.hash = definition.digest();
    Ok(definition)
}

fn find_table(relation: &[String]) -> std::result::Result<Table, Answer> {
    let [schema, name] = relation else {
        return Err(Answer::Wrong("table", "a schema and a table are expected".into()));
    };
    let wrong = |text: String| Err(Answer::Wrong("table", text));
    match attempt(|| table::find(schema, name)) {
        Ok(Found::Table(table)) => Ok(table),
        Ok(Found::Missing) => wrong(format!(
            "Table \"{schema}\".\"{name}\" does not exist. If the table name contains capitals or special characters \
             you must quote it."
        )),
        Ok(Found::Refused(why)) => wrong(format!("Table \"{schema}\".\"{name}\" {why}, no shape can be made of it.")),
        Err(error) => Err(Answer::Denied(error.message)),
    }
}

/// The columns that are asked for, in the table's order.
fn select_columns<'t>(table: &'t Table, names: Option<&[String]>) -> std::result::Result<Vec<&'t Column>, Answer> {
    let asked = |name: &String| names.is_none_or(|names| names.contains(name));
    let wrong = |text: String, columns: Vec<String>, hint: &str| {
        if columns.is_empty() { Ok(()) } else { Err(Answer::Wrong("columns", text + &columns.join(", ") + hint)) }
    };
    let missing = key_names(table).into_iter().filter(|name| !asked(name)).collect();
    wrong("The list of columns must include all primary key columns, missing: ".into(), missing, "")?;
    let exists = |name: &&String| table.columns.iter().any(|column| column.name == **name);
    let unknown = names.unwrap_or_default().iter().filter(|name| !exists(name)).cloned().collect();
    wrong("The following columns are not found on the table: ".into(), unknown, "")?;

    let selected: Vec<_> = table.columns.iter().filter(|column| asked(&column.name)).collect();
    let computed = selected.iter().filter(|column| column.computed_on_read).map(|column| column.name.clone()).collect();
    let hint = match names {
        Some(_) => "",
        None => {
            ". You can exclude them from the shape by explicitly listing which columns to fetch in the 'columns' query \
             param"
        }
    };
    wrong("The following columns are generated and cannot be included in the shape: ".into(), computed, hint)?;
    Ok(selected)
}

/// The canonical text of a where clause and the columns that it reads.
fn read_clause(
    table: &Table,
    clause: Option<&str>,
    params: &[Option<String>],
) -> std::result::Result<(Option<String>, Vec<i16>), Answer> {
    let Some(clause) = clause else { return Ok((None, vec![])) };
    let wrong = |Refused(text)| Answer::Wrong("where", text);
    let given = expr::analyze(table.relid, clause, params).map_err(wrong)?;
    let Some(text) = given.text else { return Ok((None, given.named_columns)) };
    // What other functions are given is this text: it must be read back as what it was written from.
    let again = expr::analyze(table.relid, &text, &[]).map_err(wrong)?;
    if again.text.as_ref() != Some(&text) {
        return Err(Answer::Wrong("where", format!("the clause has no canonical form: {text}")));
    }
    Ok((Some(text), given.named_columns))
}

/// Whether the current user may read these columns of every row; if not, why.
fn check_rights(table: &Table, columns: Vec<i16>) -> std::result::Result<(), String> {
    let name = format!("\"{}\".\"{}\"", table.schema, table.name);
    if role::row_security_applies(table.relid) {
        return Err(format!("row-level security applies to table {name}, no shape can be made of it"));
    }
    let Some(unreadable) = role::first_unreadable(table.relid, &columns) else { return Ok(()) };
    let column = table.columns.iter().find(|column| column.number == unreadable);
    let column = column.map_or("?", |column| column.name.as_str());
    Err(format!("permission denied for column \"{column}\" of table {name}"))
}

/// The columns that tell a row from others: the key's, or all.
fn identity(table: &Table) -> Vec<i16> {
    if table.key.is_empty() { numbers(&table.columns) } else { table.key.clone() }
}

fn numbers<'c>(columns: impl IntoIterator<Item = &'c Column>) -> Vec<i16> {
    columns.into_iter().map(|column| column.number).collect()
}

fn key_names(table: &Table) -> Vec<String> {
    let name = |number: &i16| table.columns.iter().find(|column| column.number == *number).map(|c| c.name.clone());
    table.key.iter().filter_map(name).collect()
}
