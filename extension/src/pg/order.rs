//! The order of keys, as `order by` has it: the types' default btree order under the columns' collations.

use std::cmp::Ordering;
use std::ffi::CString;

use pgrx::pg_sys::{self, Datum, FmgrInfo, Oid};

use super::memory::Context;
use super::relation::Relation;
use crate::error::{Error, Result};

struct Part {
    compare: Box<FmgrInfo>,
    collation: Oid,
    type_oid: Oid,
}

/// Compares the keys of a table.
pub struct KeyOrder {
    parts: Vec<Part>,
    context: Context,
}

impl KeyOrder {
    /// The order of these columns of a table, counted from 0.
    pub fn new(table: &Relation, columns: &[usize]) -> Result<KeyOrder> {
        let context = Context::new();
        let parts = columns
            .iter()
            .map(|column| part(table, *column, &context))
            .collect::<Result<_>>()?;
        Ok(KeyOrder { parts, context })
    }

    /// Compares two keys, neither of which has a NULL.
    pub fn compare(&mut self, a: &[Datum], b: &[Datum]) -> Ordering {
        for (part, (a, b)) in self.parts.iter_mut().zip(a.iter().zip(b)) {
            // SAFETY: a btree comparison function of the type of both values; it returns an int4.
            let order = unsafe {
                pg_sys::FunctionCall2Coll(&mut *part.compare, part.collation, *a, *b).value() as i32
            };
            if order != 0 {
                return order.cmp(&0);
            }
        }
        Ordering::Equal
    }

    /// Parses the texts of a key. The values live as long as this.
    pub fn parse(&self, texts: &[Vec<u8>]) -> Result<Vec<Datum>> {
        let bad = || {
            Error::Sql(
                pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "invalid cursor".into(),
                "",
            )
        };
        self.parts
            .iter()
            .zip(texts)
            .map(|(part, text)| self.parse_value(part, text).ok_or_else(bad))
            .collect()
    }

    fn parse_value(&self, part: &Part, text: &[u8]) -> Option<Datum> {
        std::str::from_utf8(text).ok()?;
        let text = CString::new(text).ok()?;
        let (mut function, mut parameter) = (Oid::INVALID, Oid::INVALID);
        // SAFETY: the input function of the type gets a C string, and raises an error if it is not one of its values.
        Some(self.context.run(|| unsafe {
            pg_sys::getTypeInputInfo(part.type_oid, &mut function, &mut parameter);
            pg_sys::OidInputFunctionCall(function, text.as_ptr().cast_mut(), parameter, -1)
        }))
    }
}

fn part(table: &Relation, column: usize, context: &Context) -> Result<Part> {
    // SAFETY: the relation is open, and the column is one of its own. A typcache entry lives as long as the backend.
    unsafe {
        let desc = pgrx::PgTupleDesc::from_pg_unchecked((*table.raw()).rd_att);
        let attribute = desc.get(column).expect("the column is one of the table's");
        let type_oid = pg_sys::getBaseType(attribute.atttypid);
        let entry = pg_sys::lookup_type_cache(type_oid, pg_sys::TYPECACHE_CMP_PROC as i32);
        if (*entry).cmp_proc == Oid::INVALID {
            let message = format!("the type of column \"{}\" has no order", attribute.name());
            return Err(Error::Unsupported(
                message,
                "A key needs a default btree operator class.",
            ));
        }
        let mut compare = Box::<FmgrInfo>::default();
        pg_sys::fmgr_info_cxt((*entry).cmp_proc, &mut *compare, context.raw());
        Ok(Part {
            compare,
            collation: attribute.attcollation,
            type_oid,
        })
    }
}
