//! Rows that come into a shape, or leave it, without being touched, because its clause is another one now.

use std::collections::HashSet;

use super::super::operation::Side;
use super::super::pass::Open;
use super::super::tuple::{Effect, Key, Table};
use super::rows::{self, Condition};
use super::turn::Job;
use crate::error::{Error, Result};
use crate::pg::image::Row;

/// What is done about a transaction that moves more rows of a shape than this.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// The shape is told nothing of it: who wants to know reads its log, in another session. As many rows are kept at most, and ten
    /// times as many looked at.
    Skip(usize),
    /// The shape ends.
    End(usize),
}

/// Such a shape ends for this reason.
pub const AMPLIFICATION: &str = "amplification";

/// What a transaction did to the rows of a shape whose clause is another one now.
#[derive(Default)]
pub(super) struct Outcome {
    sides: Vec<Side>,
    moved: Vec<Moved>,
}

/// A row that came into a shape, or left it, without being touched.
struct Moved {
    key: Key,
    row: Row,
    came: bool,
}

/// Looks for rows that moved.
struct Search {
    old: Condition,
    new: Condition,
    moved: Vec<Moved>,
    looked_at: usize,
    limit: Limit,
}

impl Search {
    /// Judges a row that the transaction did not touch. False once the limit is passed.
    fn look(&mut self, key: Key, row: &Row, table: &Table) -> bool {
        self.looked_at += 1;
        let (was_in, came) = (self.old.matches(row), self.new.matches(row));
        if was_in != came {
            let row = table.keep(row);
            self.moved.push(Moved { key, row, came });
        }
        !self.is_over()
    }

    fn is_over(&self) -> bool {
        match self.limit {
            Limit::Skip(most) => self.moved.len() > most || self.looked_at > 10 * most,
            Limit::End(most) => self.moved.len() > most,
        }
    }
}

impl Job<'_> {
    /// What became of the rows of a shape that has another clause now; None if it is to be skipped. Those that the
    /// transaction touched are judged by their old image under the old clause, and by the new one under the new clause;
    /// of the others, which are what they were, those are moved that only one of the clauses lets in.
    pub(super) fn rows_of_shape(
        &self,
        open: &mut Open,
        columns: &[usize],
        limit: Limit,
    ) -> Result<Option<Outcome>> {
        let (mut old, mut new) = self.conditions();
        let mut sides = Vec::new();
        let mut known: HashSet<Key> = HashSet::new();
        for (number, effect) in self.effects.iter().enumerate() {
            let was_in = effect.before.as_ref().is_some_and(|row| old.matches(row));
            let is_in = effect.after.as_ref().is_some_and(|row| new.matches(row));
            if was_in || is_in {
                sides.push(Side {
                    effect: number,
                    was_in,
                    is_in,
                });
            }
            known.insert(effect.key.clone());
        }
        let query = self.query(open, columns);
        let table = &mut open.table;
        let mut search = Search {
            old,
            new,
            moved: Vec::new(),
            looked_at: 0,
            limit,
        };
        for effect in self.since() {
            if known.insert(effect.key.clone())
                && let Some(row) = &effect.before
            {
                search.look(effect.key.clone(), row, table);
            }
        }
        rows::each_while(&query, &mut |row| {
            let key = table.key_of(&row);
            known.contains(&key) || search.look(key, &row, table)
        })?;
        match limit {
            _ if !search.is_over() => {}
            Limit::Skip(_) => return Ok(None),
            Limit::End(most) => {
                let why = format!("{AMPLIFICATION} (a transaction moves more than {most} rows)");
                return Err(Error::MustRefetch(why));
            }
        }
        let mut moved = search.moved;
        moved.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(Some(Outcome { sides, moved }))
    }
}

impl Outcome {
    /// Adds what moved to the effects of the transaction, behind all that it touched; returns all sides.
    pub(super) fn put_in(self, effects: &mut Vec<Effect>, records: u64) -> Vec<Side> {
        let mut sides = self.sides;
        for (Moved { key, row, came }, number) in self.moved.into_iter().zip(0..) {
            sides.push(Side {
                effect: effects.len(),
                was_in: !came,
                is_in: came,
            });
            let (before, after) = if came {
                (None, Some(row))
            } else {
                (Some(row), None)
            };
            effects.push(Effect {
                op_position: 2 * records + number,
                key,
                before,
                after,
                other_key: None,
            });
        }
        sides
    }
}
