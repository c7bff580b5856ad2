//! A table's rows as the log has them: decoding, keys, and the text of values.

use std::collections::HashMap;
use std::rc::Rc;

use pgrx::pg_sys::{Datum, Oid};

use super::definition::Definition;
use super::family::{Family, PARTITIONED};
use super::message;
use super::net::{self, Chain, Keyed, Version};
use super::window::{Log, Transaction};
use crate::capture::layout::{self, Layout};
use crate::error::{Error, Result};
use crate::pg::encode::Column;
use crate::pg::image::{self, Kind, Leaf, Pointer, Row};
use crate::pg::memory::Context;
use crate::pg::query;
use crate::pg::reading;
use crate::pg::relation::{Lock, Relation};
use crate::record::Record;
use crate::sequence::order::Snapshot;

/// The inside of the JSON string that a message's `key` is. Equal keys have equal bytes.
pub type Key = Rc<[u8]>;

/// What a transaction did to one key of a table.
pub type Effect = net::Effect<Key, Row>;

/// A table that is open and locked with its partitions, ready to read its images.
pub struct Table {
    relation: Relation,
    /// Which relations it is.
    pub family: Family,
    /// Is it partitioned?
    pub partitioned: bool,
    /// What its messages have in common.
    pub message: message::Relation,
    /// Its columns' names, those of dropped ones empty.
    names: Vec<String>,
    kinds: Vec<Kind>,
    types: Vec<Oid>,
    /// Places of the key's columns, from 0; of all columns when there is no key.
    pub key: Vec<usize>,
    /// Does it have a key?
    pub keyed: bool,
    key_columns: Vec<Column>,
    leaves: HashMap<u32, LeafReader>,
    /// What output functions keep.
    functions: Context,
    /// What they return, until the next row.
    pub scratch: Context,
}

struct LeafReader {
    leaf: Leaf,
    layout: Layout,
    readable: HashMap<u64, bool>,
}

/// Where the values can be found that a row's update left alone.
pub struct Around<'a> {
    /// The log.
    pub log: &'a Log,
    /// The transaction's records.
    pub records: &'a [Record<'a>],
    /// A snapshot that does not see the transaction yet.
    pub before: &'a Snapshot,
}

impl Table {
    /// Opens the table of a shape; None when it is gone.
    pub fn of(definition: &Definition) -> Option<Table> {
        let Definition {
            relid,
            schema,
            table,
            key,
            ..
        } = definition;
        Table::open(*relid, schema, table, key)
    }

    /// Opens and locks a table with its partitions. None when it is gone.
    pub fn open(relid: u32, schema: &str, table: &str, key: &[String]) -> Option<Table> {
        let relation = Relation::open(Oid::from_u32(relid), Lock::AccessShare)?;
        let facts = relation.facts();
        let family = Family::of_open(relid, &facts);
        family
            .members
            .iter()
            .for_each(|relid| reading::lock_shared(Oid::from_u32(*relid)));
        let names: Vec<String> = facts
            .attributes
            .iter()
            .map(|a| {
                if a.dropped {
                    String::new()
                } else {
                    a.name.clone()
                }
            })
            .collect();
        let find = |name: &String| names.iter().position(|other| other == name);
        let places = if key.is_empty() {
            (0..names.len())
                .filter(|place| !names[*place].is_empty())
                .collect()
        } else {
            key.iter().map(find).collect::<Option<Vec<_>>>()?
        };
        let functions = Context::new();
        let key_columns = places
            .iter()
            .map(|place| Column::new(&relation, *place, *place, &functions))
            .collect();
        let kinds = (0..names.len())
            .map(|column| Kind::of(&relation, column))
            .collect();
        Some(Table {
            partitioned: facts.kind == PARTITIONED,
            relation,
            family,
            message: message::Relation::new(schema, table),
            names,
            kinds,
            types: facts
                .attributes
                .iter()
                .map(|attribute| Oid::from_u32(attribute.type_oid))
                .collect(),
            key: places,
            keyed: !key.is_empty(),
            key_columns,
            leaves: HashMap::new(),
            functions,
            scratch: Context::new(),
        })
    }

    /// The open relation.
    pub fn relation(&self) -> &Relation {
        &self.relation
    }

    /// Places of columns by their names, from 0; None when one is gone.
    pub fn places(&self, names: &[String]) -> Option<Vec<usize>> {
        names
            .iter()
            .map(|name| self.names.iter().position(|other| other == name))
            .collect()
    }

    /// The name of a column.
    pub fn name_of(&self, place: usize) -> &str {
        &self.names[place]
    }

    /// Number of its columns, dropped ones included.
    pub fn width(&self) -> usize {
        self.names.len()
    }

    /// The type of a column.
    pub fn type_of(&self, place: usize) -> Oid {
        self.types[place]
    }

    /// Columns to write as JSON, each read at its own place in a row of the table.
    pub fn columns(&self, places: &[usize]) -> Vec<Column> {
        places
            .iter()
            .map(|place| self.column(*place, *place, &self.functions))
            .collect()
    }

    /// A column of the table that is read at `index` of a row. `functions`, for what its output function keeps, must outlive it.
    pub fn column(&self, place: usize, index: usize, functions: &Context) -> Column {
        Column::new(&self.relation, place, index, functions)
    }

    /// The key of a row.
    pub fn key_of(&mut self, row: &Row) -> Key {
        let mut key = Vec::with_capacity(64);
        self.message.begin_key(&mut key);
        let columns = &mut self.key_columns;
        self.scratch.run(|| {
            columns
                .iter_mut()
                .for_each(|column| column.put_key(row.get(column.index), &mut key))
        });
        key.into()
    }

    /// A copy of a row, nothing of which is out of line, that lives on its own.
    pub fn keep(&self, row: &Row) -> Row {
        row.copy(&self.kinds)
    }

    /// What a transaction did to rows of this table, by version.
    pub fn keyed_chains(
        &mut self,
        transaction: &Transaction,
        chains: &[Chain<'_>],
        around: &Around<'_>,
    ) -> Result<Vec<Keyed<Key, Row>>> {
        let mut all = Vec::new();
        for chain in chains {
            let before = self.end(
                transaction,
                chain
                    .before
                    .filter(|v| self.family.members.contains(&v.relid)),
                around,
            )?;
            let after = self.end(
                transaction,
                chain
                    .after
                    .filter(|v| self.family.members.contains(&v.relid)),
                around,
            )?;
            if before.is_some() || after.is_some() {
                all.push(Keyed {
                    start: chain.start,
                    before,
                    after,
                });
            }
        }
        self.scratch.reset();
        Ok(all)
    }

    /// The texts of a row's key as an array literal.
    pub fn key_literal(&mut self, row: &Row) -> Vec<u8> {
        let columns = &mut self.key_columns;
        self.scratch.run(|| {
            let values = columns
                .iter_mut()
                .map(|column| row.get(column.index).map(|value| column.text(value)));
            query::array_literal(values)
        })
    }

    /// What a transaction did to the keys of this table, which has one.
    pub fn effects(
        &mut self,
        transaction: &Transaction,
        chains: &[Chain<'_>],
        around: &Around<'_>,
    ) -> Result<Vec<Effect>> {
        Ok(net::effects(self.keyed_chains(
            transaction,
            chains,
            around,
        )?))
    }

    fn end(
        &mut self,
        transaction: &Transaction,
        version: Option<Version<'_>>,
        around: &Around<'_>,
    ) -> Result<Option<(Key, Row)>> {
        let Some(version) = version else {
            return Ok(None);
        };
        let mut row = self.row(transaction, &version)?;
        if row.is_external() {
            self.fetch(&mut row, &self.key.clone(), around)?;
        }
        Ok(Some((self.key_of(&row), row)))
    }

    /// Decodes an image, whose layout must be one that the leaf can still read.
    pub fn row(&mut self, transaction: &Transaction, version: &Version<'_>) -> Result<Row> {
        let reader = self.leaf(version.relid)?;
        let current = &reader.layout;
        let readable = *reader.readable.entry(version.layout).or_insert_with(|| {
            let known = transaction
                .layouts
                .iter()
                .find(|(hash, _)| *hash == version.layout);
            let old = known
                .map(|(_, layout)| layout.clone())
                .or_else(|| layout::load(version.layout));
            old.is_some_and(|old| old.decodes_with(current))
        });
        if !readable {
            return Err(changed());
        }
        Ok(reader.leaf.row(version.image.bytes))
    }

    fn leaf(&mut self, relid: u32) -> Result<&mut LeafReader> {
        if !self.leaves.contains_key(&relid) {
            let relation =
                Relation::open(Oid::from_u32(relid), Lock::AccessShare).ok_or_else(changed)?;
            let layout = layout::current(&relation);
            let readable = HashMap::from([(layout.hash(), true)]);
            let leaf = Leaf::new(relation, &self.relation);
            self.leaves.insert(
                relid,
                LeafReader {
                    leaf,
                    layout,
                    readable,
                },
            );
        }
        Ok(self.leaves.get_mut(&relid).expect("it was just put there"))
    }

    /// Fetches what these columns of a row have out of line.
    pub fn fetch(&mut self, row: &mut Row, columns: &[usize], around: &Around<'_>) -> Result<()> {
        if !row.is_external() {
            return Ok(());
        }
        for column in columns {
            if let Some(pointer) = row.pointer(*column, &self.kinds[*column]) {
                let value = self.value_of(row.leaf(), &pointer, around)?;
                row.set_fetched(*column, value);
            }
        }
        Ok(())
    }

    /// Unpacks these columns of a row: for values that many functions are given.
    pub fn unpack(&self, row: &mut Row, columns: &[usize]) {
        for column in columns {
            row.unpack(*column, &self.kinds[*column]);
        }
    }

    fn value_of(&mut self, leaf: u32, pointer: &Pointer, around: &Around<'_>) -> Result<Vec<u64>> {
        if let Some(value) = self.copied(leaf, pointer.value_id, around.records)? {
            return Ok(value);
        }
        let fetched = self.scratch.run(|| image::fetch(pointer));
        if let Some(value) = fetched {
            return Ok(value);
        }
        let Some(later) = around.log.copy_of(leaf, pointer.value_id, around.before)? else {
            return Err(changed());
        };
        let records = later.records()?;
        self.copied(leaf, pointer.value_id, &records)?
            .ok_or_else(changed)
    }

    /// A value that one of these records replaced or removed, and therefore has a copy of.
    fn copied(
        &mut self,
        leaf: u32,
        value_id: u32,
        records: &[Record<'_>],
    ) -> Result<Option<Vec<u64>>> {
        let found = records
            .iter()
            .filter(|record| record.relid == leaf)
            .find_map(|record| {
                let old = record.old?;
                old.copied()
                    .find(|(_, id)| *id == value_id)
                    .map(|(attnum, _)| (old, attnum))
            });
        match found {
            Some((old, attnum)) => Ok(self.leaf(leaf)?.leaf.inline_value(old.bytes, attnum)),
            None => Ok(None),
        }
    }

    /// Two rows have the same value in a column.
    pub fn same_value(
        &mut self,
        a: &mut Row,
        b: &mut Row,
        column: usize,
        around: &Around<'_>,
    ) -> Result<bool> {
        let kind = self.kinds[column];
        if a.pointer(column, &kind).is_some() != b.pointer(column, &kind).is_some() {
            self.fetch(a, &[column], around)?;
            self.fetch(b, &[column], around)?;
        }
        Ok(match (a.get(column), b.get(column)) {
            (None, None) => true,
            (Some(a), Some(b)) => self.scratch.run(|| kind.same(a, b)),
            _ => false,
        })
    }
}

/// Appends members of a JSON object.
#[inline]
pub fn put_members(
    columns: &mut [Column],
    value: impl Fn(usize) -> Option<Datum>,
    out: &mut Vec<u8>,
) {
    for (i, column) in columns.iter_mut().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        column.put_member(value(column.index), out);
    }
}

/// The table is not what it was when the log was written.
pub fn changed() -> Error {
    Error::MustRefetch("the table's epoch has ended".into())
}
