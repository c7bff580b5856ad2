//! Subqueries taken apart: a tree of joined tables becomes inner selects within inner selects.

use pg_sys::{Node, NodeTag, Oid};
use pgrx::pg_sys;

use super::super::list::cells;
use super::parts::{Edge, Parts, is_one_row};
use super::subquery::{Builder, Link, Membership, is_true, placeholder};
use super::{Refused, tree};

/// A subquery that is taken apart.
pub(super) struct Joins<'a> {
    pub builder: &'a Builder<'a>,
    /// The sublink: where an error is that has no better place.
    pub at: *mut Node,
}

impl Joins<'_> {
    /// A refusal at a node's place, or at the subquery's.
    pub fn refuse<T>(&self, node: *mut Node, message: &str) -> Result<T, Refused> {
        // SAFETY: called with nodes of the query.
        unsafe {
            let node = if pg_sys::exprLocation(node) < 0 {
                self.at
            } else {
                node
            };
            Err(self.builder.refuse(node, message))
        }
    }

    /// `EXISTS (query)`.
    ///
    /// # Safety
    /// Like the others: the query is analyzed and of a sublink one level below the row.
    pub unsafe fn exists(
        &self,
        query: *mut pg_sys::Query,
        memberships: &mut Vec<Membership>,
        positive: bool,
    ) -> Result<*mut Node, Refused> {
        // SAFETY: as the caller says.
        unsafe {
            let mut sides = std::ptr::null_mut();
            for (leaf, _) in self.leaves(query)? {
                let parts = self.parts(leaf)?;
                let side = self.compare(parts, memberships, positive)?;
                sides = pg_sys::lappend(sides, is_true(side).cast());
            }
            Ok(any_of(sides))
        }
    }

    /// `test ANY (query)`, where Params in the test stand for columns of the query.
    pub unsafe fn any(
        &self,
        query: *mut pg_sys::Query,
        test: *mut Node,
        memberships: &mut Vec<Membership>,
        positive: bool,
    ) -> Result<*mut Node, Refused> {
        // SAFETY: as the caller says.
        unsafe {
            let tests = self.tests(test)?;
            let mut sides = std::ptr::null_mut();
            for (leaf, outputs) in self.leaves(query)? {
                let mut parts = self.parts(leaf)?;
                for test in &tests {
                    let [left, right] = cells((**test).args) else {
                        return self.refuse(self.at, "this comparison is not supported");
                    };
                    let output = put_outputs_in(right.ptr_value.cast(), &outputs);
                    let output = tree::without_join_names(leaf, output);
                    let expression: *mut Node = left.ptr_value.cast();
                    if has_placeholder(expression) || pg_sys::checkExprHasSubLink(expression) {
                        return self.refuse(expression, "a subquery beside IN is not supported");
                    }
                    let link = Link {
                        expression,
                        operator: (**test).opno,
                        collation: (**test).inputcollid,
                        two_valued: false,
                    };
                    let relation = self.relation_of(output, &parts)?;
                    parts.links.push((link, relation, output));
                }
                let side = self.compare(parts, memberships, positive)?;
                sides = pg_sys::lappend(sides, side.cast());
            }
            Ok(any_of(sides))
        }
    }

    /// `(query)` as a value.
    pub unsafe fn scalar(
        &self,
        query: *mut pg_sys::Query,
        memberships: &mut Vec<Membership>,
    ) -> Result<*mut Node, Refused> {
        // SAFETY: as the caller says.
        unsafe {
            let leaves = self.leaves(query)?;
            let [(leaf, outputs)] = &leaves[..] else {
                return self.refuse(self.at, "UNION in a scalar subquery is not supported");
            };
            let mut parts = self.parts(*leaf)?;
            if parts.relations.len() != 1 || !is_one_row(&parts) {
                let message = "a scalar subquery must find one row of one table by a unique key";
                return self.refuse(self.at, message);
            }
            let output = outputs[0];
            let type_oid = pg_sys::exprType(output);
            let relation = self.relation_of(output, &parts)?;
            let link = Link {
                expression: output,
                operator: Oid::INVALID,
                collation: Oid::INVALID,
                two_valued: false,
            };
            parts.links.push((link, relation, output));
            let mut membership = self.membership(&parts, false)?;
            membership.links.clear();
            memberships.push(membership);
            Ok(placeholder(memberships.len() - 1, type_oid))
        }
    }

    /// The comparisons that a test consists of.
    unsafe fn tests(&self, test: *mut Node) -> Result<Vec<*mut pg_sys::OpExpr>, Refused> {
        // SAFETY: a node's tag tells its type.
        unsafe {
            let all = match (*test).type_ {
                NodeTag::T_BoolExpr => {
                    let all = test.cast::<pg_sys::BoolExpr>();
                    let args = cells((*all).args).iter().map(|cell| cell.ptr_value.cast());
                    if (*all).boolop == pg_sys::BoolExprType::AND_EXPR {
                        args.collect()
                    } else {
                        vec![test]
                    }
                }
                _ => vec![test],
            };
            let is_operator = |node: &*mut Node| (**node).type_ == NodeTag::T_OpExpr;
            if !all.iter().all(is_operator) {
                return self.refuse(
                    self.at,
                    "this comparison of rows with a subquery is not supported",
                );
            }
            Ok(all.into_iter().map(|node| node.cast()).collect())
        }
    }

    /// The SELECTs of a UNION, or the only one, each with its output columns, all of the types of the whole.
    pub(super) unsafe fn leaves(
        &self,
        query: *mut pg_sys::Query,
    ) -> Result<Vec<(*mut pg_sys::Query, Vec<*mut Node>)>, Refused> {
        // SAFETY: as the caller says.
        unsafe {
            self.has_only_what_can_be_maintained(query)?;
            if (*query).setOperations.is_null() {
                let outputs = outputs(query);
                return Ok(vec![(query, outputs)]);
            }
            let (mut leaves, mut open) = (Vec::new(), vec![(*query).setOperations]);
            let types = column_types((*query).setOperations);
            while let Some(node) = open.pop() {
                if (*node).type_ == NodeTag::T_SetOperationStmt {
                    let operation = node.cast::<pg_sys::SetOperationStmt>();
                    if (*operation).op != pg_sys::SetOperation::SETOP_UNION {
                        let message = "INTERSECT and EXCEPT in a subquery are not supported";
                        return self.refuse(self.at, message);
                    }
                    open.extend([(*operation).rarg, (*operation).larg]);
                    continue;
                }
                let index = (*node.cast::<pg_sys::RangeTblRef>()).rtindex as usize;
                let entry = cells((*query).rtable)[index - 1].ptr_value;
                let leaf = (*entry.cast::<pg_sys::RangeTblEntry>()).subquery;
                let leaf: *mut pg_sys::Query = pg_sys::copyObjectImpl(leaf.cast()).cast();
                pg_sys::IncrementVarSublevelsUp(leaf.cast(), -1, 2);
                self.has_only_what_can_be_maintained(leaf)?;
                if !(*leaf).setOperations.is_null() {
                    return self.refuse(self.at, "a UNION in parentheses is not supported");
                }
                let outputs = outputs(leaf).into_iter().zip(&types);
                let coerced = outputs.map(|(output, type_oid)| coerce(output, *type_oid));
                leaves.push((leaf, coerced.collect()));
            }
            Ok(leaves)
        }
    }

    unsafe fn has_only_what_can_be_maintained(
        &self,
        query: *mut pg_sys::Query,
    ) -> Result<(), Refused> {
        // SAFETY: reads fields of a Query.
        unsafe {
            let not_maintained = [
                (
                    (*query).commandType != pg_sys::CmdType::CMD_SELECT,
                    "anything but SELECT",
                ),
                (!(*query).cteList.is_null(), "WITH"),
                (
                    !(*query).groupClause.is_null() || !(*query).groupingSets.is_null(),
                    "GROUP BY",
                ),
                (!(*query).havingQual.is_null(), "HAVING"),
                (!(*query).limitCount.is_null(), "LIMIT"),
                (!(*query).limitOffset.is_null(), "OFFSET"),
                (!(*query).rowMarks.is_null(), "FOR UPDATE or FOR SHARE"),
                ((*query).hasDistinctOn, "DISTINCT ON"),
                ((*query).hasTargetSRFs, "a set-returning function"),
            ];
            let call = tree::search((*query).targetList.cast(), &mut |node| {
                let name = match (*node).type_ {
                    NodeTag::T_Aggref => (*node.cast::<pg_sys::Aggref>()).aggfnoid,
                    NodeTag::T_WindowFunc => (*node.cast::<pg_sys::WindowFunc>()).winfnoid,
                    _ => return None,
                };
                Some((node, name))
            });
            if let Some((node, function)) = call {
                let signature = super::function::Function::look_up(function).signature();
                let kind = if (*node).type_ == NodeTag::T_Aggref {
                    "aggregate"
                } else {
                    "window function"
                };
                return self.refuse(
                    node,
                    &format!("{kind} {signature} in a subquery cannot be maintained"),
                );
            }
            for (is_there, name) in not_maintained {
                if is_there {
                    return self.refuse(
                        self.at,
                        &format!("{name} in a subquery cannot be maintained"),
                    );
                }
            }
            Ok(())
        }
    }

    /// Adds the membership of what has been taken apart; returns the condition on the row outside.
    unsafe fn compare(
        &self,
        parts: Parts,
        memberships: &mut Vec<Membership>,
        positive: bool,
    ) -> Result<*mut Node, Refused> {
        // SAFETY: what is made is an analyzed expression.
        unsafe {
            let membership = self.membership(&parts, positive)?;
            memberships.push(membership);
            let number = memberships.len() - 1;
            let compared = placeholder(number, pg_sys::BOOLOID);
            let mut all = std::ptr::null_mut();
            for condition in &parts.outside {
                all = pg_sys::lappend(all, is_true(*condition).cast());
            }
            all = pg_sys::lappend(all, compared.cast());
            Ok(pg_sys::make_ands_explicit(all).cast())
        }
    }

    unsafe fn membership(&self, parts: &Parts, positive: bool) -> Result<Membership, Refused> {
        // SAFETY: what is made are analyzed expressions.
        unsafe {
            let mut named = parts.links.iter().filter_map(|(_, relation, _)| *relation);
            let first = named.next().unwrap_or(0);
            if named.any(|other| other != first) {
                let message =
                    "columns of more than one table of a subquery are compared with the outer row";
                return self.refuse(self.at, message);
            }
            let (mut links, mut outputs): (Vec<Link>, Vec<*mut Node>) = parts
                .links
                .iter()
                .map(|(link, _, output)| (link.clone(), *output))
                .unzip();
            if links.is_empty() {
                let (link, output) = always();
                links.push(link);
                outputs.push(output);
            }
            for output in &outputs {
                let of = pg_sys::getBaseType(pg_sys::exprType(*output));
                if pg_sys::get_array_type(of) == Oid::INVALID {
                    return self.refuse(
                        *output,
                        "values of this type cannot be compared with a subquery",
                    );
                }
            }
            let mut reached = vec![false; parts.relations.len()];
            let select = self.joined(parts, first, None, outputs, &mut reached)?;
            Ok(Membership {
                select,
                links,
                positive,
                guarded: false,
            })
        }
    }

    /// The select of a relation and what is joined to it.
    unsafe fn joined(
        &self,
        parts: &Parts,
        relation: usize,
        from: Option<usize>,
        outputs: Vec<*mut Node>,
        reached: &mut Vec<bool>,
    ) -> Result<std::rc::Rc<super::subquery::Select>, Refused> {
        // SAFETY: what is made are analyzed expressions.
        unsafe {
            reached[relation] = true;
            let mut memberships = Vec::new();
            for other in 0..parts.relations.len() {
                let between: Vec<&Edge> = parts
                    .edges
                    .iter()
                    .filter(|edge| edge.is_between(relation, other))
                    .collect();
                if between.is_empty() || Some(other) == from || other == relation {
                    continue;
                }
                if reached[other] {
                    return self.refuse(self.at, "a join that goes in a circle is not supported");
                }
                let (mut links, mut values) = (Vec::new(), Vec::new());
                for edge in between {
                    let [a, b] = edge.sides;
                    let (mine, its, operator) = if a.0 == relation {
                        (a.1, b.1, edge.operator)
                    } else {
                        (b.1, a.1, self.commuted(edge.operator, a.1)?)
                    };
                    links.push(Link {
                        expression: parts.alone(mine, relation),
                        operator,
                        collation: edge.collation,
                        two_valued: false,
                    });
                    values.push(its);
                }
                let select = self.joined(parts, other, Some(relation), values, reached)?;
                memberships.push(Membership {
                    select,
                    links,
                    positive: true,
                    guarded: false,
                });
            }
            if from.is_none() {
                // Tables that nothing joins: there must be a row.
                while let Some(other) = reached.iter().position(|reached| !reached) {
                    let (link, output) = always();
                    let select =
                        self.joined(parts, other, Some(relation), vec![output], reached)?;
                    memberships.push(Membership {
                        select,
                        links: vec![link],
                        positive: true,
                        guarded: false,
                    });
                }
            }
            let mut conditions = std::ptr::null_mut();
            for (_, condition) in parts.local.iter().filter(|(of, _)| *of == relation) {
                conditions = pg_sys::lappend(conditions, parts.alone(*condition, relation).cast());
            }
            let condition: *mut Node = if conditions.is_null() {
                std::ptr::null_mut()
            } else {
                pg_sys::make_ands_explicit(conditions).cast()
            };
            let outputs = outputs
                .into_iter()
                .map(|output| parts.alone(output, relation));
            let relid = parts.relations[relation].1;
            self.builder
                .select(relid, condition, outputs.collect(), memberships)
        }
    }
}

/// A comparison that is true of each value of a set.
unsafe fn always() -> (Link, *mut Node) {
    // SAFETY: makes constants.
    unsafe {
        let one = || pg_sys::makeConst(pg_sys::INT4OID, -1, Oid::INVALID, 4, 1.into(), false, true);
        let link = Link {
            expression: one().cast(),
            operator: Oid::from_u32(pg_sys::Int4EqualOperator),
            collation: Oid::INVALID,
            two_valued: true,
        };
        (link, one().cast())
    }
}

unsafe fn has_placeholder(node: *mut Node) -> bool {
    // SAFETY: an analyzed expression.
    unsafe {
        tree::search(node, &mut |node| {
            ((*node).type_ == NodeTag::T_Param).then_some(())
        })
    }
    .is_some()
}

pub(super) unsafe fn any_of(sides: *mut pg_sys::List) -> *mut Node {
    // SAFETY: a list of expressions.
    unsafe {
        match cells(sides) {
            [only] => only.ptr_value.cast(),
            _ => pg_sys::makeBoolExpr(pg_sys::BoolExprType::OR_EXPR, sides, -1).cast(),
        }
    }
}

pub(super) unsafe fn outputs(query: *mut pg_sys::Query) -> Vec<*mut Node> {
    // SAFETY: the cells of a target list are TargetEntries.
    unsafe {
        let entries = cells((*query).targetList)
            .iter()
            .map(|cell| cell.ptr_value.cast::<pg_sys::TargetEntry>());
        entries
            .filter(|entry| !(**entry).resjunk)
            .map(|entry| (*entry).expr.cast())
            .collect()
    }
}

unsafe fn column_types(operation: *mut Node) -> Vec<Oid> {
    // SAFETY: the top of a query's set operations is a SetOperationStmt with a list of oids.
    unsafe {
        let types = (*operation.cast::<pg_sys::SetOperationStmt>()).colTypes;
        cells(types).iter().map(|cell| cell.oid_value).collect()
    }
}

unsafe fn coerce(output: *mut Node, type_oid: Oid) -> *mut Node {
    // SAFETY: the parser has found that the type can be had.
    unsafe {
        let (implicit, cast) = (
            pg_sys::CoercionContext::COERCION_IMPLICIT,
            pg_sys::CoercionForm::COERCE_IMPLICIT_CAST,
        );
        let from = pg_sys::exprType(output);
        pg_sys::coerce_to_target_type(
            std::ptr::null_mut(),
            output,
            from,
            type_oid,
            -1,
            implicit,
            cast,
            -1,
        )
    }
}

/// A copy in which each Param that stands for a column of the subquery is that column.
unsafe fn put_outputs_in(node: *mut Node, outputs: &[*mut Node]) -> *mut Node {
    // SAFETY: T_Param nodes are Params; the column has the Param's type.
    unsafe {
        tree::rewrite(node, &mut |node| {
            let param = node.cast::<pg_sys::Param>();
            if (*node).type_ != NodeTag::T_Param
                || (*param).paramkind != pg_sys::ParamKind::PARAM_SUBLINK
            {
                return node;
            }
            pg_sys::copyObjectImpl(outputs[(*param).paramid as usize - 1].cast()).cast()
        })
    }
}
