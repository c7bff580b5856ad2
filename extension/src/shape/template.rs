//! What the where clauses of one form, role and table share.

use std::rc::Rc;

use super::router::Router;
use crate::pg::expr::{Access, Comparison, Compiled, Lifted};
use crate::pg::values::Typed;

/// A where clause without its constants, compiled once.
pub struct Template {
    /// Index of the role that it is evaluated for.
    pub role: u32,
    /// Equal for clauses of one form.
    pub identity: Rc<str>,
    /// A digest of what its clauses depend on beside the table.
    pub uses: Rc<str>,
    /// How the rows are found that its clauses let in.
    pub way: Way,
    /// What is evaluated for each row that is found; None if a row that is found is in.
    pub residual: Option<Compiled>,
    /// Places of the columns that evaluating it reads.
    pub columns: Vec<usize>,
}

/// How the rows are found that a clause lets in.
pub enum Way {
    /// Every row is in.
    Every,
    /// By routers, each with what it is asked for.
    Routed(Vec<(usize, Access)>),
    /// Each row is looked at.
    OneByOne,
}

impl Template {
    /// Of a clause; None lets every row in. Routers that it needs and that are not there are added.
    pub fn new(
        role: u32,
        identity: Rc<str>,
        lifted: Option<&Lifted>,
        routers: &mut Vec<Router>,
    ) -> Template {
        let way = match lifted.map(|lifted| &lifted.accesses) {
            None => Way::Every,
            Some(None) => Way::OneByOne,
            Some(Some(accesses)) => Way::Routed(
                accesses
                    .iter()
                    .map(|access| (router_for(access, routers), access.clone()))
                    .collect(),
            ),
        };
        let mut template = Template {
            role,
            identity,
            uses: lifted.map_or("", |lifted| &lifted.uses).into(),
            way,
            residual: None,
            columns: Vec::new(),
        };
        template.compile(lifted);
        template
    }

    /// Compiles what is evaluated, perhaps again.
    pub fn compile(&mut self, lifted: Option<&Lifted>) {
        let evaluated = lifted.filter(|lifted| !lifted.is_covered());
        self.residual = evaluated.map(Compiled::residual);
        self.columns = evaluated.map_or_else(Vec::new, Lifted::residual_columns);
    }

    /// Enters the constants of a clause in the routers.
    pub fn enter(&self, clause: u32, constants: &[Typed], routers: &mut [Router]) {
        let Way::Routed(accesses) = &self.way else {
            return;
        };
        for (router, access) in accesses {
            let mut key: Vec<Typed> = access.iter().map(|part| constants[part.constant]).collect();
            let Some(any) = access.iter().position(|part| part.any) else {
                routers[*router].insert(&key, clause);
                continue;
            };
            for element in constants[access[any].constant].elements() {
                key[any] = element;
                routers[*router].insert(&key, clause);
            }
        }
    }

    /// Places of all columns that its clauses read.
    pub fn reads(&self) -> impl Iterator<Item = usize> + '_ {
        let accesses = match &self.way {
            Way::Routed(accesses) => &accesses[..],
            _ => &[],
        };
        let parts = accesses.iter().flat_map(|(_, access)| access);
        let keys = parts.map(|part| part.comparison.column);
        keys.chain(self.columns.iter().copied())
    }

    /// The routers that its clauses are in.
    pub fn routers(&self) -> impl Iterator<Item = usize> + '_ {
        let accesses = match &self.way {
            Way::Routed(accesses) => &accesses[..],
            _ => &[],
        };
        accesses.iter().map(|(router, _)| *router)
    }
}

fn router_for(access: &Access, routers: &mut Vec<Router>) -> usize {
    let comparisons: Vec<Comparison> = access.iter().map(|part| part.comparison).collect();
    let known = routers
        .iter()
        .position(|router| router.compares(&comparisons));
    known.unwrap_or_else(|| {
        routers.push(Router::new(&comparisons));
        routers.len() - 1
    })
}
