//! A temporary file that belongs to the whole transaction.

use std::ffi::c_void;

use pgrx::pg_sys;

/// Bytes of one segment of a BufFile (`MAX_PHYSICAL_FILESIZE` of buffile.c).
const SEGMENT_BYTES: u64 = 0x4000_0000;

/// A BufFile owned by the top transaction. At abort Postgres removes it: then only [`SpillFile::forget`] it.
pub struct SpillFile {
    file: *mut pg_sys::BufFile,
}

impl SpillFile {
    /// Makes an empty file. It survives the rollback of the subtransaction that it is made in.
    pub fn create() -> SpillFile {
        // SAFETY: the file lives as long as the owner and the context of the top transaction.
        let file = unsafe { in_top_transaction(|| pg_sys::BufFileCreateTemp(false)) };
        SpillFile { file }
    }

    fn seek(&mut self, place: u64) {
        let (segment, offset) = (
            (place / SEGMENT_BYTES) as i32,
            (place % SEGMENT_BYTES) as pg_sys::off_t,
        );
        // SAFETY: the file is open until close().
        unsafe { in_top_transaction(|| pg_sys::BufFileSeek(self.file, segment, offset, 0)) };
    }

    /// Writes `bytes` at `place`, which is at most the end of what was written.
    pub fn write_at(&mut self, place: u64, bytes: &[u8]) {
        self.seek(place);
        // SAFETY: BufFileWrite() reads `bytes.len()` bytes and raises on failure. (The pointer is not written through.)
        unsafe {
            in_top_transaction(|| {
                pg_sys::BufFileWrite(self.file, bytes.as_ptr() as *mut c_void, bytes.len())
            });
        }
    }

    /// Begins reading at the start.
    pub fn rewind(&mut self) {
        self.seek(0);
    }

    /// Fills `bytes` with what comes next; says how many there were.
    pub fn read(&mut self, bytes: &mut [u8]) -> usize {
        // SAFETY: BufFileRead() writes at most `bytes.len()` bytes there.
        unsafe { pg_sys::BufFileRead(self.file, bytes.as_mut_ptr().cast(), bytes.len()) }
    }

    /// Closes and removes the file.
    pub fn close(self) {
        // SAFETY: closed once; close() takes the value.
        unsafe { pg_sys::BufFileClose(self.file) }
    }

    /// Lets go of a file that Postgres has removed or will remove by itself.
    pub fn forget(self) {}
}

/// Files that a BufFile adds when it grows belong to the current owner, so that must be the top transaction's. And
/// temp_file_limit is about queries: it must not fail a write that would succeed if the table was not tracked.
unsafe fn in_top_transaction<T>(f: impl FnOnce() -> T) -> T {
    struct Back(pg_sys::ResourceOwner, pg_sys::MemoryContext, i32);
    impl Drop for Back {
        fn drop(&mut self) {
            // SAFETY: what was there before; they outlive this call.
            unsafe {
                pg_sys::CurrentResourceOwner = self.0;
                pg_sys::CurrentMemoryContext = self.1;
                pg_sys::temp_file_limit = self.2;
            }
        }
    }
    // SAFETY: the top transaction's own live until its end; put back on every way out.
    unsafe {
        let _back = Back(
            pg_sys::CurrentResourceOwner,
            pg_sys::CurrentMemoryContext,
            pg_sys::temp_file_limit,
        );
        pg_sys::CurrentResourceOwner = pg_sys::TopTransactionResourceOwner;
        pg_sys::CurrentMemoryContext = pg_sys::TopTransactionContext;
        pg_sys::temp_file_limit = -1;
        f()
    }
}
