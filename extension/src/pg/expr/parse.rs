//! From the text of a where clause to an expression tree of constants, columns and functions that may be called.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};

use pg_sys::{Node, NodeTag, Oid};
use pgrx::PgSqlErrorCode::*;
use pgrx::{PgRelation, pg_sys};

use super::super::attempt::{Caught, attempt};
use super::super::list::cells;
use super::{Refused, Source, check, tree, uses};

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    /// In parser/parse_param.h, which the bindings leave out.
    fn setup_parse_variable_parameters(
        pstate: *mut pg_sys::ParseState,
        types: *mut *mut Oid,
        count: *mut c_int,
    );
}

/// The longest text that is parsed, as the protocol has it.
const MAX_BYTES: usize = 65536;

/// A where clause that may be evaluated.
#[derive(Debug)]
pub struct Where {
    /// The expression, allocated in the memory context that was current.
    pub(super) tree: *mut Node,
    /// The canonical text: parameters, session values and constant parts folded. None if every row is in, or if it was not
    /// asked for.
    pub text: Option<String>,
    /// The attribute numbers that it reads, ascending.
    pub columns: Vec<i16>,
    /// Those that its text names: folding may have done away with some.
    pub named_columns: Vec<i16>,
    /// A digest of what it depends on beside the table; empty if that cannot change.
    pub uses: String,
}

impl Where {
    /// Might it tell of rows that it is evaluated for, by an error or its time?
    pub fn is_leaky(&self) -> bool {
        // SAFETY: an analyzed expression without sublinks.
        unsafe { pg_sys::contain_leaked_vars(self.tree) }
    }

    /// Are both the same expression, whatever their texts?
    pub fn is(&self, other: &Where) -> bool {
        // SAFETY: both trees live as long as the memory context that the caller analyzed them in.
        unsafe { pg_sys::equal(self.tree.cast(), other.tree.cast()) }
    }
}

/// Parses, checks and folds a where clause on a table that the caller has locked. `params` are the values of `$1`,
/// `$2` and so on. Whatever is wrong with the text or the values comes back as a refusal, not as an error.
pub fn analyze(relid: Oid, clause: &str, params: &[Option<String>]) -> Result<Where, Refused> {
    read(relid, clause, params, None, true)
}

/// The same, where the clause may name only columns with these attribute numbers, if they are given: any other is
/// unknown to it.
pub fn analyze_among(
    relid: Oid,
    clause: &str,
    params: &[Option<String>],
    known: Option<&[i16]>,
) -> Result<Where, Refused> {
    read(relid, clause, params, known, true)
}

/// The same for a text that is canonical: without making one of it again.
pub fn reanalyze(relid: Oid, text: &str) -> Result<Where, Refused> {
    read(relid, text, &[], None, false)
}

fn read(
    relid: Oid,
    clause: &str,
    params: &[Option<String>],
    known: Option<&[i16]>,
    with_text: bool,
) -> Result<Where, Refused> {
    let source = Source {
        is_limited: with_text,
        ..Source::of_where(clause)
    };
    attempt_in_steps(&source, |step| {
        // SAFETY: the caller's lock keeps the relation open-able; the text lives until the tree has been made.
        unsafe { analyze_or_raise(relid, &source, params, known, with_text, step) }
    })
}

/// Runs an analysis of a text that is not too long, and puts the error that it raises into the protocol's words.
pub(super) fn attempt_in_steps<T>(
    source: &Source,
    analyze: impl FnOnce(&Cell<Step>) -> Result<T, Refused>,
) -> Result<T, Refused> {
    if source.is_limited && source.text.len() > MAX_BYTES {
        return Err(Refused(format!(
            "the query is bigger than maximum size of {MAX_BYTES} bytes"
        )));
    }
    let step = Cell::new(Step::Parse);
    let outcome = attempt(|| analyze(&step));
    outcome.unwrap_or_else(|error| Err(in_words_of_protocol(source, step.get(), error)))
}

/// What was being done when Postgres raised an error.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Parse,
    Analyze,
    ReadParameter(usize),
    Fold,
}

/// # Safety
/// A lock on the relation is held.
unsafe fn analyze_or_raise(
    relid: Oid,
    source: &Source,
    params: &[Option<String>],
    known: Option<&[i16]>,
    with_text: bool,
    step: &Cell<Step>,
) -> Result<Where, Refused> {
    let text = CString::new(source.text.as_str()).unwrap_or_default();
    // SAFETY: each step hands the next the tree that it expects; what is allocated belongs to the current context.
    unsafe {
        let relation = PgRelation::open(relid);
        let raw = raw_clause(&text)?;
        step.set(Step::Analyze);
        let typed = {
            let kind = pg_sys::ParseExprKind::EXPR_KIND_CHECK_CONSTRAINT;
            transform(&relation, raw, &text, params, kind, step)?
        };
        check::check(typed, check::Origin::Text(source))?;
        check::columns_are_known(typed, known, &relation, source)?;
        step.set(Step::Fold);
        let tree = fold(fold(typed));
        check::check(tree, check::Origin::Folded)?;
        check::columns_are_stored(tree, &relation)?;
        let text = (with_text && !is_true(tree)).then(|| deparse(tree, &relation));
        Ok(Where {
            tree,
            text,
            columns: columns(tree),
            named_columns: columns(typed),
            uses: uses::uses(tree),
        })
    }
}

/// The expression after WHERE, if the text is that one statement and the clause its only one.
///
/// # Safety
/// As for [`select`].
pub(super) unsafe fn raw_clause(text: &CStr) -> Result<*mut Node, Refused> {
    // SAFETY: the node that select() gives is a SelectStmt.
    unsafe {
        let select = select(text)?;
        let clause = (*select).whereClause;
        let only_where = (*select).op == pg_sys::SetOperation::SETOP_NONE
            && !clause.is_null()
            && [
                (*select).groupClause,
                (*select).windowClause,
                (*select).sortClause,
                (*select).lockingClause,
            ]
            .iter()
            .all(|list| list.is_null())
            && [
                (*select).havingClause,
                (*select).limitCount,
                (*select).limitOffset,
            ]
            .iter()
            .all(|node| node.is_null());
        if only_where {
            Ok(clause)
        } else {
            Err(malformed())
        }
    }
}

/// Has a where clause subqueries? Not one that cannot be parsed.
pub fn has_subqueries(clause: &str) -> bool {
    let source = Source::of_where(clause);
    let text = CString::new(source.text.as_str()).unwrap_or_default();
    // SAFETY: what raw_clause() gives is a raw expression.
    let found = attempt_in_steps(&source, |_| unsafe {
        raw_clause(&text).map(|raw| tree::has_raw_sublink(raw))
    });
    found.unwrap_or(false)
}

/// The text's one statement, which is a SELECT.
///
/// # Safety
/// To be called inside [`attempt_in_steps`], whose memory context the tree belongs to.
pub(super) unsafe fn select(text: &CStr) -> Result<*mut pg_sys::SelectStmt, Refused> {
    // SAFETY: raw_parser() returns a List of RawStmt, which point to their statements.
    unsafe {
        let statements = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        let [only] = cells(statements) else {
            return Err(split());
        };
        let statement = only.ptr_value.cast::<pg_sys::RawStmt>();
        if (*statement).stmt_len != 0 {
            return Err(split());
        }
        let select = (*statement).stmt.cast::<pg_sys::SelectStmt>();
        let is_select = (*select).type_ == NodeTag::T_SelectStmt;
        if is_select {
            Ok(select)
        } else {
            Err(malformed())
        }
    }
}

/// The refusal of clauses behind the one that is asked for.
pub(super) fn malformed() -> Refused {
    Refused("malformed query ending with SQL clauses".into())
}

fn split() -> Refused {
    Refused("unescaped \";\" causing statement split".into())
}

/// Resolves names and types, and puts the parameters' values in. The kind CHECK CONSTRAINT refuses subqueries,
/// aggregates, window and set-returning functions, WHERE all but subqueries.
///
/// # Safety
/// `raw` is a raw expression; the relation stays open, and the text where it is.
pub(super) unsafe fn transform(
    relation: &PgRelation,
    raw: *mut Node,
    text: &CStr,
    params: &[Option<String>],
    kind: pg_sys::ParseExprKind::Type,
    step: &Cell<Step>,
) -> Result<*mut Node, Refused> {
    let mut types = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: as the caller says.
    if let Some(number) = unsafe { excessive_parameter(raw, text) } {
        return Err(Refused(format!("parameter ${number} was not provided")));
    }
    // SAFETY: as the caller says. The types' array is written by the parser's parameter hooks only.
    unsafe {
        let pstate = parse_state(relation, text);
        setup_parse_variable_parameters(pstate, &mut types, &mut count);
        let typed = pg_sys::transformExpr(pstate, raw, kind);
        let typed = pg_sys::coerce_to_boolean(pstate, typed, c"WHERE".as_ptr());
        let typed = put_parameters_in(typed, params, step)?;
        pg_sys::assign_expr_collations(pstate, typed);
        pg_sys::free_parsestate(pstate);
        Ok(typed)
    }
}

/// A parameter beyond those that a statement can have: the parser would make room for as many. Its number is what the text
/// has, of which the scanner cuts high bits off.
///
/// # Safety
/// `raw` is a raw expression of this text.
unsafe fn excessive_parameter(raw: *mut Node, text: &CStr) -> Option<String> {
    const MOST: u64 = 65535;
    let mut found = None;
    let mut is_excessive = |node: *mut Node| {
        // SAFETY: the tag tells which struct the node is.
        let location = unsafe {
            if (*node).type_ != NodeTag::T_ParamRef {
                return false;
            }
            (*node.cast::<pg_sys::ParamRef>()).location
        };
        let after_dollar = text.to_bytes().get(location as usize + 1..);
        let digits: String = after_dollar
            .unwrap_or_default()
            .iter()
            .map_while(|byte| byte.is_ascii_digit().then_some(char::from(*byte)))
            .collect();
        found = digits
            .parse::<u64>()
            .map_or(true, |number| number > MOST)
            .then_some(digits);
        found.is_some()
    };
    // SAFETY: a raw expression.
    unsafe { tree::has_raw(raw, &mut is_excessive) };
    found
}

/// A parser that knows the columns of a relation.
///
/// # Safety
/// The relation stays open and the text where it is while the state is in use.
pub(super) unsafe fn parse_state(relation: &PgRelation, text: &CStr) -> *mut pg_sys::ParseState {
    // SAFETY: the sequence of cookConstraint().
    unsafe {
        let pstate = pg_sys::make_parsestate(std::ptr::null_mut());
        (*pstate).p_sourcetext = text.as_ptr();
        let lock = pg_sys::AccessShareLock as c_int;
        let alias = std::ptr::null_mut();
        let item = pg_sys::addRangeTableEntryForRelation(
            pstate,
            relation.as_ptr(),
            lock,
            alias,
            false,
            true,
        );
        pg_sys::addNSItemToQuery(pstate, item, false, true, true);
        pstate
    }
}

/// Replaces each `$n` by its value, read by the input function of the type that the parser inferred, text if it
/// inferred none.
unsafe fn put_parameters_in(
    typed: *mut Node,
    params: &[Option<String>],
    step: &Cell<Step>,
) -> Result<*mut Node, Refused> {
    let mut refused = None;
    // SAFETY: T_Param nodes are Params; a Const of the same type takes the place of each.
    let replaced = unsafe {
        tree::rewrite_deep(typed, &mut |node| {
            let param = node.cast::<pg_sys::Param>();
            if (*node).type_ != NodeTag::T_Param
                || (*param).paramkind != pg_sys::ParamKind::PARAM_EXTERN
                || refused.is_some()
            {
                return node;
            }
            let number = (*param).paramid as usize;
            let type_oid = if (*param).paramtype == pg_sys::UNKNOWNOID {
                pg_sys::TEXTOID
            } else {
                (*param).paramtype
            };
            step.set(Step::ReadParameter(number));
            match params.get(number - 1).and_then(Option::as_deref) {
                None => refused = Some(format!("parameter ${number} was not provided")),
                Some(value) if check::names_the_clock(type_oid, value) => {
                    refused = Some(format!(
                        "parameter ${number}: \"{value}\" changes with time"
                    ));
                }
                Some(value) => return constant(type_oid, value),
            }
            node
        })
    };
    step.set(Step::Analyze);
    refused.map_or(Ok(replaced), |why| Err(Refused(why)))
}

/// A constant of a type, read by its input function.
///
/// # Safety
/// To be called inside [`attempt_in_steps`] or where an error may be raised.
pub(super) unsafe fn constant(type_oid: Oid, value: &str) -> *mut Node {
    let value = CString::new(value).unwrap_or_default();
    let (mut input, mut io_param) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    let (mut length, mut by_value) = (0, false);
    // SAFETY: a type's input function takes a C string, which it does not keep, and gives a datum of the type.
    unsafe {
        pg_sys::getTypeInputInfo(type_oid, &mut input, &mut io_param);
        let datum = pg_sys::OidInputFunctionCall(input, value.as_ptr().cast_mut(), io_param, -1);
        pg_sys::get_typlenbyval(type_oid, &mut length, &mut by_value);
        let collation = pg_sys::get_typcollation(type_oid);
        pg_sys::makeConst(
            type_oid,
            -1,
            collation,
            length.into(),
            datum,
            false,
            by_value,
        )
        .cast()
    }
}

/// Inlines SQL functions and evaluates what is constant: by Postgres' rules, and what the session says about its user
/// and settings besides.
///
/// # Safety
/// `typed` is an analyzed expression.
pub(super) unsafe fn fold(typed: *mut Node) -> *mut Node {
    // SAFETY: eval_const_expressions() takes an analyzed expression and needs no planner state; evaluate_expr() needs
    // one whose arguments are constants, which is_session_value() makes sure of.
    unsafe {
        let folded = tree::rewrite(typed, &mut |node| {
            let is_session_value = check::is_session_value(node);
            if !is_session_value && !check::is_reading_of_constant(node) {
                return node;
            }
            let (type_oid, typmod) = (pg_sys::exprType(node), pg_sys::exprTypmod(node));
            let collation = pg_sys::exprCollation(node);
            let value = pg_sys::evaluate_expr(node.cast(), type_oid, typmod, collation).cast();
            if is_session_value && check::is_optional_setting(node) && is_empty_text(value) {
                // A setting that was set once in the session and is not now.
                return pg_sys::makeNullConst(type_oid, typmod, collation).cast();
            }
            value
        });
        let folded = pg_sys::eval_const_expressions(std::ptr::null_mut(), folded);
        tree::rewrite(folded, &mut |node| name_collation(node))
    }
}

unsafe fn is_empty_text(value: *mut Node) -> bool {
    // SAFETY: the result of current_setting() is a constant of type text.
    unsafe {
        let constant = value.cast::<pg_sys::Const>();
        !(*constant).constisnull
            && pgrx::varsize_any_exhdr((*constant).constvalue.cast_mut_ptr()) == 0
    }
}

/// Folding makes a relabelling of `x COLLATE c`, of which deparsing tells the type only: this makes it a COLLATE again.
///
/// # Safety
/// A node of a copy that may be changed.
pub(super) unsafe fn name_collation(node: *mut Node) -> *mut Node {
    // SAFETY: a node's tag tells its type; the rewritten tree is a copy, so its nodes may be changed.
    unsafe {
        if (*node).type_ != NodeTag::T_RelabelType {
            return node;
        }
        let relabel = node.cast::<pg_sys::RelabelType>();
        let arg = (*relabel).arg;
        let (inner, outer) = (pg_sys::exprCollation(arg.cast()), (*relabel).resultcollid);
        if inner == outer || inner == pg_sys::InvalidOid || outer == pg_sys::InvalidOid {
            return node;
        }
        (*relabel).resultcollid = inner;
        let same_type = pg_sys::exprType(arg.cast()) == (*relabel).resulttype
            && pg_sys::exprTypmod(arg.cast()) == (*relabel).resulttypmod;
        let collate =
            pg_sys::palloc0(size_of::<pg_sys::CollateExpr>()).cast::<pg_sys::CollateExpr>();
        (*collate).xpr.type_ = NodeTag::T_CollateExpr;
        (*collate).arg = if same_type { arg } else { relabel.cast() };
        (*collate).collOid = outer;
        (*collate).location = -1;
        collate.cast()
    }
}

/// Adds the parts of a conjunction to others; none of a tree that is null.
///
/// # Safety
/// `node` is null or an analyzed expression.
pub(super) unsafe fn conjuncts(node: *mut Node, all: &mut Vec<*mut Node>) {
    // SAFETY: a node's tag tells its type.
    unsafe {
        if node.is_null() {
            return;
        }
        let expression = node.cast::<pg_sys::BoolExpr>();
        if (*node).type_ == NodeTag::T_BoolExpr
            && (*expression).boolop == pg_sys::BoolExprType::AND_EXPR
        {
            for cell in cells((*expression).args) {
                conjuncts(cell.ptr_value.cast(), all);
            }
        } else {
            all.push(node);
        }
    }
}

/// Is it the constant true?
///
/// # Safety
/// `tree` is an analyzed expression.
pub(super) unsafe fn is_true(tree: *mut Node) -> bool {
    // SAFETY: a T_Const of type boolean is passed by value.
    unsafe {
        let constant = tree.cast::<pg_sys::Const>();
        (*tree).type_ == NodeTag::T_Const
            && !(*constant).constisnull
            && (*constant).constvalue.value() != 0
    }
}

/// The canonical text of an expression on a relation.
///
/// # Safety
/// `tree` is an analyzed expression on it.
pub(super) unsafe fn deparse(tree: *mut Node, relation: &PgRelation) -> String {
    let name = CString::new(relation.name()).unwrap_or_default();
    // SAFETY: the expression's Vars have varno 1, which is what deparse_context_for() names.
    unsafe {
        let context = pg_sys::deparse_context_for(name.as_ptr(), relation.oid());
        let text: *mut c_char = pg_sys::deparse_expression(tree, context, false, false);
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// The attribute numbers that an expression reads, ascending.
///
/// # Safety
/// `tree` is an analyzed expression.
pub(super) unsafe fn columns(tree: *mut Node) -> Vec<i16> {
    let mut columns = Vec::new();
    // SAFETY: T_Var nodes are Vars.
    unsafe {
        tree::search::<()>(tree, &mut |node| {
            if (*node).type_ == NodeTag::T_Var {
                columns.push((*node.cast::<pg_sys::Var>()).varattno);
            }
            None
        });
    }
    columns.sort_unstable();
    columns.dedup();
    columns
}

/// The protocol's text for an error of Postgres' parser, of a value's input function or of folding.
fn in_words_of_protocol(source: &Source, step: Step, error: Caught) -> Refused {
    let message = match error.sqlstate {
        ERRCODE_UNDEFINED_COLUMN => unknown_reference(&error.message),
        ERRCODE_GROUPING_ERROR => "aggregation is not supported in this context".into(),
        ERRCODE_DATATYPE_MISMATCH if error.message.starts_with("argument of WHERE") => {
            return Refused("WHERE clause must return a boolean".into());
        }
        ERRCODE_SYNTAX_ERROR if error.message.ends_with("\";\"") => {
            return split();
        }
        ERRCODE_UNDEFINED_PARAMETER if source.is_order_by() => {
            error.message.replace("there is no parameter", "parameter")
                + " is not supported in ORDER BY clauses"
        }
        _ => error
            .message
            .replace("check constraint", "where clause")
            .replace("allowed in WHERE", "allowed in where clauses")
            .replace("index expressions", "ORDER BY clauses")
            .replace("index expression", "ORDER BY clauses"),
    };
    let shift = match step {
        Step::Parse => 1,
        Step::Analyze => 1 + source.before as i32,
        Step::ReadParameter(number) => return Refused(format!("parameter ${number}: {message}")),
        Step::Fold => return Refused(message),
    };
    Refused(match error.position {
        Some(position) => format!("At location {}: {message}", position - shift),
        None => message,
    })
}

/// `column "x" does not exist` and `column t.x does not exist` in the protocol's words.
fn unknown_reference(message: &str) -> String {
    let name = message
        .strip_prefix("column ")
        .and_then(|rest| rest.strip_suffix(" does not exist"));
    name.map_or_else(
        || message.to_string(),
        |name| format!("unknown reference {}", name.trim_matches('"')),
    )
}
