//! Procedures that must know whether they were called at top level, which only their call context tells.

use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum};

use super::xact;
use crate::api;
use crate::error::Error;

macro_rules! v1 {
    ($(#[$doc:meta])* $function:ident, $record:ident, $call:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Called by Postgres alone, as a function of version 1.
        #[unsafe(no_mangle)]
        #[pg_guard]
        pub unsafe extern "C-unwind" fn $function(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
            // SAFETY: Postgres passes its own call info.
            let call = unsafe { Call::new(fcinfo) };
            let body: fn(&Call) = $call;
            body(&call);
            Datum::null()
        }

        /// Version record of the function, as fmgr asks for it.
        #[unsafe(no_mangle)]
        pub extern "C" fn $record() -> &'static pg_sys::Pg_finfo_record {
            const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
            &V1
        }
    };
}

/// One call of a procedure.
pub struct Call {
    arguments: Vec<Option<Datum>>,
    top_level: bool,
}

impl Call {
    unsafe fn new(fcinfo: pg_sys::FunctionCallInfo) -> Call {
        // SAFETY: nargs arguments follow the head; a CALL statement passes a CallContext.
        unsafe {
            let arguments = (*fcinfo).args.as_slice((*fcinfo).nargs as usize);
            let context = (*fcinfo).context.cast::<pg_sys::CallContext>();
            let is_call = !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_CallContext;
            Call {
                arguments: arguments
                    .iter()
                    .map(|a| (!a.isnull).then_some(a.value))
                    .collect(),
                top_level: is_call && !(*context).atomic,
            }
        }
    }

    /// The procedure was called by a statement of its own, outside any transaction block and function.
    pub fn is_top_level(&self) -> bool {
        self.top_level
    }

    /// Argument `n`, from 0, of type int8 or int4.
    pub fn integer(&self, n: usize) -> Option<i64> {
        self.arguments[n].map(|datum| datum.value() as i64)
    }
}

v1!(/** `call shapefeed.wait(after, timeout_ms)` */ shapefeed_wait, pg_finfo_shapefeed_wait, |call| api::wait(call));
v1!(/** `call shapefeed.sequence()` */ shapefeed_sequence, pg_finfo_shapefeed_sequence, |call| api::sequence(call));

/// Gives up the snapshot that a CALL holds, so that nothing of the session holds back vacuum while it sleeps.
pub fn release_snapshot() -> Result<(), Error> {
    // SAFETY: as COMMIT in a procedure does it: portals forget their snapshots, and take new ones when they go on.
    unsafe {
        pg_sys::ForgetPortalSnapshots();
        xact::forget_catalog_snapshot();
        if pg_sys::HaveRegisteredOrActiveSnapshot() {
            return Err(Error::Sql(
                pgrx::PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
                "shapefeed.wait() cannot sleep while the session holds a snapshot".into(),
                "Call it by a statement of its own, under READ COMMITTED and without open cursors.",
            ));
        }
    }
    Ok(())
}
