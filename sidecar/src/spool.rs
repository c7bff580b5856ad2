//! A snapshot on its way to clients: its chunks, in memory while they are few, in a file from then on.
//!
//! The database is read at its own speed into the spool, so that a slow client never holds a transaction open; chunks
//! are served as soon as they are complete.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use tokio::sync::Notify;

use crate::error::Error;
use crate::protocol::SEPARATOR;

/// Bytes that are gathered before they are written to the file.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes of a snapshot that stay in memory.
const MEMORY_BYTES: usize = 256 << 10;
/// Bytes of the file that are read at a time, for each client.
const READ_BYTES: u64 = 128 << 10;

/// Bytes that all spools take, and may.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    max: u64,
}

impl Budget {
    /// A budget that nobody uses yet.
    pub fn new(max: u64) -> Arc<Self> {
        Arc::new(Budget {
            used: AtomicU64::new(0),
            max,
        })
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// What one spool takes of the budget; given back when its last reader is done.
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: AtomicU64,
}

impl Share {
    fn take(&self, bytes: u64) -> bool {
        let fits = self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.budget.max;
        if fits {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget
            .used
            .fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// A complete chunk.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Cursor of the next one; `None` after the last.
    pub next: Option<String>,
    /// Bytes of the snapshot up to its end, as far as they are in this spool.
    pub total: u64,
    data: Data,
    _share: Arc<Share>,
}

#[derive(Clone, Debug)]
enum Data {
    Memory(Bytes),
    File {
        file: Arc<File>,
        offset: u64,
        len: u64,
    },
}

impl Chunk {
    /// Its bytes.
    pub fn len(&self) -> u64 {
        match &self.data {
            Data::Memory(bytes) => bytes.len() as u64,
            Data::File { len, .. } => *len,
        }
    }

    /// Its bytes, if they are in memory.
    pub fn bytes(&self) -> Option<Bytes> {
        match &self.data {
            Data::Memory(bytes) => Some(bytes.clone()),
            Data::File { .. } => None,
        }
    }

    /// Its bytes in pieces, read as they are taken.
    pub fn into_pieces(self) -> BoxStream<'static, io::Result<Bytes>> {
        match self.data {
            Data::Memory(bytes) => stream::iter([Ok(bytes)]).boxed(),
            Data::File { file, offset, len } => {
                let share = self._share;
                let pieces = pieces(file, offset, offset + len);
                pieces.inspect(move |_| _ = &share).boxed()
            }
        }
    }
}

fn pieces(file: Arc<File>, from: u64, to: u64) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(from, move |at| {
        let file = file.clone();
        async move {
            if at >= to {
                return Ok(None);
            }
            let piece = blocking(move || {
                let mut piece = vec![0; (to - at).min(READ_BYTES) as usize];
                file.read_exact_at(&mut piece, at).map(|()| piece)
            })
            .await?;
            let next = at + piece.len() as u64;
            Ok(Some((Bytes::from(piece), next)))
        }
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The chunks of a snapshot from some cursor on.
#[derive(Debug)]
pub struct Spool {
    // Held for a look-up, never across an await.
    state: Mutex<State>,
    changed: Notify,
    share: Arc<Share>,
}

#[derive(Debug)]
struct State {
    /// Chunks by the cursor where they start.
    chunks: Vec<(Option<String>, Chunk)>,
    /// Start of the chunk that is being read.
    open: Option<Option<String>>,
    failed: Option<Error>,
    used_at: Instant,
}

impl Spool {
    /// A spool that will start at `cursor`.
    pub fn new(cursor: Option<String>, budget: Arc<Budget>) -> Arc<Self> {
        let share = Arc::new(Share {
            budget,
            bytes: AtomicU64::new(0),
        });
        let state = State {
            chunks: Vec::new(),
            open: Some(cursor),
            failed: None,
            used_at: Instant::now(),
        };
        Arc::new(Spool {
            state: Mutex::new(state),
            changed: Notify::new(),
            share,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Takes bytes of the budget, if there are as many left.
    pub fn reserve(&self, bytes: u64) -> bool {
        self.share.take(bytes)
    }

    /// Whether it has, or is about to have, the chunk that starts at `cursor`.
    pub fn covers(&self, cursor: &Option<String>) -> bool {
        let state = self.state();
        state.failed.is_none()
            && (state.open.as_ref() == Some(cursor)
                || state.chunks.iter().any(|(start, _)| start == cursor))
    }

    /// The chunk that starts at `cursor`, when it is complete.
    pub async fn chunk(&self, cursor: &Option<String>) -> Result<Chunk, Error> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(done) = self.look(cursor) {
                return done;
            }
            changed.await;
        }
    }

    fn look(&self, cursor: &Option<String>) -> Option<Result<Chunk, Error>> {
        let mut state = self.state();
        state.used_at = Instant::now();
        if let Some((_, chunk)) = state.chunks.iter().find(|(start, _)| start == cursor) {
            return Some(Ok(chunk.clone()));
        }
        state.failed.clone().map(Err)
    }

    /// Ends it before its time.
    pub fn fail(&self, error: Error) {
        let mut state = self.state();
        state.failed = Some(error);
        state.open = None;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Since when nobody has asked for a chunk of it; `None` while it is still being read.
    pub fn idle(&self) -> Option<Duration> {
        let state = self.state();
        state.open.is_none().then(|| state.used_at.elapsed())
    }

    fn add(&self, next: Option<String>, data: Data) {
        let mut state = self.state();
        let start = state.open.take().flatten();
        state.open = next.clone().map(Some);
        let mut chunk = Chunk {
            next,
            total: 0,
            data,
            _share: self.share.clone(),
        };
        chunk.total = state.chunks.last().map_or(0, |(_, last)| last.total) + chunk.len();
        state.chunks.push((start, chunk));
        drop(state);
        self.changed.notify_waiters();
    }
}

/// Fills a spool.
pub struct Writer {
    spool: Arc<Spool>,
    dir: PathBuf,
    buffer: Vec<u8>,
    /// Bytes of finished chunks that stay in memory.
    in_memory: usize,
    file: Option<Arc<File>>,
    file_len: u64,
    /// Where in the file the chunk that is being read began.
    chunk_start: u64,
}

impl Writer {
    /// A writer whose file, if it needs one, is in `dir`.
    pub fn new(spool: Arc<Spool>, dir: PathBuf) -> Self {
        Writer {
            spool,
            dir,
            buffer: Vec::new(),
            in_memory: 0,
            file: None,
            file_len: 0,
            chunk_start: 0,
        }
    }

    /// Adds rows to the open chunk.
    pub async fn rows(&mut self, rows: &[u8]) -> io::Result<()> {
        if !self.buffer.is_empty() || self.file_len > self.chunk_start {
            self.buffer.extend_from_slice(SEPARATOR);
        }
        self.buffer.extend_from_slice(rows);
        if self.buffer.len() >= WRITE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Closes the open chunk; `next` is the cursor where the following one starts.
    pub async fn close_chunk(&mut self, next: Option<String>) -> io::Result<()> {
        let fits =
            self.file_len == self.chunk_start && self.in_memory + self.buffer.len() <= MEMORY_BYTES;
        let data = if fits {
            self.in_memory += self.buffer.len();
            Data::Memory(Bytes::copy_from_slice(&self.buffer))
        } else {
            self.flush().await?;
            let (offset, len) = (self.chunk_start, self.file_len - self.chunk_start);
            let file = self.file.clone().expect("a flush of bytes makes the file");
            Data::File { file, offset, len }
        };
        self.buffer.clear();
        self.chunk_start = self.file_len;
        self.spool.add(next, data);
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        let (file, dir, at) = (self.file.clone(), self.dir.clone(), self.file_len);
        let buffer = std::mem::take(&mut self.buffer);
        let (file, mut buffer) = blocking(move || {
            let file = file.map_or_else(|| tempfile::tempfile_in(dir).map(Arc::new), Ok)?;
            file.write_all_at(&buffer, at).map(|()| (file, buffer))
        })
        .await?;
        self.file = Some(file);
        self.file_len += buffer.len() as u64;
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(chunk: Chunk) -> String {
        let len = chunk.len() as usize;
        let part = Bytes::from_static;
        let body = crate::content::Content::snapshot(part(b"["), chunk, part(b"]")).into_body();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        assert_eq!(bytes.len(), len + 2);
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn small_chunks_stay_in_memory_large_ones_go_to_the_file() {
        let budget = Budget::new(100 << 20);
        let spool = Spool::new(None, budget.clone());
        let mut writer = Writer::new(spool.clone(), std::env::temp_dir());
        let large = "x".repeat(700 << 10);
        writer.rows(b"a").await.unwrap();
        writer.rows(b"b").await.unwrap();
        writer.close_chunk(Some("7".into())).await.unwrap();
        for _ in 0..3 {
            writer.rows(large.as_bytes()).await.unwrap();
        }
        assert!(spool.covers(&Some("7".into())) && !spool.covers(&Some("9".into())));
        writer.close_chunk(Some("9".into())).await.unwrap();
        writer.close_chunk(None).await.unwrap();

        let first = spool.chunk(&None).await.unwrap();
        assert_eq!(first.next.as_deref(), Some("7"));
        assert_eq!(text(first).await, "[a,\nb]");
        let second = spool.chunk(&Some("7".into())).await.unwrap();
        assert_eq!(text(second).await, format!("[{large},\n{large},\n{large}]"));
        let last = spool.chunk(&Some("9".into())).await.unwrap();
        assert_eq!((last.next.clone(), text(last).await), (None, "[]".into()));

        assert!(spool.reserve(99 << 20) && !spool.reserve(2 << 20));
        assert!(spool.idle().is_some() && budget.used() == 99 << 20);
        drop((spool, writer));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn those_who_wait_learn_of_a_failure() {
        let spool = Spool::new(None, Budget::new(1));
        let waiting = tokio::spawn({
            let spool = spool.clone();
            async move { spool.chunk(&None).await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        spool.fail(Error::unavailable("full"));
        assert!(waiting.await.unwrap().is_err());
        assert!(!spool.covers(&None));
    }
}
