//! Subsets: rows of a shape as of the newest batch end, chosen, ordered and cut as a client asks for.
//!
//! Postgres does all of it in one query over the rows as they are now, except those that transactions after the batch
//! have touched, and over those rows as they were then.

use pgrx::JsonB;
use pgrx::PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE;
use pgrx::pg_sys::Datum;
use pgrx::prelude::*;
use serde_json::{Value, json};

use super::define::{Clause, canonical};
use super::definition::{Definition, check_rights};
use super::member::frozen;
use super::overlay::{Filter, Touched};
use super::place;
use super::rows::{END, Pieces, RowWriter, Selection, fetch, names};
use super::tuple::Table;
use super::window::{Batch, Log};
use crate::error::{Error, OrRaise, Result};
use crate::pg::expr::{Order, Refused, analyze_order};
use crate::pg::image;
use crate::pg::memory::Context;
use crate::pg::query::{self, Cursor, Goal, identifier};
use crate::pg::reading::{self, Latest};
use crate::pg::role::AsRole;
use crate::pg::table::{self, Found};

/// First byte of a piece: what is known of the subset, as JSON.
const METADATA: u8 = b'M';
/// First byte of a piece: what is wrong with the request, as JSON.
const REFUSED: u8 = b'X';
/// A client that asks for several subsets at the same time goes on where the answer that comes last says: that must not
/// be behind what another one lacks. So it is a batch end that is older than such requests take.
const SETTLED_US: i64 = 10_000_000;
const FETCH_ROWS: usize = 500;

/// What is asked for.
#[derive(Clone)]
struct Request {
    definition: Definition,
    clause: Option<String>,
    params: Vec<Option<String>>,
    order_by: Option<String>,
    limit: Option<i64>,
    offset: Option<i64>,
    queryable: Option<Vec<String>>,
    mark: i32,
}

/// The request's clauses in Postgres' words.
struct Clauses {
    condition: Option<String>,
    /// The columns that it names.
    columns: Vec<i16>,
    /// The condition might tell of rows that it is evaluated for.
    leaky: bool,
    order: Order,
}

/// A subset that is being read: pieces of it, in order.
struct Subset {
    role: String,
    pieces: Pieces,
    rows: Option<(Cursor, RowWriter)>,
    scratch: Context,
}

impl Subset {
    fn begin(request: &Request) -> Result<Subset> {
        reading::may_read()?;
        let _role = request.definition.enter()?;
        let mut subset = Subset {
            role: request.definition.role.clone(),
            pieces: Pieces::default(),
            rows: None,
            scratch: Context::new(),
        };
        let mut table = place::open_table(&request.definition)?;
        let clauses = match request.clauses()? {
            Ok(clauses) => clauses,
            Err(errors) => {
                subset.pieces.mark(REFUSED, &errors.to_string());
                return Ok(subset);
            }
        };
        let selection = Selection::new(&request.definition, &table)?;
        let log = Log::lock();
        let _latest = Latest::take();
        let batch = place::newest_end(&log, &request.definition, &table)?;
        let metadata = request.metadata(&log, &table, &batch);
        subset.pieces.mark(METADATA, &metadata.to_string());
        let frozen = Request {
            definition: frozen::at(&request.definition, &log, batch.position)?,
            ..request.clone()
        };
        let query = Query::new(&frozen, &clauses, &selection, &table);
        let cursor = query.open(log, &mut table, &batch)?;
        let writer = RowWriter::of_query(&selection, &table).marked(request.mark);
        subset.rows = Some((cursor, writer));
        Ok(subset)
    }

    /// Reads on until there is a whole piece.
    fn read_on(&mut self) -> Result<()> {
        let _role = AsRole::enter(&self.role)?;
        let Subset {
            pieces,
            rows,
            scratch,
            ..
        } = self;
        while let Some((cursor, writer)) = rows
            && !pieces.is_ready()
        {
            let got = fetch(cursor, FETCH_ROWS, &mut |row| {
                scratch.run(|| pieces.put(|out| writer.put(|index| row.get(index), out, |_| true)));
                scratch.reset();
            })?;
            if got < FETCH_ROWS {
                pieces.mark(END, "");
                if let Some((cursor, _)) = rows.take() {
                    cursor.close();
                }
            }
        }
        Ok(())
    }
}

impl Iterator for Subset {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if !self.pieces.is_ready() {
            self.read_on().or_raise();
        }
        self.pieces.pop()
    }
}

impl Request {
    /// The clauses, or what is wrong with them, by field.
    fn clauses(&self) -> Result<std::result::Result<Clauses, Value>> {
        let definition = &self.definition;
        let Found::Table(table) = table::find(&definition.schema, &definition.table) else {
            return Err(Error::Sql(
                ERRCODE_UNDEFINED_TABLE,
                "the table is gone".into(),
                "",
            ));
        };
        let number = |name: &String| {
            let column = table.columns.iter().find(|column| column.name == *name);
            column.map(|column| column.number)
        };
        let numbers = |names: &[String]| names.iter().filter_map(number).collect::<Vec<i16>>();
        let known = self.queryable.as_deref().map(numbers);
        let selected = numbers(&definition.columns);
        let condition = self
            .clause
            .as_deref()
            .map(|text| canonical(&table, text, &self.params, known.as_deref()));
        let Clause {
            text: condition,
            columns,
            leaky,
            ..
        } = match condition.transpose() {
            Ok(found) => found.unwrap_or_default(),
            Err(refused) => return Ok(Err(json!({"where": in_words_of_subsets(refused)}))),
        };
        let order = self
            .order_by
            .as_deref()
            .map(|text| analyze_order(table.relid, text, &selected, known.as_deref()));
        let order = match order.transpose() {
            Ok(order) => order.unwrap_or_default(),
            Err(Refused(text)) => return Ok(Err(json!({"order_by": [text]}))),
        };
        let read = [&columns[..], &order.columns].concat();
        Ok(match check_rights(&table, read) {
            Ok(()) => Ok(Clauses {
                condition,
                columns,
                leaky,
                order,
            }),
            Err(text) => Err(json!({"where": [text]})),
        })
    }

    fn metadata(&self, log: &Log, table: &Table, batch: &Batch) -> Value {
        let text = |xid: &u64| xid.to_string();
        let beginning = place::beginning(log, &self.definition, table);
        let settled = log.batch_before(batch.position, SETTLED_US);
        let snapshot = &batch.snapshot;
        json!({
            "xmin": text(&snapshot.xmin),
            "xmax": text(&snapshot.xmax),
            "xip_list": snapshot.xip.iter().map(text).collect::<Vec<_>>(),
            "position": batch.position,
            "settled": settled.unwrap_or(beginning).max(beginning).min(batch.position),
        })
    }
}

/// What a client is told of a where clause.
fn in_words_of_subsets(Refused(text): Refused) -> Value {
    if text.contains("cannot use subquery") {
        return json!(["Subqueries are not allowed in subsets"]);
    }
    // Known by clients as an error of the query, which is not a list.
    match text.find("invalid input value for enum") {
        Some(start) => json!(text[start..]),
        None => json!([text]),
    }
}

/// The query that reads a subset. Wherever it names rows of the table, it calls them `base`.
struct Query<'a> {
    request: &'a Request,
    clauses: &'a Clauses,
    selection: &'a Selection,
    /// Places of the columns that its outer part reads.
    needed: Vec<usize>,
}

impl<'a> Query<'a> {
    fn new(
        request: &'a Request,
        clauses: &'a Clauses,
        selection: &'a Selection,
        table: &Table,
    ) -> Query<'a> {
        let ordered = clauses.order.columns.iter().map(|number| place_of(*number));
        let needed = selection.selected.iter().chain(&table.key).copied();
        Query {
            request,
            clauses,
            selection,
            needed: distinct(needed.chain(ordered)),
        }
    }

    fn open(&self, log: Log, table: &mut Table, batch: &Batch) -> Result<Cursor> {
        let definition = &self.request.definition;
        let mut filter = Filter::new(definition)?;
        let condition = self.clauses.columns.iter().map(|number| place_of(*number));
        let read = self.needed.iter().chain(filter.columns()).copied();
        let read = distinct(read.chain(condition));
        let before = &batch.snapshot;
        let mut touched = Touched::read(&log, definition, table, &mut filter, &read, before)?;
        drop(log);
        let goal = match self.request.limit {
            Some(_) => Goal::FirstRows,
            None => Goal::AllRows,
        };
        if touched.keys.is_empty() {
            return Ok(Cursor::open(&self.sql(table, false), goal));
        }
        if !table.keyed {
            self.keep_counted(&mut touched, table)?;
        }
        let rows = image::array(&mut touched.rows, &read, table.relation());
        let params = [rows, query::text_array(&touched.keys)];
        Ok(Cursor::open_with(&self.sql(table, true), &params, goal))
    }

    /// Keeps those rows of a table without a key that were there: so many are there now, less what they gained.
    fn keep_counted(&self, touched: &mut Touched, table: &Table) -> Result<()> {
        let keys = format!(
            "select {} as key from {} as base{}",
            key_of(table),
            self.from(table),
            all_of(&self.shape())
        );
        let counts = format!(
            "select gone.n, pg_catalog.count(*) from ({keys}) as now join pg_catalog.unnest($1) with ordinality \
             as gone(key, n) on gone.key::pg_catalog.text[] = now.key group by gone.n"
        );
        let mut counted = vec![0; touched.rows.len()];
        let cursor = Cursor::open_with(&counts, &[query::text_array(&touched.keys)], Goal::AllRows);
        let int8 = |value: Option<Datum>| value.map_or(0, |value| value.value() as i64);
        while fetch(&cursor, FETCH_ROWS, &mut |row| {
            counted[int8(row.get(0)) as usize - 1] = int8(row.get(1));
        })? == FETCH_ROWS
        {}
        cursor.close();
        let mut were_there = counted.iter().zip(&touched.gained);
        touched
            .rows
            .retain(|_| were_there.next().is_some_and(|(now, gained)| now > gained));
        Ok(())
    }

    fn sql(&self, table: &Table, touched: bool) -> String {
        let Request { limit, offset, .. } = *self.request;
        let columns = self.selection.names(table);
        let (base, order) = (self.base(table, touched), self.order_by(table));
        if !touched && table.keyed {
            return format!("select {columns}{base}{order}{}", end(limit, offset));
        }
        let needed = names(table, &self.needed);
        let now = if table.keyed {
            let last = limit.map(|limit| limit.saturating_add(offset.unwrap_or(0)));
            format!("select {needed}{base}{order}{}", end(last, None))
        } else {
            format!("select distinct on ({}) {needed}{base}", key_of(table)) // equal rows are one
        };
        let then = if touched {
            let conditions = all_of(&self.conditions());
            format!(" union all select {needed} from pg_catalog.unnest($1) as base{conditions}")
        } else {
            String::new()
        };
        let end = end(limit, offset);
        format!("select {columns} from (({now}){then}) as base{order}{end}")
    }

    /// The rows that are there now, but for those that were touched.
    fn base(&self, table: &Table, touched: bool) -> String {
        let mut conditions = self.conditions();
        if touched {
            conditions.push(format!(
                "not exists (select from pg_catalog.unnest($2) as gone(key) \
                 where gone.key::pg_catalog.text[] = {})",
                key_of(table)
            ));
        }
        let from = self.from(table);
        format!(" from {from} as base{}", all_of(&conditions))
    }

    fn from(&self, table: &Table) -> String {
        let Definition {
            schema,
            table: name,
            ..
        } = &self.request.definition;
        let only = if table.partitioned { "" } else { "only " };
        format!("{only}{}", query::qualified(schema, name))
    }

    fn shape(&self) -> Vec<String> {
        let text = self.request.definition.where_text.iter();
        text.map(|text| format!("({text})")).collect()
    }

    fn conditions(&self) -> Vec<String> {
        let mut conditions = self.shape();
        let Some(text) = &self.clauses.condition else {
            return conditions;
        };
        // What might tell of a row is asked only of those that policies let pass.
        let guard = self.request.definition.where_text.as_ref();
        match guard.filter(|_| self.clauses.leaky && !self.request.definition.policies.is_empty()) {
            Some(guard) => {
                conditions.push(format!("case when {guard} then ({text}) else false end"));
            }
            None => conditions.push(format!("({text})")),
        }
        conditions
    }

    /// The order that was asked for; rows that are equal in it by their key.
    fn order_by(&self, table: &Table) -> String {
        if self.request.order_by.is_none() {
            return String::new();
        }
        let mut items = self.clauses.order.items.clone();
        items.push(match table.keyed {
            true => names(table, &table.key),
            false => key_of(table),
        });
        format!(" order by {}", items.join(", "))
    }
}

fn place_of(number: i16) -> usize {
    number as usize - 1
}

fn distinct(places: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut places: Vec<usize> = places.collect();
    places.sort_unstable();
    places.dedup();
    places
}

fn all_of(conditions: &[String]) -> String {
    if conditions.is_empty() {
        return String::new();
    }
    format!(" where {}", conditions.join(" and "))
}

fn end(limit: Option<i64>, offset: Option<i64>) -> String {
    let limit = limit.map(|rows| format!(" limit {rows}"));
    let offset = offset.map(|rows| format!(" offset {rows}"));
    limit.into_iter().chain(offset).collect()
}

/// The texts of a row's key as an array, which [`Table::key_literal`] gives of rows in the log.
fn key_of(table: &Table) -> String {
    let text = |place: &usize| {
        let column = format!("base.{}", identifier(table.name_of(*place)));
        // Not IS NULL, which a row of nulls is.
        format!(
            "case when {column} is not distinct from null then null \
             else pg_catalog.format('%s', {column}) end"
        )
    };
    let texts: Vec<String> = table.key.iter().map(text).collect();
    format!("array[{}]::pg_catalog.text[]", texts.join(", "))
}

/// `shapefeed._subset`: rows of a shape as of the newest batch end, in pieces whose first byte says what they are.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of an SQL function
fn _subset(
    definition: JsonB,
    clause: Option<String>,
    params: Option<Vec<Option<String>>>,
    order_by: Option<String>,
    limit: Option<i64>,
    offset: Option<i64>,
    queryable: Option<Vec<String>>,
    mark: i32,
) -> SetOfIterator<'static, Vec<u8>> {
    let definition = Definition::from_jsonb(definition).or_raise();
    let params = params.unwrap_or_default();
    let request = Request {
        definition,
        clause,
        params,
        order_by,
        limit,
        offset,
        queryable,
        mark,
    };
    SetOfIterator::new(Subset::begin(&request).or_raise())
}
