//! Eras: stretches of positions that one history of this database issued.
//!
//! A server that lost commits (crash with asynchronous commit, promotion of a lagging standby, point-in-time recovery)
//! must not issue a position that somebody has seen with another meaning. So each history begins an era, at a position
//! that no other history reaches: above the clock, plus a random part.

use pgrx::Spi;

use crate::pg::database;
use crate::pg::xact;

/// Positions must fit a JavaScript number.
const POSITION_LIMIT: i64 = 1 << 53;
/// Size of the random part of an era's first position.
const RANDOM_PART: i64 = 1 << 32;

/// Begins an era when the newest one is not of this history, or when `force` is given. Returns its first position.
pub fn begin_if_new(head: i64, force: bool) -> Option<i64> {
    adopt_feed();
    if !force && is_current() {
        return None;
    }
    let first = first_position(head, xact::clock_us(), rand_part());
    assert!(first < POSITION_LIMIT, "positions are used up");
    Spi::run_with_args(
        "insert into shapefeed.era (first_position, timeline, feed, database, started_at)
         select $1, $2, f.id, f.database, pg_catalog.pg_postmaster_start_time() from shapefeed.feed f",
        &[first.into(), database::timeline().into()],
    )
    .expect("table era takes the row");
    Some(first)
}

fn first_position(head: i64, clock_us: i64, random: i64) -> i64 {
    head.max(clock_us) + 1 + random
}

fn rand_part() -> i64 {
    Spi::get_one_with_args::<i64>(
        "select (pg_catalog.random() * $1)::int8", // not a secret: only unlikely to be met twice
        &[(RANDOM_PART - 1).into()],
    )
    .ok()
    .flatten()
    .unwrap_or(0)
}

/// A database that was copied from another one is a feed of its own.
fn adopt_feed() {
    Spi::run(
        "update shapefeed.feed f
         set database = d.oid, id = (('x' || pg_catalog.translate(left(pg_catalog.gen_random_uuid()::text, 18), '-', ''))::bit(60))::int8
         from pg_catalog.pg_database d
         where d.datname = pg_catalog.current_database() and d.oid <> f.database",
    )
    .expect("table feed can be read");
}

fn is_current() -> bool {
    Spi::get_one_with_args::<bool>(
        "select e.timeline = $1 and e.feed = f.id and e.database = f.database
                and e.started_at = pg_catalog.pg_postmaster_start_time()
         from shapefeed.era e, shapefeed.feed f order by e.first_position desc limit 1",
        &[database::timeline().into()],
    )
    .ok()
    .flatten()
    .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_era_begins_above_head_and_clock() {
        assert_eq!(first_position(5, 100, 0), 101);
        assert_eq!(first_position(500, 100, 7), 508);
        let far = 4_102_444_800_000_000; // the year 2100
        assert!(first_position(0, far, RANDOM_PART) < POSITION_LIMIT);
    }
}
