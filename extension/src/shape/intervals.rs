//! Intervals, found by a value that lies in them. Pure: what a value and an end are is for others to say.
//!
//! They are in runs, each sorted by low ends and seen as a balanced tree: the middle is the root, what is before and after it
//! are its subtrees. For each subtree is known which of its intervals ends last. A new interval is a run of its own; runs
//! that are not longer than what comes after them are merged, so there are few, and adding one costs little more than
//! sorting all once would.

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
}

/// Intervals by their places in `all`.
struct Run {
    order: Vec<u32>,
    /// For the root of each subtree: which of it ends last.
    last: Vec<u32>,
}

impl<I> Default for Intervals<I> {
    fn default() -> Intervals<I> {
        Intervals {
            all: Vec::new(),
            runs: Vec::new(),
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
        let mut order = vec![self.all.len() as u32];
        self.all.push((interval, number));
        let mut kept = self.runs.len();
        while kept > 0 && self.runs[kept - 1].order.len() <= order.len() {
            kept -= 1;
            order = self.merge(&self.runs[kept].order, &order, ends);
        }
        let run = self.run(order, ends);
        self.runs.truncate(kept);
        self.runs.push(run);
    }

    fn merge(&self, a: &[u32], b: &[u32], ends: &mut impl Ends<Interval = I>) -> Vec<u32> {
        let mut merged = Vec::with_capacity(a.len() + b.len());
        let (mut a, mut b) = (a, b);
        while let ([first, rest_a @ ..], [second, rest_b @ ..]) = (a, b) {
            let place = ends.lows(self.interval(*first), self.interval(*second));
            if place.is_le() {
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

    fn run(&self, order: Vec<u32>, ends: &mut impl Ends<Interval = I>) -> Run {
        let mut last = order.clone();
        self.find_last(&order, &mut last, ends);
        Run { order, last }
    }

    /// Which of a subtree ends last, found for all of its subtrees, too.
    fn find_last(
        &self,
        order: &[u32],
        last: &mut [u32],
        ends: &mut impl Ends<Interval = I>,
    ) -> Option<u32> {
        let root = order.len() / 2;
        let mut found = *order.get(root)?;
        let (before, after) = (0..root, root + 1..order.len());
        for part in [before, after] {
            let other = self.find_last(&order[part.clone()], &mut last[part], ends);
            let other = other.filter(|other| {
                let place = ends.highs(self.interval(*other), self.interval(found));
                place.is_gt()
            });
            found = other.unwrap_or(found);
        }
        last[root] = found;
        Some(found)
    }

    fn interval(&self, place: u32) -> &I {
        &self.all[place as usize].0
    }

    /// Calls `each` with the numbers of all intervals in which a value lies.
    pub fn look_up<E: Ends<Interval = I>>(
        &self,
        value: E::Value,
        ends: &mut E,
        mut each: impl FnMut(u32),
    ) {
        for run in &self.runs {
            self.visit(&run.order, &run.last, value, ends, &mut each);
        }
    }

    fn visit<E: Ends<Interval = I>>(
        &self,
        mut order: &[u32],
        mut last: &[u32],
        value: E::Value,
        ends: &mut E,
        each: &mut impl FnMut(u32),
    ) {
        while !order.is_empty() {
            let root = order.len() / 2;
            if !ends.stays(value, self.interval(last[root])) {
                return;
            }
            self.visit(&order[..root], &last[..root], value, ends, each);
            let (interval, number) = &self.all[order[root] as usize];
            if !ends.reaches(value, interval) {
                return; // nor does it reach what is after it
            }
            if ends.stays(value, interval) {
                each(*number);
            }
            (order, last) = (&order[root + 1..], &last[root + 1..]);
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

    fn found(intervals: &Intervals<(u32, u32)>, value: u32) -> Vec<u32> {
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
                assert_eq!(found(&intervals, value), expected(value));
            }
        }
        assert!(intervals.runs.len() <= 9);
        intervals.retain(|_| false, &mut Numbers);
        assert!(intervals.is_empty() && found(&intervals, 50).is_empty());
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
    }
}
