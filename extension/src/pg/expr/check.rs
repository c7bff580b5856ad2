//! What a where clause may consist of: nothing whose value can change while the row does not, and no code of strangers.

use std::ffi::{CStr, c_int};

use pgrx::{PgRelation, pg_sys};
use pg_sys::{Node, NodeTag, Oid};

use super::{Refused, Source, tree};
use crate::pg::list::cells;
use crate::pg::role::setting;

/// Functions of pg_catalog that are STABLE but, under the settings that [`crate::pg::role::AsRole`] pins, depend on
/// nothing but their arguments. All overloads of a name are meant. Not here, and why:
/// input functions of date, time and timestamp types (they read "now" and "today"; see [`names_the_clock`]), `age` of
/// one argument and `timezone(text, timetz)` (the clock), everything about text search configurations, `enum_range`,
/// `regclass` and its like, `record_in` and `domain_in` (the catalogs).
const FIXED_BY_SETTINGS: &[&str] = &[
    // DateStyle, TimeZone, IntervalStyle: values written, and intervals read
    "date_out", "timestamp_out", "timestamptz_out", "interval_in", "interval_out",
    // lc_monetary
    "cash_in", "cash_out", "money", "numeric",
    // input and output functions that call those of another type; enum labels
    "array_in", "array_out", "anyarray_out", "range_in", "range_out", "multirange_in", "multirange_out", "record_out",
    "enum_in", "enum_out",
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

/// Where a tree comes from.
#[derive(Clone, Copy)]
pub enum Origin<'a> {
    /// From this text: nodes have positions in it. STABLE functions in SQL pass, as folding may inline them.
    Text(&'a Source),
    /// From folding: nodes may stem from the bodies of inlined functions.
    Folded,
}

impl Origin<'_> {
    fn refuse(self, node: *mut Node, message: &str) -> Option<Refused> {
        Some(match self {
            // SAFETY: exprLocation() takes any expression node.
            Origin::Text(source) => source.locate(unsafe { pg_sys::exprLocation(node) }, message),
            Origin::Folded => Refused(message.to_string()),
        })
    }
}

/// Refuses the expression if any part of it may not be in a where clause.
///
/// # Safety
/// `expression` is an analyzed expression.
pub unsafe fn check(expression: *mut Node, origin: Origin<'_>) -> Result<(), Refused> {
    // SAFETY: the nodes that search() comes by are nodes of the expression.
    let refused = unsafe { tree::search(expression, &mut |node| check_node(node, origin)) };
    refused.map_or(Ok(()), Err)
}

unsafe fn check_node(node: *mut Node, origin: Origin<'_>) -> Option<Refused> {
    use NodeTag::*;
    // SAFETY: a node's tag tells its type.
    unsafe {
        match (*node).type_ {
            T_Var => check_column(node, origin),
            T_Const => check_literal(node, origin),
            T_SQLValueFunction if is_session_value(node) => None,
            T_SQLValueFunction => origin.refuse(node, &format!("{} changes with time", value_function(node))),
            T_CoerceToDomain if pg_sys::DomainHasConstraints((*node.cast::<pg_sys::CoerceToDomain>()).resulttype) => {
                origin.refuse(node, "a cast to a domain with constraints is not supported in this context")
            }
            T_CoerceViaIO => check_conversion(node, origin).or_else(|| check_functions(node, origin)),
            T_FuncExpr | T_OpExpr | T_DistinctExpr | T_NullIfExpr | T_ScalarArrayOpExpr | T_RowCompareExpr => {
                check_functions(node, origin)
            }
            T_List | T_BoolExpr | T_RelabelType | T_ArrayCoerceExpr | T_CoerceToDomain | T_CollateExpr | T_CaseExpr
            | T_CaseWhen | T_CaseTestExpr | T_ArrayExpr | T_RowExpr | T_CoalesceExpr | T_MinMaxExpr | T_NullTest
            | T_BooleanTest | T_SubscriptingRef | T_FieldSelect | T_NamedArgExpr => None,
            _ => origin.refuse(node, "this kind of expression is not supported in this context"),
        }
    }
}

unsafe fn check_column(node: *mut Node, origin: Origin<'_>) -> Option<Refused> {
    // SAFETY: called for a T_Var.
    match unsafe { (*node.cast::<pg_sys::Var>()).varattno } {
        0 => origin.refuse(node, "whole-row references are not supported in this context"),
        number if number < 0 => origin.refuse(node, "system columns are not supported in this context"),
        _ => None,
    }
}

/// Refuses `'now'::timestamptz` and the like: the parser has made a constant of it, which says something else each
/// time. Only a plain literal is looked through; a disguised one makes a shape that is correct but never found again.
unsafe fn check_literal(node: *mut Node, origin: Origin<'_>) -> Option<Refused> {
    let Origin::Text(source) = origin else { return None };
    // SAFETY: called for a T_Const.
    let (type_oid, location) = unsafe {
        let constant = node.cast::<pg_sys::Const>();
        ((*constant).consttype, (*constant).location)
    };
    let rest = usize::try_from(location).ok().and_then(|start| source.text.get(start..))?;
    let literal = rest.strip_prefix('\'')?.split('\'').next()?;
    let clock = names_the_clock(type_oid, literal);
    if clock { origin.refuse(node, &format!("\"{literal}\" changes with time")) } else { None }
}

/// Refuses casts that would read such words from a column.
unsafe fn check_conversion(node: *mut Node, origin: Origin<'_>) -> Option<Refused> {
    // SAFETY: called for a T_CoerceViaIO.
    let to = unsafe { (*node.cast::<pg_sys::CoerceViaIO>()).resulttype };
    if !reads_the_clock(to) {
        return None;
    }
    let message = format!("a cast to {} reads words such as \"now\", use to_timestamp or to_date", type_display(to));
    origin.refuse(node, &message)
}

unsafe fn check_functions(node: *mut Node, origin: Origin<'_>) -> Option<Refused> {
    // SAFETY: a node of an analyzed expression.
    unsafe {
        if is_session_value(node) {
            return None;
        }
        let refusal = tree::functions_of(node).into_iter().find_map(|function| refusal(function, origin))?;
        origin.refuse(node, &refusal)
    }
}

fn refusal(function: Oid, origin: Origin<'_>) -> Option<String> {
    let description = Function::look_up(function);
    if !description.is_trusted() {
        return Some(format!("function {} may not be called, see shapefeed.allowed_functions", description.signature()));
    }
    match description.volatility {
        b'i' => None,
        b's' if description.is_fixed_by_settings() => None,
        b's' if matches!(origin, Origin::Text(_)) && description.may_be_folded() => None,
        b's' => Some(format!("the value of function {} changes while no row does", description.signature())),
        _ => Some(format!("function {} is volatile", description.signature())),
    }
}

struct Function {
    oid: Oid,
    name: String,
    schema: Oid,
    language: Oid,
    volatility: u8,
}

impl Function {
    fn look_up(oid: Oid) -> Function {
        // SAFETY: a pg_proc tuple of the catalog cache, copied from before it is released. A function that is gone
        // counts as a volatile one of no schema.
        unsafe {
            let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::PROCOID as c_int, oid.into());
            if tuple.is_null() {
                let none = pg_sys::InvalidOid;
                return Function { oid, name: String::new(), schema: none, language: none, volatility: b'v' };
            }
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>();
            let name = CStr::from_ptr((*form).proname.data.as_ptr()).to_string_lossy().into_owned();
            let (schema, language) = ((*form).pronamespace, (*form).prolang);
            let function = Function { oid, name, schema, language, volatility: (*form).provolatile as u8 };
            pg_sys::ReleaseSysCache(tuple);
            function
        }
    }

    /// Of pg_catalog, of an installed extension, or named by the DBA.
    fn is_trusted(&self) -> bool {
        self.is_builtin() || self.is_of_extension() || self.is_allowed()
    }

    fn is_builtin(&self) -> bool {
        self.schema.to_u32() == pg_sys::PG_CATALOG_NAMESPACE
    }

    fn is_of_extension(&self) -> bool {
        // SAFETY: reads pg_depend; InvalidOid for a function that is no extension's.
        unsafe { pg_sys::getExtensionOfObject(pg_sys::ProcedureRelationId, self.oid) != pg_sys::InvalidOid }
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

    fn is_fixed_by_settings(&self) -> bool {
        self.is_builtin() && FIXED_BY_SETTINGS.contains(&self.name.as_str())
    }

    fn may_be_folded(&self) -> bool {
        self.language == SQL_LANGUAGE || SESSION_VALUES.contains(&self.oid.to_u32())
    }

    fn signature(&self) -> String {
        // SAFETY: format_procedure() gives the oid in digits for a function that is gone.
        unsafe { CStr::from_ptr(pg_sys::format_procedure(self.oid)).to_string_lossy().into_owned() }
    }
}

/// current_user(), session_user(), current_setting().
const SESSION_VALUES: [u32; 4] =
    [pg_sys::F_CURRENT_USER, pg_sys::F_SESSION_USER, pg_sys::F_CURRENT_SETTING_TEXT, pg_sys::F_CURRENT_SETTING_TEXT_BOOL];

/// Is this a call that asks the session for its user or one of its settings? Folding makes a constant of it, which is
/// then part of the definition.
///
/// # Safety
/// `node` is a node of an analyzed expression.
pub unsafe fn is_session_value(node: *mut Node) -> bool {
    use pg_sys::SQLValueFunctionOp::*;
    // SAFETY: a node's tag tells its type.
    unsafe {
        match (*node).type_ {
            NodeTag::T_SQLValueFunction => {
                let op = (*node.cast::<pg_sys::SQLValueFunction>()).op;
                [SVFOP_CURRENT_ROLE, SVFOP_CURRENT_USER, SVFOP_USER, SVFOP_SESSION_USER].contains(&op)
            }
            NodeTag::T_FuncExpr => {
                let call = node.cast::<pg_sys::FuncExpr>();
                SESSION_VALUES.contains(&(*call).funcid.to_u32()) && all_constant((*call).args)
            }
            _ => false,
        }
    }
}

unsafe fn all_constant(args: *mut pg_sys::List) -> bool {
    // SAFETY: a FuncExpr's arguments are a list of expressions, each with a tag.
    unsafe { cells(args).iter().all(|cell| (*cell.ptr_value.cast::<Node>()).type_ == NodeTag::T_Const) }
}

unsafe fn value_function(node: *mut Node) -> &'static str {
    use pg_sys::SQLValueFunctionOp::*;
    // SAFETY: called for a T_SQLValueFunction.
    match unsafe { (*node.cast::<pg_sys::SQLValueFunction>()).op } {
        SVFOP_CURRENT_DATE => "current_date",
        SVFOP_CURRENT_TIME | SVFOP_CURRENT_TIME_N => "current_time",
        SVFOP_CURRENT_TIMESTAMP | SVFOP_CURRENT_TIMESTAMP_N => "current_timestamp",
        SVFOP_LOCALTIME | SVFOP_LOCALTIME_N => "localtime",
        SVFOP_LOCALTIMESTAMP | SVFOP_LOCALTIMESTAMP_N => "localtimestamp",
        _ => "a value of the session",
    }
}

/// Would this text, read as a value of the type, stand for a time that depends on the clock?
pub fn names_the_clock(type_oid: Oid, text: &str) -> bool {
    let is_word = |word: &str| ["now", "today", "tomorrow", "yesterday"].iter().any(|w| word.eq_ignore_ascii_case(w));
    reads_the_clock(type_oid) && text.split(|c: char| !c.is_alphabetic()).any(is_word)
}

/// Is this a date or time type, or made of one?
fn reads_the_clock(type_oid: Oid) -> bool {
    use pg_sys::{DATEOID, TIMEOID, TIMESTAMPOID, TIMESTAMPTZOID, TIMETZOID};
    // SAFETY: these read the catalog cache; InvalidOid for a type that is not an array, range or multirange.
    unsafe {
        let base = pg_sys::getBaseType(type_oid);
        if [DATEOID, TIMEOID, TIMETZOID, TIMESTAMPOID, TIMESTAMPTZOID].contains(&base) {
            return true;
        }
        let parts = [
            pg_sys::get_element_type(base),
            pg_sys::get_range_subtype(base),
            pg_sys::get_multirange_range(base),
        ];
        parts.into_iter().any(|part| part != pg_sys::InvalidOid && reads_the_clock(part))
    }
}

fn type_display(type_oid: Oid) -> String {
    // SAFETY: format_type_be() gives a string for any oid.
    unsafe { CStr::from_ptr(pg_sys::format_type_be(type_oid)).to_string_lossy().into_owned() }
}

/// Refuses columns that are computed when they are read: a captured tuple does not have them.
///
/// # Safety
/// `expression` is an analyzed expression on this relation.
pub unsafe fn columns_are_stored(expression: *mut Node, relation: &PgRelation) -> Result<(), Refused> {
    let attributes = relation.tuple_desc();
    // SAFETY: T_Var nodes are Vars.
    let computed = unsafe {
        tree::search(expression, &mut |node| {
            if (*node).type_ != NodeTag::T_Var {
                return None;
            }
            let number = (*node.cast::<pg_sys::Var>()).varattno;
            let attribute = attributes.get(usize::try_from(number - 1).ok()?)?;
            (attribute.attgenerated as u8 == b'v').then(|| attribute.name().to_string())
        })
    };
    computed.map_or(Ok(()), |name| Err(Refused(format!("column \"{name}\" is generated when it is read"))))
}
