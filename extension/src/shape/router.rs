//! An index over the constants of many where clauses: which of them let a row in, by the values of some of its columns.

use super::ranges::Ranges;
use crate::mix::{Mixed, mix};
use crate::pg::expr::{Comparison, Ends, Key};
use crate::pg::image::Row;
use crate::pg::memory::Context;
use crate::pg::values::{Typed, Values};

/// Clauses that compare the same columns with constants by the same operators.
pub struct Router {
    /// What is compared, in order.
    comparisons: Vec<Comparison>,
    /// The same, ready to be made; none where it is ranges that are compared.
    keys: Vec<Key>,
    index: Index,
    /// What the comparing functions keep.
    _functions: Context,
}

enum Index {
    /// The only key is an integer: by that.
    Integers(Mixed<u64, Clauses>),
    /// By the hash of the constants.
    Values {
        first: Mixed<u64, u32>,
        entries: Vec<Entry>,
    },
    /// By the ranges that the constants make.
    Ranges(Ranges),
}

/// One combination of constants.
struct Entry {
    constants: Values,
    clauses: Clauses,
    /// The next with the same hash, plus one.
    next: u32,
}

/// Clauses with the same constants; there is seldom more than one.
struct Clauses {
    first: u32,
    #[allow(
        clippy::box_collection,
        reason = "seldom there: it should take little room where it is not"
    )]
    more: Option<Box<Vec<u32>>>,
}

impl Clauses {
    fn of(clause: u32) -> Clauses {
        Clauses {
            first: clause,
            more: None,
        }
    }

    /// Adds a clause, unless it was the last to be added: equal elements of a list count once.
    fn add(&mut self, clause: u32) {
        let last = self.more.as_ref().and_then(|more| more.last());
        if *last.unwrap_or(&self.first) != clause {
            self.more.get_or_insert_default().push(clause);
        }
    }

    fn each(&self, mut f: impl FnMut(u32)) {
        f(self.first);
        self.more
            .iter()
            .flat_map(|more| more.iter())
            .for_each(|clause| f(*clause));
    }

    /// Keeps those that live; false if there are none.
    fn retain(&mut self, lives: impl Fn(u32) -> bool) -> bool {
        let mut living = Vec::new();
        self.each(|clause| {
            if lives(clause) {
                living.push(clause);
            }
        });
        let Some(first) = living.first() else {
            return false;
        };
        self.first = *first;
        living.remove(0);
        self.more = (!living.is_empty()).then(|| Box::new(living));
        true
    }
}

impl Router {
    /// Over these comparisons.
    pub fn new(comparisons: &[Comparison]) -> Router {
        let functions = Context::new();
        let ends = Ends::new(comparisons, &functions);
        let keys = Router::keys(comparisons, &functions);
        let index = match (&keys[..], ends) {
            (_, Some(ends)) => Index::Ranges(Ranges::new(ends)),
            ([key], None) if key.is_integer() => Index::Integers(Mixed::default()),
            _ => Index::Values {
                first: Mixed::default(),
                entries: Vec::new(),
            },
        };
        Router {
            comparisons: comparisons.to_vec(),
            keys,
            index,
            _functions: functions,
        }
    }

    /// Is it one over these?
    pub fn compares(&self, comparisons: &[Comparison]) -> bool {
        self.comparisons == comparisons
    }

    /// What equalities are made with.
    fn keys(comparisons: &[Comparison], functions: &Context) -> Vec<Key> {
        let is_range = |comparison: &&Comparison| comparison.by.is_range();
        let keys = comparisons.iter().filter(|one| !is_range(one));
        keys.map(|comparison| Key::new(*comparison, functions))
            .collect()
    }

    /// It can raise an error, and what its functions allocate must be freed.
    pub fn calls_functions(&self) -> bool {
        match &self.index {
            Index::Ranges(ranges) => ranges.calls_functions(),
            _ => self.keys.iter().any(|key| !key.is_integer()),
        }
    }

    /// Adds a clause that is true of rows with these values. May raise an error.
    pub fn insert(&mut self, constants: &[Typed], clause: u32) {
        if let Index::Ranges(ranges) = &mut self.index {
            return ranges.insert(constants, clause);
        }
        let pairs = self.keys.iter().zip(constants);
        let constants: Vec<Typed> = pairs.map(|(key, constant)| key.normal(*constant)).collect();
        let hash = combine(self.keys.iter_mut().zip(&constants), |(key, constant)| {
            key.hash_constant(constant.value)
        });
        match &mut self.index {
            Index::Ranges(_) => {}
            Index::Integers(clauses) => {
                clauses
                    .entry(hash)
                    .and_modify(|clauses| clauses.add(clause))
                    .or_insert_with(|| Clauses::of(clause));
            }
            Index::Values { first, entries } => {
                let at = first.entry(hash).or_insert(0);
                let mut number = *at;
                while number != 0 {
                    let entry = &mut entries[number as usize - 1];
                    if entry.constants.are(&constants) {
                        return entry.clauses.add(clause);
                    }
                    number = entry.next;
                }
                entries.push(Entry {
                    constants: Values::copy(&constants),
                    clauses: Clauses::of(clause),
                    next: std::mem::replace(at, entries.len() as u32 + 1),
                });
            }
        }
    }

    /// Calls `each` for the clauses that a row passes, whose columns have been fetched. May raise an error.
    pub fn look_up(&mut self, row: &Row, each: impl FnMut(u32)) {
        if let Index::Ranges(ranges) = &mut self.index {
            return ranges.look_up(row, each);
        }
        let keys = &mut self.keys;
        if keys
            .iter()
            .any(|key| row.get(key.comparison.column).is_none())
        {
            return;
        }
        let value = |key: &Key| row.get(key.comparison.column).expect("it is not null");
        let hash = combine(keys.iter_mut(), |key| {
            let value = value(key);
            key.hash_column(value)
        });
        match &self.index {
            Index::Ranges(_) => {}
            Index::Integers(clauses) => {
                if let Some(clauses) = clauses.get(&hash) {
                    clauses.each(each);
                }
            }
            Index::Values { first, entries } => {
                let mut each = each;
                let mut number = first.get(&hash).copied().unwrap_or(0);
                while number != 0 {
                    let entry = &entries[number as usize - 1];
                    let mut pairs = keys.iter_mut().zip(entry.constants.iter());
                    if pairs.all(|(key, constant)| key.is(value(key), constant)) {
                        entry.clauses.each(&mut each);
                    }
                    number = entry.next;
                }
            }
        }
    }

    /// Forgets all clauses but those that live; false if there are none.
    pub fn retain(&mut self, lives: impl Fn(u32) -> bool) -> bool {
        match &mut self.index {
            Index::Ranges(ranges) => ranges.retain(lives),
            Index::Integers(clauses) => {
                clauses.retain(|_, clauses| clauses.retain(&lives));
                !clauses.is_empty()
            }
            Index::Values { entries, .. } => {
                entries.retain_mut(|entry| entry.clauses.retain(&lives));
                let some_left = !entries.is_empty();
                self.rehash();
                some_left
            }
        }
    }

    /// Looks the operators' functions up again, which may be others now. May raise an error.
    pub fn renew(&mut self) {
        let functions = Context::new();
        let ends = Ends::new(&self.comparisons, &functions);
        self.keys = Router::keys(&self.comparisons, &functions);
        match (&mut self.index, ends) {
            (Index::Ranges(ranges), Some(ends)) => ranges.renew(ends),
            _ => self.rehash(),
        }
        self._functions = functions;
    }

    fn rehash(&mut self) {
        let Index::Values { first, entries } = &mut self.index else {
            return;
        };
        first.clear();
        for (number, entry) in entries.iter_mut().enumerate() {
            let pairs = self.keys.iter_mut().zip(entry.constants.iter());
            let hash = combine(pairs, |(key, constant)| key.hash_constant(constant));
            entry.next = first.insert(hash, number as u32 + 1).unwrap_or(0);
        }
    }
}

/// The hash of the items' hashes; that of one alone is its own.
fn combine<T>(items: impl Iterator<Item = T>, mut hash: impl FnMut(T) -> u64) -> u64 {
    let mut items = items.map(&mut hash);
    let first = items.next().unwrap_or(0);
    items.fold(first, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(clauses: &Clauses) -> Vec<u32> {
        let mut all = Vec::new();
        clauses.each(|clause| all.push(clause));
        all
    }

    #[test]
    fn clauses_come_and_go() {
        let mut clauses = Clauses::of(1);
        for clause in [1, 2, 2, 3] {
            clauses.add(clause);
        }
        assert_eq!(all(&clauses), [1, 2, 3]);
        assert!(clauses.retain(|clause| clause != 1));
        assert_eq!(all(&clauses), [2, 3]);
        assert!(clauses.retain(|clause| clause == 3));
        assert_eq!(all(&clauses), [3]);
        assert!(!clauses.retain(|_| false));
    }
}
