//! The set of values that an inner select gives. Pure.

use std::collections::HashSet;

use crate::pg::expr::Value;

/// Values, each with the number of rows that give it. There are many small sets: a list in order takes the least room.
#[derive(Debug, Default)]
pub struct Set {
    counts: Box<[(Value, i64)]>,
}

/// How much more often values are given; a value may be named more than once.
#[derive(Debug, Default)]
pub struct Delta(Vec<(Value, i64)>);

impl Delta {
    /// So many rows more give a value.
    pub fn add(&mut self, value: Value, rows: i64) {
        self.0.push((value, rows));
    }

    /// Each value once, in order.
    fn sums(mut self) -> Vec<(Value, i64)> {
        self.0.sort_unstable();
        self.0.dedup_by(|(value, rows), (kept, sum)| {
            let same = value == kept;
            *sum += if same { *rows } else { 0 };
            same
        });
        self.0
    }
}

impl Set {
    /// Number of its values.
    pub fn size(&self) -> usize {
        self.counts.len()
    }

    /// Its values, in an order that depends on nothing else.
    pub fn values(&self) -> Vec<&Value> {
        self.counts.iter().map(|(value, _)| value).collect()
    }

    fn has(&self, value: &Value) -> bool {
        let found = self.counts.binary_search_by(|(other, _)| other.cmp(value));
        found.is_ok()
    }

    /// The values that it had before these came or went.
    pub fn values_before<'a>(&'a self, changed: &'a [Value]) -> Vec<&'a Value> {
        let since: HashSet<&Value> = changed.iter().collect();
        let kept = self.counts.iter().map(|(value, _)| value);
        let kept = kept.filter(|value| !since.contains(value));
        let gone = changed.iter().filter(|value| !self.has(value));
        let mut values: Vec<&Value> = kept.chain(gone).collect();
        values.sort_unstable();
        values
    }

    /// Takes a change of the rows in; returns the values that came or went, in order.
    pub fn apply(&mut self, delta: Delta) -> Vec<Value> {
        let mut changed = Vec::new();
        let mut counts = Vec::with_capacity(self.counts.len() + delta.0.len());
        let mut old = std::mem::take(&mut self.counts).into_iter().peekable();
        for (value, rows) in delta.sums() {
            while let Some(less) = old.next_if(|(other, _)| *other < value) {
                counts.push(less);
            }
            let before = old.next_if(|(other, _)| *other == value);
            let before = before.map_or(0, |(_, before)| before);
            let after = before + rows;
            if (before > 0) != (after > 0) {
                changed.push(value.clone());
            }
            if after != 0 {
                counts.push((value, after));
            }
        }
        counts.extend(old);
        self.counts = counts.into();
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        Value::of([Some(text.as_bytes())])
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
        assert_eq!(
            change(&mut set, &[("c", 1), ("A", 1), ("a", 1)]),
            [value("A"), value("c")]
        );
        assert_eq!(set.values(), [&value("A"), &value("a"), &value("c")]);
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
        let null = Value::of([None]);
        let mut delta = Delta::default();
        delta.add(null.clone(), 1);
        assert_eq!(set.apply(delta), [null]);
    }
}
