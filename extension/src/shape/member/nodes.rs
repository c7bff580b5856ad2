//! The selects of all shapes with subqueries in a session: each once, whoever needs it, with its set.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
use pgrx::pg_sys::Oid;

use super::super::definition::Definition;
use super::super::tuple::{Table, changed};
use super::set::Set;
use crate::error::{Error, Result};
use crate::pg::expr::{self, Analyzed, Change, Outputs, Refused, Scope, Select, Value, Where};
use crate::pg::image::Row;
use crate::pg::query::qualified;

/// A select for a role. Its trees are made again when they are needed: they would take most of the room.
pub struct Node {
    /// Its table and role, and nothing else.
    pub definition: Rc<Definition>,
    origin: Origin,
    /// The nodes of its memberships.
    pub children: Vec<usize>,
    /// The nodes that it is a child of.
    pub parents: Vec<usize>,
    /// More than that of any child.
    pub depth: usize,
    /// Its values, if it is an inner select.
    pub set: Set,
    /// The shapes whose rows it has; of an inner select the one that the feed knows it by.
    pub shapes: Vec<i32>,
    /// It is no inner select.
    pub is_root: bool,
    identity: u128,
}

/// Where a select is to be found.
#[derive(Clone)]
pub struct Origin {
    /// Table of the shape that it was first needed for.
    pub relid: u32,
    /// The shape's where clause.
    pub text: Rc<str>,
    /// What the whole clause depends on beside tables.
    pub uses: Rc<str>,
    /// Its place among the clause's selects.
    pub place: usize,
}

/// All nodes, by number.
#[derive(Default)]
pub struct Nodes {
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    by_identity: HashMap<u128, usize>,
    roots: HashMap<i32, usize>,
    /// By table, role and the digest of its policies.
    tables: HashMap<(u32, String, Option<String>), Rc<Definition>>,
    /// Missing indexes that the server's log tells of.
    pub(super) told: HashSet<String>,
    /// Whether one of these columns of a table is the first of an index.
    pub(super) indexed: HashMap<(u32, Vec<i16>), bool>,
    /// The where clause that was taken apart last.
    last: RefCell<Option<(Rc<str>, Analyzed)>>,
}

/// The id under which the feed knows an inner select.
fn id_of(node: usize) -> i32 {
    -1 - node as i32
}

impl Nodes {
    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.by_identity.is_empty()
    }

    /// The node of this number, which there is.
    pub fn get(&self, number: usize) -> &Node {
        self.nodes[number].as_ref().expect("a node that is in use")
    }

    /// The same, to change its set.
    pub fn get_mut(&mut self, number: usize) -> &mut Node {
        self.nodes[number].as_mut().expect("a node that is in use")
    }

    /// The inner select that the feed knows by this id.
    pub fn of_id(id: i32) -> Option<usize> {
        (id < 0).then(|| (-1 - id) as usize)
    }

    /// The node whose rows a shape has.
    pub fn root_of(&self, shape: i32) -> Option<usize> {
        self.roots.get(&shape).copied()
    }

    /// The node of a select for a shape's role, and whether it was there before.
    pub fn enter(
        &mut self,
        select: &Select,
        children: Vec<usize>,
        definition: Rc<Definition>,
        origin: Origin,
        is_root: bool,
    ) -> (usize, bool) {
        let identity = format!("{} {is_root} {}", definition.role, select.identity);
        let identity = xxhash_rust::xxh3::xxh3_128(identity.as_bytes());
        if let Some(known) = self.by_identity.get(&identity) {
            return (*known, true);
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        for child in &children {
            self.get_mut(*child).parents.push(number);
        }
        let depth = children
            .iter()
            .map(|child| self.get(*child).depth + 1)
            .max();
        self.by_identity.insert(identity, number);
        self.nodes[number] = Some(Node {
            definition,
            origin,
            children,
            parents: Vec::new(),
            depth: depth.unwrap_or(0),
            set: Set::default(),
            shapes: if is_root {
                Vec::new()
            } else {
                vec![id_of(number)]
            },
            is_root,
            identity,
        });
        (number, false)
    }

    /// A shape has the rows of a node.
    pub fn follow(&mut self, node: usize, shape: i32) {
        self.get_mut(node).shapes.push(shape);
        self.roots.insert(shape, node);
    }

    /// A shape is no more. Returns ids under which the feed knows inner selects that nobody needs any more.
    pub fn leave(&mut self, shape: i32) -> Vec<i32> {
        let Some(node) = self.roots.remove(&shape) else {
            return Vec::new();
        };
        self.get_mut(node).shapes.retain(|other| *other != shape);
        let mut unused = Vec::new();
        self.drop_unused(node, &mut unused);
        unused
    }

    /// Drops a node that nobody needs, and what nobody needs then.
    pub fn drop_unused(&mut self, number: usize, unused: &mut Vec<i32>) {
        let node = self.get(number);
        if !node.parents.is_empty() || (node.is_root && !node.shapes.is_empty()) {
            return;
        }
        let node = self.nodes[number].take().expect("it was just there");
        self.by_identity.remove(&node.identity);
        self.free.push(number);
        if !node.is_root {
            unused.push(id_of(number));
        }
        for child in node.children {
            let parents = &mut self.get_mut(child).parents;
            let place = parents.iter().position(|parent| *parent == number);
            place.map(|place| parents.swap_remove(place));
            self.drop_unused_once(child, unused);
        }
    }

    /// The same of one that may be no more.
    pub fn drop_unused_once(&mut self, number: usize, unused: &mut Vec<i32>) {
        if self.nodes[number].is_some() {
            self.drop_unused(number, unused);
        }
    }

    /// The table of each inner select, with the number of its values.
    pub fn sizes(&self) -> Vec<(String, usize)> {
        let inner = self.nodes.iter().flatten().filter(|node| !node.is_root);
        let size = |node: &Node| {
            let Definition { schema, table, .. } = &*node.definition;
            (qualified(schema, table), node.set.size())
        };
        inner.map(size).collect()
    }

    /// The shapes that depend on a node.
    pub fn shapes_above(&self, number: usize) -> Vec<i32> {
        let Some(node) = self.nodes.get(number).and_then(Option::as_ref) else {
            return Vec::new();
        };
        if node.is_root {
            return node.shapes.clone();
        }
        let above = node
            .parents
            .iter()
            .flat_map(|parent| self.shapes_above(*parent));
        let mut above: Vec<i32> = above.collect();
        above.sort_unstable();
        above.dedup();
        above
    }

    /// The definition of a table for a role, as far as reading its rows needs one.
    pub fn table(
        &mut self,
        relid: u32,
        of: &Definition,
        make: impl FnOnce() -> Option<Definition>,
    ) -> Option<Rc<Definition>> {
        let policies = of.policies_of(relid).map(str::to_string);
        let name = (relid, of.role.clone(), policies);
        if let Some(known) = self.tables.get(&name) {
            return Some(known.clone());
        }
        let made = Rc::new(make()?);
        self.tables.insert(name, made.clone());
        Some(made)
    }

    /// For each digest of what where clauses depend on the node of one that does.
    pub fn by_uses(&self) -> HashMap<Rc<str>, usize> {
        let roots = self.roots.values();
        let uses = roots.map(|node| (self.get(*node).origin.uses.clone(), *node));
        uses.filter(|(uses, _)| !uses.is_empty()).collect()
    }

    /// The shapes whose where clauses depend on these.
    pub fn shapes_using(&self, uses: &str) -> Vec<i32> {
        let uses_them = |(_, node): &(&i32, &usize)| *self.get(**node).origin.uses == *uses;
        let shapes = self.roots.iter().filter(uses_them);
        shapes.map(|(shape, _)| *shape).collect()
    }

    /// What the where clause of a node depends on now. To be called while acting as its role.
    pub fn uses(&self, number: usize) -> Result<String> {
        self.analyzed(&self.get(number).origin, |analyzed| {
            Ok(analyzed.uses.clone())
        })
    }

    /// What the rows of a node are. To be called while acting as its role.
    pub fn select(&self, number: usize) -> Result<Rc<Select>> {
        let origin = &self.get(number).origin;
        self.analyzed(origin, |analyzed| {
            let selects = analyzed.selects();
            let select = selects.get(origin.place).map(|select| Rc::clone(select));
            select.ok_or_else(changed)
        })
    }

    fn analyzed<T>(&self, origin: &Origin, then: impl FnOnce(&Analyzed) -> Result<T>) -> Result<T> {
        let Origin { relid, text, .. } = origin;
        let mut last = self.last.borrow_mut();
        if let Some((_, analyzed)) = last.as_ref().filter(|(other, _)| Rc::ptr_eq(other, text)) {
            return then(analyzed);
        }
        let analyzed = expr::analyze_subqueries(Oid::from_u32(*relid), text, &[], None);
        let analyzed = analyzed
            .map_err(|Refused(why)| Error::Sql(ERRCODE_INVALID_PARAMETER_VALUE, why, ""))?;
        then(&last.insert((text.clone(), analyzed)).1)
    }

    /// What is compiled or analyzed may be so no more.
    pub fn renew(&mut self) {
        self.last.take();
        self.tables.clear();
        self.indexed.clear();
    }

    /// The rows of a node, its memberships' sets being what they are now. As [`Select::freeze`].
    pub fn frozen(&self, number: usize, select: &Select) -> Option<Where> {
        let node = self.get(number);
        let sets: Vec<_> = node
            .children
            .iter()
            .map(|child| self.get(*child).set.values())
            .collect();
        select.freeze(&sets)
    }

    /// The same, the sets being what they were before these changes, by node.
    pub fn frozen_before(
        &self,
        number: usize,
        select: &Select,
        changes: &HashMap<usize, Change>,
    ) -> Option<Where> {
        let node = self.get(number);
        let values = |child: &usize| {
            let set = &self.get(*child).set;
            match changes.get(child) {
                Some(change) => set.values_before(&change.values),
                None => set.values(),
            }
        };
        let sets: Vec<_> = node.children.iter().map(values).collect();
        select.freeze(&sets)
    }
}

/// Reads what rows contribute to a set.
pub struct Reader {
    scope: Scope,
    outputs: Outputs,
}

impl Reader {
    /// Of a select whose table is locked.
    pub fn new(select: &Select) -> Reader {
        Reader {
            scope: Scope::of(Oid::from_u32(select.relid)),
            outputs: select.outputs(),
        }
    }

    /// The value of a row.
    pub fn value(&mut self, row: &Row) -> Box<Value> {
        self.scope.value(&self.outputs, row)
    }
}

/// Opens a node's table.
pub fn open(definition: &Definition) -> Result<Table> {
    Table::of(definition).ok_or_else(changed)
}
