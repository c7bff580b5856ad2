//! Transactions that touched a table, whatever shapes saw of them: who waits for a transaction learns that it is there,
//! also when it changed nothing that the shape shows (docs/protocol.md, "Transactions").

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

/// Transactions that an answer names at most: the newest.
pub const NAMED: usize = 100;
/// Transactions that are remembered for each table.
const REMEMBERED: usize = 1000;
/// Tables that are remembered at most.
const TABLES: usize = 10_000;

/// The newest transactions that the feed has reported, by table.
#[derive(Debug, Default)]
pub struct Touches {
    // Held for a look-up, never across an await.
    tables: Mutex<HashMap<u32, VecDeque<(i64, u32)>>>,
}

impl Touches {
    /// A transaction touched a table.
    pub fn add(&self, relid: u32, position: i64, xid: u32) {
        let mut tables = self.tables.lock().expect("no panic while held");
        if tables.len() >= TABLES && !tables.contains_key(&relid) {
            tables.clear();
        }
        let touches = tables.entry(relid).or_default();
        // A feed that begins anew may tell again of what is known.
        if touches.back().is_none_or(|(newest, _)| *newest < position) {
            touches.push_back((position, xid));
        }
        if touches.len() > REMEMBERED {
            touches.pop_front();
        }
    }

    /// The newest transactions that touched one of these tables after one position, up to another, and whose positions are
    /// none of these (ascending).
    pub fn between(
        &self,
        relids: impl IntoIterator<Item = u32>,
        after: i64,
        upto: i64,
        but: &[i64],
    ) -> Vec<u32> {
        let tables = self.tables.lock().expect("no panic while held");
        let mut found = Vec::with_capacity(NAMED + but.len());
        for touches in relids.into_iter().filter_map(|relid| tables.get(&relid)) {
            let upto = touches.partition_point(|(position, _)| *position <= upto);
            let after = touches.partition_point(|(position, _)| *position <= after);
            let first = after.max(upto.saturating_sub(NAMED + but.len()));
            for touch in touches.range(first.min(upto)..upto) {
                if but.binary_search(&touch.0).is_err() {
                    found.push(*touch);
                }
            }
        }
        // A transaction may have touched several of the tables. Of one table alone they are in order already.
        found.sort_unstable();
        found.dedup();
        let surplus = found.len().saturating_sub(NAMED);
        found[surplus..].iter().map(|(_, xid)| *xid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_between_two_positions() {
        let touches = Touches::default();
        for position in [10, 11, 11, 12, 15, 9] {
            touches.add(1, position, position as u32);
        }
        assert_eq!(touches.between([1], 10, 15, &[]), [11, 12, 15]);
        assert_eq!(touches.between([1], 0, 14, &[10, 12]), [11]);
        assert!(touches.between([2], 0, 99, &[]).is_empty());
        for position in [12, 13] {
            touches.add(2, position, position as u32);
        }
        assert_eq!(touches.between([1, 2], 10, 15, &[]), [11, 12, 13, 15]);
        for position in 100..3000 {
            touches.add(1, position, position as u32);
        }
        let newest = touches.between([1, 2], 0, 2500, &[]);
        assert_eq!(
            (newest.len(), newest[0], newest[NAMED - 1]),
            (NAMED, 2401, 2500)
        );
        let but = touches.between([1], 0, 2500, &[2400, 2450]);
        assert_eq!(
            (but.len(), but[0], but.contains(&2450)),
            (NAMED, 2399, false)
        );
        assert!(touches.between([1], 2500, 2400, &[]).is_empty());
        assert_eq!(touches.tables.lock().unwrap()[&1].len(), REMEMBERED);
    }
}
