//! Answers to requests for shapes: headers by docs/protocol.md ("Response headers").

use std::fmt::Display;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;

use crate::caching::{self, Class};
use crate::config::Config;
use crate::definition::Definition;
use crate::handle::Handle;
use crate::offset::Offset;
use crate::params::{Log, ShapeRequest};
use crate::protocol::{self, SEPARATOR, header as names};

/// Content type of every body but plain texts.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// Bodies above this are sent as the parts they are made from, not copied.
const COPIED_BYTES: usize = 32 << 10;

/// Room for the headers of an answer, those that the router adds included.
const HEADERS: usize = 20;

/// A header value of something that is printed in ASCII.
pub fn value(printed: impl Display) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(printed.to_string()))
        .expect("handles and offsets are ASCII")
}

/// What a request is answered with.
pub struct Answer {
    /// Handle for the next request.
    pub handle: Handle,
    /// Offset for the next request.
    pub offset: Offset,
    /// Whether the body ends with an up-to-date message.
    pub up_to_date: bool,
    /// Whether the answer says more than that nothing happened.
    pub has_data: bool,
    /// The JSON array.
    pub body: Body,
    /// Bytes of it.
    pub length: u64,
}

/// A JSON array of messages that are joined already, and a last one.
pub fn array(messages: Bytes, last: Option<String>) -> (Body, u64) {
    let (before, after) = brackets(messages.is_empty(), last);
    let length = before.len() + messages.len() + after.len();
    let body = if length <= COPIED_BYTES {
        let mut copy = BytesMut::with_capacity(length);
        [before, messages, after]
            .iter()
            .for_each(|part| copy.extend_from_slice(part));
        Body::from(copy.freeze())
    } else {
        Body::from_stream(stream::iter(
            [before, messages, after].map(Ok::<_, std::convert::Infallible>),
        ))
    };
    (body, length as u64)
}

/// What stands before and after the joined messages of an array.
pub fn brackets(empty: bool, last: Option<String>) -> (Bytes, Bytes) {
    let mut after = BytesMut::new();
    if let Some(last) = last {
        if !empty {
            after.extend_from_slice(SEPARATOR);
        }
        after.extend_from_slice(last.as_bytes());
    }
    after.extend_from_slice(b"]");
    (Bytes::from_static(b"["), after.freeze())
}

/// How long an answer to this request may be cached.
pub fn class(request: &ShapeRequest) -> Class {
    match request.offset {
        _ if request.live => Class::Live,
        Offset::Start if request.shape.log == Log::Full => Class::Snapshot,
        Offset::Start => Class::CatchUp,
        _ if request.cursor.is_some() => Class::Refresh,
        _ => Class::CatchUp,
    }
}

/// The `if-none-match` header, if it can be read.
pub fn if_none_match(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::IF_NONE_MATCH)?.to_str().ok()
}

/// The response, or "not modified".
pub fn respond(
    request: &ShapeRequest,
    definition: &Definition,
    answer: Answer,
    given: Option<&str>,
    config: &Config,
) -> Response {
    let etag = caching::etag(answer.handle, &request.offset, &answer.offset);
    let not_modified = given.is_some_and(|given| caching::none_match(given, &etag));
    let etag = match answer.has_data || not_modified {
        true => etag,
        false => caching::unique_etag(answer.handle, &request.offset, &answer.offset),
    };
    let mut response = if not_modified {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut response = answer.body.into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(answer.length));
        response
    };
    let headers = response.headers_mut();
    // Grown once, not again and again.
    headers.reserve(HEADERS);
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(
        header::CACHE_CONTROL,
        value(class(request).cache_control(config.ages())),
    );
    headers.insert(header::ETAG, value(etag));
    headers.insert(names::HANDLE, value(answer.handle));
    headers.insert(names::OFFSET, value(&answer.offset));
    headers.insert(
        names::HAS_DATA,
        HeaderValue::from_static(if answer.has_data { "true" } else { "false" }),
    );
    if answer.up_to_date {
        headers.insert(names::UP_TO_DATE, HeaderValue::from_static(""));
    }
    if request.live {
        headers.insert(names::CURSOR, HeaderValue::from(cursor(request, config)));
    } else if !not_modified {
        headers.insert(names::SCHEMA, definition.schema.clone());
    }
    response
}

/// The `electric-cursor` of an answer to a live request.
pub fn cursor(request: &ShapeRequest, config: &Config) -> u64 {
    let unix_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    protocol::next_cursor(request.cursor.as_deref(), unix_s, config.hold().as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::tests::definition;
    use crate::params::shape_request;
    use crate::query::Query;
    use clap::Parser;

    const HANDLE: Handle = Handle {
        hash: 1,
        pin: 2,
        n: 0,
    };

    fn config() -> Config {
        Config::parse_from(["sidecar", "--insecure"])
    }

    fn request(text: &str) -> ShapeRequest {
        shape_request(&Query::parse(&format!("table=t&handle=1-2-0&{text}"))).unwrap()
    }

    fn answer(offset: Offset, has_data: bool) -> Answer {
        let (body, length) = array(Bytes::new(), Some(protocol::up_to_date(9, &[])));
        Answer {
            handle: HANDLE,
            offset,
            up_to_date: true,
            has_data,
            body,
            length,
        }
    }

    fn headers(text: &str, has_data: bool, given: Option<&str>) -> (StatusCode, HeaderMap) {
        let request = request(text);
        let answer = answer(request.offset.clone(), has_data);
        let response = respond(&request, &definition(1), answer, given, &config());
        (response.status(), response.headers().clone())
    }

    #[tokio::test]
    async fn arrays() {
        let text = |messages: &'static [u8], last: Option<&str>| {
            let (body, length) = array(Bytes::from_static(messages), last.map(Into::into));
            async move {
                let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                assert_eq!(bytes.len() as u64, length);
                String::from_utf8(bytes.to_vec()).unwrap()
            }
        };
        assert_eq!(text(b"", None).await, "[]");
        assert_eq!(text(b"", Some("z")).await, "[z]");
        assert_eq!(text(b"a", Some("z")).await, "[a,\nz]");
        let large: &'static [u8] = vec![b'x'; COPIED_BYTES].leak();
        assert_eq!(text(large, None).await.len(), COPIED_BYTES + 2);
    }

    #[test]
    fn headers_of_a_catch_up() {
        let (status, headers) = headers("offset=0_0", true, None);
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["electric-handle"], "1-2-0");
        assert_eq!(headers["electric-offset"], "0_0");
        assert_eq!(headers["electric-up-to-date"], "");
        assert_eq!(headers["electric-has-data"], "true");
        assert_eq!(headers["etag"], "\"1-2-0:0_0:0_0\"");
        assert_eq!(
            headers["cache-control"],
            "public, max-age=60, stale-while-revalidate=300"
        );
        assert!(
            headers.contains_key("electric-schema") && !headers.contains_key("electric-cursor")
        );
    }

    #[test]
    fn headers_of_a_live_answer() {
        let (_, headers) = headers("offset=5_0&live&cursor=", false, None);
        assert!(
            headers.contains_key("electric-cursor") && !headers.contains_key("electric-schema")
        );
        assert_eq!(headers["electric-has-data"], "false");
        assert!(
            headers["etag"]
                .to_str()
                .unwrap()
                .starts_with("\"1-2-0:5_0:5_0:")
        );
    }

    #[test]
    fn not_modified() {
        let (status, headers) = headers("offset=0_0", true, Some("W/\"1-2-0:0_0:0_0\""));
        assert_eq!(status, StatusCode::NOT_MODIFIED);
        assert!(
            !headers.contains_key("electric-schema") && headers.contains_key("electric-offset")
        );
    }

    #[test]
    fn classes_of_requests() {
        assert_eq!(class(&request("offset=-1")), Class::Snapshot);
        assert_eq!(
            class(&request("offset=-1&log=changes_only")),
            Class::CatchUp
        );
        assert_eq!(class(&request("offset=0_0&cursor=5")), Class::Refresh);
        assert_eq!(class(&request("offset=0_0&cursor=5&live")), Class::Live);
        assert_eq!(class(&request("offset=now")), Class::CatchUp);
    }
}
