//! Tables that have our triggers without having been tracked here: pg_restore made them, or they were switched off and on
//! again. A dump has the triggers, not our catalog: so tables are tracked again whatever part of a database is restored,
//! and in whatever order.

use super::fingerprint::Fingerprint;
use super::track;
use crate::pg::relation::{Facts, Lock, Relation};
use crate::pg::trigger::{ROW_TRIGGER, TRUNCATE_TRIGGER};
use pgrx::pg_sys::Oid;

/// Begins capturing a table if it has all the triggers that `track` would make, and none of them is switched off. What
/// cannot be tracked is left alone: a DDL command does not fail by it. Call it with the owner's rights.
pub fn adopt(root: u32) {
    let Some(facts) =
        Relation::open(Oid::from_u32(root), Lock::AccessShare).map(|table| table.facts())
    else {
        return;
    };
    if track::is_clone(root) || track::check_trackable(&facts).is_err() {
        return;
    }
    let partitions = track::captured_with(&facts);
    if !is_complete(root, &facts, &partitions) {
        return;
    }
    track::at_work(|| {
        partitions
            .iter()
            .for_each(|&partition| track::install_on_partition(partition));
    });
    if let Some(fingerprint) = Fingerprint::of(root) {
        track::begin(&fingerprint);
    }
}

fn is_complete(root: u32, facts: &Facts, partitions: &[u32]) -> bool {
    fires(root, ROW_TRIGGER)
        && partitions.iter().all(|&partition| {
            fires(partition, ROW_TRIGGER)
                && fires(partition, TRUNCATE_TRIGGER)
                && track::check_partition(facts, partition, Lock::AccessShare).is_ok()
        })
}

fn fires(relid: u32, trigger: &str) -> bool {
    let is_on = "select exists (select from pg_catalog.pg_trigger where tgrelid = $1 and tgname = $2 and tgenabled in ('O', 'A'))";
    track::has_trigger(relid, trigger) && track::ask(is_on, relid, trigger)
}
