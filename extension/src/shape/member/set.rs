//! The set of values that an inner select gives. Pure.

use crate::pg::expr::Value;

/// Values, each with the number of rows that give it, in order. There are many small sets, and few long values: they take the
/// least room one behind the other.
#[derive(Debug, Default)]
pub struct Set {
    bytes: Box<[u8]>,
    /// Where each value ends, and its rows.
    counts: Box<[(u32, u32)]>,
}

/// How much more often values are given; a value may be named more than once.
#[derive(Debug, Default)]
pub struct Delta(Vec<(Box<Value>, i64)>);

impl Delta {
    /// So many rows more give a value.
    pub fn add(&mut self, value: Box<Value>, rows: i64) {
        self.0.push((value, rows));
    }

    /// Each value once, in order.
    fn sums(mut self) -> Vec<(Box<Value>, i64)> {
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

    fn rows(&self) -> impl Iterator<Item = (&Value, u32)> {
        let mut start = 0;
        self.counts.iter().map(move |(end, rows)| {
            let bytes = &self.bytes[start..*end as usize];
            start = *end as usize;
            (Value::from_bytes(bytes), *rows)
        })
    }

    /// Its values, in an order that depends on nothing else.
    pub fn values(&self) -> Vec<&Value> {
        self.rows().map(|(value, _)| value).collect()
    }

    /// The values that it had before these came or went, which are in order.
    pub fn values_before<'a>(&'a self, changed: &'a [Box<Value>]) -> Vec<&'a Value> {
        let mut values = self.values();
        let came_or_went = |value: &Value| changed.binary_search_by(|it| (**it).cmp(value)).is_ok();
        let gone = changed
            .iter()
            .filter(|value| values.binary_search(&&***value).is_err());
        let gone: Vec<&Value> = gone.map(|value| &**value).collect();
        values.retain(|value| !came_or_went(value));
        values.extend(gone);
        values.sort_unstable();
        values
    }

    /// Takes a change of the rows in; returns the values that came or went, in order.
    pub fn apply(&mut self, delta: Delta) -> Vec<Box<Value>> {
        let mut changed = Vec::new();
        let (mut bytes, mut counts) = (Vec::new(), Vec::new());
        let mut keep = |value: &Value, rows: u32| {
            bytes.extend_from_slice(value.bytes());
            let end = u32::try_from(bytes.len()).expect("fewer than 4 GB of values");
            counts.push((end, rows));
        };
        let mut old = self.rows().peekable();
        for (value, rows) in delta.sums() {
            while let Some((less, rows)) = old.next_if(|(other, _)| *other < &*value) {
                keep(less, rows);
            }
            let before = old.next_if(|(other, _)| *other == &*value);
            let before = before.map_or(0, |(_, before)| before);
            // Rows that are taken away were there: a set is never wrong by less than nothing.
            let after = (i64::from(before) + rows).max(0) as u32;
            if after != 0 {
                keep(&value, after);
            }
            if (before > 0) != (after > 0) {
                changed.push(value);
            }
        }
        old.for_each(|(value, rows)| keep(value, rows));
        (self.bytes, self.counts) = (bytes.into(), counts.into());
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Box<Value> {
        Value::of([Some(text.as_bytes())])
    }

    fn change(set: &mut Set, rows: &[(&str, i64)]) -> Vec<Box<Value>> {
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
        assert_eq!(set.values(), [&*value("a"), &*value("b")]);
        assert_eq!(
            change(&mut set, &[("b", -1), ("a", 1), ("a", -1)]),
            [value("b")]
        );
        assert_eq!(set.values(), [&*value("a")]);
        assert_eq!(
            change(&mut set, &[("c", 1), ("A", 1), ("a", 1)]),
            [value("A"), value("c")]
        );
        assert_eq!(set.values(), [&*value("A"), &*value("a"), &*value("c")]);
    }

    #[test]
    fn what_it_was_before_a_change() {
        let mut set = Set::default();
        change(&mut set, &[("a", 1), ("b", 1)]);
        let changed = change(&mut set, &[("b", -1), ("c", 1)]);
        assert_eq!(set.values(), [&*value("a"), &*value("c")]);
        assert_eq!(set.values_before(&changed), [&*value("a"), &*value("b")]);
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
