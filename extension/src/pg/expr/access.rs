//! How the rows that a where clause lets in can be found by the values of their columns.
//!
//! Looked at are conjuncts `column = constant` and `column = ANY(constant array)`; under AND with anything else, which is left
//! over to be evaluated, and under OR if all of its sides have one.
//!
//! Any operator counts that its hash operator family knows. A clause that a row-level security policy stands before must
//! use those with a leakproof function only, as its keys are compared with rows that the policy may hide.

use pg_sys::{Node, NodeTag, Oid};
use pgrx::pg_sys;

use super::super::list::cells;

/// How a column is compared with a constant: what an index over constants has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Comparison {
    /// The column, from 0.
    pub column: usize,
    /// The operator.
    pub by: By,
}

/// An equality operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// Both sides are integers of 16, 32 or 64 bits, or something whose values are equal exactly if their bits are; the
    /// column's have this many bytes.
    Integer(i16),
    /// Any other, under this collation.
    Operator {
        /// `pg_operator.oid`.
        operator: u32,
        /// The collation that it is given.
        collation: u32,
        /// The constant stands on its left.
        constant_first: bool,
    },
}

/// A comparison of a column with one of the clause's constants, or with any element of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// How.
    pub comparison: Comparison,
    /// Which constant, from 0.
    pub constant: usize,
    /// The constant is an array, whose elements are meant.
    pub any: bool,
}

/// Comparisons that must all be true; at most one of them is with an array. Sorted.
pub type Access = Vec<Part>;

/// How a clause's rows are found.
#[derive(Debug)]
pub struct Plan {
    /// A row that is in passes one of these.
    pub accesses: Vec<Access>,
    /// What must be true besides; one that passes is in if there is nothing.
    pub residual: Vec<*mut Node>,
}

/// How the rows are found for which all of these are true; None if every row must be looked at.
///
/// # Safety
/// `quals` are expressions whose constants are Params.
pub unsafe fn plan(quals: &[*mut Node]) -> Option<Plan> {
    // SAFETY: as the caller says.
    let mut parts: Vec<Option<Part>> = quals.iter().map(|qual| unsafe { part(*qual) }).collect();
    let is_key = |part: &Option<Part>| part.is_some_and(|part| !part.any);
    if parts.iter().any(Option::is_some) {
        // One array is enough: more would multiply the keys.
        let any = parts
            .iter()
            .position(|part| part.is_some_and(|part| part.any));
        for (place, part) in parts.iter_mut().enumerate() {
            if !is_key(part) && Some(place) != any {
                *part = None;
            }
        }
        let rest = quals.iter().zip(&parts).filter(|(_, part)| part.is_none());
        let residual = rest.map(|(qual, _)| *qual).collect();
        let mut access: Access = parts.into_iter().flatten().collect();
        access.sort_unstable();
        return Some(Plan {
            accesses: vec![access],
            residual,
        });
    }
    for (place, qual) in quals.iter().enumerate() {
        // SAFETY: as the caller says.
        let Some(mut plan) = (unsafe { union(*qual) }) else {
            continue;
        };
        plan.residual.extend(
            quals
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != place)
                .map(|(_, qual)| *qual),
        );
        return Some(plan);
    }
    None
}

/// The sides of an OR, if each of them can be looked up.
unsafe fn union(node: *mut Node) -> Option<Plan> {
    // SAFETY: a node's tag tells its type; the arguments of a BoolExpr are expressions.
    unsafe {
        let sides = arguments(node, pg_sys::BoolExprType::OR_EXPR)?;
        let (mut accesses, mut covered) = (Vec::new(), true);
        for side in sides {
            let quals =
                arguments(side, pg_sys::BoolExprType::AND_EXPR).unwrap_or_else(|| vec![side]);
            let plan = plan(&quals)?;
            covered &= plan.residual.is_empty();
            accesses.extend(plan.accesses);
        }
        let residual = if covered { vec![] } else { vec![node] };
        Some(Plan { accesses, residual })
    }
}

unsafe fn arguments(node: *mut Node, kind: pg_sys::BoolExprType::Type) -> Option<Vec<*mut Node>> {
    // SAFETY: a node's tag tells its type.
    unsafe {
        let expression = node.cast::<pg_sys::BoolExpr>();
        if (*node).type_ != NodeTag::T_BoolExpr || (*expression).boolop != kind {
            return None;
        }
        let arguments = cells((*expression).args).iter();
        Some(arguments.map(|cell| cell.ptr_value.cast()).collect())
    }
}

/// The comparison that this is, if an index can answer it.
unsafe fn part(node: *mut Node) -> Option<Part> {
    // SAFETY: a node's tag tells its type; both kinds of nodes have two arguments, or one that is passed over.
    unsafe {
        match (*node).type_ {
            NodeTag::T_OpExpr => {
                let call = node.cast::<pg_sys::OpExpr>();
                let [left, right] = cells((*call).args) else {
                    return None;
                };
                let (left, right) = (left.ptr_value.cast(), right.ptr_value.cast());
                let (operator, collation) = ((*call).opno, (*call).inputcollid);
                let (column, constant, constant_first) = match (column(left), constant(right)) {
                    (Some(column), Some(constant)) => (column, constant, false),
                    _ => (column(right)?, constant(left)?, true),
                };
                let by = equality(operator, collation, left, column, constant_first)?;
                Some(Part {
                    comparison: Comparison {
                        column: column.place,
                        by,
                    },
                    constant,
                    any: false,
                })
            }
            NodeTag::T_ScalarArrayOpExpr => {
                let call = node.cast::<pg_sys::ScalarArrayOpExpr>();
                let [left, right] = cells((*call).args) else {
                    return None;
                };
                let (left, right) = (left.ptr_value.cast(), right.ptr_value.cast());
                if !(*call).useOr {
                    return None;
                }
                let column = column(left)?;
                let by = equality((*call).opno, (*call).inputcollid, left, column, false)?;
                Some(Part {
                    comparison: Comparison {
                        column: column.place,
                        by,
                    },
                    constant: constant(right)?,
                    any: true,
                })
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
struct Column {
    place: usize,
    length: i16,
}

/// The column that this is, perhaps as another type that is stored alike.
unsafe fn column(mut node: *mut Node) -> Option<Column> {
    // SAFETY: a node's tag tells its type.
    unsafe {
        while (*node).type_ == NodeTag::T_RelabelType {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        if (*node).type_ != NodeTag::T_Var {
            return None;
        }
        let var = node.cast::<pg_sys::Var>();
        Some(Column {
            place: usize::try_from((*var).varattno - 1).ok()?,
            length: pg_sys::get_typlen((*var).vartype),
        })
    }
}

unsafe fn constant(node: *mut Node) -> Option<usize> {
    // SAFETY: a node's tag tells its type.
    unsafe {
        let param = node.cast::<pg_sys::Param>();
        ((*node).type_ == NodeTag::T_Param).then(|| (*param).paramid as usize - 1)
    }
}

/// What an index has to know of an operator if that is an equality whose operator family can hash both of its sides.
unsafe fn equality(
    operator: Oid,
    collation: Oid,
    left: *mut Node,
    column: Column,
    constant_first: bool,
) -> Option<By> {
    // SAFETY: these read the catalog cache.
    unsafe {
        let function = pg_sys::get_opcode(operator).to_u32();
        if BITWISE.contains(&function) {
            return Some(By::Integer(column.length));
        }
        let (mut left_hash, mut right_hash) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        let hashes = pg_sys::op_hashjoinable(operator, pg_sys::exprType(left))
            && pg_sys::get_op_hash_functions(operator, &mut left_hash, &mut right_hash);
        hashes.then(|| By::Operator {
            operator: operator.to_u32(),
            collation: collation.to_u32(),
            constant_first,
        })
    }
}

/// Equality of values that are passed by value: of integers, or of the bits.
const BITWISE: [u32; 13] = [
    pg_sys::F_INT2EQ,
    pg_sys::F_INT4EQ,
    pg_sys::F_INT8EQ,
    pg_sys::F_INT24EQ,
    pg_sys::F_INT42EQ,
    pg_sys::F_INT28EQ,
    pg_sys::F_INT82EQ,
    pg_sys::F_INT48EQ,
    pg_sys::F_INT84EQ,
    pg_sys::F_DATE_EQ,
    pg_sys::F_TIMESTAMP_EQ,
    pg_sys::F_TIMESTAMPTZ_EQ,
    pg_sys::F_ENUM_EQ,
];
