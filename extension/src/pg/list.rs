//! Postgres' lists.

use pgrx::pg_sys;

/// The cells of a list; none for NIL.
///
/// # Safety
/// `list` is null or a valid list, which is neither changed nor freed while the cells are in use.
pub unsafe fn cells<'l>(list: *mut pg_sys::List) -> &'l [pg_sys::ListCell] {
    if list.is_null() {
        return &[];
    }
    // SAFETY: since Postgres 13 a list is an array of `length` cells.
    unsafe { std::slice::from_raw_parts((*list).elements, (*list).length as usize) }
}
