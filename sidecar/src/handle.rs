//! Handles (docs/protocol.md, "Handles"): `<hash of the definition>-<position of the snapshot>-<n>`.

use std::fmt;
use std::str::FromStr;

/// The name of one incarnation of a shape. `n` exists only to give a client that may not be answered with a handle
/// (it has seen a 409 for it) another name for the same snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// Hash of the definition.
    pub hash: u64,
    /// Position of the snapshot: the pin.
    pub pin: i64,
    /// Counter.
    pub n: u32,
}

impl Handle {
    /// Reads a handle in the very form that is printed; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let (hash, pin, n) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Handle {
            hash: number(hash)?,
            pin: number(pin)?,
            n: number(n)?,
        })
    }

    /// The first handle of a snapshot that is none of those refused: the counter only goes up.
    pub fn unlike(hash: u64, pin: i64, refused: [Option<Handle>; 2]) -> Self {
        let same = refused
            .into_iter()
            .flatten()
            .filter(|it| (it.hash, it.pin) == (hash, pin));
        let n = same.map(|it| it.n.wrapping_add(1)).max().unwrap_or(0);
        Handle { hash, pin, n }
    }
}

/// A number as it is printed: digits alone, without zeros before them.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let printed = text == "0" || text.starts_with(|first: char| matches!(first, '1'..='9'));
    printed.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Printed several times for each answer: not by way of the formatter's own numbers.
        let mut digits = itoa::Buffer::new();
        f.write_str(digits.format(self.hash))?;
        f.write_str("-")?;
        f.write_str(digits.format(self.pin))?;
        f.write_str("-")?;
        f.write_str(digits.format(self.n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_reads() {
        for text in ["0-0-0", "18446744073709551615-9007199254740991-4294967295"] {
            assert_eq!(Handle::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_other_forms() {
        for text in [
            "",
            "1",
            "1-2",
            "1-2-",
            "1-2-3-4",
            "01-2-3",
            "1-+2-3",
            "1--2-3",
            "1-2-4294967296",
            "a-b-c",
            "1-2-3 ",
            "1-2-03",
            "1-2-+3",
            "1-2-3\u{0661}",
        ] {
            assert_eq!(Handle::parse(text), None, "{text}");
        }
    }

    #[test]
    fn another_name_for_a_refused_handle_only() {
        let refused = Handle {
            hash: 1,
            pin: 2,
            n: 3,
        };
        assert_eq!(Handle::unlike(1, 2, [Some(refused), None]).n, 4);
        assert_eq!(
            Handle::unlike(1, 2, [Some(refused), Some(Handle { n: 7, ..refused })]).n,
            8
        );
        assert_eq!(Handle::unlike(1, 9, [Some(refused), None]).n, 0);
        assert_eq!(Handle::unlike(1, 2, [None, None]).n, 0);
        let greatest = Handle {
            n: u32::MAX,
            ..refused
        };
        assert_ne!(Handle::unlike(1, 2, [Some(greatest), None]), greatest);
    }
}
