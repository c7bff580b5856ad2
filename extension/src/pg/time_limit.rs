//! A limit on how long something may take, kept by Postgres' own timeouts: what takes longer is cancelled.

use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::pg_sys;

/// `USER_TIMEOUT` of utils/timeout.h, which the bindings leave out.
const USER_TIMEOUT: c_int = 12;

unsafe extern "C-unwind" {
    fn RegisterTimeout(id: c_int, handler: extern "C-unwind" fn()) -> c_int;
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
}

/// The backend's timeout.
static TIMEOUT: OnceLock<c_int> = OnceLock::new();
/// It has fired.
static FIRED: AtomicBool = AtomicBool::new(false);

/// What goes on while this lives is cancelled once the limit has passed. There is only one at a time.
pub struct TimeLimit(Option<c_int>);

impl TimeLimit {
    /// Begins now; None: there is no limit.
    pub fn begin(limit: Option<Duration>) -> TimeLimit {
        let Some(limit) = limit else {
            return TimeLimit(None);
        };
        // SAFETY: a backend has initialized its timeouts, of which ten may be registered; they are counted in
        // milliseconds above 0.
        unsafe {
            let id = *TIMEOUT.get_or_init(|| RegisterTimeout(USER_TIMEOUT, cancel));
            let delay_ms = limit.as_millis().clamp(1, c_int::MAX as u128);
            enable_timeout_after(id, delay_ms as c_int);
            TimeLimit(Some(id))
        }
    }

    /// The limit has passed: a cancellation is this one's.
    pub fn has_passed(&self) -> bool {
        self.0.is_some() && FIRED.load(Ordering::Relaxed)
    }
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        let Some(id) = self.0 else { return };
        // SAFETY: it was registered; taking it away raises nothing. If it fired when all was done, nobody is to be
        // cancelled any more.
        unsafe {
            disable_timeout(id, false);
            if FIRED.swap(false, Ordering::Relaxed) {
                std::ptr::write_volatile(&raw mut pg_sys::QueryCancelPending, 0);
            }
        }
    }
}

/// As `StatementTimeoutHandler()`, but for this backend only. It runs inside a signal handler.
extern "C-unwind" fn cancel() {
    FIRED.store(true, Ordering::Relaxed);
    // SAFETY: the flags are made for signal handlers.
    unsafe {
        std::ptr::write_volatile(&raw mut pg_sys::QueryCancelPending, 1);
        std::ptr::write_volatile(&raw mut pg_sys::InterruptPending, 1);
    }
}
