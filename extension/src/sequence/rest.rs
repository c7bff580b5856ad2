//! Resting positions: the ends of batches at which idle clients wait. One in each sixteenth of the retention, by time and
//! by size, so that a client that stays is never left behind by it.

use std::cell::RefCell;

use crate::capture::room::Sizes;
use crate::guc::{self, RESTS_PER_RETENTION};

/// What the next resting position depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    interval: i64,
    sizes: Sizes,
    grown: u64,
}

thread_local! {
    /// As this process left it: what was written since is known then.
    static LEFT: RefCell<Option<Rest>> = const { RefCell::new(None) };
}

impl Rest {
    /// As this process left it after its last batch; or as after another one's, which ended then.
    pub fn recall(ended_at_us: i64, sizes: Sizes) -> Rest {
        let left = LEFT.with_borrow(Option::clone);
        let interval = interval(ended_at_us);
        left.map_or_else(
            || Rest::after(ended_at_us, sizes),
            |rest| Rest { interval, ..rest },
        )
    }

    /// Keeps it for `recall`.
    pub fn leave(&self) {
        LEFT.set(Some(self.clone()));
    }

    /// As it is after a batch that ended then. What was written since is not known: it counts from now on.
    pub fn after(ended_at_us: i64, sizes: Sizes) -> Rest {
        Rest {
            interval: interval(ended_at_us),
            sizes,
            grown: 0,
        }
    }

    /// Whether a batch that ends now is a resting position; and what the next one depends on.
    pub fn next(&self, ended_at_us: i64, sizes: Sizes) -> (bool, Rest) {
        let grown = self.grown + sizes.grown_since(&self.sizes);
        let rests = interval(ended_at_us) != self.interval
            || grown >= guc::retention_bytes() / RESTS_PER_RETENTION;
        let next = Rest {
            interval: interval(ended_at_us),
            sizes,
            grown: if rests { 0 } else { grown },
        };
        (rests, next)
    }
}

fn interval(ended_at_us: i64) -> i64 {
    ended_at_us / (guc::retention_s() * 1_000_000 / RESTS_PER_RETENTION as i64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;

    #[test]
    fn a_batch_rests_by_time_and_by_size() {
        // 24 hours and 4 GB: every 1.5 hours, and every 256 MB.
        let start = Rest::after(0, Sizes::default());
        let (rests, next) = start.next(HOUR_US, Sizes::default());
        assert!(!rests);
        let (rests, next) = next.next(2 * HOUR_US, Sizes::default());
        assert!(rests);
        let (rests, next) = next.next(2 * HOUR_US, Sizes([200 << 20, 0, 0, 0, 0, 0, 0, 0]));
        assert!(!rests);
        // Member 0 was emptied meanwhile.
        let (rests, next) = next.next(2 * HOUR_US, Sizes([0, 56 << 20, 0, 0, 0, 0, 0, 0]));
        assert!(rests);
        assert!(
            !next
                .next(2 * HOUR_US, Sizes([0, 57 << 20, 0, 0, 0, 0, 0, 0]))
                .0
        );
    }
}
