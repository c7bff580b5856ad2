//! Answers to requests for shapes: headers by docs/protocol.md ("Response headers").

use std::fmt::{Display, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};

use crate::caching::{self, Class};
use crate::compression::{Coding, Compression, VARY};
use crate::config::Config;
use crate::content::Content;
use crate::definition::Definition;
use crate::handle::Handle;
use crate::offset::Offset;
use crate::params::{Log, ShapeRequest};
use crate::protocol::{self, SEPARATOR, header as names};

/// Content type of every body but plain texts.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// Room for the headers of an answer, those that the router adds included.
const HEADERS: usize = 22;

/// Longer than most handles, offsets and etags.
const LONG: usize = 128;

/// A header value of something that is printed in ASCII.
pub fn value(printed: impl Display) -> HeaderValue {
    let mut text = String::with_capacity(LONG);
    write!(text, "{printed}").expect("a string takes any text");
    HeaderValue::try_from(text).expect("handles and offsets are ASCII")
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
    pub body: Content,
}

/// A JSON array of messages that are joined already, and a last one.
pub fn array(messages: Bytes, last: Option<String>) -> Content {
    let (before, after) = brackets(messages.is_empty(), last);
    Content::log(before, messages, after)
}

/// What stands before and after the joined messages of an array.
pub fn brackets(empty: bool, last: Option<String>) -> (Bytes, Bytes) {
    let closing = SEPARATOR.len() + 1;
    let mut after = BytesMut::with_capacity(last.as_ref().map_or(0, String::len) + closing);
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

/// How a body may be sent.
#[derive(Clone, Copy)]
pub struct Packing<'a> {
    /// Who compresses.
    pub compression: &'a Compression,
    /// What the client accepts.
    pub accepted: Option<Coding>,
}

impl Packing<'_> {
    /// A response of a body, compressed if that is worth it, and what its etag begins with.
    pub fn pack(self, content: Content) -> (Response, &'static str) {
        let Some(coding) = self.compression.coding(&content, self.accepted) else {
            let length = content.len();
            let mut response = content.into_body().into_response();
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            return (response, "");
        };
        let (body, length) = self.compression.body(content, coding);
        let mut response = body.into_response();
        let headers = response.headers_mut();
        let name = HeaderValue::from_static(coding.name());
        headers.insert(header::CONTENT_ENCODING, name);
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        (response, "W/")
    }
}

/// The response, or "not modified".
pub fn respond(
    request: &ShapeRequest,
    definition: &Definition,
    answer: Answer,
    given: Option<&str>,
    packing: Packing<'_>,
    config: &Config,
) -> Response {
    let etag = caching::etag(answer.handle, &request.offset, &answer.offset);
    let not_modified = given.is_some_and(|given| caching::none_match(given, &etag));
    let etag = match answer.has_data || not_modified {
        true => etag,
        false => caching::unique_etag(answer.handle, &request.offset, &answer.offset),
    };
    let (mut response, weak) = if not_modified {
        (StatusCode::NOT_MODIFIED.into_response(), "")
    } else {
        packing.pack(answer.body)
    };
    // Of different bytes that mean the same, the etags are weak.
    let etag = match weak {
        "" => etag,
        weak => format!("{weak}{etag}"),
    };
    let headers = response.headers_mut();
    // Grown once, not again and again.
    headers.reserve(HEADERS);
    headers.insert(header::VARY, VARY);
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(
        header::CACHE_CONTROL,
        class(request).cache_control(config.ages()),
    );
    let etag = HeaderValue::try_from(etag).expect("etags are ASCII");
    headers.insert(header::ETAG, etag);
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
        let body = array(Bytes::new(), Some(protocol::up_to_date(9, &[])));
        Answer {
            handle: HANDLE,
            offset,
            up_to_date: true,
            has_data,
            body,
        }
    }

    fn headers(text: &str, has_data: bool, given: Option<&str>) -> (StatusCode, HeaderMap) {
        let request = request(text);
        let answer = answer(request.offset.clone(), has_data);
        let compression = Compression::new(true, 0);
        let packing = Packing {
            compression: &compression,
            accepted: None,
        };
        let definition = definition(1);
        let response = respond(&request, &definition, answer, given, packing, &config());
        (response.status(), response.headers().clone())
    }

    #[tokio::test]
    async fn arrays() {
        let text = |messages: &'static [u8], last: Option<&str>| {
            let content = array(Bytes::from_static(messages), last.map(Into::into));
            let length = content.len();
            async move {
                let bytes = axum::body::to_bytes(content.into_body(), usize::MAX).await;
                let bytes = bytes.unwrap();
                assert_eq!(bytes.len() as u64, length);
                String::from_utf8(bytes.to_vec()).unwrap()
            }
        };
        assert_eq!(text(b"", None).await, "[]");
        assert_eq!(text(b"", Some("z")).await, "[z]");
        assert_eq!(text(b"a", Some("z")).await, "[a,\nz]");
    }

    #[test]
    fn compressed_answers_have_weak_etags() {
        let request = request("offset=0_0");
        let messages: &'static [u8] = vec![b'x'; 2000].leak();
        let body = array(Bytes::from_static(messages), None);
        let offset = request.offset.clone();
        let answer = Answer {
            body,
            ..answer(offset, true)
        };
        let compression = Compression::new(true, 0);
        let packing = Packing {
            compression: &compression,
            accepted: Some(Coding::Gzip),
        };
        let response = respond(&request, &definition(1), answer, None, packing, &config());
        let headers = response.headers();
        assert_eq!(headers["content-encoding"], "gzip");
        assert_eq!(headers["vary"], "accept-encoding");
        assert_eq!(headers["etag"], "W/\"1-2-0:0_0:0_0\"");
        let length: usize = headers["content-length"].to_str().unwrap().parse().unwrap();
        assert!(length < 100);
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
