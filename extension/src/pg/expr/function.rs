//! What the catalogs say about a function, and whether a where clause may call it.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::{self, Oid};

use crate::pg::query::{Cursor, Goal};
use crate::pg::role::setting;

/// Functions of pg_catalog that are STABLE but, under the settings that [`crate::pg::role::AsRole`] pins, depend on
/// nothing but their arguments. All overloads of a name are meant. Not here, and why:
/// input functions of date, time and timestamp types (they read "now" and "today"; see `check::names_the_clock`), `age` of
/// one argument and `timezone(text, timetz)` (the clock), everything about text search configurations, `enum_range`,
/// `regclass` and its like, `record_in` and `domain_in` (the catalogs).
#[rustfmt::skip]
const FIXED_BY_SETTINGS: &[&str] = &[
    // DateStyle, TimeZone, IntervalStyle: values written, and intervals read
    "date_out", "timestamp_out", "timestamptz_out", "interval_in", "interval_out",
    // lc_monetary
    "cash_in", "cash_out", "money", "numeric",
    // input and output functions that call those of another type; enum labels
    "array_in", "array_out", "anyarray_out", "range_in", "range_out", "multirange_in", "multirange_out", "record_out",
    "enum_in", "enum_out", "json_in", "jsonb_in",
    // functions that write values of any type
    "concat", "concat_ws", "format", "array_to_string", "array_to_json", "row_to_json", "to_json", "to_jsonb",
    "json_build_array", "json_build_object", "jsonb_build_array", "jsonb_build_object",
    // TimeZone: between dates and times with and without one
    "date", "time", "timestamp", "timestamptz", "timetz", "date_part", "date_trunc", "extract", "make_timestamptz",
    "timestamptz_pl_interval", "timestamptz_mi_interval",
    "date_eq_timestamptz", "date_ne_timestamptz", "date_lt_timestamptz", "date_le_timestamptz", "date_gt_timestamptz",
    "date_ge_timestamptz", "date_cmp_timestamptz",
    "timestamptz_eq_date", "timestamptz_ne_date", "timestamptz_lt_date", "timestamptz_le_date", "timestamptz_gt_date",
    "timestamptz_ge_date", "timestamptz_cmp_date",
    "timestamp_eq_timestamptz", "timestamp_ne_timestamptz", "timestamp_lt_timestamptz", "timestamp_le_timestamptz",
    "timestamp_gt_timestamptz", "timestamp_ge_timestamptz", "timestamp_cmp_timestamptz",
    "timestamptz_eq_timestamp", "timestamptz_ne_timestamp", "timestamptz_lt_timestamp", "timestamptz_le_timestamp",
    "timestamptz_gt_timestamp", "timestamptz_ge_timestamp", "timestamptz_cmp_timestamp",
    "jsonb_path_exists_tz", "jsonb_path_match_tz", "jsonb_path_query_array_tz", "jsonb_path_query_first_tz",
    // lc_numeric, lc_time, TimeZone: by a format that the caller gives
    "to_char", "to_number", "to_date", "to_timestamp",
    // encoding conversions, which are catalog entries
    "convert", "convert_from", "convert_to", "length",
];

/// pg_language.oid of functions written in SQL, which the planner may inline.
const SQL_LANGUAGE: Oid = Oid::from_u32(14);

/// current_user(), session_user(), current_setting().
const SESSION_VALUES: [u32; 4] = [
    pg_sys::F_CURRENT_USER,
    pg_sys::F_SESSION_USER,
    pg_sys::F_CURRENT_SETTING_TEXT,
    pg_sys::F_CURRENT_SETTING_TEXT_BOOL,
];

/// A row of pg_proc.
pub struct Function {
    oid: Oid,
    name: String,
    schema: Oid,
    language: Oid,
    /// `provolatile`.
    pub volatility: u8,
}

/// Does this function ask the session for its user or one of its settings?
pub fn is_session_function(function: Oid) -> bool {
    SESSION_VALUES.contains(&function.to_u32())
}

impl Function {
    /// Looks a function up.
    pub fn look_up(oid: Oid) -> Function {
        // SAFETY: a pg_proc tuple of the catalog cache, copied from before it is released. A function that is gone
        // counts as a volatile one of no schema.
        unsafe {
            let tuple =
                pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::PROCOID as c_int, oid.into());
            if tuple.is_null() {
                let none = pg_sys::InvalidOid;
                return Function {
                    oid,
                    name: String::new(),
                    schema: none,
                    language: none,
                    volatility: b'v',
                };
            }
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>();
            let name = CStr::from_ptr((*form).proname.data.as_ptr())
                .to_string_lossy()
                .into_owned();
            let (schema, language) = ((*form).pronamespace, (*form).prolang);
            let function = Function {
                oid,
                name,
                schema,
                language,
                volatility: (*form).provolatile as u8,
            };
            pg_sys::ReleaseSysCache(tuple);
            function
        }
    }

    /// Of pg_catalog, of an installed extension, named by the DBA, or called by a policy of row-level security: then who
    /// owns the table has it run for all who read.
    pub fn is_trusted(&self) -> bool {
        self.is_builtin() || self.is_of_extension() || self.is_allowed() || self.is_of_policy()
    }

    fn is_builtin(&self) -> bool {
        self.schema.to_u32() == pg_sys::PG_CATALOG_NAMESPACE
    }

    fn is_of_extension(&self) -> bool {
        // SAFETY: reads pg_depend; InvalidOid for a function that is no extension's.
        unsafe {
            pg_sys::getExtensionOfObject(pg_sys::ProcedureRelationId, self.oid)
                != pg_sys::InvalidOid
        }
    }

    fn is_of_policy(&self) -> bool {
        let sql = format!(
            "select from pg_catalog.pg_depend where refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass \
             and refobjid = {} and classid = 'pg_catalog.pg_policy'::pg_catalog.regclass",
            self.oid.to_u32()
        );
        let cursor = Cursor::open(&sql, Goal::FirstRows);
        let found = cursor.fetch(1, &mut |_| {});
        cursor.close();
        found > 0
    }

    /// `shapefeed.allowed_functions`: a list of `schema.name`, separated by commas.
    fn is_allowed(&self) -> bool {
        // SAFETY: null for a schema that is gone, else a string that is copied.
        let schema = unsafe {
            let name = pg_sys::get_namespace_name(self.schema);
            if name.is_null() {
                return false;
            }
            CStr::from_ptr(name).to_string_lossy().into_owned()
        };
        let qualified = format!("{schema}.{}", self.name);
        let allowed = setting(c"shapefeed.allowed_functions").unwrap_or_default();
        allowed.split(',').any(|entry| entry.trim() == qualified)
    }

    /// STABLE, but only because of settings that are pinned?
    pub fn is_fixed_by_settings(&self) -> bool {
        self.is_builtin() && FIXED_BY_SETTINGS.contains(&self.name.as_str())
    }

    /// Can folding make something better of a STABLE call?
    pub fn may_be_folded(&self) -> bool {
        self.language == SQL_LANGUAGE || is_session_function(self.oid)
    }

    /// Name and argument types, as people write them.
    pub fn signature(&self) -> String {
        // SAFETY: format_procedure() gives the oid in digits for a function that is gone.
        unsafe {
            CStr::from_ptr(pg_sys::format_procedure(self.oid))
                .to_string_lossy()
                .into_owned()
        }
    }
}
