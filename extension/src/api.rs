//! The SQL functions of stages 1 and 2, in order of use. Their SQL is in sql/functions.

use pgrx::pg_sys::Oid;
use pgrx::{JsonB, PgSqlErrorCode, name, pg_extern};

use crate::capture::{self, ddl, roles, survey, track};
use crate::error::{Error, OrRaise};
use crate::pg::procedure::{self, Call};
use crate::pg::{database, relation, shmem, xact};
use crate::sequence::{self, retain, retain::Outcome};

/// One try to begin capturing a table: `shapefeed._track`.
#[pg_extern(sql = false)]
fn track_once(table: Oid) {
    xact::require_writable(c"shapefeed.track()");
    track::track(table.to_u32()).or_raise();
}

/// Ends capturing a table: `shapefeed._untrack`.
#[pg_extern(sql = false)]
fn untrack_once(table: Oid) {
    xact::require_writable(c"shapefeed.untrack()");
    track::untrack(table.to_u32()).or_raise();
}

/// Ends every shape on a table: `shapefeed._rotate_owned`.
#[pg_extern(sql = false)]
fn rotate_once(table: Oid) {
    xact::require_writable(c"shapefeed.rotate()");
    track::rotate(table.to_u32()).or_raise();
}

/// The session is inside a transaction block: `shapefeed._in_transaction_block`.
#[pg_extern(sql = false)]
fn in_transaction_block() -> bool {
    xact::in_transaction_block()
}

/// A DDL command touched a table: `shapefeed._recheck`. `created`: the command was CREATE TABLE.
#[pg_extern(sql = false)]
fn recheck(table: Oid, created: bool) {
    ddl::recheck(table.to_u32(), created);
}

/// A table was dropped: `shapefeed._dropped`.
#[pg_extern(sql = false)]
fn dropped(table: Oid) {
    ddl::dropped(table.to_u32());
}

/// Puts a note into the log: `shapefeed._note`.
#[pg_extern(sql = false)]
fn note(note: JsonB) {
    xact::require_writable(c"a note in shapefeed's log");
    capture::take_note(&note.0);
}

/// State of this server: `shapefeed._server`.
#[pg_extern(sql = false)]
#[allow(
    clippy::type_complexity,
    reason = "the macro wants the row type spelled out"
)]
fn server() -> pgrx::iter::TableIterator<
    'static,
    (
        name!(preloaded, bool),
        name!(worker_pid, Option<i32>),
        name!(head, Option<i64>),
    ),
> {
    let slot = shmem::existing_slot(database::current());
    let pid = slot
        .map(|slot| slot.worker_pid())
        .filter(|&pid| pid != 0)
        .map(|pid| pid as i32);
    let head = slot
        .map(|slot| slot.head.load(std::sync::atomic::Ordering::Acquire))
        .filter(|&head| head != 0);
    pgrx::iter::TableIterator::once((shmem::preloaded(), pid, head))
}

/// `call shapefeed.wait(after, timeout_ms)`.
pub fn wait(call: &Call) {
    if !call.is_top_level() {
        refuse("shapefeed.wait()").raise();
    }
    let after = call.integer(0).unwrap_or(0);
    let timeout_ms = call.integer(1).map_or(0, |ms| i64::from(ms as i32)).max(0);
    procedure::release_snapshot().or_raise();
    sequence::wait::for_head_above(after, timeout_ms);
}

/// `call shapefeed.sequence()`: one step, where no worker takes it.
pub fn sequence(call: &Call) {
    xact::require_writable(c"shapefeed.sequence()");
    if !call.is_top_level() || xact::has_xid() {
        refuse("shapefeed.sequence()").raise();
    }
    if !xact::is_read_committed() {
        let message = "shapefeed.sequence() needs the isolation level READ COMMITTED";
        Error::Sql(
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            message.into(),
            "Set it for the session.",
        )
        .raise();
    }
    let extension = relation::our_extension().unwrap_or(Oid::INVALID);
    if !database::owns_extension(extension) {
        let message = "only the owner of extension shapefeed may sequence";
        Error::Sql(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            message.into(),
            "",
        )
        .raise();
    }
    sequence::worker::step_in_session(extension).or_raise();
}

/// One try to empty a member of the log that is due: `shapefeed._retain`. None: nothing is due; -1: one was emptied; or
/// the number of one that is in use. `skip`: members not to try, a bit each.
#[pg_extern(sql = false)]
fn retain_once(skip: i32) -> Option<i32> {
    xact::require_writable(c"shapefeed.retain()");
    database::lock_sequencing(relation::our_extension().unwrap_or(Oid::INVALID));
    match retain::look(skip as u32) {
        Outcome::Rest => None,
        Outcome::Emptied => Some(-1),
        Outcome::InUse(member) => Some(member as i32),
    }
}

/// Closes gaps, by one step, when the log is not full: `shapefeed._retain_gaps`.
#[pg_extern(sql = false)]
fn retain_gaps() {
    retain::close_gaps();
}

/// Looks at tables that have changed, where no worker does it: `shapefeed._look`.
#[pg_extern(sql = false)]
fn look() {
    survey::look_again();
    xact::with_latest_snapshot(survey::look);
    roles::look();
}

fn refuse(what: &str) -> Error {
    let message = format!("{what} cannot run inside a transaction block or a function");
    Error::Sql(
        PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
        message,
        "CALL it by a statement of its own.",
    )
}
