//! Pins: the position at which this sidecar takes the snapshots of a definition (docs/protocol.md, "Handles").
//!
//! All clients that start within a while share one, and with it their handle and everything that caches hold. It is
//! renewed when the log since it gets long compared with the snapshot. Another sidecar may have another pin; nothing
//! depends on it, since every later request carries its handle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::db::Batch;

/// A pin is kept at least so long: clients that start together see the same one.
const MIN_AGE: Duration = Duration::from_secs(60);
/// And at most so long.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// A log below this is never long.
const MIN_LOG_BYTES: u64 = 1 << 20;
/// Definitions whose pins are remembered at most.
const REMEMBERED: usize = 10_000;

/// A pin and what is known of the reading that it causes.
#[derive(Debug)]
struct Pin {
    batch: Arc<Batch>,
    since: Instant,
    snapshot_bytes: u64,
    log_bytes: u64,
}

impl Pin {
    fn is_worn(&self, age: Duration) -> bool {
        let long = self.log_bytes > (self.snapshot_bytes / 4).max(MIN_LOG_BYTES);
        age >= MAX_AGE || (long && age >= MIN_AGE)
    }
}

/// The pins of this sidecar, by the hash of the definition.
#[derive(Debug, Default)]
pub struct Pins {
    // Held for a look-up, never across an await.
    pins: Mutex<HashMap<u64, Pin>>,
}

impl Pins {
    /// The pin in use, unless it is time for another one.
    pub fn current(&self, hash: u64) -> Option<Arc<Batch>> {
        let pins = self.pins.lock().expect("no panic while held");
        pins.get(&hash)
            .filter(|pin| !pin.is_worn(pin.since.elapsed()))
            .map(|pin| pin.batch.clone())
    }

    /// Takes up a new pin. Of two taken up at the same time the first one stays.
    pub fn renew(&self, hash: u64, batch: Batch) -> Arc<Batch> {
        let mut pins = self.pins.lock().expect("no panic while held");
        if let Some(pin) = pins.get(&hash)
            && !pin.is_worn(pin.since.elapsed())
        {
            return pin.batch.clone();
        }
        if pins.len() >= REMEMBERED {
            pins.retain(|_, pin| !pin.is_worn(pin.since.elapsed()));
        }
        if pins.len() >= REMEMBERED {
            pins.clear();
        }
        let batch = Arc::new(batch);
        let pin = Pin {
            batch: batch.clone(),
            since: Instant::now(),
            snapshot_bytes: 0,
            log_bytes: 0,
        };
        pins.insert(hash, pin);
        batch
    }

    /// Drops a pin that no longer holds.
    pub fn drop_pin(&self, hash: u64, position: i64) {
        let mut pins = self.pins.lock().expect("no panic while held");
        if pins
            .get(&hash)
            .is_some_and(|pin| pin.batch.position <= position)
        {
            pins.remove(&hash);
        }
    }

    /// The snapshot at this position has at least so many bytes.
    pub fn saw_snapshot(&self, hash: u64, position: i64, bytes: u64) {
        self.with(hash, position, |pin| {
            pin.snapshot_bytes = pin.snapshot_bytes.max(bytes)
        });
    }

    /// The log since this position has at least so many bytes.
    pub fn saw_log(&self, hash: u64, position: i64, bytes: u64) {
        self.with(hash, position, |pin| {
            pin.log_bytes = pin.log_bytes.max(bytes)
        });
    }

    /// The log of this shape grew.
    pub fn log_grew(&self, hash: u64, bytes: u64) {
        let mut pins = self.pins.lock().expect("no panic while held");
        if let Some(pin) = pins.get_mut(&hash) {
            pin.log_bytes += bytes;
        }
    }

    fn with(&self, hash: u64, position: i64, change: impl FnOnce(&mut Pin)) {
        let mut pins = self.pins.lock().expect("no panic while held");
        if let Some(pin) = pins
            .get_mut(&hash)
            .filter(|pin| pin.batch.position == position)
        {
            change(pin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(position: i64) -> Batch {
        Batch {
            position,
            xmin: 1,
            xmax: 1,
            xip: vec![],
        }
    }

    fn pin(snapshot_bytes: u64, log_bytes: u64) -> Pin {
        Pin {
            batch: Arc::new(batch(1)),
            since: Instant::now(),
            snapshot_bytes,
            log_bytes,
        }
    }

    #[test]
    fn a_pin_wears_out_by_its_log_and_by_age() {
        let minute = Duration::from_secs(60);
        assert!(!pin(0, MIN_LOG_BYTES).is_worn(2 * minute));
        assert!(pin(0, MIN_LOG_BYTES + 1).is_worn(minute));
        assert!(!pin(0, MIN_LOG_BYTES + 1).is_worn(minute / 2));
        assert!(!pin(100 << 20, 25 << 20).is_worn(minute));
        assert!(pin(100 << 20, (25 << 20) + 1).is_worn(minute));
        assert!(pin(0, 0).is_worn(MAX_AGE));
    }

    #[test]
    fn the_first_pin_stays() {
        let pins = Pins::default();
        assert!(pins.current(1).is_none());
        assert_eq!(pins.renew(1, batch(5)).position, 5);
        assert_eq!(pins.renew(1, batch(6)).position, 5);
        pins.drop_pin(1, 4);
        assert_eq!(pins.current(1).unwrap().position, 5);
        pins.drop_pin(1, 5);
        assert!(pins.current(1).is_none());
    }
}
