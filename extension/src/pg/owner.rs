//! Doing the extension's own catalog work with its owner's rights.

use pgrx::pg_sys::{self, Oid};

/// Runs `f` as `owner`; the rights that were there before come back, also after an error. Names and operators in SQL mean
/// Postgres' own meanwhile: with the caller's search_path his operators would run with the owner's rights.
pub fn run_as<T>(owner: u32, f: impl FnOnce() -> T) -> T {
    let _back = Back::enter(owner);
    f()
}

struct Back {
    user: Oid,
    context: i32,
    guc_level: i32,
}

impl Back {
    fn enter(owner: u32) -> Back {
        let (mut user, mut context) = (Oid::INVALID, 0);
        // SAFETY: as security definer functions do it; put back by Drop, or by the abort of the (sub)transaction.
        let guc_level = unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
            pg_sys::SetUserIdAndSecContext(Oid::from_u32(owner), context | local);
            pg_sys::NewGUCNestLevel()
        };
        super::role::pin(c"search_path", c"pg_catalog, pg_temp");
        Back {
            user,
            context,
            guc_level,
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // SAFETY: undoes enter() in reverse order, in the same transaction nesting level.
        unsafe {
            pg_sys::AtEOXact_GUC(false, self.guc_level);
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
        }
    }
}

/// The current user owns a relation, or is a superuser.
pub fn owns_relation(relid: u32) -> bool {
    // SAFETY: a syscache look-up inside a transaction.
    unsafe {
        let (relid, user) = (Oid::from_u32(relid), pg_sys::GetUserId());
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let owns = pg_sys::pg_class_ownercheck(relid, user);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let owns = pg_sys::object_ownercheck(pg_sys::RelationRelationId, relid, user);
        owns
    }
}
