//! Offsets (docs/protocol.md, "Offsets"): what a client has, as one ordered value.
//!
//! `<p>_0` means that all of position p was delivered, `<p>_<n>` that the operations of p up to the n-th were, which
//! only a chunk that ends inside a transaction says. Position 0 is the snapshot: `0_0` and `0_inf` come after it, every
//! other `0_<c>` is inside it, behind the row whose key `c` encodes.

use std::fmt;

/// A place in a log: everything up to and including it was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    position: i64,
    n: i64,
}

/// `n` of a place that has all of its position; the greatest, so that the derived order is the log's.
const WHOLE: i64 = i64::MAX;

impl Place {
    /// All of `position`.
    pub const fn after(position: i64) -> Self {
        Place { position, n: WHOLE }
    }

    /// The operations of `position` up to the `n`-th; with `n` = 0 all of them, as on the wire.
    pub const fn new(position: i64, n: i64) -> Self {
        Place {
            position,
            n: if n == 0 { WHOLE } else { n },
        }
    }

    /// The position.
    pub const fn position(self) -> i64 {
        self.position
    }

    /// The number of the last operation, 0 when the position is whole: as on the wire and in SQL.
    pub const fn n(self) -> i64 {
        if self.n == WHOLE { 0 } else { self.n }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = itoa::Buffer::new();
        f.write_str(digits.format(self.position))?;
        f.write_str("_")?;
        f.write_str(digits.format(self.n()))
    }
}

/// The `offset` parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Offset {
    /// `-1`: before everything.
    Start,
    /// `now`: skip what is there.
    Now,
    /// `0_<c>`: inside the snapshot, behind the key that `c` encodes.
    Snapshot(String),
    /// `0_0`: the snapshot is done.
    SnapshotEnd,
    /// `0_inf`: the same, spelled by other servers.
    SnapshotInf,
    /// A place in the log.
    Log(Place),
}

impl Offset {
    /// Reads the parameter; `None` when it is malformed. Numbers too large for a position saturate: they are above
    /// every position, which the database then says.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "-1" | "-1_0" => return Some(Offset::Start),
            "now" => return Some(Offset::Now),
            _ => {}
        }
        let (position, n) = text.split_once('_')?;
        let position = digits(position)?;
        if n == "inf" {
            return Some(match position {
                "" => Offset::SnapshotInf,
                _ => Offset::Log(Place::after(saturating(position))),
            });
        }
        let n = digits(n)?;
        Some(match (position, n) {
            ("", "") => Offset::SnapshotEnd,
            ("", cursor) => Offset::Snapshot(cursor.to_owned()),
            (position, n) => Offset::Log(Place::new(saturating(position), saturating(n))),
        })
    }

    /// Where the log is read from, for a handle whose snapshot is at `pin`; `None` for offsets before the log.
    pub fn place(&self, pin: i64) -> Option<Place> {
        match self {
            Offset::SnapshotEnd | Offset::SnapshotInf => Some(Place::after(pin)),
            Offset::Log(place) => Some(*place),
            Offset::Start | Offset::Now | Offset::Snapshot(_) => None,
        }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Offset::Start => f.write_str("-1"),
            Offset::Now => f.write_str("now"),
            Offset::Snapshot(cursor) => write!(f, "0_{cursor}"),
            Offset::SnapshotEnd => f.write_str("0_0"),
            Offset::SnapshotInf => f.write_str("0_inf"),
            Offset::Log(place) => place.fmt(f),
        }
    }
}

/// The significant digits of a decimal number ("" is zero); `None` if it is not one.
fn digits(text: &str) -> Option<&str> {
    let decimal = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    decimal.then(|| text.trim_start_matches('0'))
}

fn saturating(digits: &str) -> i64 {
    if digits.is_empty() {
        0
    } else {
        digits.parse().unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_forms_of_the_protocol() {
        for (text, canonical) in [
            ("-1", "-1"),
            ("-1_0", "-1"),
            ("now", "now"),
            ("0_0", "0_0"),
            ("00_00", "0_0"),
            ("0_inf", "0_inf"),
            ("0_02", "0_2"),
            (
                "0_123456789012345678901234567890",
                "0_123456789012345678901234567890",
            ),
            ("26800584_0", "26800584_0"),
            ("26800584_17", "26800584_17"),
            ("26800584_inf", "26800584_0"),
        ] {
            assert_eq!(
                Offset::parse(text).map(|o| o.to_string()).as_deref(),
                Some(canonical),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "10",
            "1_2_3",
            "10_32.1",
            "-1_1",
            "-2_0",
            "1_-2",
            " 1_2",
            "1 _2",
            "1_2 ",
            "inf_0",
            "1_",
            "_1",
            "a_b",
            "+1_0",
            "NOW",
            "\u{661}_0",
        ] {
            assert_eq!(Offset::parse(text), None, "{text}");
        }
    }

    #[test]
    fn whole_positions_come_after_their_parts() {
        assert!(Place::new(5, 1) < Place::new(5, 2));
        assert!(Place::new(5, 9) < Place::after(5));
        assert!(Place::after(5) < Place::new(6, 1));
        assert_eq!(Place::new(5, 0), Place::after(5));
    }

    #[test]
    fn numbers_above_every_position_saturate() {
        let offset = Offset::parse("99999999999999999999_99999999999999999999").unwrap();
        assert_eq!(offset.place(7), Some(Place::after(i64::MAX)));
        assert_eq!(Offset::SnapshotEnd.place(7), Some(Place::after(7)));
        assert_eq!(Offset::Start.place(7), None);
    }
}
