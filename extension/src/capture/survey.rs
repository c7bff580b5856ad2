//! Looking at tables that the server says have changed, whoever changed them: event triggers can be disabled, and do not
//! see all. The sequencer looks before it gives positions; readers look before they answer.
//!
//! What was looked at is remembered until a message about the table comes, so that a look costs nothing where nothing
//! has changed. Whoever writes a table after a command has waited for that command's lock, and by then the message is
//! sent: messages that are read after a snapshot tell of every command that one of its writers may have come after.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use pgrx::pg_sys::Oid;

use super::come_first;
use super::fingerprint::{Added, Fingerprint, Meaning};
use super::tracked::{self, Hold, Tracked, as_owner};
use crate::error::{Error, Result};
use crate::pg::relation::{self, Lock, Relation};
use crate::pg::{invalidation, xact};

#[derive(Default)]
struct Seen {
    /// Tracked tables that are what they are known to be.
    tables: HashSet<u32>,
    /// Which of them a relation concerns.
    of: HashMap<u32, Vec<u32>>,
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::new(Seen::default());
    /// While a look is under way: relations that the server has told of since its snapshot was taken (0: any may be meant).
    /// The look, which may come to them only then, did not see what that was.
    static TOLD: RefCell<Option<Vec<u32>>> = const { RefCell::new(None) };
    /// Something has changed since the sequencer looked.
    static STALE: Cell<bool> = const { Cell::new(true) };
}

/// A look under way, under the active snapshot.
struct Looking;

impl Looking {
    fn begin() -> Looking {
        TOLD.set(Some(Vec::new()));
        Looking
    }

    /// Remembers a table as it was looked at; false if the server has told of it meanwhile.
    fn remember(&self, table: &Fingerprint) -> bool {
        let parts = parts(table);
        let missed = TOLD.with_borrow(|told| {
            let mut told = told.iter().flatten();
            told.any(|relid| *relid == 0 || parts.contains(relid))
        });
        if !missed {
            SEEN.with_borrow_mut(|seen| seen.remember_as(table.layout.relid, &parts));
        }
        !missed
    }
}

/// The relations by whose messages a table may have changed. Its indexes are among them: that of a partitioned table's key
/// becomes valid with the last partition's, of which there is no other message.
fn parts(table: &Fingerprint) -> Vec<u32> {
    let relation = Relation::open_at_once(Oid::from_u32(table.layout.relid), Lock::AccessShare);
    let indexes = relation.map_or_else(Vec::new, |relation| relation.indexes());
    [table.relids(), table.rows.clone(), indexes].concat()
}

impl Drop for Looking {
    fn drop(&mut self) {
        TOLD.set(None);
    }
}

impl Seen {
    fn remember_as(&mut self, relid: u32, parts: &[u32]) {
        self.tables.insert(relid);
        for part in parts {
            let of = self.of.entry(*part).or_default();
            if !of.contains(&relid) {
                of.push(relid);
            }
        }
    }

    /// Forgets the tables that a relation concerns; true if there are any.
    fn forget(&mut self, relid: u32) -> bool {
        let mut any = false;
        for table in self.of.remove(&relid).unwrap_or_default() {
            any |= self.tables.remove(&table);
        }
        any
    }
}

/// The server says that a relation, or anything (0), has changed.
pub fn forget(relid: u32) {
    TOLD.with_borrow_mut(|told| told.iter_mut().for_each(|told| told.push(relid)));
    let any = SEEN.with_borrow_mut(|seen| {
        if relid == 0 {
            *seen = Seen::default();
            return true;
        }
        seen.forget(relid)
    });
    if any {
        look_again();
    }
}

/// The next look is at all tables that it does not know.
pub fn look_again() {
    STALE.set(true);
}

/// Something has changed since the last look. Ask under the snapshot that is to be judged.
pub fn is_stale() -> bool {
    invalidation::accept();
    STALE.get()
}

/// As far as is known without asking.
pub fn is_stale_already() -> bool {
    STALE.get()
}

/// The sequencer's look, in a transaction of its own: notes in the log what has ended unnoticed. The notes come first in
/// the batch of the next step, before whatever has been written since. Returns the tables whose capture has begun, if
/// they have no position to begin at; and whether some table must be looked at again, because a command is at it.
pub fn look() -> Look {
    xact::register_callbacks();
    invalidation::watch_tables();
    let looking = Looking::begin();
    STALE.set(false);
    let known: Vec<u32> = SEEN.with_borrow(|seen| seen.tables.iter().copied().collect());
    let mut look = Look {
        begun: begun(),
        again: false,
    };
    for old in tracked::all_but(&known) {
        look.again |= !look_at(&old, &looking);
    }
    look
}

/// What came of a look.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Tables that have no position to begin at.
    pub begun: Vec<u32>,
    /// Some table could not be looked at.
    pub again: bool,
}

/// False if a command is at the table.
fn look_at(old: &Tracked, looking: &Looking) -> bool {
    let now = Fingerprint::of(old.relid);
    if now.is_none() || now != old.fingerprint {
        let same = |held: &Tracked| held.fingerprint == old.fingerprint;
        if !tracked::find(old.relid, Hold::Skip).is_some_and(|held| same(&held)) {
            return false;
        }
        come_first();
        tracked::settle(old, now.as_ref(), Added::Unknown);
    }
    if now.is_some_and(|now| !looking.remember(&now)) {
        look_again();
    }
    true
}

/// Tables that are tracked, not left out, and have no position yet.
fn begun() -> Vec<u32> {
    let query = "select array_agg(t.relid::int8) from shapefeed.tracked t where t.since is null
                   and not exists (select from shapefeed.gap g where g.relid = t.relid)
                   and not exists (select from shapefeed.closing_gap g where g.relid = t.relid)";
    let relids: Option<Vec<i64>> = tracked::read_one(query, &[]);
    relids
        .unwrap_or_default()
        .into_iter()
        .map(|relid| relid as u32)
        .collect()
}

/// An error if what ends by a change of the table is not in the log yet. Ask under the snapshot that is read with.
/// `has_position`: what is in the log as of a transaction has its position.
pub fn require_seen(relid: u32, has_position: impl Fn(u64) -> bool) -> Result<()> {
    xact::register_callbacks();
    invalidation::watch_tables();
    let looking = Looking::begin();
    invalidation::accept();
    for table in std::iter::once(relid).chain(relation::ancestors(relid)) {
        if SEEN.with_borrow(|seen| seen.tables.contains(&table)) {
            continue;
        }
        let Some(old) = as_owner(|| tracked::find(table, Hold::No)) else {
            // Until it gets a trigger, of which there is a message.
            SEEN.with_borrow_mut(|seen| seen.remember_as(table, &[table]));
            continue;
        };
        let is_same = |now: &Fingerprint| {
            tracked::meaning(&old, now, Added::Unknown) == Meaning::Nothing
                && tracked::given(&old, now).is_empty()
                && old.given_by.is_none_or(&has_position)
        };
        let now = as_owner(|| Fingerprint::of(table)).filter(is_same);
        let now =
            now.ok_or_else(|| Error::TryAgain("the table has changed a moment ago".into()))?;
        looking.remember(&now);
    }
    Ok(())
}
