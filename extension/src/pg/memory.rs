//! Memory contexts of our own, so that what the server's functions allocate on our behalf has an end.

use pgrx::pg_sys;

/// A memory context that is deleted when this is dropped. Its parent is TopMemoryContext: it lives as long as the
/// Rust value that owns it, across transactions if need be.
#[derive(Debug)]
pub struct Context {
    raw: pg_sys::MemoryContext,
}

impl Context {
    /// An empty context.
    pub fn new() -> Context {
        // SAFETY: TopMemoryContext is there for the life of the backend; the name is a static string. The sizes are
        // ALLOCSET_DEFAULT_SIZES.
        let raw = unsafe {
            let (initial, maximum) = (8 * 1024, 8 * 1024 * 1024);
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"shapefeed".as_ptr(),
                0,
                initial,
                maximum,
            )
        };
        Context { raw }
    }

    /// The context as Postgres' own functions take it; valid while this value lives.
    pub fn raw(&self) -> pg_sys::MemoryContext {
        self.raw
    }

    /// Runs `f` with this as the current context.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: the context is alive while `self` is; the previous one is made current again on every way out.
        let _previous = unsafe {
            let previous = Previous(pg_sys::CurrentMemoryContext);
            pg_sys::CurrentMemoryContext = self.raw;
            previous
        };
        f()
    }

    /// Frees everything in it.
    pub fn reset(&self) {
        // SAFETY: nothing outside keeps pointers into it: that is what callers use it for.
        unsafe { pg_sys::MemoryContextReset(self.raw) }
    }
}

impl Default for Context {
    fn default() -> Context {
        Context::new()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: only this value owns it, and `run` has made another one current again.
        unsafe { pg_sys::MemoryContextDelete(self.raw) }
    }
}

struct Previous(pg_sys::MemoryContext);

impl Drop for Previous {
    fn drop(&mut self) {
        // SAFETY: it was the current context when `run` was called, and callers outlive callees.
        unsafe { pg_sys::CurrentMemoryContext = self.0 }
    }
}
