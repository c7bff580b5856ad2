//! Table `shapefeed.tracked`: which tables are captured, and what they were when somebody looked last.

use std::collections::BTreeSet;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::Oid;
use pgrx::{FromDatum, IntoDatum, Spi};

use super::fingerprint::{Added, Fingerprint, Meaning};
use super::{take_end, take_end_of_columns, take_end_of_roles};
use crate::pg::{owner, relation};

/// A tracked table.
pub struct Tracked {
    /// The table.
    pub relid: u32,
    /// What it was; None if another version of shapefeed said so.
    pub fingerprint: Option<Fingerprint>,
    /// It and its partitions.
    pub partitions: Vec<u32>,
    /// The newest transaction that gave somebody a right to it.
    pub given_by: Option<u64>,
}

/// How a row is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// As it is.
    No,
    /// Until the transaction ends; waits for others that hold it.
    Wait,
    /// The same, without waiting: a row that somebody else holds is not there.
    Skip,
}

/// Runs `f` with the rights of the extension's owner.
pub fn as_owner<T>(f: impl FnOnce() -> T) -> T {
    let query = "select extowner from pg_catalog.pg_extension where extname operator(pg_catalog.=) 'shapefeed'";
    let owner = read_one::<Oid>(query, &[]).expect("the extension is there: its function runs");
    owner::run_as(owner.to_u32(), f)
}

/// The value that a query gives. Unlike `Spi::get_one` it writes nothing, not even a transaction's id: readers may run on
/// a standby.
pub fn read_one<T: FromDatum + IntoDatum>(
    query: &str,
    arguments: &[DatumWithOid<'_>],
) -> Option<T> {
    Spi::connect(|client| {
        let rows = client.select(query, Some(1), arguments);
        rows.ok()?.first().get_one().ok().flatten()
    })
}

fn oid(relid: u32) -> DatumWithOid<'static> {
    Oid::from_u32(relid).into()
}

/// The row of a table. Call this, as all below, with the owner's rights.
pub fn find(relid: u32, hold: Hold) -> Option<Tracked> {
    let suffix = match hold {
        Hold::No => "",
        Hold::Wait => " for update",
        Hold::Skip => " for update skip locked",
    };
    let query = "select relid, fingerprint, partitions, given_by::text::int8 from shapefeed.tracked where relid = $1";
    let (query, arguments) = (format!("{query}{suffix}"), [oid(relid)]);
    let mut rows = if hold == Hold::No {
        select(&query, &arguments)
    } else {
        // To take a lock is to write.
        Spi::connect_mut(|client| rows(client.update(&query, None, &arguments)))
    };
    rows.pop()
}

/// All rows but those of these tables.
pub fn all_but(relids: &[u32]) -> Vec<Tracked> {
    let relids: Vec<Oid> = relids.iter().map(|relid| Oid::from_u32(*relid)).collect();
    let query = "select relid, fingerprint, partitions, given_by::text::int8 from shapefeed.tracked
                 where relid <> all ($1)";
    select(query, &[relids.into()])
}

/// Tables of which this one was a partition when they were last looked at.
pub fn roots_of(relid: u32) -> Vec<u32> {
    let query = "select relid, null::jsonb, partitions, null::int8 from shapefeed.tracked where $1 = any (partitions) and relid <> $1";
    let roots = select(query, &[oid(relid)]);
    roots.into_iter().map(|root| root.relid).collect()
}

fn select(query: &str, arguments: &[DatumWithOid<'_>]) -> Vec<Tracked> {
    Spi::connect(|client| rows(client.select(query, None, arguments)))
}

fn rows(table: pgrx::spi::SpiResult<pgrx::spi::SpiTupleTable<'_>>) -> Vec<Tracked> {
    let tracked = |row: pgrx::spi::SpiHeapTupleData<'_>| {
        let relid: Option<Oid> = row.get(1).ok().flatten();
        let fingerprint: Option<pgrx::JsonB> = row.get(2).ok().flatten();
        let partitions: Option<Vec<Oid>> = row.get(3).ok().flatten();
        let given_by: Option<i64> = row.get(4).ok().flatten();
        Tracked {
            relid: relid.expect("relid is not null").to_u32(),
            fingerprint: fingerprint.and_then(|json| Fingerprint::from_json(json.0)),
            partitions: partitions
                .unwrap_or_default()
                .into_iter()
                .map(|relid| relid.to_u32())
                .collect(),
            given_by: given_by.map(|xid| xid as u64),
        }
    };
    let rows = table.expect("table tracked can be read");
    rows.map(tracked).collect()
}

/// Keeps what a table is. `begins`: its capture begins only now.
pub fn save(fingerprint: &Fingerprint, begins: bool) {
    let partitions: Vec<Oid> = fingerprint
        .relids()
        .into_iter()
        .map(Oid::from_u32)
        .collect();
    Spi::run_with_args(
        "insert into shapefeed.tracked as t (relid, fingerprint, partitions) values ($1, $2, $3)
         on conflict (relid) do update set fingerprint = excluded.fingerprint, partitions = excluded.partitions,
           since = case when $4 then null else t.since end",
        &[
            oid(fingerprint.layout.relid),
            pgrx::JsonB(fingerprint.json()).into(),
            partitions.into(),
            begins.into(),
        ],
    )
    .expect("table tracked takes the row");
}

/// A table is captured no more.
pub fn forget(relid: u32, reason: &str) {
    let delete = "delete from shapefeed.tracked where relid = $1";
    Spi::run_with_args(delete, &[oid(relid)]).expect("table tracked can be written");
    take_end(&[relid], reason);
}

/// Keeps what a table has become, and says in the log what ends by it.
pub fn settle(old: &Tracked, now: Option<&Fingerprint>, added: Added) {
    let relid = old.relid;
    let Some(now) = now else {
        return forget(relid, "drop");
    };
    match meaning(old, now, added) {
        Meaning::Lost => {
            forget(relid, "gap");
            pgrx::warning!(
                "table {} is not captured any more: it is not what CALL shapefeed.track() made of it",
                relation::quoted_name(relid)
            );
            return;
        }
        Meaning::Table(reason) => {
            take_end(&[relid], reason);
            take_end(&left(old, now), reason);
        }
        Meaning::Columns(columns) => take_end_of_columns(relid, &columns),
        Meaning::Nothing => {}
    }
    save(now, false);
    let given = given(old, now);
    if !given.is_empty() {
        take_end_of_roles(Some(relid), given);
        let by = "update shapefeed.tracked set given_by = pg_current_xact_id() where relid = $1";
        Spi::run_with_args(by, &[oid(relid)]).expect("table tracked takes it");
    }
}

/// Roles that may see more of a table than they could.
pub fn given(old: &Tracked, now: &Fingerprint) -> BTreeSet<String> {
    let old = old.fingerprint.as_ref();
    old.map_or_else(BTreeSet::new, |old| old.rights.given_by(&now.rights))
}

/// Partitions that left a table, and with it the log, unless they are tracked by themselves.
fn left(old: &Tracked, now: &Fingerprint) -> Vec<u32> {
    let left = old.fingerprint.iter().flat_map(|old| old.without(now));
    left.filter(|relid| find(*relid, Hold::No).is_none())
        .collect()
}

/// What it means for the shapes of a table that it is what it is now.
pub fn meaning(old: &Tracked, now: &Fingerprint, added: Added) -> Meaning {
    match &old.fingerprint {
        Some(old) => old.turned_into(now, added),
        None if now.is_captured() => Meaning::Table("layout"),
        None => Meaning::Lost,
    }
}
