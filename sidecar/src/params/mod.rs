//! Parameters of a request, validated in the order of docs/protocol.md ("Validation"): the first stage that finds
//! errors reports all of its own.

mod casts;
mod subset;

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use self::casts::{Casts, casts};
pub use self::subset::{MEMBERS as SUBSET_MEMBERS, Subset, nested};
use crate::handle::Handle;
use crate::identifier::{self, Relation};
use crate::offset::Offset;
use crate::query::{NotText, Query, Value};

const INVALID: &str = "is invalid";
const BLANK: &str = "can't be blank";

/// Errors by field, as they stand in the body of a 400.
pub type FieldErrors = Map<String, Json>;

/// The errors of one field.
pub fn field_error(field: &str, text: impl Into<String>) -> FieldErrors {
    FieldErrors::from_iter([(field.to_owned(), json!([text.into()]))])
}

/// What a shape is made from, as asked for: the key under which its definition is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShapeParams {
    /// What it is a shape of.
    pub source: Source,
    /// Condition.
    pub condition: Option<String>,
    /// `$1…` of the condition.
    pub params: Vec<String>,
    /// Columns; all of them if none were named.
    pub columns: Option<Vec<String>>,
    /// Columns that may be named, if that is bounded.
    pub queryable: Option<Vec<String>>,
    /// What updates and deletes carry.
    pub replica: Replica,
    /// With or without the rows that are there.
    pub log: Log,
    /// Values of a named shape's parameters.
    pub named: BTreeMap<String, String>,
    /// Who asks.
    pub caller: Caller,
}

/// Who asks for a shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The role; None for that of all who ask.
    pub role: Option<String>,
    /// Settings that say more: a JSON object.
    pub settings: Option<String>,
}

impl Caller {
    /// The user that the claims name.
    pub fn subject(&self) -> Option<String> {
        let settings: Json = serde_json::from_str(self.settings.as_deref()?).ok()?;
        Some(settings.get("request.jwt.claim.sub")?.as_str()?.to_owned())
    }
}

/// What a shape is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A table; the rest is said in the request.
    Table(Relation),
    /// A shape that the database has by this name, with all that it says of it.
    Named(String),
}

impl ShapeParams {
    /// All columns of a table's rows, or of none of them, for a caller.
    pub fn of_table(table: Relation, rows: bool, caller: Caller) -> Self {
        ShapeParams {
            source: Source::Table(table),
            condition: (!rows).then(|| "false".into()),
            params: Vec::new(),
            columns: None,
            queryable: None,
            replica: Replica::Default,
            log: Log::Full,
            named: BTreeMap::new(),
            caller,
        }
    }

    /// Bytes that it takes, about.
    pub fn bytes(&self) -> usize {
        let name = match &self.source {
            Source::Named(name) => Some(name),
            Source::Table(_) => None,
        };
        let texts = self.condition.iter().chain(&self.params).chain(name);
        let caller = self.caller.role.iter().chain(&self.caller.settings);
        let named = self.named.iter().flat_map(|(name, value)| [name, value]);
        let texts = texts.chain(caller).chain(named);
        let columns = self.columns.iter().flatten();
        size_of::<Self>()
            + texts
                .chain(columns)
                .map(|text| size_of::<String>() + text.len())
                .sum::<usize>()
    }
}

/// `replica`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Replica {
    /// Keys and changed columns.
    #[default]
    Default,
    /// Whole rows.
    Full,
}

/// `log`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Log {
    /// Snapshot and changes.
    #[default]
    Full,
    /// Changes.
    ChangesOnly,
}

impl Replica {
    /// As on the wire and in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Replica::Default => "default",
            Replica::Full => "full",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Replica::Default, Replica::Full]
            .into_iter()
            .find(|it| it.as_str() == text)
    }
}

impl Log {
    /// As on the wire and in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Log::Full => "full",
            Log::ChangesOnly => "changes_only",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Log::Full, Log::ChangesOnly]
            .into_iter()
            .find(|it| it.as_str() == text)
    }
}

/// A valid request for a shape.
#[derive(Clone, Debug)]
pub struct ShapeRequest {
    /// What the client has.
    pub offset: Offset,
    /// Handle it knows; one that this server never wrote is `None`.
    pub handle: Option<Handle>,
    /// Handle that it must not be given again.
    pub expired: Option<Handle>,
    /// Hold the request until something happens.
    pub live: bool,
    /// Go on with it, as a stream of events.
    pub events: bool,
    /// Answer also when the shape's tables, or these, are touched.
    pub wake: Option<Vec<Relation>>,
    /// Cursor of the previous live answer; also sent by a refresh, which is not live.
    pub cursor: Option<String>,
    /// The shape.
    pub shape: ShapeParams,
    /// The part of it that is asked for instead of its log.
    pub subset: Option<Subset>,
}

/// A valid request to delete one.
#[derive(Clone, Debug)]
pub struct DeleteRequest {
    /// The handle as given.
    pub handle: Option<String>,
    /// The shape, if a table was named.
    pub shape: Option<ShapeParams>,
}

/// Validates a request for a shape.
pub fn shape_request(query: &Query) -> Result<ShapeRequest, FieldErrors> {
    let casts = casts(query, Casts::read_offset_required)?;
    let offset = match query.given("offset") {
        Some(Ok(text)) => Offset::parse(text),
        _ => None,
    }
    .ok_or_else(|| field_error("offset", "has invalid format"))?;
    let fresh = matches!(offset, Offset::Start | Offset::Now);
    if !fresh && query.given("handle").is_none() {
        return Err(field_error("handle", "can't be blank when offset != -1"));
    }
    let live = flag(query, "live");
    match offset {
        Offset::Start if live => {
            return Err(field_error("live", "can't be true when offset == -1"));
        }
        Offset::Now if live => {
            return Err(field_error("live", "can't be true when offset is 'now'"));
        }
        _ => {}
    }
    let live_sse = casts.experimental_live_sse || flag(query, "live_sse");
    if live_sse && !live {
        return Err(field_error(
            "live_sse",
            "can't be true unless live is also true",
        ));
    }
    // Who is still reading the snapshot gets its next chunk, and has a stream afterwards.
    let events = live_sse && !matches!(offset, Offset::Snapshot(_));
    let shape = shape_params(query, casts)?;
    let subset = subset::subset(query)?;
    Ok(ShapeRequest {
        offset,
        handle: query.text("handle").and_then(Handle::parse),
        expired: query.text("expired_handle").and_then(Handle::parse),
        live,
        events,
        wake: wake(query)?.filter(|_| live),
        cursor: query
            .get("cursor")
            .and_then(|value| value.as_deref().ok().map(str::to_owned)),
        shape,
        subset,
    })
}

/// Validates a request to delete a shape.
pub fn delete_request(query: &Query) -> Result<DeleteRequest, FieldErrors> {
    let casts = casts(query, Casts::read_flags_strictly)?;
    let handle = query
        .given("handle")
        .map(|value| value.as_deref().unwrap_or_default().to_owned());
    let undefined = blank(query.get("table")) && blank(query.get("shape"));
    let shape = match (undefined, &handle) {
        (true, None) => {
            return Err(field_error(
                "handle",
                "can't be blank when shape definition is missing",
            ));
        }
        (true, Some(_)) => None,
        (false, _) => Some(shape_params(query, casts)?),
    };
    Ok(DeleteRequest { handle, shape })
}

fn shape_params(query: &Query, casts: Casts) -> Result<ShapeParams, FieldErrors> {
    let source = source(query)?;
    let (params, named) = match source {
        Source::Table(_) => {
            let params = numbered(casts.params).map_err(|text| field_error("params", text))?;
            (params, BTreeMap::new())
        }
        Source::Named(_) => (Vec::new(), casts.params),
    };
    let (columns, queryable) = columns(query)?;
    Ok(ShapeParams {
        source,
        condition: query.text("where").map(str::to_owned),
        params,
        columns,
        queryable,
        replica: casts.replica,
        log: casts.log,
        named,
        caller: Caller::default(),
    })
}

fn source(query: &Query) -> Result<Source, FieldErrors> {
    let given = |name| match query.get(name) {
        Some(Ok(text)) if !text.trim().is_empty() => Some(&**text),
        _ => None,
    };
    match (given("table"), given("shape")) {
        (Some(_), Some(_)) => Err(field_error("shape", "can't be given with table")),
        (None, Some(name)) => Ok(Source::Named(name.to_owned())),
        (Some(table), None) => identifier::relation(table)
            .map(Source::Table)
            .map_err(|text| field_error("table", text)),
        (None, None) => Err(field_error("table", BLANK)),
    }
}

/// Tables that a request names in `wake` are bounded: each of them is followed.
const MOST_TABLES: usize = 100;

/// `wake`: on, off, or on with more tables than the shape's own.
fn wake(query: &Query) -> Result<Option<Vec<Relation>>, FieldErrors> {
    let tables = match query.text("wake") {
        None | Some("0" | "false") => return Ok(None),
        Some("1" | "true") => Ok(Vec::new()),
        Some(list) => identifier::relations(list),
    };
    let tables = tables.map_err(|text| field_error("wake", text))?;
    if tables.len() > MOST_TABLES {
        let text = format!("names more than {MOST_TABLES} tables");
        return Err(field_error("wake", text));
    }
    Ok(Some(tables))
}

/// Names of columns; `None` for all.
type Columns = Option<Vec<String>>;

/// The columns, and `queryable_columns`, which bounds them.
fn columns(query: &Query) -> Result<(Columns, Columns), FieldErrors> {
    let columns = column_list(query, "columns")?;
    let Some(allowed) = column_list(query, "queryable_columns")? else {
        return Ok((columns, None));
    };
    let unknown: Vec<&str> = columns
        .iter()
        .flatten()
        .filter(|name| !allowed.contains(name))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        let text = format!(
            "The following columns are not found on the table: {}",
            unknown.join(", ")
        );
        return Err(field_error("columns", text));
    }
    Ok((
        Some(columns.unwrap_or_else(|| allowed.clone())),
        Some(allowed),
    ))
}

fn column_list(query: &Query, name: &str) -> Result<Option<Vec<String>>, FieldErrors> {
    let failed = |text: String| field_error(name, text);
    if let Some(text) = query.text(name) {
        return identifier::columns(text).map(Some).map_err(failed);
    }
    let listed = query.entries(name).map(|(key, value)| match value {
        Ok(text) if key.is_empty() => identifier::identifier(text),
        _ => Err(INVALID.into()),
    });
    let listed = listed.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    Ok((!listed.is_empty()).then_some(listed))
}

/// Parameters 1..n in their order.
fn numbered(params: BTreeMap<String, String>) -> Result<Vec<String>, &'static str> {
    let mut by_number = BTreeMap::new();
    for (key, value) in params {
        let decimal = key.bytes().all(|b| b.is_ascii_digit());
        let number = if decimal {
            key.parse::<u64>().unwrap_or(u64::MAX)
        } else {
            0
        };
        if !decimal {
            return Err("Parameters can only use numbers as keys");
        }
        by_number.insert(number, value);
    }
    if by_number
        .keys()
        .zip(1..)
        .any(|(number, expected)| *number != expected)
    {
        return Err("Parameters must be numbered sequentially, starting from 1");
    }
    Ok(by_number.into_values().collect())
}

/// A flag is on when it is there and not exactly `false`.
fn flag(query: &Query, name: &str) -> bool {
    query
        .get(name)
        .is_some_and(|value| value.as_deref() != Ok("false"))
}

fn blank(value: Option<&Value>) -> bool {
    match value {
        None => true,
        Some(Ok(text)) => text.trim().is_empty(),
        Some(Err(NotText)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<ShapeRequest, FieldErrors> {
        shape_request(&Query::parse(text))
    }

    fn errors(text: &str) -> Json {
        Json::Object(request(text).unwrap_err())
    }

    #[test]
    fn a_whole_request() {
        let request = request(
            "table=App.items&offset=7_2&handle=1-2-3&live=&cursor=&where=a%3D$1&params[2]=y&params[1]=x\
             &columns=%22id%22,B&replica=full&log=changes_only&expired_handle=zz&foo=1",
        )
        .unwrap();
        assert!(request.live);
        assert_eq!(
            request.handle,
            Some(Handle {
                hash: 1,
                pin: 2,
                n: 3
            })
        );
        assert_eq!(request.expired, None);
        assert_eq!(request.cursor.as_deref(), Some(""));
        let Source::Table(relation) = request.shape.source else {
            panic!("it is a table's");
        };
        assert_eq!(relation.schema, "app");
        assert_eq!(request.shape.params, ["x", "y"]);
        assert_eq!(request.shape.columns.unwrap(), ["id", "b"]);
        assert_eq!(
            (request.shape.replica, request.shape.log),
            (Replica::Full, Log::ChangesOnly)
        );
    }

    #[test]
    fn the_first_stage_reports_all_of_its_errors() {
        assert_eq!(
            errors("replica=x&log=y&params=z"),
            json!({"offset": [BLANK], "replica": [INVALID], "log": [INVALID], "params": [INVALID]})
        );
        assert_eq!(errors("offset=+&table="), json!({"offset": [BLANK]}));
    }

    #[test]
    fn stages_in_their_order() {
        let at = |field: &str, text: &str| json!({field: [text]});
        assert_eq!(
            errors("offset=x&live=true"),
            at("offset", "has invalid format")
        );
        assert_eq!(errors("offset=%ff"), at("offset", "has invalid format"));
        assert_eq!(
            errors("offset=0_0&live_sse=true"),
            at("handle", "can't be blank when offset != -1")
        );
        assert_eq!(
            errors("offset=-1&live"),
            at("live", "can't be true when offset == -1")
        );
        assert_eq!(
            errors("offset=now&live=1"),
            at("live", "can't be true when offset is 'now'")
        );
        assert_eq!(
            errors("offset=0_0&handle=a&live_sse=true"),
            at("live_sse", "can't be true unless live is also true")
        );
        let events = |text: &str| {
            let query = format!("table=a&offset=0_0&handle=a&live&{text}");
            request(&query).unwrap().events
        };
        assert!(events("live_sse") && events("experimental_live_sse=true"));
        assert!(!events("live_sse=false&experimental_live_sse=true"));
        assert!(!events("live_sse&offset=0_7"), "not within the snapshot");
        assert_eq!(
            errors("offset=-1&experimental_live_sse=maybe"),
            at("live_sse", INVALID)
        );
        assert_eq!(errors("offset=-1&subset__limit=1"), at("table", BLANK));
        assert_eq!(
            errors("offset=-1&table=a&where=b&subset__limit=1&subset__order_by="),
            json!({"subset": {"order_by": ["order_by is required when limit or offset is present"]}})
        );
        assert!(
            request("offset=-1&table=a&subset__x=1")
                .unwrap()
                .subset
                .is_some()
        );
    }

    #[test]
    fn live_is_a_flag() {
        let live = |text: &str| {
            request(&format!("table=a&offset=0_0&handle=h&{text}"))
                .unwrap()
                .live
        };
        assert!(live("live") && live("live=") && live("live=true") && live("live=0"));
        assert!(!live("live=false") && !live("x=1"));
    }

    #[test]
    fn shapes() {
        let with = |text: &str| errors(&format!("offset=-1&table=a&{text}"));
        assert_eq!(
            with("params[a]=1"),
            json!({"params": ["Parameters can only use numbers as keys"]})
        );
        let gap = json!({"params": ["Parameters must be numbered sequentially, starting from 1"]});
        assert_eq!(with("params[1]=a&params[3]=b"), gap);
        assert_eq!(with("params[0]=a"), gap);
        assert_eq!(with("params[99999999999999999999]=a"), gap);
        assert_eq!(with("params[1][x]=a"), json!({"params": [INVALID]}));
        assert_eq!(with("params[]=a"), json!({"params": [INVALID]}));
        assert_eq!(with("where=%00"), json!({"where": [INVALID]}));
        assert_eq!(
            with("columns=a-b"),
            json!({"columns": ["Invalid unquoted identifier contains special characters: a-b"]})
        );
        assert_eq!(
            with("columns=id,x&queryable_columns=id"),
            json!({"columns": ["The following columns are not found on the table: x"]})
        );
        let listed = request("offset=-1&table=a&columns[]=id&columns[]=b")
            .unwrap()
            .shape
            .columns;
        assert_eq!(listed.unwrap(), ["id", "b"]);
        assert_eq!(
            request("offset=-1&table=a&columns=&where=")
                .unwrap()
                .shape
                .columns,
            None
        );
    }

    #[test]
    fn deletions() {
        let delete = |text: &str| delete_request(&Query::parse(text));
        assert_eq!(
            Json::Object(delete("").unwrap_err()),
            json!({"handle": ["can't be blank when shape definition is missing"]})
        );
        assert_eq!(
            Json::Object(delete("handle=a&live=banana").unwrap_err()),
            json!({"live": [INVALID]})
        );
        let both = delete("handle=a&table=b").unwrap();
        assert!(both.shape.is_some() && both.handle.as_deref() == Some("a"));
        assert!(delete("handle=a").unwrap().shape.is_none());
    }
}
