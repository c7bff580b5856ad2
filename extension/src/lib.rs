//! shapefeed: shape-filtered change feeds inside Postgres.
//!
//! Modules in the order in which a change passes through them.

::pgrx::pg_module_magic!();

pub mod error;
pub mod guc;
pub mod pg;
pub mod record;

pub mod capture;
pub mod sequence;
pub mod shape;

pub mod api;

/// Where the `pg_guard` attribute looks for its boundary.
use pg::ffi;
