//! Where clauses compiled, and what they are evaluated in.

use pg_sys::{Node, Oid};
use pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
use pgrx::{PgRelation, pg_sys};

use super::super::image::Row;
use super::super::values::Values;
use super::freeze::Outputs;
use super::template::Lifted;
use super::{Refused, Value, Where, reanalyze};
use crate::error::{Error, Result};

mod raw {
    //! Declared without a guard of their own, to be called inside one.
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        pub fn MemoryContextReset(context: pg_sys::MemoryContext);
    }
}

/// Compiled conditions, all of which must be true. They keep running unchanged after the table or a function in them was
/// altered: drop them on invalidation.
#[derive(Debug)]
pub struct Compiled {
    /// What the state below is allocated in; deleted with this.
    memory: pg_sys::MemoryContext,
    state: *mut pg_sys::ExprState,
    /// Types of the constants that it is given with each row.
    types: Vec<Oid>,
}

impl Compiled {
    /// Compiles what is evaluated for a row that a template has found. Call it inside [`crate::pg::role::AsRole`]: what
    /// the clause may call is decided here.
    pub fn residual(lifted: &Lifted) -> Compiled {
        let types = lifted.constants.iter().map(|constant| constant.type_oid);
        // SAFETY: analyzed expressions with constants lifted.
        unsafe { Compiled::new(&lifted.residual, types.collect()) }
    }

    /// # Safety
    /// `quals` are analyzed and folded expressions; their Params have these types.
    pub(super) unsafe fn new(quals: &[*mut Node], types: Vec<Oid>) -> Compiled {
        // SAFETY: what the executor keeps is allocated in a context that lives until drop; ExecInitQual() without a parent
        // plan node needs nothing else.
        unsafe {
            let memory = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"shapefeed template".as_ptr(),
                0,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            let mut compiled = Compiled {
                memory,
                state: std::ptr::null_mut(),
                types,
            };
            let outer = pg_sys::MemoryContextSwitchTo(memory);
            let mut list = std::ptr::null_mut();
            for qual in quals {
                let qual = pg_sys::copyObjectImpl((*qual).cast()).cast();
                pg_sys::fix_opfuncids(qual);
                pg_sys::convert_saop_to_hashed_saop(qual);
                list = pg_sys::lappend(list, qual.cast());
            }
            compiled.state = pg_sys::ExecInitQual(list, std::ptr::null_mut());
            pg_sys::MemoryContextSwitchTo(outer);
            compiled
        }
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // SAFETY: the context is this one's own.
        unsafe { pg_sys::MemoryContextDelete(self.memory) }
    }
}

/// What conditions on rows of one table are evaluated in.
#[derive(Debug)]
pub struct Scope {
    /// What the others are allocated in; deleted with this.
    memory: pg_sys::MemoryContext,
    slot: *mut pg_sys::TupleTableSlot,
    context: *mut pg_sys::ExprContext,
    params: pg_sys::ParamListInfo,
    room: usize,
}

impl Scope {
    /// Of a table on which a lock is held.
    pub fn of(relid: Oid) -> Scope {
        // SAFETY: the caller's lock keeps the relation from going away; all that is kept is allocated in a context that
        // lives until drop. The slot's descriptor is a copy in it, so nothing is pinned.
        unsafe {
            let relation = PgRelation::open(relid);
            let memory = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"shapefeed scope".as_ptr(),
                0,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            let outer = pg_sys::MemoryContextSwitchTo(memory);
            let attributes = pg_sys::CreateTupleDescCopy((*relation.as_ptr()).rd_att);
            let slot = pg_sys::MakeSingleTupleTableSlot(attributes, &pg_sys::TTSOpsVirtual);
            let context = pg_sys::CreateStandaloneExprContext();
            (*context).ecxt_scantuple = slot;
            pg_sys::MemoryContextSwitchTo(outer);
            Scope {
                memory,
                slot,
                context,
                params: std::ptr::null_mut(),
                room: 0,
            }
        }
    }

    /// Sets the constants of a template's clause: what is evaluated from here on has these. They must outlive that.
    pub fn set_constants(&mut self, compiled: &Compiled, constants: Option<&Values>) {
        // SAFETY: the list has room for as many values as there are types, and the executor only reads it.
        unsafe {
            if self.room < compiled.types.len() || self.params.is_null() {
                self.room = compiled.types.len();
                let outer = pg_sys::MemoryContextSwitchTo(self.memory);
                self.params = pg_sys::makeParamList(self.room as i32);
                pg_sys::MemoryContextSwitchTo(outer);
            }
            let params = (*self.params).params.as_mut_ptr();
            let values = constants.into_iter().flat_map(Values::iter);
            for (place, (value, type_oid)) in values.zip(&compiled.types).enumerate() {
                *params.add(place) = pg_sys::ParamExternData {
                    value,
                    isnull: false,
                    pflags: pg_sys::PARAM_FLAG_CONST as u16,
                    ptype: *type_oid,
                };
            }
            (*self.context).ecxt_param_list_info = self.params;
            // What the executor keeps with the state, such as hashed lists, lives as long as that.
            (*self.context).ecxt_per_query_memory = compiled.memory;
        }
    }

    /// Which of these rows are in? False and null are out. The columns that are read have been fetched. Call it inside the
    /// role that the conditions were compiled in.
    pub fn matches(&mut self, compiled: &Compiled, rows: &[&Row]) -> Vec<bool> {
        let (state, slot, context) = (compiled.state, self.slot, self.context);
        let mut answers = vec![false; rows.len()];
        let answer = answers.as_mut_ptr();
        // SAFETY: ExecStoreVirtualTuple() of each row's own arrays, which are as long as the descriptor says, and
        // ExecEvalExprSwitchContext(), in one guard: no value with a destructor is made inside it. The slot is read no more
        // after this; an answer is passed by value, and there is room for as many as there are rows.
        unsafe {
            let memory = (*context).ecxt_per_tuple_memory;
            let Some(evaluate) = (*state).evalfunc else {
                return answers;
            };
            let outer = pg_sys::CurrentMemoryContext;
            // Emptying it costs about what evaluating does: done when it has grown, and in the end.
            let small = (*memory).mem_allocated;
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                pg_sys::CurrentMemoryContext = memory;
                for (place, row) in rows.iter().enumerate() {
                    let (values, nulls) = row.columns();
                    (*slot).tts_values = values.as_ptr().cast_mut();
                    (*slot).tts_isnull = nulls.as_ptr().cast_mut();
                    (*slot).tts_nvalid = values.len() as i16;
                    (*slot).tts_flags &= !(pg_sys::TTS_FLAG_EMPTY as u16);
                    let mut is_null = false;
                    let value = evaluate(state, context, &mut is_null);
                    *answer.add(place) = !is_null && value.value() != 0;
                    if (*memory).mem_allocated > small || !(*memory).firstchild.is_null() {
                        raw::MemoryContextReset(memory);
                    }
                }
                raw::MemoryContextReset(memory);
                pg_sys::CurrentMemoryContext = outer;
            });
            pg_sys::CurrentMemoryContext = outer;
        }
        answers
    }
}

impl Scope {
    /// What a row contributes to a set. The columns that are read have been fetched. Call it as [`Scope::matches`].
    pub fn value(&mut self, outputs: &Outputs, row: &Row) -> Box<Value> {
        let (slot, context) = (self.slot, self.context);
        let (values, nulls) = row.columns();
        // SAFETY: as in matches(); each value is written as text before the memory that it is in is reset.
        unsafe {
            (*slot).tts_values = values.as_ptr().cast_mut();
            (*slot).tts_isnull = nulls.as_ptr().cast_mut();
            (*slot).tts_nvalid = values.len() as i16;
            (*slot).tts_flags &= !(pg_sys::TTS_FLAG_EMPTY as u16);
            (*context).ecxt_per_query_memory = outputs.memory();
            let memory = (*context).ecxt_per_tuple_memory;
            let outer = pg_sys::MemoryContextSwitchTo(memory);
            let text = |(state, type_oid): &(*mut pg_sys::ExprState, Oid)| {
                let evaluate = (**state).evalfunc?;
                let mut is_null = false;
                let value =
                    pg_sys::ffi::pg_guard_ffi_boundary(|| evaluate(*state, context, &mut is_null));
                (!is_null).then(|| text_of(*type_oid, value))
            };
            let value = Value::of(outputs.states.iter().map(text));
            pg_sys::MemoryContextSwitchTo(outer);
            pg_sys::MemoryContextReset(memory);
            value
        }
    }
}

/// A value's text, in the current memory context.
unsafe fn text_of<'a>(type_oid: Oid, value: pg_sys::Datum) -> &'a [u8] {
    let (mut function, mut is_varlena) = (Oid::INVALID, false);
    // SAFETY: the output function of the value's type; it returns a C string.
    unsafe {
        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut is_varlena);
        let text = pg_sys::OidOutputFunctionCall(function, value);
        std::ffi::CStr::from_ptr(text).to_bytes()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // SAFETY: the context is this one's own.
        unsafe { pg_sys::MemoryContextDelete(self.memory) }
    }
}

/// One where clause, compiled by itself.
#[derive(Debug)]
pub struct Predicate {
    compiled: Compiled,
    scope: Scope,
    columns: Vec<i16>,
}

impl Predicate {
    /// Compiles a where clause for a table, or a partition of it, on which a lock is held. Call it inside
    /// [`crate::pg::role::AsRole`]: what the clause may call is decided here. The text passes all checks again.
    pub fn compile(relid: Oid, clause: &str) -> Result<Predicate> {
        let clause = reanalyze(relid, clause).map_err(|Refused(why)| {
            Error::Sql(
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("invalid where clause: {why}"),
                "",
            )
        })?;
        Ok(Predicate::of(relid, clause))
    }

    /// The same of a clause that has been analyzed.
    pub fn of(relid: Oid, clause: Where) -> Predicate {
        let mut predicate = Predicate {
            // SAFETY: the clause has been analyzed and folded, and has no Params.
            compiled: unsafe { Compiled::new(&clause.whole(), Vec::new()) },
            scope: Scope::of(relid),
            columns: clause.columns,
        };
        predicate.scope.set_constants(&predicate.compiled, None);
        predicate
    }

    /// The attribute numbers that it reads, ascending.
    pub fn columns(&self) -> &[i16] {
        &self.columns
    }

    /// Is this row in? As for [`Scope::matches`].
    pub fn matches(&mut self, row: &Row) -> bool {
        self.scope.matches(&self.compiled, &[row])[0]
    }
}
