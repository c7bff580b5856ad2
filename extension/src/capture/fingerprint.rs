//! The fingerprint of a table: what its log and the shapes on it depend on, as the catalogs have it.
//!
//! It is kept with each tracked table. Where the one that is kept and the one of now differ, something happened to the
//! table; what that means for its shapes is decided here, and only here, whoever notices: the event triggers, in the
//! transaction of the command; else the sequencer, before its next step; else a reader, who then does not answer.

use std::collections::BTreeMap;

use pgrx::pg_sys::Oid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::layout::Layout;
use super::rights::Rights;
use super::tracked::read_one;

/// What a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Its names and columns.
    pub layout: Layout,
    /// Attribute numbers of its primary key in the order of the key; empty when there is none.
    pub key: Vec<i16>,
    /// It and all partitions below, those that are being detached left out.
    pub members: Vec<Member>,
    /// Types that a command can change the meaning of, by the column that they are used in, and by their oid.
    pub types: BTreeMap<i16, BTreeMap<u32, Value>>,
    /// Relations that describe composite types among them.
    pub rows: Vec<u32>,
    /// Who may read it.
    pub rights: Rights,
    /// State of the event triggers.
    pub witness: Vec<String>,
}

/// A table or partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its oid.
    pub relid: u32,
    /// Number of the file that holds its rows.
    pub file: u32,
    /// All that happens to its rows comes into the log.
    pub captured: bool,
}

/// What is known of partitions that are new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// They were made by the command that is looked at: without rows.
    Empty,
    /// They may have rows that nobody was told of.
    Unknown,
}

/// What a difference means for the shapes of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing.
    Nothing,
    /// Those that name one of these columns end.
    Columns(Vec<String>),
    /// All end.
    Table(&'static str),
    /// The log does not have all changes any more: the table is tracked no longer.
    Lost,
}

impl Fingerprint {
    /// Of a table as the active snapshot sees it; None when it is gone. Names in SQL must mean Postgres' own.
    pub fn of(relid: u32) -> Option<Fingerprint> {
        let query = include_str!("fingerprint.sql");
        let found: pgrx::JsonB = read_one(query, &[Oid::from_u32(relid).into()])?;
        Fingerprint::from_json(found.0)
    }

    /// As table `shapefeed.tracked` holds it; None for one of another version of shapefeed.
    pub fn from_json(json: Value) -> Option<Fingerprint> {
        serde_json::from_value(json).ok()
    }

    /// For table `shapefeed.tracked`.
    pub fn json(&self) -> Value {
        serde_json::to_value(self).expect("a fingerprint is plain data")
    }

    /// The log has all that happens to the table.
    pub fn is_captured(&self) -> bool {
        self.members.iter().all(|member| member.captured)
    }

    /// The table and its partitions.
    pub fn relids(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.relid).collect()
    }

    fn has(&self, relid: u32) -> bool {
        self.members.iter().any(|member| member.relid == relid)
    }

    /// Members of this one that the other one does not have.
    pub fn without<'a>(&'a self, other: &'a Fingerprint) -> impl Iterator<Item = u32> + 'a {
        self.members
            .iter()
            .map(|member| member.relid)
            .filter(|relid| !other.has(*relid))
    }

    /// What it means for the shapes of the table that it has become another one.
    pub fn turned_into(&self, now: &Fingerprint, added: Added) -> Meaning {
        if !now.is_captured() {
            return Meaning::Lost;
        }
        let name = |of: &Fingerprint| (of.layout.schema.clone(), of.layout.table.clone());
        if name(self) != name(now) {
            return Meaning::Table("rename");
        }
        if self.key != now.key {
            return Meaning::Table("key");
        }
        let has_more = added == Added::Unknown && now.without(self).next().is_some();
        if has_more || self.without(now).next().is_some() {
            return Meaning::Table("partitions");
        }
        let rewritten = self.is_rewritten(now);
        if rewritten && self.witness != now.witness {
            return Meaning::Table("storage");
        }
        let columns = self.changed_columns(now, rewritten);
        // Without a key a row is told from others by all of its columns, those that are new included.
        let is_wider = now.layout.attributes.len() > self.layout.attributes.len();
        if self.key.is_empty() && (is_wider || !columns.is_empty()) {
            return Meaning::Table("layout");
        }
        if columns.is_empty() {
            Meaning::Nothing
        } else {
            Meaning::Columns(columns)
        }
    }

    /// Rows of a partition that both have are in another file.
    fn is_rewritten(&self, now: &Fingerprint) -> bool {
        self.members.iter().any(|old| {
            let same = |now: &&Member| now.relid == old.relid;
            now.members
                .iter()
                .find(same)
                .is_some_and(|now| now.file != old.file)
        })
    }

    /// Names of columns whose values a shape cannot go on with.
    fn changed_columns(&self, now: &Fingerprint, rewritten: bool) -> Vec<String> {
        let has_changed = |(i, old): (usize, &crate::pg::relation::Attribute)| {
            let num = old.num;
            let same = now.layout.attributes.get(i).is_some_and(|now| {
                // Another modifier, as that of varchar(20), changes values only if they are written anew.
                let same_values = now.typmod == old.typmod || !rewritten;
                !now.dropped && now.name == old.name && now.type_oid == old.type_oid && same_values
            });
            let is_kept = same && self.same_types(now, num);
            !old.dropped && !is_kept
        };
        self.layout
            .attributes
            .iter()
            .enumerate()
            .filter(|(i, old)| has_changed((*i, old)))
            .map(|(_, old)| old.name.clone())
            .collect()
    }

    /// The types that a column uses show its values as before. Labels may have been added.
    fn same_types(&self, now: &Fingerprint, column: i16) -> bool {
        let none = BTreeMap::new();
        let (old, now) = (&self.types, &now.types);
        let now = now.get(&column).unwrap_or(&none);
        let goes_on = |old: &Value, now: &Value| match (old, now) {
            (Value::Object(old), Value::Object(now)) => {
                old.iter().all(|(label, text)| now.get(label) == Some(text))
            }
            (old, now) => old == now,
        };
        old.get(&column)
            .unwrap_or(&none)
            .iter()
            .all(|(oid, old)| now.get(oid).is_some_and(|now| goes_on(old, now)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pg::relation::Attribute;

    fn column(num: i16, name: &str) -> Attribute {
        Attribute {
            num,
            name: name.into(),
            type_oid: 23,
            typmod: -1,
            len: 4,
            byval: true,
            align: 'i',
            dropped: false,
        }
    }

    fn member(relid: u32) -> Member {
        Member {
            relid,
            file: relid,
            captured: true,
        }
    }

    fn table() -> Fingerprint {
        Fingerprint {
            layout: Layout {
                relid: 1,
                schema: "public".into(),
                table: "t".into(),
                toast: 0,
                attributes: vec![column(1, "id"), column(2, "mood")],
            },
            key: vec![1],
            members: vec![member(1), member(2)],
            types: BTreeMap::from([(2, BTreeMap::from([(9, json!({"7": "sad"}))]))]),
            rows: vec![],
            rights: Rights::default(),
            witness: vec!["A".into()],
        }
    }

    fn meaning(change: impl FnOnce(&mut Fingerprint)) -> Meaning {
        let mut now = table();
        change(&mut now);
        table().turned_into(&now, Added::Unknown)
    }

    fn columns(names: &[&str]) -> Meaning {
        Meaning::Columns(names.iter().map(|name| name.to_string()).collect())
    }

    #[test]
    fn what_ends_nothing() {
        assert_eq!(meaning(|_| {}), Meaning::Nothing);
        assert_eq!(
            meaning(|now| now.layout.attributes.push(column(3, "new"))),
            Meaning::Nothing
        );
        // VACUUM FULL; and a wider varchar, which is written to no file.
        assert_eq!(meaning(|now| now.members[1].file = 77), Meaning::Nothing);
        assert_eq!(
            meaning(|now| now.layout.attributes[1].typmod = 20),
            Meaning::Nothing
        );
        let label = json!({"7": "sad", "8": "happy"});
        assert_eq!(
            meaning(|now| now
                .types
                .get_mut(&2)
                .unwrap()
                .insert(9, label)
                .map_or((), drop)),
            Meaning::Nothing
        );
    }

    #[test]
    fn what_ends_the_shapes_that_name_a_column() {
        assert_eq!(
            meaning(|now| now.layout.attributes[1].dropped = true),
            columns(&["mood"])
        );
        assert_eq!(
            meaning(|now| now.layout.attributes[1].name = "temper".into()),
            columns(&["mood"])
        );
        assert_eq!(
            meaning(|now| now.layout.attributes[0].type_oid = 20),
            columns(&["id"])
        );
        assert_eq!(
            meaning(|now| {
                now.layout.attributes[1].typmod = 20;
                now.members[0].file = 77;
            }),
            columns(&["mood"])
        );
        let renamed = json!({"7": "blue"});
        assert_eq!(
            meaning(|now| now
                .types
                .get_mut(&2)
                .unwrap()
                .insert(9, renamed)
                .map_or((), drop)),
            columns(&["mood"])
        );
    }

    #[test]
    fn what_ends_all() {
        let is = |reason| Meaning::Table(reason);
        assert_eq!(meaning(|now| now.layout.table = "u".into()), is("rename"));
        assert_eq!(meaning(|now| now.key = vec![2]), is("key"));
        assert_eq!(meaning(|now| now.members.truncate(1)), is("partitions"));
        assert_eq!(meaning(|now| now.members.push(member(3))), is("partitions"));
        let mut more = table();
        more.members.push(member(3));
        assert_eq!(table().turned_into(&more, Added::Empty), Meaning::Nothing);
        assert_eq!(
            meaning(|now| {
                now.members[0].file = 77;
                now.witness = vec!["D".into()];
            }),
            is("storage")
        );
        assert_eq!(
            meaning(|now| now.members[1].captured = false),
            Meaning::Lost
        );
    }

    #[test]
    fn without_a_key_every_column_tells_rows_apart() {
        let mut old = table();
        old.key = vec![];
        let mut now = old.clone();
        now.layout.attributes.push(column(3, "new"));
        assert_eq!(
            old.turned_into(&now, Added::Unknown),
            Meaning::Table("layout")
        );
    }
}
