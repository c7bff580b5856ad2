//! Templates: a where clause with its constants lifted out, so that clauses of one form share what they are compiled to.

use std::ffi::CStr;

use pg_sys::{Node, NodeTag};
use pgrx::pg_sys;

use super::super::list::cells;
use super::super::values::Typed;
use super::access::{self, Access, By, Part};
use super::{Compiled, Where, columns, deparse, tree};

/// A where clause, taken apart. It points into the memory that the clause was analyzed in.
#[derive(Debug)]
pub struct Lifted {
    /// Equal for clauses of one form, under one table and role.
    pub identity: String,
    /// The constants, in order.
    pub constants: Vec<Typed>,
    /// How rows are found; None if each must be looked at.
    pub accesses: Option<Vec<Access>>,
    /// A digest of what it depends on beside the table; empty if that cannot change.
    pub uses: String,
    /// What is evaluated for a row that was found, constants lifted.
    pub(super) residual: Vec<*mut Node>,
}

impl Where {
    /// Takes the clause apart.
    pub fn lift(&self) -> Lifted {
        // SAFETY: the tree is an analyzed expression in memory that lives while it is in use.
        unsafe {
            let mut constants = Vec::new();
            let quals: Vec<_> = conjuncts(self.tree)
                .into_iter()
                .map(|qual| lift(qual, &mut constants))
                .collect();
            let texts = quals.iter().map(|qual| text(*qual));
            let mut identity: String = texts.chain([self.uses.clone()]).collect();
            let (accesses, mut residual) = match access::plan(&quals, &constants) {
                _ if lets_none_in(self.tree) => (Some(Vec::new()), Vec::new()),
                Some(plan) => {
                    let is_prefix = |part: &Part| matches!(part.comparison.by, By::Prefix { .. });
                    if plan.accesses.iter().flatten().any(is_prefix) {
                        // Whether there is one, and all of the condition, depends on the constant.
                        identity += &format!("{:?} {}", plan.accesses, plan.residual.len());
                    }
                    (Some(plan.accesses), plan.residual)
                }
                None => (None, quals),
            };
            for qual in &mut residual {
                if let Some(with_lists) = put_lists_back(*qual, &constants) {
                    *qual = with_lists;
                    identity.push_str(&text(with_lists));
                }
            }
            Lifted {
                identity,
                constants,
                accesses,
                uses: self.uses.clone(),
                residual,
            }
        }
    }

    /// The clause whole: what it is found by comes first, so that it raises errors for no other row than its template.
    pub(super) fn whole(&self) -> Vec<*mut Node> {
        let (found, rest) = self.split();
        [found, rest].concat()
    }

    /// The clause's conjuncts: those that an index answers, and what is evaluated besides.
    fn split(&self) -> (Vec<*mut Node>, Vec<*mut Node>) {
        // SAFETY: as above.
        unsafe {
            let quals = conjuncts(self.tree);
            let mut constants = Vec::new();
            let lifted: Vec<_> = quals
                .iter()
                .map(|qual| lift(*qual, &mut constants))
                .collect();
            let Some(plan) = access::plan(&lifted, &constants) else {
                return (Vec::new(), quals);
            };
            let pairs = lifted.iter().zip(&quals);
            let found = pairs.filter(|(lifted, _)| !plan.residual.contains(lifted));
            let rest = plan.residual.iter().map(|rest| {
                let place = lifted.iter().position(|lifted| lifted == rest);
                quals[place.expect("what is left over is of the clause")]
            });
            (found.map(|(_, qual)| *qual).collect(), rest.collect())
        }
    }

    /// What is evaluated for each row that is found, condition by condition.
    pub fn conditions(&self, relid: pg_sys::Oid) -> Vec<Condition> {
        if self.lift().is_covered() {
            return Vec::new();
        }
        let condition = |qual| {
            // SAFETY: an analyzed and folded expression on this relation, which is locked, without Params.
            unsafe {
                Condition {
                    text: deparse(qual, &pgrx::PgRelation::open(relid)),
                    compiled: Compiled::new(&[qual], Vec::new()),
                }
            }
        };
        self.split().1.into_iter().map(condition).collect()
    }
}

/// One condition of a where clause.
pub struct Condition {
    /// Its text.
    pub text: String,
    /// What evaluates it; it has no constants to be set.
    pub compiled: Compiled,
}

impl Lifted {
    /// Places, from 0, of the columns that it is found by.
    pub fn key_columns(&self) -> Vec<usize> {
        let parts = self.accesses.iter().flatten().flatten();
        parts.map(|part| part.comparison.column).collect()
    }

    /// Places, from 0, of the columns that evaluating it reads.
    pub fn residual_columns(&self) -> Vec<usize> {
        // SAFETY: analyzed expressions.
        let numbers = self
            .residual
            .iter()
            .flat_map(|qual| unsafe { columns(*qual) });
        numbers.map(|number| number as usize - 1).collect()
    }

    /// The index entries by which rows are found; `name` names a column.
    pub fn entries(&self, name: impl Fn(usize) -> String) -> Vec<String> {
        let part = |part: &Part| {
            let value = self.constants[part.constant].text();
            let column = name(part.comparison.column);
            match part.comparison.by {
                _ if part.any => format!("{column} = ANY ('{value}')"),
                By::Order(_, strategy) => format!("{column} {} '{value}'", strategy.symbol()),
                By::Prefix { is_pattern: true } => format!("{column} LIKE '{value}'"),
                By::Prefix { is_pattern: false } => format!("{column} ^@ '{value}'"),
                By::Integer(_) | By::Operator { .. } => format!("{column} = '{value}'"),
            }
        };
        let entry = |access: &Access| access.iter().map(part).collect::<Vec<_>>().join(" AND ");
        self.accesses.iter().flatten().map(entry).collect()
    }

    /// A row that is found is in.
    pub fn is_covered(&self) -> bool {
        self.accesses.is_some() && self.residual.is_empty()
    }
}

/// A copy of the tree with a Param in the place of each constant but NULL.
unsafe fn lift(node: *mut Node, constants: &mut Vec<Typed>) -> *mut Node {
    // SAFETY: T_Const nodes are Consts; a Param of the same type takes the place of each.
    unsafe {
        tree::rewrite(node, &mut |node| {
            let constant = node.cast::<pg_sys::Const>();
            if (*node).type_ != NodeTag::T_Const || (*constant).constisnull {
                return node;
            }
            constants.push(Typed::of_const(constant));
            let param = pg_sys::palloc0(size_of::<pg_sys::Param>()).cast::<pg_sys::Param>();
            (*param).xpr.type_ = NodeTag::T_Param;
            (*param).paramkind = pg_sys::ParamKind::PARAM_EXTERN;
            (*param).paramid = constants.len() as i32;
            (*param).paramtype = (*constant).consttype;
            (*param).paramtypmod = (*constant).consttypmod;
            (*param).paramcollid = (*constant).constcollid;
            (*param).location = -1;
            param.cast()
        })
    }
}

/// The top-level conjuncts of a clause.
unsafe fn conjuncts(tree: *mut Node) -> Vec<*mut Node> {
    // SAFETY: eval_const_expressions() copies the expression, of which canonicalize_qual() may change parts. It makes of each
    // COLLATE what the executor takes.
    unsafe {
        let folded = pg_sys::eval_const_expressions(std::ptr::null_mut(), tree);
        let canonical = pg_sys::canonicalize_qual(folded.cast(), false);
        let list = pg_sys::make_ands_implicit(canonical);
        cells(list)
            .iter()
            .map(|cell| cell.ptr_value.cast())
            .collect()
    }
}

unsafe fn lets_none_in(tree: *mut Node) -> bool {
    // SAFETY: a T_Const of type boolean is passed by value.
    unsafe {
        let constant = tree.cast::<pg_sys::Const>();
        (*tree).type_ == NodeTag::T_Const
            && ((*constant).constisnull || (*constant).constvalue.value() == 0)
    }
}

/// Puts long lists back, as the executor hashes those that are constants; None if there are none.
unsafe fn put_lists_back(node: *mut Node, constants: &[Typed]) -> Option<*mut Node> {
    /// From here on the executor hashes: MIN_ARRAY_SIZE_FOR_HASHED_SAOP of clauses.c.
    const HASHED: usize = 9;
    let is_long = |constant: &Typed| constant.is_array() && constant.elements().len() >= HASHED;
    if !constants.iter().any(is_long) {
        return None;
    }
    let mut changed = false;
    // SAFETY: the second argument of a ScalarArrayOpExpr is an array; the Const has the type of the Param.
    let node = unsafe {
        tree::rewrite(node, &mut |node| {
            if (*node).type_ != NodeTag::T_ScalarArrayOpExpr {
                return node;
            }
            let args = (*node.cast::<pg_sys::ScalarArrayOpExpr>()).args;
            let param = cells(args)[1].ptr_value.cast::<pg_sys::Param>();
            if (*param).xpr.type_ != NodeTag::T_Param {
                return node;
            }
            let constant = &constants[(*param).paramid as usize - 1];
            if is_long(constant) {
                (*(*args).elements.add(1)).ptr_value = constant.to_const(param).cast();
                changed = true;
            }
            node
        })
    };
    changed.then_some(node)
}

impl Typed {
    /// # Safety
    /// `param` is the Param that stands for this value.
    unsafe fn to_const(self, param: *mut pg_sys::Param) -> *mut pg_sys::Const {
        let (mut length, mut byval) = (0, false);
        // SAFETY: the type is that of the value, which lives as long as the tree.
        unsafe {
            pg_sys::get_typlenbyval(self.type_oid, &mut length, &mut byval);
            pg_sys::makeConst(
                self.type_oid,
                (*param).paramtypmod,
                (*param).paramcollid,
                length.into(),
                self.value,
                false,
                byval,
            )
        }
    }
}

/// The whole tree as text, but for the places in the clause that its parts come from.
///
/// # Safety
/// `node` is null or a node.
pub(super) unsafe fn text(node: *mut Node) -> String {
    // SAFETY: nodeToString() takes any node and returns a C string.
    let text = unsafe {
        let text = pg_sys::nodeToString(node.cast());
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        pg_sys::pfree(text.cast());
        copy
    };
    without_locations(&text)
}

/// The text of a tree without ` :location N`. A space inside a name is written with a backslash before it.
fn without_locations(text: &str) -> String {
    const LABEL: &str = " :location ";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(LABEL) {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        rest = &after[LABEL.len()..];
        if before.ends_with('\\') {
            out.push_str(LABEL);
            continue;
        }
        rest = rest.trim_start_matches(|c: char| c == '-' || c.is_ascii_digit());
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::without_locations;

    #[test]
    fn locations_do_not_count() {
        assert_eq!(
            without_locations("{VAR :varno 1 :location 15} {PARAM :location -1}"),
            "{VAR :varno 1} {PARAM}"
        );
        assert_eq!(without_locations(r"(a\ :location 5)"), r"(a\ :location 5)");
    }
}
