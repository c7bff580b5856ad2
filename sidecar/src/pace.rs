//! How long a connection may take its time: to say what it wants, to say nothing, and to take what it is sent.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

use crate::crowd::{Crowd, Place};

/// A client that is slow to take an answer has taken this much of it within the limit, or is cut.
const STALL_BYTES: usize = 64 << 10;
/// What a connection over HTTP/2 begins with.
const HTTP2: &[u8] = b"PRI ";

/// Limits of every connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first byte of a request to the end of its headers.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For [`STALL_BYTES`] of an answer.
    pub stall: Duration,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// The headers of a request did not come.
    Head,
    /// No request came.
    Idle,
    /// An answer was not taken.
    Stall,
}

/// A connection's time as it passes.
#[derive(Debug)]
struct State {
    limits: Limits,
    /// Requests that are being answered.
    running: usize,
    quiet_since: Instant,
    /// When something came that no request has followed yet.
    head_since: Option<Instant>,
    /// Whether its last request was a live one: that of a client that follows.
    follows: bool,
    /// Over HTTP/2 there is more than requests to say.
    multiplexed: bool,
    /// Whether the client's end is full, since when it was found so, and what it has taken since then.
    full: bool,
    full_since: Option<Instant>,
    taken: usize,
}

impl State {
    fn new(limits: Limits, now: Instant) -> Self {
        State {
            limits,
            running: 0,
            quiet_since: now,
            head_since: None,
            follows: false,
            multiplexed: false,
            full: false,
            full_since: None,
            taken: 0,
        }
    }

    fn read(&mut self, bytes: &[u8], now: Instant) {
        if bytes.starts_with(HTTP2) {
            self.multiplexed = true;
        }
        if self.running == 0 && !bytes.is_empty() {
            self.head_since.get_or_insert(now);
        }
    }

    fn wrote(&mut self, bytes: usize) {
        self.full = false;
        self.taken += bytes;
        if self.taken >= STALL_BYTES {
            self.full_since = None;
        }
    }

    fn cannot_write(&mut self, now: Instant) {
        self.full = true;
        if self.full_since.is_none() {
            self.full_since = Some(now);
            self.taken = 0;
        }
    }

    fn begin(&mut self, live: bool) {
        self.follows = live;
        self.running += 1;
        self.head_since = None;
    }

    /// Whether what comes next begins a request of one that may be part of a crowd.
    fn comes(&self) -> bool {
        self.running == 0 && self.head_since.is_none() && !self.follows
    }

    fn end(&mut self, now: Instant) {
        self.running -= 1;
        if self.running == 0 {
            self.quiet_since = now;
        }
    }

    /// The next limit and when it is reached.
    fn deadline(&self) -> Option<(Instant, Late)> {
        let limits = self.limits;
        match (self.full, self.full_since, self.head_since) {
            (true, Some(since), _) => Some((since + limits.stall, Late::Stall)),
            _ if self.running > 0 => None,
            (_, _, Some(since)) if !self.multiplexed => Some((since + limits.head, Late::Head)),
            _ => Some((self.quiet_since + limits.idle, Late::Idle)),
        }
    }

    /// Whether one was reached. A client that took all there was is not slow any more.
    fn late(&mut self, now: Instant) -> Option<Late> {
        if !self.full
            && self
                .full_since
                .is_some_and(|since| since + self.limits.stall <= now)
        {
            self.full_since = None;
        }
        let (at, late) = self.deadline()?;
        (at <= now).then_some(late)
    }
}

/// A connection's time, shared by its stream, its requests and who watches it.
#[derive(Clone, Debug)]
pub struct Pace(
    // Held for a moment, never across an await.
    Arc<Mutex<State>>,
);

impl Pace {
    /// A connection that was just accepted.
    pub fn new(limits: Limits) -> Self {
        Pace(Arc::new(Mutex::new(State::new(limits, Instant::now()))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }

    /// A request, live or not, is being answered until this is dropped.
    pub fn request(&self, live: bool) -> Running {
        self.state().begin(live);
        Running(self.clone())
    }

    /// Completes when a limit is reached. What happens on the connection must wake the task that polls this, after
    /// which this must be polled.
    pub fn late(&self) -> Watch {
        let armed = Instant::now();
        Watch {
            pace: self.clone(),
            armed,
            sleep: Box::pin(sleep_until(armed)),
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Running(Pace);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state().end(Instant::now());
    }
}

/// See [`Pace::late`].
pub struct Watch {
    pace: Pace,
    /// When the timer wakes us. Later limits do not move it: it is looked again then.
    armed: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Future for Watch {
    type Output = Late;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Late> {
        loop {
            let now = Instant::now();
            let (late, deadline) = {
                let mut state = self.pace.state();
                // While requests run there is no limit; that there is one again may not wake us.
                let unlimited = now + state.limits.idle;
                (
                    state.late(now),
                    state.deadline().map_or(unlimited, |(at, _)| at),
                )
            };
            if let Some(late) = late {
                return Poll::Ready(late);
            }
            if deadline < self.armed || self.sleep.is_elapsed() {
                self.armed = deadline;
                self.sleep.as_mut().reset(deadline);
            }
            ready!(self.sleep.as_mut().poll(cx));
        }
    }
}

/// A stream that may know that there is something to read before it is read.
pub trait Readable {
    /// Completes when a read would find something, or might.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;
}

impl Readable for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(|_| ())
    }
}

/// What was deciphered already is not seen from outside.
impl Readable for TlsStream<TcpStream> {
    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// A stream that keeps a connection's time, and its place in the crowd.
pub struct Paced<S> {
    stream: S,
    pace: Pace,
    place: Place,
}

impl<S> Paced<S> {
    /// Wraps a stream.
    pub fn new(stream: S, pace: Pace, crowd: &Arc<Crowd>) -> Self {
        Paced {
            stream,
            pace,
            place: Place::new(crowd),
        }
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => self.pace.state().wrote(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.pace.state().cannot_write(Instant::now()),
        }
        written
    }
}

impl<S: AsyncRead + Readable + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.pace.state().comes() {
            ready!(self.stream.poll_readable(cx));
            ready!(self.place.poll_step(cx));
        }
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.pace
            .state()
            .read(&buffer.filled()[before..], Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.note(flushed.map_ok(|()| 0)).map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A body that keeps something until it was sent, or given up.
pub struct Keeping<T> {
    body: Body,
    _kept: T,
}

impl<T> Keeping<T> {
    /// Keeps `kept` as long as `body`.
    pub fn new(body: Body, kept: T) -> Self {
        Keeping { body, _kept: kept }
    }
}

impl<T: Unpin> HttpBody for Keeping<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(180),
        stall: Duration::from_secs(60),
    };

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn headers_come_soon_after_their_first_byte_and_silence_may_last() {
        let start = Instant::now();
        let mut state = State::new(LIMITS, start);
        assert_eq!(state.late(after(start, 179)), None);
        assert_eq!(state.late(after(start, 180)), Some(Late::Idle));
        state.read(b"GE", after(start, 20));
        state.read(b"T", after(start, 29));
        assert_eq!(state.late(after(start, 29)), None);
        assert_eq!(state.late(after(start, 30)), Some(Late::Head));
        state.begin(false);
        state.read(b"a body", after(start, 40));
        assert_eq!(state.late(after(start, 1000)), None);
        state.end(after(start, 1000));
        assert_eq!(state.late(after(start, 1179)), None);
        assert_eq!(state.late(after(start, 1180)), Some(Late::Idle));
    }

    #[test]
    fn frames_of_http2_are_no_headers() {
        let start = Instant::now();
        let mut state = State::new(LIMITS, start);
        state.read(b"PRI * HTTP/2.0", start);
        assert_eq!(state.late(after(start, 179)), None);
        assert_eq!(state.late(after(start, 180)), Some(Late::Idle));
    }

    #[test]
    fn a_client_that_takes_too_little_is_late() {
        let start = Instant::now();
        let mut state = State::new(LIMITS, start);
        state.begin(false);
        state.wrote(1 << 20);
        state.cannot_write(after(start, 1));
        state.wrote(1000);
        state.cannot_write(after(start, 50));
        assert_eq!(state.late(after(start, 60)), None);
        assert_eq!(state.late(after(start, 61)), Some(Late::Stall));
        state.wrote(STALL_BYTES);
        state.cannot_write(after(start, 62));
        assert_eq!(state.late(after(start, 121)), None);
        assert_eq!(state.late(after(start, 122)), Some(Late::Stall));
        // One that took all there was may be slow again later.
        state.wrote(1000);
        assert_eq!(state.late(after(start, 200)), None);
        state.cannot_write(after(start, 200));
        assert_eq!(state.late(after(start, 259)), None);
        assert_eq!(state.late(after(start, 260)), Some(Late::Stall));
    }

    #[test]
    fn what_begins_a_request_is_part_of_a_crowd_unless_its_client_follows() {
        let start = Instant::now();
        let mut state = State::new(LIMITS, start);
        assert!(state.comes());
        state.read(b"G", start);
        assert!(!state.comes());
        for live in [false, true] {
            state.begin(live);
            assert!(!state.comes());
            state.end(start);
            assert_eq!(state.comes(), !live);
        }
    }

    #[tokio::test]
    async fn the_watch_follows_what_happens() {
        let idle = Duration::from_millis(60);
        let pace = Pace::new(Limits { idle, ..LIMITS });
        let start = Instant::now();
        let running = pace.request(false);
        tokio::spawn(async move {
            tokio::time::sleep(3 * idle).await;
            drop(running);
        });
        assert_eq!(pace.late().await, Late::Idle);
        assert!(start.elapsed() >= 4 * idle);
    }
}
