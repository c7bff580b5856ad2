//! Comparing columns with constants by the operator's own hash and equality functions.

use pgrx::pg_sys::{self, Datum, FmgrInfo, Oid};

use super::super::memory::Context;
use super::super::values::{Typed, integer};
use super::access::{By, Comparison};

/// A comparison, ready to be made.
pub struct Key {
    /// Which.
    pub comparison: Comparison,
    functions: Option<Functions>,
}

struct Functions {
    hash_column: Box<FmgrInfo>,
    hash_constant: Box<FmgrInfo>,
    equal: Box<FmgrInfo>,
    collation: Oid,
    constant_first: bool,
}

impl Key {
    /// Looks the functions up; their own memory comes from `context`, which must outlive the key.
    pub fn new(comparison: Comparison, context: &Context) -> Key {
        let functions = match comparison.by {
            By::Integer(_) => None,
            By::Operator {
                operator,
                collation,
                constant_first,
            } => Some(functions(operator, collation, constant_first, context)),
            By::Order(..) | By::Prefix { .. } => unreachable!("ranges have ends"),
        };
        Key {
            comparison,
            functions,
        }
    }

    /// Are values equal exactly if their hashes are?
    pub fn is_integer(&self) -> bool {
        self.functions.is_none()
    }

    /// A constant as an index keeps it: integers in 64 bits, whatever their width.
    pub fn normal(&self, constant: Typed) -> Typed {
        if self.is_integer() {
            constant.widened()
        } else {
            constant
        }
    }

    /// The hash of a constant that is [`Key::normal`].
    pub fn hash_constant(&mut self, constant: Datum) -> u64 {
        match &mut self.functions {
            None => constant.value() as u64,
            Some(functions) => hash(&mut functions.hash_constant, functions.collation, constant),
        }
    }

    /// The hash of a column's value; equal to that of a constant that it is equal to.
    pub fn hash_column(&mut self, value: Datum) -> u64 {
        match (&mut self.functions, self.comparison.by) {
            (Some(functions), _) => hash(&mut functions.hash_column, functions.collation, value),
            (None, By::Integer(length)) => integer(value, length) as u64,
            (None, _) => unreachable!("an operator has functions"),
        }
    }

    /// Is the column's value equal to a constant that is [`Key::normal`]?
    pub fn is(&mut self, value: Datum, constant: Datum) -> bool {
        let functions = match (&mut self.functions, self.comparison.by) {
            (None, By::Integer(length)) => {
                return integer(value, length) == constant.value() as i64;
            }
            (None, _) => unreachable!("an operator has functions"),
            (Some(functions), _) => functions,
        };
        let (left, right) = if functions.constant_first {
            (constant, value)
        } else {
            (value, constant)
        };
        // SAFETY: the operator's function gets values of its types, and returns a bool.
        unsafe {
            let equal = &raw mut *functions.equal;
            pg_sys::FunctionCall2Coll(equal, functions.collation, left, right).value() != 0
        }
    }
}

fn hash(function: &mut FmgrInfo, collation: Oid, value: Datum) -> u64 {
    // SAFETY: a hash function of the value's type, which returns an int4.
    let hash = unsafe { pg_sys::FunctionCall1Coll(function, collation, value) };
    u64::from(hash.value() as u32)
}

fn functions(operator: u32, collation: u32, constant_first: bool, context: &Context) -> Functions {
    let operator = Oid::from_u32(operator);
    let look_up = |function: Oid| {
        let mut info = Box::<FmgrInfo>::default();
        // SAFETY: the function exists; the context outlives the info, as the caller says.
        unsafe { pg_sys::fmgr_info_cxt(function, &mut *info, context.raw()) };
        info
    };
    let (mut left, mut right) = (Oid::INVALID, Oid::INVALID);
    // SAFETY: these read the catalog cache. fmgr_info_cxt() raises for a function that is not there.
    let equal = unsafe {
        pg_sys::get_op_hash_functions(operator, &mut left, &mut right);
        pg_sys::get_opcode(operator)
    };
    let (column, constant) = if constant_first {
        (right, left)
    } else {
        (left, right)
    };
    Functions {
        hash_column: look_up(column),
        hash_constant: look_up(constant),
        equal: look_up(equal),
        collation: Oid::from_u32(collation),
        constant_first,
    }
}
