//! Compressed bodies. What many clients get is compressed once: while that goes on, all of them follow it, and it is
//! kept for those who come later, as long as there is room.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{Notify, Semaphore};

use crate::content::{Content, Identity};

/// Bodies up to this are not worth it.
const WORTH_BYTES: u64 = 1024;
/// Bodies up to this are compressed at once, by who asks first; larger ones beside the requests.
const AT_ONCE_BYTES: u64 = 64 << 10;
/// Kept bodies, however small they are.
const KEPT: usize = 1024;

// Levels at which a body costs little more than to send it: most are read once by few.
const GZIP_LEVEL: u32 = 1;
const BROTLI_LEVEL: u32 = 2;
const ZSTD_LEVEL: i32 = 1;
const BROTLI_WINDOW_BITS: u32 = 20;
const BROTLI_BUFFER: usize = 4096;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// Best and cheapest.
    Zstd,
    /// Nearly as good.
    Brotli,
    /// What everybody knows.
    Gzip,
}

impl Coding {
    const BY_PREFERENCE: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

    /// Its name in headers.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Zstd => "zstd",
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }

    /// The coding to use for a request: of those that it weighs highest the best one, unless it prefers none.
    pub fn accepted(headers: &HeaderMap) -> Option<Coding> {
        let given: Vec<(&str, f32)> = headers
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(weighed)
            .collect();
        let weight = |name: &str| {
            let of = |wanted: &str| given.iter().find(|(it, _)| it.eq_ignore_ascii_case(wanted));
            of(name)
                .or_else(|| of("*"))
                .map_or(0.0, |(_, weight)| *weight)
        };
        let mut best = None;
        let mut best_weight = 0.0;
        for coding in Self::BY_PREFERENCE {
            let weight = weight(coding.name());
            if weight > best_weight {
                (best, best_weight) = (Some(coding), weight);
            }
        }
        best
    }
}

/// One element of `accept-encoding`.
fn weighed(element: &str) -> (&str, f32) {
    let mut parts = element.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let weight = parts
        .find_map(|it| it.strip_prefix("q=").or_else(|| it.strip_prefix("Q=")))
        .map_or(1.0, |text| text.parse().unwrap_or(0.0));
    (name, weight)
}

enum Encoder {
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding) -> io::Result<Self> {
        let out = Vec::new();
        Ok(match coding {
            Coding::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?),
            Coding::Brotli => Encoder::Brotli(Box::new(brotli::CompressorWriter::new(
                out,
                BROTLI_BUFFER,
                BROTLI_LEVEL,
                BROTLI_WINDOW_BITS,
            ))),
            Coding::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                Encoder::Gzip(flate2::write::GzEncoder::new(out, level))
            }
        })
    }

    /// Takes bytes and gives what came out meanwhile.
    fn push(&mut self, bytes: &[u8]) -> io::Result<Bytes> {
        let out = match self {
            Encoder::Zstd(it) => it.write_all(bytes).map(|()| it.get_mut()),
            Encoder::Brotli(it) => it.write_all(bytes).map(|()| it.get_mut()),
            Encoder::Gzip(it) => it.write_all(bytes).map(|()| it.get_mut()),
        }?;
        Ok(std::mem::take(out).into())
    }

    fn finish(self) -> io::Result<Bytes> {
        match self {
            Encoder::Zstd(it) => it.finish(),
            Encoder::Brotli(it) => Ok(it.into_inner()),
            Encoder::Gzip(it) => it.finish(),
        }
        .map(Bytes::from)
    }
}

/// A compressed body, complete or not yet.
#[derive(Debug, Default)]
struct Packed {
    // Held for a moment, never across an await.
    state: Mutex<Progress>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct Progress {
    pieces: Vec<Bytes>,
    bytes: u64,
    /// Whether all of it is there; with the error that ended it before.
    end: Option<Result<(), Arc<io::Error>>>,
}

impl Packed {
    fn state(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().expect("no panic while held")
    }

    fn push(&self, piece: Bytes) {
        if !piece.is_empty() {
            let mut state = self.state();
            state.bytes += piece.len() as u64;
            state.pieces.push(piece);
            drop(state);
            self.grown.notify_waiters();
        }
    }

    fn end(&self, end: io::Result<()>) {
        self.state().end = Some(end.map_err(Arc::new));
        self.grown.notify_waiters();
    }

    fn failed(&self) -> bool {
        matches!(self.state().end, Some(Err(_)))
    }

    /// Its length once that is known.
    fn len(&self) -> Option<u64> {
        let state = self.state();
        matches!(state.end, Some(Ok(()))).then_some(state.bytes)
    }

    async fn piece(&self, n: usize) -> io::Result<Option<Bytes>> {
        loop {
            let mut grown = std::pin::pin!(self.grown.notified());
            grown.as_mut().enable();
            {
                let state = self.state();
                match (state.pieces.get(n), &state.end) {
                    (Some(piece), _) => return Ok(Some(piece.clone())),
                    (None, Some(Ok(()))) => return Ok(None),
                    (None, Some(Err(error))) => return Err(io::Error::other(error.clone())),
                    (None, None) => {}
                }
            }
            grown.await;
        }
    }

    fn follow(self: Arc<Self>) -> impl Stream<Item = io::Result<Bytes>> {
        stream::try_unfold((self, 0), |(packed, n)| async move {
            let piece = packed.piece(n).await?;
            Ok(piece.map(|piece| (piece, (packed, n + 1))))
        })
    }

    fn fill(&self, coding: Coding, parts: &[Bytes]) -> io::Result<()> {
        let mut encoder = Encoder::new(coding)?;
        for part in parts {
            self.push(encoder.push(part)?);
        }
        self.push(encoder.finish()?);
        Ok(())
    }

    async fn fill_from(&self, coding: Coding, content: Content) -> io::Result<()> {
        let mut encoder = Encoder::new(coding)?;
        let mut pieces = content.into_pieces();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            let work = move || encoder.push(&piece).map(|out| (encoder, out));
            let (rest, out) = blocking(work).await?;
            self.push(out);
            encoder = rest;
        }
        self.push(blocking(move || encoder.finish()).await?);
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

type Key = (Identity, Coding);

#[derive(Debug, Default)]
struct Kept {
    bodies: HashMap<Key, Arc<Packed>>,
    /// The one that was made last is last.
    order: VecDeque<Key>,
}

/// Compresses bodies and keeps those that others may want.
#[derive(Debug)]
pub struct Compression {
    enabled: bool,
    max_bytes: u64,
    // Held for a look-up, never across an await.
    kept: Mutex<Kept>,
    /// As many bodies as there are processors are compressed at the same time.
    turns: Arc<Semaphore>,
}

impl Compression {
    /// Keeps up to so many bytes.
    pub fn new(enabled: bool, max_bytes: u64) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Compression {
            enabled,
            max_bytes,
            kept: Mutex::default(),
            turns: Arc::new(Semaphore::new(processors)),
        }
    }

    /// How to send a body to who accepts `coding`.
    pub fn coding(&self, content: &Content, coding: Option<Coding>) -> Option<Coding> {
        coding.filter(|_| self.enabled && content.len() > WORTH_BYTES)
    }

    /// A body to send, and its length if that is known.
    pub fn body(&self, content: Content, coding: Coding) -> (Body, Option<u64>) {
        let packed = self.packed(content, coding);
        let len = packed.len();
        (Body::from_stream(packed.follow()), len)
    }

    fn packed(&self, content: Content, coding: Coding) -> Arc<Packed> {
        let Some(identity) = content.identity() else {
            return self.pack(Arc::default(), content, coding);
        };
        let key = (identity, coding);
        let packed = {
            let mut kept = self.kept.lock().expect("no panic while held");
            if let Some(packed) = kept.bodies.get(&key).filter(|it| !it.failed()) {
                return packed.clone();
            }
            let packed = Arc::<Packed>::default();
            if kept.bodies.insert(key.clone(), packed.clone()).is_none() {
                kept.order.push_back(key);
            }
            packed
        };
        let packed = self.pack(packed, content, coding);
        self.trim();
        packed
    }

    fn pack(&self, packed: Arc<Packed>, content: Content, coding: Coding) -> Arc<Packed> {
        match content.parts() {
            Some(parts) if content.len() <= AT_ONCE_BYTES => {
                packed.end(packed.fill(coding, &parts));
            }
            _ => {
                let (packed, turns) = (packed.clone(), self.turns.clone());
                tokio::spawn(async move {
                    let _turn = turns.acquire().await;
                    packed.end(packed.fill_from(coding, content).await);
                });
            }
        }
        packed
    }

    /// Forgets the oldest bodies above the bounds.
    fn trim(&self) {
        let mut kept = self.kept.lock().expect("no panic while held");
        let bytes = |packed: &Packed| packed.state().bytes;
        let mut total: u64 = kept.bodies.values().map(|it| bytes(it)).sum();
        while total > self.max_bytes || kept.order.len() > KEPT {
            let Some(oldest) = kept.order.pop_front() else {
                break;
            };
            if let Some(packed) = kept.bodies.remove(&oldest) {
                total = total.saturating_sub(bytes(&packed));
            }
        }
    }
}

/// `vary` of all that may be compressed.
pub const VARY: HeaderValue = HeaderValue::from_static("accept-encoding");

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn accepted(text: &'static str) -> Option<Coding> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(text));
        Coding::accepted(&headers)
    }

    fn content(size: usize, identity: Option<&str>) -> Content {
        let rows: String = (0..size).map(|n| format!("{{\"id\":{n}}},")).collect();
        let part = Bytes::from_static;
        let content = Content::log(part(b"["), Bytes::from(rows), part(b"]"));
        match identity {
            Some(identity) => content.known_as(identity.into()),
            None => content,
        }
    }

    async fn bytes(body: Body) -> Bytes {
        axum::body::to_bytes(body, usize::MAX).await.unwrap()
    }

    fn unpacked(coding: Coding, packed: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match coding {
            Coding::Zstd => return zstd::stream::decode_all(packed).unwrap(),
            Coding::Brotli => brotli::Decompressor::new(packed, 4096).read_to_end(&mut plain),
            Coding::Gzip => flate2::read::GzDecoder::new(packed).read_to_end(&mut plain),
        }
        .unwrap();
        plain
    }

    #[test]
    fn codings_by_weight_then_by_what_is_best() {
        assert_eq!(accepted("gzip, deflate"), Some(Coding::Gzip));
        assert_eq!(accepted("gzip, deflate, br, zstd"), Some(Coding::Zstd));
        assert_eq!(accepted("gzip;q=1.0, br;q=0.5"), Some(Coding::Gzip));
        assert_eq!(accepted("*"), Some(Coding::Zstd));
        assert_eq!(accepted("*, zstd;q=0"), Some(Coding::Brotli));
        assert_eq!(accepted("GZIP ; q=0.1"), Some(Coding::Gzip));
        for none in ["", "identity", "deflate", "gzip;q=0", "gzip;q=x", "*;q=0"] {
            assert_eq!(accepted(none), None, "{none}");
        }
        assert_eq!(Coding::accepted(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn every_coding_and_size_comes_back() {
        let compression = Compression::new(true, 1 << 20);
        for coding in Coding::BY_PREFERENCE {
            for size in [200, 100_000] {
                let plain = bytes(content(size, None).into_body()).await;
                let (body, len) = compression.body(content(size, None), coding);
                let packed = bytes(body).await;
                assert!(packed.len() * 2 < plain.len());
                assert_eq!(len.unwrap_or(packed.len() as u64), packed.len() as u64);
                assert_eq!(unpacked(coding, &packed), plain);
            }
        }
    }

    #[tokio::test]
    async fn what_has_a_name_is_compressed_once() {
        let compression = Compression::new(true, 1 << 20);
        for size in [200, 100_000] {
            let name = format!("{size}");
            let packed = |name: &str| compression.packed(content(size, Some(name)), Coding::Gzip);
            let (first, second) = (packed(&name), packed(&name));
            assert!(Arc::ptr_eq(&first, &second));
            let (first, second) = tokio::join!(
                bytes(Body::from_stream(first.follow())),
                bytes(Body::from_stream(second.follow()))
            );
            assert_eq!(first, second);
            assert!(!Arc::ptr_eq(&packed(&name), &packed("other")));
            let zstd = compression.packed(content(size, Some(&name)), Coding::Zstd);
            assert!(!Arc::ptr_eq(&packed(&name), &zstd));
        }
    }

    #[tokio::test]
    async fn the_oldest_bodies_go() {
        let compression = Compression::new(true, 1000);
        for n in 0..20 {
            compression.packed(content(500, Some(&n.to_string())), Coding::Gzip);
        }
        let kept = compression.kept.lock().unwrap();
        let total: u64 = kept.bodies.values().map(|it| it.state().bytes).sum();
        assert!(total <= 1000 && kept.order.len() == kept.bodies.len());
        let zero = content(500, Some("0")).identity().unwrap();
        assert!(!kept.bodies.contains_key(&(zero, Coding::Gzip)));
    }

    #[test]
    fn small_bodies_stay_plain() {
        let compression = Compression::new(true, 1000);
        let coding = |compression: &Compression, size| {
            compression.coding(&content(size, None), Some(Coding::Gzip))
        };
        assert_eq!(coding(&compression, 10), None);
        assert_eq!(coding(&compression, 500), Some(Coding::Gzip));
        assert_eq!(coding(&Compression::new(false, 1000), 500), None);
    }
}
