//! Walking and rewriting expression trees with closures.

use std::ffi::c_void;

use pgrx::pg_sys::submodules::panic::pgrx_extern_c_guard;
use pgrx::pg_sys::{self, Node, Oid};

type Walker = unsafe extern "C-unwind" fn(*mut Node, *mut c_void) -> bool;
type Mutator = unsafe extern "C-unwind" fn(*mut Node, *mut c_void) -> *mut Node;

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    #[cfg_attr(
        not(any(feature = "pg14", feature = "pg15")),
        link_name = "expression_tree_walker_impl"
    )]
    fn expression_tree_walker(node: *mut Node, walker: Walker, context: *mut c_void) -> bool;
    #[cfg_attr(
        not(any(feature = "pg14", feature = "pg15")),
        link_name = "expression_tree_mutator_impl"
    )]
    fn expression_tree_mutator(
        node: *mut Node,
        mutator: Mutator,
        context: *mut c_void,
    ) -> *mut Node;
    #[cfg_attr(
        not(any(feature = "pg14", feature = "pg15")),
        link_name = "query_tree_mutator_impl"
    )]
    fn query_tree_mutator(
        query: *mut pg_sys::Query,
        mutator: Mutator,
        context: *mut c_void,
        flags: std::ffi::c_int,
    ) -> *mut pg_sys::Query;
    #[cfg_attr(
        not(any(feature = "pg14", feature = "pg15")),
        link_name = "raw_expression_tree_walker_impl"
    )]
    fn raw_expression_tree_walker(node: *mut Node, walker: Walker, context: *mut c_void) -> bool;
}

/// An expression of a query with what the names of its joins stand for.
///
/// # Safety
/// `node` is an expression of `query`, analyzed.
pub unsafe fn without_join_names(query: *mut pg_sys::Query, node: *mut Node) -> *mut Node {
    // SAFETY: as the caller says; no planner has been there, so that none is asked for.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let flat = pg_sys::flatten_join_alias_vars(query, node);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let flat = pg_sys::flatten_join_alias_vars(std::ptr::null_mut(), query, node);
        flat
    }
}

/// Has a raw expression a subquery?
///
/// # Safety
/// `raw` is null or a raw expression.
pub unsafe fn has_raw_sublink(raw: *mut Node) -> bool {
    // SAFETY: as the caller says; every node has a tag.
    unsafe { has_raw(raw, &mut |node| (*node).type_ == pg_sys::NodeTag::T_SubLink) }
}

type Is<'a> = &'a mut dyn FnMut(*mut Node) -> bool;

/// Has a raw expression a node, at any depth, of which `is` says so?
///
/// # Safety
/// `raw` is null or a raw expression. `is` gets its nodes, never null.
pub unsafe fn has_raw(raw: *mut Node, mut is: Is<'_>) -> bool {
    unsafe extern "C-unwind" fn walk(node: *mut Node, context: *mut c_void) -> bool {
        // SAFETY: raw_expression_tree_walker() passes on the context that it was given.
        unsafe { pgrx_extern_c_guard(move || has_raw_at(node, walk, context)) }
    }
    // SAFETY: the context outlives the walk.
    unsafe { has_raw_at(raw, walk, (&raw mut is).cast()) }
}

/// # Safety
/// As for [`has_raw`]; the context points to an [`Is`].
unsafe fn has_raw_at(node: *mut Node, walk: Walker, context: *mut c_void) -> bool {
    // SAFETY: as the caller says.
    unsafe {
        !node.is_null()
            && ((*context.cast::<Is<'_>>())(node)
                || raw_expression_tree_walker(node, walk, context))
    }
}

type Find<'a, T> = &'a mut dyn FnMut(*mut Node) -> Option<T>;

struct Search<'a, T> {
    find: Find<'a, T>,
    found: Option<T>,
}

/// The first answer that `find` gives for a node of the tree, parents before children.
///
/// # Safety
/// `node` is null or an analyzed expression without sublinks. `find` gets its nodes, never null.
pub unsafe fn search<T>(node: *mut Node, find: Find<'_, T>) -> Option<T> {
    let mut search = Search { find, found: None };
    // SAFETY: the context is the one that search_below() expects.
    unsafe { search_at::<T>(node, (&raw mut search).cast()) };
    search.found
}

/// # Safety
/// `context` is a [`Search`], alone in use while the walk goes on.
unsafe fn search_at<T>(node: *mut Node, context: *mut c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: search_below() is the walker for just this context.
    unsafe {
        let search = &mut *context.cast::<Search<'_, T>>();
        search.found = (search.find)(node);
        search.found.is_some() || expression_tree_walker(node, search_below::<T>, context)
    }
}

/// What C calls. Its guard turns a panic into an error for the C code above it, so nothing in Rust may call this.
unsafe extern "C-unwind" fn search_below<T>(node: *mut Node, context: *mut c_void) -> bool {
    // SAFETY: expression_tree_walker() passes on the context that it was given.
    unsafe { pgrx_extern_c_guard(move || search_at::<T>(node, context)) }
}

type Replace<'a> = &'a mut dyn FnMut(*mut Node) -> *mut Node;

/// A copy of the tree in which `replace` has been applied to each node after its children.
///
/// # Safety
/// As for [`search`]; `replace` returns the node or another expression of the same type.
pub unsafe fn rewrite(node: *mut Node, mut replace: Replace<'_>) -> *mut Node {
    // SAFETY: the context is the one that rewrite_below() expects.
    unsafe { rewrite_at(node, (&raw mut replace).cast()) }
}

/// # Safety
/// `context` is a [`Replace`], alone in use while the rewriting goes on.
unsafe fn rewrite_at(node: *mut Node, context: *mut c_void) -> *mut Node {
    if node.is_null() {
        return node;
    }
    // SAFETY: rewrite_below() is the mutator for just this context. A list is copied, but is not a node to replace.
    unsafe {
        let copy = expression_tree_mutator(node, rewrite_below, context);
        if (*copy).type_ == pg_sys::NodeTag::T_List {
            copy
        } else {
            (*context.cast::<Replace<'_>>())(copy)
        }
    }
}

/// What C calls, as [`search_below`].
unsafe extern "C-unwind" fn rewrite_below(node: *mut Node, context: *mut c_void) -> *mut Node {
    // SAFETY: expression_tree_mutator() passes on the context that it was given.
    unsafe { pgrx_extern_c_guard(move || rewrite_at(node, context)) }
}

/// The same, in subqueries, too.
///
/// # Safety
/// As for [`rewrite`].
pub unsafe fn rewrite_deep(node: *mut Node, mut replace: Replace<'_>) -> *mut Node {
    // SAFETY: the context is the one that rewrite_deep_below() expects.
    unsafe { rewrite_deep_at(node, (&raw mut replace).cast()) }
}

/// # Safety
/// `context` is a [`Replace`], alone in use while the rewriting goes on.
unsafe fn rewrite_deep_at(node: *mut Node, context: *mut c_void) -> *mut Node {
    if node.is_null() {
        return node;
    }
    // SAFETY: as in rewrite_at(). A query is copied, its expressions are rewritten.
    unsafe {
        if (*node).type_ == pg_sys::NodeTag::T_Query {
            return query_tree_mutator(node.cast(), rewrite_deep_below, context, 0).cast();
        }
        let copy = expression_tree_mutator(node, rewrite_deep_below, context);
        if (*copy).type_ == pg_sys::NodeTag::T_List {
            copy
        } else {
            (*context.cast::<Replace<'_>>())(copy)
        }
    }
}

/// What C calls, as [`search_below`].
unsafe extern "C-unwind" fn rewrite_deep_below(node: *mut Node, context: *mut c_void) -> *mut Node {
    // SAFETY: expression_tree_mutator() passes on the context that it was given.
    unsafe { pgrx_extern_c_guard(move || rewrite_deep_at(node, context)) }
}

/// The functions that evaluating this one node calls: its own, its operator's, those of the types that it converts.
///
/// # Safety
/// `node` is a node of an analyzed expression.
pub unsafe fn functions_of(node: *mut Node) -> Vec<Oid> {
    unsafe extern "C-unwind" fn collect(function: Oid, context: *mut c_void) -> bool {
        // SAFETY: the context is the vector below.
        unsafe { (*context.cast::<Vec<Oid>>()).push(function) };
        false
    }
    let mut functions: Vec<Oid> = Vec::new();
    // SAFETY: collect() neither raises nor keeps the context.
    unsafe { pg_sys::check_functions_in_node(node, Some(collect), (&raw mut functions).cast()) };
    functions
}
