//! Background workers: starting them, sleeping, one short transaction at a time.

use std::ffi::CString;
use std::time::Duration;

use pgrx::IntoDatum;
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, DynamicBackgroundWorker,
    SignalWakeFlags,
};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, Oid};

use super::shmem::Slot;
use crate::sequence::{launcher, worker};

/// Why a worker woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There may be work.
    Look,
    /// It is asked to end.
    Stop,
}

/// Has the postmaster start the launcher once the server is out of recovery, and again if it ends.
pub fn register_launcher() {
    BackgroundWorkerBuilder::new("shapefeed launcher")
        .set_library("shapefeed")
        .set_function("shapefeed_launcher_main")
        .enable_shmem_access(None)
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// Where the postmaster starts the launcher.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn shapefeed_launcher_main(_argument: Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    launcher::run();
}

/// Where the postmaster starts a sequencer; the argument is its database's oid.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn shapefeed_sequencer_main(argument: Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    worker::run(argument.value() as u32);
}

/// A sequencer that the launcher has asked for.
pub struct Started(DynamicBackgroundWorker);

impl Started {
    /// It has ended, or could not be started.
    pub fn has_ended(&self) -> bool {
        matches!(
            self.0.pid(),
            Err(pgrx::bgworkers::BackgroundWorkerStatus::Stopped)
        )
    }
}

/// Asks the postmaster for a sequencer in a database; none when max_worker_processes is reached.
pub fn start_sequencer(database: u32) -> Option<Started> {
    let started =
        BackgroundWorkerBuilder::new(&format!("shapefeed sequencer of database {database}"))
            .set_type("shapefeed sequencer")
            .set_library("shapefeed")
            .set_function("shapefeed_sequencer_main")
            .set_argument(Oid::from_u32(database).into_datum())
            .enable_spi_access()
            .set_restart_time(None)
            // SAFETY: a variable of the process. The postmaster wakes us when the worker starts or ends.
            .set_notify_pid(unsafe { pg_sys::MyProcPid })
            .load_dynamic();
    match started {
        Ok(worker) => Some(Started(worker)),
        Err(_) => {
            pgrx::log!("shapefeed: no room for a sequencer; raise max_worker_processes");
            None
        }
    }
}

/// Connects this worker to a database, as the bootstrap superuser.
pub fn connect(database: u32) {
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(Oid::from_u32(database)), None);
}

/// Gives this worker the shared catalogs alone.
pub fn connect_without_database() {
    BackgroundWorker::connect_worker_to_spi(None, None);
}

/// Sets the session up: what this worker commits is durable before anybody sees it, whatever the defaults are or become
/// while it runs.
pub fn use_sequencer_settings() {
    set("synchronous_commit", durable_commit());
    set("default_transaction_isolation", "read committed");
    set("default_transaction_read_only", "off");
    set("statement_timeout", "0");
    set("lock_timeout", "0");
    set("idle_in_transaction_session_timeout", "0");
    set("search_path", "pg_catalog");
}

/// As [`use_sequencer_settings`], for the transaction that runs only.
pub fn use_sequencer_settings_in_transaction() {
    set_local("synchronous_commit", durable_commit());
    set_local("search_path", "pg_catalog");
}

/// How long this transaction waits for a lock, as SQL has it.
pub fn set_lock_timeout_in_transaction(timeout: &str) {
    set_local("lock_timeout", timeout);
}

fn set_local(name: &str, value: &str) {
    let (name, value) = c_strings(name, value);
    // SAFETY: set_config_option() copies both strings; GUC_ACTION_LOCAL ends with the transaction.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// `synchronous_commit` as it is, or `on` where that would be less.
fn durable_commit() -> &'static str {
    use pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_APPLY;
    // SAFETY: a variable of the process that the setting keeps.
    if unsafe { pg_sys::synchronous_commit } == SYNCHRONOUS_COMMIT_REMOTE_APPLY as i32 {
        "remote_apply"
    } else {
        "on"
    }
}

fn c_strings(name: &str, value: &str) -> (CString, CString) {
    let c_string = |text| CString::new(text).expect("no zero byte");
    (c_string(name), c_string(value))
}

fn set(name: &str, value: &str) {
    let (name, value) = c_strings(name, value);
    // SAFETY: SetConfigOption() copies both strings.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

/// Runs `f` in a transaction of its own.
pub fn in_transaction<T>(
    f: impl FnOnce() -> T + std::panic::UnwindSafe + std::panic::RefUnwindSafe,
) -> T {
    BackgroundWorker::transaction(f)
}

/// Sleeps until the latch is set or the time has passed.
pub fn wait(timeout_ms: i64) -> Wake {
    let go_on = BackgroundWorker::wait_latch(Some(Duration::from_millis(timeout_ms as u64)));
    if BackgroundWorker::sighup_received() {
        // SAFETY: at the top of a worker's loop, outside a transaction.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) }
    }
    if go_on { Wake::Look } else { Wake::Stop }
}

/// Sleeps for so many microseconds, whatever comes.
pub fn nap(us: i64) {
    std::thread::sleep(std::time::Duration::from_micros(us.max(0) as u64));
}

/// Sleeps in an ordinary session; a cancel or a shutdown ends it with an error.
pub fn sleep(ms: i64) {
    // SAFETY: MyLatch is this process' own; interrupts are served at a safe place.
    unsafe {
        let events =
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events,
            ms as std::ffi::c_long,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pgrx::check_for_interrupts!();
    }
}

/// However this process ends, the slot will not name it any more, and the launcher looks.
pub fn unregister_at_exit(slot: &'static Slot) {
    // SAFETY: the slot lives in shared memory, the function in this library, as long as the process.
    unsafe { pg_sys::before_shmem_exit(Some(unregister), Datum::from(std::ptr::from_ref(slot))) }
}

#[pg_guard]
unsafe extern "C-unwind" fn unregister(_code: i32, slot: Datum) {
    // SAFETY: the address that unregister_at_exit() gave.
    let slot = unsafe { &*slot.cast_mut_ptr::<Slot>() };
    slot.unregister_worker();
    super::shmem::wake_launcher();
}

/// The postmaster is loading shared_preload_libraries.
pub fn preloading() -> bool {
    // SAFETY: a variable of the process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}
