//! shapefeed: shape-filtered change feeds inside Postgres.
//!
//! Modules in the order in which a change passes through them.

::pgrx::pg_module_magic!();

/// Where the `pg_guard` attribute looks for the boundary function when it wraps functions that pgrx does not declare.
mod ffi {
    pub(crate) use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
}

pub mod error;
pub mod guc;
pub mod mix;
pub mod pg;
pub mod record;

pub mod capture;
pub mod sequence;
pub mod shape;
pub mod write;

pub mod api;

/// Called by Postgres when it loads the library.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    let preloading = pg::background::preloading();
    guc::register(preloading);
    if preloading {
        pg::shmem::reserve();
        pg::background::register_launcher();
        pg::utility::install_hook();
        // The first one registered is called last: what others write at pre-commit is captured by then.
        pg::xact::register_callbacks();
    }
}
