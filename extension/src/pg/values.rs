//! Copies of values in memory of our own: constants and keys that outlive the query that they came from.

use pgrx::pg_sys::{self, Datum, Oid};

/// A value and how its type is stored.
#[derive(Clone, Copy, Debug)]
pub struct Typed {
    /// The value; not null.
    pub value: Datum,
    /// Its type.
    pub type_oid: Oid,
    length: i16,
    byval: bool,
}

impl Typed {
    /// A value that is not null.
    ///
    /// # Safety
    /// `value` is of a type with this length and way of passing.
    pub(super) unsafe fn new(value: Datum, type_oid: Oid, length: i16, byval: bool) -> Typed {
        Typed {
            value,
            type_oid,
            length,
            byval,
        }
    }

    /// The value of a constant that is not null.
    ///
    /// # Safety
    /// It lives as long as the value is used.
    pub(super) unsafe fn of_const(constant: *const pg_sys::Const) -> Typed {
        // SAFETY: as the caller says.
        unsafe {
            let (length, byval) = ((*constant).constlen as i16, (*constant).constbyval);
            Typed::new((*constant).constvalue, (*constant).consttype, length, byval)
        }
    }

    /// The elements of an array that are not null. What is unpacked for it goes with the current memory context.
    pub fn elements(&self) -> Vec<Typed> {
        // SAFETY: get_element_type() says whether it is an array; its elements are of that type.
        unsafe {
            let element = pg_sys::get_element_type(self.type_oid);
            if element == pg_sys::InvalidOid {
                return Vec::new();
            }
            let (mut length, mut byval, mut align) = (0, false, 0);
            pg_sys::get_typlenbyvalalign(element, &mut length, &mut byval, &mut align);
            let array = pg_sys::pg_detoast_datum(self.value.cast_mut_ptr());
            let (mut values, mut nulls) = (std::ptr::null_mut(), std::ptr::null_mut());
            let mut count = 0;
            let width = length.into();
            pg_sys::deconstruct_array(
                array.cast(),
                element,
                width,
                byval,
                align,
                &mut values,
                &mut nulls,
                &mut count,
            );
            let places = 0..usize::try_from(count).unwrap_or(0);
            places
                .filter(|place| !*nulls.add(*place))
                .map(|place| Typed::new(*values.add(place), element, length, byval))
                .collect()
        }
    }

    /// Its text.
    pub fn text(&self) -> String {
        let (mut function, mut is_varlena) = (Oid::INVALID, false);
        // SAFETY: the output function of the value's type; it returns a C string.
        unsafe {
            pg_sys::getTypeOutputInfo(self.type_oid, &mut function, &mut is_varlena);
            let text = pg_sys::OidOutputFunctionCall(function, self.value);
            std::ffi::CStr::from_ptr(text)
                .to_string_lossy()
                .into_owned()
        }
    }

    /// Is it an array?
    pub fn is_array(&self) -> bool {
        // SAFETY: reads the catalog cache.
        unsafe { pg_sys::get_element_type(self.type_oid) != pg_sys::InvalidOid }
    }

    /// A value of an integer type in 64 bits, whatever its width.
    pub fn widened(&self) -> Typed {
        Typed {
            value: Datum::from(integer(self.value, self.length)),
            type_oid: pg_sys::INT8OID,
            length: 8,
            byval: true,
        }
    }

    /// Bytes that it takes where it is not passed by value.
    fn bytes(&self) -> &[u8] {
        if self.byval {
            return &[];
        }
        // SAFETY: a by-reference value of this length points to that many bytes.
        unsafe {
            let length = match self.length {
                -1 => pgrx::varsize_any(self.value.cast_mut_ptr::<pg_sys::varlena>()),
                -2 => std::ffi::CStr::from_ptr(self.value.cast_mut_ptr()).count_bytes() + 1,
                length => length as usize,
            };
            std::slice::from_raw_parts(self.value.cast_mut_ptr::<u8>(), length)
        }
    }
}

/// The texts of an array of jsonb.
pub fn texts_of_jsonb(array: pgrx::AnyArray) -> Vec<String> {
    // SAFETY: the caller's SQL signature says that it is an array of jsonb; each element is one, not null.
    unsafe {
        let array = Typed::new(array.datum(), pg_sys::JSONBARRAYOID, -1, false);
        let text = |element: Typed| {
            let jsonb = pg_sys::pg_detoast_datum(element.value.cast_mut_ptr());
            let size = pgrx::varsize_any(jsonb) as i32;
            let container = &raw mut (*jsonb.cast::<pg_sys::Jsonb>()).root;
            let text = pg_sys::JsonbToCString(std::ptr::null_mut(), container, size);
            let copy = std::ffi::CStr::from_ptr(text)
                .to_string_lossy()
                .into_owned();
            pg_sys::pfree(text.cast());
            copy
        };
        array.elements().into_iter().map(text).collect()
    }
}

/// A value of an integer type of this many bytes, whatever its upper bits are.
pub fn integer(value: Datum, length: i16) -> i64 {
    match length {
        2 => i64::from(value.value() as i16),
        4 => i64::from(value.value() as i32),
        _ => value.value() as i64,
    }
}

/// Some values, in one piece of memory.
#[derive(Debug)]
pub struct Values {
    /// The values, then what those that are not passed by value point to.
    words: Box<[u64]>,
    count: u32,
}

impl Values {
    /// Copies values.
    pub fn copy(values: &[Typed]) -> Values {
        let size: usize = values
            .iter()
            .map(|value| value.bytes().len().div_ceil(8))
            .sum();
        let mut words = vec![0u64; values.len() + size].into_boxed_slice();
        let mut at = values.len();
        for (place, value) in values.iter().enumerate() {
            if value.byval {
                words[place] = value.value.value() as u64;
                continue;
            }
            let bytes = value.bytes();
            // SAFETY: the words from `at` on are enough for the bytes, as was added up above.
            unsafe {
                let to = words.as_mut_ptr().add(at).cast::<u8>();
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
                words[place] = to as u64;
            }
            at += bytes.len().div_ceil(8);
        }
        Values {
            words,
            count: values.len() as u32,
        }
    }

    /// The values. Those that are pointers are valid while this lives.
    pub fn iter(&self) -> impl Iterator<Item = Datum> + '_ {
        let values = &self.words[..self.count as usize];
        values.iter().map(|word| Datum::from(*word))
    }

    /// Are they these, bit for bit?
    pub fn are(&self, others: &[Typed]) -> bool {
        let same = |(mine, other): (Datum, &Typed)| {
            if other.byval {
                return mine.value() == other.value.value();
            }
            let mine = Typed {
                value: mine,
                ..*other
            };
            mine.bytes() == other.bytes()
        };
        self.count as usize == others.len() && self.iter().zip(others).all(same)
    }
}
