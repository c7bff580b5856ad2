//! Which transactions a batch appends, and in which order. Pure.

use std::collections::HashMap;

/// Which transactions a snapshot sees: those below `xmax` that are not in `xip`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Every transaction below has ended.
    pub xmin: u64,
    /// No transaction from here on has ended.
    pub xmax: u64,
    /// Those between that have not ended, ascending.
    pub xip: Vec<u64>,
}

impl Snapshot {
    /// The snapshot sees what this transaction committed (if it did).
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }
}

/// Where to look for the transactions that `now` sees and `before` does not. What is found there and `before` sees is none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidates {
    /// These, which were in progress before.
    pub xids: Vec<u64>,
    /// And all from here on; none when nothing new can be there.
    pub from: Option<u64>,
}

/// A transaction so close below the new ones is read along with them: one range instead of a look-up for each writer.
const CLOSE: u64 = 256;

/// The candidates between two snapshots. A transaction in progress in both costs nothing, an old one that ended one look-up.
pub fn candidates(before: &Snapshot, now: &Snapshot) -> Candidates {
    let ended = before.xip.iter().copied().filter(|&xid| now.sees(xid));
    let (close, xids): (Vec<u64>, Vec<u64>) = ended.partition(|xid| xid + CLOSE >= before.xmax);
    let new = (before.xmax < now.xmax).then_some(before.xmax);
    Candidates {
        xids,
        from: close.first().copied().or(new),
    }
}

/// What the log says of one transaction.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Its id.
    pub xid: u64,
    /// The greatest `seq` of its chunks.
    pub seq: i64,
    /// Ring member of its chunks.
    pub member: usize,
    /// Tables it touched.
    pub relids: Vec<u32>,
    /// Notes of its chunks.
    pub notes: Vec<serde_json::Value>,
}

/// Collects transactions from their chunks, in any order.
#[derive(Default)]
pub struct Transactions {
    by_xid: HashMap<u64, Transaction>,
}

impl Transactions {
    /// Adds what one chunk says.
    pub fn add(
        &mut self,
        xid: u64,
        seq: i64,
        member: usize,
        relids: &[u32],
        notes: Option<serde_json::Value>,
    ) {
        let transaction = self.by_xid.entry(xid).or_insert_with(|| Transaction {
            xid,
            seq,
            member,
            ..Default::default()
        });
        transaction.seq = transaction.seq.max(seq);
        for relid in relids {
            if !transaction.relids.contains(relid) {
                transaction.relids.push(*relid);
            }
        }
        transaction.notes.extend(notes);
    }

    /// In the order of their `seq`: if B touched a row after A, that was after A's commit, which B's pre-commit
    /// follows; so seq(B) > seq(A).
    pub fn in_order(self) -> Vec<Transaction> {
        let mut all: Vec<Transaction> = self.by_xid.into_values().collect();
        all.sort_unstable_by_key(|transaction| (transaction.seq, transaction.xid));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(xmin: u64, xmax: u64, xip: &[u64]) -> Snapshot {
        Snapshot {
            xmin,
            xmax,
            xip: xip.to_vec(),
        }
    }

    #[test]
    fn candidates_are_what_ended_and_what_is_new() {
        let before = snapshot(10, 20, &[10, 15, 18]);
        let now = snapshot(10, 25, &[10, 22]);
        assert_eq!(
            candidates(&before, &now),
            Candidates {
                xids: vec![],
                from: Some(15)
            }
        );
        let old = snapshot(10, 1020, &[10, 15, 1018]);
        let later = snapshot(1018, 1025, &[1018, 1022]);
        assert_eq!(
            candidates(&old, &later),
            Candidates {
                xids: vec![10, 15],
                from: Some(1020)
            }
        );
        assert_eq!(
            candidates(&now, &now),
            Candidates {
                xids: vec![],
                from: None
            }
        );
    }

    #[test]
    fn every_transaction_is_a_candidate_exactly_once() {
        let steps = [
            snapshot(5, 5, &[]),
            snapshot(5, 9, &[5, 7]),
            snapshot(7, 12, &[7, 10]),
            snapshot(10, 900, &[10]),
            snapshot(900, 900, &[]),
        ];
        for xid in 5..900 {
            let found = steps.windows(2).filter(|pair| {
                let c = candidates(&pair[0], &pair[1]);
                pair[1].sees(xid)
                    && !pair[0].sees(xid)
                    && (c.xids.contains(&xid) || c.from.is_some_and(|from| xid >= from))
            });
            assert_eq!(found.count(), 1, "xid {xid}");
        }
    }

    #[test]
    fn order_is_by_the_greatest_seq() {
        let mut all = Transactions::default();
        all.add(9, 100, 0, &[1], None);
        all.add(8, 150, 0, &[1], None);
        all.add(9, 200, 0, &[2, 1], Some(serde_json::json!({})));
        let order = all.in_order();
        assert_eq!(order.iter().map(|t| t.xid).collect::<Vec<_>>(), [8, 9]);
        assert_eq!(
            (order[1].relids.as_slice(), order[1].notes.len()),
            ([1, 2].as_slice(), 1)
        );
    }
}
