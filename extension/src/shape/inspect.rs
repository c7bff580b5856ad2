//! Shapes and the log for people: what `visible_rows`, `changes` and `changes_decoded` show in psql.

use std::collections::VecDeque;

use pgrx::JsonB;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::definition::Definition;
use super::log::{self, Entry, Stretch};
use super::named::{self, Asked};
use super::place;
use super::rows::DATA;
use super::snapshot::{Request, Snapshot};
use super::tuple::{Around, Table, put_members};
use super::window::{Commit, Log};
use crate::error::{OrRaise, Result};
use crate::pg::encode::Column;
use crate::pg::reading::{self, Latest};
use crate::pg::relation::{Lock, Relation};
use crate::pg::role::{self, AsRole};
use crate::record::{Image, Record};
use crate::sequence::order::Snapshot as Visible;

/// `shapefeed.visible_rows`: the rows of a shape, as of a batch end.
#[pg_extern(sql = false)]
fn visible_rows(
    relation: Option<Oid>,
    clause: Option<String>,
    params: Option<Vec<Option<String>>>,
    columns: Option<Vec<String>>,
    at_position: Option<i64>,
    shape: Option<String>,
    named: Option<JsonB>,
) -> SetOfIterator<'static, JsonB> {
    /// Rows are read in stretches of this size.
    const THRESHOLD: u64 = 4 << 20;
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
    let newest = || place::pin(&definition).or_raise().position;
    let position = at_position.unwrap_or_else(newest);
    let request = Request {
        definition,
        position,
        threshold: THRESHOLD,
        cursor: None,
    };
    let pieces = Snapshot::begin(request)
        .or_raise()
        .filter(|piece| piece[0] == DATA);
    SetOfIterator::new(pieces.flat_map(|piece| {
        let rows = [b"[", &piece[1..], b"]"].concat();
        let rows: Vec<Value> = serde_json::from_slice(&rows).expect("a piece is rows in JSON");
        rows.into_iter().map(|mut row| JsonB(row["value"].take()))
    }))
}

/// A log that is read in stretches.
struct Changes {
    definition: Definition,
    stretch: Stretch,
    entries: VecDeque<Entry>,
    done: bool,
}

impl Iterator for Changes {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        if self.entries.is_empty() && !self.done {
            let log::Read { entries, upto, .. } =
                log::read(&self.definition, self.stretch).or_raise();
            if let Some(entry) = entries.last() {
                self.stretch.from = (entry.position, entry.n);
            }
            self.entries = entries.into();
            self.done = upto.is_some();
        }
        self.entries.pop_front()
    }
}

/// The first position from which the log of a shape can be read.
fn beginning(definition: &Definition) -> Result<i64> {
    place::pin(definition)?;
    let table = place::open_table(definition)?;
    let log = Log::lock();
    let _latest = Latest::take();
    Ok(place::beginning(&log, definition, &table))
}

/// `shapefeed.changes`: the operations of a shape between two positions.
#[pg_extern(sql = false)]
#[allow(
    clippy::type_complexity,
    clippy::too_many_arguments,
    reason = "the macro wants the row type spelled out; the arguments are those of the SQL function"
)]
fn changes(
    relation: Option<Oid>,
    clause: Option<String>,
    params: Option<Vec<Option<String>>>,
    columns: Option<Vec<String>>,
    from_position: Option<i64>,
    to_position: Option<i64>,
    replica: Option<String>,
    shape: Option<String>,
    named: Option<JsonB>,
) -> TableIterator<
    'static,
    (
        name!(position, i64),
        name!(operation, &'static str),
        name!(key, Option<String>),
        name!(value, Option<JsonB>),
        name!(old_value, Option<JsonB>),
        name!(txid, i64),
    ),
> {
    const STRETCH_BYTES: u64 = 4 << 20;
    let asked = Asked {
        relation,
        clause,
        params,
        columns,
        replica,
        shape,
        named,
    };
    let definition = named::define(asked).or_raise();
    let from = from_position.unwrap_or_else(|| beginning(&definition).or_raise());
    let to = to_position.unwrap_or(i64::MAX);
    let stretch = Stretch {
        from: (from, 0),
        to,
        max_bytes: STRETCH_BYTES,
    };
    let changes = Changes {
        definition,
        stretch,
        entries: VecDeque::new(),
        done: false,
    };
    TableIterator::new(changes.map(|entry| {
        let mut message: Value = serde_json::from_str(&entry.message).expect("a message is JSON");
        let key = message["key"].as_str().map(str::to_string);
        let mut member = |name: &str| message.get_mut(name).map(Value::take).map(JsonB);
        let (value, old_value) = (member("value"), member("old_value"));
        (
            entry.position,
            entry.operation.name(),
            key,
            value,
            old_value,
            entry.xid as i64,
        )
    }))
}

/// One record of the log, decoded.
struct Decoded {
    position: i64,
    xid: u64,
    relid: u32,
    kind: &'static str,
    old: Option<Value>,
    new: Option<Value>,
}

/// The log's records, transaction by transaction.
struct Decoder {
    position: i64,
    to: i64,
    ready: VecDeque<Decoded>,
}

impl Iterator for Decoder {
    type Item = Decoded;

    fn next(&mut self) -> Option<Decoded> {
        while self.ready.is_empty() && self.position < self.to {
            self.read_on().or_raise();
        }
        self.ready.pop_front()
    }
}

impl Decoder {
    fn read_on(&mut self) -> Result<()> {
        const COMMITS_AT_ONCE: usize = 100;
        let _role = AsRole::enter(&role::current())?;
        let log = Log::lock();
        let _latest = Latest::take();
        if log.floor().is_some_and(|floor| floor > self.position) {
            let why = "the log was emptied while it was being read";
            return Err(crate::error::Error::MustRefetch(why.into()));
        }
        let (commits, complete_to) = log.commits(self.position, self.to, |_| true, COMMITS_AT_ONCE);
        let before = log
            .newest_batch_up_to(self.position)
            .map(|batch| batch.snapshot)
            .unwrap_or_default();
        for commit in commits {
            self.decode(&log, &commit, &before)?;
        }
        self.position = complete_to;
        Ok(())
    }

    fn decode(&mut self, log: &Log, commit: &Commit, before: &Visible) -> Result<()> {
        let transaction = log.transaction(commit.member, commit.xid);
        let records = transaction.records()?;
        let around = Around {
            log,
            records: &records,
            before,
        };
        for record in &records {
            // A table that is gone or not what it was cannot be decoded any more; its records are listed all the same.
            let mut table = Leaf::open(record.relid);
            let mut side = |image: Option<Image<'_>>| {
                let version = |image| super::net::Version {
                    relid: record.relid,
                    layout: record.layout,
                    image,
                };
                table
                    .as_mut()?
                    .json(&transaction, &version(image?), &around)
                    .ok()
            };
            let (old, new) = (side(record.old), side(record.new));
            let (position, xid) = (commit.position, commit.xid);
            self.ready.push_back(Decoded {
                position,
                xid,
                relid: record.relid,
                kind: kind(record),
                old,
                new,
            });
        }
        Ok(())
    }
}

/// A table that records are of, and all its columns.
struct Leaf {
    table: Table,
    places: Vec<usize>,
    columns: Vec<Column>,
}

impl Leaf {
    fn open(relid: u32) -> Option<Leaf> {
        let facts = Relation::open(Oid::from_u32(relid), Lock::AccessShare)?.facts();
        let table = Table::open(relid, &facts.schema, &facts.name, &[])?;
        let places = table.key.clone();
        let columns = table.columns(&places);
        Some(Leaf {
            table,
            places,
            columns,
        })
    }

    fn json(
        &mut self,
        transaction: &super::window::Transaction,
        version: &super::net::Version<'_>,
        around: &Around<'_>,
    ) -> Result<Value> {
        let mut row = self.table.row(transaction, version)?;
        self.table.fetch(&mut row, &self.places, around)?;
        let mut json = b"{".to_vec();
        let columns = &mut self.columns;
        self.table
            .scratch
            .run(|| put_members(columns, |index| row.get(index), &mut json));
        json.push(b'}');
        Ok(serde_json::from_slice(&json).unwrap_or(Value::Object(Map::new())))
    }
}

fn kind(record: &Record<'_>) -> &'static str {
    use crate::record::Kind;
    match record.kind {
        Kind::Insert => "insert",
        Kind::Update => "update",
        Kind::Delete => "delete",
        Kind::Truncate => "truncate",
    }
}

/// `shapefeed._decoded`: the records of the log, decoded.
#[pg_extern(sql = false)]
#[allow(
    clippy::type_complexity,
    reason = "the macro wants the row type spelled out"
)]
fn _decoded(
    from_position: Option<i64>,
    to_position: Option<i64>,
) -> TableIterator<
    'static,
    (
        name!(position, i64),
        name!(xid, i64),
        name!(relation, Oid),
        name!(operation, &'static str),
        name!(old, Option<JsonB>),
        name!(new, Option<JsonB>),
    ),
> {
    reading::may_read().or_raise();
    let (floor, head) = {
        let log = Log::lock();
        let _latest = Latest::take();
        let head = log.newest_batch().map_or(0, |batch| batch.position);
        (log.floor().unwrap_or(0), head)
    };
    let position = from_position.unwrap_or(floor).max(floor);
    let to = to_position.unwrap_or(head).min(head);
    let decoder = Decoder {
        position,
        to,
        ready: VecDeque::new(),
    };
    TableIterator::new(decoder.map(|row| {
        let relation = Oid::from_u32(row.relid);
        (
            row.position,
            row.xid as i64,
            relation,
            row.kind,
            row.old.map(JsonB),
            row.new.map(JsonB),
        )
    }))
}
