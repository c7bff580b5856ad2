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
    let mut used = Used::default();
    // SAFETY: the nodes that search() comes by are nodes of the expression.
    unsafe {
        tree::search::<()>(tree, &mut |node| {
            used.add(node);
            None
        });
    }
    used.digest()
}

/// The same of an expression with subqueries, and of what is in them.
///
/// # Safety
/// As for [`uses`].
pub(super) unsafe fn uses_deep(tree: *mut Node) -> String {
    let mut used = Used::default();
    // SAFETY: the nodes that rewrite_deep() comes by are nodes of a copy of the expression.
    unsafe {
        tree::rewrite_deep(tree, &mut |node| {
            used.add(node);
            node
        });
    }
    used.digest()
}

/// Oids of what may be another one later.
#[derive(Default)]
struct Used {
    functions: BTreeSet<u32>,
    collations: BTreeSet<u32>,
}

impl Used {
    /// # Safety
    /// `node` is a node of an analyzed expression.
    unsafe fn add(&mut self, node: *mut Node) {
        // SAFETY: as the caller says.
        let (called, collation) =
            unsafe { (tree::functions_of(node), pg_sys::exprInputCollation(node)) };
        if called.iter().any(|oid| depends(oid.to_u32(), collation)) {
            self.collations.insert(collation.to_u32());
        }
        let called = called.iter().map(|oid| oid.to_u32());
        self.functions
            .extend(called.filter(|oid| *oid >= pg_sys::FirstNormalObjectId));
    }

    fn digest(self) -> String {
        let oids = |oids: BTreeSet<u32>| oids.into_iter().map(Oid::from_u32);
        let functions: BTreeSet<String> = oids(self.functions).filter_map(definition).collect();
        let versions: BTreeSet<String> = oids(self.collations).filter_map(version).collect();
        if functions.is_empty() && versions.is_empty() {
            return String::new();
        }
        let all = format!("{functions:?} {versions:?}");
        xxhash_rust::xxh3::xxh3_64(all.as_bytes()).to_string()
    }
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
