//! Named shapes: requests without parameters that are kept under a name. What they name is looked up each time that they
//! are used, with the rights of who uses them.

use pgrx::JsonB;
use pgrx::PgSqlErrorCode as Code;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;
use serde_json::Value;

use super::define::for_current_user;
use super::definition::Definition;
use super::parameters::{self, Parameters};
use crate::capture::tracked::as_owner;
use crate::error::{Error, OrRaise, Result};
use crate::pg::owner::owns_relation;
use crate::pg::query::qualified;
use crate::pg::relation::{self, Lock, Relation};
use crate::pg::role;
use crate::pg::{database, invalidation, xact};

/// What a person says of a shape: its table and what is wanted of it, or its name.
#[derive(Default)]
pub(super) struct Asked {
    pub relation: Option<Oid>,
    pub clause: Option<String>,
    pub params: Option<Vec<Option<String>>>,
    pub columns: Option<Vec<String>>,
    pub replica: Option<String>,
    pub shape: Option<String>,
    /// Values of the named shape's parameters.
    pub named: Option<JsonB>,
}

/// The shape of the current user that is asked for.
pub(super) fn define(asked: Asked) -> Result<Definition> {
    let Asked {
        relation,
        clause,
        params,
        columns,
        replica,
        shape,
        named,
    } = asked;
    let Some(name) = shape else {
        let (schema, table) = names(relation)?;
        if named.is_some() {
            return Err(invalid(
                "values of parameters are given, and no shape's name".into(),
                "Of a table's where clause, they are $1, $2 … and given as params.",
            ));
        }
        let replica = replica.unwrap_or("default".into());
        return for_current_user(vec![schema, table], clause, params, columns, replica);
    };
    if relation.is_some() || clause.is_some() || params.is_some() || columns.is_some() {
        return Err(Error::Sql(
            Code::ERRCODE_INVALID_PARAMETER_VALUE,
            "a shape's name and a table are given".into(),
            "A named shape has its table, condition and columns: give either.",
        ));
    }
    let kept = find(&name)?;
    let given = named.map_or(Value::Null, |named| named.0);
    let bound = kept.bind(&given, None);
    let (clause, params) =
        bound.map_err(|why| invalid(why, "View shapefeed.shapes has the parameters."))?;
    for_current_user(
        vec![kept.schema, kept.table],
        clause,
        Some(params),
        kept.columns,
        replica.unwrap_or(kept.replica),
    )
}

fn invalid(message: String, hint: &'static str) -> Error {
    Error::Sql(Code::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

/// Schema and name of a table.
fn names(relation: Option<Oid>) -> Result<(String, String)> {
    let undefined = |message| Error::Sql(Code::ERRCODE_UNDEFINED_TABLE, message, "");
    let Some(relation) = relation else {
        return Err(Error::Sql(
            Code::ERRCODE_UNDEFINED_TABLE,
            "a table is expected".into(),
            "Give a table, or the name of a shape.",
        ));
    };
    let facts = Relation::open(relation, Lock::AccessShare).map(|relation| relation.facts());
    let facts = facts.ok_or_else(|| {
        undefined(format!(
            "relation with OID {} does not exist",
            relation.to_u32()
        ))
    })?;
    Ok((facts.schema, facts.name))
}

/// A named shape as it is kept.
pub(super) struct Kept {
    pub schema: String,
    pub table: String,
    /// The table of that name, if there is one now.
    relid: Option<Oid>,
    pub clause: Option<String>,
    pub columns: Option<Vec<String>>,
    pub replica: String,
    params: Parameters,
}

impl Kept {
    /// Its where clause with a number for each parameter, and their values: of those that are given, and of the claims in
    /// these settings, or in the session's.
    pub fn bind(
        &self,
        given: &Value,
        settings: Option<&[(String, String)]>,
    ) -> std::result::Result<(Option<String>, Vec<Option<String>>), String> {
        let none = serde_json::Map::new();
        let given = match given {
            Value::Object(given) => given,
            Value::Null => &none,
            _ => return Err("values of parameters are an object by name".into()),
        };
        let claims = match settings {
            Some(settings) => {
                let found = settings
                    .iter()
                    .find(|(name, _)| name == "request.jwt.claims");
                found.map(|(_, value)| value.clone())
            }
            None => role::setting(c"request.jwt.claims"),
        };
        let claims = claims.and_then(|claims| serde_json::from_str(&claims).ok());
        let clause = self.clause.as_deref().unwrap_or("true");
        let claims = claims.unwrap_or(Value::Null);
        let (bound, values) = parameters::bind(clause, &self.params, given, &claims)?;
        Ok((self.clause.is_some().then_some(bound), values))
    }
}

/// The shape of a name.
pub(super) fn find(name: &str) -> Result<Kept> {
    let query = r#"select s."schema", s."table", s."where", s.columns, s.replica, s.params,
                          (select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                           where n.nspname = s."schema" and c.relname = s."table")
                   from shapefeed.shape s where s.name = $1"#;
    let kept = as_owner(|| {
        Spi::connect(|client| {
            let rows = client.select(query, Some(1), &[name.into()])?;
            if rows.is_empty() {
                return Ok(None);
            }
            let row = rows.first();
            let text = |place| Ok::<_, spi::Error>(row.get::<String>(place)?.unwrap_or_default());
            Ok::<_, spi::Error>(Some(Kept {
                schema: text(1)?,
                table: text(2)?,
                clause: row.get(3)?,
                columns: row.get(4)?,
                replica: text(5)?,
                params: parameters_of(row.get::<JsonB>(6)?),
                relid: row.get(7)?,
            }))
        })
    });
    kept.expect("table shape can be read").ok_or_else(|| {
        Error::Sql(
            Code::ERRCODE_UNDEFINED_OBJECT,
            format!("shape \"{name}\" does not exist"),
            "View shapefeed.shapes lists the shapes that have a name.",
        )
    })
}

/// As they are kept: what create_shape has read can be read again.
fn parameters_of(kept: Option<JsonB>) -> Parameters {
    kept.and_then(|kept| parameters::declared(kept.0).ok())
        .unwrap_or_default()
}

/// The parameters of a shape that is made, all of types that there are.
fn declared(params: Option<JsonB>) -> Result<Parameters> {
    let hint = "Write them as '{\"user_id\": \"int4\"}'.";
    let params = params.map_or(Ok(Parameters::new()), |params| {
        parameters::declared(params.0)
    });
    let params = params.map_err(|why| invalid(why, hint))?;
    for parameter in params.values() {
        let name = parameter.type_name();
        let query = "select pg_catalog.to_regtype($1) is not null";
        if Spi::get_one_with_args::<bool>(query, &[name.into()]) != Ok(Some(true)) {
            return Err(invalid(format!("type \"{name}\" does not exist"), hint));
        }
    }
    Ok(params)
}

fn not_owner(what: String) -> Error {
    Error::Sql(
        Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("must be owner of {what}"),
        "Naming shapes of a table is for the table's owner. Whoever may read it can ask for the shape without a name.",
    )
}

fn create(name: &str, mut asked: Asked, params: Option<JsonB>) -> Result<()> {
    if name.is_empty() {
        let hint = "Clients ask for the shape by its name.";
        let message = "the name of the shape is empty".into();
        return Err(Error::Sql(Code::ERRCODE_INVALID_NAME, message, hint));
    }
    let (clause, columns) = (asked.clause.clone(), asked.columns.clone());
    let replica = asked.replica.clone().unwrap_or("default".into());
    let params = declared(params)?;
    asked.clause = clause
        .as_deref()
        .map(|clause| parameters::without_values(clause, &params));
    let definition = define(asked)?;
    if !owns_relation(definition.relid) {
        let table = relation::quoted_name(definition.relid);
        return Err(not_owner(format!("table {table}")));
    }
    let insert = r#"insert into shapefeed.shape (name, "schema", "table", "where", columns, replica, params)
                    values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing returning true"#;
    let values = [
        name.into(),
        definition.schema.into(),
        definition.table.into(),
        clause.into(),
        columns.into(),
        replica.into(),
        JsonB(serde_json::json!(params)).into(),
    ];
    let is_new = as_owner(|| Spi::get_one_with_args::<bool>(insert, &values));
    if is_new == Ok(Some(true)) {
        return Ok(());
    }
    Err(Error::Sql(
        Code::ERRCODE_DUPLICATE_OBJECT,
        format!("shape \"{name}\" already exists"),
        "Drop it first by shapefeed.drop_shape().",
    ))
}

fn forget(name: &str) -> Result<()> {
    let kept = find(name)?;
    let may = match kept.relid {
        Some(relid) => owns_relation(relid.to_u32()),
        None => relation::our_extension().is_some_and(database::owns_extension),
    };
    if !may {
        let table = qualified(&kept.schema, &kept.table);
        return Err(not_owner(format!("table {table}")));
    }
    let delete = "delete from shapefeed.shape where name = $1";
    as_owner(|| Spi::run_with_args(delete, &[name.into()])).expect("table shape can be written");
    // Live requests rely on definitions for as long as nothing is told of their tables.
    if let Some(relid) = kept.relid {
        invalidation::tell_of(relid.to_u32());
    }
    Ok(())
}

/// `shapefeed.create_shape`: keeps a shape under a name.
#[pg_extern(sql = false)]
fn create_shape(
    name: Option<String>,
    relation: Option<Oid>,
    clause: Option<String>,
    columns: Option<Vec<String>>,
    replica: Option<String>,
    params: Option<JsonB>,
) {
    xact::require_writable(c"shapefeed.create_shape()");
    let asked = Asked {
        relation,
        clause,
        columns,
        replica,
        ..Asked::default()
    };
    create(&name.unwrap_or_default(), asked, params).or_raise();
}

/// `shapefeed.drop_shape`: forgets a named shape.
#[pg_extern(sql = false)]
fn drop_shape(name: Option<String>) {
    xact::require_writable(c"shapefeed.drop_shape()");
    forget(&name.unwrap_or_default()).or_raise();
}
