//! The log of one shape with subqueries: what a feed that has only this shape attached tells.

use std::collections::VecDeque;

use super::super::attached::{Attached, Why};
use super::super::definition::Definition;
use super::super::family::Family;
use super::super::log::{COMMITS_AT_ONCE, Entries, Entry, Read, SILENT, Stretch, end_of};
use super::super::pass::{Pass, Row};
use super::super::resolve::Resolver;
use super::super::window::{Commit, Log};
use super::later::Later;
use super::moves::{AMPLIFICATION, Limit};
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::reading::Latest;

/// Reads a stretch of a shape's log. To be called while acting as its role.
pub fn read(definition: &Definition, family: &Family, stretch: Stretch) -> Result<Read> {
    let (position, n) = stretch.from;
    let mut after = if n > 0 { position - 1 } else { position };
    let mut attached: Option<Attached> = None;
    let mut silent = VecDeque::new();
    let mut entries = Entries::new(stretch);
    let relids: Vec<u32> = definition
        .inner
        .iter()
        .map(|table| table.relid)
        .chain([definition.relid])
        .collect();
    loop {
        let log = Log::lock();
        let _latest = Latest::take();
        let to = end_of(&log, definition, family, after.max(position), stretch.to)?;
        let attached = match &mut attached {
            Some(attached) => attached,
            none => none.insert(attach(definition, &log, after)?),
        };
        let about = |commit: &Commit| commit.relids.iter().any(|relid| relids.contains(relid));
        let (commits, complete_to) = log.commits(after, to, about, COMMITS_AT_ONCE);
        let mut pass = Pass::new(&log, attached, Limit::End(guc::max_moved_rows()));
        for commit in commits {
            let read = entries.len();
            pass.transaction(&commit)?;
            for row in pass.take_rows() {
                if !take(row, &commit, &mut entries)? {
                    return Ok(entries.end(None, silent));
                }
            }
            if entries.len() == read && commit.position > position {
                silent.push_back(commit.xid);
            }
            if silent.len() > SILENT {
                silent.pop_front();
            }
        }
        drop(pass);
        attached.advance(complete_to);
        if complete_to >= to {
            return Ok(entries.end(Some(to), silent));
        }
        after = complete_to;
    }
}

fn attach(definition: &Definition, log: &Log, position: i64) -> Result<Attached> {
    let mut attached = Attached::new(position);
    let mut later = Later::than(log, position);
    let mut resolver = Resolver::default();
    attached.join(&[(0, definition)], position, &mut resolver, &mut later)?;
    Ok(attached)
}

/// Adds an entry; false when it does not fit any more.
fn take(row: Row, commit: &Commit, entries: &mut Entries) -> Result<bool> {
    match row {
        Row::Operation {
            position,
            n,
            operation,
            message,
            last,
            ..
        } => {
            let from = entries.stretch.from;
            if position == from.0 && n <= from.1 {
                return Ok(true);
            }
            let xid = commit.xid;
            Ok(entries.add(Entry {
                position,
                n,
                operation,
                xid,
                message,
                last,
            }))
        }
        Row::Touch { .. } | Row::Changed { .. } | Row::Skip { .. } => Ok(true),
        Row::End { why, .. } => Err(match why {
            Why::Over(reason) if reason.starts_with(AMPLIFICATION) => Error::MustRefetch(reason),
            Why::Over(reason) => Error::MustRefetch(format!("the shape has ended: {reason}")),
            Why::Clause(reason) => Error::Clause(reason),
        }),
    }
}
