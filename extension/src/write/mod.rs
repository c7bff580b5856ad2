//! Stage 0, where changes come from that clients have made: one transaction of a client as one transaction here, under its
//! caller's role and claims, exactly once (docs/writing.md).
//!
//! The client's row is locked first, so that the same transaction, sent again beside itself, waits for its own outcome. The
//! operations are done in a subtransaction: what is left of a rejected one is its record, which commits as an applied one's
//! does, with all that it says.

mod client;
mod opened;
mod operation;
mod statement;
pub mod target;

use std::collections::HashMap;
use std::rc::Rc;

use pgrx::datum::{JsonB, Uuid};
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys::Oid};
use serde_json::{Value, json};

use self::client::{Begun, Outcome, Transaction};
use self::operation::{Kind, Operation, Refusal};
use self::statement::{Maker, Statement};
use self::target::Target;
use crate::capture;
use crate::error::{Error, OrRaise};
use crate::pg::attempt::attempt_writing;
use crate::pg::relation::{self, Lock, Relation};
use crate::pg::role::{self, AsRole};
use crate::pg::statement::{execute, run};
use crate::pg::{owner, table, xact};
use crate::shape::define::read_settings;

/// Who writes.
pub struct Caller {
    role: String,
    subject: Option<String>,
    settings: Vec<(String, String)>,
}

impl Caller {
    /// Whoever may not act as the role is told so now: that is nothing to reject a client's transaction for.
    fn new(role: Option<String>, settings: Option<JsonB>) -> Caller {
        let role = role.unwrap_or_else(role::current);
        role::require(&role).or_raise();
        let settings = settings.map(read_settings).unwrap_or_default();
        let subject = settings
            .iter()
            .find(|(name, _)| name == "request.jwt.claim.sub");
        Caller {
            role,
            subject: subject.map(|(_, value)| value.clone()),
            settings,
        }
    }
}

/// Runs `f` with the rights of the extension's owner.
fn as_owner<T>(f: impl FnOnce() -> T) -> T {
    let query = "select e.extowner from pg_catalog.pg_extension e where e.extname operator(pg_catalog.=) 'shapefeed'";
    let found = execute(query, &[], |rows| rows.first().get_one::<Oid>());
    owner::run_as(found.expect("its function runs").to_u32(), f)
}

/// `shapefeed._write`: does a client's transaction, once.
#[pg_extern(sql = false)]
fn _write(
    client: Uuid,
    seq: i64,
    operations: JsonB,
    role: Option<String>,
    settings: Option<JsonB>,
) -> JsonB {
    xact::require_writable(c"shapefeed._write()");
    xact::register_callbacks();
    let caller = Caller::new(role, settings);
    let operations = operation::read(operations.0).unwrap_or_else(|why| {
        let message = format!("invalid operations: {why}");
        Error::Sql(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, "").raise()
    });
    answer(Transaction { client, seq }, &caller, || {
        carry_out(&operations, &caller)
    })
}

/// `shapefeed._reject`: records that a client's transaction is rejected.
#[pg_extern(sql = false)]
fn _reject(
    client: Uuid,
    seq: i64,
    rejection: JsonB,
    role: Option<String>,
    settings: Option<JsonB>,
) -> JsonB {
    xact::require_writable(c"shapefeed._reject()");
    let caller = Caller::new(role, settings);
    answer(Transaction { client, seq }, &caller, || Err(rejection.0))
}

/// Answers for a transaction, which `carry_out` does if it is the next one of its client: a rejection is what it fails with.
fn answer(
    transaction: Transaction,
    caller: &Caller,
    carry_out: impl FnOnce() -> Result<(), Value>,
) -> JsonB {
    let seq = transaction.seq;
    JsonB(match as_owner(|| client::begin(transaction, caller)) {
        Begun::Foreign => json!({"status": "foreign"}),
        Begun::Gap(last) => json!({"status": "gap", "last_seq": last}),
        Begun::Done(last) => match as_owner(|| client::outcome(transaction)) {
            Outcome::Applied(xid) => json!({"status": "applied", "xid": xid, "last_seq": last}),
            Outcome::Rejected(why) => {
                json!({"status": "rejected", "rejection": why, "last_seq": last})
            }
        },
        Begun::Next => match carry_out() {
            Ok(()) => {
                let xid = as_owner(|| client::record(transaction, None));
                json!({"status": "applied", "xid": xid, "last_seq": seq})
            }
            Err(why) => {
                as_owner(|| client::record(transaction, Some(why.clone())));
                json!({"status": "rejected", "rejection": why, "last_seq": seq})
            }
        },
    })
}

/// How a new row is treated whose key is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// It violates a constraint.
    Refused,
    /// If there is a row that has all that is said of the new one, that is the new one.
    SameIsFine,
}

/// Does all operations, or none of them and says why. What it does has a position, also where it changes nothing.
fn carry_out(operations: &[Operation], caller: &Caller) -> Result<(), Value> {
    let mut work = Work::default();
    let mut done = work.attempt(operations, caller, Taken::Refused);
    if let Err(refusal) = &done
        && refusal.sqlstate == UNIQUE_VIOLATION
    {
        let (refusal, at) = (refusal.clone(), work.at);
        done = work.attempt(operations, caller, Taken::SameIsFine);
        // Looking for the same row can fail as well, for a right that an insert does not need.
        if done.is_err() && work.at == at {
            done = Err(refusal);
        }
    }
    if let Err(refusal) = done {
        return Err(rejection(&refusal, work.at));
    }
    let mut touched: Vec<u32> = work.targets.keys().copied().collect();
    let above: Vec<u32> = touched
        .iter()
        .flat_map(|relid| relation::ancestors(*relid))
        .collect();
    touched.extend(above);
    touched.sort_unstable();
    touched.dedup();
    capture::take_note(&json!({ "written": touched }));
    Ok(())
}

const UNIQUE_VIOLATION: &str = "23505";
const DENIED: &str = "42501";
const GONE: &str = "P0002";
const CHANGED: &str = "SF412";

fn rejection(refusal: &Refusal, at: Option<usize>) -> Value {
    let mut rejection = json!({"sqlstate": refusal.sqlstate, "message": refusal.message});
    if let Some(constraint) = &refusal.constraint {
        rejection["constraint"] = json!(constraint);
    }
    if !refusal.hint.is_empty() {
        rejection["hint"] = json!(refusal.hint);
    }
    if let Some(at) = at {
        rejection["operation"] = json!(at);
    }
    rejection
}

/// A client's transaction while its operations are done.
#[derive(Default)]
struct Work {
    /// The operation that is being done.
    at: Option<usize>,
    /// Tables that it writes, and what clients may do there.
    targets: HashMap<u32, (Rc<Target>, Rc<[String]>)>,
}

impl Work {
    fn attempt(
        &mut self,
        operations: &[Operation],
        caller: &Caller,
        taken: Taken,
    ) -> Result<(), Refusal> {
        let outcome = attempt_writing(|| {
            let role = AsRole::enter_to_write(&caller.role).or_raise();
            role.set(&caller.settings);
            for (place, operation) in operations.iter().enumerate() {
                self.at = Some(place);
                self.perform(operation, taken)?;
            }
            self.at = None;
            // What would fail at the commit fails now, when there is somebody to tell.
            run("set constraints all immediate", &[]);
            Ok(())
        });
        outcome.unwrap_or_else(|undone| {
            Err(Refusal {
                sqlstate: undone.sqlstate,
                message: undone.message,
                hint: "",
                constraint: undone.constraint,
            })
        })
    }

    fn perform(&mut self, operation: &Operation, taken: Taken) -> Result<(), Refusal> {
        let target = self.target(operation)?;
        let make = Maker::new(&target, operation)?;
        match operation.kind {
            Kind::Insert => {
                insert(&make, taken);
                Ok(())
            }
            Kind::Update => match rows(&make.update()) {
                0 => missing(&make, &target, target.may_skip.0),
                _ => Ok(()),
            },
            Kind::Delete => match rows(&make.delete()) {
                0 => missing(&make, &target, target.may_skip.1).or_else(done_already),
                _ => Ok(()),
            },
        }
    }

    /// The table of an operation, which must be open for it.
    fn target(&mut self, operation: &Operation) -> Result<Rc<Target>, Refusal> {
        let [schema, name] = &operation.table;
        let Some(relid) = table::look_up(schema, name).map(Oid::to_u32) else {
            let message = format!("relation \"{schema}.{name}\" does not exist");
            return Err(Refusal::new("42P01", message, ""));
        };
        let (target, operations) = match self.targets.get(&relid) {
            Some(known) => known.clone(),
            None => {
                let found = open_target(relid).ok_or_else(|| closed(relid, operation.kind))?;
                self.targets.insert(relid, found.clone());
                found
            }
        };
        if !operations.iter().any(|it| it == operation.kind.as_str()) {
            return Err(closed(relid, operation.kind));
        }
        Ok(target)
    }
}

/// A table that is open for something, locked as for writing.
fn open_target(relid: u32) -> Option<(Rc<Target>, Rc<[String]>)> {
    let operations = as_owner(|| opened::operations(relid));
    if operations.is_empty() {
        return None;
    }
    let _locked = Relation::open(relid.into(), Lock::RowExclusive)?;
    let target = target::find(relid).filter(|target| target.is_table)?;
    Some((target, operations.into()))
}

fn closed(relid: u32, kind: Kind) -> Refusal {
    let message = format!(
        "table {} is not open for {}s by clients",
        relation::quoted_name(relid),
        kind.as_str()
    );
    let hint = "The table's owner opens it: call shapefeed.allow_writes('…').";
    Refusal::new(DENIED, message, hint)
}

fn insert(make: &Maker<'_>, taken: Taken) {
    if taken == Taken::SameIsFine {
        if let Some(insert) = make.insert_new() {
            rows(&insert);
            return;
        }
        if make.find_same().is_some_and(|same| rows(&same) > 0) {
            return;
        }
    }
    rows(&make.insert());
}

fn rows(statement: &Statement<'_>) -> usize {
    run(&statement.sql, &statement.values)
}

/// Who deletes a row that is gone has what he wants. Nor does one that he does not see concern him.
fn done_already(refusal: Refusal) -> Result<(), Refusal> {
    match refusal.sqlstate.as_str() {
        GONE => Ok(()),
        _ => Err(refusal),
    }
}

/// Why a row was not touched: it is not there for the caller, or not as it must have been, or he may not do this to it. Or
/// a trigger left it alone, which is how that table does it.
fn missing(make: &Maker<'_>, target: &Target, may_skip: bool) -> Result<(), Refusal> {
    let message = |what: &str| format!("{what} in table {}", target.name);
    if rows(&make.find()) == 0 {
        return Err(Refusal::new(
            GONE,
            message("there is no such row"),
            "It is gone, or not visible.",
        ));
    }
    if rows(&make.find_unchanged()) == 0 {
        return Err(Refusal::new(CHANGED, message("the row has changed"), ""));
    }
    if !may_skip {
        return Err(Refusal::new(
            DENIED,
            message("a policy forbids this to the row"),
            "",
        ));
    }
    Ok(())
}
