//! The net effect of one transaction. Pure.
//!
//! The order in which a transaction's records were captured is not the order of its changes (an AFTER trigger that
//! writes the same table runs before the outer statement's remaining events), so it is never used. What is used is
//! which row version superseded which: the records of a row form a *chain* of versions. Its first old image is
//! *before* if this transaction did not make that version; its last new image is *after* if this transaction did not
//! itself supersede it. What lies between has never been visible to anyone.
//!
//! Over the chains of one table, before and after images are then paired by key: each key has at most one of each,
//! and at most one operation.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};

use crate::mix::Mixed;
use crate::record::{Image, Record, Tid};

/// One image and what it takes to decode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    /// The leaf relation.
    pub relid: u32,
    /// Hash of the layout.
    pub layout: u64,
    /// The row itself.
    pub image: Image<'a>,
}

/// What a transaction did to one row, whatever its key became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    /// Index of the chain's first record in the transaction, over all tables.
    pub start: u64,
    /// The row as the transaction found it.
    pub before: Option<Version<'a>>,
    /// The row as the transaction left it.
    pub after: Option<Version<'a>>,
}

/// The record for each version, by leaf and place.
type Places = Mixed<(u32, Tid), usize>;

/// The chains of a transaction in order of their first records; without those that left nothing behind.
pub fn chains<'a>(records: &[Record<'a>]) -> Vec<Chain<'a>> {
    let mut made = Places::with_capacity_and_hasher(records.len(), Default::default());
    let mut superseded = Places::with_capacity_and_hasher(records.len(), Default::default());
    for (index, record) in records.iter().enumerate() {
        if let Some(new) = record.new {
            made.insert((record.relid, new.tid), index);
        }
        if let Some(old) = record.old {
            superseded.insert((record.relid, old.tid), index);
        }
    }
    let begins = |record: &Record| match (record.old, record.new) {
        (Some(old), _) => !made.contains_key(&(record.relid, old.tid)),
        (None, new) => new.is_some(),
    };
    let starts = records
        .iter()
        .enumerate()
        .filter(|(_, record)| begins(record));
    starts
        .map(|(index, first)| Chain {
            start: index as u64,
            before: first.old.map(|image| version(first, image)),
            after: last_version(records, index, &superseded),
        })
        .filter(|chain| chain.before.is_some() || chain.after.is_some())
        .collect()
}

fn version<'a>(record: &Record<'a>, image: Image<'a>) -> Version<'a> {
    Version {
        relid: record.relid,
        layout: record.layout,
        image,
    }
}

/// Follows a chain to the version that nothing superseded; None if the row was deleted.
fn last_version<'a>(
    records: &[Record<'a>],
    start: usize,
    superseded: &Places,
) -> Option<Version<'a>> {
    let mut record = &records[start];
    // A chain visits each record once at most: the bound only matters for a damaged log.
    for _ in 0..=records.len() {
        let new = record.new?;
        match superseded.get(&(record.relid, new.tid)) {
            Some(next) => record = &records[*next],
            None => return Some(version(record, new)),
        }
    }
    None
}

/// A chain of one table with the keys of its ends.
#[derive(Clone, Debug)]
pub struct Keyed<K, R> {
    /// As in [`Chain`].
    pub start: u64,
    /// Key and row before.
    pub before: Option<(K, R)>,
    /// Key and row after.
    pub after: Option<(K, R)>,
}

/// What a transaction did to one key of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect<K, R> {
    /// Place of the operation in its transaction: twice the index of the chain's first record, one more for the new
    /// key of a row whose key changed. Depends on the transaction alone, and no two keys share one.
    pub op_position: u64,
    /// The key.
    pub key: K,
    /// The row under this key before.
    pub before: Option<R>,
    /// The row under this key after.
    pub after: Option<R>,
    /// The row came from, or went to, this other key.
    pub other_key: Option<K>,
}

impl<K: for<'k> From<&'k [u8]>, R> Effect<K, R> {
    /// A row that is there, of no transaction, to be looked up and judged.
    pub fn of_row(row: R) -> Effect<K, R> {
        Effect {
            op_position: 0,
            key: b"".as_slice().into(),
            before: None,
            after: Some(row),
            other_key: None,
        }
    }
}

/// A hash of keys, which whoever writes rows may choose: seeded, so that nobody can make them collide.
#[derive(Clone)]
struct KeyHash(u64);

impl Default for KeyHash {
    fn default() -> KeyHash {
        KeyHash(std::hash::RandomState::new().hash_one(0))
    }
}

impl BuildHasher for KeyHash {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.0)
    }
}

struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.0);
    }

    fn write_usize(&mut self, length: usize) {
        self.0 ^= length as u64;
    }
}

/// Pairs the ends of a table's chains by key; in order of `op_position`.
pub fn effects<K: Clone + Eq + Hash, R>(mut chains: Vec<Keyed<K, R>>) -> Vec<Effect<K, R>> {
    let before = index(&chains, |chain| chain.before.as_ref());
    let after = index(&chains, |chain| chain.after.as_ref());
    let mut out = Vec::with_capacity(chains.len());
    for i in 0..chains.len() {
        let start = chains[i].start;
        let (old_key, new_key) = (key_of(&chains[i].before), key_of(&chains[i].after));
        let moves = match (&old_key, &new_key) {
            (Some(old), Some(new)) => {
                old != new && !after.contains_key(old) && !before.contains_key(new)
            }
            _ => false,
        };
        if let Some(key) = old_key.clone() {
            let row = chains[i].before.take().map(|(_, row)| row);
            let replaced_by = after
                .get(&key)
                .and_then(|j| chains[*j].after.take())
                .map(|(_, row)| row);
            let other_key = if moves { new_key.clone() } else { None };
            out.push(Effect {
                op_position: 2 * start,
                key,
                before: row,
                after: replaced_by,
                other_key,
            });
        }
        if let Some(key) = new_key.filter(|key| !before.contains_key(key)) {
            let row = chains[i].after.take().map(|(_, row)| row);
            let op_position = 2 * start + u64::from(old_key.is_some());
            let other_key = if moves { old_key } else { None };
            out.push(Effect {
                op_position,
                key,
                before: None,
                after: row,
                other_key,
            });
        }
    }
    out.sort_by_key(|effect| effect.op_position);
    out
}

/// Where each key is at one end of the chains.
fn index<K: Clone + Eq + Hash, R>(
    chains: &[Keyed<K, R>],
    end: impl Fn(&Keyed<K, R>) -> Option<&(K, R)>,
) -> HashMap<K, usize, KeyHash> {
    let ends = chains.iter().enumerate();
    ends.filter_map(|(i, chain)| end(chain).map(|(key, _)| (key.clone(), i)))
        .collect()
}

fn key_of<K: Clone, R>(end: &Option<(K, R)>) -> Option<K> {
    end.as_ref().map(|(key, _)| key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Kind;

    /// `I`, `U` or `D` on versions of row values written as `key value`.
    fn insert(tid: u16, row: &'static str) -> Record<'static> {
        record(Kind::Insert, None, Some((tid, row)))
    }

    fn update(old: (u16, &'static str), new: (u16, &'static str)) -> Record<'static> {
        record(Kind::Update, Some(old), Some(new))
    }

    fn delete(tid: u16, row: &'static str) -> Record<'static> {
        record(Kind::Delete, Some((tid, row)), None)
    }

    fn record(
        kind: Kind,
        old: Option<(u16, &'static str)>,
        new: Option<(u16, &'static str)>,
    ) -> Record<'static> {
        let image = |(offset, row): (u16, &'static str)| {
            Image::new(Tid { block: 0, offset }, row.as_bytes())
        };
        Record {
            kind,
            relid: 1,
            layout: 0,
            old: old.map(image),
            new: new.map(image),
        }
    }

    /// `position key before after [-> other key]`
    fn net(records: &[Record<'static>]) -> Vec<String> {
        let end = |version: Option<Version<'static>>| {
            version.map(|version| {
                let row = std::str::from_utf8(version.image.bytes).unwrap();
                (row.split(' ').next().unwrap().to_string(), row)
            })
        };
        let keyed = chains(records).into_iter().map(|chain| Keyed {
            start: chain.start,
            before: end(chain.before),
            after: end(chain.after),
        });
        effects(keyed.collect())
            .into_iter()
            .map(|e| {
                let text = format!(
                    "{} {} [{}] [{}]",
                    e.op_position,
                    e.key,
                    e.before.unwrap_or(""),
                    e.after.unwrap_or("")
                );
                match e.other_key {
                    Some(other) => format!("{text} ~ {other}"),
                    None => text,
                }
            })
            .collect()
    }

    #[test]
    fn plain_changes() {
        assert_eq!(
            net(&[
                insert(1, "1 a"),
                update((9, "2 a"), (2, "2 b")),
                delete(8, "3 a")
            ]),
            ["0 1 [] [1 a]", "2 2 [2 a] [2 b]", "4 3 [3 a] []"]
        );
    }

    #[test]
    fn what_a_transaction_made_and_removed_leaves_nothing() {
        assert!(
            net(&[
                insert(1, "1 a"),
                update((1, "1 a"), (2, "1 b")),
                delete(2, "1 b")
            ])
            .is_empty()
        );
    }

    #[test]
    fn capture_order_does_not_matter() {
        // I1(1) U2(2->102) I2(2) U1(1->101): the update of row 2 was captured before its insert.
        let nested = [
            insert(1, "1 1"),
            update((2, "2 2"), (3, "2 102")),
            insert(2, "2 2"),
            update((1, "1 1"), (4, "1 101")),
        ];
        assert_eq!(net(&nested), ["0 1 [] [1 101]", "4 2 [] [2 102]"]);
        // A trigger deleted the row before its insert was captured.
        assert!(net(&[delete(1, "1 a"), insert(1, "1 a")]).is_empty());
    }

    #[test]
    fn delete_and_insert_of_one_key_are_an_update() {
        // Also a row that moves between partitions.
        assert_eq!(
            net(&[delete(9, "1 a"), insert(1, "1 b")]),
            ["0 1 [1 a] [1 b]"]
        );
    }

    #[test]
    fn a_changed_key_is_a_pair() {
        assert_eq!(
            net(&[update((9, "1 a"), (1, "2 a"))]),
            ["0 1 [1 a] [] ~ 2", "1 2 [] [2 a] ~ 1"]
        );
        // Over more than one step the ends count.
        assert_eq!(
            net(&[
                update((9, "1 a"), (1, "2 a")),
                update((1, "2 a"), (2, "3 a"))
            ]),
            ["0 1 [1 a] [] ~ 3", "1 3 [] [3 a] ~ 1"]
        );
    }

    #[test]
    fn keys_that_trade_places_are_updates() {
        assert_eq!(
            net(&[
                update((8, "1 x"), (1, "2 x")),
                update((9, "2 y"), (2, "1 y"))
            ]),
            ["0 1 [1 x] [1 y]", "2 2 [2 y] [2 x]"]
        );
        // A shift: 1->2, 2->3. Key 2 has a before, so no pair of the wire's kind comes out of it.
        assert_eq!(
            net(&[
                update((8, "1 x"), (1, "2 x")),
                update((9, "2 y"), (2, "3 y"))
            ]),
            ["0 1 [1 x] []", "2 2 [2 y] [2 x]", "3 3 [] [3 y]"]
        );
    }

    #[test]
    fn a_freed_key_that_is_used_again() {
        // 1->2, then a new 1.
        assert_eq!(
            net(&[update((9, "1 a"), (1, "2 a")), insert(2, "1 b")]),
            ["0 1 [1 a] [1 b]", "1 2 [] [2 a]"]
        );
    }

    #[test]
    fn leaves_are_told_apart() {
        let mut other = insert(1, "2 b");
        other.relid = 2;
        assert_eq!(
            net(&[insert(1, "1 a"), other]),
            ["0 1 [] [1 a]", "2 2 [] [2 b]"]
        );
    }
}
