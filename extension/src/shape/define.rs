//! From a request to a [`Definition`], or to what is wrong with the request (docs/protocol.md, section 2.1).

use std::collections::BTreeMap;

use pgrx::JsonB;
use pgrx::PgSqlErrorCode::{
    ERRCODE_INSUFFICIENT_PRIVILEGE, ERRCODE_INVALID_PARAMETER_VALUE, ERRCODE_UNDEFINED_COLUMN,
    ERRCODE_UNDEFINED_TABLE,
};
use serde_json::{Value, json};

use super::definition::{Definition, Inner, check_rights, identity, key_names, names_of, numbers};
use super::member::attach::may_read;
use super::named;
use super::schema_header::schema_header;
use crate::error;
use crate::pg::attempt::attempt;
use crate::pg::expr::{self, Refused};
use crate::pg::role::{self, AsRole};
use crate::pg::table::{self, Column, Found, Table};

type Result<T> = std::result::Result<T, Answer>;

/// Why there is no definition.
enum Answer {
    /// The request is wrong in this field.
    Wrong(&'static str, String),
    /// The role may not have this shape.
    Denied(String),
}

impl Answer {
    fn into_error(self) -> error::Error {
        let (code, text) = match self {
            Answer::Wrong("table", text) => (ERRCODE_UNDEFINED_TABLE, text),
            Answer::Wrong("columns", text) => (ERRCODE_UNDEFINED_COLUMN, text),
            Answer::Wrong("where", text) => {
                let message = format!("invalid where clause: {text}");
                (ERRCODE_INVALID_PARAMETER_VALUE, message)
            }
            Answer::Wrong(field, text) => {
                (ERRCODE_INVALID_PARAMETER_VALUE, format!("{field} {text}"))
            }
            Answer::Denied(text) => (ERRCODE_INSUFFICIENT_PRIVILEGE, text),
        };
        error::Error::Sql(code, text, "")
    }

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
    /// Settings that say who the caller is, by name.
    settings: Vec<(String, String)>,
    /// Values of a named shape's parameters: an object, or null.
    named: Value,
}

/// `shapefeed._define`: the definition of the shape that is asked for, or what is wrong with the request.
#[pgrx::pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of an SQL function
fn _define(
    relation: Vec<String>,
    clause: Option<String>,
    params: Option<Vec<Option<String>>>,
    columns: Option<Vec<String>>,
    replica: String,
    log: String,
    role: Option<String>,
    settings: Option<JsonB>,
    named: Option<JsonB>,
) -> JsonB {
    let request = Request {
        relation,
        clause,
        params: params.unwrap_or_default(),
        columns,
        replica,
        log,
        role,
        settings: settings.map(read_settings).unwrap_or_default(),
        named: named.map_or(Value::Null, |named| named.0),
    };
    JsonB(match define(request) {
        Ok(definition) => json!(definition),
        Err(answer) => answer.into_json(),
    })
}

/// The settings of an object whose values are texts.
pub fn read_settings(settings: JsonB) -> Vec<(String, String)> {
    let Value::Object(settings) = settings.0 else {
        return Vec::new();
    };
    let text = |(name, value)| match value {
        Value::String(value) => Some((name, value)),
        _ => None,
    };
    settings.into_iter().filter_map(text).collect()
}

/// The definition of a shape for the current user, or the error that says what is wrong with it.
pub fn for_current_user(
    relation: Vec<String>,
    clause: Option<String>,
    params: Option<Vec<Option<String>>>,
    columns: Option<Vec<String>>,
    replica: String,
) -> error::Result<Definition> {
    let request = Request {
        relation,
        clause,
        params: params.unwrap_or_default(),
        columns,
        replica,
        log: "full".into(),
        role: None,
        settings: Vec::new(),
        named: Value::Null,
    };
    define(request).map_err(Answer::into_error)
}

/// The request that is kept under a name.
fn named(name: &str, asked: &Request) -> Result<Request> {
    let given = [
        ("where", asked.clause.is_some()),
        ("params", !asked.params.is_empty()),
        ("columns", asked.columns.is_some()),
    ];
    if let Some((field, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(Answer::Wrong(field, "can't be given with shape".into()));
    }
    let kept = named::find(name).map_err(|error| Answer::Wrong("shape", error.to_string()))?;
    let bound = kept.bind(&asked.named, Some(&asked.settings));
    let (clause, params) = bound.map_err(|why| Answer::Wrong("params", why))?;
    let replica = if asked.replica == "default" {
        kept.replica
    } else {
        asked.replica.clone()
    };
    Ok(Request {
        relation: vec![kept.schema, kept.table],
        clause,
        params,
        columns: kept.columns,
        replica,
        log: asked.log.clone(),
        role: asked.role.clone(),
        settings: asked.settings.clone(),
        named: Value::Null,
    })
}

fn define(request: Request) -> Result<Definition> {
    let request = match &request.relation[..] {
        [name] => named(name, &request)?,
        _ => request,
    };
    let replica = serde_json::from_value(json!(request.replica))
        .map_err(|_| Answer::Wrong("replica", "is invalid".into()))?;
    let log = serde_json::from_value(json!(request.log))
        .map_err(|_| Answer::Wrong("log", "is invalid".into()))?;
    let role = request.role.unwrap_or_else(role::current);
    let guard = AsRole::enter(&role).map_err(|error| Answer::Denied(error.to_string()))?;
    guard.set(&request.settings);
    let table = find_table(&request.relation)?;
    let selected = select_columns(&table, request.columns.as_deref())?;
    let Clause {
        text: where_text,
        columns: where_columns,
        uses,
        inner,
        leaky: _,
    } = secured(
        &table,
        read_clause(&table, request.clause.as_deref(), &request.params)?,
    )?;
    let where_names = names_of(&table, &where_columns);
    let policies = policies_of(table.relid.to_u32(), &inner);
    let read = [
        numbers(selected.iter().copied()),
        where_columns,
        identity(&table),
    ]
    .concat();
    check_rights(&table, read).map_err(Answer::Denied)?;
    drop(guard);

    let own = Inner {
        relid: table.relid.to_u32(),
        schema: table.schema.clone(),
        table: table.name.clone(),
    };
    let all = std::iter::once(&own).chain(&inner);
    let is_untracked =
        |table: &&Inner| !table::is_tracked(pgrx::pg_sys::Oid::from_u32(table.relid));
    let untracked: Vec<Inner> = all.filter(is_untracked).cloned().collect();
    let mut definition = Definition {
        relid: table.relid.to_u32(),
        where_text,
        columns: selected.iter().map(|column| column.name.clone()).collect(),
        all_columns: request.columns.is_none(),
        replica,
        log,
        role,
        policies,
        hash: String::new(),
        key: key_names(&table),
        uses,
        where_columns: where_names,
        relids: table.relids.iter().map(|relid| relid.to_u32()).collect(),
        schema_header: schema_header(selected.into_iter(), &table.key),
        tracked: untracked.is_empty(),
        untracked,
        inner,
        schema: table.schema,
        table: table.name,
    };
    definition.hash = definition.digest();
    Ok(definition)
}

fn find_table(relation: &[String]) -> Result<Table> {
    let [schema, name] = relation else {
        return Err(Answer::Wrong(
            "table",
            "a schema and a table are expected".into(),
        ));
    };
    let wrong = |text: String| Err(Answer::Wrong("table", text));
    match attempt(|| table::find(schema, name)) {
        Ok(Found::Table(table)) => Ok(table),
        Ok(Found::Missing) => wrong(format!(
            "Table \"{schema}\".\"{name}\" does not exist. If the table name contains capitals or special characters \
             you must quote it."
        )),
        Ok(Found::Refused(why)) => wrong(format!(
            "Table \"{schema}\".\"{name}\" {why}, no shape can be made of it."
        )),
        Err(error) => Err(Answer::Denied(error.message)),
    }
}

/// The columns that are asked for, in the table's order.
fn select_columns<'t>(table: &'t Table, names: Option<&[String]>) -> Result<Vec<&'t Column>> {
    let asked = |name: &String| names.is_none_or(|names| names.contains(name));
    let wrong = |text: String, columns: Vec<String>, hint: &str| {
        if columns.is_empty() {
            Ok(())
        } else {
            Err(Answer::Wrong("columns", text + &columns.join(", ") + hint))
        }
    };
    let missing = key_names(table)
        .into_iter()
        .filter(|name| !asked(name))
        .collect();
    wrong(
        "The list of columns must include all primary key columns, missing: ".into(),
        missing,
        "",
    )?;
    let exists = |name: &&String| table.columns.iter().any(|column| column.name == **name);
    let unknown = names
        .unwrap_or_default()
        .iter()
        .filter(|name| !exists(name))
        .cloned()
        .collect();
    wrong(
        "The following columns are not found on the table: ".into(),
        unknown,
        "",
    )?;

    let selected: Vec<_> = table
        .columns
        .iter()
        .filter(|column| asked(&column.name))
        .collect();
    let computed = selected
        .iter()
        .filter(|column| column.computed_on_read)
        .map(|column| column.name.clone())
        .collect();
    let hint = match names {
        Some(_) => "",
        None => {
            ". You can exclude them from the shape by explicitly listing which columns to fetch in the 'columns' query \
             param"
        }
    };
    wrong(
        "The following columns are generated and cannot be included in the shape: ".into(),
        computed,
        hint,
    )?;
    Ok(selected)
}

/// A where clause that was read.
#[derive(Default)]
pub(super) struct Clause {
    /// Its canonical text; None if every row is in.
    pub text: Option<String>,
    /// The table's columns that it names.
    pub columns: Vec<i16>,
    uses: String,
    /// The tables of its subqueries.
    inner: Vec<Inner>,
    /// It might tell of rows that it is evaluated for.
    pub leaky: bool,
}

fn read_clause(table: &Table, clause: Option<&str>, params: &[Option<String>]) -> Result<Clause> {
    let Some(clause) = clause else {
        return Ok(Clause::default());
    };
    let wrong = |Refused(text)| Answer::Wrong("where", text);
    if expr::has_subqueries(clause) {
        return read_subqueries(table, clause, params);
    }
    canonical(table, clause, params, None).map_err(wrong)
}

/// A clause with the policies for the current user put in, where row-level security applies.
fn secured(table: &Table, own: Clause) -> Result<Clause> {
    let cannot = |why: &str| {
        let why = expr::without_place(why);
        let name = format!("\"{}\".\"{}\"", table.schema, table.name);
        Answer::Denied(format!("no shape can be made of table {name}: {why}"))
    };
    let text =
        expr::secured(table.relid, own.text.as_deref()).map_err(|Refused(why)| cannot(&why))?;
    let Some(text) = text else { return Ok(own) };
    let both = read_clause(table, Some(&text), &[]);
    both.map_err(|answer| match answer {
        Answer::Wrong(_, why) => {
            let tables = std::iter::once(table.relid.to_u32());
            let tables = tables.chain(own.inner.iter().map(|inner| inner.relid));
            let policy = tables
                .into_iter()
                .find_map(|relid| expr::unmaintainable(pgrx::pg_sys::Oid::from_u32(relid)));
            cannot(&policy.unwrap_or(why))
        }
        denied => denied,
    })
}

/// Digests of policies for the current user, of each table to which row-level security applies.
fn policies_of(relid: u32, inner: &[Inner]) -> BTreeMap<u32, String> {
    let all = std::iter::once(relid).chain(inner.iter().map(|inner| inner.relid));
    let state = |relid: u32| {
        let state = expr::policy_state(pgrx::pg_sys::Oid::from_u32(relid));
        state.map(|state| (relid, state))
    };
    all.filter_map(state).collect()
}

fn read_subqueries(table: &Table, clause: &str, params: &[Option<String>]) -> Result<Clause> {
    let wrong = |Refused(text)| Answer::Wrong("where", text);
    if table.key.is_empty() {
        let text = "subqueries need a table with a primary key";
        return Err(wrong(Refused(text.into())));
    }
    let analyze = |clause: &str, params| {
        expr::analyze_subqueries(table.relid, clause, params, None).map_err(wrong)
    };
    let text = analyze(clause, params)?.text;
    // What other functions are given is this text: it must be read back as itself.
    let analyzed = analyze(&text, &[])?;
    if analyzed.text != text {
        return Err(wrong(Refused(format!(
            "the clause has no canonical form: {text}"
        ))));
    }
    may_read(&analyzed).map_err(Answer::Denied)?;
    let mut inner: Vec<Inner> = Vec::new();
    for select in analyzed.selects() {
        let relid = pgrx::pg_sys::Oid::from_u32(select.relid);
        if let Found::Table(found) = table::by_oid(relid)
            && !std::rc::Rc::ptr_eq(select, &analyzed.root)
        {
            inner.push(Inner {
                relid: select.relid,
                schema: found.schema,
                table: found.name,
            });
        }
    }
    inner.sort_unstable();
    inner.dedup();
    Ok(Clause {
        columns: analyzed.root.columns.clone(),
        text: Some(text),
        uses: analyzed.uses,
        inner,
        leaky: true,
    })
}

/// Reads a clause that may name only these columns, if they are given.
pub(super) fn canonical(
    table: &Table,
    clause: &str,
    params: &[Option<String>],
    known: Option<&[i16]>,
) -> std::result::Result<Clause, Refused> {
    let given = expr::analyze_among(table.relid, clause, params, known)?;
    let columns = given.named_columns.clone();
    let Some(text) = given.text.clone() else {
        return Ok(Clause {
            columns,
            ..Clause::default()
        });
    };
    // What other functions are given is this text: it must be read back as what it was written from.
    let again = expr::analyze(table.relid, &text, &[])?;
    if again.text.as_ref() != Some(&text) || !again.is(&given) {
        return Err(Refused(format!("the clause has no canonical form: {text}")));
    }
    Ok(Clause {
        text: Some(text),
        columns,
        leaky: given.is_leaky(),
        uses: given.uses,
        inner: Vec::new(),
    })
}
