//! Running something that may fail and living on: an internal subtransaction, as PL/pgSQL's exception blocks use it.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::pg_sys::{self, panic::CaughtError};
use pgrx::{PgSqlErrorCode, PgTryBuilder};

use super::error::{self, noted_position, noting_position};
use super::time_limit::TimeLimit;

/// An error that was caught, its effects rolled back.
#[derive(Debug)]
pub struct Caught {
    /// The error's SQLSTATE.
    pub sqlstate: PgSqlErrorCode,
    /// Its primary message.
    pub message: String,
    /// Where it points to in the text that was being parsed: a character counted from 1.
    pub position: Option<i32>,
}

impl Caught {
    /// It is one that values, or a function that looks at them, can raise.
    pub fn is_of_data(&self) -> bool {
        let classes = [b"22000", b"38000", b"39000", b"54000", b"P0000"];
        of_class(self.sqlstate, &classes)
    }
}

/// Runs `f` in a subtransaction and catches the error that it raises, unless that error says something about the
/// server and not about the request: cancellation, lack of a resource, serialization, corruption.
pub fn attempt<T>(f: impl FnOnce() -> T) -> Result<T, Caught> {
    catching(f, |sqlstate| !concerns_server(sqlstate))
}

/// Runs `f`, which evaluates what a client has written, in a subtransaction: one that asks for too much memory, or trips over an
/// error that is internal to a function, is caught as well. What stops the statement is not, nor is damaged data.
pub fn attempt_evaluation<T>(f: impl FnOnce() -> T) -> Result<T, Caught> {
    catching(f, is_of_evaluation)
}

fn is_of_evaluation(sqlstate: PgSqlErrorCode) -> bool {
    !of_class(sqlstate, &[b"40000", b"57000", b"58000"])
        && sqlstate != PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
        && sqlstate != PgSqlErrorCode::ERRCODE_DATA_CORRUPTED
        && sqlstate != PgSqlErrorCode::ERRCODE_INDEX_CORRUPTED
}

/// The message of an evaluation that took longer than it may.
pub const TOO_SLOW: &str = "the where clause takes longer than shapefeed.clause_time_limit";

/// The same, and what takes longer than `limit` is cancelled and caught, too.
pub fn attempt_evaluation_within<T>(
    limit: Option<Duration>,
    f: impl FnOnce() -> T,
) -> Result<T, Caught> {
    let limit = TimeLimit::begin(limit);
    let is_late =
        |sqlstate| sqlstate == PgSqlErrorCode::ERRCODE_QUERY_CANCELED && limit.has_passed();
    let outcome = catching(f, |sqlstate| {
        is_late(sqlstate) || is_of_evaluation(sqlstate)
    });
    outcome.map_err(|caught| match is_late(caught.sqlstate) {
        true => Caught {
            sqlstate: PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            message: TOO_SLOW.into(),
            position: None,
        },
        false => caught,
    })
}

/// Runs `f`, which waits for locks no longer than lock_timeout, in a subtransaction. Err where it waited for that long.
pub fn attempt_locks<T>(f: impl FnOnce() -> T) -> Result<T, Caught> {
    catching(f, |sqlstate| {
        sqlstate == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
    })
}

/// What was not done, and why.
#[derive(Debug)]
pub struct Undone {
    /// SQLSTATE.
    pub sqlstate: String,
    /// Primary message.
    pub message: String,
    /// The constraint that was violated.
    pub constraint: Option<String>,
}

/// Runs `f`, which writes, in a subtransaction, of which nothing is left when it raises an error or returns one. What may
/// succeed at another time is not caught: it ends the transaction.
pub fn attempt_writing<E>(f: impl FnOnce() -> Result<(), E>) -> Result<Result<(), E>, Undone> {
    let may_catch =
        |sqlstate| !concerns_server(sqlstate) || sqlstate == PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
    let outcome = in_subtransaction(|| error::noting_report(f), Result::is_ok, may_catch);
    outcome.map_err(|caught| {
        let noted = error::noted_report(&caught.message);
        Undone {
            sqlstate: match &noted {
                Some(report) => report.sqlstate.clone(),
                None => error::sqlstate_text(caught.sqlstate as i32),
            },
            message: caught.message,
            constraint: noted.and_then(|report| report.constraint),
        }
    })
}

fn catching<T>(
    f: impl FnOnce() -> T,
    may_catch: impl Fn(PgSqlErrorCode) -> bool,
) -> Result<T, Caught> {
    in_subtransaction(f, |_| true, may_catch)
}

fn in_subtransaction<T>(
    f: impl FnOnce() -> T,
    is_kept: impl FnOnce(&T) -> bool,
    may_catch: impl Fn(PgSqlErrorCode) -> bool,
) -> Result<T, Caught> {
    // SAFETY: reads the backend's globals; BeginInternalSubTransaction() raises where a subtransaction may not begin,
    // and changes both globals, which the caller wants as they were (as plpgsql's exec_stmt_block has it).
    let (context, owner) = unsafe {
        let saved = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::CurrentMemoryContext = saved.0;
        saved
    };
    let outcome = PgTryBuilder::new(AssertUnwindSafe(|| Ok(noting_position(f))))
        .catch_others(|error| Err(Box::new(error)))
        .execute();
    // SAFETY: the current subtransaction is the one begun above: whatever `f` began it has ended, or it has failed and
    // is rolled back along with this one.
    unsafe {
        pg_sys::CurrentMemoryContext = context;
        match &outcome {
            Ok(value) if is_kept(value) => pg_sys::ReleaseCurrentSubTransaction(),
            _ => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::CurrentMemoryContext = context;
        pg_sys::CurrentResourceOwner = owner;
    }
    outcome.map_err(|error| describe(error, may_catch).unwrap_or_else(|error| error.rethrow()))
}

/// What went wrong, or the error back when it may not be caught.
fn describe(
    error: Box<CaughtError>,
    may_catch: impl Fn(PgSqlErrorCode) -> bool,
) -> Result<Caught, Box<CaughtError>> {
    let report = match &*error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { .. } => return Err(error),
    };
    let sqlstate = report.sql_error_code();
    if !may_catch(sqlstate) {
        return Err(error);
    }
    Ok(Caught {
        sqlstate,
        message: report.message().to_string(),
        position: noted_position(),
    })
}

/// Classes 40 (rollback), 53 (resources), 57 (operator), 58 (system) and XX (internal).
fn concerns_server(sqlstate: PgSqlErrorCode) -> bool {
    of_class(
        sqlstate,
        &[b"40000", b"53000", b"57000", b"58000", b"XX000"],
    ) || sqlstate == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
}

fn of_class(sqlstate: PgSqlErrorCode, codes: &[&[u8; 5]]) -> bool {
    let class = |code: i32| code & 0xFFF;
    codes
        .iter()
        .any(|code| class(super::error::sqlstate(code)) == class(sqlstate as i32))
}
