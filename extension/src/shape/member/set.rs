//! The set of values that an inner select gives. Pure.

use std::collections::{HashMap, HashSet};

use crate::pg::expr::Value;

/// Values, each with the number of rows that give it.
#[derive(Debug, Default)]
pub struct Set {
    counts: HashMap<Value, i64>,
}

/// How much more often each value is given.
#[derive(Debug, Default)]
pub struct Delta(HashMap<Value, i64>);

impl Delta {
    /// So many rows more give a value.
    pub fn add(&mut self, value: Value, rows: i64) {
        if rows != 0 {
            *self.0.entry(value).or_default() += rows;
        }
    }
}

impl Set {
    /// Its values, in an order that depends on nothing else.
    pub fn values(&self) -> Vec<&Value> {
        let mut values: Vec<&Value> = self.counts.keys().collect();
        values.sort_unstable();
        values
    }

    /// The values that it had before these came or went.
    pub fn values_before<'a>(&'a self, changed: &'a [Value]) -> Vec<&'a Value> {
        let since: HashSet<&Value> = changed.iter().collect();
        let kept = self.counts.keys().filter(|value| !since.contains(value));
        let gone = changed
            .iter()
            .filter(|value| !self.counts.contains_key(*value));
        let mut values: Vec<&Value> = kept.chain(gone).collect();
        values.sort_unstable();
        values
    }

    /// Takes a change of the rows in; returns the values that came or went.
    pub fn apply(&mut self, delta: Delta) -> Vec<Value> {
        let mut changed = Vec::new();
        for (value, rows) in delta.0 {
            let before = self.counts.get(&value).copied().unwrap_or_default();
            let after = before + rows;
            if (before > 0) != (after > 0) {
                changed.push(value.clone());
            }
            if after == 0 {
                self.counts.remove(&value);
            } else {
                self.counts.insert(value, after);
            }
        }
        changed.sort_unstable();
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        Box::new([Some(text.as_bytes().into())])
    }

    fn change(set: &mut Set, rows: &[(&str, i64)]) -> Vec<Value> {
        let mut delta = Delta::default();
        rows.iter()
            .for_each(|(text, rows)| delta.add(value(text), *rows));
        set.apply(delta)
    }

    #[test]
    fn a_value_is_in_while_a_row_gives_it() {
        let mut set = Set::default();
        assert_eq!(
            change(&mut set, &[("a", 1), ("b", 2)]),
            [value("a"), value("b")]
        );
        assert!(change(&mut set, &[("b", -1)]).is_empty());
        assert_eq!(set.values(), [&value("a"), &value("b")]);
        assert_eq!(
            change(&mut set, &[("b", -1), ("a", 1), ("a", -1)]),
            [value("b")]
        );
        assert_eq!(set.values(), [&value("a")]);
    }

    #[test]
    fn what_it_was_before_a_change() {
        let mut set = Set::default();
        change(&mut set, &[("a", 1), ("b", 1)]);
        let changed = change(&mut set, &[("b", -1), ("c", 1)]);
        assert_eq!(set.values(), [&value("a"), &value("c")]);
        assert_eq!(set.values_before(&changed), [&value("a"), &value("b")]);
    }

    #[test]
    fn null_is_a_value() {
        let mut set = Set::default();
        let null: Value = Box::new([None]);
        let mut delta = Delta::default();
        delta.add(null.clone(), 1);
        assert_eq!(set.apply(delta), [null]);
    }
}
