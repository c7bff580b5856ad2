//! DDL on tracked tables, as event triggers tell of it: what ends by it is said in the transaction of the command.

use pgrx::pg_sys::Oid;

use super::adopt::adopt;
use super::fingerprint::{Added, Fingerprint};
use super::track::{
    at_work, has_trigger, install_on_partition, install_triggers, is_at_work, is_clone, run_on,
};
use super::tracked::{Hold, Tracked, as_owner, find, roots_of, settle};
use super::{take_end, take_end_of_columns};
use crate::pg::relation::{self, Lock, Relation};
use crate::pg::trigger::ROW_TRIGGER;
use crate::pg::{owner, xact};

/// A command touched a table: looks whether something ends by it. `created`: the command made the table.
pub fn recheck(relid: u32, created: bool) {
    if is_at_work() {
        return;
    }
    let added = if created {
        Added::Empty
    } else {
        Added::Unknown
    };
    as_owner(|| {
        for root in family(relid) {
            recheck_root(root, added);
        }
    });
}

/// A table with those that it is or was a partition of.
fn family(relid: u32) -> Vec<u32> {
    let mut all = vec![relid];
    all.extend(relation::ancestors(relid));
    all.extend(roots_of(relid));
    all
}

fn recheck_root(root: u32, added: Added) {
    let Some(old) = find(root, Hold::No) else {
        return adopt(root);
    };
    let Some(now) = Fingerprint::of(root) else {
        return; // it is being dropped, which `dropped` is told of
    };
    if old.fingerprint.as_ref() == Some(&now) {
        return;
    }
    // The sequencer may have noticed the same.
    let Some(old) = find(root, Hold::Wait) else {
        return;
    };
    let now = take_in(&old, now);
    settle(&old, Some(&now), added);
    keep_what_left(&old, &now);
}

/// Has partitions that came captured. Returns what the table is with them.
fn take_in(old: &Tracked, now: Fingerprint) -> Fingerprint {
    let came: Vec<u32> = match &old.fingerprint {
        Some(old) => now.without(old).collect(),
        None => now.relids(),
    };
    if came.is_empty() || !has_trigger(old.relid, ROW_TRIGGER) {
        return now;
    }
    at_work(|| {
        came.iter()
            .for_each(|&partition| install_on_partition(partition))
    });
    Fingerprint::of(old.relid).unwrap_or(now)
}

/// A partition that was detached has lost the trigger that was a clone of its parent's. One that is tracked by itself gets
/// its own: the command holds a lock on it that no writer gets past.
fn keep_what_left(old: &Tracked, now: &Fingerprint) {
    let Some(old) = &old.fingerprint else { return };
    for relid in old
        .without(now)
        .filter(|&relid| find(relid, Hold::No).is_some())
    {
        at_work(|| install_triggers(relid, &relation::inheritors(relid)));
        recheck_root(relid, Added::Unknown);
    }
}

/// A table was dropped.
pub fn dropped(relid: u32) {
    as_owner(|| {
        if let Some(old) = find(relid, Hold::Wait) {
            settle(&old, None, Added::Unknown);
        }
        for root in roots_of(relid) {
            recheck_root(root, Added::Unknown);
        }
    });
}

/// A command writes all rows of a table anew, with other values in these columns, whose types may be what they were.
pub fn rewritten(relid: u32, columns: &[String]) {
    as_owner(|| {
        for root in family(relid) {
            let Some(old) = find(root, Hold::No) else {
                continue;
            };
            let keyed = old.fingerprint.is_some_and(|old| !old.key.is_empty());
            if keyed {
                take_end_of_columns(root, columns);
            } else {
                take_end(&[root], "layout");
            }
        }
    });
}

/// A table is about to be attached as a partition. Where both are tracked, the trigger that the partition gets as a clone
/// takes the place of its own: Postgres does not accept two of one name.
pub fn attaching(root: u32, partition: u32) {
    let has_own = || has_trigger(partition, ROW_TRIGGER) && !is_clone(partition);
    if !has_trigger(root, ROW_TRIGGER)
        || !has_own()
        || !owner::owns_relation(root)
        || !owner::owns_relation(partition)
    {
        return; // nothing to do, or the command is going to be refused
    }
    // As the command locks them, in its order: no writer gets in between.
    drop(Relation::open(
        Oid::from_u32(root),
        Lock::ShareUpdateExclusive,
    ));
    drop(Relation::open(
        Oid::from_u32(partition),
        Lock::AccessExclusive,
    ));
    if xact::with_latest_snapshot(has_own) {
        at_work(|| run_on(partition, &format!("drop trigger {ROW_TRIGGER} on %s")));
    }
}
