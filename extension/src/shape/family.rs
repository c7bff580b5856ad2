//! Which relations are one table: partitions below, partitioned tables above.

use pgrx::pg_sys::Oid;

use crate::pg::relation::{self, Facts, Lock, Relation};

/// `relkind` of a partitioned table.
pub const PARTITIONED: char = 'p';

/// A table with its partitions and what it is a partition of.
#[derive(Clone, Debug)]
pub struct Family {
    /// The table itself.
    pub relid: u32,
    /// The table and all partitions below.
    pub members: Vec<u32>,
    /// The partitioned tables above.
    ancestors: Vec<u32>,
    /// Types of the table's columns.
    pub types: Vec<u32>,
    /// Their names, those of dropped ones included.
    pub names: Vec<String>,
}

impl Family {
    /// Of a table; None when it is gone.
    pub fn of(relid: u32) -> Option<Family> {
        let relation = Relation::open(Oid::from_u32(relid), Lock::AccessShare)?;
        Some(Family::of_open(relid, &relation.facts()))
    }

    /// Of a table that is open.
    pub fn of_open(relid: u32, facts: &Facts) -> Family {
        // Children of an inheritance parent are tables of their own: it is read with ONLY.
        let members = if facts.kind == PARTITIONED {
            relation::inheritors(relid)
        } else {
            vec![relid]
        };
        let ancestors = if facts.is_partition {
            relation::ancestors(relid)
        } else {
            Vec::new()
        };
        let types = facts
            .attributes
            .iter()
            .map(|attribute| attribute.type_oid)
            .collect();
        let names = facts
            .attributes
            .iter()
            .map(|attribute| attribute.name.clone())
            .collect();
        Family {
            relid,
            members,
            ancestors,
            types,
            names,
        }
    }

    /// All of its relations.
    pub fn all(&self) -> impl Iterator<Item = u32> + '_ {
        self.members.iter().chain(&self.ancestors).copied()
    }

    /// An end of this relation's epoch is one of the table's.
    pub fn has(&self, relid: u32) -> bool {
        self.all().any(|member| member == relid)
    }
}
