//! One pass of a feed over the log.
//!
//! A table's changes are decoded once, the where clauses that let a row in are found once, and a message is written once for
//! all shapes that get the same.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::attached::{Attached, Ended, Why};
use super::group::{Group, Keyless};
use super::judge::{Tally, fetch, rows};
use super::keyless::{Counts, Gains};
use super::member::later::Later;
use super::member::moves::Limit;
use super::message::Operation;
use super::net::{self, Chain};
use super::operation::{self, At, Job, Projection, Side};
use super::overlay::Filter;
use super::place;
use super::route::{Hit, Routed, Work, sides};
use super::share::{Message, Messages};
use super::tuple::{Around, Effect, Table, changed};
use super::window::{Commit, Log, Transaction};
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::attempt::{Caught, TOO_SLOW, attempt_evaluation, attempt_evaluation_within};
use crate::pg::invalidation;
use crate::pg::reading::{self, Latest};
use crate::pg::role::AsRole;
use crate::sequence::order::Snapshot;

/// One row of the feed.
pub enum Row {
    /// A message for these shapes.
    Operation {
        /// Who gets it.
        ids: Vec<i32>,
        /// Position of the transaction.
        position: i64,
        /// Place in the transaction plus one.
        n: i64,
        /// What happened.
        operation: Operation,
        /// The whole message.
        message: String,
        /// It is their last in the transaction.
        last: bool,
    },
    /// A transaction touched these tables, whether or not that means anything to a shape.
    Touch {
        /// The tables.
        relids: Vec<u32>,
        /// Position of the transaction.
        position: i64,
        /// The transaction.
        xid: u64,
    },
    /// What the catalogs say of these tables, or of what shapes on them use, has changed.
    Changed {
        /// The tables.
        relids: Vec<u32>,
        /// Position at which that was found.
        position: i64,
    },
    /// What a transaction does to these shapes is too much to tell here: their logs tell.
    Skip {
        /// Which.
        ids: Vec<i32>,
        /// Position of the transaction.
        position: i64,
    },
    /// These shapes have ended.
    End {
        /// Which.
        ids: Vec<i32>,
        /// Where.
        position: i64,
        /// Why.
        why: Why,
    },
}

/// More rows than this are not moved here: nobody else is told anything meanwhile.
const MOVED_AT_ONCE: usize = 1000;

/// How long one call goes on taking up more transactions.
const LONGEST: Duration = Duration::from_millis(500);

/// Reads the feed up to the head, to the end of the transaction that makes it `max_bytes`, or for half a second. Also returns the position
/// up to which all is evaluated.
pub fn read(attached: &mut Attached, max_bytes: u64) -> Result<(Vec<Row>, i64)> {
    reading::may_read()?;
    let log = Log::lock();
    let _latest = Latest::take();
    place::require(&log, attached.position)?;
    let head = log
        .newest_batch()
        .map_or(attached.position, |batch| batch.position);
    let mut pass = Pass::new(&log, attached, Limit::Skip(MOVED_AT_ONCE));
    pass.refresh();
    // The locks on the log must not last: what is left over is for the next call.
    while pass.attached.position < head && pass.bytes < max_bytes && pass.began.elapsed() < LONGEST
    {
        let position = pass.read_some(head, max_bytes)?;
        pass.attached.advance(position);
    }
    let Pass {
        rows, role, tables, ..
    } = pass;
    drop((role, tables));
    Ok((rows, attached.position))
}

/// One call of the feed.
pub struct Pass<'a> {
    log: &'a Log,
    /// Does not see any transaction that is read.
    before: Snapshot,
    pub(super) attached: &'a mut Attached,
    /// Tables that were opened in this call.
    pub(super) tables: HashMap<u32, Open>,
    /// The role that is acted as, kept while it stays the same.
    role: Option<(String, AsRole)>,
    rows: Vec<Row>,
    bytes: u64,
    began: Instant,
    /// What there is after a transaction.
    pub(super) later: Later<'a>,
    /// What has ended in a transaction, while groups are out.
    pub(super) over: Vec<Ended>,
    /// How many rows a transaction may move.
    pub(super) moves: Limit,
}

/// A table and what its shapes select from it.
pub(super) struct Open {
    pub table: Table,
    pub projections: Vec<Projection>,
}

/// What is the same for all of a transaction's tables.
pub(super) struct Whole<'a> {
    pub commit: &'a Commit,
    pub transaction: &'a Transaction,
    pub chains: &'a [Chain<'a>],
    pub around: &'a Around<'a>,
    /// Number of its records.
    pub records: usize,
}

impl<'a> Pass<'a> {
    /// From where the attached shapes are. The log is locked, and the active snapshot is the reader's.
    pub fn new(log: &'a Log, attached: &'a mut Attached, moves: Limit) -> Pass<'a> {
        let before = log
            .newest_batch_up_to(attached.position)
            .map(|batch| batch.snapshot)
            .unwrap_or_default();
        Pass {
            log,
            before,
            later: Later::than(log, attached.position),
            attached,
            tables: HashMap::new(),
            role: None,
            rows: Vec::new(),
            bytes: 0,
            over: Vec::new(),
            moves,
            began: Instant::now(),
        }
    }

    /// What there is to tell.
    pub fn take_rows(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.rows)
    }
}

impl Pass<'_> {
    /// Reads some transactions; returns the position up to which all is evaluated.
    fn read_some(&mut self, head: i64, max_bytes: u64) -> Result<i64> {
        const COMMITS_AT_ONCE: usize = 1000;
        let groups = &self.attached.groups;
        let about = |commit: &Commit| {
            !commit.ends.is_empty() || commit.relids.iter().any(|relid| groups.contains_key(relid))
        };
        let (commits, complete_to) =
            self.log
                .commits(self.attached.position, head, about, COMMITS_AT_ONCE);
        for commit in commits {
            self.transaction(&commit)?;
            if self.bytes >= max_bytes || self.began.elapsed() >= LONGEST {
                return Ok(commit.position);
            }
        }
        Ok(complete_to)
    }

    pub(super) fn end(&mut self, ids: Vec<i32>, position: i64, why: Why) {
        if !ids.is_empty() {
            self.rows.push(Row::End { ids, position, why });
        }
    }

    pub(super) fn skip(&mut self, ids: Vec<i32>, position: i64) {
        self.rows.push(Row::Skip { ids, position });
    }

    /// Looks again at what the catalogs say has changed, and at shapes that could not be attached.
    fn refresh(&mut self) {
        let position = self.attached.position;
        let (relids, ended) = self.attached.refresh(&invalidation::take());
        if !relids.is_empty() {
            self.rows.push(Row::Changed { relids, position });
        }
        for Ended { ids, why } in ended {
            self.end(ids, position, why);
        }
    }

    pub(super) fn act_as(&mut self, role: &str) -> Result<()> {
        if self
            .role
            .as_ref()
            .is_none_or(|(current, _)| current != role)
        {
            self.role = None; // one is left before another is entered
            self.role = Some((role.to_string(), AsRole::enter(role)?));
        }
        Ok(())
    }

    /// Tells the shapes what a transaction means to them.
    pub fn transaction(&mut self, commit: &Commit) -> Result<()> {
        for Ended { ids, why } in self.attached.end(&commit.ends, commit.position) {
            self.end(ids, commit.position, why);
        }
        let touched = self.attached.touched_by(&commit.relids);
        if touched.is_empty() {
            return Ok(());
        }
        self.rows.push(Row::Touch {
            relids: touched.clone(),
            position: commit.position,
            xid: commit.xid,
        });
        let transaction = self.log.transaction(commit.member, commit.xid);
        let records = transaction.records()?;
        let chains = net::chains(&records);
        let before = self.before.clone();
        let around = Around {
            log: self.log,
            records: &records,
            before: &before,
        };
        let whole = Whole {
            commit,
            transaction: &transaction,
            chains: &chains,
            around: &around,
            records: records.len(),
        };
        if self.attached.nodes.is_empty() {
            for relid in touched {
                let group = self.attached.groups.remove(&relid);
                self.alone(&whole, group.expect("it was just there"))?;
            }
        } else {
            self.with_members(&whole, &touched)?;
        }
        let over = std::mem::take(&mut self.over);
        for Ended { ids, why } in self.attached.spread(over) {
            self.end(ids, commit.position, why);
        }
        Ok(())
    }

    /// One table's part of a transaction, its shapes having been taken out.
    pub(super) fn alone(&mut self, whole: &Whole<'_>, mut group: Group) -> Result<()> {
        match self.table(whole, &mut group) {
            Ok(()) => self.attached.put_back(group),
            Err(Error::MustRefetch(why)) => {
                let position = whole.commit.position;
                self.over
                    .extend(self.attached.end_group(group, position, &why));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// One table's part of a transaction.
    fn table(&mut self, whole: &Whole<'_>, group: &mut Group) -> Result<()> {
        // Keys are written under pinned settings, whosever they are.
        self.act_as(group.some_role())?;
        let mut open = self.open(group)?;
        let (transaction, around) = (whole.transaction, whole.around);
        let mut gains = if open.table.keyed {
            Gains {
                effects: open.table.effects(transaction, whole.chains, around)?,
                gained: Vec::new(),
            }
        } else {
            Gains::of(open.table.keyed_chains(transaction, whole.chains, around)?)
        };
        let hits = self.judge(whole, group, &mut open.table, &mut gains.effects)?;
        let mut messages = Messages::default();
        for hits in hits.chunk_by(|a, b| a.clause() == b.clause()) {
            let mut sides = sides(hits);
            if !open.table.keyed {
                sides = self.count(
                    whole,
                    group,
                    hits[0].clause(),
                    &mut open.table,
                    &gains,
                    sides,
                )?;
            }
            let Some(clause) = &group.clauses[hits[0].clause() as usize] else {
                continue;
            };
            messages.plan(
                &clause.shapes,
                &mut open.table,
                &open.projections,
                &mut gains.effects,
                &sides,
                around,
            )?;
        }
        self.write(whole, group, &mut open, &mut gains.effects, messages)?;
        open.table.scratch.reset();
        self.tables.insert(group.family.relid, open);
        Ok(())
    }

    pub(super) fn open(&mut self, group: &Group) -> Result<Open> {
        let Group {
            family,
            schema,
            table,
            key,
            selections,
            ..
        } = group;
        if let Some(open) = self.tables.remove(&family.relid) {
            return Ok(open);
        }
        let table = Table::open(family.relid, schema, table, key).ok_or_else(changed)?;
        let projections = selections
            .iter()
            .map(|(columns, replica)| Projection::new(&table, columns, *replica));
        Ok(Open {
            projections: projections.collect::<Result<_>>()?,
            table,
        })
    }

    /// Finds which where clauses let in which rows, in order. One that raises an error ends its shapes, and no others.
    pub(super) fn judge(
        &mut self,
        whole: &Whole<'_>,
        group: &mut Group,
        table: &mut Table,
        effects: &mut [Effect],
    ) -> Result<Vec<Hit>> {
        /// Clauses that are asked about each row: for more of them a value is unpacked once.
        const MANY: usize = 4;
        fetch(effects, &group.columns, table, whole.around)?;
        if group.one_by_one.len() > MANY {
            rows(effects).for_each(|row| table.unpack(row, &group.columns));
        }
        let Routed {
            mut hits,
            candidates,
        } = self.route(group, table, effects);
        for candidate in &candidates {
            let row = candidate.row(effects).filter(|row| row.is_external());
            let clause = group.clauses[candidate.clause() as usize].as_ref();
            if let (Some(row), Some(clause)) = (row, clause) {
                table.fetch(row, &group.template(clause).columns, whole.around)?;
            }
        }
        let work = group.work(&candidates);
        for work in work.chunk_by(|a, b| a.role == b.role) {
            self.act_as(&group.callers[work[0].role as usize].role)?;
            // What all of them do within the time that each has, none of them exceeds.
            let limit = guc::clause_time_limit(effects.len());
            let evaluate = |group: &mut Group, work: &[Work]| {
                attempt_evaluation_within(limit, || group.evaluate(work, &candidates, effects))
            };
            if let Ok(found) = evaluate(group, work) {
                hits.extend(found);
                continue;
            }
            for one in work {
                let one = std::slice::from_ref(one);
                match evaluate(group, one) {
                    Ok(found) => hits.extend(found),
                    Err(caught) => self.end_clause(group, one[0].clause, &caught),
                }
            }
        }
        hits.sort_unstable();
        hits.dedup();
        Ok(hits)
    }

    /// Looks rows up. A router that raises an error ends the shapes that it serves.
    fn route(&mut self, group: &mut Group, table: &Table, effects: &[Effect]) -> Routed {
        let mut routers: Vec<usize> = (0..group.routers.len()).collect();
        if !group.routing_may_fail() {
            return group.route(effects, &routers, &table.scratch);
        }
        if let Ok(routed) = attempt_evaluation(|| group.route(effects, &routers, &table.scratch)) {
            return routed;
        }
        routers.retain(|router| {
            let outcome = attempt_evaluation(|| group.route(effects, &[*router], &table.scratch));
            if let Err(caught) = &outcome {
                for clause in group.clauses_of(*router) {
                    self.end_clause(group, clause, caught);
                }
            }
            outcome.is_ok()
        });
        group.route(effects, &routers, &table.scratch)
    }

    fn end_clause(&mut self, group: &mut Group, clause: u32, caught: &Caught) {
        let ids = group.bury(clause).iter().map(|shape| shape.id).collect();
        self.over_with(ids, Why::Clause(reason(caught)));
    }

    fn over_with(&mut self, ids: Vec<i32>, why: Why) {
        let ended = Ended { ids, why };
        self.attached.forget(std::slice::from_ref(&ended));
        self.over.push(ended);
    }

    /// On a table without a key: counts the rows of a where clause. The sides are left on which the first one came or the
    /// last one went. Where they cannot be counted, the shapes end.
    fn count(
        &mut self,
        whole: &Whole<'_>,
        group: &mut Group,
        number: u32,
        table: &mut Table,
        gains: &Gains,
        sides: Vec<Side>,
    ) -> Result<Vec<Side>> {
        if let Some(role) = group.role_of(number) {
            self.act_as(&group.callers[role as usize].role)?;
        }
        let clause = group.clauses[number as usize].as_mut();
        let Some(keyless) = clause.and_then(|clause| clause.keyless.as_mut()) else {
            return Ok(Vec::new());
        };
        let until = whole.commit.position - 1;
        match counts_at(self.log, keyless, table, until) {
            Ok(counts) => Ok(counts.change(gains, sides)),
            Err(error) => {
                let position = whole.commit.position;
                let passed = matches!(error, Error::MustRefetch(_));
                let ends = |id| !(passed && self.attached.began_after(id, position));
                let ids = group.remove_of(number, ends);
                self.over_with(ids, error.into());
                Ok(Vec::new())
            }
        }
    }

    /// Writes messages, for shapes of a group that has been taken out. One that cannot be written, because it is too large,
    /// say, ends the shapes that it is for, and no others.
    pub(super) fn write(
        &mut self,
        whole: &Whole<'_>,
        group: &mut Group,
        open: &mut Open,
        effects: &mut [Effect],
        messages: Messages,
    ) -> Result<()> {
        let Messages { ids, changes } = messages;
        let mut write = |message: &Message| written(whole, open, effects, &changes, message);
        let all = attempt_evaluation(|| ids.keys().map(&mut write).collect::<Result<Vec<_>>>());
        let mut all = all.ok().transpose()?.map(Vec::into_iter);
        for (message, ids) in ids {
            let (n, text) = match all.as_mut().and_then(Iterator::next) {
                Some(written) => written,
                None => match attempt_evaluation(|| write(&message)) {
                    Ok(written) => written?,
                    Err(caught) => {
                        self.end_ids(group, ids, Why::Clause(reason(&caught)));
                        continue;
                    }
                },
            };
            self.bytes += text.len() as u64;
            self.rows.push(Row::Operation {
                ids,
                position: whole.commit.position,
                n,
                operation: message.operation,
                message: text,
                last: message.last,
            });
        }
        Ok(())
    }

    fn end_ids(&mut self, group: &mut Group, ids: Vec<i32>, why: Why) {
        for id in &ids {
            if let Some(clause) = self.attached.clause_of(*id) {
                group.remove(clause, *id);
            }
        }
        self.over_with(ids, why);
    }
}

/// The place of a message in its transaction plus one, and its text.
fn written(
    whole: &Whole<'_>,
    open: &mut Open,
    effects: &mut [Effect],
    changes: &HashMap<(usize, usize), Vec<bool>>,
    message: &Message,
) -> Result<(i64, String)> {
    let at = At {
        xid: whole.commit.xid,
        position: whole.commit.position,
    };
    let changes = changes.get(&(message.effect, message.selection));
    let job = Job {
        operation: message.operation,
        changes: changes.map_or(&[][..], |changed| changed),
        pair: message.pair,
    };
    let projection = &mut open.projections[message.selection];
    let effect = &mut effects[message.effect];
    let begun = projection.write(&mut open.table, effect, job, at, whole.around)?;
    let n = effect.op_position as i64 + 1;
    Ok((n, operation::text(&begun, message.last)))
}

/// Why shapes end whose where clause raised an error; without its text, which may have values in it.
pub(super) fn reason(caught: &Caught) -> String {
    if caught.message == TOO_SLOW {
        return TOO_SLOW.into();
    }
    let code = caught.sqlstate as i32;
    let character = |n: i32| char::from(((code >> (6 * n)) & 0x3F) as u8 + b'0');
    let sqlstate: String = (0..5).map(character).collect();
    format!("evaluation failed with SQLSTATE {sqlstate}")
}

/// How often each row of a where clause is there, as of `until`. They are counted once, and again where a row is of other
/// columns now, which may not be told: then the log has an end to come, and that is the error.
fn counts_at<'k>(
    log: &Log,
    keyless: &'k mut Keyless,
    table: &mut Table,
    until: i64,
) -> Result<&'k mut Counts> {
    let Keyless { definition, counts } = keyless;
    if counts.as_ref().is_none_or(|counts| !counts.are_of(table)) {
        let (batch, before) = log
            .newest_batch_up_to(until)
            .map(|batch| (batch.position, batch.snapshot))
            .unwrap_or_default();
        let mut tally = Tally {
            log,
            definition,
            table,
            filter: &mut Filter::new(definition)?,
        };
        *counts = Some(tally.at(batch, until, &before)?);
    }
    Ok(counts.as_mut().expect("they were just counted"))
}
