//! Shapes of a table that, or something that they depend on, has changed.
//!
//! What is compiled is dropped and made again. One clause of each template is looked at for all: if it is still of that
//! form, so are the others. If it is not, each of them is looked at.

use std::collections::{BTreeSet, HashMap};

use pgrx::pg_sys::Oid;

use super::attached::Ended;
use super::definition::{Definition, require_same};
use super::family::Family;
use super::group::{Group, Keyless, Shape};
use super::resolve::{Asked, Resolver};
use super::router::Router;
use super::tuple::changed;
use crate::error::Result;
use crate::pg::expr::{Lifted, Scope};

/// What became of a group's shapes.
#[derive(Default)]
pub struct Refreshed {
    /// Those that are no more.
    pub ended: Vec<Ended>,
    /// Ids of those whose clause has another number now, and that.
    pub moved: Vec<(i32, u32)>,
}

impl Group {
    /// Resolves all shapes again. `others`: not only the table may have changed.
    pub fn refresh(&mut self, resolver: &mut Resolver, others: bool) -> Refreshed {
        let mut refreshed = Refreshed::default();
        let relid = self.family.relid;
        let Some(family) = Family::of(relid) else {
            let ids = self.remove_if(|_| true);
            let why = changed().into();
            refreshed.ended.push(Ended { ids, why });
            return refreshed;
        };
        self.family = family;
        self.scope = Scope::of(Oid::from_u32(relid));
        let representatives = self.representatives();
        self.keep_templates(|template| representatives.contains_key(&template));
        for (template, (clause, selections)) in representatives {
            if !self.renew(resolver, template, clause, &selections) {
                self.resolve_each(resolver, template, &mut refreshed);
            }
        }
        if others {
            self.routers.iter_mut().for_each(Router::renew);
        }
        self.empty_selections();
        self.sweep();
        refreshed
    }

    /// What no shape selects any more may have columns that are no more.
    fn empty_selections(&mut self) {
        let shapes = self
            .clauses
            .iter()
            .flatten()
            .flat_map(|clause| clause.shapes.iter());
        let used: BTreeSet<u32> = shapes.map(|shape| shape.selection).collect();
        for (number, (columns, _)) in self.selections.iter_mut().enumerate() {
            if !used.contains(&(number as u32)) {
                columns.clear();
            }
        }
    }

    /// For each template one of its clauses, and all that shapes of it select.
    fn representatives(&self) -> HashMap<u32, (u32, BTreeSet<u32>)> {
        let mut found: HashMap<u32, (u32, BTreeSet<u32>)> = HashMap::new();
        for (number, clause) in self.clauses.iter().enumerate() {
            let Some(clause) = clause else { continue };
            let entry = found.entry(clause.template);
            let (_, selections) = entry.or_insert_with(|| (number as u32, BTreeSet::new()));
            selections.extend(clause.shapes.iter().map(|shape| shape.selection));
        }
        found
    }

    /// Compiles a template anew, if this clause of it is still of its form and its role has the right to all of this.
    fn renew(
        &mut self,
        resolver: &mut Resolver,
        number: u32,
        clause: u32,
        selections: &BTreeSet<u32>,
    ) -> bool {
        let taken = self.templates[number as usize].take();
        let mut template = taken.expect("a clause refers to it");
        let text = self.text_of(clause);
        let all = selections.iter().all(|selection| {
            let asked = self.asked(template.role, *selection, text.as_deref());
            let same = resolver.resolve(asked, |lifted| {
                let identity = lifted.map_or("", |lifted| &lifted.identity);
                if *identity != *template.identity {
                    return Ok(false);
                }
                template.compile(lifted);
                Ok(true)
            });
            same.unwrap_or(false)
        });
        self.templates[number as usize] = Some(template);
        all
    }

    fn text_of(&self, clause: u32) -> Option<String> {
        let clause = self.clauses[clause as usize].as_ref();
        clause.and_then(|clause| self.text(clause).map(str::to_string))
    }

    fn asked<'a>(&'a self, role: u32, selection: u32, text: Option<&'a str>) -> Asked<'a> {
        Asked {
            role: &self.callers[role as usize].role,
            relid: self.family.relid,
            schema: &self.schema,
            table: &self.table,
            columns: &self.selections[selection as usize].0,
            where_text: text,
            policies: self.callers[role as usize].policies.as_deref(),
        }
    }

    /// Takes the shapes of a template out and adds those again that still are.
    fn resolve_each(&mut self, resolver: &mut Resolver, template: u32, refreshed: &mut Refreshed) {
        let (role, uses) = self.templates[template as usize]
            .as_ref()
            .map_or((0, "".into()), |template| {
                (template.role, template.uses.clone())
            });
        let of_template: Vec<u32> = (0..self.clauses.len() as u32)
            .filter(|number| {
                let clause = self.clauses[*number as usize].as_ref();
                clause.is_some_and(|clause| clause.template == template)
            })
            .collect();
        let mut shapes: Vec<(Option<String>, Option<Definition>, Shape)> = Vec::new();
        for number in of_template {
            let text = self.text_of(number);
            let keyless = self.clauses[number as usize].as_mut();
            let keyless = keyless.and_then(|clause| clause.keyless.take());
            let definition = keyless.map(|keyless| keyless.definition);
            let followers = self.bury(number).into_iter();
            shapes.extend(followers.map(|shape| (text.clone(), definition.clone(), shape)));
        }
        self.keep_templates(|other| other != template);
        for (text, definition, shape) in shapes {
            let text = text.as_deref();
            let (columns, _) = self.selections[shape.selection as usize].clone();
            let (caller, schema, table) = (
                self.callers[role as usize].clone(),
                self.schema.clone(),
                self.table.clone(),
            );
            let asked = Asked {
                role: &caller.role,
                relid: self.family.relid,
                schema: &schema,
                table: &table,
                columns: &columns,
                where_text: text,
                policies: caller.policies.as_deref(),
            };
            let add = |lifted: Option<&Lifted>| -> Result<u32> {
                require_same(&uses, lifted.map_or("", |lifted| &lifted.uses))?;
                let keyless = definition.as_ref().map(Keyless::new);
                Ok(self.add_shape(shape, role, text, lifted, keyless))
            };
            match resolver.resolve(asked, add) {
                Ok(number) => refreshed.moved.push((shape.id, number)),
                Err(reason) => refreshed.ended.push(Ended {
                    ids: vec![shape.id],
                    why: reason.into(),
                }),
            }
        }
    }
}
