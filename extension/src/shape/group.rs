//! The shapes of one table: their where clauses, by template, and who follows which.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use pgrx::pg_sys::Oid;

use super::definition::{Definition, Replica};
use super::family::Family;
use super::keyless::Counts;
use super::router::Router;
use super::template::{Template, Way};
use super::tuple::changed;
use crate::error::Result;
use crate::pg::expr::{Lifted, Scope};
use crate::pg::invalidation;
use crate::pg::values::Values;

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
    /// For whom where clauses are evaluated. Templates refer to these by index.
    pub callers: Vec<Caller>,
    /// The where clauses. None where one is no more; routers may still name it.
    pub clauses: Vec<Option<Clause>>,
    /// Forms of where clauses. Clauses refer to these by index.
    pub templates: Vec<Option<Template>>,
    /// Indexes over the clauses' constants. Templates refer to these by index.
    pub routers: Vec<Router>,
    /// Clauses that let every row in.
    pub every: Vec<u32>,
    /// Clauses that no index serves.
    pub one_by_one: Vec<u32>,
    /// Places of the columns that are read of each row, whichever clauses it concerns.
    pub columns: Vec<usize>,
    /// What where clauses are evaluated in.
    pub scope: Scope,
    by_identity: HashMap<(u32, Rc<str>), u32>,
    by_text: HashMap<u64, u32>,
    texts: Texts,
    free: Vec<u32>,
    free_templates: Vec<u32>,
    living: usize,
    /// Clauses that routers may still name.
    dead: usize,
}

/// For whom where clauses are evaluated.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The role.
    pub role: String,
    /// A digest of the policies for it that are a part of the clauses; None if row-level security does not apply.
    pub policies: Option<String>,
}

/// A where clause for a caller.
pub struct Clause {
    /// Index of its form.
    pub template: u32,
    /// Its constants, if they are needed to evaluate it.
    pub constants: Option<Box<Values>>,
    /// Who follows it.
    pub shapes: Shapes,
    /// On a table without a key: what is needed to count its rows.
    pub keyless: Option<Box<Keyless>>,
    text: Text,
}

/// Where the text of a clause is; nowhere if every row is in.
#[derive(Clone, Copy, Debug)]
struct Text {
    start: u32,
    length: u32,
}

/// The texts of clauses, one after the other: each in memory of its own would leave holes everywhere.
#[derive(Default)]
struct Texts(String);

impl Texts {
    const NONE: Text = Text {
        start: 0,
        length: u32::MAX,
    };

    fn add(&mut self, text: Option<&str>) -> Text {
        let Some(text) = text else {
            return Texts::NONE;
        };
        let start = u32::try_from(self.0.len()).expect("fewer than 4 GB of clauses");
        self.0.push_str(text);
        Text {
            start,
            length: text.len() as u32,
        }
    }

    fn get(&self, text: Text) -> Option<&str> {
        let start = text.start as usize;
        (text.length != u32::MAX).then(|| &self.0[start..start + text.length as usize])
    }
}

/// What is needed to count the rows of a where clause.
pub struct Keyless {
    /// One of the clause's shapes.
    pub definition: Definition,
    /// How often each row is in. None until it is needed.
    pub counts: Option<Counts>,
}

impl Keyless {
    /// Of a definition whose rows have not been counted.
    pub(super) fn new(definition: &Definition) -> Box<Keyless> {
        Box::new(Keyless {
            definition: definition.clone(),
            counts: None,
        })
    }
}

/// The shapes of a where clause; there is seldom more than one.
#[derive(Clone, Debug)]
pub enum Shapes {
    /// One.
    One([Shape; 1]),
    /// Any other number.
    #[allow(
        clippy::box_collection,
        reason = "seldom there: it should take little room where it is not"
    )]
    Many(Box<Vec<Shape>>),
}

impl std::ops::Deref for Shapes {
    type Target = [Shape];

    fn deref(&self) -> &[Shape] {
        match self {
            Shapes::One(one) => one,
            Shapes::Many(many) => many,
        }
    }
}

impl Shapes {
    fn push(&mut self, shape: Shape) {
        match self {
            Shapes::One([one]) => *self = Shapes::Many(Box::new(vec![*one, shape])),
            Shapes::Many(many) => many.push(shape),
        }
    }

    /// Keeps those for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&Shape) -> bool) {
        match self {
            Shapes::One([one]) if keep(one) => {}
            Shapes::One(_) => *self = Shapes::Many(Box::default()),
            Shapes::Many(many) => many.retain(keep),
        }
    }
}

/// A shape, under the id that the sidecar has given it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The definition's hash.
    pub hash: u64,
    /// Its id.
    pub id: i32,
    /// Index of what it selects.
    pub selection: u32,
}

impl Group {
    /// No shapes of a table that is locked.
    pub fn new(definition: &Definition) -> Result<Group> {
        let family = Family::of(definition.relid).ok_or_else(changed)?;
        family
            .types
            .iter()
            .for_each(|type_oid| invalidation::watch_type(*type_oid));
        Ok(Group {
            family,
            schema: definition.schema.clone(),
            table: definition.table.clone(),
            key: definition.key.clone(),
            selections: Vec::new(),
            callers: Vec::new(),
            clauses: Vec::new(),
            templates: Vec::new(),
            routers: Vec::new(),
            every: Vec::new(),
            one_by_one: Vec::new(),
            columns: Vec::new(),
            scope: Scope::of(Oid::from_u32(definition.relid)),
            by_identity: HashMap::new(),
            by_text: HashMap::new(),
            texts: Texts::default(),
            free: Vec::new(),
            free_templates: Vec::new(),
            living: 0,
            dead: 0,
        })
    }

    /// Has it no shapes?
    pub fn is_empty(&self) -> bool {
        self.living == 0
    }

    /// The role of one of its shapes, of which it has some.
    pub fn some_role(&self) -> &str {
        let clause = self.clauses.iter().flatten().next();
        clause.map_or("", |clause| {
            &self.callers[self.template(clause).role as usize].role
        })
    }

    /// Adds a shape; returns the number of its clause. May raise an error.
    pub fn add(&mut self, id: i32, definition: &Definition, lifted: Option<&Lifted>) -> u32 {
        let shape = Shape {
            id,
            hash: definition.number(),
            selection: self.selection(definition),
        };
        let role = self.caller(definition);
        let text = definition.where_text.as_deref();
        let keyless = self.key.is_empty() && self.find(role, text).is_none();
        let keyless = keyless.then(|| Keyless::new(definition));
        self.add_shape(shape, role, text, lifted, keyless)
    }

    /// Adds a shape whose parts are known.
    pub(super) fn add_shape(
        &mut self,
        shape: Shape,
        role: u32,
        text: Option<&str>,
        lifted: Option<&Lifted>,
        keyless: Option<Box<Keyless>>,
    ) -> u32 {
        let Some(number) = self.find(role, text) else {
            return self.add_clause(shape, role, text, lifted, keyless);
        };
        let clause = self.clauses[number as usize].as_mut();
        clause.expect("it is there").shapes.push(shape);
        number
    }

    fn selection(&mut self, definition: &Definition) -> u32 {
        let Definition {
            columns, replica, ..
        } = definition;
        let same = |(other, mode): &(Vec<String>, Replica)| other == columns && mode == replica;
        let known = self.selections.iter().position(same);
        known.unwrap_or_else(|| {
            self.selections.push((columns.clone(), *replica));
            self.selections.len() - 1
        }) as u32
    }

    fn caller(&mut self, definition: &Definition) -> u32 {
        let policies = definition.policies_of(self.family.relid);
        let same =
            |other: &Caller| other.role == definition.role && other.policies.as_deref() == policies;
        let known = self.callers.iter().position(same);
        known.unwrap_or_else(|| {
            self.callers.push(Caller {
                role: definition.role.clone(),
                policies: policies.map(str::to_string),
            });
            self.callers.len() - 1
        }) as u32
    }

    fn find(&self, role: u32, text: Option<&str>) -> Option<u32> {
        let number = *self.by_text.get(&hash(role, text))?;
        let clause = self.clauses[number as usize].as_ref()?;
        let same = self.texts.get(clause.text) == text && self.template(clause).role == role;
        same.then_some(number)
    }

    fn add_clause(
        &mut self,
        shape: Shape,
        role: u32,
        text: Option<&str>,
        lifted: Option<&Lifted>,
        keyless: Option<Box<Keyless>>,
    ) -> u32 {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.clauses.push(None);
                self.clauses.len() as u32 - 1
            }
        };
        let of_template = self.template_for(role, lifted);
        let template = self.templates[of_template as usize]
            .as_ref()
            .expect("it is there");
        let constants = lifted.map_or(&[][..], |lifted| &lifted.constants);
        template.enter(number, constants, &mut self.routers);
        match template.way {
            Way::Every => self.every.push(number),
            Way::OneByOne => self.one_by_one.push(number),
            Way::Routed(_) => {}
        }
        self.clauses[number as usize] = Some(Clause {
            template: of_template,
            constants: template
                .residual
                .is_some()
                .then(|| Box::new(Values::copy(constants))),
            text: self.texts.add(text),
            shapes: Shapes::One([shape]),
            keyless,
        });
        self.by_text.insert(hash(role, text), number);
        self.living += 1;
        number
    }

    fn template_for(&mut self, role: u32, lifted: Option<&Lifted>) -> u32 {
        let identity: Rc<str> = lifted.map_or("", |lifted| &lifted.identity).into();
        if let Some(number) = self.by_identity.get(&(role, identity.clone())) {
            return *number;
        }
        let template = Template::new(role, identity.clone(), lifted, &mut self.routers);
        self.read_columns(&template, lifted);
        let number = self.free_templates.pop().unwrap_or_else(|| {
            self.templates.push(None);
            self.templates.len() as u32 - 1
        });
        self.templates[number as usize] = Some(template);
        self.by_identity.insert((role, identity), number);
        number
    }

    fn read_columns(&mut self, template: &Template, lifted: Option<&Lifted>) {
        if matches!(template.way, Way::OneByOne) {
            self.columns.extend(&template.columns);
        }
        self.columns
            .extend(lifted.into_iter().flat_map(Lifted::key_columns));
        self.columns.sort_unstable();
        self.columns.dedup();
    }

    /// The form of a clause.
    pub fn template(&self, clause: &Clause) -> &Template {
        let template = self.templates[clause.template as usize].as_ref();
        template.expect("the template of a clause that lives")
    }

    /// Index of the role of a clause, if it lives.
    pub(super) fn role_of(&self, number: u32) -> Option<u32> {
        let clause = self.clauses[number as usize].as_ref()?;
        Some(self.template(clause).role)
    }

    /// Removes a shape that a clause has twice once.
    pub(super) fn remove_one(&mut self, number: u32, id: i32) {
        let Some(clause) = &mut self.clauses[number as usize] else {
            return;
        };
        let mut seen = false;
        clause
            .shapes
            .retain(|shape| shape.id != id || std::mem::replace(&mut seen, true));
    }

    /// Removes one shape of a clause.
    pub fn remove(&mut self, number: u32, id: i32) {
        self.remove_of(number, |other| other == id);
    }

    /// Removes those shapes of a clause for which `gone` says so; returns their ids.
    pub(super) fn remove_of(&mut self, number: u32, gone: impl Fn(i32) -> bool) -> Vec<i32> {
        let mut ids = Vec::new();
        let Some(clause) = &mut self.clauses[number as usize] else {
            return ids;
        };
        clause.shapes.retain(|shape| {
            let gone = gone(shape.id);
            ids.extend(gone.then_some(shape.id));
            !gone
        });
        if clause.shapes.is_empty() {
            self.bury(number);
            self.sweep();
        }
        ids
    }

    /// Removes a clause; returns its shapes.
    pub fn bury(&mut self, number: u32) -> Vec<Shape> {
        let Some(clause) = self.clauses[number as usize].take() else {
            return Vec::new();
        };
        self.living -= 1;
        self.dead += 1;
        clause.shapes.to_vec()
    }

    /// The text of a clause; None if every row is in.
    pub fn text(&self, clause: &Clause) -> Option<&str> {
        self.texts.get(clause.text)
    }

    /// Clauses that are added later are of other templates than those for which `keep` says no.
    pub(super) fn keep_templates(&mut self, keep: impl Fn(u32) -> bool) {
        self.by_identity.retain(|_, number| keep(*number));
    }

    /// Forgets clauses that are no more, once they are many.
    pub(super) fn sweep(&mut self) {
        const FEW: usize = 64;
        if self.dead <= self.living + FEW {
            return;
        }
        let clauses = &self.clauses;
        let lives = |number: u32| clauses[number as usize].is_some();
        for router in &mut self.routers {
            router.retain(lives);
        }
        self.every.retain(|number| lives(*number));
        self.one_by_one.retain(|number| lives(*number));
        self.by_text.retain(|_, number| lives(*number));
        self.free = (0..clauses.len() as u32)
            .filter(|number| !lives(*number))
            .collect();
        let used: BTreeSet<u32> = clauses
            .iter()
            .flatten()
            .map(|clause| clause.template)
            .collect();
        self.free_templates = (0..self.templates.len() as u32)
            .filter(|number| !used.contains(number))
            .collect();
        for number in &self.free_templates {
            self.templates[*number as usize] = None;
        }
        self.by_identity.retain(|_, number| used.contains(number));
        let mut texts = Texts::default();
        for clause in self.clauses.iter_mut().flatten() {
            clause.text = texts.add(self.texts.get(clause.text));
        }
        self.texts = texts;
        self.dead = 0;
    }

    /// Removes the shapes for which `gone` says so; returns their ids.
    pub fn remove_if(&mut self, gone: impl Fn(&Shape) -> bool) -> Vec<i32> {
        self.remove_named(|_| true, |shape, _| gone(shape))
    }

    /// The same among those that name a column for which `named` says so; `gone` is told the number of the caller, too.
    pub fn remove_named(
        &mut self,
        named: impl Fn(&mut dyn Iterator<Item = &String>) -> bool,
        gone: impl Fn(&Shape, u32) -> bool,
    ) -> Vec<i32> {
        let selected: Vec<bool> = (self.selections.iter())
            .map(|(columns, _)| named(&mut columns.iter()))
            .collect();
        let read: Vec<bool> = (self.templates.iter())
            .map(|template| {
                let places = template.iter().flat_map(Template::reads);
                named(&mut places.filter_map(|place| self.family.names.get(place)))
            })
            .collect();
        let mut ids = Vec::new();
        for number in 0..self.clauses.len() {
            let Some(clause) = &mut self.clauses[number] else {
                continue;
            };
            let reads = read[clause.template as usize];
            let template = self.templates[clause.template as usize].as_ref();
            let caller = template.map_or(0, |template| template.role);
            clause.shapes.retain(|shape| {
                let gone = (reads || selected[shape.selection as usize]) && gone(shape, caller);
                ids.extend(gone.then_some(shape.id));
                !gone
            });
            if clause.shapes.is_empty() {
                self.bury(number as u32);
            }
        }
        self.sweep();
        ids
    }
}

/// What a clause is found by.
fn hash(role: u32, text: Option<&str>) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(
        text.unwrap_or_default().as_bytes(),
        u64::from(role) << 1 | u64::from(text.is_some()),
    )
}
