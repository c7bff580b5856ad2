//! What a client's transaction consists of. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Values by column; None is NULL.
pub type Values = BTreeMap<String, Option<String>>;

/// What is done to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A new row.
    Insert,
    /// Other values in some columns of a row.
    Update,
    /// A row goes.
    Delete,
}

impl Kind {
    /// As on the wire and in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Insert => "insert",
            Kind::Update => "update",
            Kind::Delete => "delete",
        }
    }
}

/// One operation on one row.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Operation {
    /// What is done.
    #[serde(rename = "operation")]
    pub kind: Kind,
    /// Schema and name, not quoted.
    pub table: [String; 2],
    /// Which row: all columns of its key.
    #[serde(default)]
    pub key: Values,
    /// What it has then.
    #[serde(default)]
    pub value: Values,
    /// What it must have had.
    #[serde(default)]
    pub base: Values,
}

/// The operations of an array.
pub fn read(operations: serde_json::Value) -> Result<Vec<Operation>, String> {
    serde_json::from_value(operations).map_err(|error| error.to_string())
}

/// Why an operation is not done: what a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE.
    pub sqlstate: String,
    /// What is wrong.
    pub message: String,
    /// What can be done about it.
    pub hint: &'static str,
    /// The constraint that was violated.
    pub constraint: Option<String>,
}

impl Refusal {
    /// One without a constraint.
    pub fn new(sqlstate: &str, message: impl Into<String>, hint: &'static str) -> Refusal {
        Refusal {
            sqlstate: sqlstate.into(),
            message: message.into(),
            hint,
            constraint: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_are_read() {
        let read = read(
            json!([{"operation": "update", "table": ["public", "T"], "key": {"id": "1"}, "value": {"a": null}}]),
        );
        let operation = &read.unwrap()[0];
        assert_eq!(operation.kind, Kind::Update);
        assert_eq!(operation.value["a"], None);
        assert_eq!(operation.key["id"].as_deref(), Some("1"));
        assert!(operation.base.is_empty());
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            json!({}),
            json!([{"operation": "truncate", "table": ["public", "t"]}]),
            json!([{"operation": "insert", "table": "t"}]),
            json!([{"operation": "insert", "table": ["public", "t"], "value": {"a": 1}}]),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
