//! Roles, which belong to no database, so that no event trigger tells of them: the sequencer looks when the server says that
//! they have changed, and so does a reader before he answers.
//!
//! A role that may more by itself, or is a member of others, has its handles end, and so have its members: see `rights.rs`.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use super::take_end_of_roles;
use super::tracked::{as_owner, read_one};
use crate::error::{Error, Result};
use crate::pg::{invalidation, xact};

thread_local! {
    /// Something has changed since the sequencer looked.
    static STALE: Cell<bool> = const { Cell::new(true) };
    /// Roles that are, with those that they are members of, what they are known to be.
    static SEEN: RefCell<HashSet<String>> = RefCell::new(HashSet::new());
    /// Counts what the server has told.
    static TOLD: Cell<u64> = const { Cell::new(0) };
}

/// A role of which nothing is known.
const NOTHING: &str = r#"'{"super": false, "bypass": false, "of": []}'"#;

/// The server says that some role has changed.
pub fn forget() {
    TOLD.set(TOLD.get() + 1);
    STALE.set(true);
    SEEN.with_borrow_mut(HashSet::clear);
}

/// Some role may have changed since the last look, as far as is known without asking.
pub fn is_stale() -> bool {
    STALE.get()
}

/// The sequencer's look, in a transaction of its own: notes in the log whose handles end. The note comes where the
/// transaction comes, after all that had committed when the role became what it is.
pub fn look() {
    xact::register_callbacks();
    invalidation::watch_tables();
    STALE.set(false);
    let query = format!(
        "with now as materialized (
           select name, state from shapefeed.role_now
         ), gone as (
           delete from shapefeed.role k where not exists (select from now n where n.name = k.name)
         ), changed as (
           insert into shapefeed.role as k (name, state, changed_by)
             select n.name, n.state, case when n.state <> {NOTHING} then pg_current_xact_id() end
             from now n left join shapefeed.role k on k.name = n.name
             where k.state is distinct from n.state
           on conflict (name) do update set state = excluded.state, changed_by = pg_current_xact_id()
           returning name, changed_by
         )
         select array_agg(c.name::text) from changed c where c.changed_by is not null"
    );
    let changed: Option<Vec<String>> = xact::with_latest_snapshot(|| write_one(&query));
    if let Some(changed) = changed {
        take_end_of_roles(None, changed);
    }
}

/// The value that a query which writes gives.
fn write_one(query: &str) -> Option<Vec<String>> {
    pgrx::Spi::connect_mut(|client| {
        let rows = client.update(query, Some(1), &[]);
        rows.ok()?.first().get_one().ok().flatten()
    })
}

/// An error if what ends by a change of the role is not in the log yet. Ask under the snapshot that is read with.
pub fn require_seen(role: &str, has_position: impl Fn(u64) -> bool) -> Result<()> {
    xact::register_callbacks();
    invalidation::watch_tables();
    let told = TOLD.get();
    invalidation::accept();
    if SEEN.with_borrow(|seen| seen.contains(role)) {
        return Ok(());
    }
    let query = format!(
        "with recursive up(oid) as (
           select r.oid from pg_roles r where r.rolname = $1
           union
           select m.roleid from pg_auth_members m join up on m.member = up.oid
         )
         select jsonb_build_object('same', bool_and(coalesce(k.state, {NOTHING}) = n.state),
                                   'by', max(k.changed_by::text::int8))
         from up join pg_roles r on r.oid = up.oid
         join shapefeed.role_now n on n.name = r.rolname
         left join shapefeed.role k on k.name = n.name"
    );
    let found = as_owner(|| read_one::<pgrx::JsonB>(&query, &[role.into()]));
    let found = found.map(|found| found.0).unwrap_or_default();
    let by = found["by"].as_u64();
    if found["same"] != true || !by.is_none_or(has_position) {
        let why = "the role has changed a moment ago";
        return Err(Error::TryAgain(why.into()));
    }
    if TOLD.get() == told {
        SEEN.with_borrow_mut(|seen| seen.insert(role.to_owned()));
    }
    Ok(())
}
