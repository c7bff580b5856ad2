//! A select with subqueries whose sets are known: a where clause on one table, in which each set is a constant.

use std::collections::BTreeSet;

use pg_sys::{Node, NodeTag, Oid};
use pgrx::{PgRelation, pg_sys};

use super::super::list::cells;
use super::super::memory::Context;
use super::super::query::array_literal;
use super::super::values::Typed;
use super::parse::{columns, constant, deparse, fold, is_true as is_always_true};
use super::subquery::{Link, Membership, Select, is_true};
use super::value::Value;
use super::{Where, tree, uses};

/// What happened to a set.
#[derive(Debug, Default)]
pub struct Change {
    /// Values that came or went.
    pub values: Vec<Box<Value>>,
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

    /// Does a row contribute to both sets the same?
    pub fn has_outputs_of(&self, other: &Select) -> bool {
        let mut pairs = self.outputs.iter().zip(&other.outputs);
        // SAFETY: equal() takes any nodes.
        let same = |(mine, its): (&*mut Node, &*mut Node)| unsafe {
            pg_sys::equal(mine.cast(), its.cast())
        };
        self.outputs.len() == other.outputs.len() && pairs.all(same)
    }

    /// What a row contributes to the set, compiled.
    pub fn outputs(&self) -> Outputs {
        // SAFETY: analyzed and folded expressions without Params.
        unsafe { Outputs::new(&self.outputs) }
    }
}

unsafe fn of_tree(tree: *mut Node) -> Where {
    // SAFETY: an analyzed expression.
    let (columns, uses) = unsafe { (columns(tree), uses::uses(tree)) };
    Where {
        tree,
        text: None,
        named_columns: columns.clone(),
        columns,
        uses,
    }
}

/// What is true of all rows that any of these clauses of one form lets in, and of few others: each condition that all have
/// with constants of their own, with all of these. None if there is no such condition.
pub fn together(clauses: &[&Where]) -> Option<Where> {
    let (first, others) = clauses.split_first()?;
    // SAFETY: analyzed expressions that live as long as the clauses; what is made is one.
    unsafe {
        let conjuncts = |clause: &Where| -> Vec<*mut Node> {
            let list = pg_sys::make_ands_implicit(clause.tree.cast());
            let nodes = cells(list).iter().map(|cell| cell.ptr_value.cast());
            nodes.collect()
        };
        let others: Vec<Vec<*mut Node>> = others.iter().map(|clause| conjuncts(clause)).collect();
        let mut all = std::ptr::null_mut();
        for (place, condition) in conjuncts(first).into_iter().enumerate() {
            let Some(mut condition) = Constants::of(condition) else {
                continue;
            };
            let same = others.iter().all(|conjuncts| {
                let other = conjuncts.get(place).and_then(|node| Constants::of(*node));
                other.is_some_and(|other| condition.take(other))
            });
            if same && let Some(condition) = condition.any() {
                all = pg_sys::lappend(all, condition.cast());
            }
        }
        (!all.is_null()).then(|| of_tree(pg_sys::make_ands_explicit(all).cast()))
    }
}

/// A comparison with one constant or another.
struct Constants {
    link: Link,
    type_oid: Oid,
    texts: BTreeSet<String>,
}

impl Constants {
    /// What a condition compares; None if it is no such comparison.
    unsafe fn of(node: *mut Node) -> Option<Constants> {
        // SAFETY: a node's tag tells its type; both kinds of comparison have two arguments.
        unsafe {
            let (args, operator, collation, is_list) = match (*node).type_ {
                NodeTag::T_OpExpr => {
                    let call = node.cast::<pg_sys::OpExpr>();
                    ((*call).args, (*call).opno, (*call).inputcollid, false)
                }
                NodeTag::T_ScalarArrayOpExpr => {
                    let call = node.cast::<pg_sys::ScalarArrayOpExpr>();
                    let (args, operator) = ((*call).args, (*call).opno);
                    ((*call).useOr).then_some((args, operator, (*call).inputcollid, true))?
                }
                NodeTag::T_BooleanTest => {
                    let test = node.cast::<pg_sys::BooleanTest>();
                    let is_true = (*test).booltesttype == pg_sys::BoolTestType::IS_TRUE;
                    return is_true.then(|| Constants::of((*test).arg.cast())).flatten();
                }
                _ => return None,
            };
            let [left, right] = cells(args) else {
                return None;
            };
            let right = right.ptr_value.cast::<pg_sys::Const>();
            if (*right).xpr.type_ != NodeTag::T_Const {
                return None;
            }
            let type_oid = match is_list {
                true => pg_sys::get_element_type((*right).consttype),
                false => (*right).consttype,
            };
            let mut texts = BTreeSet::new();
            if !(*right).constisnull {
                let value = Typed::of_const(right);
                let elements = if is_list {
                    value.elements()
                } else {
                    vec![value]
                };
                texts.extend(elements.iter().map(Typed::text));
            }
            let link = Link {
                expression: left.ptr_value.cast(),
                operator,
                collation,
                two_valued: false,
            };
            let constants = Constants {
                link,
                type_oid,
                texts,
            };
            (type_oid != Oid::INVALID).then_some(constants)
        }
    }

    /// Takes in the constants of the same comparison; false if it is another one.
    unsafe fn take(&mut self, other: Constants) -> bool {
        // SAFETY: equal() takes any nodes.
        let same = unsafe {
            let (mine, its) = (self.link.expression, other.link.expression);
            pg_sys::equal(mine.cast(), its.cast())
        };
        self.texts.extend(other.texts);
        same && self.type_oid == other.type_oid
            && self.link.operator == other.link.operator
            && self.link.collation == other.link.collation
    }

    /// The comparison with any of them; None if they cannot be in an array.
    unsafe fn any(self) -> Option<*mut Node> {
        let texts = self.texts.into_iter().map(|text| Some(text.into_bytes()));
        let literal = String::from_utf8(array_literal(texts)).ok()?;
        // SAFETY: makes analyzed expressions; an array type is looked up in the catalog cache.
        unsafe {
            let array = pg_sys::get_array_type(self.type_oid);
            (array != Oid::INVALID).then(|| self.link.is_any(constant(array, &literal)))
        }
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
            .map(|value| value.column(column).map(<[u8]>::to_vec));
        let literal =
            String::from_utf8(array_literal(texts)).expect("the database's encoding is UTF-8");
        // SAFETY: it was made sure that the type has an array type.
        unsafe { constant(pg_sys::get_array_type(self.type_of(column)), &literal) }
    }

    /// The set's only value, or NULL.
    unsafe fn value(&self, values: &[&Value]) -> *mut Node {
        let text = values.first().and_then(|value| value.column(0));
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
    unsafe fn candidates(&self, values: &[Box<Value>]) -> Option<*mut Node> {
        let values: Vec<&Value> = values.iter().map(|value| &**value).collect();
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
                if nulls_matter && values.iter().any(|value| value.column(column).is_none()) {
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
