//! The parameters of a subset: `subset__where` and so on, or `subset[where]`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{FieldErrors, INVALID, numbered};
use crate::query::{NotText, Query, Value};

/// What a client wants of a shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subset {
    /// Condition, beside the shape's own.
    pub condition: Option<String>,
    /// `$1…` of the condition.
    pub params: Vec<String>,
    /// Order.
    pub order_by: Option<String>,
    /// Rows at most.
    pub limit: Option<i64>,
    /// Rows to skip.
    pub offset: Option<i64>,
}

/// Members of a request's body that are a subset's parameters.
pub const MEMBERS: [&str; 7] = [
    "where",
    "params",
    "order_by",
    "limit",
    "offset",
    "where_expr",
    "order_by_expr",
];

const PREFIX: &str = "subset__";

/// Whether a parameter, whatever it is, asks for a subset.
fn is_of_subset(name: &str) -> bool {
    name.starts_with(PREFIX) || name.starts_with("subset[")
}

/// The subset that is asked for, if one is, or what is wrong with it.
pub fn subset(query: &Query) -> Result<Option<Subset>, FieldErrors> {
    if !query.names().any(is_of_subset) {
        return Ok(None);
    }
    let mut fields = Fields {
        query,
        errors: FieldErrors::new(),
    };
    let subset = Subset {
        condition: fields.text("where"),
        params: fields.params(),
        order_by: fields.text("order_by"),
        limit: fields.number("limit", 1, "must be greater than 0"),
        offset: fields.number("offset", 0, "must be greater than or equal to 0"),
    };
    let is_cut = ["limit", "offset"].iter().any(|name| fields.given(name));
    if is_cut && subset.order_by.is_none() {
        let text = "order_by is required when limit or offset is present";
        fields.fail("order_by", text);
    }
    if fields.errors.is_empty() {
        Ok(Some(subset))
    } else {
        Err(nested(fields.errors))
    }
}

/// Errors of a subset's fields as they stand in the body of a 400.
pub fn nested(errors: FieldErrors) -> FieldErrors {
    FieldErrors::from_iter([("subset".to_owned(), Json::Object(errors))])
}

struct Fields<'q> {
    query: &'q Query<'q>,
    errors: FieldErrors,
}

impl Fields<'_> {
    fn fail(&mut self, field: &str, text: &str) {
        self.errors.insert(field.to_owned(), json!([text]));
    }

    fn value(&self, name: &str) -> Option<Result<String, NotText>> {
        let flat = self.query.given(&format!("{PREFIX}{name}"));
        let nested = || self.query.given(&format!("subset[{name}]"));
        flat.or_else(nested)
            .map(|value| value.clone().map(Cow::into_owned))
    }

    fn given(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.value(name)? {
            Ok(text) => Some(text),
            Err(NotText) => {
                self.fail(name, INVALID);
                None
            }
        }
    }

    fn number(&mut self, name: &str, least: i64, otherwise: &str) -> Option<i64> {
        let number = self.text(name)?.parse::<i64>().ok();
        match number {
            None => self.fail(name, INVALID),
            Some(number) if number < least => self.fail(name, otherwise),
            Some(_) => return number,
        }
        None
    }

    fn params(&mut self) -> Vec<String> {
        let found = match self.text("params") {
            Some(text) => from_json(&text),
            None => self.listed(),
        };
        found.and_then(numbered).unwrap_or_else(|text| {
            self.fail("params", text);
            Vec::new()
        })
    }

    /// `subset[params][1]=…`
    fn listed(&self) -> Result<BTreeMap<String, String>, &'static str> {
        let entries = self.query.entries("subset").filter_map(|(key, value)| {
            let number = key.strip_prefix("params][")?;
            Some((number, value))
        });
        let text = |(key, value): (&str, &Value<'_>)| match value {
            Ok(text) => Ok((key.to_owned(), text.to_string())),
            Err(NotText) => Err(INVALID),
        };
        entries.map(text).collect()
    }
}

fn from_json(text: &str) -> Result<BTreeMap<String, String>, &'static str> {
    let json = serde_json::from_str(text).map_err(|_| "params must be valid JSON")?;
    let Json::Object(members) = json else {
        return Err("params must be a JSON object");
    };
    let text = |(key, value): (String, Json)| match value {
        Json::String(text) if text.contains('\0') => Err(INVALID),
        Json::String(text) => Ok((key, text)),
        Json::Number(_) | Json::Bool(_) => Ok((key, value.to_string())),
        _ => Err(INVALID),
    };
    members.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Subset>, Json> {
        subset(&Query::parse(text)).map_err(Json::Object)
    }

    #[test]
    fn any_parameter_of_a_subset_asks_for_one() {
        assert_eq!(read("offset=-1&subset=x").unwrap(), None);
        assert_eq!(read("subset__x=").unwrap(), Some(Subset::default()));
        let whole = Subset {
            condition: Some("a = $1".into()),
            params: vec!["7".into(), "t".into()],
            order_by: Some("a".into()),
            limit: Some(5),
            offset: Some(0),
        };
        let flat = "subset__where=a+%3D+$1&subset__params={\"1\":7,\"2\":\"t\"}&subset__order_by=a&subset__limit=5&subset__offset=0";
        assert_eq!(read(flat).unwrap(), Some(whole.clone()));
        let nested = "subset[where]=a+%3D+$1&subset[params][1]=7&subset[params][2]=t&subset[order_by]=a&subset[limit]=5&subset[offset]=0";
        assert_eq!(read(nested).unwrap(), Some(whole));
    }

    #[test]
    fn errors_by_field() {
        let error = |text: &str| read(text).unwrap_err()["subset"].clone();
        assert_eq!(
            error("subset__limit=0&subset__offset=-1"),
            json!({
                "limit": ["must be greater than 0"], "offset": ["must be greater than or equal to 0"],
                "order_by": ["order_by is required when limit or offset is present"],
            })
        );
        assert_eq!(
            error("subset__limit=x&subset__order_by=a"),
            json!({"limit": [INVALID]})
        );
        let params = |text: &str| error(&format!("subset__params={text}"))["params"][0].clone();
        assert_eq!(params("{"), "params must be valid JSON");
        assert_eq!(params("[]"), "params must be a JSON object");
        assert_eq!(params("{\"1\":[]}"), INVALID);
        assert_eq!(
            params("{\"a\":1}"),
            "Parameters can only use numbers as keys"
        );
        assert_eq!(
            params("{\"2\":1}"),
            "Parameters must be numbered sequentially, starting from 1"
        );
    }
}
