//! The query string as parameters: scalars, lists (`columns[]=a`) and maps (`params[1]=x`).

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// A value that is not text: bytes that are not UTF-8, or with a NUL, which no Postgres text can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotText;

/// A value as it was given.
pub type Value<'a> = Result<Cow<'a, str>, NotText>;

/// Parameters in the order of the query string. Of a scalar given twice the last one counts.
#[derive(Debug, Default)]
pub struct Query<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

impl<'a> Query<'a> {
    /// Reads a query string; nothing in one is an error by itself.
    pub fn parse(text: &'a str) -> Self {
        Query(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .map(pair)
                .collect(),
        )
    }

    /// The scalar `name`.
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }

    /// The scalar `name` if it has a value that is not empty.
    pub fn given(&self, name: &str) -> Option<&Value<'a>> {
        self.get(name)
            .filter(|value| !matches!(value, Ok(text) if text.is_empty()))
    }

    /// The scalar `name` if it is text; for parameters whose malformed values mean nothing.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.given(name).and_then(|value| value.as_deref().ok())
    }

    /// Entries `name[key]`, with what stands between the brackets, nested ones included.
    pub fn entries<'q>(&'q self, name: &'q str) -> impl Iterator<Item = (&'q str, &'q Value<'a>)> {
        self.0.iter().filter_map(move |(key, value)| {
            let inner = key
                .strip_prefix(name)?
                .strip_prefix('[')?
                .strip_suffix(']')?;
            Some((inner, value))
        })
    }

    /// Adds a parameter.
    pub fn add(&mut self, name: String, value: String) {
        let value = if value.contains('\0') {
            Err(NotText)
        } else {
            Ok(value.into())
        };
        self.0.push((name.into(), value));
    }

    /// Removes a parameter, with its entries.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| {
            let rest = key.strip_prefix(name);
            rest.is_none_or(|rest| !rest.is_empty() && !rest.starts_with('['))
        });
    }

    /// Names of all parameters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| &**key)
    }
}

fn pair(text: &str) -> (Cow<'_, str>, Value<'_>) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    // A key that is not text names nothing that is known.
    (decode(key).unwrap_or_default(), decode(value))
}

/// Nothing is copied of what stands there as it is meant.
fn decode(text: &str) -> Value<'_> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+' | 0)) {
        return Ok(text.into());
    }
    let decoded = if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8();
        decoded.map(|text| text.into_owned().into())
    } else {
        percent_decode_str(text).decode_utf8()
    };
    match decoded {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(NotText),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_and_takes_the_last() {
        let query = Query::parse("a=1&a=2&b=x+y%2Bz&live&&c=%zz%4");
        assert_eq!(query.text("a"), Some("2"));
        assert_eq!(query.text("b"), Some("x y+z"));
        assert_eq!(query.get("live"), Some(&Ok("".into())));
        assert_eq!(query.given("live"), None);
        assert_eq!(query.text("c"), Some("%zz%4"));
    }

    #[test]
    fn nested_names() {
        let query = Query::parse("params%5B1%5D=a&params[2][x]=b&columns[]=c&params=d");
        let entries: Vec<_> = query.entries("params").map(|(key, _)| key).collect();
        assert_eq!(entries, ["1", "2][x"]);
        assert_eq!(query.entries("columns").next(), Some(("", &Ok("c".into()))));
    }

    #[test]
    fn bytes_that_are_not_text() {
        let query = Query::parse("a=%ff&b=%00&%ff=1");
        assert_eq!(query.given("a"), Some(&Err(NotText)));
        assert_eq!(query.given("b"), Some(&Err(NotText)));
        assert_eq!(query.text("a"), None);
    }
}
