//! What a where clause may consist of: nothing whose value can change while the row does not, and no code of strangers.

use std::ffi::CStr;

use pg_sys::{Node, NodeTag, Oid};
use pgrx::{PgRelation, pg_sys};

use super::function::{Function, is_session_function};
use super::{Refused, Source, tree};
use crate::pg::list::cells;

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
            T_SQLValueFunction => {
                origin.refuse(node, &format!("{} changes with time", value_function(node)))
            }
            T_CoerceToDomain
                if pg_sys::DomainHasConstraints(
                    (*node.cast::<pg_sys::CoerceToDomain>()).resulttype,
                ) =>
            {
                origin.refuse(
                    node,
                    "a cast to a domain with constraints is not supported in this context",
                )
            }
            T_CoerceViaIO => {
                check_conversion(node, origin).or_else(|| check_functions(node, origin))
            }
            T_FuncExpr | T_OpExpr | T_DistinctExpr | T_NullIfExpr | T_ScalarArrayOpExpr
            | T_RowCompareExpr => check_functions(node, origin),
            // What is left of a Param stands for a membership: the parameters' values have been put in.
            T_Param => None,
            T_List | T_BoolExpr | T_RelabelType | T_ArrayCoerceExpr | T_CoerceToDomain
            | T_CollateExpr | T_CaseExpr | T_CaseWhen | T_CaseTestExpr | T_ArrayExpr
            | T_RowExpr | T_CoalesceExpr | T_MinMaxExpr | T_NullTest | T_BooleanTest
            | T_SubscriptingRef | T_FieldSelect | T_NamedArgExpr => None,
            _ => origin.refuse(
                node,
                "this kind of expression is not supported in this context",
            ),
        }
    }
}

unsafe fn check_column(node: *mut Node, origin: Origin<'_>) -> Option<Refused> {
    // SAFETY: called for a T_Var.
    match unsafe { (*node.cast::<pg_sys::Var>()).varattno } {
        0 => origin.refuse(
            node,
            "whole-row references are not supported in this context",
        ),
        number if number < 0 => {
            origin.refuse(node, "system columns are not supported in this context")
        }
        _ => None,
    }
}

/// Refuses `'now'::timestamptz` and the like: the parser has made a constant of it, which says something else each
/// time. Only a plain literal is looked through; a disguised one makes a shape that is correct but never found again.
unsafe fn check_literal(node: *mut Node, origin: Origin<'_>) -> Option<Refused> {
    let Origin::Text(source) = origin else {
        return None;
    };
    // SAFETY: called for a T_Const.
    let (type_oid, location) = unsafe {
        let constant = node.cast::<pg_sys::Const>();
        ((*constant).consttype, (*constant).location)
    };
    let rest = usize::try_from(location)
        .ok()
        .and_then(|start| source.text.get(start..))?;
    let literal = rest.strip_prefix('\'')?.split('\'').next()?;
    let clock = names_the_clock(type_oid, literal);
    if clock {
        origin.refuse(node, &format!("\"{literal}\" changes with time"))
    } else {
        None
    }
}

/// Refuses casts that would read such words from a column.
unsafe fn check_conversion(node: *mut Node, origin: Origin<'_>) -> Option<Refused> {
    // SAFETY: called for a T_CoerceViaIO.
    let to = unsafe { (*node.cast::<pg_sys::CoerceViaIO>()).resulttype };
    if !reads_the_clock(to) {
        return None;
    }
    let message = format!(
        "a cast to {} reads words such as \"now\", use to_timestamp or to_date",
        type_display(to)
    );
    origin.refuse(node, &message)
}

unsafe fn check_functions(node: *mut Node, origin: Origin<'_>) -> Option<Refused> {
    // SAFETY: a node of an analyzed expression.
    unsafe {
        if is_session_value(node) {
            return None;
        }
        let refusal = tree::functions_of(node)
            .into_iter()
            .find_map(|function| refusal(function, origin))?;
        origin.refuse(node, &refusal)
    }
}

fn refusal(function: Oid, origin: Origin<'_>) -> Option<String> {
    let function = Function::look_up(function);
    let signature = function.signature();
    if !function.is_trusted() {
        return Some(format!(
            "function {signature} may not be called, see shapefeed.allowed_functions"
        ));
    }
    match function.volatility {
        b'i' => None,
        b's' if function.is_fixed_by_settings() => None,
        b's' if matches!(origin, Origin::Text(_)) && function.may_be_folded() => None,
        b's' => Some(format!(
            "the value of function {signature} changes while no row does"
        )),
        _ => Some(format!("function {signature} is volatile")),
    }
}

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
                [
                    SVFOP_CURRENT_ROLE,
                    SVFOP_CURRENT_USER,
                    SVFOP_USER,
                    SVFOP_SESSION_USER,
                ]
                .contains(&op)
            }
            NodeTag::T_FuncExpr => {
                let call = node.cast::<pg_sys::FuncExpr>();
                is_session_function((*call).funcid) && all_constant((*call).args)
            }
            _ => false,
        }
    }
}

/// Is this a call of current_setting() that gives NULL for a setting that there is not?
///
/// # Safety
/// `node` is a node of an analyzed expression.
pub unsafe fn is_optional_setting(node: *mut Node) -> bool {
    // SAFETY: a node's tag tells its type.
    unsafe {
        let call = node.cast::<pg_sys::FuncExpr>();
        (*node).type_ == NodeTag::T_FuncExpr
            && (*call).funcid.to_u32() == pg_sys::F_CURRENT_SETTING_TEXT_BOOL
    }
}

/// Is this a constant text that is read as JSON? Postgres would not evaluate it before it has to, but what it gives, too, is
/// always the same; and it is all the claims of a caller, of which seldom more than one is wanted.
///
/// # Safety
/// `node` is a node of an analyzed expression.
pub unsafe fn is_reading_of_constant(node: *mut Node) -> bool {
    // SAFETY: a node's tag tells its type.
    unsafe {
        if (*node).type_ != NodeTag::T_CoerceViaIO {
            return false;
        }
        let conversion = node.cast::<pg_sys::CoerceViaIO>();
        [pg_sys::JSONOID, pg_sys::JSONBOID].contains(&(*conversion).resulttype)
            && (*(*conversion).arg.cast::<Node>()).type_ == NodeTag::T_Const
    }
}

unsafe fn all_constant(args: *mut pg_sys::List) -> bool {
    // SAFETY: a FuncExpr's arguments are a list of expressions, each with a tag.
    unsafe {
        cells(args)
            .iter()
            .all(|cell| (*cell.ptr_value.cast::<Node>()).type_ == NodeTag::T_Const)
    }
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
    let is_word = |word: &str| {
        ["now", "today", "tomorrow", "yesterday"]
            .iter()
            .any(|w| word.eq_ignore_ascii_case(w))
    };
    reads_the_clock(type_oid) && text.split(|c: char| !c.is_alphabetic()).any(is_word)
}

/// Is this a date or time type, or made of one? A composite type may be.
fn reads_the_clock(type_oid: Oid) -> bool {
    use pg_sys::{DATEOID, TIMEOID, TIMESTAMPOID, TIMESTAMPTZOID, TIMETZOID};
    // SAFETY: these read the catalog cache; InvalidOid for a type that is not an array, range or multirange.
    unsafe {
        let base = pg_sys::getBaseType(type_oid);
        let clock_types = [DATEOID, TIMEOID, TIMETZOID, TIMESTAMPOID, TIMESTAMPTZOID];
        if clock_types.contains(&base) || pg_sys::type_is_rowtype(base) {
            return true;
        }
        let parts = [
            pg_sys::get_element_type(base),
            pg_sys::get_range_subtype(base),
            pg_sys::get_multirange_range(base),
        ];
        parts
            .into_iter()
            .any(|part| part != pg_sys::InvalidOid && reads_the_clock(part))
    }
}

fn type_display(type_oid: Oid) -> String {
    // SAFETY: format_type_be() gives a string for any oid.
    unsafe {
        CStr::from_ptr(pg_sys::format_type_be(type_oid))
            .to_string_lossy()
            .into_owned()
    }
}

/// Refuses columns that are computed when they are read: a captured tuple does not have them.
///
/// # Safety
/// `expression` is an analyzed expression on this relation.
pub unsafe fn columns_are_stored(
    expression: *mut Node,
    relation: &PgRelation,
) -> Result<(), Refused> {
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
    computed.map_or(Ok(()), |name| {
        Err(Refused(format!(
            "column \"{name}\" is generated when it is read"
        )))
    })
}

/// Refuses columns that are not among these attribute numbers, if they are given, as if they were not there.
///
/// # Safety
/// `expression` is an analyzed expression on this relation, made from the source's text.
pub unsafe fn columns_are_known(
    expression: *mut Node,
    known: Option<&[i16]>,
    relation: &PgRelation,
    source: &Source,
) -> Result<(), Refused> {
    let Some(known) = known else { return Ok(()) };
    let attributes = relation.tuple_desc();
    // SAFETY: T_Var nodes are Vars.
    let unknown = unsafe {
        tree::search(expression, &mut |node| {
            if (*node).type_ != NodeTag::T_Var {
                return None;
            }
            let var = node.cast::<pg_sys::Var>();
            let (number, location) = ((*var).varattno, (*var).location);
            if known.contains(&number) {
                return None;
            }
            let attribute = attributes.get(usize::try_from(number - 1).ok()?)?;
            let message = format!("unknown reference {}", attribute.name());
            Some(source.locate(location, &message))
        })
    };
    unknown.map_or(Ok(()), Err)
}
