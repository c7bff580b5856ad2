//! A look at utility commands: some concern the sequencer and reach no trigger.

use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering;

use pgrx::pg_guard;
use pgrx::pg_sys;

use super::list::cells;
use super::{background, database, shmem, xact};
use crate::sequence;

static mut PREVIOUS_HOOK: pg_sys::ProcessUtility_hook_type = None;

/// How long a command that needs a database without connections keeps its sequencer away, in milliseconds.
const PAUSE_MS: i64 = 60_000;
/// How long it waits for the sequencer to go, in milliseconds: as long as Postgres waits for other sessions.
const LEAVE_MS: i64 = 5_000;

/// How long the sequencer stays away after such a command, in milliseconds: until its transaction has ended.
const AFTERWARDS_MS: i64 = 1_000;

/// Looks at each utility command from now on.
pub fn install_hook() {
    // SAFETY: hooks are chained while the library is loaded.
    unsafe {
        PREVIOUS_HOOK = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

/// What a command means for a sequencer.
#[repr(C)]
#[derive(Clone, Copy)]
enum Concern {
    Nothing,
    /// A prepared transaction commits.
    CommitPrepared,
    /// This database must have no connections while the command runs.
    Alone(u32),
}

unsafe extern "C-unwind" {
    // Not the guarded one of pg_sys, see process_utility().
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        receiver: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// The hook. Every utility command of every application comes through here, and whatever runs inside it: no guard may
/// stand between it and who catches its errors, because a guard raises an error anew with less than it had: no SQLSTATE
/// that pgrx does not know, no position, no context, no name of a constraint. So nothing here has a destructor, and
/// what calls Postgres for us is a guarded function of its own.
#[allow(clippy::too_many_arguments, reason = "the hook's own")]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are Postgres' own and go on unchanged.
    unsafe {
        let concern = concern_of((*statement).utilityStmt);
        if let Concern::Alone(database) = concern {
            return process_alone(
                database,
                statement,
                query,
                read_only_tree,
                context,
                params,
                environment,
                receiver,
                completion,
            );
        }
        PREVIOUS_HOOK.unwrap_or(standard_ProcessUtility)(
            statement,
            query,
            read_only_tree,
            context,
            params,
            environment,
            receiver,
            completion,
        );
        if matches!(concern, Concern::CommitPrepared) {
            prepared_transaction_ended();
        }
    }
}

#[pg_guard]
extern "C-unwind" fn prepared_transaction_ended() {
    sequence::prepared_transaction_ended();
}

/// A command while the database's sequencer is away. It is guarded: without that an error would skip the pause's end.
#[allow(clippy::too_many_arguments, reason = "the hook's own")]
#[pg_guard]
unsafe extern "C-unwind" fn process_alone(
    database: u32,
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are Postgres' own and go on unchanged.
    unsafe {
        let next = PREVIOUS_HOOK.unwrap_or(standard_ProcessUtility);
        let _pause = pause(database);
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            next(
                statement,
                query,
                read_only_tree,
                context,
                params,
                environment,
                receiver,
                completion,
            )
        });
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn concern_of(node: *mut pg_sys::Node) -> Concern {
    use pg_sys::NodeTag::*;
    // SAFETY: the tag tells which struct the node is; names are C strings.
    unsafe {
        let name = match (*node).type_ {
            T_TransactionStmt => {
                let kind = (*node.cast::<pg_sys::TransactionStmt>()).kind;
                let commits = kind == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED;
                return if commits {
                    Concern::CommitPrepared
                } else {
                    Concern::Nothing
                };
            }
            T_DropdbStmt => (*node.cast::<pg_sys::DropdbStmt>()).dbname,
            T_CreatedbStmt => template_of(node.cast()),
            T_AlterDatabaseStmt if moves(node.cast()) => {
                (*node.cast::<pg_sys::AlterDatabaseStmt>()).dbname
            }
            T_RenameStmt
                if (*node.cast::<pg_sys::RenameStmt>()).renameType
                    == pg_sys::ObjectType::OBJECT_DATABASE =>
            {
                (*node.cast::<pg_sys::RenameStmt>()).subname
            }
            _ => return Concern::Nothing,
        };
        if name.is_null() || !pg_sys::IsTransactionState() {
            return Concern::Nothing;
        }
        // Whom Postgres is going to refuse must not stop the sequencer first.
        match database::by_name(&CStr::from_ptr(name).to_string_lossy()) {
            Some(oid) if database::owns(oid) => Concern::Alone(oid),
            _ => Concern::Nothing,
        }
    }
}

/// SET TABLESPACE needs the database alone; its other options do not.
unsafe fn moves(statement: *mut pg_sys::AlterDatabaseStmt) -> bool {
    // SAFETY: the options are a list of DefElem.
    unsafe {
        let mut options = cells((*statement).options).iter();
        options.any(|cell| {
            let option = cell.ptr_value.cast::<pg_sys::DefElem>();
            CStr::from_ptr((*option).defname) == c"tablespace"
        })
    }
}

unsafe fn template_of(statement: *mut pg_sys::CreatedbStmt) -> *mut c_char {
    // SAFETY: the options are a list of DefElem; defGetString() reads one.
    unsafe {
        for cell in cells((*statement).options) {
            let option = cell.ptr_value.cast::<pg_sys::DefElem>();
            if CStr::from_ptr((*option).defname) == c"template" && !(*option).arg.is_null() {
                return pg_sys::defGetString(option);
            }
        }
        std::ptr::null_mut()
    }
}

/// Keeps a database's sequencer away as long as it lives.
struct Pause(&'static shmem::Slot);

fn pause(database: u32) -> Option<Pause> {
    let slot = shmem::existing_slot(database)?;
    slot.paused_until_us
        .store(xact::clock_us() + PAUSE_MS * 1000, Ordering::Release);
    let pause = Pause(slot);
    slot.wake_worker();
    let deadline = xact::clock_us() + LEAVE_MS * 1000;
    while slot.worker_pid() != 0 && xact::clock_us() < deadline {
        background::sleep(10);
    }
    Some(pause)
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.0
            .paused_until_us
            .store(xact::clock_us() + AFTERWARDS_MS * 1000, Ordering::Release);
        shmem::wake_launcher();
    }
}
