//! One transaction, told to shapes with subqueries: inner selects first, then what they are constants of.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use super::super::attached::{Ended, Why};
use super::super::group::{Group, Shape};
use super::super::judge::fetch;
use super::super::operation::Side;
use super::super::pass::{Open, Pass, Whole, reason};
use super::super::route::{Hit, sides};
use super::super::share::Messages;
use super::super::tuple::Effect;
use super::later;
use super::moves::Outcome;
use super::nodes::{Nodes, Reader};
use super::rows::{self, Condition, places};
use super::set::Delta;
use crate::error::{Error, Result};
use crate::pg::attempt::attempt_evaluation;
use crate::pg::expr::{Change, Select, Value};
use crate::pg::image::Row;
use crate::pg::memory::Context;

/// A table that the transaction touched, or whose shapes have sets that changed.
struct Part {
    group: Group,
    open: Open,
    effects: Vec<Effect>,
    hits: Vec<Hit>,
}

type Parts = BTreeMap<u32, Part>;

/// What has been found out.
#[derive(Default)]
struct Turn {
    /// Sets that changed, by node.
    changes: HashMap<usize, Change>,
    /// Nodes whose clause is another one now.
    flipped: Vec<usize>,
    /// What that meant to the rows of shapes.
    outcomes: HashMap<usize, Outcome>,
    /// Nodes that too many rows of moved: their shapes are told nothing.
    skipped: Vec<usize>,
}

/// A node and what it is told of.
pub(super) struct Job<'a> {
    nodes: &'a Nodes,
    node: usize,
    select: &'a Select,
    changes: &'a HashMap<usize, Change>,
    pub(super) effects: &'a [Effect],
    /// What later transactions did to the table.
    later: Rc<Vec<later::Entry>>,
    position: i64,
}

impl Pass<'_> {
    /// Tells all shapes on these tables, and those that have subqueries on them, what a transaction means to them.
    pub(in super::super) fn with_members(
        &mut self,
        whole: &Whole<'_>,
        touched: &[u32],
    ) -> Result<()> {
        let mut parts = Parts::new();
        for relid in touched {
            if let Some(group) = self.attached.groups.remove(relid) {
                self.take_part(whole, group, &mut parts)?;
            }
        }
        let mut nodes = std::mem::take(&mut self.attached.nodes);
        let mut turn = self.turn(whole, &mut nodes, &mut parts)?;
        self.tell(whole, &nodes, &mut parts, &mut turn)?;
        self.give_new_clauses(&nodes, &turn, &mut parts);
        self.attached.nodes = nodes;
        for (relid, part) in parts {
            part.open.table.scratch.reset();
            self.tables.insert(relid, part.open);
            self.attached.put_back(part.group);
        }
        Ok(())
    }

    fn take_part(&mut self, whole: &Whole<'_>, mut group: Group, parts: &mut Parts) -> Result<()> {
        if group.key.is_empty() {
            return self.alone(whole, group); // no subquery is about a table without a key
        }
        match self.begin(whole, &mut group) {
            Ok((open, effects, hits)) => {
                let relid = group.family.relid;
                parts.insert(
                    relid,
                    Part {
                        group,
                        open,
                        effects,
                        hits,
                    },
                );
                Ok(())
            }
            Err(Error::MustRefetch(why)) => {
                self.over
                    .extend(self.attached.end_group(group, whole.commit.position, &why));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Finds which where clauses let in which rows of a table.
    fn begin(
        &mut self,
        whole: &Whole<'_>,
        group: &mut Group,
    ) -> Result<(Open, Vec<Effect>, Vec<Hit>)> {
        self.act_as(group.some_role())?;
        let mut open = self.open(group)?;
        let table = &mut open.table;
        let mut effects = table.effects(whole.transaction, whole.chains, whole.around)?;
        let hits = self.judge(whole, group, table, &mut effects)?;
        Ok((open, effects, hits))
    }

    /// Has the sets take the transaction in, inner ones first.
    fn turn(&mut self, whole: &Whole<'_>, nodes: &mut Nodes, parts: &mut Parts) -> Result<Turn> {
        let mut turn = Turn::default();
        let mut touched: HashMap<usize, Vec<Side>> = HashMap::new();
        for part in parts.values() {
            for hits in part.hits.chunk_by(|a, b| a.clause() == b.clause()) {
                let clause = part.group.clauses[hits[0].clause() as usize].as_ref();
                let shapes = clause.iter().flat_map(|clause| clause.shapes.iter());
                for node in shapes.filter_map(|shape| Nodes::of_id(shape.id)) {
                    touched.insert(node, sides(hits));
                }
            }
        }
        let mut work: BTreeSet<(usize, usize)> = touched
            .keys()
            .map(|node| (nodes.get(*node).depth, *node))
            .collect();
        while let Some((_, node)) = work.pop_first() {
            let found = self.one(whole, nodes, node, &touched, parts, &mut turn);
            let values = match found {
                Ok(values) => values,
                Err(Failed::Shapes(why)) => {
                    let ids = nodes.get(node).shapes.clone();
                    self.over.push(Ended { ids, why });
                    continue;
                }
                Err(Failed::All(error)) => return Err(error),
            };
            if !values.is_empty() {
                turn.changes.insert(node, Change { values });
                let parents = &nodes.get(node).parents;
                work.extend(
                    parents
                        .iter()
                        .map(|parent| (nodes.get(*parent).depth, *parent)),
                );
            }
        }
        Ok(turn)
    }

    /// Tells one node. Returns the values that came into its set or left it.
    fn one(
        &mut self,
        whole: &Whole<'_>,
        nodes: &mut Nodes,
        number: usize,
        touched: &HashMap<usize, Vec<Side>>,
        parts: &mut Parts,
        turn: &mut Turn,
    ) -> std::result::Result<Vec<Box<Value>>, Failed> {
        let node = nodes.get(number);
        let flipped = node
            .children
            .iter()
            .any(|child| turn.changes.contains_key(child));
        let definition = node.definition.clone();
        let Some(part) = self.part(definition.relid, parts)? else {
            return Ok(Vec::new()); // its shapes have just ended
        };
        self.act_as(&definition.role)?;
        let select = nodes.select(number)?;
        let Part {
            group,
            open,
            effects,
            ..
        } = part;
        fetch(effects, &places(&select), &mut open.table, whole.around)?;
        let position = whole.commit.position;
        let later = if flipped {
            self.later.of(&mut open.table, position, position)?
        } else {
            Rc::default()
        };
        let job = Job {
            nodes,
            node: number,
            select: &select,
            changes: &turn.changes,
            effects,
            later,
            position,
        };
        let memory = Context::new();
        if nodes.get(number).is_root {
            let shapes = self.attached.shapes_of(group, &nodes.get(number).shapes);
            let columns = columns(group, &shapes, open, &places(&select));
            let limit = self.moves;
            let outcome = caught(
                memory.run(|| attempt_evaluation(|| job.rows_of_shape(open, &columns, limit))),
            )?;
            match outcome {
                Some(outcome) => drop(turn.outcomes.insert(number, outcome)),
                None => turn.skipped.push(number),
            }
            turn.flipped.push(number);
            return Ok(Vec::new());
        }
        let delta = caught(memory.run(|| {
            attempt_evaluation(|| match (flipped, touched.get(&number)) {
                (true, _) => job.flipped(open),
                (false, Some(sides)) => Ok(job.touched(sides)),
                (false, None) => Ok(Delta::default()),
            })
        }))?;
        if flipped {
            turn.flipped.push(number);
        }
        Ok(nodes.get_mut(number).set.apply(delta))
    }

    /// The part of a table, which the transaction need not have touched.
    fn part<'p>(&mut self, relid: u32, parts: &'p mut Parts) -> Result<Option<&'p mut Part>> {
        let place = match parts.entry(relid) {
            Entry::Occupied(part) => return Ok(Some(part.into_mut())),
            Entry::Vacant(place) => place,
        };
        let Some(group) = self.attached.groups.remove(&relid) else {
            return Ok(None);
        };
        self.act_as(group.some_role())?;
        let open = self.open(&group)?;
        let (effects, hits) = Default::default();
        Ok(Some(place.insert(Part {
            group,
            open,
            effects,
            hits,
        })))
    }

    /// Writes the messages of all shapes.
    fn tell(
        &mut self,
        whole: &Whole<'_>,
        nodes: &Nodes,
        parts: &mut Parts,
        turn: &mut Turn,
    ) -> Result<()> {
        let mut told: HashSet<i32> = HashSet::new();
        let position = whole.commit.position;
        for node in &turn.skipped {
            let ids = nodes.get(*node).shapes.clone();
            told.extend(&ids);
            self.skip(ids, position);
        }
        let mut outcomes: Vec<(usize, Outcome)> = turn.outcomes.drain().collect();
        outcomes.sort_unstable_by_key(|(node, _)| *node);
        for (node, outcome) in outcomes {
            let node = nodes.get(node);
            told.extend(&node.shapes);
            let Some(part) = parts.get_mut(&node.definition.relid) else {
                continue;
            };
            let shapes = self.attached.shapes_of(&part.group, &node.shapes);
            let touched = part.effects.len();
            let sides = outcome.put_in(&mut part.effects, whole.records as u64);
            self.plan_and_write(whole, part, vec![(shapes, sides)])?;
            part.effects.truncate(touched);
        }
        for part in parts.values_mut() {
            let mut plans = Vec::new();
            for hits in part.hits.chunk_by(|a, b| a.clause() == b.clause()) {
                let Some(clause) = &part.group.clauses[hits[0].clause() as usize] else {
                    continue;
                };
                let rest = clause
                    .shapes
                    .iter()
                    .filter(|shape| shape.id >= 0 && !told.contains(&shape.id));
                plans.push((rest.copied().collect(), sides(hits)));
            }
            self.plan_and_write(whole, part, plans)?;
        }
        Ok(())
    }

    fn plan_and_write(
        &mut self,
        whole: &Whole<'_>,
        part: &mut Part,
        plans: Vec<(Vec<Shape>, Vec<Side>)>,
    ) -> Result<()> {
        let Part {
            group,
            open,
            effects,
            ..
        } = part;
        let mut messages = Messages::default();
        for (shapes, sides) in &plans {
            let (table, projections) = (&mut open.table, &open.projections);
            messages.plan(shapes, table, projections, effects, sides, whole.around)?;
        }
        self.write(whole, group, open, effects, messages)
    }

    /// Puts those whose sets have changed under the clauses that they have now.
    fn give_new_clauses(&mut self, nodes: &Nodes, turn: &Turn, parts: &mut Parts) {
        for number in &turn.flipped {
            let node = nodes.get(*number);
            let relid = node.definition.relid;
            let Some(part) = parts.get_mut(&relid) else {
                continue;
            };
            let memory = Context::new();
            let outcome = self.act_as(&node.definition.role).and_then(|()| {
                let select = nodes.select(*number)?;
                let moved = attempt_evaluation(|| {
                    memory.run(|| {
                        let clause = nodes.frozen(*number, &select);
                        let text = clause
                            .as_ref()
                            .map(|clause| clause.deparsed(pgrx::pg_sys::Oid::from_u32(relid)));
                        let lifted = clause.map(|clause| clause.lift());
                        self.attached.rehome(
                            &mut part.group,
                            &node.shapes,
                            text.as_deref(),
                            lifted.as_ref(),
                        );
                    })
                });
                moved.map_err(|caught| Error::Clause(reason(&caught)))
            });
            if let Err(error) = outcome {
                let (ids, why) = (node.shapes.clone(), error.into());
                self.over.push(Ended { ids, why });
            }
        }
    }
}

/// Why a node could not be told.
enum Failed {
    /// What depends on it ends.
    Shapes(Why),
    /// The feed does.
    All(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        match error {
            Error::MustRefetch(_) | Error::Clause(_) | Error::Sql(..) => {
                Failed::Shapes(error.into())
            }
            error => Failed::All(error),
        }
    }
}

fn caught<T>(
    outcome: std::result::Result<Result<T>, crate::pg::attempt::Caught>,
) -> std::result::Result<T, Failed> {
    match outcome {
        Ok(outcome) => Ok(outcome?),
        Err(caught) => Err(Failed::Shapes(Why::Clause(reason(&caught)))),
    }
}

/// Places of the columns that are needed of rows that come into these shapes or leave them.
fn columns(group: &Group, shapes: &[Shape], open: &Open, read: &[usize]) -> Vec<usize> {
    let selected = shapes
        .iter()
        .map(|shape| &group.selections[shape.selection as usize].0);
    let mut columns: Vec<usize> = selected
        .filter_map(|names| open.table.places(names))
        .flatten()
        .collect();
    columns.extend(read);
    columns.extend(&open.table.key);
    columns.sort_unstable();
    columns.dedup();
    columns
}

impl Job<'_> {
    pub(super) fn conditions(&self) -> (Condition, Condition) {
        let relid = self.select.relid;
        let before = self
            .nodes
            .frozen_before(self.node, self.select, self.changes);
        let after = self.nodes.frozen(self.node, self.select);
        (Condition::new(relid, before), Condition::new(relid, after))
    }

    /// The query for the rows as they are now that the changes may have moved, of which it reads these columns.
    pub(super) fn query(&self, open: &Open, columns: &[usize]) -> String {
        let node = self.nodes.get(self.node);
        let changes: Vec<Option<&Change>> = node
            .children
            .iter()
            .map(|child| self.changes.get(child))
            .collect();
        let clause = self.select.candidates(&changes);
        rows::query(&node.definition, &open.table, columns, clause.as_ref())
    }

    /// What later transactions did to the table, in order.
    pub(super) fn since(&self) -> impl Iterator<Item = &Effect> {
        let entries = self
            .later
            .iter()
            .filter(|entry| entry.position > self.position);
        entries.flat_map(|entry| &entry.effects)
    }

    /// What the transaction did to a set whose rows have the same clause as before.
    fn touched(&self, sides: &[Side]) -> Delta {
        let mut reader = Reader::new(self.select);
        let mut delta = Delta::default();
        for side in sides {
            let effect = &self.effects[side.effect];
            if let Some(row) = effect.before.as_ref().filter(|_| side.was_in) {
                delta.add(reader.value(row), -1);
            }
            if let Some(row) = effect.after.as_ref().filter(|_| side.is_in) {
                delta.add(reader.value(row), 1);
            }
        }
        delta
    }

    /// What became of a set whose rows have another clause now: first what the transaction did to the rows under the
    /// old clause, then what the new one means for all rows that there are after it. Those are the rows now, less what
    /// later transactions added, and what they took away.
    fn flipped(&self, open: &Open) -> Result<Delta> {
        let (mut old, mut new) = self.conditions();
        let mut reader = Reader::new(self.select);
        let mut delta = Delta::default();
        for effect in self.effects {
            for (row, rows) in [(&effect.before, -1), (&effect.after, 1)] {
                if let Some(row) = row.as_ref().filter(|row| old.matches(row)) {
                    delta.add(reader.value(row), rows);
                }
            }
        }
        let mut weigh = |row: &Row, rows: i64| {
            let weight = i64::from(new.matches(row)) - i64::from(old.matches(row));
            if weight != 0 {
                delta.add(reader.value(row), rows * weight);
            }
        };
        let query = self.query(open, &places(self.select));
        rows::each(&query, &mut |row| weigh(&row, 1))?;
        for effect in self.since() {
            effect.after.iter().for_each(|row| weigh(row, -1));
            effect.before.iter().for_each(|row| weigh(row, 1));
        }
        Ok(delta)
    }
}
