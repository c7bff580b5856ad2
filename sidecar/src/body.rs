//! The body of a POST: parameters that stand over those of the URL, and those of a subset by their short names.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::{Map, Value as Json};

use crate::error::Error;
use crate::params::SUBSET_MEMBERS;
use crate::query::Query;

/// Longest body.
const MAX_BYTES: usize = 8_000_000;
/// Members that mean something are few; each is looked for among those before it.
const MOST_MEMBERS: usize = 1000;
/// How long a client may take to send it.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// The same for one that is refused.
const SKIP_WITHIN: Duration = Duration::from_secs(2);

/// Puts the parameters of a body into a query.
pub async fn read_into(query: &mut Query<'_>, body: Body) -> Result<(), Error> {
    put_into(query, &read(body, MAX_BYTES).await?)
}

/// A whole body of at most so many bytes.
pub async fn read(mut body: Body, max_bytes: usize) -> Result<Bytes, Error> {
    read_part(&mut body, max_bytes).await
}

/// The same; of one that is too large, the rest is left.
pub async fn read_part(body: &mut Body, max_bytes: usize) -> Result<Bytes, Error> {
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::bad_body("Failed to read request body"))?;
            if let Ok(data) = frame.into_data() {
                if bytes.len() + data.len() > max_bytes {
                    return Err(Error::BodyTooLarge);
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(bytes.freeze())
    };
    let late = |_| Err(Error::bad_body("Failed to read request body"));
    tokio::time::timeout(READ_WITHIN, read)
        .await
        .unwrap_or_else(late)
}

/// Reads what is left of a body that nobody wants: else the connection is cut, and who still sends may not see the answer.
pub async fn skip(body: &mut Body) {
    let skip = async {
        let mut left = MAX_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            left = match left.checked_sub(length) {
                Some(left) => left,
                None => return,
            };
        }
    };
    // Who is slower than that is cut.
    let _ = tokio::time::timeout(SKIP_WITHIN, skip).await;
}

fn put_into(query: &mut Query, bytes: &[u8]) -> Result<(), Error> {
    if bytes.trim_ascii().is_empty() {
        return Ok(());
    }
    let json = serde_json::from_slice(bytes).map_err(|error| Error::BadBody {
        text: "Invalid JSON in request body",
        details: Some(error.to_string()),
    })?;
    let Json::Object(members) = json else {
        return Err(Error::bad_body("Request body must be a JSON object"));
    };
    let inner = members.values().filter_map(Json::as_object).map(Map::len);
    if members.len() + inner.sum::<usize>() > MOST_MEMBERS {
        return Err(Error::bad_body("Request body has too many members"));
    }
    for (name, value) in members {
        match value {
            Json::Object(subset) if name == "subset" => put_subset(query, subset),
            value if SUBSET_MEMBERS.contains(&name.as_str()) => {
                put_subset(query, Map::from_iter([(name, value)]));
            }
            value => put(query, &name, value),
        }
    }
    Ok(())
}

fn put_subset(query: &mut Query, members: Map<String, Json>) {
    for (name, value) in members {
        let value = match value {
            Json::Object(_) | Json::Array(_) => Json::String(value.to_string()),
            value => value,
        };
        put(query, &format!("subset__{name}"), value);
    }
}

/// Null counts as not given.
fn put(query: &mut Query, name: &str, value: Json) {
    match value {
        Json::Null => {}
        Json::Array(values) => {
            query.remove(name);
            values
                .into_iter()
                .for_each(|value| query.add(format!("{name}[]"), text(value)));
        }
        Json::Object(members) => {
            query.remove(name);
            for (key, value) in members {
                query.add(format!("{name}[{key}]"), text(value));
            }
        }
        value => {
            query.remove(name);
            query.add(name.to_owned(), text(value));
        }
    }
}

fn text(value: Json) -> String {
    match value {
        Json::String(text) => text,
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_json<'a>(url: &'a str, body: &'a str) -> Query<'a> {
        let mut query = Query::parse(url);
        put_into(&mut query, body.as_bytes()).unwrap();
        query
    }

    #[test]
    fn members_become_parameters() {
        let flat = r#"{"where":"a = $1","params":{"1":5},"limit":2,"offset":0,"order_by":"a","where_expr":{}}"#;
        for body in [flat.to_owned(), format!("{{\"subset\":{flat}}}")] {
            let query = put_json("where=b&limit=9", &body);
            assert_eq!(query.text("where"), Some("b"));
            assert_eq!(query.text("subset__where"), Some("a = $1"));
            assert_eq!(query.text("subset__params"), Some("{\"1\":5}"));
            assert_eq!(query.text("subset__limit"), Some("2"));
        }
        let query = put_json(
            "table=a&columns=x",
            r#"{"table":"b","columns":["id","c"],"live":true,"offset":null}"#,
        );
        assert_eq!(
            (query.text("table"), query.text("live")),
            (Some("b"), Some("true"))
        );
        let columns: Vec<_> = query
            .entries("columns")
            .map(|(_, value)| value.clone().unwrap())
            .collect();
        assert_eq!(columns, ["id", "c"]);
        assert!(query.get("columns").is_none() && query.get("subset__offset").is_none());
        assert_eq!(put_json("table=a", " ").text("table"), Some("a"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let refused = |body: &str| put_into(&mut Query::default(), body.as_bytes()).unwrap_err();
        assert!(matches!(
            refused("{"),
            Error::BadBody {
                details: Some(_),
                ..
            }
        ));
        assert!(matches!(
            refused("[]"),
            Error::BadBody { details: None, .. }
        ));
    }
}
