//! Why a row is in a shape or not, and what it costs to know: what `explain_shape` shows in psql.

use std::time::Instant;

use pgrx::JsonB;
use pgrx::PgSqlErrorCode::{ERRCODE_INSUFFICIENT_PRIVILEGE, ERRCODE_INVALID_PARAMETER_VALUE};
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

use super::definition::Definition;
use super::group::Group;
use super::member::{frozen, indexes};
use super::named::{self, Asked};
use super::place::{self, open_table};
use super::tuple::{Effect, Table};
use super::window::Log;
use crate::error::{Error, OrRaise, Result};
use crate::pg::expr::{self, Condition, Refused};
use crate::pg::image::Row;
use crate::pg::memory::Context;
use crate::pg::owner::owns_relation;
use crate::pg::query::{Cursor, Goal, identifier, literal, qualified, type_name};
use crate::pg::reading::Latest;
use crate::pg::role::AsRole;

/// One line: what is done, with which condition, what came of it for the row, and what it costs.
type Line = (&'static str, Option<String>, Option<String>, Option<f64>);

/// A value of a row's key, as text.
type KeyText = Option<String>;

/// How often something is done to find out what it costs.
const TIMES: u32 = 1000;

/// A shape by itself, as the feed has it among others.
struct Explainer {
    group: Group,
    conditions: Vec<Condition>,
    /// What the group is asked for.
    clause: u32,
}

/// What is known of a row.
struct Verdict {
    found: bool,
    /// For each condition: it is true of the row, and what evaluating it costs.
    conditions: Vec<(bool, f64)>,
    is_in: bool,
    /// What looking it up costs.
    look_up: f64,
}

impl Explainer {
    fn judge(&mut self, row: Row) -> Verdict {
        let scratch = Context::new();
        let conditions = self.conditions.iter().map(|condition| {
            let scope = &mut self.group.scope;
            scope.set_constants(&condition.compiled, None);
            let rows = vec![&row; TIMES as usize];
            let started = Instant::now();
            let answers = scope.matches(&condition.compiled, &rows);
            (answers[0], nanoseconds(started))
        });
        let conditions = conditions.collect();
        let effects = [Effect::of_row(row)];
        let routers: Vec<usize> = (0..self.group.routers.len()).collect();
        let started = Instant::now();
        for _ in 1..TIMES {
            self.group.route(&effects, &routers, &scratch);
        }
        let routed = self.group.route(&effects, &routers, &scratch);
        let look_up = nanoseconds(started);
        let work = self.group.work(&routed.candidates);
        let found = !routed.hits.is_empty() || !work.is_empty();
        let evaluated = self.group.evaluate(&work, &routed.candidates, &effects);
        let mut hits = routed.hits.iter().chain(&evaluated);
        Verdict {
            found,
            conditions,
            is_in: hits.any(|hit| hit.clause() == self.clause),
            look_up,
        }
    }
}

/// Nanoseconds of one of [`TIMES`], in whole ones.
fn nanoseconds(started: Instant) -> f64 {
    (started.elapsed().as_nanos() as f64 / f64::from(TIMES)).round()
}

/// `hides`: rows of the table that the caller must learn nothing of, not even what the first one costs.
fn explain(definition: &Definition, key: Option<&[KeyText]>, hides: bool) -> Result<Vec<Line>> {
    let _role = AsRole::enter(&definition.role)?;
    let (frozen, mut lines_of_sets) = sets(definition)?;
    let definition = &frozen;
    let table = open_table(definition)?;
    let relid = Oid::from_u32(definition.relid);
    let clause = definition.where_text.as_deref();
    let clause = clause.map(|text| expr::reanalyze(relid, text)).transpose();
    let clause =
        clause.map_err(|Refused(why)| Error::Sql(ERRCODE_INVALID_PARAMETER_VALUE, why, ""))?;
    let lifted = clause.as_ref().map(expr::Where::lift);
    let mut group = Group::new(definition)?;
    let number = group.add(0, definition, lifted.as_ref());
    let conditions = clause.map_or_else(Vec::new, |clause| clause.conditions(relid));
    let mut explainer = Explainer {
        group,
        conditions,
        clause: number,
    };
    let verdict = match hides {
        true => None,
        false => read(definition, &table, key, &mut explainer)?,
    };
    let index = match &lifted {
        None => vec![("every row", None)],
        Some(lifted) if lifted.accesses.is_none() => vec![("no index", None)],
        Some(lifted) => lifted
            .entries(|column| identifier(table.name_of(column)))
            .into_iter()
            .map(|entry| ("index", Some(entry)))
            .collect(),
    };
    lines_of_sets.extend(lines(index, &explainer.conditions, verdict.as_ref(), key));
    Ok(lines_of_sets)
}

/// The shape with the sets of its subqueries as they are now, and what there is to say of them.
fn sets(definition: &Definition) -> Result<(Definition, Vec<Line>)> {
    if definition.inner.is_empty() {
        return Ok((definition.clone(), Vec::new()));
    }
    let analyzed = definition.analyzed()?;
    let mut lines: Vec<Line> = Vec::new();
    for select in analyzed.selects() {
        for statement in indexes::missing(select)? {
            let line = ("missing index", Some(statement), None, None);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    let position = place::pin(definition)?.position;
    let log = Log::lock();
    let _latest = Latest::take();
    let (frozen, sizes) = frozen::with_sizes(definition, &log, position)?;
    let sizes = sizes
        .into_iter()
        .map(|(text, size)| ("set", Some(text), Some(size.to_string()), None));
    Ok((frozen, sizes.chain(lines).collect()))
}

fn lines(
    index: Vec<(&'static str, Option<String>)>,
    conditions: &[Condition],
    verdict: Option<&Verdict>,
    key: Option<&[KeyText]>,
) -> Vec<Line> {
    let of_row = verdict.filter(|_| key.is_some());
    let mut lines: Vec<Line> = index
        .into_iter()
        .map(|(step, text)| (step, text, None, None))
        .collect();
    if let (Some(first), Some(verdict)) = (lines.first_mut(), verdict) {
        let found = if verdict.found { "found" } else { "not found" };
        first.2 = of_row.map(|_| found.to_string());
        first.3 = Some(verdict.look_up);
    }
    for (place, condition) in conditions.iter().enumerate() {
        let answer = |verdict: &Verdict| {
            let is_true = verdict.conditions[place].0;
            if is_true { "true" } else { "not true" }.to_string()
        };
        lines.push((
            "evaluate",
            Some(condition.text.clone()),
            of_row.map(answer),
            verdict.map(|verdict| verdict.conditions[place].1),
        ));
    }
    if let Some(key) = key {
        let result = match of_row {
            None => "no such row",
            Some(verdict) if verdict.is_in => "in",
            Some(_) => "not in",
        };
        let texts: Vec<&str> = key
            .iter()
            .map(|text| text.as_deref().unwrap_or("NULL"))
            .collect();
        lines.push(("row", Some(texts.join(", ")), Some(result.into()), None));
    }
    lines
}

/// Reads a row by its key, or any, as the current user, and has it judged. None if there is none.
fn read(
    definition: &Definition,
    table: &Table,
    key: Option<&[KeyText]>,
    explainer: &mut Explainer,
) -> Result<Option<Verdict>> {
    let readable = |place: &usize| {
        let name = table.name_of(*place);
        definition.columns.iter().any(|column| column == name)
            || explainer.group.columns.contains(place)
    };
    let mut wanted: Vec<usize> = (0..table.width()).filter(readable).collect();
    for clause in explainer.group.clauses.iter().flatten() {
        wanted.extend(&explainer.group.template(clause).columns);
    }
    let column = |place: usize| {
        if wanted.contains(&place) {
            identifier(table.name_of(place))
        } else {
            "null".into()
        }
    };
    let columns: Vec<String> = (0..table.width()).map(column).collect();
    let only = if table.partitioned { "" } else { "only " };
    let from = qualified(&definition.schema, &definition.table);
    let mut sql = format!("select {} from {only}{from}", columns.join(", "));
    if let Some(key) = key {
        if key.len() != table.key.len() {
            let message = format!("the key has {} columns", table.key.len());
            return Err(Error::Sql(ERRCODE_INVALID_PARAMETER_VALUE, message, ""));
        }
        let equal = key.iter().zip(&table.key).map(|(text, place)| {
            let name = identifier(table.name_of(*place));
            match text {
                // Without a key all columns tell a row, of which some may be null and some types have no equality.
                None => format!("{name} is null"),
                Some(text) if !table.keyed => format!("{name}::text = {}", literal(text)),
                Some(text) => {
                    let of_type = type_name(table.type_of(*place));
                    format!("{name} = {}::{of_type}", literal(text))
                }
            }
        });
        sql += &format!(" where {}", equal.collect::<Vec<_>>().join(" and "));
    }
    let _latest = Latest::take();
    let cursor = Cursor::open(&sql, Goal::FirstRows);
    let mut verdict = None;
    cursor.fetch(1, &mut |row| verdict = Some(explainer.judge(row.row())));
    cursor.close();
    Ok(verdict)
}

/// `shapefeed.explain_shape`: how a shape's rows are found, and whether a row is one.
#[pg_extern(sql = false)]
#[allow(
    clippy::type_complexity,
    reason = "the macro wants the row type spelled out"
)]
fn explain_shape(
    relation: Option<Oid>,
    clause: Option<String>,
    params: Option<Vec<Option<String>>>,
    columns: Option<Vec<String>>,
    key: Option<Vec<Option<String>>>,
    shape: Option<String>,
    named: Option<JsonB>,
) -> TableIterator<
    'static,
    (
        name!(step, &'static str),
        name!(condition, Option<String>),
        name!(result, Option<String>),
        name!(cost_ns, Option<f64>),
    ),
> {
    let asked = Asked {
        relation,
        clause,
        params,
        columns,
        replica: None,
        shape,
        named,
    };
    let definition = named::define(asked).or_raise();
    let hides = !definition.policies.is_empty() && !owns_relation(definition.relid);
    if key.is_some() && hides {
        let message = "must be the owner of the table to ask about one of its rows".to_string();
        let hint = "Row-level security applies to the table, and the row may be one that it hides.";
        Error::Sql(ERRCODE_INSUFFICIENT_PRIVILEGE, message, hint).raise();
    }
    TableIterator::new(explain(&definition, key.as_deref(), hides).or_raise())
}
