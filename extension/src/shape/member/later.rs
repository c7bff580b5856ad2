//! What transactions after a position did to tables: with that, rows as of the position are found from the rows now.

use std::collections::HashMap;
use std::rc::Rc;

use super::super::net;
use super::super::overlay::ended;
use super::super::tuple::{Around, Effect, Table};
use super::super::window::{Batch, End, Log, ends_of};
use crate::error::Result;
use crate::sequence::order::{Snapshot, Transaction as Summary};

/// Where a transaction is that has no position yet: behind all that have one, in order.
const UNSEQUENCED: i64 = i64::MAX / 2;

/// What one transaction did to a table.
pub struct Entry {
    /// Its position.
    pub position: i64,
    /// By key; every value is fetched.
    pub effects: Vec<Effect>,
}

/// Transactions that the active snapshot sees, after a batch. Each table's part is decoded once, when it is asked for.
pub struct Later<'a> {
    /// The log.
    pub log: &'a Log,
    batch: i64,
    before: Snapshot,
    summaries: Option<Rc<Vec<(i64, Summary)>>>,
    tables: HashMap<u32, Rc<Vec<Entry>>>,
}

impl<'a> Later<'a> {
    /// Transactions after the newest batch up to a position.
    pub fn than(log: &'a Log, position: i64) -> Later<'a> {
        let batch = log.newest_batch_up_to(position);
        let Batch { position, snapshot } = batch.unwrap_or(Batch {
            position: 0,
            snapshot: Snapshot::default(),
        });
        Later {
            log,
            batch: position,
            before: snapshot,
            summaries: None,
            tables: HashMap::new(),
        }
    }

    /// All transactions, in the order of their positions.
    fn summaries(&mut self) -> Rc<Vec<(i64, Summary)>> {
        if let Some(summaries) = &self.summaries {
            return summaries.clone();
        }
        let commits = self
            .log
            .commits(self.batch, i64::MAX, |_| true, usize::MAX)
            .0;
        let positions: HashMap<u64, i64> = commits
            .iter()
            .map(|commit| (commit.xid, commit.position))
            .collect();
        let all = self
            .log
            .unseen_by(&self.before)
            .into_iter()
            .zip(UNSEQUENCED..);
        let mut all: Vec<(i64, Summary)> = all
            .map(|(summary, place)| {
                (
                    positions.get(&summary.xid).copied().unwrap_or(place),
                    summary,
                )
            })
            .collect();
        all.sort_by_key(|(position, _)| *position);
        let all = Rc::new(all);
        self.summaries = Some(all.clone());
        all
    }

    /// What those after a position did to a table with a key, in order. An error if something ended the table's epoch
    /// after the position `begun`, from which on what is found must be right.
    pub fn of(&mut self, table: &mut Table, after: i64, begun: i64) -> Result<Rc<Vec<Entry>>> {
        let summaries = self.summaries();
        let ends = |end: &End| end.concerns(&table.family);
        let later = summaries.iter().filter(|(position, _)| *position > begun);
        for (_, summary) in later {
            if let Some(end) = ends_of(summary).find(ends) {
                return Err(ended(&end));
            }
        }
        let relid = table.family.relid;
        if let Some(entries) = self.tables.get(&relid) {
            return Ok(entries.clone());
        }
        let mut entries = Vec::new();
        for (position, summary) in summaries.iter() {
            // What is at or before the position was told already, and may be of an epoch that has ended.
            if *position > after && summary.relids.contains(&relid) {
                let effects = self.effects(table, summary)?;
                entries.push(Entry {
                    position: *position,
                    effects,
                });
            }
        }
        let entries = Rc::new(entries);
        self.tables.insert(relid, entries.clone());
        Ok(entries)
    }

    fn effects(&self, table: &mut Table, summary: &Summary) -> Result<Vec<Effect>> {
        let transaction = self.log.transaction(summary.member, summary.xid);
        let records = transaction.records()?;
        let around = Around {
            log: self.log,
            records: &records,
            before: &self.before,
        };
        let mut effects = table.effects(&transaction, &net::chains(&records), &around)?;
        let all: Vec<usize> = (0..table.width())
            .filter(|place| !table.name_of(*place).is_empty())
            .collect();
        super::super::judge::fetch(&mut effects, &all, table, &around)?;
        Ok(effects)
    }
}
