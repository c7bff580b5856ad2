//! A quick hash of a few integers.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by such integers.
pub type Mixed<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// Odd, and its bits are as good as random: a product with it has those of the other in all of its upper ones.
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// Adds an integer to a hash.
pub fn mix(hash: u64, value: u64) -> u64 {
    (hash.rotate_left(26) ^ value).wrapping_mul(MIX)
}

/// The hash, in which the upper bits are brought down as well.
#[derive(Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = mix(self.0, value);
    }
}
