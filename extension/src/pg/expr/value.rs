//! A value of a set: the texts of its columns, in one piece of memory. Pure.

/// What stands in the place of the length of NULL.
const NULL: u32 = u32::MAX;

/// The columns' texts, each behind its length. Their order depends on nothing else.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Value([u8]);

impl Value {
    /// Of these columns; None is NULL.
    pub fn of<'a>(columns: impl IntoIterator<Item = Option<&'a [u8]>>) -> Box<Value> {
        let mut bytes = Vec::new();
        for column in columns {
            let length = column.map_or(NULL, |text| text.len() as u32);
            bytes.extend(length.to_ne_bytes());
            bytes.extend(column.unwrap_or_default());
        }
        Value::from_bytes(&bytes).to_owned()
    }

    /// Of bytes that are one's.
    pub fn from_bytes(bytes: &[u8]) -> &Value {
        // SAFETY: a Value is nothing but its bytes.
        unsafe { &*(std::ptr::from_ref(bytes) as *const Value) }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
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

impl ToOwned for Value {
    type Owned = Box<Value>;

    fn to_owned(&self) -> Box<Value> {
        let bytes: Box<[u8]> = self.0.into();
        // SAFETY: a Value is nothing but its bytes.
        unsafe { Box::from_raw(Box::into_raw(bytes) as *mut Value) }
    }
}

impl Clone for Box<Value> {
    fn clone(&self) -> Box<Value> {
        (**self).to_owned()
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
