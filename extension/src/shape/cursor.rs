//! Where a snapshot chunk ends, as the digits that an offset `0_<c>` carries. Pure.
//!
//! Any sidecar must be able to cut the next chunk, so the cursor is the last key itself: one non-zero byte, then
//! each key value as its length (two bytes) and its text, read as one big integer. Clients compare nothing in it.

/// A chunk does not end at a key whose cursor has more digits than this: URLs have limits.
pub const MAX_DIGITS: usize = 2048;

/// First byte of a cursor: its format, and what keeps leading zeros of the rest.
const FORMAT: u8 = 1;

/// The digits for a key; None when there would be more than [`MAX_DIGITS`].
pub fn encode(key: &[Vec<u8>]) -> Option<String> {
    let mut bytes = vec![FORMAT];
    for value in key {
        bytes.extend_from_slice(&u16::try_from(value.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(value);
    }
    if bytes.len() * 5 / 2 > MAX_DIGITS * 11 / 10 {
        return None; // 2.408 digits a byte: spares the division below
    }
    let digits = to_decimal(&bytes);
    (digits.len() <= MAX_DIGITS).then_some(digits)
}

/// The key of `columns` values that these digits stand for; None when they stand for none.
pub fn decode(digits: &str, columns: usize) -> Option<Vec<Vec<u8>>> {
    if digits.len() > MAX_DIGITS || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let bytes = from_decimal(digits);
    let (format, mut rest) = bytes.split_first()?;
    if *format != FORMAT {
        return None;
    }
    let mut key = Vec::with_capacity(columns);
    while !rest.is_empty() {
        let (length, tail) = rest.split_at_checked(2)?;
        let (value, tail) =
            tail.split_at_checked(u16::from_be_bytes([length[0], length[1]]) as usize)?;
        key.push(value.to_vec());
        rest = tail;
    }
    (key.len() == columns).then_some(key)
}

const GROUP: u64 = 1_000_000_000;

fn to_decimal(bytes: &[u8]) -> String {
    let mut groups: Vec<u64> = Vec::new(); // least significant first
    for byte in bytes {
        let mut carry = u64::from(*byte);
        for group in &mut groups {
            let value = *group * 256 + carry;
            *group = value % GROUP;
            carry = value / GROUP;
        }
        if carry > 0 {
            groups.push(carry);
        }
    }
    let mut digits = groups.pop().unwrap_or(0).to_string();
    for group in groups.iter().rev() {
        digits.push_str(&format!("{group:09}"));
    }
    digits
}

fn from_decimal(digits: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new(); // least significant first
    for digit in digits.bytes() {
        let mut carry = u32::from(digit - b'0');
        for byte in &mut bytes {
            let value = u32::from(*byte) * 10 + carry;
            *byte = value as u8;
            carry = value >> 8;
        }
        if carry > 0 {
            bytes.push(carry as u8);
        }
    }
    bytes.reverse();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&str]) -> Vec<Vec<u8>> {
        values
            .iter()
            .map(|value| value.as_bytes().to_vec())
            .collect()
    }

    #[test]
    fn there_and_back() {
        for values in [
            &["1"][..],
            &["", "a/b", "\u{e4}"],
            &["\0\0", "0"],
            &["123456789012345678901234567890"],
        ] {
            let digits = encode(&key(values)).unwrap();
            assert!(digits.bytes().all(|digit| digit.is_ascii_digit()) && !digits.starts_with('0'));
            assert_eq!(decode(&digits, values.len()), Some(key(values)));
            assert_eq!(decode(&digits, values.len() + 1), None);
        }
    }

    #[test]
    fn long_keys_have_none() {
        assert!(encode(&key(&["x".repeat(800).as_str()])).is_some());
        assert!(encode(&key(&["x".repeat(900).as_str()])).is_none());
        assert!(encode(&key(&["x".repeat(100_000).as_str()])).is_none());
    }

    #[test]
    fn what_is_no_cursor() {
        for digits in ["", "0", "1x", "99999999", "256", &"9".repeat(3000)] {
            assert_eq!(decode(digits, 1), None, "{digits}");
        }
    }
}
