//! A shape with subqueries at one position: there it is one without.

use super::super::attached::Attached;
use super::super::definition::Definition;
use super::super::resolve::Resolver;
use super::super::window::Log;
use super::later::Later;
use crate::error::{Error, Result};
use crate::pg::memory::Context;

/// The definition with its subqueries replaced by what they give as of a position. The log is locked, and the active
/// snapshot is the reader's; to be called while acting as the shape's role.
pub fn at(definition: &Definition, log: &Log, position: i64) -> Result<Definition> {
    if definition.inner.is_empty() {
        return Ok(definition.clone());
    }
    Ok(with_sizes(definition, log, position)?.0)
}

/// The same of a definition that has some, and each inner select's table with the size of its set.
pub fn with_sizes(
    definition: &Definition,
    log: &Log,
    position: i64,
) -> Result<(Definition, Vec<(String, usize)>)> {
    let mut attached = Attached::new(position);
    let mut later = Later::than(log, position);
    let mut resolver = Resolver::default();
    attached.join(&[(0, definition)], position, &mut resolver, &mut later)?;
    let root = attached.nodes.root_of(0).expect("it was just attached");
    let memory = Context::new();
    let relid = pgrx::pg_sys::Oid::from_u32(definition.relid);
    let text = memory.run(|| {
        let clause = attached.nodes.frozen(root, &*attached.nodes.select(root)?);
        Ok::<_, Error>(clause.map(|clause| clause.deparsed(relid)))
    })?;
    let frozen = Definition {
        where_text: text,
        ..definition.clone()
    };
    Ok((frozen, attached.nodes.sizes()))
}
