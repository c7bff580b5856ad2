//! Rows of a table as they are now, for conditions of ours.

use std::cell::Cell;

use pgrx::pg_sys::Oid;

use super::super::definition::Definition;
use super::super::rows::fetch;
use super::super::tuple::Table;
use crate::error::Result;
use crate::pg::expr::{Predicate, Select, Where};
use crate::pg::image::Row;
use crate::pg::query::{Cursor, Fetched, Goal, identifier, qualified};

/// How many rows are fetched at once.
const ROWS_AT_ONCE: usize = 1000;

/// A condition on rows of a table; None lets every row in.
pub struct Condition(Option<Predicate>);

impl Condition {
    /// Compiles one for a table that is locked. Call it while acting as the role that it is evaluated for.
    pub fn new(relid: u32, clause: Option<Where>) -> Condition {
        Condition(clause.map(|clause| Predicate::of(Oid::from_u32(relid), clause)))
    }

    /// Is a row in, whose columns have been fetched?
    pub fn matches(&mut self, row: &Row) -> bool {
        self.0
            .as_mut()
            .is_none_or(|predicate| predicate.matches(row))
    }
}

/// Places, from 0, of the columns that a select reads.
pub fn places(select: &Select) -> Vec<usize> {
    select
        .columns
        .iter()
        .map(|number| *number as usize - 1)
        .collect()
}

/// The query for the rows as they are now for which a condition is true. It reads only these columns of them.
pub fn query(
    definition: &Definition,
    table: &Table,
    columns: &[usize],
    clause: Option<&Where>,
) -> String {
    let column = |place: usize| match columns.contains(&place) {
        true => identifier(table.name_of(place)),
        false => "null".into(),
    };
    let columns: Vec<String> = (0..table.width()).map(column).collect();
    let only = if table.partitioned { "" } else { "only " };
    let from = qualified(&definition.schema, &definition.table);
    let mut sql = format!("select {} from {only}{from}", columns.join(", "));
    if let Some(clause) = clause {
        let relid = Oid::from_u32(table.family.relid);
        sql += &format!(" where {}", clause.deparsed(relid));
    }
    sql
}

/// Calls `each` for the rows of a [`query`], each a row of the table that lives until the next one.
pub fn each(query: &str, each: &mut dyn FnMut(Row)) -> Result<()> {
    each_while(query, &mut |row| {
        each(row);
        true
    })
}

/// The same until `each` says no.
pub fn each_while(query: &str, each: &mut dyn FnMut(Row) -> bool) -> Result<()> {
    let cursor = Cursor::open(query, Goal::AllRows);
    let goes_on = Cell::new(true);
    let mut look = |row: Fetched<'_>| goes_on.set(goes_on.get() && each(row.row()));
    while fetch(&cursor, ROWS_AT_ONCE, &mut look)? == ROWS_AT_ONCE && goes_on.get() {
        pgrx::check_for_interrupts!();
    }
    cursor.close();
    Ok(())
}
