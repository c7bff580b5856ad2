//! The shapes that a sidecar has attached in this session, grouped by what they have in common.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::definition::Definition;
use super::group::{Caller, Group, Shape};
use super::member::nodes::Nodes;
use super::resolve::{Asked, Resolver};
use super::window::End;
use crate::error::Error;
use crate::pg::expr::Lifted;
use crate::pg::invalidation::Changed;

/// All shapes of a session.
pub struct Attached {
    /// The log has been evaluated for all of them up to here.
    pub position: i64,
    /// By table.
    pub groups: HashMap<u32, Group>,
    /// Table and number of the clause of each shape, by its id.
    places: HashMap<i32, (u32, u32)>,
    /// Shapes that could not be attached: the feed tells.
    failed: Vec<Ended>,
    /// Where the log's head was when a shape was attached, if the feed is not there yet: what ended up to there was
    /// over before the shape began.
    heads: HashMap<i32, i64>,
    /// What shapes with subqueries have in common.
    pub nodes: Nodes,
}

/// Shapes that have ended, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Their ids.
    pub ids: Vec<i32>,
    /// Why.
    pub why: Why,
}

/// Why shapes have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Their epoch is over, or they are no more: who asks again gets others, or hears why not.
    Over(String),
    /// Their where clause is at fault: asking again is useless.
    Clause(String),
}

impl From<String> for Why {
    fn from(reason: String) -> Why {
        Why::Over(reason)
    }
}

impl From<Error> for Why {
    fn from(error: Error) -> Why {
        match error {
            Error::Clause(reason) => Why::Clause(reason),
            error => Why::Over(error.to_string()),
        }
    }
}

impl Attached {
    /// No shapes, at this position.
    pub fn new(position: i64) -> Attached {
        Attached {
            position,
            groups: HashMap::new(),
            places: HashMap::new(),
            failed: Vec::new(),
            heads: HashMap::new(),
            nodes: Nodes::default(),
        }
    }

    /// Attaches a shape without subqueries while the log's head is here. If that fails, it has ended at once.
    pub fn add(&mut self, id: i32, definition: &Definition, head: i64, resolver: &mut Resolver) {
        self.remove(&[id]);
        self.begin(id, head);
        if let Err(reason) = self.add_plain(id, definition, resolver) {
            self.fail(id, reason);
        }
    }

    /// A shape could not be attached.
    pub(super) fn fail(&mut self, id: i32, reason: String) {
        self.forget(&[]);
        let ids = vec![id];
        let why = reason.into();
        self.failed.push(Ended { ids, why });
    }

    fn add_plain(
        &mut self,
        id: i32,
        definition: &Definition,
        resolver: &mut Resolver,
    ) -> Result<(), String> {
        let asked = Asked {
            role: &definition.role,
            relid: definition.relid,
            schema: &definition.schema,
            table: &definition.table,
            columns: &definition.columns,
            where_text: definition.where_text.as_deref(),
            policies: definition.policies_of(definition.relid),
        };
        let clause = resolver.resolve(asked, |lifted| {
            definition.require_same(lifted.map_or("", |lifted| &lifted.uses))?;
            Ok(self.group(definition)?.add(id, definition, lifted))
        })?;
        self.set_place(id, definition.relid, clause);
        Ok(())
    }

    /// The shapes on a definition's table.
    pub(super) fn group(&mut self, definition: &Definition) -> crate::error::Result<&mut Group> {
        Ok(match self.groups.entry(definition.relid) {
            Entry::Occupied(group) => group.into_mut(),
            Entry::Vacant(place) => place.insert(Group::new(definition)?),
        })
    }

    pub(super) fn set_place(&mut self, id: i32, relid: u32, clause: u32) {
        self.places.insert(id, (relid, clause));
    }

    /// The number of a shape's clause in its group.
    pub(super) fn clause_of(&self, id: i32) -> Option<u32> {
        self.places.get(&id).map(|(_, clause)| *clause)
    }

    /// These shapes of a group that has been taken out, which all have one clause.
    pub(super) fn shapes_of(&self, group: &Group, ids: &[i32]) -> Vec<Shape> {
        let place = ids.iter().find_map(|id| self.places.get(id));
        let clause = place.and_then(|(_, clause)| group.clauses[*clause as usize].as_ref());
        let shapes = clause.iter().flat_map(|clause| clause.shapes.iter());
        shapes
            .filter(|shape| ids.contains(&shape.id))
            .copied()
            .collect()
    }

    /// Puts these shapes of a group that has been taken out, which all have one clause, under another.
    pub(super) fn rehome(
        &mut self,
        group: &mut Group,
        ids: &[i32],
        text: Option<&str>,
        lifted: Option<&Lifted>,
    ) {
        let Some((relid, old)) = ids.iter().find_map(|id| self.places.get(id)).copied() else {
            return;
        };
        let Some(role) = group.role_of(old) else {
            return;
        };
        for shape in self.shapes_of(group, ids) {
            let new = group.add_shape(shape, role, text, lifted, None);
            if new == old {
                group.remove_one(old, shape.id);
                continue;
            }
            group.remove(old, shape.id);
            self.places.insert(shape.id, (relid, new));
        }
    }

    /// There is no shape, and nothing to tell of one.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.failed.is_empty()
    }

    /// A shape, or inner select, begins while the log's head is here.
    pub(super) fn begin(&mut self, id: i32, head: i64) {
        if head > self.position {
            self.heads.insert(id, head);
        }
    }

    /// Detaches shapes.
    pub fn remove(&mut self, ids: &[i32]) {
        self.remove_from_groups(ids);
        for id in ids {
            self.leave(*id);
        }
    }

    /// Detaches shapes, or inner selects, from their groups.
    pub(super) fn remove_from_groups(&mut self, ids: &[i32]) {
        for id in ids {
            let Some((relid, clause)) = self.places.remove(id) else {
                continue;
            };
            let Some(group) = self.groups.get_mut(&relid) else {
                continue;
            };
            group.remove(clause, *id);
            if group.is_empty() {
                self.groups.remove(&relid);
            }
        }
    }

    /// Resolves the shapes on tables that have changed again. Returns these tables, and the shapes that are no more.
    pub fn refresh(&mut self, changed: &Changed) -> (Vec<u32>, Vec<Ended>) {
        let (mut tables, mut ended) = (Vec::new(), std::mem::take(&mut self.failed));
        let mut resolver = Resolver::default();
        if changed.all || !changed.relids.is_empty() {
            self.nodes.renew();
        }
        if changed.all {
            ended.extend(self.end_outdated(&mut resolver));
        }
        for (relid, group) in &mut self.groups {
            if !group.family.all().any(|relid| changed.has(relid)) {
                continue;
            }
            tables.push(*relid);
            let refreshed = group.refresh(&mut resolver, changed.all);
            for (id, clause) in refreshed.moved {
                self.places.insert(id, (*relid, clause));
            }
            ended.extend(refreshed.ended);
        }
        self.forget(&ended);
        let ended = self.spread(ended);
        (tables, ended)
    }

    /// These are no more, and have been removed from their groups.
    pub fn forget(&mut self, ended: &[Ended]) {
        for id in ended.iter().flat_map(|ended| &ended.ids) {
            self.places.remove(id);
        }
        self.groups.retain(|_, group| !group.is_empty());
    }

    /// Detaches what ends at a position, and says what that was.
    pub fn end(&mut self, ends: &[End], position: i64) -> Vec<Ended> {
        let mut all = Vec::new();
        for end in ends {
            let hash = end.shape.as_ref().and_then(|hash| hash.parse().ok());
            for group in self.groups.values_mut() {
                let whole = end.concerns(&group.family);
                if whole || hash.is_some() || end.roles.is_some() {
                    let is_it = |other: u64| whole || hash == Some(other);
                    let ended = end_in(group, end, is_it, &self.heads, position, &end.reason);
                    all.extend(ended);
                }
            }
        }
        self.forget(&all);
        self.spread(all)
    }

    /// The shape began after what was at this position.
    pub fn began_after(&self, id: i32, position: i64) -> bool {
        began_after(&self.heads, id, position)
    }

    /// Moves on. What was before does not matter any more.
    pub fn advance(&mut self, position: i64) {
        self.position = position;
        self.heads.retain(|_, head| *head > position);
    }

    /// Ends the shapes of a group that has been taken out, because its table cannot be read at a position; puts the
    /// others back.
    pub fn end_group(&mut self, mut group: Group, position: i64, reason: &str) -> Option<Ended> {
        let all = End::default();
        let ended = end_in(&mut group, &all, |_| true, &self.heads, position, reason);
        self.put_back(group);
        self.forget(ended.as_slice());
        ended
    }

    /// Puts back a group that was taken out, unless nothing is left of it.
    pub fn put_back(&mut self, group: Group) {
        if !group.is_empty() {
            self.groups.insert(group.family.relid, group);
        }
    }

    /// The tables with shapes among these.
    pub fn touched_by(&self, relids: &[u32]) -> Vec<u32> {
        relids
            .iter()
            .copied()
            .filter(|relid| self.groups.contains_key(relid))
            .collect()
    }
}

fn began_after(heads: &HashMap<i32, i64>, id: i32, position: i64) -> bool {
    heads.get(&id).is_some_and(|head| *head >= position)
}

/// Ends the shapes of a group that have the columns of this end and one of these hashes, but for those that began after it.
fn end_in(
    group: &mut Group,
    end: &End,
    is_it: impl Fn(u64) -> bool,
    heads: &HashMap<i32, i64>,
    position: i64,
    reason: &str,
) -> Option<Ended> {
    let given = |caller: &Caller| end.concerns_rights_of(&caller.role, &group.family);
    let given: Vec<bool> = group.callers.iter().map(given).collect();
    let ids = group.remove_named(
        |names| end.ends_those_with(names),
        |shape, caller| {
            (is_it(shape.hash) || given[caller as usize]) && !began_after(heads, shape.id, position)
        },
    );
    (!ids.is_empty()).then(|| Ended {
        ids,
        why: reason.to_string().into(),
    })
}
