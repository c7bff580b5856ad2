//! A where clause compiled for one table.

use pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
use pgrx::{PgRelation, pg_sys};

use super::{Refused, analyze};
use crate::error::{Error, Result};

mod raw {
    //! Declared without a guard of their own, to be called inside one.
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        pub fn ExecStoreHeapTuple(
            tuple: pg_sys::HeapTuple,
            slot: *mut pg_sys::TupleTableSlot,
            should_free: bool,
        ) -> *mut pg_sys::TupleTableSlot;
        pub fn MemoryContextReset(context: pg_sys::MemoryContext);
    }
}

/// Something that holds a heap tuple.
///
/// # Safety
/// The pointer is to a valid tuple, and stays so while `self` is borrowed.
pub unsafe trait HeapTupleRef {
    /// The tuple.
    fn heap_tuple(&self) -> pg_sys::HeapTuple;
}

/// A compiled where clause. It keeps running unchanged after the table or a function in it was altered: drop it on
/// invalidation.
#[derive(Debug)]
pub struct Predicate {
    /// What the state below is allocated in; deleted with this.
    memory: pg_sys::MemoryContext,
    /// Null if every row is in.
    state: *mut pg_sys::ExprState,
    slot: *mut pg_sys::TupleTableSlot,
    context: *mut pg_sys::ExprContext,
    columns: Vec<i16>,
}

impl Predicate {
    /// Compiles a where clause for a table, or a partition of it, on which a lock is held. Call it inside
    /// [`crate::pg::role::AsRole`]: what the clause may call is decided here. The text passes all checks again.
    pub fn compile(relid: pg_sys::Oid, clause: &str) -> Result<Predicate> {
        let clause = analyze(relid, clause, &[]).map_err(|Refused(why)| {
            Error::Sql(
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("invalid where clause: {why}"),
                "",
            )
        })?;
        // SAFETY: the caller's lock keeps the relation from going away. All that the executor keeps is allocated in a
        // context that lives until drop; ExecInitQual() without a parent plan node needs nothing else.
        unsafe {
            let relation = PgRelation::open(relid);
            let planned = pg_sys::expression_planner(clause.tree.cast());
            let quals = pg_sys::make_ands_implicit(pg_sys::canonicalize_qual(planned, false));
            let mut predicate = Predicate::in_new_context(clause.columns);
            let outer = pg_sys::MemoryContextSwitchTo(predicate.memory);
            let quals = pg_sys::copyObjectImpl(quals.cast()).cast();
            // With the constraints comes what attributes added later have in older tuples.
            let attributes = pg_sys::CreateTupleDescCopyConstr((*relation.as_ptr()).rd_att);
            predicate.slot = pg_sys::MakeSingleTupleTableSlot(attributes, &pg_sys::TTSOpsHeapTuple);
            predicate.context = pg_sys::CreateStandaloneExprContext();
            (*predicate.context).ecxt_scantuple = predicate.slot;
            predicate.state = pg_sys::ExecInitQual(quals, std::ptr::null_mut());
            pg_sys::MemoryContextSwitchTo(outer);
            Ok(predicate)
        }
    }

    fn in_new_context(columns: Vec<i16>) -> Predicate {
        // SAFETY: makes an empty context below the one that lives as long as the backend.
        let memory = unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"shapefeed predicate".as_ptr(),
                0,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            )
        };
        let (state, slot, context) = (
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
        Predicate {
            memory,
            state,
            slot,
            context,
            columns,
        }
    }

    /// The attribute numbers that it reads, ascending.
    pub fn columns(&self) -> &[i16] {
        &self.columns
    }

    /// Is this row in? False and null are out. Call it inside the same role as [`Predicate::compile`].
    pub fn matches(&mut self, tuple: &impl HeapTupleRef) -> bool {
        if self.state.is_null() {
            return true;
        }
        let (state, slot, context, tuple) =
            (self.state, self.slot, self.context, tuple.heap_tuple());
        // SAFETY: ExecEvalExprSwitchContext() in one guard: no value with a destructor lives inside it. The tuple
        // outlives the call and is not the slot's to free; nothing by reference is taken out of the tuple's memory.
        unsafe {
            let memory = (*context).ecxt_per_tuple_memory;
            let Some(evaluate) = (*state).evalfunc else {
                return false;
            };
            let outer = pg_sys::CurrentMemoryContext;
            let answer = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let mut is_null = false;
                raw::ExecStoreHeapTuple(tuple, slot, false);
                pg_sys::CurrentMemoryContext = memory;
                let value = evaluate(state, context, &mut is_null);
                pg_sys::CurrentMemoryContext = outer;
                raw::MemoryContextReset(memory);
                !is_null && value.value() != 0
            });
            pg_sys::CurrentMemoryContext = outer;
            answer
        }
    }
}

impl Drop for Predicate {
    fn drop(&mut self) {
        // SAFETY: the context is this one's own; the slot's descriptor is a copy in it, so nothing is pinned.
        unsafe { pg_sys::MemoryContextDelete(self.memory) }
    }
}
