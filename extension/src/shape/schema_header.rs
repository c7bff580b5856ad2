//! The `electric-schema` header (docs/protocol.md, section 5): what a client needs to know to read the values.

use pgrx::pg_sys;
use serde_json::{Map, Value, json};

use crate::pg::table::Column;

/// The header's object: each column's name with its type, key position and modifiers.
pub fn schema_header<'a>(columns: impl Iterator<Item = &'a Column>, key: &[i16]) -> Value {
    Value::Object(
        columns
            .map(|column| (column.name.clone(), column_info(column, key)))
            .collect(),
    )
}

fn column_info(column: &Column, key: &[i16]) -> Value {
    let mut info = Map::from_iter([("type".to_string(), json!(column.type_name))]);
    if column.dims > 0 {
        info.insert("dims".into(), json!(column.dims));
    }
    if let Some(index) = key.iter().position(|&number| number == column.number) {
        info.insert("pk_index".into(), json!(index));
    }
    if column.not_null {
        info.insert("not_null".into(), json!(true));
    }
    info.extend(
        modifiers(column.type_oid, column.typmod)
            .into_iter()
            .map(|(name, value)| (name.to_string(), value)),
    );
    Value::Object(info)
}

/// What a type modifier says, in the protocol's words. Lengths and numeric's modifier are stored with 4 added.
fn modifiers(type_oid: pg_sys::Oid, typmod: i32) -> Vec<(&'static str, Value)> {
    match type_oid {
        // Electric says so for varbit without a length, and clients have seen it.
        pg_sys::VARBITOID | pg_sys::BITOID => vec![("length", json!(typmod))],
        _ if typmod < 0 => vec![],
        pg_sys::VARCHAROID => vec![("max_length", json!(typmod - 4))],
        pg_sys::BPCHAROID => vec![("length", json!(typmod - 4))],
        pg_sys::NUMERICOID => vec![
            ("precision", json!((typmod - 4) >> 16 & 0xFFFF)),
            ("scale", json!(scale(typmod))),
        ],
        pg_sys::TIMEOID | pg_sys::TIMETZOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID
            if typmod > 0 =>
        {
            vec![("precision", json!(typmod))]
        }
        pg_sys::INTERVALOID => interval_modifiers(typmod),
        _ => vec![("type_mod", json!(typmod))],
    }
}

/// The scale of a numeric: the low 11 bits, signed.
fn scale(typmod: i32) -> i32 {
    (((typmod - 4) & 0x7FF) ^ 0x400) - 0x400
}

/// An interval's modifier has the fields in its high and the precision in its low half, all bits set for "any".
fn interval_modifiers(typmod: i32) -> Vec<(&'static str, Value)> {
    let (fields, precision) = (typmod >> 16 & 0x7FFF, typmod & 0xFFFF);
    let precision = (precision != 0xFFFF).then(|| ("precision", json!(precision)));
    let fields = interval_fields(fields).map(|fields| ("fields", json!(fields)));
    precision.into_iter().chain(fields).collect()
}

fn interval_fields(mask: i32) -> Option<String> {
    const FIELDS: [(i32, &str); 6] = [
        (2, "YEAR"),
        (1, "MONTH"),
        (3, "DAY"),
        (10, "HOUR"),
        (11, "MINUTE"),
        (12, "SECOND"),
    ];
    if mask == 0x7FFF {
        return None;
    }
    let mut named = FIELDS
        .iter()
        .filter(|(bit, _)| mask & 1 << bit != 0)
        .map(|(_, name)| *name);
    let first = named.next()?;
    Some(
        named
            .next_back()
            .map_or_else(|| first.to_string(), |last| format!("{first} TO {last}")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_are_unpacked() {
        assert_eq!(
            modifiers(pg_sys::VARCHAROID, 127),
            [("max_length", json!(123))]
        );
        assert_eq!(modifiers(pg_sys::BPCHAROID, -1), []);
        assert_eq!(modifiers(pg_sys::VARBITOID, -1), [("length", json!(-1))]);
        assert_eq!(modifiers(pg_sys::TIMESTAMPOID, 0), [("type_mod", json!(0))]);
        let numeric = |precision: i32, scale: i32| (precision << 16 | scale & 0x7FF) + 4;
        assert_eq!(
            modifiers(pg_sys::NUMERICOID, numeric(8, 2)),
            [("precision", json!(8)), ("scale", json!(2))]
        );
        assert_eq!(
            modifiers(pg_sys::NUMERICOID, numeric(3, -2)),
            [("precision", json!(3)), ("scale", json!(-2))]
        );
    }

    #[test]
    fn interval_fields_are_named() {
        let day_to_second = 1 << 3 | 1 << 10 | 1 << 11 | 1 << 12;
        assert_eq!(
            modifiers(pg_sys::INTERVALOID, day_to_second << 16 | 0xFFFF),
            [("fields", json!("DAY TO SECOND"))]
        );
        assert_eq!(
            modifiers(pg_sys::INTERVALOID, 0x7FFF << 16 | 3),
            [("precision", json!(3))]
        );
        assert_eq!(
            modifiers(pg_sys::INTERVALOID, 1 << 2 << 16 | 0xFFFF),
            [("fields", json!("YEAR"))]
        );
    }
}
