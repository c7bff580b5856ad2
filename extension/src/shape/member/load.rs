//! The sets of inner selects that are new, read as of one position: one query for all that have one form.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::super::attached::Attached;
use super::super::definition::Definition;
use super::super::group::Group;
use super::super::template::Way;
use super::super::tuple::{Effect, Table};
use super::later::{self, Later};
use super::nodes::{Nodes, Reader, open};
use super::rows::{self, Condition, places};
use super::set::Delta;
use crate::error::Result;
use crate::pg::expr::{Select, Value, Where, together};
use crate::pg::image::Row;
use crate::pg::memory::Context;

/// An inner select whose set is to be read.
pub struct New {
    /// Its node.
    pub node: usize,
    /// What it is.
    pub select: Rc<Select>,
    /// What its role needs the right to.
    pub read: Definition,
}

/// One that has its place in its table's group.
struct Placed<'a> {
    new: &'a New,
    clause: u32,
    frozen: Option<Where>,
}

/// What is read of a table, and of later transactions that have changed it.
struct Source<'a> {
    definition: &'a Definition,
    table: &'a Table,
    later: &'a [later::Entry],
    position: i64,
}

impl Attached {
    /// Puts inner selects of one table, whose inner selects have their sets, among the others of their table, and reads
    /// their sets as of the position of all. To be called while acting as their role. What is found is right from the
    /// position `begun` on, as what ended a table's epoch before was no change of rows.
    pub(super) fn load(
        &mut self,
        nodes: &mut Nodes,
        all: &[New],
        later: &mut Later<'_>,
        begun: i64,
    ) -> Result<()> {
        let Some(first) = all.first() else {
            return Ok(());
        };
        let memory = Context::new();
        memory.run(|| {
            let mut forms: BTreeMap<u32, Vec<Placed<'_>>> = BTreeMap::new();
            for new in all {
                let frozen = nodes.frozen(new.node, &new.select);
                let id = nodes.get(new.node).shapes[0];
                self.begin(id, begun);
                let clause = self.place(id, &new.read, frozen.as_ref())?;
                let form = self.group(&new.read)?.template_of(clause);
                let placed = Placed {
                    new,
                    clause,
                    frozen,
                };
                forms.entry(form).or_default().push(placed);
            }
            let definition = nodes.get(first.node).definition.clone();
            let mut table = open(&definition)?;
            let later = later.of(&mut table, self.position, begun)?;
            let source = Source {
                definition: &definition,
                table: &table,
                later: &later,
                position: self.position,
            };
            let group = self.group(&definition)?;
            for placed in forms.into_values() {
                let deltas = source.deltas(group, placed)?;
                for (node, delta) in deltas {
                    nodes.get_mut(node).set.apply(delta);
                }
            }
            Ok(())
        })
    }
}

impl Source<'_> {
    /// What is in the sets of selects of one form.
    fn deltas(&self, group: &mut Group, placed: Vec<Placed<'_>>) -> Result<Vec<(usize, Delta)>> {
        let clauses: Vec<&Where> = placed.iter().filter_map(|it| it.frozen.as_ref()).collect();
        let whole = (clauses.len() > 1).then(|| together(&clauses)).flatten();
        let routed = group.template_routers(placed[0].clause);
        let (Some(whole), Some(routers)) = (whole, routed) else {
            let one = placed.into_iter().map(|placed| self.delta(placed));
            return one.collect();
        };
        let mut columns: Vec<usize> = placed
            .iter()
            .flat_map(|it| places(&it.new.select))
            .collect();
        columns.sort_unstable();
        columns.dedup();
        let mut counting = Counting::new(group, &routers, &placed);
        let query = rows::query(self.definition, self.table, &columns, Some(&whole));
        rows::each(&query, &mut |row| counting.add(row, 1))?;
        self.each_later(&mut |row, rows| counting.add(self.table.keep(row), rows));
        let deltas = counting.deltas.into_iter().zip(&placed);
        Ok(deltas.map(|(delta, it)| (it.new.node, delta)).collect())
    }

    /// What is in the set of one select.
    fn delta(&self, placed: Placed<'_>) -> Result<(usize, Delta)> {
        let select = &placed.new.select;
        let mut reader = Reader::new(select);
        let mut delta = Delta::default();
        let frozen = placed.frozen;
        let query = rows::query(
            self.definition,
            self.table,
            &places(select),
            frozen.as_ref(),
        );
        rows::each(&query, &mut |row| delta.add(reader.value(&row), 1))?;
        let mut condition = Condition::new(select.relid, frozen);
        self.each_later(&mut |row, rows| {
            if condition.matches(row) {
                delta.add(reader.value(row), rows);
            }
        });
        Ok((placed.new.node, delta))
    }

    /// Calls `each` with the rows that later transactions took away, 1, and those that they added, -1.
    fn each_later(&self, each: &mut dyn FnMut(&Row, i64)) {
        let later = self.later.iter();
        let later = later.filter(|entry| entry.position > self.position);
        for effect in later.flat_map(|entry| &entry.effects) {
            effect.after.iter().for_each(|row| each(row, -1));
            effect.before.iter().for_each(|row| each(row, 1));
        }
    }
}

/// Counts rows for the selects whose clauses let them in, which the routers of their form find.
struct Counting<'a> {
    group: &'a mut Group,
    routers: &'a [usize],
    /// Which selects have a clause.
    by_clause: HashMap<u32, Vec<usize>>,
    /// What each select contributes, by index.
    readers: Vec<Reader>,
    reader_of: Vec<usize>,
    deltas: Vec<Delta>,
    scratch: Context,
}

impl<'a> Counting<'a> {
    fn new(group: &'a mut Group, routers: &'a [usize], placed: &[Placed<'_>]) -> Counting<'a> {
        let mut by_clause: HashMap<u32, Vec<usize>> = HashMap::new();
        let (mut readers, mut read, mut reader_of) =
            (Vec::new(), Vec::<&Select>::new(), Vec::new());
        for (number, it) in placed.iter().enumerate() {
            by_clause.entry(it.clause).or_default().push(number);
            let select = &*it.new.select;
            let known = read.iter().position(|other| other.has_outputs_of(select));
            reader_of.push(known.unwrap_or_else(|| {
                read.push(select);
                readers.push(Reader::new(select));
                readers.len() - 1
            }));
        }
        Counting {
            group,
            routers,
            by_clause,
            readers,
            reader_of,
            deltas: placed.iter().map(|_| Delta::default()).collect(),
            scratch: Context::new(),
        }
    }

    fn add(&mut self, row: Row, rows: i64) {
        let effects = [Effect::of_row(row)];
        let by_clause = &self.by_clause;
        let mut routed = self.group.route(&effects, self.routers, &self.scratch);
        routed
            .candidates
            .retain(|hit| by_clause.contains_key(&hit.clause()));
        let mut work = self.group.work(&routed.candidates);
        work.retain(|work| by_clause.contains_key(&work.clause));
        let evaluated = self.group.evaluate(&work, &routed.candidates, &effects);
        let mut clauses: Vec<u32> = routed
            .hits
            .iter()
            .chain(&evaluated)
            .map(|hit| hit.clause())
            .collect();
        clauses.sort_unstable();
        clauses.dedup();
        let mut values: Vec<Option<Box<Value>>> = vec![None; self.readers.len()];
        let row = effects[0].after.as_ref().expect("it was put there");
        for number in clauses
            .iter()
            .filter_map(|clause| by_clause.get(clause))
            .flatten()
        {
            let reader = self.reader_of[*number];
            let value = values[reader].get_or_insert_with(|| self.readers[reader].value(row));
            self.deltas[*number].add(value.clone(), rows);
        }
        self.scratch.reset();
    }
}

impl Group {
    /// The number of a clause's form.
    fn template_of(&self, clause: u32) -> u32 {
        let clause = self.clauses[clause as usize].as_ref();
        clause.map_or(u32::MAX, |clause| clause.template)
    }

    /// The routers that find the rows of a clause, and of all others of its form; None if there are none.
    fn template_routers(&self, clause: u32) -> Option<Vec<usize>> {
        let clause = self.clauses[clause as usize].as_ref()?;
        let template = self.template(clause);
        matches!(template.way, Way::Routed(_)).then(|| template.routers().collect())
    }
}
