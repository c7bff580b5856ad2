//! Raising errors that pgrx' own report type cannot carry: SQLSTATEs of our own and a position in a query text.
//!
//! pgrx turns a panic into an error report at the outermost Rust frame, and its report knows standard SQLSTATEs only.
//! An error context callback runs while that report is being finished, and may still amend it: so the raise pushes
//! one callback that does. Postgres resets the callback stack when it handles the error.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;

unsafe extern "C-unwind" {
    fn errcode(sqlerrcode: c_int) -> c_int;
    fn internalerrposition(cursorpos: c_int) -> c_int;
    fn internalerrquery(query: *const c_char) -> c_int;
    fn geterrposition() -> c_int;
    fn CopyErrorData() -> *mut pg_sys::ErrorData;
}

/// A place in a text that is not the client's own query: a where clause, say.
#[derive(Clone, Debug)]
pub struct Place {
    /// The text as it was parsed.
    pub text: String,
    /// Index of the character, counted from 1.
    pub position: i32,
}

struct Amendment {
    sqlstate: c_int,
    place: Option<(CString, c_int)>,
}

thread_local! {
    static PENDING: RefCell<Option<Amendment>> = const { RefCell::new(None) };
}

/// `MAKE_SQLSTATE` of elog.h.
pub fn sqlstate(code: &[u8; 5]) -> i32 {
    code.iter().rev().fold(0, |packed, byte| {
        (packed << 6) | i32::from((byte - b'0') & 0x3F)
    })
}

/// Raises an error with any SQLSTATE, packed as [`sqlstate`] does, and an optional place in an inner text.
pub fn raise(sqlstate: i32, message: &str, detail: &str, hint: &str, place: Option<Place>) -> ! {
    let place = place.and_then(|p| CString::new(p.text).ok().map(|text| (text, p.position)));
    PENDING.set(Some(Amendment { sqlstate, place }));
    push_amend_callback();
    let mut report = ErrorReport::new(
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        message.to_string(),
        "shapefeed",
    );
    if !detail.is_empty() {
        report = report.set_detail(detail.to_string());
    }
    if !hint.is_empty() {
        report = report.set_hint(hint.to_string());
    }
    report.report(pgrx::PgLogLevel::ERROR);
    unreachable!("a report of level ERROR does not return")
}

/// Raises an error with one of shapefeed's own SQLSTATEs.
pub fn raise_custom(code: &[u8; 5], message: &str, hint: &str) -> ! {
    raise(sqlstate(code), message, "", hint, None)
}

fn push_amend_callback() {
    // SAFETY: a backend has one thread. The node lives as long as the process, and what `previous` points to is still
    // on the C stack when the report is finished, because only Rust frames lie between here and there.
    unsafe {
        let node = Box::leak(Box::new(pg_sys::ErrorContextCallback {
            previous: pg_sys::error_context_stack,
            callback: Some(amend),
            arg: std::ptr::null_mut(),
        }));
        pg_sys::error_context_stack = node;
    }
}

unsafe extern "C-unwind" fn amend(_arg: *mut c_void) {
    let Some(amendment) = PENDING.take() else {
        return;
    };
    // SAFETY: errfinish() calls this with the report on top of the error data stack; both functions copy what they get.
    unsafe {
        errcode(amendment.sqlstate);
        if let Some((text, position)) = &amendment.place {
            internalerrposition(*position);
            internalerrquery(text.as_ptr());
        }
    }
}

/// The cursor position (from 1; 0 = none) of the last error raised by Postgres inside [`noting_position`].
static mut NOTED_POSITION: c_int = 0;

unsafe extern "C-unwind" fn note_position(_arg: *mut c_void) {
    // SAFETY: errfinish() calls this with the report on top of the stack; the parser's own callback, pushed later, has
    // run before and set the position.
    unsafe { NOTED_POSITION = geterrposition() }
}

/// Runs `f` and remembers where in the text being parsed Postgres points if it raises an error in it.
/// Ask [`noted_position`] after catching that error.
pub fn noting_position<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: the node outlives `f`, and is taken off the stack again when `f` returns; when it unwinds instead,
    // pgrx restores the stack to what it was before the outermost guarded call.
    unsafe {
        NOTED_POSITION = 0;
        let mut node = pg_sys::ErrorContextCallback {
            previous: pg_sys::error_context_stack,
            callback: Some(note_position),
            arg: std::ptr::null_mut(),
        };
        let previous = pg_sys::error_context_stack;
        let restore = RestoreStack(previous);
        pg_sys::error_context_stack = &raw mut node;
        let value = f();
        drop(restore);
        value
    }
}

/// What pgrx's report of an error leaves out.
#[derive(Clone, Debug)]
pub struct Report {
    /// The SQLSTATE, also one that is not Postgres' own.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// The constraint that was violated.
    pub constraint: Option<String>,
}

thread_local! {
    /// The last error that Postgres raised inside [`noting_report`].
    static NOTED_REPORT: RefCell<Option<Report>> = const { RefCell::new(None) };
}

unsafe extern "C-unwind" fn note_report(_arg: *mut c_void) {
    // SAFETY: errfinish() calls this with the report on top of the stack, and with a memory context that a copy may not be
    // made in; the copy is freed here.
    unsafe {
        let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let report = CopyErrorData();
        if (*report).elevel >= pgrx::PgLogLevel::ERROR as c_int {
            let text = |text: *const c_char| {
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            };
            NOTED_REPORT.set(Some(Report {
                sqlstate: sqlstate_text((*report).sqlerrcode),
                message: text((*report).message).unwrap_or_default(),
                constraint: text((*report).constraint_name),
            }));
        }
        pg_sys::FreeErrorData(report);
        pg_sys::MemoryContextSwitchTo(before);
    }
}

/// The five characters of a packed SQLSTATE.
pub fn sqlstate_text(packed: i32) -> String {
    let character = |place: i32| char::from(((packed >> (6 * place)) & 0x3F) as u8 + b'0');
    (0..5).map(character).collect()
}

/// Runs `f` and remembers what Postgres says of an error that it raises in it. Ask [`noted_report`] after catching that
/// error.
pub fn noting_report<T>(f: impl FnOnce() -> T) -> T {
    NOTED_REPORT.set(None);
    // SAFETY: as in noting_position().
    unsafe {
        let mut node = pg_sys::ErrorContextCallback {
            previous: pg_sys::error_context_stack,
            callback: Some(note_report),
            arg: std::ptr::null_mut(),
        };
        let restore = RestoreStack(pg_sys::error_context_stack);
        pg_sys::error_context_stack = &raw mut node;
        let value = f();
        drop(restore);
        value
    }
}

/// What was noted by [`noting_report`] of an error with this message, and not of one that was caught inside.
pub fn noted_report(message: &str) -> Option<Report> {
    NOTED_REPORT
        .take()
        .filter(|report| report.message == message)
}

struct RestoreStack(*mut pg_sys::ErrorContextCallback);

impl Drop for RestoreStack {
    fn drop(&mut self) {
        // SAFETY: puts back what was on the stack when this was made.
        unsafe { pg_sys::error_context_stack = self.0 }
    }
}

/// The position noted by [`noting_position`], counted from 1; None when the error had none.
pub fn noted_position() -> Option<i32> {
    // SAFETY: a backend has one thread.
    let position = unsafe { NOTED_POSITION };
    (position > 0).then_some(position)
}
