//! Indexes on the columns that link rows to sets. Without one, a change of a set costs a look at the whole table.

use super::super::definition::Definition;
use super::super::rows::fetch;
use super::nodes::Nodes;
use crate::error::Result;
use crate::pg::expr::Select;
use crate::pg::query::{Cursor, Goal, identifier, qualified};
use crate::pg::table::{self, Found};

/// The statements that would make the indexes which are missing for a select.
pub fn missing(select: &Select) -> Result<Vec<String>> {
    let Found::Table(table) = table::by_oid(pgrx::pg_sys::Oid::from_u32(select.relid)) else {
        return Ok(Vec::new());
    };
    let mut statements = Vec::new();
    for membership in select
        .memberships
        .iter()
        .filter(|membership| membership.is_linked())
    {
        let columns: Vec<i16> = membership.linked_columns().into_iter().flatten().collect();
        if columns.is_empty() || has_index(select.relid, &columns)? {
            continue;
        }
        let name = |number: &i16| {
            let column = table.columns.iter().find(|column| column.number == *number);
            column.map(|column| identifier(&column.name))
        };
        let names: Vec<String> = columns.iter().filter_map(name).collect();
        let table = qualified(&table.schema, &table.name);
        statements.push(format!("create index on {table} ({})", names.join(", ")));
    }
    Ok(statements)
}

/// There is an index of the whole table that begins with one of these columns.
fn has_index(relid: u32, columns: &[i16]) -> Result<bool> {
    let columns: Vec<String> = columns.iter().map(i16::to_string).collect();
    let sql = format!(
        "select from pg_catalog.pg_index where indrelid = {relid} and indisvalid and indpred is null \
         and indkey[0] in ({})",
        columns.join(", ")
    );
    let cursor = Cursor::open(&sql, Goal::FirstRows);
    let found = fetch(&cursor, 1, &mut |_| {})?;
    cursor.close();
    Ok(found > 0)
}

impl Nodes {
    /// Says in the server's log, once in a session, which indexes a select lacks.
    pub fn tell_of_missing_indexes(
        &mut self,
        select: &Select,
        definition: &Definition,
    ) -> Result<()> {
        for statement in missing(select)? {
            if self.told.insert(statement.clone()) {
                let table = qualified(&definition.schema, &definition.table);
                pgrx::log!(
                    "shapes of table {table} look at a whole table whenever a membership changes; \
                     this would help: {statement}"
                );
            }
        }
        Ok(())
    }
}
