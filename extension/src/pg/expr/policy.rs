//! Row-level security as a part of where clauses.
//!
//! Postgres adds the policies of a table to a query when it rewrites it. A shape's where clause is a text that is read
//! again by many: so the policies become a part of that text, once, for the role and settings that are in force. Postgres
//! itself says which they are, and they are added as it would: to each table that is named, at any depth, the tables that
//! policies name among them.
//!
//! A security barrier is kept by CASE, whose branches Postgres evaluates only when their condition is true: what might tell
//! of a row by its error or its time, which is all that is not leakproof, is asked only about rows that the policies let
//! pass.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_int};
use std::rc::Rc;

use pg_sys::{Node, NodeTag, Oid, SubLinkType};
use pgrx::{PgRelation, pg_sys};

use super::super::list::cells;
use super::super::memory::Context;
use super::super::relation::{Lock, Relation};
use super::parse::{self, Step, attempt_in_steps, deparse, raw_clause};
use super::{Refused, Source, analyze, analyze_subqueries, template, tree};

/// What row-level security lets the current user see of a table, as Postgres says it now: a digest of it. None where
/// it does not apply, or there is no table any more.
pub fn state(relid: Oid) -> Option<String> {
    let _locked = Relation::open(relid, Lock::AccessShare)?;
    let memory = Context::new();
    memory.run(|| {
        // SAFETY: it is locked; what is made belongs to the context.
        let quals = unsafe { of_relation(&PgRelation::open(relid)) }?;
        let mut text = String::new();
        for qual in quals {
            // SAFETY: an analyzed expression.
            let inlined = unsafe { inlined(qual) };
            for expression in [qual, inlined] {
                // SAFETY: as above.
                text += &unsafe { template::text(expression) };
                functions(expression).into_iter().for_each(|function| {
                    text += " ";
                    text += &function;
                });
            }
        }
        Some(xxhash_rust::xxh3::xxh3_64(text.as_bytes()).to_string())
    })
}

/// An expression with calls of functions in SQL replaced by what they say, those that these call as well; settings are
/// left as they are.
///
/// # Safety
/// `node` is an analyzed expression.
unsafe fn inlined(node: *mut Node) -> *mut Node {
    // SAFETY: rewrites a copy, call by call: the planner does not look into subqueries of an expression.
    unsafe {
        tree::rewrite_deep(node, &mut |node| {
            if (*node).type_ == NodeTag::T_FuncExpr {
                pg_sys::eval_const_expressions(std::ptr::null_mut(), node)
            } else {
                node
            }
        })
    }
}

/// The definitions of the functions that an expression and its subqueries call, but for built-in ones.
fn functions(node: *mut Node) -> Vec<String> {
    let mut called = BTreeSet::new();
    // SAFETY: visits each node of a copy.
    unsafe {
        tree::rewrite_deep(node, &mut |node| {
            let all = tree::functions_of(node).into_iter().map(|oid| oid.to_u32());
            called.extend(all.filter(|oid| *oid >= pg_sys::FirstNormalObjectId));
            node
        });
    }
    let definition = |oid: u32| super::uses::definition(Oid::from_u32(oid));
    called.into_iter().filter_map(definition).collect()
}

/// A where clause on a table that the caller has locked, with the policies for the current user put in; `clause` is canonical.
/// None if row-level security applies to no table that it names.
pub fn secured(relid: Oid, clause: Option<&str>) -> Result<Option<String>, Refused> {
    let source = Source {
        is_limited: false,
        ..Source::of_where(clause.unwrap_or("true"))
    };
    let memory = Rc::new(Context::new());
    memory.run(|| {
        attempt_in_steps(&source, |step| {
            // SAFETY: the caller's lock keeps the relation open-able; the text lives until the tree has been made.
            unsafe { secured_or_raise(relid, &source, step) }
        })
    })
}

unsafe fn secured_or_raise(
    relid: Oid,
    source: &Source,
    step: &std::cell::Cell<Step>,
) -> Result<Option<String>, Refused> {
    let text = CString::new(source.text.as_str()).unwrap_or_default();
    // SAFETY: each step hands the next the tree that it expects.
    unsafe {
        let relation = PgRelation::open(relid);
        let raw = raw_clause(&text)?;
        step.set(Step::Analyze);
        let kind = pg_sys::ParseExprKind::EXPR_KIND_WHERE;
        let typed = parse::transform(&relation, raw, &text, &[], kind, step)?;
        step.set(Step::Fold);
        let mut barrier = Barrier::default();
        let typed = barrier.in_subqueries(typed)?;
        let combined = match of_relation(&relation) {
            None => typed,
            Some(quals) => {
                let quals = barrier.of_policies(relid, quals)?;
                let mut all = Vec::new();
                parse::conjuncts(typed, &mut all);
                conjunction(combine(&[(1, quals)], all))
            }
        };
        Ok(barrier.applies.then(|| deparse(combined, &relation)))
    }
}

/// Adds policies to queries.
#[derive(Default)]
struct Barrier {
    /// There was a table to which they apply.
    applies: bool,
    /// Tables whose policies are being added: a policy that asks about its own table would never end.
    open: Vec<Oid>,
}

impl Barrier {
    /// Policies with what their own subqueries need.
    unsafe fn of_policies(
        &mut self,
        relid: Oid,
        quals: Vec<*mut Node>,
    ) -> Result<Vec<*mut Node>, Refused> {
        self.applies = true;
        if self.open.contains(&relid) {
            let name = crate::pg::relation::quoted_name(relid.to_u32());
            let message = format!("infinite recursion detected in policy for relation {name}");
            return Err(Refused(message));
        }
        self.open.push(relid);
        // SAFETY: analyzed expressions.
        let all = quals
            .into_iter()
            .map(|qual| unsafe { self.in_subqueries(qual) });
        let all = all.collect();
        self.open.pop();
        all
    }

    /// An expression with policies in its subqueries. One that has no table is no subquery any more.
    unsafe fn in_subqueries(&mut self, node: *mut Node) -> Result<*mut Node, Refused> {
        let mut refused = None;
        // SAFETY: a node's tag tells its type; the rewritten tree is a copy, so its nodes may be changed.
        let rewritten = unsafe {
            tree::rewrite(node, &mut |node| {
                if (*node).type_ != NodeTag::T_SubLink || refused.is_some() {
                    return node;
                }
                let sublink = node.cast::<pg_sys::SubLink>();
                let query = pg_sys::copyObjectImpl((*sublink).subselect.cast()).cast();
                pg_sys::AcquireRewriteLocks(query, true, false);
                if let Some(value) = value_of(sublink, query) {
                    return self.in_subqueries(value).unwrap_or_else(|why| {
                        refused = Some(why);
                        node
                    });
                }
                if let Err(why) = self.in_query(query) {
                    refused = Some(why);
                }
                (*sublink).subselect = query.cast();
                node
            })
        };
        refused.map_or(Ok(rewritten), Err)
    }

    /// Adds policies to a query.
    unsafe fn in_query(&mut self, query: *mut pg_sys::Query) -> Result<(), Refused> {
        let mut policies = Vec::new();
        // SAFETY: the cells of a range table are entries, those of a target list target entries.
        unsafe {
            for (place, cell) in cells((*query).rtable).iter().enumerate() {
                let entry = cell.ptr_value.cast::<pg_sys::RangeTblEntry>();
                if (*entry).rtekind == pg_sys::RTEKind::RTE_SUBQUERY {
                    self.in_query((*entry).subquery)?;
                } else if (*entry).rtekind == pg_sys::RTEKind::RTE_RELATION {
                    // What a query locks with FOR UPDATE is refused elsewhere.
                    let index = place as c_int + 1;
                    if let Some(quals) = of_entry(query, entry, index) {
                        policies.push((index, self.of_policies((*entry).relid, quals)?));
                    }
                }
            }
            for cell in cells((*query).targetList) {
                let entry = cell.ptr_value.cast::<pg_sys::TargetEntry>();
                (*entry).expr = self.in_subqueries((*entry).expr.cast())?.cast();
            }
            let from = (*query).jointree;
            (*from).quals = self.in_subqueries((*from).quals)?;
            for cell in cells((*from).fromlist) {
                self.in_joins(cell.ptr_value.cast())?;
            }
            if policies.is_empty() {
                return Ok(());
            }
            let mut all = Vec::new();
            if !(*from).quals.is_null() {
                parse::conjuncts((*from).quals, &mut all);
            }
            for cell in cells((*from).fromlist) {
                hoist(cell.ptr_value.cast(), &mut all);
            }
            let flat = all.into_iter();
            let flat = flat.map(|node| tree::without_join_names(query, node));
            let all = flat.collect();
            (*from).quals = conjunction(combine(&policies, all));
            (*query).hasSubLinks = true;
        }
        Ok(())
    }

    unsafe fn in_joins(&mut self, node: *mut Node) -> Result<(), Refused> {
        // SAFETY: a node's tag tells its type.
        unsafe {
            if (*node).type_ != NodeTag::T_JoinExpr {
                return Ok(());
            }
            let join = node.cast::<pg_sys::JoinExpr>();
            (*join).quals = self.in_subqueries((*join).quals)?;
            self.in_joins((*join).larg)?;
            self.in_joins((*join).rarg)
        }
    }
}

/// The expression that a subquery without a table is, one level up: `(SELECT f())`.
unsafe fn value_of(sublink: *mut pg_sys::SubLink, query: *mut pg_sys::Query) -> Option<*mut Node> {
    // SAFETY: reads fields of the query; changes a copy.
    unsafe {
        let from = (*query).jointree;
        let [only] = cells((*query).targetList) else {
            return None;
        };
        let is_value = (*sublink).subLinkType == SubLinkType::EXPR_SUBLINK
            && (*query).rtable.is_null()
            && (*query).cteList.is_null()
            && (*from).quals.is_null()
            && (*query).havingQual.is_null()
            && (*query).limitCount.is_null()
            && (*query).limitOffset.is_null()
            && (*query).groupClause.is_null()
            && !(*query).hasAggs
            && !(*query).hasTargetSRFs
            && !(*query).hasWindowFuncs;
        let value = (*only.ptr_value.cast::<pg_sys::TargetEntry>()).expr.cast();
        is_value.then(|| {
            pg_sys::IncrementVarSublevelsUp(value, -1, 1);
            value
        })
    }
}

/// Takes the conditions of inner joins out, so that they can be put behind the policies.
unsafe fn hoist(node: *mut Node, all: &mut Vec<*mut Node>) {
    // SAFETY: a node's tag tells its type.
    unsafe {
        let join = node.cast::<pg_sys::JoinExpr>();
        if (*node).type_ != NodeTag::T_JoinExpr || (*join).jointype != pg_sys::JoinType::JOIN_INNER
        {
            return;
        }
        // Those of USING are comparisons for equality, and stay where they are.
        if (*join).usingClause.is_null() && !(*join).quals.is_null() && !(*join).isNatural {
            parse::conjuncts((*join).quals, all);
            (*join).quals = pg_sys::makeBoolConst(true, false);
        }
        hoist((*join).larg, all);
        hoist((*join).rarg, all);
    }
}

/// The policies of a range table's entries, what is leakproof, and the rest, each in a CASE that has the policies of the
/// entries which it names for its condition.
unsafe fn combine(
    policies: &[(c_int, Vec<*mut Node>)],
    conditions: Vec<*mut Node>,
) -> Vec<*mut Node> {
    // SAFETY: analyzed expressions.
    unsafe {
        let conditions = conditions.into_iter().filter(|node| !parse::is_true(*node));
        let (leaky, mut all): (Vec<_>, Vec<_>) = conditions.partition(|node| is_leaky(*node));
        let mut guarded: Vec<(Vec<c_int>, Vec<*mut Node>)> = Vec::new();
        for condition in leaky {
            let named = pg_sys::pull_varnos_of_level(std::ptr::null_mut(), condition, 0);
            let indexes = policies.iter().map(|(index, _)| *index);
            let named: Vec<c_int> = indexes
                .filter(|it| pg_sys::bms_is_member(*it, named))
                .collect();
            match guarded.iter_mut().find(|(other, _)| *other == named) {
                Some((_, same)) => same.push(condition),
                None => guarded.push((named, vec![condition])),
            }
        }
        let quals = policies.iter().flat_map(|(_, quals)| quals).copied();
        all.splice(..0, quals);
        for (named, leaky) in guarded {
            let of_named = policies.iter().filter(|(index, _)| named.contains(index));
            let guards: Vec<_> = of_named.flat_map(|(_, quals)| quals).copied().collect();
            all.push(match guards.is_empty() {
                true => conjunction(leaky),
                false => case(conjunction(guards), conjunction(leaky)),
            });
        }
        all
    }
}

/// `CASE WHEN condition THEN result ELSE false END`
unsafe fn case(condition: *mut Node, result: *mut Node) -> *mut Node {
    // SAFETY: makes nodes in the current memory context.
    unsafe {
        let when = pg_sys::palloc0(size_of::<pg_sys::CaseWhen>()).cast::<pg_sys::CaseWhen>();
        (*when).xpr.type_ = NodeTag::T_CaseWhen;
        (*when).expr = pg_sys::copyObjectImpl(condition.cast()).cast();
        (*when).result = result.cast();
        (*when).location = -1;
        let case = pg_sys::palloc0(size_of::<pg_sys::CaseExpr>()).cast::<pg_sys::CaseExpr>();
        (*case).xpr.type_ = NodeTag::T_CaseExpr;
        (*case).casetype = pg_sys::BOOLOID;
        (*case).args = pg_sys::lappend(std::ptr::null_mut(), when.cast());
        (*case).defresult = pg_sys::makeBoolConst(false, false).cast();
        (*case).location = -1;
        case.cast()
    }
}

unsafe fn conjunction(all: Vec<*mut Node>) -> *mut Node {
    // SAFETY: analyzed expressions.
    unsafe {
        let mut list = std::ptr::null_mut();
        for node in all {
            list = pg_sys::lappend(list, node.cast());
        }
        pg_sys::make_ands_explicit(list).cast()
    }
}

/// Might a condition tell of rows that it is evaluated for?
unsafe fn is_leaky(condition: *mut Node) -> bool {
    // SAFETY: an analyzed expression.
    unsafe {
        if is_equality(condition) {
            return false;
        }
        if !pg_sys::checkExprHasSubLink(condition) {
            return pg_sys::contain_leaked_vars(condition);
        }
        let mut leaky = false;
        tree::rewrite_deep(condition, &mut |node| {
            use NodeTag::*;
            let harmless = matches!(
                (*node).type_,
                T_Var
                    | T_Const
                    | T_Param
                    | T_OpExpr
                    | T_ScalarArrayOpExpr
                    | T_FuncExpr
                    | T_BoolExpr
                    | T_RelabelType
                    | T_NullTest
                    | T_BooleanTest
                    | T_SubLink
                    | T_TargetEntry
                    | T_FromExpr
                    | T_JoinExpr
                    | T_RangeTblRef
                    | T_CollateExpr
            );
            let functions = tree::functions_of(node);
            leaky |= !harmless
                || !functions
                    .into_iter()
                    .all(|oid| pg_sys::get_func_leakproof(oid));
            node
        });
        leaky
    }
}

/// A comparison of two columns for equality by an operator of Postgres: joins are made of these, and none raises an
/// error.
unsafe fn is_equality(condition: *mut Node) -> bool {
    // SAFETY: a node's tag tells its type.
    unsafe {
        let call = condition.cast::<pg_sys::OpExpr>();
        if (*condition).type_ != NodeTag::T_OpExpr {
            return false;
        }
        let is_column = |mut node: *mut Node| {
            while (*node).type_ == NodeTag::T_RelabelType {
                node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
            }
            (*node).type_ == NodeTag::T_Var
        };
        let args = cells((*call).args);
        let left = args[0].ptr_value.cast();
        args.iter().all(|cell| is_column(cell.ptr_value.cast()))
            && (*call).opno.to_u32() < pg_sys::FirstNormalObjectId
            && pg_sys::op_mergejoinable((*call).opno, pg_sys::exprType(left))
    }
}

/// The policies for the current user on a table; None if row-level security does not apply.
unsafe fn of_relation(relation: &PgRelation) -> Option<Vec<*mut Node>> {
    // SAFETY: a query that has the relation for its only entry.
    unsafe {
        let pstate = parse::parse_state(relation, c"");
        let query = pg_sys::palloc0(size_of::<pg_sys::Query>()).cast::<pg_sys::Query>();
        (*query).type_ = NodeTag::T_Query;
        (*query).commandType = pg_sys::CmdType::CMD_SELECT;
        (*query).rtable = (*pstate).p_rtable;
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        {
            (*query).rteperminfos = (*pstate).p_rteperminfos;
        }
        let [only] = cells((*query).rtable) else {
            return None;
        };
        of_entry(query, only.ptr_value.cast(), 1)
    }
}

/// The same for an entry of a query.
unsafe fn of_entry(
    query: *mut pg_sys::Query,
    entry: *mut pg_sys::RangeTblEntry,
    index: c_int,
) -> Option<Vec<*mut Node>> {
    let (mut quals, mut checks) = (std::ptr::null_mut(), std::ptr::null_mut());
    let (mut applies, mut has_sublinks) = (false, false);
    // SAFETY: as fireRIRrules() does; the relation is locked since the query was analyzed.
    unsafe {
        if (*entry).relkind as u8 != pg_sys::RELKIND_RELATION
            && (*entry).relkind as u8 != pg_sys::RELKIND_PARTITIONED_TABLE
        {
            return None;
        }
        let state = pg_sys::check_enable_rls((*entry).relid, Oid::INVALID, true);
        if state != pg_sys::CheckEnableRlsResult::RLS_ENABLED as c_int {
            return None;
        }
        pg_sys::get_row_security_policies(
            query,
            entry,
            index,
            &mut quals,
            &mut checks,
            &mut applies,
            &mut has_sublinks,
        );
        let copy = |cell: &pg_sys::ListCell| {
            pg_sys::copyObjectImpl(cell.ptr_value.cast_const()).cast::<Node>()
        };
        Some(cells(quals).iter().map(copy).collect())
    }
}

/// Which policy of a table cannot be a part of a where clause, and why; None if each of them can.
pub fn unmaintainable(relid: Oid) -> Option<String> {
    // SAFETY: the policies belong to the relation, which is open and locked; their names and expressions are copied.
    let policies: Vec<(String, String)> = unsafe {
        let relation = PgRelation::open(relid);
        let security = (*relation.as_ptr()).rd_rsdesc;
        if security.is_null() {
            return None;
        }
        let policies = cells((*security).policies).iter().filter_map(|cell| {
            let policy = cell.ptr_value.cast::<pg_sys::RowSecurityPolicy>();
            let concerns_reads = matches!((*policy).polcmd as u8, b'r' | b'*');
            if !concerns_reads || (*policy).qual.is_null() {
                return None;
            }
            let name = CStr::from_ptr((*policy).policy_name).to_string_lossy();
            Some((name.into_owned(), deparse((*policy).qual.cast(), &relation)))
        });
        policies.collect()
    };
    policies.into_iter().find_map(|(name, text)| {
        let text = secured_alone(relid, &text).unwrap_or(text);
        let outcome = if super::has_subqueries(&text) {
            analyze_subqueries(relid, &text, &[], None).map(|_| ())
        } else {
            analyze(relid, &text, &[]).map(|_| ())
        };
        let Refused(why) = outcome.err()?;
        Some(format!(
            "policy \"{name}\" cannot be maintained: {}",
            without_place(&why)
        ))
    })
}

/// The text of a policy without subqueries that have no table.
fn secured_alone(relid: Oid, text: &str) -> Option<String> {
    let source = Source {
        is_limited: false,
        ..Source::of_where(text)
    };
    let memory = Context::new();
    memory.run(|| {
        let rewritten = attempt_in_steps(&source, |step| {
            let text = CString::new(source.text.as_str()).unwrap_or_default();
            // SAFETY: as in secured().
            unsafe {
                let relation = PgRelation::open(relid);
                let raw = raw_clause(&text)?;
                let kind = pg_sys::ParseExprKind::EXPR_KIND_WHERE;
                let typed = parse::transform(&relation, raw, &text, &[], kind, step)?;
                let typed = Barrier::default().in_subqueries(typed)?;
                Ok(deparse(typed, &relation))
            }
        });
        rewritten.ok()
    })
}

/// A refusal without the place in a text that nobody has written.
pub fn without_place(why: &str) -> &str {
    let rest = why.strip_prefix("At location ");
    rest.and_then(|rest| rest.split_once(": "))
        .map_or(why, |(_, rest)| rest)
}
