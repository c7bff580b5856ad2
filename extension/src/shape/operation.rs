//! What a transaction's net effect on a key means to a shape, and the messages that say so.

use super::definition::Replica;
use super::message::{self, Change, Operation};
use super::tuple::{Around, Effect, Table, changed};
use crate::error::Result;
use crate::pg::encode::Column;
use crate::pg::image::Row;

/// What happens in a shape when a row goes from in or out to in or out. Pure.
pub fn decide(
    was_in: bool,
    is_in: bool,
    selected_changed: impl FnOnce() -> bool,
) -> Option<Operation> {
    match (was_in, is_in) {
        (false, true) => Some(Operation::Insert),
        (true, false) => Some(Operation::Delete),
        (true, true) => selected_changed().then_some(Operation::Update),
        (false, false) => None,
    }
}

/// The transaction that operations are of.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Its id.
    pub xid: u64,
    /// Its position.
    pub position: i64,
}

/// A message that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// What happened.
    pub operation: Operation,
    /// For an update: which selected columns changed.
    pub changes: &'a [bool],
    /// It is one half of a row that changed its key and stayed in.
    pub pair: bool,
}

/// The columns of a shape and how they are written: the same for all shapes with the same columns and replica mode.
pub struct Projection {
    /// Places of the selected columns, from 0.
    selected: Vec<usize>,
    columns: Vec<Column>,
    /// For each selected column: it is one of the key's. None when the table has no key.
    of_key: Option<Vec<bool>>,
    replica: Replica,
}

impl Projection {
    /// Of these columns.
    pub fn new(table: &Table, columns: &[String], replica: Replica) -> Result<Projection> {
        let selected = table.places(columns).ok_or_else(changed)?;
        let columns = table.columns(&selected);
        let of_key = table.keyed.then(|| {
            selected
                .iter()
                .map(|place| table.key.contains(place))
                .collect()
        });
        Ok(Projection {
            selected,
            columns,
            of_key,
            replica,
        })
    }

    /// For each selected column: its value is not what it was.
    pub fn changes(
        &self,
        table: &mut Table,
        before: &mut Row,
        after: &mut Row,
        around: &Around<'_>,
    ) -> Result<Vec<bool>> {
        let differs = |place: &usize| Ok(!table.same_value(before, after, *place, around)?);
        self.selected.iter().map(differs).collect()
    }

    /// The message of an operation on a key, up to where `last` stands.
    pub fn write(
        &mut self,
        table: &mut Table,
        effect: &mut Effect,
        job: Job<'_>,
        at: At,
        around: &Around<'_>,
    ) -> Result<Vec<u8>> {
        let Job {
            operation,
            changes,
            pair,
        } = job;
        let row = if operation == Operation::Delete {
            &mut effect.before
        } else {
            &mut effect.after
        };
        let row = row
            .as_mut()
            .expect("an operation has the row that it is about");
        let (mut value, mut old_value) = (Vec::with_capacity(128), None);
        let wanted = self.wanted(operation, changes);
        self.put(table, row, &wanted, around, &mut value)?;
        if operation == Operation::Update && self.replica == Replica::Full {
            let before = effect
                .before
                .as_mut()
                .expect("an update has the row as it was");
            self.put(table, before, changes, around, old_value.insert(Vec::new()))?;
        }
        let change = Change {
            key: &effect.key,
            value: &value,
            old_value: old_value.as_deref(),
            operation,
            other_key: effect.other_key.as_deref().filter(|_| pair),
            xid: at.xid,
            position: at.position,
            op_position: effect.op_position,
        };
        Ok(change.begin(&table.message))
    }

    /// For each selected column: a message of this kind has it.
    fn wanted(&self, operation: Operation, changes: &[bool]) -> Vec<bool> {
        let all = vec![true; self.selected.len()];
        let Some(of_key) = &self.of_key else {
            return all;
        };
        match (operation, self.replica) {
            (Operation::Insert, _) | (_, Replica::Full) => all,
            (Operation::Delete, Replica::Default) => of_key.clone(),
            (Operation::Update, Replica::Default) => of_key
                .iter()
                .zip(changes)
                .map(|(key, new)| *key || *new)
                .collect(),
        }
    }

    fn put(
        &mut self,
        table: &mut Table,
        row: &mut Row,
        wanted: &[bool],
        around: &Around<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if row.is_external() {
            let places: Vec<usize> = self
                .selected
                .iter()
                .zip(wanted)
                .filter(|(_, wanted)| **wanted)
                .map(|(place, _)| *place)
                .collect();
            table.fetch(row, &places, around)?;
        }
        let columns = self
            .columns
            .iter_mut()
            .zip(wanted)
            .filter(|(_, wanted)| **wanted)
            .map(|(column, _)| column);
        table.scratch.run(|| {
            for (i, column) in columns.enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                column.put_member(row.get(column.index), out);
            }
        });
        Ok(())
    }
}

/// One operation of a shape in a transaction.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// Index of the effect that it comes from.
    pub effect: usize,
    /// What happened.
    pub operation: Operation,
    /// It is one half of a row that changed its key and stayed in.
    pub pair: bool,
}

/// An effect with a row of a shape on one side at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Index of the effect.
    pub effect: usize,
    /// The row was in before.
    pub was_in: bool,
    /// The row is in after.
    pub is_in: bool,
}

/// The operations of a shape in a transaction. `sides` are in order; effects that are not there do not concern it. `changed`
/// says whether a selected column changed.
pub fn plan(
    effects: &[Effect],
    sides: &[Side],
    mut changed: impl FnMut(usize) -> Result<bool>,
) -> Result<Vec<Planned>> {
    let mut planned = Vec::new();
    for (place, side) in sides.iter().enumerate() {
        let effect = side.effect;
        let mut outcome = Ok(false);
        let operation = decide(side.was_in, side.is_in, || {
            outcome = changed(effect);
            matches!(outcome, Ok(true))
        });
        outcome?;
        if let Some(operation) = operation {
            planned.push(Planned {
                effect,
                operation,
                pair: effects[effect].other_key.is_some() && stays(effects, sides, place),
            });
        }
    }
    Ok(planned)
}

/// Both ends of a row that changed its key are in the shape. The other end is near: its place is one off.
fn stays(effects: &[Effect], sides: &[Side], place: usize) -> bool {
    let this = sides[place];
    let is_other =
        |other: &&Side| effects[other.effect].op_position ^ 1 == effects[this.effect].op_position;
    if this.is_in {
        let before = place.checked_sub(1).map(|before| &sides[before]);
        before.filter(is_other).is_some_and(|other| other.was_in)
    } else {
        let after = sides.get(place + 1);
        after.filter(is_other).is_some_and(|other| other.is_in)
    }
}

/// A finished message as text.
pub fn text(begun: &[u8], last: bool) -> String {
    String::from_utf8(message::finish(begun, last)).expect("the database's encoding is UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_and_out() {
        assert_eq!(
            decide(false, true, || unreachable!()),
            Some(Operation::Insert)
        );
        assert_eq!(
            decide(true, false, || unreachable!()),
            Some(Operation::Delete)
        );
        assert_eq!(decide(true, true, || true), Some(Operation::Update));
        assert_eq!(decide(true, true, || false), None);
        assert_eq!(decide(false, false, || unreachable!()), None);
    }
}
