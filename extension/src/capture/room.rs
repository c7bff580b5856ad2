//! How much room the log has, and which member of its ring is written.
//!
//! The members are looked at again once a second, and when much was written since: by their files, without a lock, so that
//! it works in any session and needs no other process.

use std::cell::{Cell, RefCell};

use crate::guc::{self, MEMBERS_KEPT, RING_MEMBERS};
use crate::pg::{log_tables, xact};

/// How long a look at the sizes holds, in microseconds.
const HOLDS_US: i64 = 1_000_000;
/// Which part of the hard limit a backend may write before it looks again; and which part of a member's share all may
/// before the size of the member of the moment is looked at again.
const LOOK_AGAIN_PART: u64 = 64;

/// Bytes of the members of the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes(pub [u64; RING_MEMBERS]);

impl Sizes {
    /// Of the whole log.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The member to write to: that of the interval, or the first one after it that has not had its share. One that could
    /// not be emptied in time thus grows to its share and no further; whether it can be emptied is judged by what is in
    /// it, so any choice is sound.
    pub fn member(&self, interval: usize, share: u64) -> usize {
        (interval..interval + RING_MEMBERS)
            .map(|number| number % RING_MEMBERS)
            .find(|&number| self.0[number] < share)
            .unwrap_or(interval % RING_MEMBERS)
    }

    /// Bytes that came since `before`; what was emptied does not count.
    pub fn grown_since(&self, before: &Sizes) -> u64 {
        let grown = |(now, before): (&u64, &u64)| now.saturating_sub(*before);
        self.0.iter().zip(&before.0).map(grown).sum()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Look {
    sizes: Sizes,
    at_us: i64,
    /// What this backend has written since.
    spent: u64,
}

thread_local! {
    static LOOK: RefCell<Look> = RefCell::new(Look::default());
    /// A member that had room, and where the WAL was then: what is written to it is in the WAL.
    static ROOMY: Cell<Option<(usize, i64)>> = const { Cell::new(None) };
}

fn look() -> Look {
    let last = LOOK.with_borrow(|look| *look);
    let now_us = xact::clock_us();
    let holds = (0..HOLDS_US).contains(&(now_us - last.at_us))
        && last.spent < guc::hard_limit_bytes() / LOOK_AGAIN_PART;
    if holds { last } else { look_again() }
}

fn look_again() -> Look {
    let look = Look {
        sizes: Sizes(log_tables::member_bytes()),
        at_us: xact::clock_us(),
        spent: 0,
    };
    LOOK.set(look);
    look
}

/// The sizes as they are now.
pub fn sizes_now() -> Sizes {
    look_again().sizes
}

/// The sizes as they were a moment ago.
pub fn sizes() -> Sizes {
    look().sizes
}

/// The member of the ring to write to.
pub fn member() -> usize {
    let interval = (xact::clock_s() / guc::ring_interval_s()) as usize % RING_MEMBERS;
    sizes().member(interval, share())
}

/// The member of the ring to write to, by the size that it has now, or had when little less was written.
pub fn member_now() -> usize {
    for _ in 0..RING_MEMBERS {
        let (member, wal) = (member(), xact::wal_insert_position());
        let little = (share() / LOOK_AGAIN_PART) as i64;
        if ROOMY
            .get()
            .is_some_and(|(roomy, then)| roomy == member && wal - then < little)
        {
            return member;
        }
        let bytes = log_tables::bytes_of_member(member);
        LOOK.with_borrow_mut(|look| look.sizes.0[member] = bytes);
        if bytes < share() {
            ROOMY.set(Some((member, wal)));
            return member;
        }
    }
    member()
}

fn share() -> u64 {
    guc::retention_bytes() / MEMBERS_KEPT
}

/// The log is as large as it may become.
pub fn is_full() -> bool {
    let look = look();
    look.sizes.total() + look.spent >= guc::hard_limit_bytes()
}

/// This backend has written so many bytes.
pub fn spend(bytes: usize) {
    LOOK.with_borrow_mut(|look| look.spent += bytes as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_member_of_the_interval_unless_it_had_its_share() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.member(3, 100), 3);
        sizes.0[3] = 100;
        assert_eq!(sizes.member(3, 100), 4);
        sizes.0[7] = 250;
        assert_eq!(sizes.member(7, 100), 0);
        sizes.0 = [100; RING_MEMBERS];
        assert_eq!(sizes.member(7, 100), 7);
    }

    #[test]
    fn emptying_is_no_growth() {
        let before = Sizes([10, 20, 0, 0, 0, 0, 0, 0]);
        let now = Sizes([0, 25, 3, 0, 0, 0, 0, 0]);
        assert_eq!(now.grown_since(&before), 8);
        assert_eq!(now.total(), 28);
    }
}
