//! Where a position is: here, not here yet, or nowhere any more.

use pgrx::prelude::*;
use pgrx::{JsonB, PgSqlErrorCode};

use super::definition::Definition;
use super::overlay::concerns;
use super::tuple::Table;
use super::window::{Batch, Log};
use crate::capture::{roles, survey};
use crate::error::{Error, OrRaise, Result};
use crate::pg::reading::{self, Latest};
use crate::pg::relation::{self, Lock, Relation, our_namespace, relation_oid};
use crate::pg::scan::{self, Direction};
use crate::pg::xact;
use crate::sequence;

/// What can be done with a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The log can be read from here.
    Here,
    /// The server has not replayed it yet, or is just committing it.
    Later,
    /// The log does not reach here, or never did.
    Gone(&'static str),
}

/// The bounds within which positions mean something.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// First positions of all eras, ascending.
    pub eras: Vec<i64>,
    /// The oldest position from which the log is whole.
    pub floor: i64,
    /// The newest position.
    pub head: i64,
    /// The newest one that the sequencer has begun to commit.
    pub committing: i64,
    /// The server replays another one's WAL, and will have more.
    pub in_recovery: bool,
}

impl Bounds {
    /// Where a position is. `last_up_to` finds the newest position at or below one, as long as the log is whole there.
    pub fn place(&self, position: i64, last_up_to: impl Fn(i64) -> Option<i64>) -> Place {
        if position < self.floor {
            return Place::Gone("the log does not reach back so far");
        }
        if position > self.head {
            return if self.in_recovery || position <= self.committing {
                Place::Later
            } else {
                Place::Gone("the position was never given out here")
            };
        }
        // Between the last position of an era and the first of the next one nothing was given out by this history.
        let next = self.eras.iter().copied().find(|first| *first > position);
        match next.map(|first| last_up_to(first - 1)) {
            Some(last) if last.is_none_or(|last| position > last) => {
                Place::Gone("the position is of another history")
            }
            _ => Place::Here,
        }
    }
}

/// The bounds of the log, as the active snapshot sees it; None when nothing has been sequenced.
pub fn bounds(log: &Log) -> Option<Bounds> {
    let (floor, head) = (log.floor()?, log.newest_batch()?.position);
    Some(Bounds {
        eras: eras(),
        floor,
        head,
        committing: sequence::committing(),
        in_recovery: xact::in_recovery(),
    })
}

fn eras() -> Vec<i64> {
    let mut eras = Vec::new();
    each_row("era", |row| eras.extend(row.get::<i64>(1)));
    eras
}

/// Calls `each` for the rows of a small table of ours, in the order of its primary key.
pub(super) fn each_row(name: &str, mut each: impl FnMut(scan::Row<'_>)) {
    let Some(namespace) = our_namespace() else {
        return;
    };
    let table =
        relation_oid(namespace, name).and_then(|oid| Relation::open(oid, Lock::AccessShare));
    let index = relation_oid(namespace, &format!("{name}_pkey"));
    if let (Some(table), Some(index)) = (table, index) {
        scan::scan(&table, index, &[], Direction::Forward, |row| {
            each(row);
            true
        });
    }
}

/// Where a position is in the log.
pub fn place(log: &Log, position: i64) -> Place {
    match bounds(log) {
        Some(bounds) => bounds.place(position, |up_to| {
            log.newest_batch_up_to(up_to).map(|batch| batch.position)
        }),
        None if xact::in_recovery() => Place::Later,
        None => Place::Gone("nothing has been sequenced yet"),
    }
}

/// An error unless the log can be read from a position.
pub fn require(log: &Log, position: i64) -> Result<()> {
    match place(log, position) {
        Place::Here => Ok(()),
        Place::Later => Err(Error::NotYet(position)),
        Place::Gone(why) => Err(Error::MustRefetch(why.into())),
    }
}

/// The table of a shape; an error when it is gone.
pub fn open_table(definition: &Definition) -> Result<Table> {
    Table::of(definition).ok_or_else(|| {
        let Definition { schema, table, .. } = definition;
        let message = format!("table \"{schema}\".\"{table}\" does not exist");
        Error::Sql(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, message, "")
    })
}

/// Position from which the log is whole for a table; None when it is not captured, or that is not known yet.
fn tracked_since(relid: u32) -> Tracked {
    let family: Vec<u32> = std::iter::once(relid)
        .chain(relation::ancestors(relid))
        .collect();
    let mut found = Tracked::No;
    each_row("tracked", |row| {
        let tracked = row
            .get::<pgrx::pg_sys::Oid>(1)
            .expect("relid is not null")
            .to_u32();
        if family.contains(&tracked) {
            found = match (row.get::<i64>(2), &found) {
                (Some(since), Tracked::Since(other)) => Tracked::Since(since.min(*other)),
                (Some(since), _) => Tracked::Since(since),
                (None, Tracked::No) => Tracked::Soon,
                _ => return,
            };
        }
    });
    found
}

enum Tracked {
    No,
    Soon,
    Since(i64),
}

/// The newest batch end at which a snapshot of a shape can be read.
pub fn pin(definition: &Definition) -> Result<Batch> {
    reading::may_read()?;
    let table = open_table(definition)?;
    let log = Log::lock();
    let _latest = Latest::take();
    newest_end(&log, definition, &table)
}

/// The same, by a log that is locked, under the active snapshot.
pub fn newest_end(log: &Log, definition: &Definition, table: &Table) -> Result<Batch> {
    require_seen(log, definition)?;
    let again = |why: &str| Error::TryAgain(why.into());
    let newest = log
        .newest_batch()
        .ok_or_else(|| again("nothing has been sequenced yet"))?;
    let own = (definition.relid, &definition.schema, &definition.table);
    let inner = definition.inner.iter();
    let inner = inner.map(|table| (table.relid, &table.schema, &table.table));
    for (relid, schema, name) in inner.chain([own]) {
        match tracked_since(relid) {
            Tracked::Since(since) if since <= newest.position => {}
            Tracked::No => {
                let message = format!("table \"{schema}\".\"{name}\" is not tracked");
                let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
                return Err(Error::Sql(
                    code,
                    message,
                    "CALL shapefeed.track(...) has it captured.",
                ));
            }
            _ => return Err(again("the table's capture has not been sequenced yet")),
        }
    }
    let ended = log.ends_above(newest.position);
    if ended
        .iter()
        .flat_map(|(_, ends)| ends)
        .any(|end| concerns(end, definition, &table.family))
    {
        return Err(again("the table's epoch is just ending"));
    }
    Ok(newest)
}

/// An error if what ends by a change of the shape's tables, or of its role, is not in the log yet. Call it under the snapshot
/// that is read with, after rights have been checked.
pub fn require_seen(log: &Log, definition: &Definition) -> Result<()> {
    let has_position = |xid| log.has_position(xid);
    roles::require_seen(&definition.role, has_position)?;
    definition
        .relations()
        .try_for_each(|relid| survey::require_seen(relid, has_position))
}

/// The first position from which the log of a shape can be read to the head.
pub fn beginning(log: &Log, definition: &Definition, table: &Table) -> i64 {
    let floor = log.floor().unwrap_or(0);
    let inner = definition.inner.iter().map(|table| table.relid);
    let since = inner
        .chain([definition.relid])
        .map(|relid| match tracked_since(relid) {
            Tracked::Since(since) => since,
            _ => 0,
        });
    let since = since.max().unwrap_or(0);
    let ends = log.ends_above(floor);
    let ended = ends.iter().rfind(|(_, ends)| {
        ends.iter()
            .any(|end| concerns(end, definition, &table.family))
    });
    floor
        .max(since)
        .max(ended.map_or(0, |(position, _)| *position))
}

/// Whether a client of a shape can go on: the snapshot that it has is of `pin`, and it stands at `position`.
fn place_of(
    definition: &Definition,
    pin: i64,
    position: i64,
) -> Result<(&'static str, Option<String>)> {
    reading::may_read()?;
    let Ok(table) = open_table(definition) else {
        return Ok(("gone", Some("the table is gone".into())));
    };
    let log = Log::lock();
    let _latest = Latest::take();
    for position in [pin, position] {
        match place(&log, position) {
            Place::Here => {}
            Place::Later => return Ok(("later", None)),
            Place::Gone(why) => return Ok(("gone", Some(why.into()))),
        }
    }
    if require_seen(&log, definition).is_err() {
        return Ok(("later", None));
    }
    let ends = log.ends_above(pin);
    let ended = ends
        .iter()
        .flat_map(|(_, ends)| ends)
        .find(|end| concerns(end, definition, &table.family));
    Ok(match ended {
        Some(end) => ("gone", Some(end.reason.clone())),
        None => ("ok", None),
    })
}

pub(super) fn as_int8(xids: impl IntoIterator<Item = u64>) -> Vec<i64> {
    xids.into_iter().map(|xid| xid as i64).collect()
}

/// `shapefeed._pin`: a batch end at which a snapshot of the shape can be read, and what is visible there.
#[pg_extern(sql = false)]
fn _pin(
    definition: JsonB,
) -> TableIterator<
    'static,
    (
        name!(position, i64),
        name!(xmin, i64),
        name!(xmax, i64),
        name!(xip, Vec<i64>),
    ),
> {
    let batch = Definition::from_jsonb(definition)
        .and_then(|definition| pin(&definition))
        .or_raise();
    let Batch {
        position, snapshot, ..
    } = batch;
    TableIterator::once((
        position,
        snapshot.xmin as i64,
        snapshot.xmax as i64,
        as_int8(snapshot.xip),
    ))
}

/// `shapefeed._batch`: what is visible at a batch end; no row if there is no such.
#[pg_extern(sql = false)]
fn _batch(
    position: i64,
) -> TableIterator<'static, (name!(xmin, i64), name!(xmax, i64), name!(xip, Vec<i64>))> {
    reading::may_read().or_raise();
    let log = Log::lock();
    let _latest = Latest::take();
    let snapshot = log.batch(position).map(|batch| batch.snapshot);
    TableIterator::new(
        snapshot
            .into_iter()
            .map(|s| (s.xmin as i64, s.xmax as i64, as_int8(s.xip))),
    )
}

/// `shapefeed._place`: whether a client of the shape can go on from where it stands.
#[pg_extern(sql = false)]
fn _place(
    definition: JsonB,
    pin: i64,
    position: i64,
) -> TableIterator<'static, (name!(state, &'static str), name!(reason, Option<String>))> {
    let definition = Definition::from_jsonb(definition).or_raise();
    TableIterator::once(place_of(&definition, pin, position).or_raise())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        // Two eras: 100..=110, 500..=520. The log is whole from 105.
        let bounds = |in_recovery| Bounds {
            eras: vec![100, 500],
            floor: 105,
            head: 520,
            committing: 521,
            in_recovery,
        };
        let last_up_to = |up_to: i64| {
            if up_to >= 520 {
                Some(520)
            } else {
                Some(110.min(up_to))
            }
        };
        let at = |position, in_recovery| bounds(in_recovery).place(position, last_up_to);
        assert!(matches!(at(104, false), Place::Gone(_)));
        assert_eq!(at(105, false), Place::Here);
        assert_eq!(at(110, false), Place::Here);
        assert!(matches!(at(111, false), Place::Gone(_)));
        assert!(matches!(at(499, true), Place::Gone(_)));
        assert_eq!(at(500, false), Place::Here);
        assert_eq!(at(520, false), Place::Here);
        assert_eq!(at(521, false), Place::Later);
        assert!(matches!(at(522, false), Place::Gone(_)));
        assert_eq!(at(522, true), Place::Later);
    }
}
