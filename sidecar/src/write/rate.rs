//! How many transactions a caller may send.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Seconds of transactions that may come at once, as from a client that was away.
const BURST_S: f64 = 10.0;
/// Callers that are remembered before those that have not come for long are forgotten.
const REMEMBERED: usize = 10_000;

/// A bucket for each caller, that fills at the configured rate.
#[derive(Debug)]
pub struct Rates {
    per_s: f64,
    // Held for a look-up, never across an await.
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    /// So many transactions a second; 0 sets no limit.
    pub fn new(per_s: u32) -> Self {
        Rates {
            per_s: per_s.into(),
            buckets: Mutex::default(),
        }
    }

    /// Takes so many transactions of a caller, or says after which time they would be taken. A batch of more than may come
    /// at once is taken when nothing else was before it.
    pub fn take(&self, caller: &str, transactions: usize, now: Instant) -> Result<(), Duration> {
        if self.per_s == 0.0 {
            return Ok(());
        }
        let most = self.per_s * BURST_S;
        let mut buckets = self.buckets.lock().expect("no panic while held");
        if buckets.len() >= REMEMBERED && !buckets.contains_key(caller) {
            let is_full = |it: &Bucket| now.duration_since(it.at).as_secs_f64() >= BURST_S;
            buckets.retain(|_, bucket| !is_full(bucket));
        }
        let bucket = buckets.entry(caller.to_owned()).or_insert(Bucket {
            left: most,
            at: now,
        });
        let filled = now.duration_since(bucket.at).as_secs_f64() * self.per_s;
        bucket.left = (bucket.left + filled).min(most);
        bucket.at = now;
        let wanted = (transactions as f64).min(most);
        if bucket.left < wanted {
            let seconds = (wanted - bucket.left) / self.per_s;
            return Err(Duration::from_secs_f64(seconds));
        }
        bucket.left -= transactions as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_again() {
        let (rates, now) = (Rates::new(2), Instant::now());
        assert_eq!(rates.take("a", 15, now), Ok(()));
        assert_eq!(rates.take("a", 6, now), Err(Duration::from_millis(500)));
        assert_eq!(rates.take("b", 20, now), Ok(()));
        assert_eq!(rates.take("a", 6, now + Duration::from_millis(500)), Ok(()));
        // More than fits: once the bucket is full, and then for long none.
        let later = now + Duration::from_secs(100);
        assert_eq!(rates.take("b", 100, later), Ok(()));
        assert_eq!(
            rates.take("b", 1, later),
            Err(Duration::from_millis(40_500))
        );
        assert_eq!(Rates::new(0).take("a", 1_000_000, now), Ok(()));
    }
}
