//! What a SELECT of a subquery consists of: its tables, and each condition where it belongs.

use pg_sys::{Node, NodeTag, Oid};
use pgrx::pg_sys;

use super::super::list::cells;
use super::joins::Joins;
use super::parse::conjuncts;
use super::subquery::Link;
use super::{Refused, tree};
use crate::pg::relation;
use crate::pg::table::{self, Found};

/// One SELECT of a subquery, without UNION.
pub(super) struct Parts {
    /// Relations, by range table index.
    pub relations: Vec<(i32, Oid)>,
    /// Conditions on one relation: its place among them, and the condition.
    pub local: Vec<(usize, *mut Node)>,
    /// Comparisons of two relations.
    pub edges: Vec<Edge>,
    /// Comparisons of a relation with the row outside: the link, the relation's place, its value.
    pub links: Vec<(Link, Option<usize>, *mut Node)>,
    /// Conditions on the row outside alone.
    pub outside: Vec<*mut Node>,
}

/// A comparison of two relations.
pub(super) struct Edge {
    /// The relation's place and the value, on both sides.
    pub sides: [(usize, *mut Node); 2],
    /// What compares them.
    pub operator: Oid,
    /// Under which collation.
    pub collation: Oid,
}

impl Joins<'_> {
    /// Takes a SELECT apart.
    ///
    /// # Safety
    /// The query is analyzed, and of a sublink one level below the row.
    pub unsafe fn parts(&self, query: *mut pg_sys::Query) -> Result<Parts, Refused> {
        // SAFETY: the cells of the range table are entries, those of the jointree its nodes.
        unsafe {
            let mut parts = Parts {
                relations: Vec::new(),
                local: Vec::new(),
                edges: Vec::new(),
                links: Vec::new(),
                outside: Vec::new(),
            };
            for (place, cell) in cells((*query).rtable).iter().enumerate() {
                let entry = cell.ptr_value.cast::<pg_sys::RangeTblEntry>();
                if (*entry).rtekind == pg_sys::RTEKind::RTE_JOIN {
                    continue;
                }
                self.is_table(entry)?;
                parts.relations.push((place as i32 + 1, (*entry).relid));
            }
            if parts.relations.is_empty() {
                return self.refuse(self.at, "a subquery without a table is not supported");
            }
            let mut conditions = Vec::new();
            self.conditions((*query).jointree.cast(), &mut conditions)?;
            for condition in conditions {
                let condition = tree::without_join_names(query, condition);
                self.sort(condition, &mut parts)?;
            }
            Ok(parts)
        }
    }

    unsafe fn is_table(&self, entry: *mut pg_sys::RangeTblEntry) -> Result<(), Refused> {
        // SAFETY: reads fields of the entry; its relation is locked since it was analyzed.
        unsafe {
            if (*entry).rtekind != pg_sys::RTEKind::RTE_RELATION {
                let message = "FROM in a subquery may name tables only";
                return self.refuse(self.at, message);
            }
            if !(*entry).tablesample.is_null() {
                return self.refuse(self.at, "TABLESAMPLE in a subquery cannot be maintained");
            }
            let table = match table::by_oid((*entry).relid) {
                Found::Table(table) => table,
                Found::Refused(why) => {
                    let name = pg_sys::get_rel_name((*entry).relid);
                    let name = std::ffi::CStr::from_ptr(name).to_string_lossy();
                    return self.refuse(
                        self.at,
                        &format!("table \"{name}\" {why}, a subquery cannot be maintained"),
                    );
                }
                Found::Missing => {
                    let message = "FROM in a subquery may name tables only";
                    return self.refuse(self.at, message);
                }
            };
            if table.key.is_empty() {
                let message = format!("table \"{}\" in a subquery needs a primary key", table.name);
                return self.refuse(self.at, &message);
            }
            let partitioned = (*entry).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
            let with_children =
                (*entry).inh && relation::inheritors((*entry).relid.to_u32()).len() > 1;
            if (partitioned && !(*entry).inh) || (!partitioned && with_children) {
                let message = format!(
                    "table \"{}\" is read with ONLY unless it is partitioned",
                    table.name
                );
                return self.refuse(self.at, &message);
            }
            Ok(())
        }
    }

    /// The conjuncts of WHERE and of inner joins.
    unsafe fn conditions(
        &self,
        node: *mut Node,
        conditions: &mut Vec<*mut Node>,
    ) -> Result<(), Refused> {
        // SAFETY: a node's tag tells its type.
        unsafe {
            match (*node).type_ {
                NodeTag::T_FromExpr => {
                    let from = node.cast::<pg_sys::FromExpr>();
                    for cell in cells((*from).fromlist) {
                        self.conditions(cell.ptr_value.cast(), conditions)?;
                    }
                    conjuncts((*from).quals, conditions);
                }
                NodeTag::T_JoinExpr => {
                    let join = node.cast::<pg_sys::JoinExpr>();
                    if (*join).jointype != pg_sys::JoinType::JOIN_INNER {
                        return self
                            .refuse(self.at, "an outer join in a subquery is not supported");
                    }
                    self.conditions((*join).larg, conditions)?;
                    self.conditions((*join).rarg, conditions)?;
                    conjuncts((*join).quals, conditions);
                }
                _ => {}
            }
            Ok(())
        }
    }

    /// Puts a condition where it belongs.
    unsafe fn sort(&self, condition: *mut Node, parts: &mut Parts) -> Result<(), Refused> {
        // SAFETY: analyzed expressions of the query.
        unsafe {
            let (inside, outside) = (parts.named_in(condition), is_about_outside(condition));
            if outside && pg_sys::checkExprHasSubLink(condition) {
                let message = "a reference over more than one level of subqueries is not supported";
                return self.refuse(condition, message);
            }
            match (&inside[..], outside) {
                ([], true) => parts.outside.push(lifted(condition)),
                ([], false) => parts.local.push((0, condition)),
                ([one], false) => parts.local.push((*one, condition)),
                _ => return self.compared(condition, parts),
            }
            Ok(())
        }
    }

    /// A comparison of two relations, or of one with the row outside.
    unsafe fn compared(&self, condition: *mut Node, parts: &mut Parts) -> Result<(), Refused> {
        const MESSAGE: &str = "a condition on more than one table must compare a value of one with a value of another";
        // SAFETY: a node's tag tells its type.
        unsafe {
            let call = condition.cast::<pg_sys::OpExpr>();
            if (*condition).type_ != NodeTag::T_OpExpr || pg_sys::checkExprHasSubLink(condition) {
                return self.refuse(condition, MESSAGE);
            }
            let [left, right] = cells((*call).args) else {
                return self.refuse(condition, MESSAGE);
            };
            let (left, right): (*mut Node, *mut Node) =
                (left.ptr_value.cast(), right.ptr_value.cast());
            let (operator, collation) = ((*call).opno, (*call).inputcollid);
            let (of_left, of_right) = (parts.named_in(left), parts.named_in(right));
            match (
                &of_left[..],
                is_about_outside(left),
                &of_right[..],
                is_about_outside(right),
            ) {
                ([a], false, [b], false) => parts.edges.push(Edge {
                    sides: [(*a, left), (*b, right)],
                    operator,
                    collation,
                }),
                ([], true, [inner], false) => {
                    let link = outer_link(left, operator, collation);
                    parts.links.push((link, Some(*inner), right));
                }
                ([inner], false, [], true) => {
                    let operator = self.commuted(operator, condition)?;
                    let link = outer_link(right, operator, collation);
                    parts.links.push((link, Some(*inner), left));
                }
                _ => return self.refuse(condition, MESSAGE),
            }
            Ok(())
        }
    }

    /// The operator with its sides exchanged.
    ///
    /// # Safety
    /// `at` is a node of the query.
    pub unsafe fn commuted(&self, operator: Oid, at: *mut Node) -> Result<Oid, Refused> {
        // SAFETY: reads the catalog cache.
        match unsafe { pg_sys::get_commutator(operator) } {
            Oid::INVALID => {
                self.refuse(at, "an operator without a commutator is not supported here")
            }
            commuted => Ok(commuted),
        }
    }

    /// The relation that a value is of; None if it is of none.
    ///
    /// # Safety
    /// `value` is an analyzed expression of the query.
    pub unsafe fn relation_of(
        &self,
        value: *mut Node,
        parts: &Parts,
    ) -> Result<Option<usize>, Refused> {
        // SAFETY: an analyzed expression of the query.
        unsafe {
            if pg_sys::checkExprHasSubLink(value) {
                return self.refuse(
                    value,
                    "a subquery among the columns of another is not supported",
                );
            }
            if is_about_outside(value) {
                let message =
                    "a column of the outer row among those of a subquery is not supported";
                return self.refuse(value, message);
            }
            match &parts.named_in(value)[..] {
                [] => Ok(None),
                [one] => Ok(Some(*one)),
                _ => self.refuse(
                    value,
                    "a column that is made of more than one table is not supported",
                ),
            }
        }
    }
}

impl Edge {
    /// Does it compare these relations?
    pub fn is_between(&self, a: usize, b: usize) -> bool {
        let [(left, _), (right, _)] = self.sides;
        (left, right) == (a, b) || (left, right) == (b, a)
    }
}

impl Parts {
    /// The places of the relations that an expression names.
    ///
    /// # Safety
    /// `node` is an analyzed expression of the query.
    pub unsafe fn named_in(&self, node: *mut Node) -> Vec<usize> {
        // SAFETY: an analyzed expression; the planner's data is needed for placeholders only, of which there are none yet.
        unsafe {
            let named = pg_sys::pull_varnos_of_level(std::ptr::null_mut(), node, 0);
            let places = self.relations.iter().enumerate();
            let named = places.filter(|(_, (index, _))| pg_sys::bms_is_member(*index, named));
            named.map(|(place, _)| place).collect()
        }
    }

    /// An expression on one relation, as if that were its only one.
    ///
    /// # Safety
    /// `node` is an analyzed expression of the query, on this relation alone.
    pub unsafe fn alone(&self, node: *mut Node, relation: usize) -> *mut Node {
        // SAFETY: changes a copy.
        unsafe {
            let copy: *mut Node = pg_sys::copyObjectImpl(node.cast()).cast();
            pg_sys::ChangeVarNodes(copy, self.relations[relation].0, 1, 0);
            copy
        }
    }
}

/// One row at most: the columns of a unique key are compared with constants, or with the row outside.
///
/// # Safety
/// The parts are of an analyzed query with one relation.
pub(super) unsafe fn is_one_row(parts: &Parts) -> bool {
    // SAFETY: a node's tag tells its type.
    let column = |value: *mut Node, operator: Oid| unsafe {
        let is_column = (*value).type_ == NodeTag::T_Var;
        let is_fixed = is_column && pg_sys::op_mergejoinable(operator, pg_sys::exprType(value));
        is_fixed.then(|| (*value.cast::<pg_sys::Var>()).varattno)
    };
    // SAFETY: as above.
    let local = parts.local.iter().filter_map(|(_, condition)| unsafe {
        let call = condition.cast::<pg_sys::OpExpr>();
        if (**condition).type_ != NodeTag::T_OpExpr {
            return None;
        }
        let [left, right] = cells((*call).args) else {
            return None;
        };
        let (mut left, mut right): (*mut Node, *mut Node) =
            (left.ptr_value.cast(), right.ptr_value.cast());
        if (*left).type_ != NodeTag::T_Var {
            (left, right) = (right, left);
        }
        let has_no_column = !pg_sys::contain_var_clause(right);
        has_no_column.then(|| column(left, (*call).opno)).flatten()
    });
    let links = parts
        .links
        .iter()
        .filter(|(_, relation, _)| relation.is_some());
    let links = links.filter_map(|(link, _, value)| column(*value, link.operator));
    let fixed: Vec<i16> = local.chain(links).collect();
    // SAFETY: the relation is locked since the query was analyzed.
    let keys = unsafe { unique_keys(parts.relations[0].1) };
    keys.iter()
        .any(|key| key.iter().all(|number| fixed.contains(number)))
}

/// The columns of each unique index of the whole table.
unsafe fn unique_keys(relid: Oid) -> Vec<Vec<i16>> {
    // SAFETY: the caller holds a lock on the table; each index is open while its catalog entry is read.
    unsafe {
        let relation = pgrx::PgRelation::open(relid);
        let indexes = pg_sys::RelationGetIndexList(relation.as_ptr());
        let key = |cell: &pg_sys::ListCell| {
            let index = pgrx::PgRelation::with_lock(cell.oid_value, pg_sys::AccessShareLock as _);
            let form = (*index.as_ptr()).rd_index;
            let is_whole = pg_sys::RelationGetIndexPredicate(index.as_ptr()).is_null()
                && pg_sys::RelationGetIndexExpressions(index.as_ptr()).is_null();
            let is_key = (*form).indisunique && (*form).indimmediate && (*form).indisvalid;
            let columns = (*form).indkey.values.as_slice((*form).indnkeyatts as usize);
            (is_whole && is_key).then(|| columns.to_vec())
        };
        cells(indexes).iter().filter_map(key).collect()
    }
}

unsafe fn outer_link(value: *mut Node, operator: Oid, collation: Oid) -> Link {
    // SAFETY: an analyzed expression on the row outside.
    let expression = unsafe { lifted(value) };
    Link {
        expression,
        operator,
        collation,
        two_valued: true,
    }
}

/// An expression of a subquery on the row outside, as one of that row's own query.
unsafe fn lifted(node: *mut Node) -> *mut Node {
    // SAFETY: changes a copy.
    unsafe {
        let copy: *mut Node = pg_sys::copyObjectImpl(node.cast()).cast();
        pg_sys::IncrementVarSublevelsUp(copy, -1, 1);
        copy
    }
}

/// Does it refer to the row outside?
unsafe fn is_about_outside(node: *mut Node) -> bool {
    // SAFETY: an analyzed expression.
    unsafe { pg_sys::contain_vars_of_level(node, 1) }
}
