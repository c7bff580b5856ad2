//! Indexes on the columns that link rows to sets. Without one, a change of a set costs a look at the whole table.

use super::super::definition::Definition;
use super::super::rows::fetch;
use super::nodes::Nodes;
use crate::error::Result;
use crate::pg::expr::Select;
use crate::pg::query::{Cursor, Goal, identifier, qualified};
use crate::pg::table::{self, Found};

/// The columns that link rows of a select to a set, for each that has some.
fn links(select: &Select) -> impl Iterator<Item = Vec<i16>> {
    let linked = select.memberships.iter().filter(|it| it.is_linked());
    let columns = linked.map(|it| it.linked_columns().into_iter().flatten().collect());
    columns.filter(|columns: &Vec<i16>| !columns.is_empty())
}

/// The statements that would make the indexes which are missing for a select.
pub fn missing(select: &Select) -> Result<Vec<String>> {
    let mut statements = Vec::new();
    for columns in links(select) {
        if has_index(select.relid, &columns)? {
            continue;
        }
        let Found::Table(table) = table::by_oid(pgrx::pg_sys::Oid::from_u32(select.relid)) else {
            return Ok(Vec::new());
        };
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
        let mut all_there = true;
        for columns in links(select) {
            let name = (select.relid, columns);
            let known = self.indexed.get(&name).copied();
            let there = known.map_or_else(|| has_index(name.0, &name.1), Ok)?;
            self.indexed.insert(name, there);
            all_there &= there;
        }
        if all_there {
            return Ok(());
        }
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
