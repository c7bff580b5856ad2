//! shapefeed: shape-filtered change feeds inside Postgres.
//!
//! Modules in the order in which a change passes through them.

::pgrx::pg_module_magic!();

pub mod error;
pub mod pg;
pub mod record;
