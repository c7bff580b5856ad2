//! Ranges of a column's values, by the btree operator family's own function; or by how the values begin, byte for byte.

use std::cmp::Ordering;

use pgrx::pg_sys::{self, Datum, FmgrInfo, Oid};

use super::super::image::{Row, varlena_bytes};
use super::super::memory::Context;
use super::super::values::{Typed, Values, integer};
use super::access::{By, Comparison, Order};

/// What ranges of one kind have in common.
pub struct Ends {
    column: usize,
    low: Option<End>,
    high: Option<End>,
    compare: Compare,
}

/// One end.
#[derive(Clone, Copy)]
struct End {
    /// Place of the comparison with it.
    place: usize,
    /// It is in the range.
    inclusive: bool,
}

enum Compare {
    /// Integers of this many bytes. Ends are kept in 64 bits and are in the range.
    Integer(i16),
    Family(Family),
    /// The low end is what values begin with.
    Prefix {
        is_pattern: bool,
    },
}

struct Family {
    with_column: Box<FmgrInfo>,
    with_constant: Box<FmgrInfo>,
    collation: Oid,
}

/// A range. Its ends are as in [`Ends`].
pub struct Range {
    low: Datum,
    high: Datum,
    /// What they point to.
    _values: Option<Values>,
}

impl Ends {
    /// Of ranges by these comparisons; None if they are no such. Memory of the family's functions comes from `context`, which must
    /// outlive this.
    pub fn new(comparisons: &[Comparison], context: &Context) -> Option<Ends> {
        let first = comparisons.first()?;
        let compare = match first.by {
            By::Integer(_) | By::Operator { .. } => return None,
            By::Prefix { is_pattern } => Compare::Prefix { is_pattern },
            By::Order(Order::Integer(length), _) => Compare::Integer(length),
            By::Order(
                Order::Family {
                    family,
                    column,
                    constant,
                    collation,
                },
                _,
            ) => Compare::Family(Family {
                with_column: function(family, column, constant, context),
                with_constant: function(family, constant, constant, context),
                collation: Oid::from_u32(collation),
            }),
        };
        let mut ends = Ends {
            column: first.column,
            low: None,
            high: None,
            compare,
        };
        for (place, comparison) in comparisons.iter().enumerate() {
            if let By::Order(_, strategy) = comparison.by {
                let end = Some(End {
                    place,
                    inclusive: strategy.is_inclusive(),
                });
                ends.low = if strategy.is_low() { end } else { ends.low };
                ends.high = if strategy.is_high() { end } else { ends.high };
            }
        }
        Some(ends)
    }

    /// It can raise an error, and what its functions allocate must be freed.
    pub fn calls_functions(&self) -> bool {
        !matches!(self.compare, Compare::Integer(_))
    }

    /// The range between the constants of the comparisons; None if there is nothing in it.
    pub fn range(&self, constants: &[Typed]) -> Option<Range> {
        let of = |end: Option<End>| end.map(|end| constants[end.place]);
        let (low, high) = (of(self.low), of(self.high));
        match &self.compare {
            Compare::Integer(_) => {
                let end =
                    |typed: Option<Typed>| typed.map(|typed| typed.widened().value.value() as i64);
                let step = |end: Option<End>| i64::from(end.is_some_and(|end| !end.inclusive));
                let low = end(low).unwrap_or(i64::MIN).checked_add(step(self.low))?;
                let high = end(high).unwrap_or(i64::MAX).checked_sub(step(self.high))?;
                Some(Range {
                    low: Datum::from(low),
                    high: Datum::from(high),
                    _values: None,
                })
            }
            Compare::Family(_) => Some(Range::holding([low, high])),
            Compare::Prefix { is_pattern } => {
                let (prefix, _) = prefix_of(constants[0], *is_pattern)?;
                Some(Range::holding([Some(text(&prefix)), None]))
            }
        }
    }

    /// The value of a row that is compared.
    pub fn value(&self, row: &Row) -> Option<Datum> {
        let value = row.get(self.column)?;
        Some(match &self.compare {
            Compare::Integer(length) => Datum::from(integer(value, *length)),
            Compare::Family(_) => value,
            // SAFETY: what is compared like this is stored as a length and bytes.
            Compare::Prefix { .. } => unsafe {
                Datum::from(pg_sys::pg_detoast_datum_packed(value.cast_mut_ptr()))
            },
        })
    }

    /// Compares low ends.
    pub fn lows(&mut self, a: &Range, b: &Range) -> Ordering {
        match &mut self.compare {
            Compare::Integer(_) => ints(a.low, b.low),
            Compare::Family(_) if self.low.is_none() => Ordering::Equal,
            Compare::Family(family) => family.constants(a.low, b.low),
            Compare::Prefix { .. } => bytes(a.low).cmp(bytes(b.low)),
        }
    }

    /// Compares high ends.
    pub fn highs(&mut self, a: &Range, b: &Range) -> Ordering {
        match &mut self.compare {
            Compare::Integer(_) => ints(a.high, b.high),
            Compare::Family(_) if self.high.is_none() => Ordering::Equal,
            Compare::Family(family) => family.constants(a.high, b.high),
            // All that begins with the longer one ends before what begins with the shorter one does.
            Compare::Prefix { .. } => match (bytes(a.low), bytes(b.low)) {
                (a, b) if a.starts_with(b) => b.len().cmp(&a.len()),
                (a, b) if b.starts_with(a) => Ordering::Greater,
                (a, b) => a.cmp(b),
            },
        }
    }

    /// Is a value not below the range?
    pub fn reaches(&mut self, value: Datum, range: &Range) -> bool {
        match (&mut self.compare, self.low) {
            (Compare::Integer(_), _) => ints(value, range.low).is_ge(),
            (Compare::Family(family), Some(end)) => {
                let place = family.column(value, range.low);
                place.is_gt() || (end.inclusive && place.is_eq())
            }
            (Compare::Family(_), None) => true,
            (Compare::Prefix { .. }, _) => bytes(value) >= bytes(range.low),
        }
    }

    /// Is a value not above the range?
    pub fn stays(&mut self, value: Datum, range: &Range) -> bool {
        match (&mut self.compare, self.high) {
            (Compare::Integer(_), _) => ints(value, range.high).is_le(),
            (Compare::Family(family), Some(end)) => {
                let place = family.column(value, range.high);
                place.is_lt() || (end.inclusive && place.is_eq())
            }
            (Compare::Family(_), None) => true,
            (Compare::Prefix { .. }, _) => {
                let (value, prefix) = (bytes(value), bytes(range.low));
                value <= prefix || value.starts_with(prefix)
            }
        }
    }
}

impl Range {
    fn holding(ends: [Option<Typed>; 2]) -> Range {
        let given: Vec<Typed> = ends.iter().flatten().copied().collect();
        let values = Values::copy(&given);
        let mut held = values.iter();
        let mut next = |end: Option<Typed>| end.and_then(|_| held.next());
        let [low, high] = ends.map(|end| next(end).unwrap_or(Datum::null()));
        drop(held);
        Range {
            low,
            high,
            _values: Some(values),
        }
    }
}

impl Family {
    fn column(&mut self, value: Datum, constant: Datum) -> Ordering {
        call(&mut self.with_column, self.collation, value, constant)
    }

    fn constants(&mut self, a: Datum, b: Datum) -> Ordering {
        call(&mut self.with_constant, self.collation, a, b)
    }
}

fn call(function: &mut FmgrInfo, collation: Oid, a: Datum, b: Datum) -> Ordering {
    // SAFETY: the family's function for values of these types, which returns an int4.
    let place = unsafe { pg_sys::FunctionCall2Coll(function, collation, a, b) };
    (place.value() as i32).cmp(&0)
}

fn function(family: u32, left: u32, right: u32, context: &Context) -> Box<FmgrInfo> {
    let [family, left, right] = [family, left, right].map(Oid::from_u32);
    let mut info = Box::<FmgrInfo>::default();
    let function = comparing(family, left, right);
    // SAFETY: fmgr_info_cxt() raises for a function that is not there. The context outlives the info, as the caller says.
    unsafe { pg_sys::fmgr_info_cxt(function, &mut *info, context.raw()) };
    info
}

/// The function with which a btree operator family compares values of two types; invalid if it does not.
pub fn comparing(family: Oid, left: Oid, right: Oid) -> Oid {
    /// BTORDER_PROC of access/nbtree.h.
    const COMPARES: i16 = 1;
    // SAFETY: reads the catalog cache.
    unsafe { pg_sys::get_opfamily_proc(family, left, right, COMPARES) }
}

fn ints(a: Datum, b: Datum) -> Ordering {
    (a.value() as i64).cmp(&(b.value() as i64))
}

fn bytes<'a>(value: Datum) -> &'a [u8] {
    // SAFETY: what is compared like this is stored as a length and bytes, and lives while it is compared.
    unsafe { varlena_bytes(value) }
}

/// A text in the current memory context.
fn text(bytes: &[u8]) -> Typed {
    // SAFETY: the bytes are copied; they need not be whole characters, as they are not read as such.
    unsafe {
        let text = pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32);
        Typed::new(Datum::from(text), pg_sys::TEXTOID, -1, false)
    }
}

/// What all values begin with that a constant lets in, and whether it lets in all that do. None if it cannot be told.
///
/// A prefix is compared byte for byte, as LIKE and starts_with() do under any collation that they take.
pub fn prefix_of(constant: Typed, is_pattern: bool) -> Option<(Vec<u8>, bool)> {
    let bytes = bytes(constant.value);
    if is_pattern {
        prefix_of_pattern(bytes)
    } else {
        Some((bytes.to_vec(), true))
    }
}

fn prefix_of_pattern(pattern: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut prefix = Vec::new();
    let mut rest = pattern.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' if rest.clone().all(|byte| *byte == b'%') => return Some((prefix, true)),
            b'%' | b'_' => break,
            b'\\' => prefix.push(*rest.next()?), // at the end it is an error
            byte => prefix.push(*byte),
        }
    }
    // What follows may be an error, too, which must be raised for the same rows.
    while let Some(byte) = rest.next() {
        if *byte == b'\\' {
            rest.next()?;
        }
    }
    Some((prefix, false))
}

#[cfg(test)]
mod tests {
    use super::prefix_of_pattern;

    #[test]
    fn patterns() {
        let prefix = |pattern: &str| {
            let (prefix, is_exact) = prefix_of_pattern(pattern.as_bytes())?;
            Some((String::from_utf8(prefix).ok()?, is_exact))
        };
        let of = |text: &str, is_exact| Some((text.to_string(), is_exact));
        assert_eq!(prefix("abc%"), of("abc", true));
        assert_eq!(prefix("abc%%"), of("abc", true));
        assert_eq!(prefix("abc%d"), of("abc", false));
        assert_eq!(prefix("abc"), of("abc", false));
        assert_eq!(prefix("a_c%"), of("a", false));
        assert_eq!(prefix(r"50\%\\%"), of(r"50%\", true));
        assert_eq!(prefix("%abc"), of("", false));
        assert_eq!(prefix(""), of("", false));
        assert_eq!(prefix(r"abc\"), None);
        assert_eq!(prefix(r"a_c\"), None);
        assert_eq!(prefix(r"a%\"), None);
        assert_eq!(prefix(r"a%\\"), of("a", false));
    }
}
