//! A value of a set: the texts of its columns, in one piece of memory. Pure.

/// What stands in the place of the length of NULL.
const NULL: u32 = u32::MAX;

/// The columns' texts, each behind its length. Their order depends on nothing else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Box<[u8]>);

impl Value {
    /// Of these columns; None is NULL.
    pub fn of<'a>(columns: impl IntoIterator<Item = Option<&'a [u8]>>) -> Value {
        let mut bytes = Vec::new();
        for column in columns {
            let length = column.map_or(NULL, |text| text.len() as u32);
            bytes.extend(length.to_ne_bytes());
            bytes.extend(column.unwrap_or_default());
        }
        Value(bytes.into())
    }

    /// The text of a column, from 0; None is NULL.
    pub fn column(&self, number: usize) -> Option<&[u8]> {
        let mut rest = &self.0[..];
        for _ in 0..number {
            rest = Value::split(rest).1;
        }
        Value::split(rest).0
    }

    fn split(bytes: &[u8]) -> (Option<&[u8]>, &[u8]) {
        let (length, rest) = bytes.split_first_chunk().expect("a column of the value");
        match u32::from_ne_bytes(*length) {
            NULL => (None, rest),
            length => {
                let (text, rest) = rest.split_at(length as usize);
                (Some(text), rest)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Value;

    #[test]
    fn columns_are_what_was_put_in() {
        let columns = [Some(&b"ab"[..]), None, Some(b""), Some(b"c")];
        let value = Value::of(columns);
        assert_eq!([0, 1, 2, 3].map(|number| value.column(number)), columns);
        assert_ne!(
            value,
            Value::of([Some(&b"ab"[..]), Some(b""), None, Some(b"c")])
        );
    }
}
