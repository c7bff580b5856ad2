//! Who gets which message: shapes that get the same one share it.

use std::collections::{BTreeMap, HashMap};

use super::group::Shape;
use super::message::Operation;
use super::operation::{self, Projection, Side};
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
    /// Adds the operations of shapes with one where clause. `sides` are those on which it lets rows in.
    pub fn plan(
        &mut self,
        shapes: &[Shape],
        table: &mut Table,
        projections: &[Projection],
        effects: &mut [Effect],
        sides: &[Side],
        around: &Around<'_>,
    ) -> Result<()> {
        for shape in shapes {
            let selection = shape.selection as usize;
            for i in sides.iter().filter(|side| side.was_in && side.is_in) {
                let i = i.effect;
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
            let planned = operation::plan(effects, sides, changed)?;
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
                self.ids.entry(message).or_default().push(shape.id);
            }
        }
        Ok(())
    }
}
