//! The body of a write. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use serde_json::value::RawValue;

use crate::error::Error;
use crate::identifier;
use crate::params::field_error;

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// Who sends it.
    pub client: Client,
    /// The number of the first transaction; the others follow.
    pub first: i64,
    /// The operations of each, as the database takes them.
    pub transactions: Vec<String>,
}

/// The id of a client: a UUID in its usual form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client(String);

impl Client {
    fn parse(text: &str) -> Option<Self> {
        const LENGTHS: [usize; 5] = [8, 4, 4, 4, 12];
        let parts: Vec<&str> = text.split('-').collect();
        let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let fits = parts.iter().map(|part| part.len()).eq(LENGTHS);
        (fits && parts.iter().all(|part| is_hex(part))).then(|| Client(text.to_ascii_lowercase()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Deserialize)]
struct Body<'a> {
    client_id: String,
    #[serde(borrow)]
    transactions: Vec<Transaction<'a>>,
}

#[derive(Deserialize)]
struct Transaction<'a> {
    seq: i64,
    #[serde(borrow)]
    operations: Vec<Operation<'a>>,
}

#[derive(Deserialize)]
struct Operation<'a> {
    operation: Kind,
    table: String,
    #[serde(borrow, default)]
    key: Values<'a>,
    #[serde(borrow, default)]
    value: Values<'a>,
    #[serde(borrow, default)]
    base: Values<'a>,
}

type Values<'a> = BTreeMap<String, &'a RawValue>;
type Texts = BTreeMap<String, Option<String>>;

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Insert,
    Update,
    Delete,
}

/// An operation as the database takes it.
#[derive(Serialize)]
struct Prepared {
    operation: Kind,
    table: [String; 2],
    #[serde(skip_serializing_if = "Texts::is_empty")]
    key: Texts,
    #[serde(skip_serializing_if = "Texts::is_empty")]
    value: Texts,
    #[serde(skip_serializing_if = "Texts::is_empty")]
    base: Texts,
}

/// Reads a body, or says what is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Request, Error> {
    let body: Body = serde_json::from_slice(bytes).map_err(|error| unreadable(bytes, &error))?;
    let invalid = |field: &str, text: &str| Err(Error::Invalid(field_error(field, text)));
    let Some(client) = Client::parse(&body.client_id) else {
        return invalid("client_id", "is not a UUID");
    };
    let Some(first) = body.transactions.first().map(|first| first.seq) else {
        return invalid("transactions", "can't be empty");
    };
    const MOST: i64 = 1 << 53;
    let follow = (first..).zip(&body.transactions);
    if !(1..MOST).contains(&first) || follow.into_iter().any(|(seq, it)| it.seq != seq) {
        return invalid("seq", "must be 1 or more, and go up by one");
    }
    let transactions = body.transactions.into_iter().map(prepared);
    Ok(Request {
        client,
        first,
        transactions: transactions.collect::<Result<_, _>>()?,
    })
}

/// What is no JSON at all is told as for other bodies.
fn unreadable(bytes: &[u8], error: &serde_json::Error) -> Error {
    if serde_json::from_slice::<Json>(bytes).is_ok() {
        return Error::Invalid(field_error("body", error.to_string()));
    }
    Error::BadBody {
        text: "Invalid JSON in request body",
        details: Some(error.to_string()),
    }
}

fn prepared(transaction: Transaction<'_>) -> Result<String, Error> {
    let operations: Result<Vec<Prepared>, Error> = transaction
        .operations
        .into_iter()
        .enumerate()
        .map(|(place, operation)| {
            let place = format!("transaction {}, operation {place}", transaction.seq);
            let invalid = |text| Error::Invalid(field_error(&place, text));
            let table = identifier::relation(&operation.table).map_err(invalid)?;
            let [key, value, base] = [operation.key, operation.value, operation.base].map(texts);
            Ok(Prepared {
                operation: operation.operation,
                table: [table.schema, table.table],
                key: key.map_err(invalid)?,
                value: value.map_err(invalid)?,
                base: base.map_err(invalid)?,
            })
        })
        .collect();
    Ok(serde_json::to_string(&operations?).expect("names and texts are JSON"))
}

/// Values as Postgres reads them: strings are its text form, anything else is its own.
fn texts(values: Values<'_>) -> Result<Texts, String> {
    let text = |(name, value): (String, &RawValue)| {
        let value = match value.get() {
            "null" => None,
            raw if raw.starts_with('"') => {
                Some(serde_json::from_str::<String>(raw).map_err(|error| error.to_string())?)
            }
            raw => Some(raw.to_owned()),
        };
        let has_zero = |text: &str| text.contains('\0');
        if has_zero(&name) || value.as_deref().is_some_and(has_zero) {
            return Err("text can't have a character with code zero".into());
        }
        Ok((name, value))
    };
    values.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CLIENT: &str = "0190A2B4-0000-7000-8000-000000000001";

    fn read_operations(operations: &str) -> Result<Request, Error> {
        read(format!(r#"{{"client_id": "{CLIENT}", "transactions": [{{"seq": 7, "operations": {operations}}}]}}"#).as_bytes())
    }

    #[test]
    fn values_are_texts() {
        let value = r#"{"s": "a\"b", "n": 12345678901234567890.10, "t": true, "o": {"a": [1, 2]}, "z": null}"#;
        let request = read_operations(&format!(
            r#"[{{"operation": "insert", "table": "\"A\".b", "value": {value}}}]"#
        ));
        let request = request.unwrap();
        assert_eq!(
            (request.client.as_str(), request.first),
            (&*CLIENT.to_lowercase(), 7)
        );
        let operations: Json = serde_json::from_str(&request.transactions[0]).unwrap();
        assert_eq!(
            operations,
            json!([{"operation": "insert", "table": ["A", "b"], "value":
                {"s": "a\"b", "n": "12345678901234567890.10", "t": "true", "o": "{\"a\": [1, 2]}", "z": null}}])
        );
    }

    #[test]
    fn what_is_wrong_is_told() {
        let field = |result: Result<Request, Error>| match result.unwrap_err() {
            Error::Invalid(fields) => fields.keys().next().unwrap().clone(),
            error => panic!("{error}"),
        };
        let body = |client: &str, transactions: Json| {
            read(
                json!({"client_id": client, "transactions": transactions})
                    .to_string()
                    .as_bytes(),
            )
        };
        let none = json!([]);
        assert_eq!(
            field(body("x", json!([{"seq": 1, "operations": none}]))),
            "client_id"
        );
        assert_eq!(field(body(CLIENT, json!([]))), "transactions");
        for seqs in [
            vec![0],
            vec![-1],
            vec![1, 3],
            vec![2, 1],
            vec![1, 1],
            vec![1i64 << 53],
        ] {
            let all: Vec<Json> = seqs
                .iter()
                .map(|seq| json!({"seq": seq, "operations": none}))
                .collect();
            assert_eq!(field(body(CLIENT, json!(all))), "seq", "{seqs:?}");
        }
        for bad in [
            json!({}),
            json!([1]),
            json!([{"seq": "1", "operations": []}]),
        ] {
            assert_eq!(field(body(CLIENT, bad)), "body");
        }
        let place = "transaction 7, operation 1";
        let good = r#"{"operation": "delete", "table": "t", "key": {"id": 1}}"#;
        for bad in [
            r#"{"operation": "delete", "table": "a.b.c"}"#,
            r#"{"operation": "delete", "table": "t", "key": {"id": "\u0000"}}"#,
            r#"{"operation": "delete", "table": "t", "base": {"\u0000": 1}}"#,
        ] {
            assert_eq!(field(read_operations(&format!("[{good}, {bad}]"))), place);
        }
        assert!(matches!(read(b"{"), Err(Error::BadBody { .. })));
    }
}
