//! Names in parameters: `tbl`, `schema.tbl`, `"Quoted "" name"`, and lists of such.

/// Longest name that Postgres keeps.
const MAX_CHARS: usize = 63;

/// A table by schema and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relation {
    /// Schema; `public` if none was given.
    pub schema: String,
    /// Name.
    pub table: String,
}

/// Reads the `table` parameter.
pub fn relation(text: &str) -> Result<Relation, String> {
    let parts = split(text, '.')
        .into_iter()
        .map(identifier)
        .collect::<Result<Vec<_>, _>>()?;
    match <[String; 2]>::try_from(parts) {
        Ok([schema, table]) => Ok(Relation { schema, table }),
        Err(mut parts) if parts.len() == 1 => Ok(Relation {
            schema: "public".into(),
            table: parts.remove(0),
        }),
        Err(_) => Err(format!(
            "Invalid relation identifier, too many delimiters: {text}"
        )),
    }
}

/// Reads a comma-separated list of tables.
pub fn relations(text: &str) -> Result<Vec<Relation>, String> {
    split(text, ',')
        .into_iter()
        .map(|part| relation(part.trim()))
        .collect()
}

/// Reads a comma-separated list of column names.
pub fn columns(text: &str) -> Result<Vec<String>, String> {
    split(text, ',')
        .into_iter()
        .map(|part| identifier(part.trim()))
        .collect()
}

/// Reads one name as Postgres does: folded to lower case unless it is quoted.
pub fn identifier(text: &str) -> Result<String, String> {
    let name = match text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    {
        Some(inner) => quoted(inner)?,
        None => unquoted(text)?,
    };
    match name.chars().count() {
        0 => Err("Invalid zero-length delimited identifier".into()),
        1..=MAX_CHARS => Ok(name),
        _ => Err(format!(
            "Identifier is too long (max length is {MAX_CHARS})"
        )),
    }
}

fn quoted(inner: &str) -> Result<String, String> {
    let unescaped = inner.replace("\"\"", "");
    if unescaped.contains('"') {
        return Err(format!("Invalid identifier with unescaped quote: {inner}"));
    }
    if unescaped.contains('\0') {
        return Err(format!(
            "Invalid identifier contains special characters: {inner}"
        ));
    }
    Ok(inner.replace("\"\"", "\""))
}

fn unquoted(text: &str) -> Result<String, String> {
    let start = |c: char| c.is_alphabetic() || c == '_';
    let rest = |c: char| start(c) || c.is_ascii_digit() || c == '$' || is_mark(c);
    let mut chars = text.chars();
    match chars.next() {
        None => Ok(String::new()),
        Some(first) if start(first) && chars.all(rest) => Ok(text.to_ascii_lowercase()),
        Some(_) => Err(format!(
            "Invalid unquoted identifier contains special characters: {text}"
        )),
    }
}

/// The blocks of combining marks that letters are written with.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}')
}

/// Splits at a delimiter that is not inside quotes.
fn split(text: &str, delimiter: char) -> Vec<&str> {
    let mut inside = false;
    text.split(|c: char| {
        inside ^= c == '"';
        c == delimiter && !inside
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(schema: &str, table: &str) -> Result<Relation, String> {
        Ok(Relation {
            schema: schema.into(),
            table: table.into(),
        })
    }

    #[test]
    fn relations() {
        assert_eq!(relation("Items"), named("public", "items"));
        assert_eq!(relation("app.items"), named("app", "items"));
        assert_eq!(
            relation(r#""My Schema"."tbl.x""#),
            named("My Schema", "tbl.x")
        );
        assert_eq!(relation(r#""a""b""#), named("public", "a\"b"));
        assert_eq!(
            relation("große_tabelle$1"),
            named("public", "große_tabelle$1")
        );
    }

    #[test]
    fn errors_in_the_protocols_words() {
        let text = |t: &str| relation(t).unwrap_err();
        assert_eq!(text("foo."), "Invalid zero-length delimited identifier");
        assert_eq!(text(r#""""#), "Invalid zero-length delimited identifier");
        assert_eq!(
            text("a-b"),
            "Invalid unquoted identifier contains special characters: a-b"
        );
        assert_eq!(
            text("1a"),
            "Invalid unquoted identifier contains special characters: 1a"
        );
        assert_eq!(
            text(r#""a"b""#),
            "Invalid identifier with unescaped quote: a\"b"
        );
        assert_eq!(
            text(&"a".repeat(64)),
            "Identifier is too long (max length is 63)"
        );
        assert_eq!(
            text("a.b.c"),
            "Invalid relation identifier, too many delimiters: a.b.c"
        );
        assert!(text("a\0").contains("special characters"));
        assert!(text("\"a\0\"").contains("special characters"));
        assert!(text("\"").contains("special characters"));
    }

    #[test]
    fn lists_of_relations() {
        let list = super::relations(r#"a, "B,c"."d.e""#).unwrap();
        let names: Vec<_> = list.iter().map(|it| (&*it.schema, &*it.table)).collect();
        assert_eq!(names, [("public", "a"), ("B,c", "d.e")]);
        assert!(super::relations("a,").is_err());
    }

    #[test]
    fn column_lists() {
        let list = columns(r#""id","has,comma","has""quote",Plain"#).unwrap();
        assert_eq!(list, ["id", "has,comma", "has\"quote", "plain"]);
        assert!(columns("id,").is_err());
    }
}
