//! Event triggers that need to know what a command is going to do. The others are in sql/functions/shapefeed.ddl.sql.

use std::ffi::{CStr, c_char};

use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, Oid};

use super::list::cells;
use crate::capture::ddl;

/// `shapefeed._ddl_command_start`: a partition is attached.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn shapefeed_ddl_command_start(
    fcinfo: pg_sys::FunctionCallInfo,
) -> Datum {
    // SAFETY: Postgres passes its call info; the commands of a table and their parts live while it runs.
    unsafe {
        let Some(statement) = alter_table_of(fcinfo) else {
            return Datum::null();
        };
        for command in commands(statement) {
            if (*command).subtype == pg_sys::AlterTableType::AT_AttachPartition {
                let partition = (*command).def.cast::<pg_sys::PartitionCmd>();
                let root = relid_of((*statement).relation);
                if let (Some(root), Some(partition)) = (root, relid_of((*partition).name)) {
                    ddl::attaching(root, partition);
                }
            }
        }
    }
    Datum::null()
}

/// `shapefeed._table_rewrite`: columns get other values.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn shapefeed_table_rewrite(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: as above; the function tells which table an event of this kind is about.
    unsafe {
        let Some(statement) = alter_table_of(fcinfo) else {
            return Datum::null();
        };
        let retyped = |command: &*mut pg_sys::AlterTableCmd| {
            (**command).subtype == pg_sys::AlterTableType::AT_AlterColumnType
        };
        let columns: Vec<String> = commands(statement)
            .filter(retyped)
            .map(|command| text((*command).name))
            .collect();
        let table =
            pgrx::direct_function_call::<Oid>(pg_sys::pg_event_trigger_table_rewrite_oid, &[]);
        if let Some(table) = table.filter(|_| !columns.is_empty()) {
            ddl::rewritten(table.to_u32(), &columns);
        }
    }
    Datum::null()
}

/// Version records of the functions, as fmgr asks for them.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_shapefeed_ddl_command_start() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// As above.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_shapefeed_table_rewrite() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// The command, if it is an ALTER TABLE.
unsafe fn alter_table_of(fcinfo: pg_sys::FunctionCallInfo) -> Option<*mut pg_sys::AlterTableStmt> {
    // SAFETY: node tags tell what the context and the command are.
    unsafe {
        let data = (*fcinfo).context.cast::<pg_sys::EventTriggerData>();
        if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_EventTriggerData {
            return None;
        }
        let command = (*data).parsetree;
        let alters = !command.is_null() && (*command).type_ == pg_sys::NodeTag::T_AlterTableStmt;
        alters.then(|| command.cast())
    }
}

unsafe fn commands<'a>(
    statement: *mut pg_sys::AlterTableStmt,
) -> impl Iterator<Item = *mut pg_sys::AlterTableCmd> + 'a {
    // SAFETY: a list of such nodes, which lives as long as the statement.
    let cells = unsafe { cells((*statement).cmds) };
    // SAFETY: as above.
    cells.iter().map(|cell| unsafe { cell.ptr_value }.cast())
}

/// The relation of a name; none where there is no such, or no right to look.
unsafe fn relid_of(name: *mut pg_sys::RangeVar) -> Option<u32> {
    // SAFETY: a name of the command; no lock is taken, and an unknown one gives InvalidOid.
    let relid = unsafe {
        pg_sys::RangeVarGetRelidExtended(
            name,
            pg_sys::NoLock as pg_sys::LOCKMODE,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        )
    };
    (relid != Oid::INVALID).then(|| relid.to_u32())
}

unsafe fn text(name: *const c_char) -> String {
    // SAFETY: a name of the command is a C string.
    unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned()
}
