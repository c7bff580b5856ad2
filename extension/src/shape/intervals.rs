//! Intervals, found by a value that lies in them. Pure: what a value and an end are is for others to say.
//!
//! They are in runs, each sorted by low ends and seen as a balanced tree: the middle is the root, what is before and after it
//! are its subtrees. Of each root with what is before it is known which interval ends last. A new interval is a run of its own; runs
//! that are not longer than what comes after them are merged, so there are few, and adding one costs little more than
//! sorting all once would. When looking into several has cost what merging them costs, they become one.

use std::cmp::Ordering;

/// How intervals lie to each other and to values. May unwind.
pub trait Ends {
    /// An interval.
    type Interval;
    /// A value.
    type Value: Copy;
    /// Compares low ends.
    fn lows(&mut self, a: &Self::Interval, b: &Self::Interval) -> Ordering;
    /// Compares high ends.
    fn highs(&mut self, a: &Self::Interval, b: &Self::Interval) -> Ordering;
    /// Is a value not below the interval?
    fn reaches(&mut self, value: Self::Value, interval: &Self::Interval) -> bool;
    /// Is a value not above the interval?
    fn stays(&mut self, value: Self::Value, interval: &Self::Interval) -> bool;
}

/// Intervals, each with a number that it is known by.
pub struct Intervals<I> {
    all: Vec<(I, u32)>,
    runs: Vec<Run>,
    /// Runs that were looked at beyond the first since there were more.
    looked: usize,
}

struct Run {
    tree: Vec<Node>,
    /// Which of all ends last.
    last: u32,
}

/// The root of a subtree. Intervals are meant by their places in `all`.
#[derive(Clone, Copy)]
struct Node {
    interval: u32,
    /// Which of this and those before it in the subtree ends last.
    last: u32,
}

impl<I> Default for Intervals<I> {
    fn default() -> Intervals<I> {
        Intervals {
            all: Vec::new(),
            runs: Vec::new(),
            looked: 0,
        }
    }
}

impl<I> Intervals<I> {
    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Adds an interval.
    pub fn insert(&mut self, interval: I, number: u32, ends: &mut impl Ends<Interval = I>) {
        let place = self.all.len() as u32;
        self.all.push((interval, number));
        let (interval, last) = (place, place);
        self.add(
            vec![Node { interval, last }],
            |run, added| run <= added,
            ends,
        );
    }

    /// Adds a run, after merging it with those before it for whose lengths `joins` says so.
    fn add(
        &mut self,
        mut tree: Vec<Node>,
        joins: impl Fn(usize, usize) -> bool,
        ends: &mut impl Ends<Interval = I>,
    ) {
        let mut kept = self.runs.len();
        while kept > 0 && joins(self.runs[kept - 1].tree.len(), tree.len()) {
            kept -= 1;
            tree = self.merge(&self.runs[kept].tree, &tree, ends);
        }
        if let Some(last) = self.find_last(&mut tree, ends) {
            self.runs.truncate(kept);
            self.runs.push(Run { tree, last });
        }
    }

    fn merge(&self, a: &[Node], b: &[Node], ends: &mut impl Ends<Interval = I>) -> Vec<Node> {
        let mut merged = Vec::with_capacity(a.len() + b.len());
        let (mut a, mut b) = (a, b);
        while let ([first, rest_a @ ..], [second, rest_b @ ..]) = (a, b) {
            let (one, other) = (
                self.interval(first.interval),
                self.interval(second.interval),
            );
            if ends.lows(one, other).is_le() {
                merged.push(*first);
                a = rest_a;
            } else {
                merged.push(*second);
                b = rest_b;
            }
        }
        merged.extend(a.iter().chain(b));
        merged
    }

    /// Finds what ends last in all of a tree's subtrees; returns which of the tree does.
    fn find_last(&self, tree: &mut [Node], ends: &mut impl Ends<Interval = I>) -> Option<u32> {
        let (before, rest) = tree.split_at_mut(tree.len() / 2);
        let (root, after) = rest.split_first_mut()?;
        let before = self.find_last(before, ends);
        root.last = self.later(Some(root.interval), before, ends)?;
        let after = self.find_last(after, ends);
        self.later(Some(root.last), after, ends)
    }

    fn later(
        &self,
        one: Option<u32>,
        other: Option<u32>,
        ends: &mut impl Ends<Interval = I>,
    ) -> Option<u32> {
        let (Some(a), Some(b)) = (one, other) else {
            return one.or(other);
        };
        let place = ends.highs(self.interval(b), self.interval(a));
        Some(if place.is_gt() { b } else { a })
    }

    fn interval(&self, place: u32) -> &I {
        &self.all[place as usize].0
    }

    /// Calls `each` with the numbers of all intervals in which a value lies.
    pub fn look_up<E: Ends<Interval = I>>(
        &mut self,
        value: E::Value,
        ends: &mut E,
        mut each: impl FnMut(u32),
    ) {
        self.looked += self.runs.len().saturating_sub(1);
        if self.looked > self.all.len() {
            self.add(Vec::new(), |_, _| true, ends);
            self.looked = 0;
        }
        for run in &self.runs {
            if ends.stays(value, self.interval(run.last)) {
                self.visit(&run.tree, value, ends, &mut each);
            }
        }
    }

    fn visit<E: Ends<Interval = I>>(
        &self,
        mut tree: &[Node],
        value: E::Value,
        ends: &mut E,
        each: &mut impl FnMut(u32),
    ) {
        while let (before, [root, after @ ..]) = tree.split_at(tree.len() / 2) {
            if ends.reaches(value, self.interval(root.interval)) {
                self.visit_reached(before, root, value, ends, each);
                tree = after;
            } else {
                tree = before;
            }
        }
    }

    /// As above, for a root and what is before it, where the value is not below any.
    fn visit_reached<E: Ends<Interval = I>>(
        &self,
        mut before: &[Node],
        root: &Node,
        value: E::Value,
        ends: &mut E,
        each: &mut impl FnMut(u32),
    ) {
        if !ends.stays(value, self.interval(root.last)) {
            return;
        }
        let (interval, number) = &self.all[root.interval as usize];
        if root.last == root.interval || ends.stays(value, interval) {
            each(*number);
        }
        while let (first, [root, after @ ..]) = before.split_at(before.len() / 2) {
            self.visit_reached(first, root, value, ends, each);
            before = after;
        }
    }

    /// Forgets all intervals but those whose numbers live.
    pub fn retain(&mut self, lives: impl Fn(u32) -> bool, ends: &mut impl Ends<Interval = I>) {
        self.all.retain(|(_, number)| lives(*number));
        self.sort(ends);
    }

    /// Puts them in order again, which may be another one now.
    pub fn sort(&mut self, ends: &mut impl Ends<Interval = I>) {
        self.runs.clear();
        let all = std::mem::take(&mut self.all);
        for (interval, number) in all {
            self.insert(interval, number, ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from one up to another.
    struct Numbers;

    impl Ends for Numbers {
        type Interval = (u32, u32);
        type Value = u32;
        fn lows(&mut self, a: &(u32, u32), b: &(u32, u32)) -> Ordering {
            a.0.cmp(&b.0)
        }
        fn highs(&mut self, a: &(u32, u32), b: &(u32, u32)) -> Ordering {
            a.1.cmp(&b.1)
        }
        fn reaches(&mut self, value: u32, interval: &(u32, u32)) -> bool {
            value >= interval.0
        }
        fn stays(&mut self, value: u32, interval: &(u32, u32)) -> bool {
            value <= interval.1
        }
    }

    fn found(intervals: &mut Intervals<(u32, u32)>, value: u32) -> Vec<u32> {
        let mut found = Vec::new();
        intervals.look_up(value, &mut Numbers, |number| found.push(number));
        found.sort_unstable();
        found
    }

    #[test]
    fn all_are_found_and_no_others() {
        let mut state = 7u32;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        let (mut intervals, mut plain) = (Intervals::default(), Vec::new());
        for number in 0..300 {
            let low = random(100);
            let length = if random(10) == 0 { 90 } else { random(6) };
            intervals.insert((low, low + length), number, &mut Numbers);
            plain.push((low, low + length, number));
            if number % 37 == 36 {
                let lives = |number: u32| number % 5 != 3;
                intervals.retain(lives, &mut Numbers);
                plain.retain(|(_, _, number)| lives(*number));
            }
            let expected = |value: u32| -> Vec<u32> {
                let all = plain.iter();
                all.filter(|(low, high, _)| (*low..=*high).contains(&value))
                    .map(|(_, _, number)| *number)
                    .collect()
            };
            for value in [random(110), random(110)] {
                assert_eq!(found(&mut intervals, value), expected(value));
            }
        }
        assert!(intervals.runs.len() <= 9);
        intervals.retain(|_| false, &mut Numbers);
        assert!(intervals.is_empty() && found(&mut intervals, 50).is_empty());
    }

    #[test]
    fn few_are_looked_at() {
        struct Counted(usize);
        impl Ends for Counted {
            type Interval = (u32, u32);
            type Value = u32;
            fn lows(&mut self, a: &(u32, u32), b: &(u32, u32)) -> Ordering {
                Numbers.lows(a, b)
            }
            fn highs(&mut self, a: &(u32, u32), b: &(u32, u32)) -> Ordering {
                Numbers.highs(a, b)
            }
            fn reaches(&mut self, value: u32, interval: &(u32, u32)) -> bool {
                self.0 += 1;
                Numbers.reaches(value, interval)
            }
            fn stays(&mut self, value: u32, interval: &(u32, u32)) -> bool {
                self.0 += 1;
                Numbers.stays(value, interval)
            }
        }
        let mut intervals = Intervals::default();
        for number in 0..100_000u32 {
            let low = number.wrapping_mul(7919) % 100_000 * 10;
            intervals.insert((low, low + 9), number, &mut Numbers);
        }
        let mut counted = Counted(0);
        for value in 0..100 {
            intervals.look_up(value * 9_999, &mut counted, |_| ());
        }
        assert!(counted.0 < 100 * 200, "{} in 100 look-ups", counted.0);
        for value in 0..30_000 {
            intervals.look_up(value, &mut counted, |_| ());
        }
        assert_eq!(intervals.runs.len(), 1);
        assert_eq!(found(&mut intervals, 12_345).len(), 1);
    }
}
