//! The feed of one sidecar: the operations of all shapes that it has attached in this session.
//!
//! State that an error may have left half changed is dropped; the sidecar then attaches anew.

use std::cell::RefCell;

use pgrx::AnyArray;
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;

use super::attached::{Attached, Why};
use super::definition::Definition;
use super::member::attach::TOGETHER;
use super::member::later::Later;
use super::pass::{self, Row};
use super::place;
use super::resolve::Resolver;
use super::window::Log;
use crate::error::{Error, OrRaise, Result};
use crate::pg::invalidation;
use crate::pg::reading::{self, Latest};
use crate::pg::values::texts_of_jsonb;

/// The shapes of this session.
enum Feed {
    /// None has been attached.
    New,
    /// As they are.
    Whole(Box<Attached>),
    /// An error has left them half changed: the sidecar has to attach all of them again, in a session of their own.
    Lost,
}

thread_local! {
    static FEED: RefCell<Feed> = const { RefCell::new(Feed::New) };
}

/// Takes the shapes out: until they are put back they are lost.
fn take() -> Result<Option<Attached>> {
    match FEED.replace(Feed::Lost) {
        Feed::New => Ok(None),
        Feed::Whole(attached) => Ok(Some(*attached)),
        Feed::Lost => Err(Error::FeedLost),
    }
}

/// Attaches shapes; returns the position after which the feed tells of all that are attached. `at`: these alone, from a
/// position on that is long past.
fn attach(ids: Vec<i32>, definitions: Vec<Definition>, at: Option<i64>) -> Result<i64> {
    reading::may_read()?;
    if at.is_some() && definitions.iter().any(|shape| !shape.inner.is_empty()) {
        let message = "a shape with subqueries cannot be attached at a position".into();
        return Err(Error::Unsupported(message, "Read its log by itself."));
    }
    invalidation::watch();
    // What is likely to fail, a wait for a table that somebody has locked, comes while the feed is whole.
    for definition in &definitions {
        let inner = definition.inner.iter().map(|table| table.relid);
        inner
            .chain([definition.relid])
            .for_each(|relid| reading::lock_shared(relid.into()));
    }
    let log = Log::lock();
    let _latest = Latest::take();
    let head = log
        .newest_batch()
        .ok_or_else(|| Error::TryAgain("nothing has been sequenced yet".into()))?
        .position;
    // One without shapes is as old as the last of them: what has been written since concerns nobody.
    let used = take()?.filter(|attached| !attached.is_empty() && at.is_none());
    let begin = at.unwrap_or(head);
    let mut attached = used.unwrap_or_else(|| Attached::new(begin));
    place::require(&log, attached.position)?;
    let mut later = Later::than(&log, attached.position);
    let mut resolver = Resolver::default();
    let all = ids.into_iter().zip(&definitions);
    let (plain, mut members): (Vec<_>, Vec<_>) =
        all.partition(|(_, definition)| definition.inner.is_empty());
    for (id, definition) in plain {
        attached.add(id, definition, begin, &mut resolver);
    }
    members.sort_by_key(|(_, definition)| &definition.role);
    for of_role in members.chunk_by(|(_, a), (_, b)| a.role == b.role) {
        for some in of_role.chunks(TOGETHER) {
            attached.add_members(some, begin, &mut resolver, &mut later);
        }
    }
    let position = attached.position;
    FEED.set(Feed::Whole(Box::new(attached)));
    Ok(position)
}

/// `shapefeed._attach`: has the feed tell of these shapes, too.
#[pg_extern(sql = false)]
fn _attach(ids: Vec<i32>, definitions: AnyArray) -> i64 {
    attach_all(ids, definitions, None).or_raise()
}

/// `shapefeed._attach_at`: has the feed tell of these shapes alone, after a position.
#[pg_extern(sql = false)]
fn _attach_at(ids: Vec<i32>, definitions: AnyArray, position: i64) -> i64 {
    attach_all(ids, definitions, Some(position)).or_raise()
}

fn attach_all(ids: Vec<i32>, definitions: AnyArray, at: Option<i64>) -> Result<i64> {
    let definitions = texts_of_jsonb(definitions)
        .into_iter()
        .map(|text| Definition::from_text(&text))
        .collect::<Result<Vec<_>>>()?;
    if ids.len() != definitions.len() {
        let message = "an id for each definition is expected, and no null".into();
        let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
        return Err(Error::Sql(code, message, ""));
    }
    attach(ids, definitions, at)
}

/// `shapefeed._detach`: has the feed tell of these shapes no more.
#[pg_extern(sql = false)]
fn _detach(ids: Vec<i32>) {
    FEED.with_borrow_mut(|feed| {
        if let Feed::Whole(attached) = feed {
            attached.remove(&ids);
        }
    });
}

/// `shapefeed._feed`: what has happened to the attached shapes since the last call.
#[pg_extern(sql = false)]
#[allow(
    clippy::type_complexity,
    reason = "the macro wants the row type spelled out"
)]
fn _feed(
    max_bytes: i64,
) -> TableIterator<
    'static,
    (
        name!(ids, Option<Vec<i32>>),
        name!(position, i64),
        name!(n, Option<i64>),
        name!(message, Option<String>),
        name!(last, Option<bool>),
        name!(kind, &'static str),
    ),
> {
    let mut attached = take()
        .and_then(|feed| feed.ok_or(Error::FeedLost))
        .or_raise();
    let (rows, upto) = pass::read(&mut attached, max_bytes.max(1) as u64).or_raise();
    FEED.set(Feed::Whole(Box::new(attached)));
    let rows = rows.into_iter().map(|row| match row {
        Row::Operation {
            ids,
            position,
            n,
            message,
            last,
            ..
        } => (
            Some(ids),
            position,
            Some(n),
            Some(message),
            Some(last),
            "op",
        ),
        Row::Touch {
            relids,
            position,
            xid,
        } => {
            let relids = relids.into_iter().map(|relid| relid as i32).collect();
            let xid = i64::from(xid as u32);
            (Some(relids), position, Some(xid), None, None, "touch")
        }
        Row::Changed { relids, position } => {
            let relids = relids.into_iter().map(|relid| relid as i32).collect();
            (Some(relids), position, None, None, None, "changed")
        }
        Row::Skip { ids, position } => (Some(ids), position, None, None, None, "skip"),
        Row::End { ids, position, why } => {
            let (kind, reason) = match why {
                Why::Over(reason) => ("end", reason),
                Why::Clause(reason) => ("clause", reason),
            };
            (Some(ids), position, None, Some(reason), None, kind)
        }
    });
    TableIterator::new(rows.chain(std::iter::once((None, upto, None, None, None, "upto"))))
}
