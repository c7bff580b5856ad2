//! A select with subqueries whose sets are known: a where clause on one table, in which each set is a constant.

use pg_sys::{Node, NodeTag, Oid};
use pgrx::{PgRelation, pg_sys};

use super::super::list::cells;
use super::super::memory::Context;
use super::super::query::array_literal;
use super::parse::{columns, constant, deparse, fold, is_true as is_always_true};
use super::subquery::{Link, Membership, Select, is_true};
use super::{Where, tree};

/// A value of a set: the text of each of its columns.
pub type Value = Box<[Option<Box<[u8]>>]>;

/// What happened to a set.
#[derive(Debug, Default)]
pub struct Change {
    /// Values that came or went.
    pub values: Vec<Value>,
}

impl Select {
    /// The rows that are in while the sets of the memberships have these values; None if that is every row. In the
    /// current memory context; to be called while acting as the role whose rows they are.
    pub fn freeze(&self, sets: &[Vec<&Value>]) -> Option<Where> {
        if self.tree.is_null() {
            return None;
        }
        // SAFETY: the trees live as long as the select; each Param in a copy is replaced by an expression of its type.
        unsafe {
            let replaced = tree::rewrite(self.tree, &mut |node| {
                if (*node).type_ != NodeTag::T_Param {
                    return node;
                }
                let number = (*node.cast::<pg_sys::Param>()).paramid as usize - 1;
                let membership = &self.memberships[number];
                if membership.links.is_empty() {
                    membership.value(&sets[number])
                } else {
                    membership.compared(&sets[number])
                }
            });
            let tree = fold(replaced);
            (!is_always_true(tree)).then(|| of_tree(tree))
        }
    }

    /// Rows that these changes may have brought in or out; None if those may be any. May be more than need be.
    pub fn candidates(&self, changes: &[Option<&Change>]) -> Option<Where> {
        // SAFETY: as above.
        unsafe {
            let mut sides = std::ptr::null_mut();
            for (membership, change) in self.memberships.iter().zip(changes) {
                let Some(change) = change else { continue };
                match membership.candidates(&change.values) {
                    Some(side) => sides = pg_sys::lappend(sides, side.cast()),
                    None => return self.of_row_alone(std::ptr::null_mut()),
                }
            }
            let or = pg_sys::BoolExprType::OR_EXPR;
            let any = match cells(sides) {
                [only] => only.ptr_value.cast(),
                _ => pg_sys::makeBoolExpr(or, sides, -1).cast(),
            };
            self.of_row_alone(any)
        }
    }

    /// The conditions that no membership is part of, and another one.
    unsafe fn of_row_alone(&self, other: *mut Node) -> Option<Where> {
        // SAFETY: analyzed expressions.
        unsafe {
            let mut all = std::ptr::null_mut();
            for cell in cells(pg_sys::make_ands_implicit(self.tree.cast())) {
                let qual = cell.ptr_value.cast();
                let is_param = |node: *mut Node| ((*node).type_ == NodeTag::T_Param).then_some(());
                if tree::search(qual, &mut |node| is_param(node)).is_none() {
                    all = pg_sys::lappend(all, pg_sys::copyObjectImpl(qual.cast()).cast());
                }
            }
            if !other.is_null() {
                all = pg_sys::lappend(all, other.cast());
            }
            if all.is_null() {
                return None;
            }
            let tree = fold(pg_sys::make_ands_explicit(all).cast());
            (!is_always_true(tree)).then(|| of_tree(tree))
        }
    }

    /// Number of columns of its set.
    pub fn width(&self) -> usize {
        self.outputs.len()
    }

    /// What a row contributes to the set, compiled.
    pub fn outputs(&self) -> Outputs {
        // SAFETY: analyzed and folded expressions without Params.
        unsafe { Outputs::new(&self.outputs) }
    }
}

unsafe fn of_tree(tree: *mut Node) -> Where {
    // SAFETY: an analyzed expression.
    let columns = unsafe { columns(tree) };
    Where {
        tree,
        text: None,
        named_columns: columns.clone(),
        columns,
        uses: String::new(),
    }
}

impl Where {
    /// Its text, on the relation that it is about, which is locked.
    pub fn deparsed(&self, relid: Oid) -> String {
        // SAFETY: the tree is an expression on this relation.
        unsafe { deparse(self.tree, &PgRelation::open(relid)) }
    }
}

impl Membership {
    /// The type of a column of the set.
    unsafe fn type_of(&self, column: usize) -> Oid {
        // SAFETY: an analyzed expression.
        unsafe { pg_sys::getBaseType(pg_sys::exprType(self.select.outputs[column])) }
    }

    unsafe fn array(&self, column: usize, values: &[&Value]) -> *mut Node {
        let texts = values
            .iter()
            .map(|value| value[column].as_deref().map(<[u8]>::to_vec));
        let literal =
            String::from_utf8(array_literal(texts)).expect("the database's encoding is UTF-8");
        // SAFETY: it was made sure that the type has an array type.
        unsafe { constant(pg_sys::get_array_type(self.type_of(column)), &literal) }
    }

    /// The set's only value, or NULL.
    unsafe fn value(&self, values: &[&Value]) -> *mut Node {
        let text = values.first().and_then(|value| value[0].as_deref());
        // SAFETY: makes a constant of the output's type.
        unsafe {
            let output = self.select.outputs[0];
            let type_oid = pg_sys::exprType(output);
            match text {
                Some(text) => constant(type_oid, &String::from_utf8_lossy(text)),
                None => pg_sys::makeNullConst(type_oid, -1, pg_sys::exprCollation(output)).cast(),
            }
        }
    }

    /// The comparison of the row with each of these values.
    unsafe fn compared(&self, values: &[&Value]) -> *mut Node {
        // SAFETY: makes analyzed expressions.
        unsafe {
            if let [link] = &self.links[..] {
                return with_nulls(link, link.is_any(self.array(0, values)));
            }
            let mut sides = std::ptr::null_mut();
            for value in values {
                let mut all = std::ptr::null_mut();
                for (column, link) in self.links.iter().enumerate() {
                    let side = link.is_any(self.array(column, &[value]));
                    all = pg_sys::lappend(all, with_nulls(link, side).cast());
                }
                sides = pg_sys::lappend(sides, pg_sys::make_ands_explicit(all).cast());
            }
            match cells(sides) {
                [] => pg_sys::makeBoolConst(false, false),
                [only] => only.ptr_value.cast(),
                _ => pg_sys::makeBoolExpr(pg_sys::BoolExprType::OR_EXPR, sides, -1).cast(),
            }
        }
    }

    /// What is true of rows for which the comparison may be another one after these values came or went; None if any
    /// row may be one.
    unsafe fn candidates(&self, values: &[Value]) -> Option<*mut Node> {
        let values: Vec<&Value> = values.iter().collect();
        if self.links.is_empty() {
            return None;
        }
        // SAFETY: makes analyzed expressions.
        unsafe {
            let leaky = |link: &Link| pg_sys::contain_leaked_vars(link.expression);
            if self.guarded && self.links.iter().any(leaky) {
                return None;
            }
            let mut all = std::ptr::null_mut();
            for (column, link) in self.links.iter().enumerate() {
                let nulls_matter = !self.positive && !link.two_valued;
                if nulls_matter && values.iter().any(|value| value[column].is_none()) {
                    return None;
                }
                let mut side = link.is_any(self.array(column, &values));
                if nulls_matter {
                    let sides = pg_sys::lappend(std::ptr::null_mut(), side.cast());
                    let sides = pg_sys::lappend(sides, is_null(link.expression).cast());
                    side = pg_sys::makeBoolExpr(pg_sys::BoolExprType::OR_EXPR, sides, -1).cast();
                }
                all = pg_sys::lappend(all, side.cast());
            }
            Some(pg_sys::make_ands_explicit(all).cast())
        }
    }
}

unsafe fn with_nulls(link: &Link, compared: *mut Node) -> *mut Node {
    // SAFETY: an analyzed expression.
    unsafe {
        if link.two_valued {
            is_true(compared)
        } else {
            compared
        }
    }
}

impl Link {
    /// `link operator ANY (array)`.
    unsafe fn is_any(&self, array: *mut Node) -> *mut Node {
        // SAFETY: makes a node in the current memory context; the array's elements are of the operator's right type.
        unsafe {
            let any = pg_sys::palloc0(size_of::<pg_sys::ScalarArrayOpExpr>())
                .cast::<pg_sys::ScalarArrayOpExpr>();
            let args = pg_sys::lappend(
                std::ptr::null_mut(),
                pg_sys::copyObjectImpl(self.expression.cast()).cast(),
            );
            (*any).xpr.type_ = NodeTag::T_ScalarArrayOpExpr;
            (*any).opno = self.operator;
            (*any).opfuncid = pg_sys::get_opcode(self.operator);
            (*any).useOr = true;
            (*any).inputcollid = self.collation;
            (*any).args = pg_sys::lappend(args, array.cast());
            (*any).location = -1;
            any.cast()
        }
    }
}

unsafe fn is_null(expression: *mut Node) -> *mut Node {
    // SAFETY: makes a node in the current memory context.
    unsafe {
        let test = pg_sys::palloc0(size_of::<pg_sys::NullTest>()).cast::<pg_sys::NullTest>();
        (*test).xpr.type_ = NodeTag::T_NullTest;
        (*test).arg = pg_sys::copyObjectImpl(expression.cast()).cast();
        (*test).nulltesttype = pg_sys::NullTestType::IS_NULL;
        (*test).location = -1;
        // `argisrow` stays false: of a row value, too, it is the value itself that is meant.
        test.cast()
    }
}

/// Expressions whose values make up a set, compiled.
#[derive(Debug)]
pub struct Outputs {
    /// What the states are allocated in.
    memory: Context,
    pub(super) states: Vec<(*mut pg_sys::ExprState, Oid)>,
}

impl Outputs {
    /// # Safety
    /// Analyzed and folded expressions without Params.
    unsafe fn new(expressions: &[*mut Node]) -> Outputs {
        let memory = Context::new();
        let compile = |node: &*mut Node| {
            // SAFETY: a copy of the expression, in memory that lives as long as its state.
            unsafe {
                let copy: *mut pg_sys::Expr = pg_sys::copyObjectImpl(node.cast()).cast();
                pg_sys::fix_opfuncids(copy.cast());
                let state = pg_sys::ExecInitExpr(copy, std::ptr::null_mut());
                (state, pg_sys::getBaseType(pg_sys::exprType(copy.cast())))
            }
        };
        let states = memory.run(|| expressions.iter().map(compile).collect());
        Outputs { memory, states }
    }

    pub(super) fn memory(&self) -> pg_sys::MemoryContext {
        self.memory.raw()
    }
}
