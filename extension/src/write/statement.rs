//! The statements for an operation. Names come from the catalog, values are parameters. Pure.

use super::operation::{Kind, Operation, Refusal, Values};
use super::target::Target;
use crate::pg::query::identifier;
use crate::pg::statement::Value;

/// A statement with its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statement<'a> {
    /// What Postgres runs.
    pub sql: String,
    /// Values of its parameters.
    pub values: Vec<Value<'a>>,
}

/// Makes the statements for an operation.
pub struct Maker<'a> {
    target: &'a Target,
    operation: &'a Operation,
}

impl<'a> Maker<'a> {
    /// For an operation that names what the table has.
    pub fn new(target: &'a Target, operation: &'a Operation) -> Result<Self, Refusal> {
        let named = [&operation.key, &operation.value, &operation.base];
        for name in named.into_iter().flat_map(Values::keys) {
            if !target.columns.contains_key(name) {
                let message = format!("column \"{name}\" of table {} does not exist", target.name);
                return Err(Refusal::new("42703", message, ""));
            }
        }
        if operation.kind != Kind::Insert {
            check_key(target, &operation.key)?;
        }
        Ok(Maker { target, operation })
    }

    /// A new row.
    pub fn insert(&self) -> Statement<'a> {
        let mut statement = Statement::default();
        let table = &self.target.name;
        let (names, places) = self.columns(&self.operation.value, &mut statement);
        statement.sql = if names.is_empty() {
            format!("insert into {table} default values")
        } else {
            let (names, places) = (names.join(", "), places.join(", "));
            format!("insert into {table} ({names}) values ({places})")
        };
        statement
    }

    /// A new row, or none if it is there, whether the caller sees it or not; None where that cannot be known by its key.
    pub fn insert_new(&self) -> Option<Statement<'a>> {
        // With the key named, policies would ask whether he may see the row.
        self.target.is_key_only.then(|| {
            let Statement { sql, values } = self.insert();
            let sql = format!("{sql} on conflict do nothing");
            Statement { sql, values }
        })
    }

    /// A row that has all that the new one is to have; None where there cannot be any.
    pub fn find_same(&self) -> Option<Statement<'a>> {
        let value = &self.operation.value;
        let key = &self.target.key;
        let is_keyed = !key.is_empty() && key.iter().all(|(name, _)| value.contains_key(name));
        is_keyed.then(|| self.select(value, Some(value)))
    }

    /// The row gets other values. With none of them: the row.
    pub fn update(&self) -> Statement<'a> {
        let Operation {
            key, value, base, ..
        } = self.operation;
        if value.is_empty() {
            return self.select(key, Some(base));
        }
        let mut statement = Statement::default();
        let (names, places) = self.columns(value, &mut statement);
        let set = names.iter().zip(places);
        let set: Vec<_> = set
            .map(|(name, place)| format!("{name} = {place}"))
            .collect();
        let row = self.row(key, Some(base), &mut statement);
        let (rows, set) = (&self.target.rows, set.join(", "));
        statement.sql = format!("update {rows} set {set} where {row}");
        statement
    }

    /// The row goes.
    pub fn delete(&self) -> Statement<'a> {
        let Operation { key, base, .. } = self.operation;
        let mut statement = Statement::default();
        let row = self.row(key, Some(base), &mut statement);
        statement.sql = format!("delete from {} where {row}", self.target.rows);
        statement
    }

    /// The row, whatever it has.
    pub fn find(&self) -> Statement<'a> {
        self.select(&self.operation.key, None)
    }

    /// The row, if it has what it must have had.
    pub fn find_unchanged(&self) -> Statement<'a> {
        self.select(&self.operation.key, Some(&self.operation.base))
    }

    fn select(&self, key: &'a Values, had: Option<&'a Values>) -> Statement<'a> {
        let mut statement = Statement::default();
        let row = self.row(key, had, &mut statement);
        statement.sql = format!("select from {} where {row}", self.target.rows);
        statement
    }

    /// The condition that a row has this key, and these values: whatever their types have for an equality, they are the
    /// same when their texts are.
    fn row(
        &self,
        key: &'a Values,
        had: Option<&'a Values>,
        statement: &mut Statement<'a>,
    ) -> String {
        let mut conditions = Vec::new();
        for (name, equals) in &self.target.key {
            let place = self.place(name, key[name].as_deref(), statement);
            conditions.push(format!("{} {equals} {place}", identifier(name)));
        }
        for (name, value) in had.into_iter().flatten() {
            let place = self.place(name, value.as_deref(), statement);
            let (column, text) = (identifier(name), "::pg_catalog.text");
            conditions.push(format!(
                "{column}{text} collate pg_catalog.\"C\" is not distinct from {place}{text}"
            ));
        }
        conditions.join(" and ")
    }

    /// Columns and the places of their values.
    fn columns(
        &self,
        values: &'a Values,
        statement: &mut Statement<'a>,
    ) -> (Vec<String>, Vec<String>) {
        let one = |(name, value): (&'a String, &'a Option<String>)| {
            let place = self.place(name, value.as_deref(), statement);
            (identifier(name), place)
        };
        values.iter().map(one).unzip()
    }

    fn place(&self, name: &str, text: Option<&'a str>, statement: &mut Statement<'a>) -> String {
        let type_oid = self.target.columns[name];
        statement.values.push(Value { type_oid, text });
        format!("${}", statement.values.len())
    }
}

fn check_key(target: &Target, given: &Values) -> Result<(), Refusal> {
    if target.key.is_empty() {
        let message = format!("table {} has no primary key", target.name);
        let hint = "Rows of such a table can be inserted only.";
        return Err(Refusal::new("0A000", message, hint));
    }
    let is_key = |name: &String| target.key.iter().any(|(column, _)| column == name);
    if given.len() != target.key.len() || !given.keys().all(is_key) {
        let columns: Vec<_> = target
            .key
            .iter()
            .map(|(name, _)| identifier(name))
            .collect();
        let columns = columns.join(", ");
        let message = format!("the key of table {} is expected: {columns}", target.name);
        return Err(Refusal::new("22023", message, ""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            is_table: true,
            rows: "only public.\"T\"".into(),
            name: "public.\"T\"".into(),
            columns: [("id", 23), ("a\"b", 25), ("c", 25)]
                .map(|(name, oid)| (name.to_owned(), oid))
                .into(),
            key: vec![("id".into(), "operator(pg_catalog.=)".into())],
            is_key_only: false,
            may_skip: (false, false),
        }
    }

    fn operation(
        kind: Kind,
        key: &[(&str, &str)],
        value: &[(&str, &str)],
        base: &[(&str, &str)],
    ) -> Operation {
        let values = |of: &[(&str, &str)]| {
            let owned = of
                .iter()
                .map(|(name, text)| (name.to_string(), Some(text.to_string())));
            owned.collect::<Values>()
        };
        Operation {
            kind,
            table: ["public".into(), "T".into()],
            key: values(key),
            value: values(value),
            base: values(base),
        }
    }

    #[test]
    fn names_are_quoted_and_values_bound() {
        let target = target();
        let insert = operation(Kind::Insert, &[], &[("id", "1"), ("a\"b", "'); drop")], &[]);
        let statement = Maker::new(&target, &insert).unwrap().insert();
        assert_eq!(
            statement.sql,
            "insert into public.\"T\" (\"a\"\"b\", \"id\") values ($1, $2)"
        );
        assert_eq!(statement.values[0].text, Some("'); drop"));
        assert_eq!(statement.values[1].type_oid, 23);
        let nothing = operation(Kind::Insert, &[], &[], &[]);
        let statement = Maker::new(&target, &nothing).unwrap().insert();
        assert_eq!(statement.sql, "insert into public.\"T\" default values");
        let make = Maker::new(&target, &nothing).unwrap();
        assert_eq!((make.find_same(), make.insert_new()), (None, None));
    }

    #[test]
    fn only_what_is_given_is_set() {
        let target = target();
        let update = operation(
            Kind::Update,
            &[("id", "1")],
            &[("c", "new")],
            &[("c", "old")],
        );
        let statement = Maker::new(&target, &update).unwrap().update();
        assert_eq!(
            statement.sql,
            "update only public.\"T\" set \"c\" = $1 where \"id\" operator(pg_catalog.=) $2 and \
             \"c\"::pg_catalog.text collate pg_catalog.\"C\" is not distinct from $3::pg_catalog.text"
        );
        let texts: Vec<_> = statement.values.iter().map(|value| value.text).collect();
        assert_eq!(texts, [Some("new"), Some("1"), Some("old")]);
    }

    #[test]
    fn a_row_is_named_by_its_whole_key() {
        let target = target();
        for key in [&[][..], &[("c", "1")], &[("id", "1"), ("c", "1")]] {
            let delete = operation(Kind::Delete, key, &[], &[]);
            assert_eq!(
                Maker::new(&target, &delete).err().unwrap().sqlstate,
                "22023"
            );
        }
        let delete = operation(Kind::Delete, &[("id", "1")], &[], &[]);
        let statement = Maker::new(&target, &delete).unwrap().delete();
        assert_eq!(
            statement.sql,
            "delete from only public.\"T\" where \"id\" operator(pg_catalog.=) $1"
        );
        let unknown = operation(Kind::Delete, &[("id\" or true --", "1")], &[], &[]);
        assert_eq!(
            Maker::new(&target, &unknown).err().unwrap().sqlstate,
            "42703"
        );
        let keyless = Target {
            key: Vec::new(),
            ..target
        };
        assert_eq!(
            Maker::new(&keyless, &delete).err().unwrap().sqlstate,
            "0A000"
        );
    }
}
