//! Membership: where clauses with subqueries.
//!
//! Each inner select is a shape of its own whose rows give a set of values; a where clause with subqueries whose sets
//! are known is one on a single table, with the sets as constants ("frozen"). So rows are routed as for any other
//! shape. When a set changes, the shapes and inner selects that it is a constant of are given new clauses, and rows that
//! this brings in or out are looked for among those that are linked to the values that came or went.

pub mod attach;
pub mod frozen;
pub mod indexes;
pub mod later;
pub mod load;
pub mod log;
pub mod moves;
pub mod nodes;
pub mod rows;
pub mod set;
pub mod turn;
