//! What a where clause depends on beside the table: functions that can be replaced, collations that sort differently
//! once the library behind them is another one.

use std::collections::BTreeSet;

use pgrx::IntoDatum;
use pgrx::pg_sys::{self, Node, Oid};

use super::tree;

/// Comparisons of texts that are the same under every deterministic collation.
const SAME_IN_ALL: [u32; 8] = [
    pg_sys::F_TEXTEQ,
    pg_sys::F_TEXTNE,
    pg_sys::F_BPCHAREQ,
    pg_sys::F_BPCHARNE,
    pg_sys::F_NAMEEQ,
    pg_sys::F_NAMENE,
    pg_sys::F_TEXTLIKE,
    pg_sys::F_TEXTNLIKE,
];

/// A digest of what an expression uses; empty if that cannot change.
///
/// # Safety
/// `tree` is an analyzed expression.
pub(super) unsafe fn uses(tree: *mut Node) -> String {
    let (mut functions, mut collations) = (BTreeSet::new(), BTreeSet::new());
    // SAFETY: the nodes that search() comes by are nodes of the expression.
    unsafe {
        tree::search::<()>(tree, &mut |node| {
            let called = tree::functions_of(node);
            let collation = pg_sys::exprInputCollation(node);
            if called.iter().any(|oid| depends(oid.to_u32(), collation)) {
                collations.insert(collation.to_u32());
            }
            let called = called.iter().map(|oid| oid.to_u32());
            functions.extend(called.filter(|oid| *oid >= pg_sys::FirstNormalObjectId));
            None
        });
    }
    let functions: BTreeSet<String> = functions
        .into_iter()
        .map(Oid::from_u32)
        .filter_map(definition)
        .collect();
    let versions: BTreeSet<String> = collations
        .into_iter()
        .map(Oid::from_u32)
        .filter_map(version)
        .collect();
    if functions.is_empty() && versions.is_empty() {
        return String::new();
    }
    let all = format!("{functions:?} {versions:?}");
    xxhash_rust::xxh3::xxh3_64(all.as_bytes()).to_string()
}

/// What a function says depends on how a collation sorts.
fn depends(function: u32, collation: Oid) -> bool {
    // SAFETY: reads the collation cache, of a collation that the expression refers to.
    collation != Oid::INVALID
        && !(SAME_IN_ALL.contains(&function)
            && unsafe { pg_sys::get_collation_isdeterministic(collation) })
}

/// The statement that would make a function; none for one that is gone.
pub(super) fn definition(function: Oid) -> Option<String> {
    // SAFETY: the expression refers to it; none for one that was dropped a moment ago.
    unsafe { pgrx::direct_function_call(pg_sys::pg_get_functiondef, &[function.into_datum()]) }
}

/// The version that the library behind a collation has now; none for one that never changes.
fn version(collation: Oid) -> Option<String> {
    // SAFETY: look-ups in the catalogs; both return null where there is no version.
    unsafe {
        if collation == pg_sys::DEFAULT_COLLATION_OID {
            let function = pg_sys::pg_database_collation_actual_version;
            pgrx::direct_function_call(function, &[pg_sys::MyDatabaseId.into_datum()])
        } else {
            let function = pg_sys::pg_collation_actual_version;
            pgrx::direct_function_call(function, &[collation.into_datum()])
        }
    }
}
