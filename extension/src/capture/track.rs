//! Beginning and ending the capture of a table.

use std::cell::Cell;

use pgrx::PgSqlErrorCode as Code;
use pgrx::Spi;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::Oid;

use super::fingerprint::Fingerprint;
use super::tracked::{Hold, as_owner, find, forget, save};
use super::{take_end, take_note};
use crate::error::{Error, Result};
use crate::pg::owner;
use crate::pg::relation::{self, Facts, Lock, Relation};
use crate::pg::trigger::{self, ROW_TRIGGER, TRUNCATE_TRIGGER};
use crate::pg::xact;

/// Oids below are those of objects that initdb made.
const FIRST_NORMAL_OID: u32 = 16384;

thread_local! {
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// DDL of ours runs, of which event triggers need not tell us: between two commands of it, triggers are missing.
pub(super) fn is_at_work() -> bool {
    AT_WORK.get()
}

/// Runs DDL of ours.
pub(super) fn at_work(f: impl FnOnce()) {
    struct Done;
    impl Drop for Done {
        fn drop(&mut self) {
            AT_WORK.set(false);
        }
    }
    AT_WORK.set(true);
    let _done = Done;
    f();
}

/// Begins capturing a table, or repairs its triggers when it is captured already. Waits for locks as long as
/// lock_timeout says.
pub fn track(relid: u32) -> Result<()> {
    // Closed again at once, its lock kept: ALTER TABLE wants nobody to have it open.
    let Some(facts) =
        Relation::open(Oid::from_u32(relid), Lock::ShareRowExclusive).map(|table| table.facts())
    else {
        return Err(Error::Sql(
            Code::ERRCODE_UNDEFINED_TABLE,
            format!("there is no table with oid {relid}"),
            "",
        ));
    };
    check_trackable(&facts)?;
    let partitions = captured_with(&facts);
    for &partition in &partitions {
        check_partition(&facts, partition, Lock::ShareRowExclusive)?;
    }
    // One that is tracked, and has lost what captured it, may have lost changes before anybody noticed. The statement's own
    // snapshot is older than the lock: it would not see that somebody else has just tracked the table.
    let is_new = || {
        find(relid, Hold::No).is_none()
            || !Fingerprint::of(relid).is_some_and(|table| table.is_captured())
    };
    let new = xact::with_latest_snapshot(|| as_owner(is_new));
    at_work(|| install_triggers(relid, &partitions));
    let fingerprint = as_owner(|| Fingerprint::of(relid)).expect("it is locked");
    as_owner(|| {
        if new {
            begin(&fingerprint);
        } else {
            save(&fingerprint, false);
        }
    });
    Ok(())
}

/// Notes that a table whose triggers are there is captured from now on. Call it with the owner's rights.
pub(super) fn begin(fingerprint: &Fingerprint) {
    save(fingerprint, true);
    let relid = fingerprint.layout.relid;
    take_note(&serde_json::json!({ "tracked": [relid] }));
    take_end(&[relid], "track");
}

/// The tables that are captured when this one is: itself and, if it is partitioned, all below. Children of another kind are
/// tables of their own.
pub(super) fn captured_with(facts: &Facts) -> Vec<u32> {
    if facts.kind == 'p' {
        relation::inheritors(facts.relid)
    } else {
        vec![facts.relid]
    }
}

pub(super) fn check_trackable(facts: &Facts) -> Result<()> {
    let name = format!("{}.{}", facts.schema, facts.name);
    let refuse = |what: &str, hint| {
        Err(Error::Unsupported(
            format!("{what} \"{name}\" cannot be tracked"),
            hint,
        ))
    };
    match facts.kind {
        'r' | 'p' => {}
        'v' | 'm' => return refuse("view", "Track the tables that it reads."),
        'f' => return refuse("foreign table", "Track it on the server where it is."),
        _ => return refuse("relation", "Only tables can be tracked."),
    }
    if facts.relid < FIRST_NORMAL_OID
        || facts.schema == "pg_catalog"
        || facts.schema == "information_schema"
    {
        return refuse("system catalog", "Only user tables can be tracked.");
    }
    if facts.schema == "shapefeed" {
        return refuse("table of shapefeed", "Only user tables can be tracked.");
    }
    check_persistence(facts)?;
    if !owner::owns_relation(facts.relid) {
        return Err(not_owner(facts.relid));
    }
    Ok(())
}

fn check_persistence(facts: &Facts) -> Result<()> {
    let what = match facts.persistence {
        'u' => "unlogged",
        't' => "temporary",
        _ => return Ok(()),
    };
    let hint = "Its rows do not survive a crash or are not for others to see.";
    Err(Error::Unsupported(
        format!(
            "{what} table \"{}.{}\" cannot be tracked",
            facts.schema, facts.name
        ),
        hint,
    ))
}

pub(super) fn check_partition(root: &Facts, partition: u32, lock: Lock) -> Result<()> {
    if partition == root.relid {
        return Ok(());
    }
    let opened = Relation::open(Oid::from_u32(partition), lock);
    let Some(facts) = opened.map(|table| table.facts()) else {
        return Ok(());
    };
    if facts.kind == 'f' {
        let message = format!(
            "table \"{}.{}\" cannot be tracked: partition \"{}\" is a foreign table",
            root.schema, root.name, facts.name
        );
        return Err(Error::Unsupported(
            message,
            "Detach the foreign partition first.",
        ));
    }
    check_persistence(&facts)
}

pub(super) fn install_triggers(root: u32, partitions: &[u32]) {
    if !has_trigger(root, ROW_TRIGGER) {
        // A partition that was tracked by itself: from now on its trigger is a clone of the root's. No writer gets in
        // between, they wait for our lock.
        for &partition in partitions.iter().filter(|&&p| has_trigger(p, ROW_TRIGGER)) {
            run_on(partition, &format!("drop trigger {ROW_TRIGGER} on %s"));
        }
        run_on(
            root,
            &format!(
                "create trigger {ROW_TRIGGER} after insert or update or delete on %s for each row execute function shapefeed.capture()"
            ),
        );
        trigger::depend_on_extension(root, ROW_TRIGGER);
    }
    for &partition in partitions {
        install_on_partition(partition);
    }
}

pub(super) fn install_on_partition(partition: u32) {
    if !has_trigger(partition, TRUNCATE_TRIGGER) {
        run_on(
            partition,
            &format!(
                "create trigger {TRUNCATE_TRIGGER} after truncate on %s for each statement execute function shapefeed.capture()"
            ),
        );
        trigger::depend_on_extension(partition, TRUNCATE_TRIGGER);
    }
    for trigger in [ROW_TRIGGER, TRUNCATE_TRIGGER] {
        if !is_always(partition, trigger) {
            run_on(
                partition,
                &format!("alter table only %s enable always trigger {trigger}"),
            );
        }
    }
}

/// The table has the trigger as it is made here. One of that name that fires less would lose changes.
pub(super) fn has_trigger(relid: u32, trigger: &str) -> bool {
    ask(
        "select exists (select from pg_catalog.pg_trigger where tgrelid = $1 and tgname = $2 and tgqual is null
           and tgfoid = 'shapefeed.capture'::pg_catalog.regproc and pg_catalog.cardinality(tgattr::int2[]) = 0
           and tgtype = case $2 when 'shapefeed_capture' then 29 else 32 end)",
        relid,
        trigger,
    )
}

/// The row trigger is a clone of that of a partitioned table above.
pub(super) fn is_clone(relid: u32) -> bool {
    ask(
        "select exists (select from pg_catalog.pg_trigger where tgrelid = $1 and tgname = $2 and tgparentid <> 0)",
        relid,
        ROW_TRIGGER,
    )
}

fn is_always(relid: u32, trigger: &str) -> bool {
    ask(
        "select exists (select from pg_catalog.pg_trigger where tgrelid = $1 and tgname = $2 and tgenabled = 'A')",
        relid,
        trigger,
    )
}

pub(super) fn ask(query: &str, relid: u32, trigger: &str) -> bool {
    Spi::get_one_with_args::<bool>(query, &[oid(relid), trigger.into()])
        .expect("the catalog can be read")
        == Some(true)
}

fn oid(relid: u32) -> DatumWithOid<'static> {
    Oid::from_u32(relid).into()
}

/// Runs a command with `%s` replaced by the quoted name of a table.
pub(super) fn run_on(relid: u32, command: &str) {
    let command = command.replace("%s", &relation::quoted_name(relid));
    Spi::run(&command).expect("errors are raised");
}

fn not_owner(relid: u32) -> Error {
    let message = format!("must be owner of table {}", relation::quoted_name(relid));
    Error::Sql(
        Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
        message,
        "Tracking is for a table's owner: it adds triggers.",
    )
}

/// Ends every shape on a table, so that its clients read it again.
pub fn rotate(relid: u32) -> Result<()> {
    if !owner::owns_relation(relid) {
        return Err(not_owner(relid));
    }
    take_end(&[relid], "rotate");
    Ok(())
}

/// Ends capturing a table.
pub fn untrack(relid: u32) -> Result<()> {
    if !owner::owns_relation(relid) {
        return Err(not_owner(relid));
    }
    let Some(tracked) = as_owner(|| find(relid, Hold::Wait)) else {
        let hint = "View shapefeed.tracked_tables lists the tables that are.";
        return Err(Error::Sql(
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("table {} is not tracked", relation::quoted_name(relid)),
            hint,
        ));
    };
    if !is_clone(relid) {
        at_work(|| remove_triggers(relid, &tracked.partitions));
        // Partitions that were tracked by themselves as well have lost their triggers with the root's.
        for &partition in tracked.partitions.iter().filter(|&&p| p != relid) {
            as_owner(|| {
                if find(partition, Hold::Wait).is_some() {
                    forget(partition, "untrack");
                }
            });
        }
    }
    as_owner(|| forget(relid, "untrack"));
    Ok(())
}

fn remove_triggers(root: u32, partitions: &[u32]) {
    for &partition in partitions {
        if has_trigger(partition, TRUNCATE_TRIGGER) {
            run_on(partition, &format!("drop trigger {TRUNCATE_TRIGGER} on %s"));
        }
    }
    if has_trigger(root, ROW_TRIGGER) {
        run_on(root, &format!("drop trigger {ROW_TRIGGER} on %s"));
    }
}
