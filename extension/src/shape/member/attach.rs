//! Shapes with subqueries join the others that a session has attached.

use std::collections::BTreeMap;
use std::rc::Rc;

use pgrx::PgSqlErrorCode::{ERRCODE_INSUFFICIENT_PRIVILEGE, ERRCODE_INVALID_PARAMETER_VALUE};

use super::super::attached::{Attached, Ended};
use super::super::definition::{Definition, check_rights, require_same};
use super::super::resolve::Resolver;
use super::super::tuple::changed;
use super::later::Later;
use super::load::New;
use super::nodes::{Nodes, Origin};
use crate::error::{Error, Result};
use crate::pg::attempt::attempt;
use crate::pg::expr::{self, Analyzed, Refused, Select, Where};
use crate::pg::memory::Context;
use crate::pg::table::{self, Found};

impl Definition {
    /// Takes a where clause with subqueries apart. To be called while acting as the shape's role, whose right to all
    /// that is read is checked.
    pub fn analyzed(&self) -> Result<Analyzed> {
        let text = self.where_text.as_deref().unwrap_or("true");
        let relid = pgrx::pg_sys::Oid::from_u32(self.relid);
        let analyzed = expr::analyze_subqueries(relid, text, &[], None);
        let invalid = |Refused(why)| Error::Sql(ERRCODE_INVALID_PARAMETER_VALUE, why, "");
        let analyzed = analyzed.map_err(invalid)?;
        let denied = |why| Error::Sql(ERRCODE_INSUFFICIENT_PRIVILEGE, why, "");
        may_read(&analyzed).map_err(denied)?;
        self.require_same(&analyzed.uses)?;
        Ok(analyzed)
    }

    /// What is needed to read rows of a table as the shape's role; None when it is gone.
    fn of_table(&self, relid: u32) -> Option<Definition> {
        let Found::Table(table) = table::by_oid(pgrx::pg_sys::Oid::from_u32(relid)) else {
            return None;
        };
        Some(Definition {
            relid,
            key: super::super::definition::key_names(&table),
            schema: table.schema,
            table: table.name,
            columns: Vec::new(),
            inner: Vec::new(),
            hash: String::new(),
            where_text: None,
            schema_header: serde_json::Value::Null,
            ..self.clone()
        })
    }
}

/// Whether the current user may read what these selects do; if not, why.
pub fn may_read(analyzed: &Analyzed) -> std::result::Result<(), String> {
    for select in analyzed.selects() {
        let Found::Table(table) = table::by_oid(pgrx::pg_sys::Oid::from_u32(select.relid)) else {
            continue;
        };
        if !select.columns.is_empty() {
            check_rights(&table, select.columns.clone())?;
            continue;
        }
        // As in a query: whether there is a row may be known to who may read any column.
        let mut rights = table
            .columns
            .iter()
            .map(|column| check_rights(&table, vec![column.number]));
        if !rights.any(|right| right.is_ok()) {
            return Err(format!(
                "permission denied for table \"{}\".\"{}\"",
                table.schema, table.name
            ));
        }
    }
    Ok(())
}

/// The definition of a select's table with the columns to which the current user needs the right as long as the select is in
/// use. If it reads none, those that allow to know whether there is a row.
fn read_by(select: &Select, own: &Definition) -> Definition {
    let mut definition = own.clone();
    let Found::Table(table) = table::by_oid(pgrx::pg_sys::Oid::from_u32(select.relid)) else {
        return definition;
    };
    let is_read = |number: i16| match select.columns.is_empty() {
        true => check_rights(&table, vec![number]).is_ok(),
        false => select.columns.contains(&number),
    };
    let read = table.columns.iter().filter(|column| is_read(column.number));
    definition.columns = read.map(|column| column.name.clone()).collect();
    definition
}

/// A shape that is being attached.
struct Joining<'a> {
    id: i32,
    definition: &'a Definition,
    analyzed: Analyzed,
    text: Rc<str>,
    uses: Rc<str>,
}

impl Joining<'_> {
    /// The node of a select.
    fn enter(
        &self,
        nodes: &mut Nodes,
        select: &Rc<Select>,
        entered: &mut Entered,
    ) -> Result<usize> {
        let mut children = Vec::with_capacity(select.memberships.len());
        for membership in &select.memberships {
            children.push(self.enter(nodes, &membership.select, entered)?);
        }
        let definition = self.definition;
        let make = || definition.of_table(select.relid);
        let own = nodes.table(select.relid, definition, make);
        let own = own.ok_or_else(changed)?;
        let selects = self.analyzed.selects();
        let place = selects.iter().position(|other| Rc::ptr_eq(other, select));
        let origin = Origin {
            relid: definition.relid,
            text: self.text.clone(),
            uses: self.uses.clone(),
            place: place.unwrap_or_default(),
        };
        let is_root = Rc::ptr_eq(select, &self.analyzed.root);
        let (node, known) = nodes.enter(select, children, own.clone(), origin, is_root);
        if known {
            return Ok(node);
        }
        entered.numbers.push(node);
        nodes.tell_of_missing_indexes(select, &own)?;
        if !is_root {
            let (select, read) = (select.clone(), read_by(select, &own));
            let of_table = (nodes.get(node).depth, own.relid);
            let new = New { node, select, read };
            entered.inner.entry(of_table).or_default().push(new);
        }
        Ok(node)
    }
}

/// So many shapes are attached together: their trees and what is counted for their sets are kept until all have them.
pub const TOGETHER: usize = 100;

/// Nodes that were not there before, while what they are needed for may still fail.
#[derive(Default)]
struct Entered {
    /// All, inner ones first.
    numbers: Vec<usize>,
    /// The inner selects among them, by depth and table.
    inner: BTreeMap<(usize, u32), Vec<New>>,
}

impl Attached {
    /// Attaches shapes with subqueries of one role; one that cannot be has ended at once.
    pub(in super::super) fn add_members(
        &mut self,
        joining: &[(i32, &Definition)],
        head: i64,
        resolver: &mut Resolver,
        later: &mut Later<'_>,
    ) {
        for (id, _) in joining {
            self.remove(&[*id]);
            self.begin(*id, head);
        }
        let Err(error) = self.join(joining, head, resolver, later) else {
            return;
        };
        if let [(id, _)] = joining {
            return self.fail(*id, error.to_string());
        }
        for one in joining {
            self.add_members(std::slice::from_ref(one), head, resolver, later);
        }
    }

    /// Attaches shapes with subqueries of one role, or none of them. Their inner selects' sets are read as of the position of all.
    pub(super) fn join(
        &mut self,
        joining: &[(i32, &Definition)],
        head: i64,
        resolver: &mut Resolver,
        later: &mut Later<'_>,
    ) -> Result<()> {
        let Some((_, first)) = joining.first() else {
            return Ok(());
        };
        resolver.act_as(&first.role)?;
        let begun = head.max(self.position);
        let mut nodes = std::mem::take(&mut self.nodes);
        let mut entered = Entered::default();
        let outcome = attempt(|| {
            let mut all = Vec::with_capacity(joining.len());
            for (id, definition) in joining {
                definition.require_same_policies()?;
                let analyzed = definition.analyzed()?;
                all.push(Joining {
                    id: *id,
                    definition,
                    text: definition.where_text.as_deref().unwrap_or("true").into(),
                    uses: analyzed.uses.as_str().into(),
                    analyzed,
                });
            }
            let mut roots = Vec::with_capacity(all.len());
            for one in &all {
                roots.push(one.enter(&mut nodes, &one.analyzed.root, &mut entered)?);
            }
            for new in entered.inner.values() {
                self.load(&mut nodes, new, later, begun)?;
            }
            for (one, root) in all.iter().zip(roots) {
                let memory = Context::new();
                memory.run(|| {
                    let clause = nodes.frozen(root, &one.analyzed.root);
                    self.place(one.id, one.definition, clause.as_ref())
                })?;
                nodes.follow(root, one.id);
            }
            Ok(())
        });
        let outcome =
            outcome.unwrap_or_else(|caught| Err(Error::Sql(caught.sqlstate, caught.message, "")));
        if outcome.is_err() {
            let mut unused: Vec<i32> = joining.iter().map(|(id, _)| *id).collect();
            for id in unused.clone() {
                unused.extend(nodes.leave(id));
            }
            for node in entered.numbers.into_iter().rev() {
                nodes.drop_unused_once(node, &mut unused);
            }
            self.nodes = nodes;
            self.remove_from_groups(&unused);
        } else {
            self.nodes = nodes;
        }
        outcome
    }

    /// Puts a shape, or inner select, among those of its table under a frozen clause, whose number it returns.
    pub(super) fn place(
        &mut self,
        id: i32,
        definition: &Definition,
        clause: Option<&Where>,
    ) -> Result<u32> {
        let relid = pgrx::pg_sys::Oid::from_u32(definition.relid);
        let frozen = Definition {
            where_text: clause.map(|clause| clause.deparsed(relid)),
            ..definition.clone()
        };
        let lifted = clause.map(Where::lift);
        let number = self.group(&frozen)?.add(id, &frozen, lifted.as_ref());
        self.set_place(id, definition.relid, number);
        Ok(number)
    }

    /// What has ended, of which inner selects may be part: in their place are the shapes that depend on them.
    pub(in super::super) fn spread(&mut self, ended: Vec<Ended>) -> Vec<Ended> {
        if self.nodes.is_empty() {
            return ended;
        }
        let mut all = Vec::new();
        for Ended { ids, why } in ended {
            let mut shapes: Vec<i32> = ids.iter().copied().filter(|id| *id >= 0).collect();
            let inner = ids.iter().filter_map(|id| Nodes::of_id(*id));
            let above: Vec<i32> = inner
                .flat_map(|node| self.nodes.shapes_above(node))
                .collect();
            self.remove(&above);
            shapes.extend(above);
            for shape in &shapes {
                self.leave(*shape);
            }
            shapes.sort_unstable();
            shapes.dedup();
            if !shapes.is_empty() {
                all.push(Ended { ids: shapes, why });
            }
        }
        all
    }

    /// Ends the shapes that depend on functions or collations which are other ones now. Of all that depend on the same, one is
    /// looked at.
    pub(in super::super) fn end_outdated(&mut self, resolver: &mut Resolver) -> Vec<Ended> {
        let mut ended = Vec::new();
        for (uses, node) in self.nodes.by_uses() {
            let role = &self.nodes.get(node).definition.role;
            let now = resolver.act_as(role).and_then(|()| self.nodes.uses(node));
            let Err(why) = now.and_then(|now| require_same(&uses, &now)) else {
                continue;
            };
            let ids = self.nodes.shapes_using(&uses);
            self.remove_from_groups(&ids);
            let why = why.to_string().into();
            ended.push(Ended { ids, why });
        }
        ended
    }

    /// A shape is no more: inner selects that nobody needs any more are not, either.
    pub(in super::super) fn leave(&mut self, shape: i32) {
        let unused = self.nodes.leave(shape);
        self.remove_from_groups(&unused);
    }
}
