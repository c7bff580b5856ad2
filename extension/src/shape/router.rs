//! An index over the constants of many where clauses: which of them let a row in, by the values of some of its columns.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::pg::expr::{Comparison, Key};
use crate::pg::image::Row;
use crate::pg::memory::Context;
use crate::pg::values::{Typed, Values};

/// Clauses that compare the same columns with constants by the same operators.
pub struct Router {
    /// What is compared, in order.
    keys: Vec<Key>,
    index: Index,
    /// What the comparing functions keep.
    _functions: Context,
}

enum Index {
    /// The only key is an integer: by that.
    Integers(HashMap<u64, Clauses, BuildHasherDefault<Mix>>),
    /// By the hash of the constants.
    Values {
        first: HashMap<u64, u32, BuildHasherDefault<Mix>>,
        entries: Vec<Entry>,
    },
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
        let keys: Vec<Key> = comparisons
            .iter()
            .map(|comparison| Key::new(*comparison, &functions))
            .collect();
        let index = match &keys[..] {
            [key] if key.is_integer() => Index::Integers(HashMap::default()),
            _ => Index::Values {
                first: HashMap::default(),
                entries: Vec::new(),
            },
        };
        Router {
            keys,
            index,
            _functions: functions,
        }
    }

    /// Is it one over these?
    pub fn compares(&self, comparisons: &[Comparison]) -> bool {
        self.comparisons().eq(comparisons.iter().copied())
    }

    /// What it compares.
    pub fn comparisons(&self) -> impl Iterator<Item = Comparison> + '_ {
        self.keys.iter().map(|key| key.comparison)
    }

    /// It can raise an error, and what its functions allocate must be freed.
    pub fn calls_functions(&self) -> bool {
        self.keys.iter().any(|key| !key.is_integer())
    }

    /// Adds a clause that is true of rows with these values. May raise an error.
    pub fn insert(&mut self, constants: &[Typed], clause: u32) {
        let pairs = self.keys.iter().zip(constants);
        let constants: Vec<Typed> = pairs.map(|(key, constant)| key.normal(*constant)).collect();
        let hash = combine(self.keys.iter_mut().zip(&constants), |(key, constant)| {
            key.hash_constant(constant.value)
        });
        match &mut self.index {
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
        let comparisons: Vec<Comparison> = self.comparisons().collect();
        let functions = Context::new();
        let key = |comparison: &Comparison| Key::new(*comparison, &functions);
        self.keys = comparisons.iter().map(key).collect();
        self._functions = functions;
        self.rehash();
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

fn combine<T>(items: impl Iterator<Item = T>, mut hash: impl FnMut(T) -> u64) -> u64 {
    items.fold(0, |sum: u64, item| {
        sum.rotate_left(26).wrapping_mul(MIX) ^ hash(item)
    })
}

const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// Spreads a hash, or an integer, over all bits.
#[derive(Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(MIX);
        self.0 = mixed ^ (mixed >> 32);
    }
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
