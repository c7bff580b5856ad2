//! Where clauses with subqueries: what has to be kept so that they can be maintained.
//!
//! Each subquery is taken apart into *inner selects* of one table each. An inner select's output is a set of values;
//! the row outside compares values of its own, its *links*, with that set. A join becomes a nested inner select, as
//! IN asks only whether there is a row, and not how often.

use std::cell::Cell;
use std::ffi::CString;
use std::rc::Rc;

use pg_sys::{Node, NodeTag, Oid, SubLinkType};
use pgrx::{PgRelation, pg_sys};

use super::super::list::cells;
use super::super::memory::Context;
use super::joins::Joins;
use super::parse::{Step, attempt_in_steps, columns, deparse, raw_clause};
use super::{Refused, Source, check, parse, scalar, template, tree, uses};

/// Rows of one table: those of a shape, or those whose output is a set.
#[derive(Debug)]
pub struct Select {
    /// The table.
    pub relid: u32,
    /// What is true of its rows; each membership is a Param in it. Null if every row is in.
    pub(super) tree: *mut Node,
    /// The memberships that `tree` refers to, by number.
    pub memberships: Vec<Membership>,
    /// What a row contributes to the set; nothing for the rows of a shape.
    pub(super) outputs: Vec<*mut Node>,
    /// Attribute numbers of all columns that it reads, ascending.
    pub columns: Vec<i16>,
    /// Equal for selects that have the same set.
    pub identity: String,
    /// What the trees are allocated in.
    _memory: Rc<Context>,
}

/// A comparison of a row with a set.
#[derive(Debug)]
pub struct Membership {
    /// What the set consists of.
    pub select: Rc<Select>,
    /// What is compared with each column of it. Empty if the set's only value itself is meant.
    pub links: Vec<Link>,
    /// Only whether it is true matters, and rows can only come in by its being true.
    pub positive: bool,
    /// It is asked about rows only that something else has let pass, as the branch of a CASE is.
    pub guarded: bool,
}

impl Membership {
    /// Numbers of the columns that are compared with the set; None for what is no column.
    pub fn linked_columns(&self) -> Vec<Option<i16>> {
        let column = |link: &Link| {
            let mut node = link.expression;
            // SAFETY: a node's tag tells its type.
            unsafe {
                while (*node).type_ == NodeTag::T_RelabelType {
                    node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
                }
                let var = node.cast::<pg_sys::Var>();
                ((*node).type_ == NodeTag::T_Var).then(|| (*var).varattno)
            }
        };
        self.links.iter().map(column).collect()
    }

    /// Does a change of the set concern rows by what they are compared with, and not all of them?
    pub fn is_linked(&self) -> bool {
        // SAFETY: a node's tag tells its type.
        let is_constant = |link: &Link| unsafe { (*link.expression).type_ == NodeTag::T_Const };
        !self.links.is_empty() && !self.links.iter().all(is_constant)
    }
}

/// A value of a row that is compared with a column of a set.
#[derive(Clone, Debug)]
pub struct Link {
    pub(super) expression: *mut Node,
    /// The operator; the row's value is on its left.
    pub(super) operator: Oid,
    pub(super) collation: Oid,
    /// NULL counts as false, as in the WHERE of a subquery.
    pub two_valued: bool,
}

/// A where clause with subqueries.
#[derive(Debug)]
pub struct Analyzed {
    /// The canonical text: parameters and session values folded.
    pub text: String,
    /// The rows that it lets in.
    pub root: Rc<Select>,
    /// A digest of the functions and collations that it depends on at any depth; empty if that cannot change.
    pub uses: String,
}

impl Analyzed {
    /// All selects, inner ones first, each once for each time that it is named.
    pub fn selects(&self) -> Vec<&Rc<Select>> {
        let mut all = Vec::new();
        collect(&self.root, &mut all);
        all
    }
}

fn collect<'a>(select: &'a Rc<Select>, all: &mut Vec<&'a Rc<Select>>) {
    for membership in &select.memberships {
        collect(&membership.select, all);
    }
    all.push(select);
}

/// Parses, checks and folds a where clause with subqueries on a table that the caller has locked; as
/// [`super::analyze_among`].
pub fn analyze_subqueries(
    relid: Oid,
    clause: &str,
    params: &[Option<String>],
    known: Option<&[i16]>,
) -> Result<Analyzed, Refused> {
    let source = Source::of_where(clause);
    let memory = Rc::new(Context::new());
    memory.run(|| {
        attempt_in_steps(&source, |step| {
            let builder = Builder {
                source: &source,
                memory: memory.clone(),
            };
            // SAFETY: the caller's lock keeps the relation open-able; the text lives until the trees have been made.
            unsafe { builder.analyze(relid, params, known, step) }
        })
    })
}

/// Takes queries apart.
pub(super) struct Builder<'a> {
    pub(super) source: &'a Source,
    memory: Rc<Context>,
}

impl Builder<'_> {
    /// # Safety
    /// A lock on the relation is held.
    unsafe fn analyze(
        &self,
        relid: Oid,
        params: &[Option<String>],
        known: Option<&[i16]>,
        step: &Cell<Step>,
    ) -> Result<Analyzed, Refused> {
        let text = CString::new(self.source.text.as_str()).unwrap_or_default();
        // SAFETY: each step hands the next the tree that it expects.
        unsafe {
            let relation = PgRelation::open(relid);
            let raw = raw_clause(&text)?;
            step.set(Step::Analyze);
            let kind = pg_sys::ParseExprKind::EXPR_KIND_WHERE;
            let typed = parse::transform(&relation, raw, &text, params, kind, step)?;
            step.set(Step::Fold);
            let typed = fold_deep(fold_deep(typed));
            let text = deparse(typed, &relation);
            let root = self.select(relid, typed, Vec::new(), Vec::new())?;
            check::columns_are_known(root.tree, known, &relation, self.source)?;
            let uses = uses::uses_deep(typed);
            Ok(Analyzed { text, root, uses })
        }
    }

    /// The refusal of something at a node's place.
    pub(super) unsafe fn refuse(&self, node: *mut Node, message: &str) -> Refused {
        // SAFETY: exprLocation() takes any expression node.
        self.source
            .locate(unsafe { pg_sys::exprLocation(node) }, message)
    }

    /// The select of a table's rows for which a condition is true, and these memberships besides.
    ///
    /// # Safety
    /// `condition`, which may be null, and `outputs` are analyzed expressions whose Vars are of level 0 and number 1.
    pub(super) unsafe fn select(
        &self,
        relid: Oid,
        condition: *mut Node,
        outputs: Vec<*mut Node>,
        joined: Vec<Membership>,
    ) -> Result<Rc<Select>, Refused> {
        let mut memberships = joined;
        // SAFETY: as the caller says; what is made is an analyzed expression without sublinks.
        unsafe {
            let relation = PgRelation::open(relid);
            let mut quals = std::ptr::null_mut();
            for number in 0..memberships.len() {
                quals = pg_sys::lappend(quals, placeholder(number, pg_sys::BOOLOID).cast());
            }
            if !condition.is_null() {
                let replaced = self.replace(condition, &mut memberships, true)?;
                quals = pg_sys::lappend(quals, replaced.cast());
            }
            let mut tree: *mut Node = std::ptr::null_mut();
            if !quals.is_null() {
                tree = self.checked(pg_sys::make_ands_explicit(quals).cast(), &relation)?;
            }
            let mut read = vec![tree];
            for output in &outputs {
                read.push(self.checked(*output, &relation)?);
            }
            let outputs = read[1..].to_vec();
            for link in memberships.iter_mut().flat_map(|it| &mut it.links) {
                link.expression = self.checked(link.expression, &relation)?;
                read.push(link.expression);
            }
            let read = read.into_iter().filter(|node| !node.is_null());
            let mut columns: Vec<i16> = read.flat_map(|node| columns(node)).collect();
            columns.sort_unstable();
            columns.dedup();
            let identity = identity(relid, tree, &outputs, &memberships);
            Ok(Rc::new(Select {
                relid: relid.to_u32(),
                tree,
                memberships,
                outputs,
                columns,
                identity,
                _memory: self.memory.clone(),
            }))
        }
    }

    unsafe fn checked(
        &self,
        typed: *mut Node,
        relation: &PgRelation,
    ) -> Result<*mut Node, Refused> {
        // SAFETY: an analyzed expression on the relation.
        unsafe {
            check::check(typed, check::Origin::Text(self.source))?;
            let folded = parse::fold(parse::fold(typed));
            check::check(folded, check::Origin::Folded)?;
            check::columns_are_stored(folded, relation)?;
            Ok(folded)
        }
    }

    /// The expression with each of its subqueries replaced by the Param that stands for its membership.
    unsafe fn replace(
        &self,
        node: *mut Node,
        memberships: &mut Vec<Membership>,
        positive: bool,
    ) -> Result<*mut Node, Refused> {
        // SAFETY: a node's tag tells its type; copies are changed, not what was given.
        unsafe {
            let correlated = || scalar::correlated(node);
            match (*node).type_ {
                NodeTag::T_BoolExpr => {
                    let given = node.cast::<pg_sys::BoolExpr>();
                    let positive = positive && (*given).boolop != pg_sys::BoolExprType::NOT_EXPR;
                    let mut args = std::ptr::null_mut();
                    for cell in cells((*given).args) {
                        let arg = self.replace(cell.ptr_value.cast(), memberships, positive)?;
                        args = pg_sys::lappend(args, arg.cast());
                    }
                    Ok(pg_sys::makeBoolExpr((*given).boolop, args, (*given).location).cast())
                }
                _ if let Some(sublink) = correlated() => {
                    let joins = Joins {
                        builder: self,
                        at: sublink.cast(),
                    };
                    joins.condition_on(node, sublink, memberships, positive)
                }
                NodeTag::T_SubLink => self.sublink(node.cast(), memberships, positive),
                _ if !pg_sys::checkExprHasSubLink(node) => Ok(node),
                _ => {
                    let mut refused = None;
                    let replaced = tree::rewrite(node, &mut |node| {
                        if (*node).type_ != NodeTag::T_SubLink || refused.is_some() {
                            return node;
                        }
                        let before = memberships.len();
                        let replaced = self.sublink(node.cast(), memberships, false);
                        memberships[before..]
                            .iter_mut()
                            .for_each(|it| it.guarded = true);
                        replaced.unwrap_or_else(|why| {
                            refused = Some(why);
                            node
                        })
                    });
                    refused.map_or(Ok(replaced), Err)
                }
            }
        }
    }

    unsafe fn sublink(
        &self,
        sublink: *mut pg_sys::SubLink,
        memberships: &mut Vec<Membership>,
        positive: bool,
    ) -> Result<*mut Node, Refused> {
        // SAFETY: the subselect of an analyzed sublink is a Query.
        unsafe {
            let query = (*sublink).subselect.cast::<pg_sys::Query>();
            let joins = Joins {
                builder: self,
                at: sublink.cast(),
            };
            match (*sublink).subLinkType {
                SubLinkType::EXISTS_SUBLINK => joins.exists(query, memberships, positive),
                SubLinkType::ANY_SUBLINK => {
                    joins.any(query, (*sublink).testexpr, memberships, positive)
                }
                SubLinkType::ALL_SUBLINK => {
                    let negated = self.negated((*sublink).testexpr, sublink.cast())?;
                    let any = joins.any(query, negated, memberships, false)?;
                    Ok(not(any))
                }
                SubLinkType::EXPR_SUBLINK => joins.scalar(query, memberships),
                SubLinkType::ARRAY_SUBLINK => Err(self.refuse(
                    sublink.cast(),
                    "ARRAY(SELECT …) is not supported, write = ANY (SELECT …)",
                )),
                _ => Err(self.refuse(
                    sublink.cast(),
                    "a comparison of rows with a subquery is not supported, write IN (SELECT …)",
                )),
            }
        }
    }

    /// `x op ALL (…)` is `NOT x op' ANY (…)` where op' is the operator's negator.
    unsafe fn negated(&self, test: *mut Node, at: *mut Node) -> Result<*mut Node, Refused> {
        // SAFETY: the test expression of a sublink on one column is an OpExpr.
        unsafe {
            let negator = match (*test).type_ {
                NodeTag::T_OpExpr => pg_sys::get_negator((*test.cast::<pg_sys::OpExpr>()).opno),
                _ => Oid::INVALID,
            };
            if negator == Oid::INVALID {
                return Err(self.refuse(at, "ALL with this operator is not supported"));
            }
            let copy: *mut pg_sys::OpExpr = pg_sys::copyObjectImpl(test.cast()).cast();
            (*copy).opno = negator;
            (*copy).opfuncid = pg_sys::get_opcode(negator);
            Ok(copy.cast())
        }
    }
}

/// The Param that stands for a membership.
pub(super) unsafe fn placeholder(number: usize, type_oid: Oid) -> *mut Node {
    // SAFETY: makes a node in the current memory context.
    unsafe {
        let param = pg_sys::palloc0(size_of::<pg_sys::Param>()).cast::<pg_sys::Param>();
        (*param).xpr.type_ = NodeTag::T_Param;
        (*param).paramkind = pg_sys::ParamKind::PARAM_EXTERN;
        (*param).paramid = number as i32 + 1;
        (*param).paramtype = type_oid;
        (*param).paramtypmod = -1;
        (*param).paramcollid = pg_sys::get_typcollation(type_oid);
        (*param).location = -1;
        param.cast()
    }
}

/// The opposite of an expression.
pub(super) unsafe fn not(node: *mut Node) -> *mut Node {
    // SAFETY: a list of one expression.
    unsafe {
        let args = pg_sys::lappend(std::ptr::null_mut(), node.cast());
        pg_sys::makeBoolExpr(pg_sys::BoolExprType::NOT_EXPR, args, -1).cast()
    }
}

/// Whether an expression is true, and neither false nor null.
pub(super) unsafe fn is_true(node: *mut Node) -> *mut Node {
    // SAFETY: makes a node in the current memory context.
    unsafe {
        let test = pg_sys::palloc0(size_of::<pg_sys::BooleanTest>()).cast::<pg_sys::BooleanTest>();
        (*test).xpr.type_ = NodeTag::T_BooleanTest;
        (*test).arg = node.cast();
        (*test).booltesttype = pg_sys::BoolTestType::IS_TRUE;
        (*test).location = -1;
        test.cast()
    }
}

/// Folds what the session says about its user and settings, and inlines SQL functions, in subqueries, too: what is
/// found out there must be part of the definition.
unsafe fn fold_deep(typed: *mut Node) -> *mut Node {
    // SAFETY: as for fold(), node by node.
    unsafe {
        tree::rewrite_deep(typed, &mut |node| {
            let is_call = (*node).type_ == NodeTag::T_FuncExpr;
            if check::is_session_value(node) || is_call || is_constant(node) {
                parse::fold(node)
            } else {
                parse::name_collation(node)
            }
        })
    }
}

/// Is it an expression of constants, that evaluating makes one of?
unsafe fn is_constant(node: *mut Node) -> bool {
    use NodeTag::*;
    // SAFETY: a node's tag tells its type.
    unsafe {
        matches!(
            (*node).type_,
            T_OpExpr
                | T_DistinctExpr
                | T_NullIfExpr
                | T_ScalarArrayOpExpr
                | T_CoerceViaIO
                | T_ArrayCoerceExpr
                | T_CoalesceExpr
                | T_CaseExpr
                | T_MinMaxExpr
                | T_ArrayExpr
                | T_SubscriptingRef
                | T_NullTest
                | T_BooleanTest
        ) && tree::search(node, &mut |part| {
            matches!((*part).type_, T_Var | T_Param | T_SubLink | T_CaseTestExpr).then_some(())
        })
        .is_none()
    }
}

unsafe fn identity(
    relid: Oid,
    tree: *mut Node,
    outputs: &[*mut Node],
    memberships: &[Membership],
) -> String {
    // SAFETY: nodeToString() takes any node, also null.
    let text = |node: *mut Node| unsafe { template::text(node) };
    let outputs: String = outputs.iter().map(|output| text(*output)).collect();
    let mut identity = format!("{relid} {outputs} where {}", text(tree));
    for Membership { select, links, .. } in memberships {
        identity += " with ";
        for link in links {
            identity += &format!(
                "{} {} {} {} ",
                text(link.expression),
                link.operator,
                link.collation,
                link.two_valued
            );
        }
        identity += &format!("in ({})", select.identity);
    }
    identity
}
