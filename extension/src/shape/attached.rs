//! The shapes that a sidecar has attached in this session, grouped by what they have in common.

use std::collections::HashMap;

use super::definition::{Definition, Replica};
use super::family::Family;
use super::keyless::Counts;
use super::overlay::Filter;
use super::tuple::changed;
use super::window::End;
use crate::error::Result;
use crate::pg::attempt::attempt;
use crate::pg::invalidation::{self, Changed};

/// All shapes of a session.
pub struct Attached {
    /// The log has been evaluated for all of them up to here.
    pub position: i64,
    /// By table.
    pub groups: HashMap<u32, Group>,
    /// Shapes that could not be attached: the feed tells.
    failed: Vec<Ended>,
    /// Where the log's head was when a shape was attached, if the feed is not there yet: what ended up to there was
    /// over before the shape began.
    heads: HashMap<i32, i64>,
}

/// Shapes on one table.
pub struct Group {
    /// The table with its partitions and what is above it.
    pub family: Family,
    /// Its schema's name.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// Names of its key's columns.
    pub key: Vec<String>,
    /// What shapes select from it. Shapes refer to these by index.
    pub selections: Vec<(Vec<String>, Replica)>,
    /// Its shapes by role and where clause; those of one role side by side.
    pub filters: Vec<Filtered>,
}

/// Shapes with one role and where clause on one table.
pub struct Filtered {
    /// For whom the where clause is evaluated.
    pub role: String,
    where_text: Option<String>,
    /// The where clause.
    pub filter: Filter,
    /// For tables without a key: how often each row is in. None until it is needed.
    pub counts: Option<Counts>,
    /// By definition.
    pub shapes: Vec<Shape>,
}

/// One definition and the ids under which it is attached.
pub struct Shape {
    /// The definition.
    pub definition: Definition,
    /// Index of what it selects.
    pub selection: usize,
    /// Its ids.
    pub ids: Vec<i32>,
}

/// Shapes that have ended, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Their ids.
    pub ids: Vec<i32>,
    /// Why.
    pub reason: String,
}

impl Attached {
    /// No shapes, at this position.
    pub fn new(position: i64) -> Attached {
        Attached {
            position,
            groups: HashMap::new(),
            failed: Vec::new(),
            heads: HashMap::new(),
        }
    }

    /// Attaches a shape while the log's head is here. If that fails, it has ended at once.
    pub fn add(&mut self, id: i32, definition: Definition, head: i64) {
        self.remove(&[id]);
        if head > self.position {
            self.heads.insert(id, head);
        }
        match resolve(&definition).and_then(|filter| Ok((filter, family(&definition)?))) {
            Ok((filter, family)) => self.group(&definition, family).add(id, definition, filter),
            Err(reason) => self.failed.push(Ended {
                ids: vec![id],
                reason,
            }),
        }
    }

    fn group(&mut self, definition: &Definition, family: Family) -> &mut Group {
        let Definition {
            relid,
            schema,
            table,
            key,
            ..
        } = definition;
        let (schema, table, key) = (schema.clone(), table.clone(), key.clone());
        let empty = || Group {
            family,
            schema,
            table,
            key,
            selections: Vec::new(),
            filters: Vec::new(),
        };
        self.groups.entry(*relid).or_insert_with(empty)
    }

    /// Detaches shapes.
    pub fn remove(&mut self, ids: &[i32]) {
        for group in self.groups.values_mut() {
            group.remove(|shape| {
                shape.ids.retain(|id| !ids.contains(id));
                shape.ids.is_empty()
            });
        }
        self.groups.retain(|_, group| !group.filters.is_empty());
    }

    /// Resolves the shapes on tables that have changed again. Returns those that are no more.
    pub fn refresh(&mut self, changed: &Changed) -> Vec<Ended> {
        let mut ended = std::mem::take(&mut self.failed);
        for group in self
            .groups
            .values_mut()
            .filter(|group| group.family.all().any(|relid| changed.has(relid)))
        {
            group.refresh(&mut ended);
        }
        self.groups.retain(|_, group| !group.filters.is_empty());
        ended
    }

    /// Detaches what ends at a position, and says what that was.
    pub fn end(&mut self, ends: &[End], position: i64) -> Vec<Ended> {
        let mut all = Vec::new();
        for end in ends {
            for group in self.groups.values_mut() {
                let whole = end.concerns(&group.family);
                let is_it =
                    |shape: &Shape| whole || end.shape.as_ref() == Some(&shape.definition.hash);
                all.extend(group.end(is_it, &self.heads, position, &end.reason));
            }
        }
        self.groups.retain(|_, group| !group.filters.is_empty());
        all
    }

    /// Moves on. What was before does not matter any more.
    pub fn advance(&mut self, position: i64) {
        self.position = position;
        self.heads.retain(|_, head| *head > position);
    }

    /// Ends the shapes of a group that has been taken out, because its table cannot be read at a position; puts the
    /// others back.
    pub fn end_group(&mut self, mut group: Group, position: i64, reason: &str) -> Option<Ended> {
        let ended = group.end(|_| true, &self.heads, position, reason);
        self.put_back(group);
        ended
    }

    /// Puts back a group that was taken out, unless nothing is left of it.
    pub fn put_back(&mut self, group: Group) {
        if !group.filters.is_empty() {
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

/// The filter of a shape whose role still has the right to it; or why it is no more.
fn resolve(definition: &Definition) -> std::result::Result<Filter, String> {
    let attempted = attempt(|| -> Result<Filter> {
        let _role = definition.enter()?;
        Filter::new(definition)
    });
    attempted
        .map_err(|caught| caught.message)?
        .map_err(|error| error.to_string())
}

fn family(definition: &Definition) -> std::result::Result<Family, String> {
    let family = Family::of(definition.relid).ok_or_else(|| changed().to_string())?;
    family
        .types
        .iter()
        .for_each(|type_oid| invalidation::watch_type(*type_oid));
    Ok(family)
}

impl Group {
    fn add(&mut self, id: i32, definition: Definition, filter: Filter) {
        let wanted = (definition.columns.clone(), definition.replica);
        let selection = self
            .selections
            .iter()
            .position(|selection| *selection == wanted)
            .unwrap_or_else(|| {
                self.selections.push(wanted);
                self.selections.len() - 1
            });
        let (role, where_text) = (definition.role.clone(), definition.where_text.clone());
        let same =
            |filtered: &&mut Filtered| filtered.role == role && filtered.where_text == where_text;
        if let Some(filtered) = self.filters.iter_mut().find(same) {
            return filtered.add(Shape {
                definition,
                selection,
                ids: vec![id],
            });
        }
        let shapes = vec![Shape {
            definition,
            selection,
            ids: vec![id],
        }];
        let at = self.filters.partition_point(|other| other.role <= role);
        self.filters.insert(
            at,
            Filtered {
                role,
                where_text,
                filter,
                counts: None,
                shapes,
            },
        );
    }

    /// Removes the shapes for which `gone` says so.
    fn remove(&mut self, mut gone: impl FnMut(&mut Shape) -> bool) {
        for filtered in &mut self.filters {
            filtered.shapes.retain_mut(|shape| !gone(shape));
        }
        self.filters.retain(|filtered| !filtered.shapes.is_empty());
    }

    fn end(
        &mut self,
        is_it: impl Fn(&Shape) -> bool,
        heads: &HashMap<i32, i64>,
        position: i64,
        reason: &str,
    ) -> Option<Ended> {
        let mut ids = Vec::new();
        self.remove(|shape| {
            if is_it(shape) {
                let began = |id: &i32| heads.get(id).is_some_and(|head| *head >= position);
                ids.extend(shape.ids.extract_if(.., |id| !began(id)));
            }
            shape.ids.is_empty()
        });
        (!ids.is_empty()).then(|| Ended {
            ids,
            reason: reason.to_string(),
        })
    }

    fn refresh(&mut self, ended: &mut Vec<Ended>) {
        let relid = self.family.relid;
        match Family::of(relid) {
            Some(family) => self.family = family,
            None => {
                ended.push(Ended {
                    ids: self.ids(),
                    reason: changed().to_string(),
                });
                self.filters.clear();
            }
        }
        for filtered in &mut self.filters {
            let mut filter = None;
            filtered
                .shapes
                .retain(|shape| match resolve(&shape.definition) {
                    Ok(resolved) => {
                        filter = Some(resolved);
                        true
                    }
                    Err(reason) => {
                        ended.push(Ended {
                            ids: shape.ids.clone(),
                            reason,
                        });
                        false
                    }
                });
            if let Some(filter) = filter {
                filtered.filter = filter;
            }
        }
        self.filters.retain(|filtered| !filtered.shapes.is_empty());
    }

    /// The ids of all its shapes.
    pub fn ids(&self) -> Vec<i32> {
        self.filters.iter().flat_map(Filtered::ids).collect()
    }
}

impl Filtered {
    fn add(&mut self, shape: Shape) {
        match self
            .shapes
            .iter_mut()
            .find(|other| other.definition.hash == shape.definition.hash)
        {
            Some(other) => other.ids.extend(shape.ids),
            None => self.shapes.push(shape),
        }
    }

    /// The ids of all its shapes.
    pub fn ids(&self) -> Vec<i32> {
        self.shapes
            .iter()
            .flat_map(|shape| shape.ids.iter().copied())
            .collect()
    }
}
