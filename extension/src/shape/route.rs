//! Which where clauses let in the rows of a transaction: found by the routers, the rest evaluated.

use super::group::Group;
use super::operation::Side;
use super::tuple::Effect;
use crate::pg::image::Row;
use crate::pg::memory::Context;

/// A clause and one side of an effect. Ordered by clause, then effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    clause: u32,
    /// Twice the index of the effect, one more for the row after it.
    side: u32,
}

impl Hit {
    /// The clause's number.
    pub fn clause(self) -> u32 {
        self.clause
    }

    /// Index of the effect.
    pub fn effect(self) -> usize {
        (self.side / 2) as usize
    }

    /// The row that is meant.
    pub fn row(self, effects: &mut [Effect]) -> Option<&mut Row> {
        let effect = &mut effects[self.effect()];
        if self.is_after() {
            effect.after.as_mut()
        } else {
            effect.before.as_mut()
        }
    }

    fn row_of(self, effects: &[Effect]) -> Option<&Row> {
        let effect = &effects[self.effect()];
        if self.is_after() {
            effect.after.as_ref()
        } else {
            effect.before.as_ref()
        }
    }

    fn is_after(self) -> bool {
        self.side % 2 == 1
    }
}

/// What routers say of a transaction's rows.
#[derive(Default)]
pub struct Routed {
    /// These are in.
    pub hits: Vec<Hit>,
    /// These may be in. Sorted, each once.
    pub candidates: Vec<Hit>,
}

/// One clause that is to be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    /// Index of the role that it is evaluated for.
    pub role: u32,
    /// Its number.
    pub clause: u32,
    /// Where its candidates begin and end; all rows are if both are 0.
    candidates: (u32, u32),
}

fn rows(effects: &[Effect]) -> impl Iterator<Item = (u32, &Row)> {
    effects.iter().zip(0u32..).flat_map(|(effect, number)| {
        let (before, after) = (effect.before.as_ref(), effect.after.as_ref());
        let before = before.map(|row| (2 * number, row));
        before
            .into_iter()
            .chain(after.map(|row| (2 * number + 1, row)))
    })
}

/// Rows that stay in the processor's cache while one clause after the other is asked about them; between blocks
/// a statement can be cancelled.
fn blocks<'a, 'r>(
    sides: &'a [u32],
    rows: &'a [&'r Row],
) -> impl Iterator<Item = (&'a [u32], &'a [&'r Row])> {
    const ROWS_AT_ONCE: usize = 64;
    sides.chunks(ROWS_AT_ONCE).zip(rows.chunks(ROWS_AT_ONCE))
}

impl Group {
    /// Looking rows up may raise an error.
    pub fn routing_may_fail(&self) -> bool {
        self.routers.iter().any(|router| router.calls_functions())
    }

    /// Looks both sides of each effect up, whose columns have been fetched, in these routers. May raise an error.
    pub fn route(&mut self, effects: &[Effect], routers: &[usize], scratch: &Context) -> Routed {
        let mut routed = Routed::default();
        let (clauses, templates) = (&self.clauses, &self.templates);
        for router in routers {
            let router = &mut self.routers[*router];
            for (side, row) in rows(effects) {
                let found = |number: u32| {
                    let Some(clause) = &clauses[number as usize] else {
                        return;
                    };
                    let template = templates[clause.template as usize].as_ref();
                    let hit = Hit {
                        clause: number,
                        side,
                    };
                    if template.is_some_and(|template| template.residual.is_none()) {
                        routed.hits.push(hit);
                    } else {
                        routed.candidates.push(hit);
                    }
                };
                if router.calls_functions() {
                    scratch.run(|| router.look_up(row, found));
                } else {
                    router.look_up(row, found);
                }
            }
        }
        for number in self
            .every
            .iter()
            .filter(|n| clauses[**n as usize].is_some())
        {
            let hits = rows(effects).map(|(side, _)| Hit {
                clause: *number,
                side,
            });
            routed.hits.extend(hits);
        }
        routed.candidates.sort_unstable();
        routed.candidates.dedup();
        routed
    }

    /// What has to be evaluated, by role.
    pub fn work(&self, candidates: &[Hit]) -> Vec<Work> {
        let role = |number: u32| {
            let clause = self.clauses[number as usize].as_ref()?;
            Some(self.template(clause).role)
        };
        let mut at = 0;
        let found = candidates.chunk_by(|a, b| a.clause == b.clause);
        let found = found.filter_map(|run| {
            let from = at;
            at += run.len() as u32;
            Some(Work {
                role: role(run[0].clause)?,
                clause: run[0].clause,
                candidates: (from, at),
            })
        });
        let mut work: Vec<Work> = found.collect();
        work.extend(self.one_by_one.iter().filter_map(|clause| {
            Some(Work {
                role: role(*clause)?,
                clause: *clause,
                candidates: (0, 0),
            })
        }));
        work.sort_unstable();
        work
    }

    /// Evaluates clauses of one role, as which the caller acts. May raise an error.
    pub fn evaluate(&mut self, work: &[Work], candidates: &[Hit], effects: &[Effect]) -> Vec<Hit> {
        let mut hits = Vec::new();
        let of_some = |work: &&Work| work.candidates != (0, 0);
        for work in work.iter().filter(of_some) {
            let (from, to) = work.candidates;
            let found = candidates[from as usize..to as usize].iter();
            let found = found.filter_map(|hit| Some((hit.side, hit.row_of(effects)?)));
            let (sides, rows): (Vec<u32>, Vec<&Row>) = found.unzip();
            for (sides, rows) in blocks(&sides, &rows) {
                self.ask(work.clause, sides, rows, &mut hits);
            }
        }
        let of_all: Vec<&Work> = work.iter().filter(|work| !of_some(work)).collect();
        let (sides, rows): (Vec<u32>, Vec<&Row>) = rows(effects).unzip();
        for (sides, rows) in blocks(&sides, &rows) {
            for work in &of_all {
                self.ask(work.clause, sides, rows, &mut hits);
            }
        }
        hits
    }

    /// Evaluates a clause for rows. May raise an error.
    fn ask(&mut self, number: u32, sides: &[u32], rows: &[&Row], hits: &mut Vec<Hit>) {
        pgrx::check_for_interrupts!();
        let Some(clause) = &self.clauses[number as usize] else {
            return;
        };
        let template = self.templates[clause.template as usize].as_ref();
        let Some(residual) = template.and_then(|template| template.residual.as_ref()) else {
            return;
        };
        self.scope
            .set_constants(residual, clause.constants.as_deref());
        let answers = self.scope.matches(residual, rows);
        let found = sides.iter().zip(answers).filter(|(_, is_in)| *is_in);
        hits.extend(found.map(|(side, _)| Hit {
            clause: number,
            side: *side,
        }));
    }

    /// The clauses that a router finds.
    pub fn clauses_of(&self, router: usize) -> Vec<u32> {
        let of_router = |number: &u32| {
            let clause = self.clauses[*number as usize].as_ref();
            clause.is_some_and(|clause| self.template(clause).routers().any(|r| r == router))
        };
        (0..self.clauses.len() as u32).filter(of_router).collect()
    }
}

/// The sides of each effect on which a clause lets the row in, from its hits in order.
pub fn sides(hits: &[Hit]) -> Vec<Side> {
    let mut sides: Vec<Side> = Vec::with_capacity(hits.len());
    for hit in hits {
        let effect = hit.effect();
        if sides.last().is_none_or(|side| side.effect != effect) {
            sides.push(Side {
                effect,
                was_in: false,
                is_in: false,
            });
        }
        let side = sides.last_mut().expect("it was just put there");
        side.was_in |= !hit.is_after();
        side.is_in |= hit.is_after();
    }
    sides
}
