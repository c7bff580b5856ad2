//! An index over ranges of one column's values: the [`super::router`]'s for clauses without an equality.

use std::cmp::Ordering;

use pgrx::pg_sys::Datum;

use super::intervals::{self, Intervals};
use crate::pg::expr::{Ends, Range};
use crate::pg::image::Row;
use crate::pg::values::Typed;

/// Clauses by the ranges that their constants make.
pub struct Ranges {
    ends: Ends,
    clauses: Intervals<Range>,
}

impl Ranges {
    /// None yet.
    pub fn new(ends: Ends) -> Ranges {
        Ranges {
            ends,
            clauses: Intervals::default(),
        }
    }

    /// It can raise an error, and what its functions allocate must be freed.
    pub fn calls_functions(&self) -> bool {
        self.ends.calls_functions()
    }

    /// Adds a clause. May raise an error.
    pub fn insert(&mut self, constants: &[Typed], clause: u32) {
        if let Some(range) = self.ends.range(constants) {
            self.clauses.insert(range, clause, &mut self.ends);
        }
    }

    /// Calls `each` for the clauses in whose range a row is. May raise an error.
    pub fn look_up(&mut self, row: &Row, each: impl FnMut(u32)) {
        if let Some(value) = self.ends.value(row) {
            self.clauses.look_up(value, &mut self.ends, each);
        }
    }

    /// Forgets all clauses but those that live; false if there are none.
    pub fn retain(&mut self, lives: impl Fn(u32) -> bool) -> bool {
        self.clauses.retain(lives, &mut self.ends);
        !self.clauses.is_empty()
    }

    /// Compares by other functions from now on. May raise an error.
    pub fn renew(&mut self, ends: Ends) {
        self.ends = ends;
        self.clauses.sort(&mut self.ends);
    }
}

impl intervals::Ends for Ends {
    type Interval = Range;
    type Value = Datum;

    fn lows(&mut self, a: &Range, b: &Range) -> Ordering {
        self.lows(a, b)
    }

    fn highs(&mut self, a: &Range, b: &Range) -> Ordering {
        self.highs(a, b)
    }

    fn reaches(&mut self, value: Datum, range: &Range) -> bool {
        self.reaches(value, range)
    }

    fn stays(&mut self, value: Datum, range: &Range) -> bool {
        self.stays(value, range)
    }
}
