//! Who may read a table, as the catalogs have it, and what it means that this has changed.
//!
//! A right begins when it is given: what the log has from before is not for those who have it only now. So whoever may see
//! more than before has his handles end. What he may not see any more needs no note: rights are checked at each use.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// All roles.
pub const PUBLIC: &str = "public";
/// Stands for all columns.
const TABLE: i16 = 0;

/// Who may read a table: roles by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Its owner.
    pub owner: String,
    /// Row-level security is on.
    pub secured: bool,
    /// It is for the owner, too.
    pub forced: bool,
    /// Who may use its schema.
    pub schema: Vec<String>,
    /// Who may SELECT which columns.
    pub columns: BTreeMap<String, Vec<i16>>,
    /// Policies for reading.
    pub policies: BTreeMap<String, Policy>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// For whom it is.
    pub roles: Vec<String>,
    /// A digest of what it says.
    pub text: String,
}

impl Rights {
    /// Roles that may see what they could not see before. Whether a policy says more or less than another one is not known:
    /// it counts as more.
    pub fn given_by(&self, now: &Rights) -> BTreeSet<String> {
        let mut roles = BTreeSet::new();
        if self.owner != now.owner || (self.forced && !now.forced) {
            roles.insert(now.owner.clone());
        }
        if self.secured && !now.secured {
            roles.insert(PUBLIC.into());
        }
        let new = now.schema.iter().filter(|role| !self.schema.contains(role));
        roles.extend(new.cloned());
        let more = now.columns.iter().filter(|(role, columns)| {
            let had = self.columns.get(*role).map_or(&[][..], Vec::as_slice);
            !had.contains(&TABLE) && columns.iter().any(|column| !had.contains(column))
        });
        roles.extend(more.map(|(role, _)| role.clone()));
        if now.secured {
            let names: BTreeSet<_> = self.policies.keys().chain(now.policies.keys()).collect();
            for name in names {
                let (old, new) = (self.policies.get(name), now.policies.get(name));
                if old != new {
                    let of = old.into_iter().chain(new);
                    roles.extend(of.flat_map(|policy| policy.roles.iter().cloned()));
                }
            }
        }
        roles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(role: &str, text: &str) -> Policy {
        Policy {
            roles: vec![role.into()],
            text: text.into(),
        }
    }

    fn rights() -> Rights {
        Rights {
            owner: "owner".into(),
            secured: true,
            forced: true,
            schema: vec!["a".into()],
            columns: BTreeMap::from([("a".into(), vec![1, 2]), ("b".into(), vec![TABLE])]),
            policies: BTreeMap::from([("p".into(), policy("a", "x"))]),
        }
    }

    fn given(change: impl FnOnce(&mut Rights)) -> Vec<String> {
        let mut now = rights();
        change(&mut now);
        rights().given_by(&now).into_iter().collect()
    }

    #[test]
    fn who_sees_less_or_the_same_has_been_given_nothing() {
        assert!(given(|_| {}).is_empty());
        assert!(given(|now| now.columns.clear()).is_empty());
        assert!(given(|now| now.schema.clear()).is_empty());
        assert!(given(|now| drop(now.columns.insert("b".into(), vec![1]))).is_empty());
        assert!(given(|now| now.columns.get_mut("a").unwrap().truncate(1)).is_empty());
    }

    #[test]
    fn who_sees_more_is_named() {
        assert_eq!(given(|now| now.owner = "c".into()), ["c"]);
        assert_eq!(given(|now| now.forced = false), ["owner"]);
        assert_eq!(given(|now| now.secured = false), [PUBLIC]);
        assert_eq!(given(|now| now.schema.push("c".into())), ["c"]);
        assert_eq!(
            given(|now| now.columns.get_mut("a").unwrap().push(3)),
            ["a"]
        );
        let table = |now: &mut Rights| drop(now.columns.insert("a".into(), vec![TABLE]));
        assert_eq!(given(table), ["a"]);
    }

    #[test]
    fn another_policy_is_for_its_roles() {
        assert_eq!(given(|now| now.policies.clear()), ["a"]);
        let other = |now: &mut Rights| drop(now.policies.insert("p".into(), policy("a", "y")));
        assert_eq!(given(other), ["a"]);
        let of_others = |now: &mut Rights| drop(now.policies.insert("p".into(), policy("b", "x")));
        assert_eq!(given(of_others), ["a", "b"]);
        let off = |now: &mut Rights| {
            now.policies.clear();
            now.secured = false;
        };
        assert_eq!(given(off), [PUBLIC]);
    }
}
