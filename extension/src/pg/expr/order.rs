//! From the text of an order by clause to one that Postgres wrote itself.

use std::cell::Cell;
use std::ffi::{CStr, CString};

use pgrx::PgRelation;
use pgrx::pg_sys::{self, Node, NodeTag, Oid, SortByDir, SortByNulls};

use super::super::list::cells;
use super::parse::{
    Step, attempt_in_steps, columns, deparse, fold, malformed, parse_state, select,
};
use super::{Refused, Source, check};

/// An order of a table's rows.
#[derive(Debug, Default)]
pub struct Order {
    /// Expressions in canonical text, each with its direction. Empty if all rows are equal in it.
    pub items: Vec<String>,
    /// The attribute numbers that it reads.
    pub columns: Vec<i16>,
}

/// Parses, checks and folds an order by clause on a table that the caller has locked. A number means the column at
/// that place of those `selected`. The clause may name only columns with attribute numbers that are `known`.
pub fn analyze_order(
    relid: Oid,
    clause: &str,
    selected: &[i16],
    known: Option<&[i16]>,
) -> Result<Order, Refused> {
    let order = analyze_once(relid, clause, selected, known)?;
    let text = order.items.join(", ");
    // What is run is this text: it must be read back as what it was written from.
    if !text.is_empty() && analyze_once(relid, &text, &[], None)?.items != order.items {
        return Err(Refused(format!("the clause has no canonical form: {text}")));
    }
    Ok(order)
}

fn analyze_once(
    relid: Oid,
    clause: &str,
    selected: &[i16],
    known: Option<&[i16]>,
) -> Result<Order, Refused> {
    let source = Source::of_order_by(clause);
    let clause = Clause {
        source: &source,
        selected,
        known,
    };
    attempt_in_steps(&source, |step| {
        // SAFETY: the caller's lock keeps the relation open-able.
        unsafe { clause.analyze_or_raise(relid, step) }
    })
    .map_err(|Refused(text)| match text.as_str() {
        "unescaped \";\" causing statement split" => Refused("Unexpected `;` in order by".into()),
        _ => Refused(text),
    })
}

struct Clause<'a> {
    source: &'a Source,
    selected: &'a [i16],
    known: Option<&'a [i16]>,
}

impl Clause<'_> {
    /// # Safety
    /// A lock on the relation is held.
    unsafe fn analyze_or_raise(&self, relid: Oid, step: &Cell<Step>) -> Result<Order, Refused> {
        let text = CString::new(self.source.text.as_str()).unwrap_or_default();
        let mut order = Order::default();
        // SAFETY: the cells of a sort clause point to SortBy nodes.
        unsafe {
            let relation = PgRelation::open(relid);
            let raw = raw_items(&text)?;
            for item in raw {
                step.set(Step::Analyze);
                self.add(item, &relation, &text, step, &mut order)?;
            }
        }
        Ok(order)
    }

    unsafe fn add(
        &self,
        item: *mut pg_sys::SortBy,
        relation: &PgRelation,
        text: &CStr,
        step: &Cell<Step>,
        order: &mut Order,
    ) -> Result<(), Refused> {
        // SAFETY: the item is a SortBy node of the raw parse tree; get_sort_group_operators() raises if there is none.
        unsafe {
            let directed = direction(item, self.source)?;
            if let Some(number) = self.ordinal((*item).node)? {
                let attributes = relation.tuple_desc();
                let name = attributes.get(number as usize - 1).map(|it| it.name());
                let name = CString::new(name.unwrap_or_default()).unwrap_or_default();
                let name = CStr::from_ptr(pg_sys::quote_identifier(name.as_ptr()));
                order.columns.push(number);
                order
                    .items
                    .push(format!("({}){directed}", name.to_string_lossy()));
                return Ok(());
            }
            let pstate = parse_state(relation, text);
            let kind = pg_sys::ParseExprKind::EXPR_KIND_INDEX_EXPRESSION;
            let typed = pg_sys::transformExpr(pstate, (*item).node, kind);
            pg_sys::assign_expr_collations(pstate, typed);
            pg_sys::free_parsestate(pstate);
            check::check(typed, check::Origin::Text(self.source))?;
            check::columns_are_known(typed, self.known, relation, self.source)?;
            order.columns.extend(columns(typed));
            step.set(Step::Fold);
            let tree = fold(fold(typed));
            check::check(tree, check::Origin::Folded)?;
            check::columns_are_stored(tree, relation)?;
            let mut operator = pg_sys::InvalidOid;
            let unused = std::ptr::null_mut;
            pg_sys::get_sort_group_operators(
                pg_sys::exprType(tree),
                true,
                false,
                false,
                &mut operator,
                unused(),
                unused(),
                std::ptr::null_mut(),
            );
            // All rows are equal in a constant; and a number would mean a column.
            if (*tree).type_ != NodeTag::T_Const {
                order
                    .items
                    .push(format!("({}){directed}", deparse(tree, relation)));
            }
            Ok(())
        }
    }

    /// The column that a number stands for.
    unsafe fn ordinal(&self, node: *mut Node) -> Result<Option<i16>, Refused> {
        // SAFETY: a node's tag tells its type, here and inside an A_Const.
        unsafe {
            if (*node).type_ != NodeTag::T_A_Const {
                return Ok(None);
            }
            let constant = node.cast::<pg_sys::A_Const>();
            let location = (*constant).location;
            if (*constant).isnull || (*constant).val.node.type_ != NodeTag::T_Integer {
                let message = "non-integer constants are not allowed in ORDER BY clauses";
                return Err(self.source.locate(location, message));
            }
            let number = (*constant).val.ival.ival;
            let column = usize::try_from(number - 1)
                .ok()
                .and_then(|index| self.selected.get(index));
            let message = format!("ORDER BY position {number} is not in select list");
            column
                .map(|column| Some(*column))
                .ok_or_else(|| self.source.locate(location, &message))
        }
    }
}

/// The items after ORDER BY, if that is the statement's only clause.
unsafe fn raw_items(text: &CStr) -> Result<Vec<*mut pg_sys::SortBy>, Refused> {
    // SAFETY: select() gives a SelectStmt, whose sort clause is a list of SortBy nodes.
    unsafe {
        let select = select(text)?;
        let has_more = (*select).op != pg_sys::SetOperation::SETOP_NONE
            || !(*select).lockingClause.is_null()
            || !(*select).limitCount.is_null()
            || !(*select).limitOffset.is_null();
        let items = cells((*select).sortClause);
        if has_more || items.is_empty() {
            return Err(malformed());
        }
        Ok(items.iter().map(|cell| cell.ptr_value.cast()).collect())
    }
}

/// What follows the expression.
unsafe fn direction(item: *mut pg_sys::SortBy, source: &Source) -> Result<String, Refused> {
    // SAFETY: the item is a SortBy node.
    let (direction, nulls, location) =
        unsafe { ((*item).sortby_dir, (*item).sortby_nulls, (*item).location) };
    let direction = match direction {
        SortByDir::SORTBY_DESC => " desc",
        SortByDir::SORTBY_USING => {
            let message = "USING is not allowed in ORDER BY clauses";
            return Err(source.locate(location, message));
        }
        _ => "",
    };
    let nulls = match nulls {
        SortByNulls::SORTBY_NULLS_FIRST => " nulls first",
        SortByNulls::SORTBY_NULLS_LAST => " nulls last",
        _ => "",
    };
    Ok(format!("{direction}{nulls}"))
}
