//! Shapes with subqueries join the others that a session has attached.

use std::rc::Rc;

use pgrx::PgSqlErrorCode::{ERRCODE_INSUFFICIENT_PRIVILEGE, ERRCODE_INVALID_PARAMETER_VALUE};

use super::super::attached::{Attached, Ended};
use super::super::definition::{Definition, check_rights};
use super::super::resolve::Resolver;
use super::super::tuple::changed;
use super::later::Later;
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

/// Names of the columns to which the current user needs the right as long as a select is in use. If it reads none, those that
/// allow to know whether there is a row.
fn read_of(select: &Select) -> Vec<String> {
    let Found::Table(table) = table::by_oid(pgrx::pg_sys::Oid::from_u32(select.relid)) else {
        return Vec::new();
    };
    let is_read = |number: i16| match select.columns.is_empty() {
        true => check_rights(&table, vec![number]).is_ok(),
        false => select.columns.contains(&number),
    };
    let read = table.columns.iter().filter(|column| is_read(column.number));
    read.map(|column| column.name.clone()).collect()
}

/// A where clause that is being attached.
struct Whole<'a> {
    definition: &'a Definition,
    text: Rc<str>,
    selects: Vec<&'a Rc<Select>>,
    /// What it is attached for comes after this position.
    begun: i64,
}

impl Attached {
    /// Attaches a shape with subqueries, whose inner selects' sets are read as of the position of all.
    pub(in super::super) fn add_member(
        &mut self,
        id: i32,
        definition: &Definition,
        head: i64,
        resolver: &mut Resolver,
        later: &mut Later<'_>,
    ) -> Result<()> {
        resolver.act_as(&definition.role)?;
        let mut nodes = std::mem::take(&mut self.nodes);
        let mut entered = Vec::new();
        let outcome = attempt(|| {
            definition.require_same_policies()?;
            let analyzed = definition.analyzed()?;
            let whole = Whole {
                definition,
                text: definition.where_text.as_deref().unwrap_or("true").into(),
                selects: analyzed.selects(),
                begun: head.max(self.position),
            };
            let root = self.enter(&mut nodes, &analyzed.root, &whole, later, &mut entered)?;
            let memory = Context::new();
            memory.run(|| {
                let clause = nodes.frozen(root, &analyzed.root);
                self.place(id, definition, clause)
            })?;
            nodes.follow(root, id);
            Ok(())
        });
        let outcome =
            outcome.unwrap_or_else(|caught| Err(Error::Sql(caught.sqlstate, caught.message, "")));
        if outcome.is_err() {
            let mut unused = Vec::new();
            for node in entered.into_iter().rev() {
                nodes.drop_unused_once(node, &mut unused);
            }
            self.nodes = nodes;
            self.remove_from_groups(&unused);
        } else {
            self.nodes = nodes;
        }
        outcome
    }

    /// The node of a select, which is read if it was not there. `entered` are those that were not.
    fn enter(
        &mut self,
        nodes: &mut Nodes,
        select: &Rc<Select>,
        whole: &Whole<'_>,
        later: &mut Later<'_>,
        entered: &mut Vec<usize>,
    ) -> Result<usize> {
        let mut children = Vec::new();
        for membership in &select.memberships {
            children.push(self.enter(nodes, &membership.select, whole, later, entered)?);
        }
        let is_root = whole
            .selects
            .last()
            .is_some_and(|root| Rc::ptr_eq(root, select));
        let make = || whole.definition.of_table(select.relid);
        let own = nodes
            .table(select.relid, whole.definition, make)
            .ok_or_else(changed)?;
        let place = whole
            .selects
            .iter()
            .position(|other| Rc::ptr_eq(other, select));
        let origin = Origin {
            relid: whole.definition.relid,
            text: whole.text.clone(),
            place: place.unwrap_or_default(),
        };
        let (number, known) = nodes.enter(select, children, own.clone(), origin, is_root);
        if known {
            return Ok(number);
        }
        entered.push(number);
        nodes.tell_of_missing_indexes(select, &own)?;
        if !is_root {
            let memory = Context::new();
            memory.run(|| {
                nodes.load(number, select, later, (self.position, whole.begun))?;
                let clause = nodes.frozen(number, select);
                let read = Definition {
                    columns: read_of(select),
                    ..Definition::clone(&own)
                };
                let id = nodes.get(number).shapes[0];
                self.begin(id, whole.begun);
                self.place(id, &read, clause)
            })?;
        }
        Ok(number)
    }

    /// Puts a shape, or inner select, among those of its table under a frozen clause.
    fn place(&mut self, id: i32, definition: &Definition, clause: Option<Where>) -> Result<()> {
        let relid = pgrx::pg_sys::Oid::from_u32(definition.relid);
        let frozen = Definition {
            where_text: clause.as_ref().map(|clause| clause.deparsed(relid)),
            ..definition.clone()
        };
        let lifted = clause.map(|clause| clause.lift());
        let number = self.group(&frozen)?.add(id, &frozen, lifted.as_ref())?;
        self.set_place(id, definition.relid, number);
        Ok(())
    }

    /// What has ended, of which inner selects may be part: in their place are the shapes that depend on them.
    pub(in super::super) fn spread(&mut self, ended: Vec<Ended>) -> Vec<Ended> {
        if self.nodes.is_empty() {
            return ended;
        }
        let mut all = Vec::new();
        for Ended { ids, reason } in ended {
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
                all.push(Ended {
                    ids: shapes,
                    reason,
                });
            }
        }
        all
    }

    /// A shape is no more: inner selects that nobody needs any more are not, either.
    pub(in super::super) fn leave(&mut self, shape: i32) {
        let unused = self.nodes.leave(shape);
        self.remove_from_groups(&unused);
    }
}
