//! How the rows that a where clause lets in can be found by the values of their columns.
//!
//! Looked at are conjuncts `column = constant` and `column = ANY(constant array)`, then ranges: `<`, BETWEEN and what tells
//! how a column begins; under AND with anything else, which is left over to be evaluated, and under OR if all of its sides
//! have one.
//!
//! Any operator counts that its hash operator family knows, or its btree operator family as one side of a range. A clause
//! that a row-level security policy stands before must use those with a leakproof function only, as its keys are compared
//! with rows that the policy may hide.

use pg_sys::{Node, NodeTag, Oid};
use pgrx::pg_sys;

use super::super::list::cells;
use super::super::values::Typed;
use super::range::{comparing, prefix_of};

/// How a column is compared with a constant: what an index over constants has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Comparison {
    /// The column, from 0.
    pub column: usize,
    /// The operator.
    pub by: By,
}

/// An operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// Both sides are integers of 16, 32 or 64 bits, or something whose values are equal exactly if their bits are; the
    /// column's have this many bytes.
    Integer(i16),
    /// Any other equality, under this collation.
    Operator {
        /// `pg_operator.oid`.
        operator: u32,
        /// The collation that it is given.
        collation: u32,
        /// The constant stands on its left.
        constant_first: bool,
    },
    /// One side of a range.
    Order(Order, Strategy),
    /// The column begins as a constant says.
    Prefix {
        /// The constant is a pattern of LIKE.
        is_pattern: bool,
    },
}

impl By {
    /// It is no equality.
    pub fn is_range(self) -> bool {
        matches!(self, By::Order(..) | By::Prefix { .. })
    }
}

/// What is less than what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Both sides are integers, or stored and ordered like these; the column's have this many bytes.
    Integer(i16),
    /// As a btree operator family says, for a column of one type and constants of another.
    Family {
        /// `pg_opfamily.oid`.
        family: u32,
        /// What the family takes the column for.
        column: u32,
        /// What it takes the constant for.
        constant: u32,
        /// The collation that it is given.
        collation: u32,
    },
}

/// How a column lies to a constant, by the numbers that btrees have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strategy {
    /// `<`
    Less = 1,
    /// `<=`
    LessEqual,
    /// `=`
    Equal,
    /// `>=`
    GreaterEqual,
    /// `>`
    Greater,
}

impl Strategy {
    fn of(number: i32, constant_first: bool) -> Option<Strategy> {
        use Strategy::*;
        let all = [Less, LessEqual, Equal, GreaterEqual, Greater];
        let number = if constant_first { 6 - number } else { number };
        all.into_iter().find(|one| *one as i32 == number)
    }

    /// The range begins at the constant.
    pub fn is_low(self) -> bool {
        self >= Strategy::Equal
    }

    /// The range ends at the constant.
    pub fn is_high(self) -> bool {
        self <= Strategy::Equal
    }

    /// The constant itself is in the range.
    pub fn is_inclusive(self) -> bool {
        !matches!(self, Strategy::Less | Strategy::Greater)
    }

    /// As SQL has it.
    pub fn symbol(self) -> &'static str {
        ["<", "<=", "=", ">=", ">"][self as usize - 1]
    }
}

/// A comparison of a column with one of the clause's constants, or with any element of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// How.
    pub comparison: Comparison,
    /// Which constant, from 0.
    pub constant: usize,
    /// The constant is an array, whose elements are meant.
    pub any: bool,
}

impl Part {
    fn new(column: Column, by: By, constant: usize) -> Part {
        let column = column.place;
        Part {
            comparison: Comparison { column, by },
            constant,
            any: false,
        }
    }

    fn strategy(&self) -> Option<Strategy> {
        match self.comparison.by {
            By::Order(_, strategy) => Some(strategy),
            _ => None,
        }
    }

    /// Does the other one end the range that this one begins?
    fn begins(&self, other: &Part) -> bool {
        match (self.comparison.by, other.comparison.by) {
            (By::Order(order, low), By::Order(same, high)) => {
                let same = order == same && self.comparison.column == other.comparison.column;
                same && low.is_low() && high.is_high()
            }
            _ => false,
        }
    }
}

/// Equalities that must all be true, sorted, at most one of them with an array; or a range, by its ends, the lower one
/// first, or by how its values begin.
pub type Access = Vec<Part>;

/// How a clause's rows are found.
#[derive(Debug)]
pub struct Plan {
    /// A row that is in passes one of these.
    pub accesses: Vec<Access>,
    /// What must be true besides; one that passes is in if there is nothing. What only narrows the rows down comes first.
    pub residual: Vec<*mut Node>,
    narrow: Narrow,
}

/// How few rows pass, as far as the form tells: many shapes have a key each, while ranges are often the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Narrow {
    OneSided,
    TwoSided,
    Equal,
}

/// How the rows are found for which all of these are true; None if every row must be looked at.
///
/// # Safety
/// `quals` are expressions whose constants are Params that stand for these.
pub unsafe fn plan(quals: &[*mut Node], constants: &[Typed]) -> Option<Plan> {
    // SAFETY: as the caller says.
    unsafe {
        if let Some(plan) = equalities(quals) {
            return Some(plan);
        }
        let unions = (0..quals.len()).rev().filter_map(|place| {
            let mut plan = union(quals[place], constants)?;
            plan.residual.extend(all_but(quals, &[place]));
            Some(plan)
        });
        let all = unions.chain(range(quals, constants));
        all.max_by_key(|plan| plan.narrow) // the last of equals
    }
}

fn all_but(quals: &[*mut Node], places: &[usize]) -> impl Iterator<Item = *mut Node> {
    let others = quals.iter().enumerate();
    let others = others.filter(|(place, _)| !places.contains(place));
    others.map(|(_, qual)| *qual)
}

/// All equalities together.
unsafe fn equalities(quals: &[*mut Node]) -> Option<Plan> {
    // SAFETY: as for plan().
    let mut parts: Vec<Option<Part>> = quals.iter().map(|qual| unsafe { part(*qual) }).collect();
    let is_key = |part: &Option<Part>| part.is_some_and(|part| !part.any);
    // One array is enough: more would multiply the keys.
    let any = parts
        .iter()
        .position(|part| part.is_some_and(|part| part.any));
    for (place, part) in parts.iter_mut().enumerate() {
        if !is_key(part) && Some(place) != any {
            *part = None;
        }
    }
    let places: Vec<usize> = (0..quals.len())
        .filter(|place| parts[*place].is_some())
        .collect();
    let mut access: Access = parts.into_iter().flatten().collect();
    access.sort_unstable();
    (!access.is_empty()).then(|| Plan {
        accesses: vec![access],
        residual: all_but(quals, &places).collect(),
        narrow: Narrow::Equal,
    })
}

/// The narrowest range.
unsafe fn range(quals: &[*mut Node], constants: &[Typed]) -> Option<Plan> {
    let sides = quals.iter().enumerate();
    // SAFETY: as for plan().
    let sides = sides.filter_map(|(place, qual)| Some((place, unsafe { side(*qual, constants) }?)));
    let sides: Vec<(usize, Side)> = sides.collect();
    let plans = sides.iter().rev().map(|(place, one)| {
        let other = sides.iter().find(|(_, other)| one.part.begins(&other.part));
        let (mut access, mut places) = (vec![one.part], vec![*place]);
        if let Some((place, other)) = other.filter(|(other, _)| other != place) {
            access.push(other.part);
            places.push(*place);
        }
        let narrow = match one.part.strategy() {
            Some(Strategy::Equal) => Narrow::Equal,
            Some(_) if access.len() == 1 => Narrow::OneSided,
            _ => Narrow::TwoSided,
        };
        let again = (!one.is_exact).then(|| quals[*place]);
        Plan {
            accesses: vec![access],
            residual: again.into_iter().chain(all_but(quals, &places)).collect(),
            narrow,
        }
    });
    plans.max_by_key(|plan| plan.narrow)
}

/// The sides of an OR, if each of them can be looked up.
unsafe fn union(node: *mut Node, constants: &[Typed]) -> Option<Plan> {
    // SAFETY: a node's tag tells its type; the arguments of a BoolExpr are expressions.
    unsafe {
        let sides = arguments(node, pg_sys::BoolExprType::OR_EXPR)?;
        let (mut accesses, mut covered, mut narrow) = (Vec::new(), true, Narrow::Equal);
        for side in sides {
            let quals =
                arguments(side, pg_sys::BoolExprType::AND_EXPR).unwrap_or_else(|| vec![side]);
            let plan = plan(&quals, constants)?;
            covered &= plan.residual.is_empty();
            narrow = narrow.min(plan.narrow);
            accesses.extend(plan.accesses);
        }
        let residual = if covered { vec![] } else { vec![node] };
        Some(Plan {
            accesses,
            residual,
            narrow,
        })
    }
}

unsafe fn arguments(node: *mut Node, kind: pg_sys::BoolExprType::Type) -> Option<Vec<*mut Node>> {
    // SAFETY: a node's tag tells its type.
    unsafe {
        let expression = node.cast::<pg_sys::BoolExpr>();
        if (*node).type_ != NodeTag::T_BoolExpr || (*expression).boolop != kind {
            return None;
        }
        let arguments = cells((*expression).args).iter();
        Some(arguments.map(|cell| cell.ptr_value.cast()).collect())
    }
}

/// The equality that this is, if an index can answer it.
unsafe fn part(node: *mut Node) -> Option<Part> {
    // SAFETY: a node's tag tells its type; a ScalarArrayOpExpr has two arguments.
    unsafe {
        if (*node).type_ != NodeTag::T_ScalarArrayOpExpr {
            let pair = Pair::of(node)?;
            return Some(Part::new(pair.column, equality(&pair)?, pair.constant));
        }
        let call = node.cast::<pg_sys::ScalarArrayOpExpr>();
        let [left, right] = cells((*call).args) else {
            return None;
        };
        if !(*call).useOr {
            return None;
        }
        let pair = Pair {
            operator: (*call).opno,
            function: pg_sys::get_opcode((*call).opno).to_u32(),
            collation: (*call).inputcollid,
            left: left.ptr_value.cast(),
            column: column(left.ptr_value.cast())?,
            constant: constant(right.ptr_value.cast())?,
            constant_first: false,
        };
        let part = Part::new(pair.column, equality(&pair)?, pair.constant);
        Some(Part { any: true, ..part })
    }
}

/// One side of a range, or both.
struct Side {
    part: Part,
    /// All values in the range pass.
    is_exact: bool,
}

/// What this says of a column's place in an order.
unsafe fn side(node: *mut Node, constants: &[Typed]) -> Option<Side> {
    // SAFETY: as for plan(); what these functions take is text, or stored like it.
    unsafe {
        let pair = Pair::of(node)?;
        let is_pattern = PATTERNS.contains(&pair.function);
        if is_pattern || pair.function == pg_sys::F_STARTS_WITH {
            let deterministic = pair.collation == Oid::INVALID
                || pg_sys::get_collation_isdeterministic(pair.collation);
            if pair.constant_first || !deterministic {
                return None;
            }
            let (prefix, is_exact) = prefix_of(constants[pair.constant], is_pattern)?;
            let by = By::Prefix { is_pattern };
            let part = Part::new(pair.column, by, pair.constant);
            return (!prefix.is_empty()).then_some(Side { part, is_exact });
        }
        Some(Side {
            part: Part::new(pair.column, order(&pair)?, pair.constant),
            is_exact: true,
        })
    }
}

/// A column and a constant that an operator or a function is given.
struct Pair {
    /// Invalid for a function.
    operator: Oid,
    function: u32,
    collation: Oid,
    left: *mut Node,
    column: Column,
    constant: usize,
    constant_first: bool,
}

impl Pair {
    unsafe fn of(node: *mut Node) -> Option<Pair> {
        // SAFETY: a node's tag tells its type.
        unsafe {
            let (operator, function, collation, args) = match (*node).type_ {
                NodeTag::T_OpExpr => {
                    let call = node.cast::<pg_sys::OpExpr>();
                    let function = pg_sys::get_opcode((*call).opno);
                    ((*call).opno, function, (*call).inputcollid, (*call).args)
                }
                NodeTag::T_FuncExpr => {
                    let call = node.cast::<pg_sys::FuncExpr>();
                    let collation = (*call).inputcollid;
                    (Oid::INVALID, (*call).funcid, collation, (*call).args)
                }
                _ => return None,
            };
            let [left, right] = cells(args) else {
                return None;
            };
            let (left, right) = (left.ptr_value.cast(), right.ptr_value.cast());
            let (column, constant, constant_first) = match (column(left), constant(right)) {
                (Some(column), Some(constant)) => (column, constant, false),
                _ => (column(right)?, constant(left)?, true),
            };
            Some(Pair {
                operator,
                function: function.to_u32(),
                collation,
                left,
                column,
                constant,
                constant_first,
            })
        }
    }
}

#[derive(Clone, Copy)]
struct Column {
    place: usize,
    length: i16,
}

/// The column that this is, perhaps as another type that is stored alike.
unsafe fn column(mut node: *mut Node) -> Option<Column> {
    // SAFETY: a node's tag tells its type.
    unsafe {
        while (*node).type_ == NodeTag::T_RelabelType {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        if (*node).type_ != NodeTag::T_Var {
            return None;
        }
        let var = node.cast::<pg_sys::Var>();
        Some(Column {
            place: usize::try_from((*var).varattno - 1).ok()?,
            length: pg_sys::get_typlen((*var).vartype),
        })
    }
}

unsafe fn constant(node: *mut Node) -> Option<usize> {
    // SAFETY: a node's tag tells its type.
    unsafe {
        let param = node.cast::<pg_sys::Param>();
        ((*node).type_ == NodeTag::T_Param).then(|| (*param).paramid as usize - 1)
    }
}

/// What an index has to know of an operator if that is an equality whose operator family can hash both of its sides.
unsafe fn equality(pair: &Pair) -> Option<By> {
    if BITWISE.contains(&pair.function) {
        return Some(By::Integer(pair.column.length));
    }
    let (mut left_hash, mut right_hash) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    let operator = pair.operator;
    // SAFETY: these read the catalog cache.
    let hashes = unsafe {
        operator != Oid::INVALID
            && pg_sys::op_hashjoinable(operator, pg_sys::exprType(pair.left))
            && pg_sys::get_op_hash_functions(operator, &mut left_hash, &mut right_hash)
    };
    hashes.then(|| By::Operator {
        operator: operator.to_u32(),
        collation: pair.collation.to_u32(),
        constant_first: pair.constant_first,
    })
}

/// What an index has to know of an operator if a btree operator family can compare both of its sides.
unsafe fn order(pair: &Pair) -> Option<By> {
    // SAFETY: these read the catalog cache.
    unsafe {
        if pair.operator == Oid::INVALID {
            return None;
        }
        meanings(pair.operator).find_map(|(number, family, types)| {
            let strategy = Strategy::of(number, pair.constant_first)?;
            let constant = types[usize::from(!pair.constant_first)];
            let column = types[usize::from(pair.constant_first)];
            let compares = comparing(family, column, constant).to_u32();
            if compares == 0 || comparing(family, constant, constant) == Oid::INVALID {
                return None;
            }
            let order = if INTEGERS.contains(&compares) {
                Order::Integer(pair.column.length)
            } else {
                Order::Family {
                    family: family.to_u32(),
                    column: column.to_u32(),
                    constant: constant.to_u32(),
                    collation: pair.collation.to_u32(),
                }
            };
            Some(By::Order(order, strategy))
        })
    }
}

/// What an operator means to ordered operator families: the number of its strategy, the family, and the types of its sides.
unsafe fn meanings(operator: Oid) -> impl Iterator<Item = (i32, Oid, [Oid; 2])> {
    #[cfg(not(feature = "pg18"))]
    use pg_sys::{OpBtreeInterpretation as Meaning, get_op_btree_interpretation as list_of};
    #[cfg(feature = "pg18")]
    use pg_sys::{OpIndexInterpretation as Meaning, get_op_index_interpretation as list_of};
    // SAFETY: reads the catalog cache; the list is one of that type.
    unsafe { cells(list_of(operator)) }.iter().map(|cell| {
        // SAFETY: as above.
        let meaning = unsafe { *cell.ptr_value.cast::<Meaning>() };
        #[cfg(not(feature = "pg18"))]
        let number = meaning.strategy;
        // The numbers of comparisons are those of btree's strategies.
        #[cfg(feature = "pg18")]
        let number = meaning.cmptype as i32;
        (
            number,
            meaning.opfamily_id,
            [meaning.oplefttype, meaning.oprighttype],
        )
    })
}

/// Equality of values that are passed by value: of integers, or of the bits.
const BITWISE: [u32; 13] = [
    pg_sys::F_INT2EQ,
    pg_sys::F_INT4EQ,
    pg_sys::F_INT8EQ,
    pg_sys::F_INT24EQ,
    pg_sys::F_INT42EQ,
    pg_sys::F_INT28EQ,
    pg_sys::F_INT82EQ,
    pg_sys::F_INT48EQ,
    pg_sys::F_INT84EQ,
    pg_sys::F_DATE_EQ,
    pg_sys::F_TIMESTAMP_EQ,
    pg_sys::F_TIMESTAMPTZ_EQ,
    pg_sys::F_ENUM_EQ,
];

/// What compares integers, or values that are stored and ordered like these.
const INTEGERS: [u32; 12] = [
    pg_sys::F_BTINT2CMP,
    pg_sys::F_BTINT4CMP,
    pg_sys::F_BTINT8CMP,
    pg_sys::F_BTINT24CMP,
    pg_sys::F_BTINT42CMP,
    pg_sys::F_BTINT28CMP,
    pg_sys::F_BTINT82CMP,
    pg_sys::F_BTINT48CMP,
    pg_sys::F_BTINT84CMP,
    pg_sys::F_DATE_CMP,
    pg_sys::F_TIMESTAMP_CMP,
    pg_sys::F_TIMESTAMPTZ_CMP,
];

/// LIKE, for what is stored as a length and bytes.
const PATTERNS: [u32; 4] = [
    pg_sys::F_LIKE_TEXT_TEXT,
    pg_sys::F_TEXTLIKE,
    pg_sys::F_BPCHARLIKE,
    pg_sys::F_BYTEALIKE,
];
