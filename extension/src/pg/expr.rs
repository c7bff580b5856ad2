//! Where clauses: from text to something that can be asked whether a row is in.
//!
//! Postgres itself parses, type-checks, folds and evaluates. What is added is a filter: an expression is let through
//! only if its value depends on nothing but the row, so that a row moves in or out only when it is changed. All of it
//! must run inside [`super::role::AsRole`], since both parsing and folding may run code.

mod access;
mod check;
mod freeze;
mod function;
mod joins;
mod key;
mod order;
mod parse;
mod parts;
mod policy;
mod predicate;
mod range;
mod scalar;
mod subquery;
mod template;
mod tree;
mod uses;
mod value;

pub use access::{Access, By, Comparison, Order as RangeOrder, Part, Strategy};
pub use freeze::{Change, Outputs, together};
pub use key::Key;
pub use order::{Order, analyze_order};
pub use parse::{Where, analyze, analyze_among, has_subqueries, reanalyze};
use parse::{columns, deparse};
pub use policy::{secured, state as policy_state, unmaintainable, without_place};
pub use predicate::{Compiled, Predicate, Scope};
pub use range::{Ends, Range};
pub use subquery::{Analyzed, Select, analyze_subqueries};
pub use template::{Condition, Lifted};
pub use value::Value;

/// Why a where clause is not taken, in the words of docs/protocol.md.
#[derive(Debug)]
pub struct Refused(pub String);

/// A where or order by clause as it is given to Postgres' parser. Positions in it are part of the protocol's error texts.
struct Source {
    text: String,
    /// Characters that stand before the clause.
    before: usize,
    /// It is a client's, and must not be long.
    is_limited: bool,
}

impl Source {
    /// What stands before the clause. A syntax error's position counts from here, any other's from the clause itself.
    const WHERE: &'static str = "SELECT 1 WHERE ";
    const ORDER_BY: &'static str = "SELECT 1 ORDER BY ";

    fn of_where(clause: &str) -> Source {
        Source::after(Source::WHERE, clause)
    }

    fn of_order_by(clause: &str) -> Source {
        Source::after(Source::ORDER_BY, clause)
    }

    fn is_order_by(&self) -> bool {
        self.text.starts_with(Source::ORDER_BY)
    }

    fn after(prefix: &str, clause: &str) -> Source {
        Source {
            text: format!("{prefix}{clause}"),
            before: prefix.len(),
            is_limited: true,
        }
    }

    /// `message` with the position in the clause of a node's `location`, a byte of the text or -1.
    fn locate(&self, location: i32, message: &str) -> Refused {
        let Some(before) = usize::try_from(location)
            .ok()
            .and_then(|end| self.text.get(..end))
        else {
            return Refused(message.to_string());
        };
        let position = before.chars().count().saturating_sub(self.before);
        Refused(format!("At location {position}: {message}"))
    }
}
