//! Who gets which message: shapes that get the same one share it.

use std::collections::{BTreeMap, HashMap};

use super::attached::Filtered;
use super::judge::Sides;
use super::message::Operation;
use super::operation::{self, Projection};
use super::tuple::{Around, Effect, Table};
use crate::error::Result;

/// A message that is to be written: shapes that get the same one share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Message {
    /// Index of the effect that it is about.
    pub effect: usize,
    /// Index of what the shapes select.
    pub selection: usize,
    /// What happened.
    pub operation: Operation,
    /// It is one half of a row that changed its key.
    pub pair: bool,
    /// It is the shapes' last in the transaction.
    pub last: bool,
}

/// What is to be written for one table and transaction, in order.
#[derive(Default)]
pub struct Messages {
    /// For whom each message is.
    pub ids: BTreeMap<Message, Vec<i32>>,
    /// By effect and selection: which selected columns changed.
    pub changes: HashMap<(usize, usize), Vec<bool>>,
}

impl Messages {
    /// Adds the operations of a filter's shapes.
    pub fn plan(
        &mut self,
        filtered: &Filtered,
        table: &mut Table,
        projections: &[Projection],
        effects: &mut [Effect],
        (was_in, is_in): &Sides,
        around: &Around<'_>,
    ) -> Result<()> {
        for shape in &filtered.shapes {
            let selection = shape.selection;
            for i in (0..effects.len()).filter(|i| was_in[*i] && is_in[*i]) {
                if self.changes.contains_key(&(i, selection)) {
                    continue;
                }
                let Effect {
                    before: Some(before),
                    after: Some(after),
                    ..
                } = &mut effects[i]
                else {
                    continue;
                };
                let changed = projections[selection].changes(table, before, after, around)?;
                self.changes.insert((i, selection), changed);
            }
            let changed = |i| {
                Ok(self
                    .changes
                    .get(&(i, selection))
                    .is_some_and(|changed| changed.contains(&true)))
            };
            let planned = operation::plan(effects, was_in, is_in, changed)?;
            for (i, planned_one) in planned.iter().enumerate() {
                let operation::Planned {
                    effect,
                    operation,
                    pair,
                } = *planned_one;
                let message = Message {
                    effect,
                    selection,
                    operation,
                    pair,
                    last: i + 1 == planned.len(),
                };
                self.ids.entry(message).or_default().extend(&shape.ids);
            }
        }
        Ok(())
    }
}
