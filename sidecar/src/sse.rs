//! Server-sent events: a live request that goes on. Each message is one event, as it happens; what all clients of a
//! shape are sent is encoded once (docs/protocol.md, "Events").
//!
//! A stream is read at its client's speed: nothing is kept for it but its place in the log. A client that is slow reads
//! on from there, from the tail or, if that has moved on, from the database.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use tokio::time::{Instant, sleep_until};

use crate::answer::Asked;
use crate::app::{App, patiently};
use crate::caching::{self, Class};
use crate::definition::Definition;
use crate::error::Error;
use crate::hold::{Hold, Outcome};
use crate::metrics::Held;
use crate::offset::Place;
use crate::params::Caller;
use crate::protocol::{self, SEPARATOR, header as names};
use crate::response;
use crate::tail::Operations;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/event-stream");
/// Says no more than that the connection is alive; sent when it is not known whether the client is up to date.
const COMMENT: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// A stream that was written to rests so long for each stream that there is, since each write has its price: the more
/// there are, the more operations share one.
const REST_PER_STREAM: Duration = Duration::from_micros(40);
/// But no longer than this.
const LONGEST_REST: Duration = Duration::from_millis(250);
/// An idle stream tells how far it is no more often than this.
const LEAST_IDLE: Duration = Duration::from_secs(1);

/// Messages as events, closed by up-to-date if `last_seen` says how far.
pub fn events(messages: &[u8], last_seen: Option<i64>, silent: &[u32]) -> Bytes {
    let mut events = BytesMut::with_capacity(messages.len() + 128);
    // No message has a line break in it, so that the separator's is never part of one.
    let lines = messages.split_inclusive(|byte| *byte == b'\n');
    lines.for_each(|line| put(line.strip_suffix(SEPARATOR).unwrap_or(line), &mut events));
    if let Some(seen) = last_seen {
        put(protocol::up_to_date(seen, silent).as_bytes(), &mut events);
    }
    events.freeze()
}

fn put(message: &[u8], events: &mut BytesMut) {
    if !message.is_empty() {
        events.put_slice(b"data: ");
        events.put_slice(message);
        events.put_slice(b"\n\n");
    }
}

impl Asked<'_> {
    /// The stream, once it is known that there can be one: errors come before it.
    pub async fn stream(&self, definition: &Arc<Definition>) -> Result<Response, Error> {
        let handle = self.handle(definition)?;
        let from = self.request.offset.place(handle.pin);
        let mut from = from.expect("live requests are in the log");
        let look = || async move {
            let hold = Hold {
                app: self.app,
                definition,
                caller: &self.request.shape.caller,
                pin: handle.pin,
                deadline: self.at,
                arrival_deadline: self.arrival_deadline(),
                wake: None,
            };
            hold.wait(from).await
        };
        let is_away = |error: &Error| matches!(error, Error::Unavailable { .. });
        let mut silent = Vec::new();
        let (first, handle, offset) = match patiently(self.deadline(), is_away, look).await? {
            // What the client has before it has read anything.
            Outcome::News(operations) => (Some(operations), handle, self.request.offset.clone()),
            Outcome::Idle(evaluated, touched) => {
                let evaluated_with = (evaluated, touched.as_slice());
                let resting = self.resting().await;
                let idle = self.idle(definition, handle, from, evaluated_with, resting);
                silent = touched;
                from = from.max(Place::after(evaluated));
                (None, idle.handle, idle.offset)
            }
        };
        let mut stream = Stream::new(self.app, definition, handle.pin, from, self.at);
        stream.ends = self
            .expires
            .map_or(stream.ends, |expires| stream.ends.min(expires));
        stream.expires = self.expires;
        stream.silent = silent;
        stream.caller = self.request.shape.caller.clone();
        let wakeful = |others| (self.app.metrics.wakeful(), others);
        stream.wakeful = self.others().await?.map(wakeful);
        let first = first.map(|operations| stream.news(&operations));
        let mut response = Body::from_stream(stream.bytes(first)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
        let class = Class::Events(self.app.config.sse_timeout());
        headers.insert(
            header::CACHE_CONTROL,
            class.cache_control(self.app.config.ages()),
        );
        headers.insert(
            header::ETAG,
            response::value(caching::unique_etag(handle, &self.request.offset, &offset)),
        );
        headers.insert(names::BUFFERING, HeaderValue::from_static("no"));
        headers.insert(names::HANDLE, response::value(handle));
        headers.insert(names::OFFSET, response::value(&offset));
        headers.insert(names::HAS_DATA, HeaderValue::from_static("true"));
        headers.insert(
            names::CURSOR,
            HeaderValue::from(response::cursor(self.request, &self.app.config)),
        );
        Ok(response)
    }
}

/// One client's stream.
struct Stream {
    app: Arc<App>,
    definition: Arc<Definition>,
    caller: Caller,
    pin: i64,
    /// All up to here was sent.
    from: Place,
    /// When the client is made to come again.
    ends: Instant,
    /// When nothing more may be sent, whatever is owed.
    expires: Option<Instant>,
    /// No further write before this.
    rests_until: Instant,
    /// Operations were sent that the client does not show before it is told that it is up to date.
    owes: bool,
    /// Transactions that touched the table before the stream began, which the next up-to-date tells of.
    silent: Vec<u32>,
    /// Tables besides the shape's own that wake it.
    wakeful: Option<(Held, Box<[Arc<Definition>]>)>,
    _held: Held,
}

impl Stream {
    fn new(
        app: &Arc<App>,
        definition: &Arc<Definition>,
        pin: i64,
        from: Place,
        at: Instant,
    ) -> Self {
        Stream {
            app: app.clone(),
            definition: definition.clone(),
            pin,
            from,
            ends: at + app.config.sse_timeout(),
            expires: None,
            rests_until: at,
            owes: false,
            silent: Vec::new(),
            caller: Caller::default(),
            wakeful: None,
            _held: app.metrics.streaming(),
        }
    }

    fn bytes(
        self,
        first: Option<Bytes>,
    ) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold((self, first), |(mut stream, first)| async move {
            let bytes = match first {
                Some(first) => first,
                None => stream.next().await?,
            };
            Some((Ok(bytes), (stream, None)))
        })
    }

    /// What is sent next; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        self.rest().await;
        let now = Instant::now();
        // A client drops what is not closed by up-to-date: it would never get through a long log.
        let is_expired = self.expires.is_some_and(|expires| now >= expires);
        if is_expired || (now >= self.ends && !self.owes) || self.app.shutdown.is_cancelled() {
            return None;
        }
        let idle = self.app.config.hold().max(LEAST_IDLE);
        let deadline = if self.owes {
            now
        } else {
            self.ends.min(now + idle)
        };
        let hold = Hold {
            app: &self.app,
            definition: &self.definition,
            caller: &self.caller,
            pin: self.pin,
            deadline,
            arrival_deadline: deadline,
            wake: self.wakeful.as_ref().map(|(_, others)| &**others),
        };
        match hold.wait(self.from).await {
            Ok(Outcome::News(operations)) => Some(self.news(&operations)),
            Ok(Outcome::Idle(evaluated, silent)) => self.idle(evaluated, silent),
            Err(error) if error.is_passing() => {
                self.rests_until = now + LEAST_IDLE;
                Some(COMMENT)
            }
            // The next request is told why.
            Err(_) => None,
        }
    }

    fn news(&mut self, operations: &Operations) -> Bytes {
        self.from = operations.end;
        self.owes = operations.closed;
        self.rests_until = self.rested();
        operations.events()
    }

    fn idle(&mut self, evaluated: i64, mut silent: Vec<u32>) -> Option<Bytes> {
        silent.splice(..0, std::mem::take(&mut self.silent));
        self.from = self.from.max(Place::after(evaluated));
        let is_over = Instant::now() >= self.ends || self.app.shutdown.is_cancelled();
        if is_over && !self.owes {
            return None;
        }
        self.owes = false;
        Some(events(&[], Some(evaluated), &silent))
    }

    /// The end of the running interval: the same for all streams, so that they go on from the same place.
    fn rested(&self) -> Instant {
        let streams = self.app.metrics.streams.get().max(0) as u32;
        let rest = REST_PER_STREAM.saturating_mul(streams).min(LONGEST_REST);
        let rest = (rest.as_micros() as u64).max(1);
        let running = self.app.began.elapsed().as_micros() as u64 / rest;
        self.app.began + Duration::from_micros(rest * (running + 1))
    }

    async fn rest(&self) {
        if self.owes || self.rests_until <= Instant::now() {
            return;
        }
        tokio::select! {
            () = sleep_until(self.rests_until) => {}
            () = self.app.shutdown.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_an_event() {
        let text = |messages: &str, seen| {
            String::from_utf8(events(messages.as_bytes(), seen, &[]).to_vec()).unwrap()
        };
        assert_eq!(text("", None), "");
        assert_eq!(
            text("{\"a\":\",\"},\n{\"b\":[]}", None),
            "data: {\"a\":\",\"}\n\ndata: {\"b\":[]}\n\n"
        );
        assert_eq!(
            text("{}", Some(7)),
            "data: {}\n\ndata: {\"headers\":{\"control\":\"up-to-date\",\"global_last_seen_lsn\":\"7\"}}\n\n"
        );
    }
}
