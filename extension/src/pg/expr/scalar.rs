//! Conditions on the value of a subquery that refers to the row outside and finds one row at most.
//!
//! Such a condition is put into the subquery: `(SELECT c.owner FROM companies c WHERE c.id = company_id) = 'x'` is true
//! where `EXISTS (SELECT FROM companies c WHERE c.id = company_id AND c.owner = 'x')` is. Where it matters whether it is
//! false or null, so is asked whether its opposite is true, and whether there is a row.

use pg_sys::{Node, NodeTag};
use pgrx::pg_sys;

use super::joins::{Joins, any_of, outputs};
use super::parse::fold;
use super::parts::is_one_row;
use super::subquery::{Membership, not};
use super::{Refused, tree};

/// A scalar subquery of a condition that refers to the row outside; None if it has none.
///
/// # Safety
/// `condition` is an analyzed expression.
pub(super) unsafe fn correlated(condition: *mut Node) -> Option<*mut pg_sys::SubLink> {
    // SAFETY: a node's tag tells its type; the subselect of an analyzed sublink is a Query.
    unsafe {
        tree::search(condition, &mut |node| {
            let sublink = node.cast::<pg_sys::SubLink>();
            let is_scalar = (*node).type_ == NodeTag::T_SubLink
                && (*sublink).subLinkType == pg_sys::SubLinkType::EXPR_SUBLINK;
            let is_one = is_scalar && pg_sys::contain_vars_of_level((*sublink).subselect, 1);
            is_one.then_some(sublink)
        })
    }
}

impl Joins<'_> {
    /// A condition on the value of a subquery as one on sets.
    ///
    /// # Safety
    /// The condition is analyzed, and has the sublink.
    pub unsafe fn condition_on(
        &self,
        condition: *mut Node,
        sublink: *mut pg_sys::SubLink,
        memberships: &mut Vec<Membership>,
        positive: bool,
    ) -> Result<*mut Node, Refused> {
        // SAFETY: what is made are analyzed expressions.
        unsafe {
            let query = (*sublink).subselect.cast::<pg_sys::Query>();
            self.finds_one_row(query)?;
            let type_oid = pg_sys::exprType(sublink.cast());
            let null = pg_sys::makeNullConst(type_oid, -1, pg_sys::exprCollation(sublink.cast()));
            let without_row = fold(with_value(condition, sublink, null.cast(), 0));
            let output = outputs(query)[0];
            let inside = || with_value(condition, sublink, output, 1);
            let is_true = self.exists(and(query, inside()), memberships, positive)?;
            let mut sides = pg_sys::lappend(std::ptr::null_mut(), is_true.cast());
            if positive && is_never_true(without_row) {
                return Ok(is_true);
            }
            let there_is_a_row = self.exists(and(query, always()), memberships, false)?;
            if !positive {
                let opposite = pg_sys::negate_clause(inside());
                let is_false = self.exists(and(query, opposite), memberships, false)?;
                let unknown = pg_sys::makeBoolConst(false, true);
                sides = pg_sys::lappend(sides, all_of(&[there_is_a_row, not(is_false), unknown]));
            }
            sides = pg_sys::lappend(sides, all_of(&[not(there_is_a_row), without_row]));
            Ok(any_of(sides))
        }
    }

    unsafe fn finds_one_row(&self, query: *mut pg_sys::Query) -> Result<(), Refused> {
        // SAFETY: as the caller says.
        unsafe {
            let leaves = self.leaves(query)?;
            let [(leaf, _)] = &leaves[..] else {
                return self.refuse(self.at, "UNION in a scalar subquery is not supported");
            };
            let parts = self.parts(*leaf)?;
            if parts.relations.len() != 1 || !is_one_row(&parts) {
                let message = "a scalar subquery must find one row of one table by a unique key";
                return self.refuse(self.at, message);
            }
            Ok(())
        }
    }
}

/// A copy of the condition with a value in the place of the subquery; what is not of that value lies so many levels further out.
unsafe fn with_value(
    condition: *mut Node,
    sublink: *mut pg_sys::SubLink,
    value: *mut Node,
    levels: i32,
) -> *mut Node {
    // SAFETY: a copy is changed. A sublink is known by its place in the text; another node of its type takes its place.
    unsafe {
        let type_oid = pg_sys::exprType(sublink.cast());
        let marked = tree::rewrite(condition, &mut |node| {
            let other = node.cast::<pg_sys::SubLink>();
            if (*node).type_ != NodeTag::T_SubLink || (*other).location != (*sublink).location {
                return node;
            }
            let marker = pg_sys::palloc0(size_of::<pg_sys::Param>()).cast::<pg_sys::Param>();
            (*marker).xpr.type_ = NodeTag::T_Param;
            (*marker).paramkind = pg_sys::ParamKind::PARAM_EXEC;
            (*marker).paramtype = type_oid;
            (*marker).paramtypmod = -1;
            (*marker).paramcollid = pg_sys::exprCollation(sublink.cast());
            (*marker).location = -1;
            marker.cast()
        });
        pg_sys::IncrementVarSublevelsUp(marked, levels, 0);
        tree::rewrite(marked, &mut |node| {
            let is_marker = (*node).type_ == NodeTag::T_Param
                && (*node.cast::<pg_sys::Param>()).paramkind == pg_sys::ParamKind::PARAM_EXEC;
            if is_marker {
                pg_sys::copyObjectImpl(value.cast()).cast()
            } else {
                node
            }
        })
    }
}

/// A copy of the query with a condition more.
unsafe fn and(query: *mut pg_sys::Query, condition: *mut Node) -> *mut pg_sys::Query {
    // SAFETY: an analyzed query has a jointree.
    unsafe {
        let copy: *mut pg_sys::Query = pg_sys::copyObjectImpl(query.cast()).cast();
        let from = (*copy).jointree;
        (*from).quals = pg_sys::make_and_qual((*from).quals, condition);
        copy
    }
}

unsafe fn always() -> *mut Node {
    // SAFETY: makes a node in the current memory context.
    unsafe { pg_sys::makeBoolConst(true, false) }
}

unsafe fn all_of(conditions: &[*mut Node]) -> *mut std::ffi::c_void {
    // SAFETY: a list of expressions, each of which may be part of others.
    unsafe {
        let mut all = std::ptr::null_mut();
        for condition in conditions {
            all = pg_sys::lappend(all, pg_sys::copyObjectImpl(condition.cast()));
        }
        pg_sys::make_ands_explicit(all).cast()
    }
}

/// A constant that is null or false.
unsafe fn is_never_true(node: *mut Node) -> bool {
    // SAFETY: a T_Const of type boolean is passed by value.
    unsafe {
        let constant = node.cast::<pg_sys::Const>();
        (*node).type_ == NodeTag::T_Const
            && ((*constant).constisnull || (*constant).constvalue.value() == 0)
    }
}
