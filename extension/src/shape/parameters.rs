//! Parameters of named shapes: `:name` in a where clause, each of a type, given by a request or taken from the caller's
//! claims.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A parameter, as it is declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Parameter {
    /// Of this type, given by the request.
    Given(String),
    /// Of this type, and a claim's value: a name, or a path of names with dots.
    Claimed {
        /// The type.
        r#type: String,
        /// The claim.
        claim: String,
    },
}

impl Parameter {
    /// Its type, as it was written.
    pub fn type_name(&self) -> &str {
        match self {
            Parameter::Given(name) | Parameter::Claimed { r#type: name, .. } => name,
        }
    }
}

/// By name.
pub type Parameters = BTreeMap<String, Parameter>;

/// A where clause and the values of `$1`, `$2` and so on in it.
pub type Bound = (String, Vec<Option<String>>);

/// Reads what `create_shape` is given.
pub fn declared(params: Value) -> Result<Parameters, String> {
    let params: Parameters = serde_json::from_value(params).map_err(|_| {
        "params are an object of types by name, {\"type\": …, \"claim\": …} for one that is taken from a claim".to_string()
    })?;
    match params.keys().find(|name| !is_name(name)) {
        Some(name) => Err(format!("\"{name}\" is no name of a parameter")),
        None => Ok(params),
    }
}

/// The clause with a number for each parameter, and the values: of the request or the claims.
pub fn bind(
    clause: &str,
    params: &Parameters,
    given: &Map<String, Value>,
    claims: &Value,
) -> Result<Bound, String> {
    for name in given.keys() {
        match params.get(name) {
            None => return Err(format!("\"{name}\" is not a parameter of the shape")),
            Some(Parameter::Claimed { .. }) => {
                return Err(format!("\"{name}\" is taken from the caller's claims"));
            }
            Some(Parameter::Given(_)) => {}
        }
    }
    let mut values = Vec::new();
    let mut casts = BTreeMap::new();
    for (name, parameter) in params {
        let value = match parameter {
            Parameter::Given(_) => given.get(name),
            Parameter::Claimed { claim, .. } => claim_of(claims, claim),
        };
        let Some(value) = value.and_then(text) else {
            return Err(match parameter {
                Parameter::Given(_) => format!("parameter \"{name}\" was not provided"),
                Parameter::Claimed { .. } => format!("the caller has no claim for \"{name}\""),
            });
        };
        values.push(Some(value));
        casts.insert(
            name,
            format!("(${}::{})", values.len(), parameter.type_name()),
        );
    }
    Ok((
        replace(clause, &|name| casts.get(&name.to_string()).cloned()),
        values,
    ))
}

/// The clause with a NULL of its type for each parameter: what can be checked before there are values.
pub fn without_values(clause: &str, params: &Parameters) -> String {
    replace(clause, &|name| {
        params
            .get(name)
            .map(|it| format!("(null::{})", it.type_name()))
    })
}

fn claim_of<'v>(claims: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.')
        .try_fold(claims, |value, name| value.get(name))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Replaces each `:name` for which there is something else; not in strings, quoted names and comments, and no `::type`.
fn replace(clause: &str, by: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(clause.len());
    let mut rest = clause;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\'' => string_length(rest, out.ends_with(['e', 'E'])),
            '"' => quoted_length(rest, '"'),
            '$' => dollar_length(rest),
            '-' if rest.starts_with("--") => rest.find('\n').map_or(rest.len(), |end| end + 1),
            '/' if rest.starts_with("/*") => comment_length(rest),
            ':' if rest.starts_with("::") => 2,
            ':' => {
                let name = &rest[1..];
                let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let name = &name[..end.unwrap_or(name.len())];
                if let Some(other) = by(name) {
                    out += &other;
                    rest = &rest[1 + name.len()..];
                    continue;
                }
                1
            }
            c => c.len_utf8(),
        };
        out += &rest[..length];
        rest = &rest[length..];
    }
    out
}

/// Bytes up to the closing quote, which a doubled one is not.
fn quoted_length(text: &str, quote: char) -> usize {
    text[1..].find(quote).map_or(text.len(), |end| end + 2)
}

fn string_length(text: &str, with_backslashes: bool) -> usize {
    if !with_backslashes {
        return quoted_length(text, '\'');
    }
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let ends = *c == '\'' && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |(end, _)| end + 1)
}

/// A string between `$tag$`, or a lone `$`.
fn dollar_length(text: &str) -> usize {
    let Some(end) = text[1..].find('$').map(|end| end + 2) else {
        return 1;
    };
    let tag = &text[..end];
    let inner = &tag[1..tag.len() - 1];
    if !inner.is_empty() && !is_name(inner) {
        return 1;
    }
    text[end..]
        .find(tag)
        .map_or(text.len(), |start| end + start + tag.len())
}

fn comment_length(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    let bytes = text.as_bytes();
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn params(value: Value) -> Parameters {
        declared(value).unwrap()
    }

    fn bound(clause: &str, given: Value, claims: Value) -> Result<Bound, String> {
        let params = params(json!({"u": {"type": "int4", "claim": "app.user"}, "word": "text"}));
        bind(clause, &params, given.as_object().unwrap(), &claims)
    }

    #[test]
    fn values_come_from_the_request_or_from_claims() {
        let claims = json!({"app": {"user": 7}, "u": 8});
        let (clause, values) = bound(
            "id = :u and w = :word",
            json!({"word": "x'"}),
            claims.clone(),
        )
        .unwrap();
        assert_eq!(clause, "id = ($1::int4) and w = ($2::text)");
        assert_eq!(values, [Some("7".to_string()), Some("x'".to_string())]);
        for given in [
            json!({"word": "x", "u": "8"}),
            json!({"word": "x", "v": "1"}),
            json!({}),
        ] {
            assert!(
                bound("id = :u", given.clone(), claims.clone()).is_err(),
                "{given}"
            );
        }
        assert!(bound("id = :u", json!({"word": "x"}), json!({"app": {}})).is_err());
    }

    #[test]
    fn only_parameters_are_replaced() {
        let by = |name: &str| (name == "u").then(|| "?".to_string());
        for (clause, replaced) in [
            (":u", "?"),
            ("a::u = :u::text", "a::u = ?::text"),
            (":us :u1 :u", ":us :u1 ?"),
            ("':u' || :u", "':u' || ?"),
            ("'it''s :u' = :u", "'it''s :u' = ?"),
            (r"e'\' :u' = :u", r"e'\' :u' = ?"),
            (r"'\' = :u", r"'\' = ?"),
            ("\":u\" = :u", "\":u\" = ?"),
            ("$$:u$$ = :u", "$$:u$$ = ?"),
            ("$a$ :u $$ $a$ = :u", "$a$ :u $$ $a$ = ?"),
            (
                "x = $1 and y = :u and z = $2",
                "x = $1 and y = ? and z = $2",
            ),
            ("/* :u /* */ :u */ :u", "/* :u /* */ :u */ ?"),
            ("-- :u\n:u", "-- :u\n?"),
            ("ä:u", "ä?"),
            ("':u", "':u"),
        ] {
            assert_eq!(replace(clause, &by), replaced);
        }
    }

    #[test]
    fn declarations() {
        assert!(declared(json!({"a": "int4"})).is_ok());
        for wrong in [
            json!({"a": 1}),
            json!(["a"]),
            json!({"a b": "int4"}),
            json!({"a": {"type": "int4"}}),
        ] {
            assert!(declared(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
