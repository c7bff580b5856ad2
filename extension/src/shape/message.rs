//! Change messages as they go on the wire (docs/protocol.md, messages and keys). Pure.
//!
//! Every text in here is already JSON: a key is the inside of a JSON string, a value is a string with its quotes or
//! `null`. So two keys are equal exactly if their bytes are.

/// What happened to a row, as one shape sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// The row came in.
    Insert,
    /// The row stayed in and a selected column changed.
    Update,
    /// The row went out.
    Delete,
}

impl Operation {
    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
        }
    }
}

/// What the messages of one relation have in common.
#[derive(Clone, Debug)]
pub struct Relation {
    /// Start of each key: `"schema"."table"`, quoted as Postgres quotes, escaped as JSON.
    key_prefix: Vec<u8>,
    /// `["schema","table"]`.
    names: Vec<u8>,
}

impl Relation {
    /// The relation of this name; a partitioned table's changes carry the name of its root.
    pub fn new(schema: &str, table: &str) -> Relation {
        let quoted = format!(
            "\"{}\".\"{}\"",
            schema.replace('"', "\"\""),
            table.replace('"', "\"\"")
        );
        let mut key_prefix = Vec::new();
        escape(quoted.as_bytes(), &mut key_prefix);
        let mut names = b"[".to_vec();
        put_string(schema.as_bytes(), &mut names);
        names.push(b',');
        put_string(table.as_bytes(), &mut names);
        names.push(b']');
        Relation { key_prefix, names }
    }

    /// Begins a key.
    pub fn begin_key(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key_prefix);
    }

    /// What stands between the key and the value of a row of a snapshot, and what ends it.
    pub fn snapshot_tail(&self) -> Vec<u8> {
        [
            b"},\"headers\":{\"operation\":\"insert\",\"relation\":",
            &self.names[..],
            b"}}",
        ]
        .concat()
    }
}

/// One operation before it is known whether it is the last of its transaction for a shape.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// The key, without quotes.
    pub key: &'a [u8],
    /// Members of `value`.
    pub value: &'a [u8],
    /// Members of `old_value`; None leaves it out.
    pub old_value: Option<&'a [u8]>,
    /// What happened.
    pub operation: Operation,
    /// The key that the row went to (delete) or came from (insert).
    pub other_key: Option<&'a [u8]>,
    /// Top-level transaction; its low 32 bits go out.
    pub xid: u64,
    /// Position of the transaction.
    pub position: i64,
    /// Place in the transaction.
    pub op_position: u64,
}

impl Change<'_> {
    /// The message up to where `last` may stand. [`finish`] completes it.
    pub fn begin(&self, relation: &Relation) -> Vec<u8> {
        let mut out = Vec::with_capacity(160 + self.key.len() + self.value.len());
        out.extend_from_slice(b"{\"key\":\"");
        out.extend_from_slice(self.key);
        out.extend_from_slice(b"\",\"value\":{");
        out.extend_from_slice(self.value);
        if let Some(old_value) = self.old_value {
            out.extend_from_slice(b"},\"old_value\":{");
            out.extend_from_slice(old_value);
        }
        out.extend_from_slice(b"},\"headers\":{\"operation\":\"");
        out.extend_from_slice(self.operation.name().as_bytes());
        out.extend_from_slice(b"\",\"relation\":");
        out.extend_from_slice(&relation.names);
        if let Some(other_key) = self.other_key {
            let label = if self.operation == Operation::Delete {
                "to"
            } else {
                "from"
            };
            out.extend_from_slice(format!(",\"key_change_{label}\":\"").as_bytes());
            out.extend_from_slice(other_key);
            out.push(b'"');
        }
        let Change {
            xid,
            position,
            op_position,
            ..
        } = self;
        let numbers = format!(
            ",\"txids\":[{}],\"lsn\":\"{position}\",\"op_position\":{op_position}",
            *xid as u32
        );
        out.extend_from_slice(numbers.as_bytes());
        out
    }
}

/// Ends a message that [`Change::begin`] began.
pub fn finish(begun: &[u8], last: bool) -> Vec<u8> {
    let tail: &[u8] = if last { b",\"last\":true}}" } else { b"}}" };
    [begun, tail].concat()
}

/// Appends `text` as a JSON string.
pub fn put_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    escape(text, out);
    out.push(b'"');
}

/// Appends the inside of a JSON string. Most text needs no escapes and is copied in one piece.
pub fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut copied = 0;
    for (i, byte) in text.iter().enumerate() {
        if PLAIN[*byte as usize] {
            continue;
        }
        out.extend_from_slice(&text[copied..i]);
        copied = i + 1;
        put_escaped(*byte, out);
    }
    out.extend_from_slice(&text[copied..]);
}

/// Appends a value inside a key: as [`escape`] does, with each `/` doubled.
pub fn escape_key(text: &[u8], out: &mut Vec<u8>) {
    for (i, part) in text.split(|byte| *byte == b'/').enumerate() {
        if i > 0 {
            out.extend_from_slice(b"//");
        }
        escape(part, out);
    }
}

/// Bytes that stand for themselves in a JSON string.
static PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut control = 0;
    while control < 0x20 {
        plain[control] = false;
        control += 1;
    }
    plain[b'"' as usize] = false;
    plain[b'\\' as usize] = false;
    plain
};

fn put_escaped(byte: u8, out: &mut Vec<u8>) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => return out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(f: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        f(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn strings_are_json() {
        let odd = "a\"b\\c\nd\re\tf\u{1}g\u{7f}\u{e4}\u{1f600}/";
        let json = text(|out| put_string(odd.as_bytes(), out));
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), odd);
        assert!(json.contains("\\u0001"));
    }

    #[test]
    fn keys_double_slashes_and_quote_names() {
        let relation = Relation::new("My \"S", "t/x.y");
        let key = text(|out| {
            relation.begin_key(out);
            out.extend_from_slice(b"/\\\"");
            escape_key(b"a/b//\"", out);
            out.extend_from_slice(b"\\\"");
        });
        let key: String = serde_json::from_str(&format!("\"{key}\"")).unwrap();
        assert_eq!(key, "\"My \"\"S\".\"t/x.y\"/\"a//b////\"\"");
    }

    #[test]
    fn a_message() {
        let relation = Relation::new("public", "t");
        let change = Change {
            key: br#"\"public\".\"t\"/\"1\""#,
            value: br#""id":"1","n":null"#,
            old_value: Some(br#""n":"7""#),
            operation: Operation::Update,
            other_key: None,
            xid: (1 << 32) + 742,
            position: 1_764_000_000_000_001,
            op_position: 4,
        };
        assert_eq!(
            String::from_utf8(finish(&change.begin(&relation), true)).unwrap(),
            "{\"key\":\"\\\"public\\\".\\\"t\\\"/\\\"1\\\"\",\"value\":{\"id\":\"1\",\"n\":null},\"old_value\":{\"n\":\"7\"},\
             \"headers\":{\"operation\":\"update\",\"relation\":[\"public\",\"t\"],\"txids\":[742],\
             \"lsn\":\"1764000000000001\",\"op_position\":4,\"last\":true}}"
        );
        let moved = Change {
            operation: Operation::Delete,
            other_key: Some(b"k"),
            old_value: None,
            ..change
        };
        let json = String::from_utf8(finish(&moved.begin(&relation), false)).unwrap();
        assert!(json.contains("\"key_change_to\":\"k\"") && !json.contains("last"));
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
    }
}
