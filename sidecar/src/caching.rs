//! What caches are told (docs/protocol.md, "Caching").

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};

use crate::handle::Handle;
use crate::offset::Offset;

/// Seconds that open-ended answers are fresh and, after that, may still be shown.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// `max-age`.
    pub max_age_s: u64,
    /// `stale-while-revalidate`.
    pub stale_age_s: u64,
}

/// Classes of answers by how long they may be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// First chunk of a snapshot: the same for as long as its handle lives.
    Snapshot,
    /// Everything else that does not wait.
    CatchUp,
    /// A client asks again whether it is up to date: a cached answer would hide what happened since.
    Refresh,
    /// A held request.
    Live,
    /// A stream of events, which lasts so long.
    Events(Duration),
}

impl Class {
    /// The value of `cache-control`.
    pub fn cache_control(self, ages: Ages) -> HeaderValue {
        match self {
            Class::Snapshot => HeaderValue::from_static(
                "public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746",
            ),
            Class::Live => HeaderValue::from_static("public, max-age=5, stale-while-revalidate=5"),
            Class::Events(lasts) => {
                let seconds = lasts.as_secs().saturating_sub(1).max(1);
                printed(format!("public, max-age={seconds}"))
            }
            Class::Refresh => HeaderValue::from_static("no-store"),
            Class::CatchUp => {
                let Ages {
                    max_age_s,
                    stale_age_s,
                } = ages;
                printed(format!(
                    "public, max-age={max_age_s}, stale-while-revalidate={stale_age_s}"
                ))
            }
        }
    }
}

fn printed(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("words and numbers")
}

/// `cache-control` of a 409, with a replacement to name and without.
pub fn refetch_cache_control(named: bool) -> &'static str {
    if named {
        "public, max-age=60, must-revalidate"
    } else {
        "public, max-age=1, must-revalidate"
    }
}

/// Makes a response one for its caller alone. `s-maxage`, like `public`, lets a shared cache keep what was asked for with
/// an authorization (RFC 9111, 3.5).
pub fn make_private(headers: &mut HeaderMap) {
    let Some(given) = headers
        .get(header::CACHE_CONTROL)
        .and_then(|it| it.to_str().ok())
    else {
        return;
    };
    let parts = given
        .split(", ")
        .filter(|part| !part.starts_with("s-maxage"));
    let parts: Vec<_> = parts
        .map(|part| if part == "public" { "private" } else { part })
        .collect();
    let value = printed(parts.join(", "));
    headers.insert(header::CACHE_CONTROL, value);
}

/// The etag of an answer to `requested` that ends at `answered`.
pub fn etag(handle: Handle, requested: &Offset, answered: &Offset) -> String {
    format!("\"{handle}:{requested}:{answered}\"")
}

/// The etag of an answer that only says "nothing happened": like no other, so that it is never revalidated.
pub fn unique_etag(handle: Handle, requested: &Offset, answered: &Offset) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!(
        "\"{handle}:{requested}:{answered}:{:x}{count:x}\"",
        fastrand::u32(..)
    )
}

/// Whether an `if-none-match` header names `etag`. Compared weakly: proxies that compress weaken etags.
pub fn none_match(header: &str, etag: &str) -> bool {
    header.split(',').map(str::trim).any(|given| {
        let given = given.strip_prefix("W/").unwrap_or(given);
        given.trim_matches('"') == etag.trim_matches('"')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offset::Place;

    const HANDLE: Handle = Handle {
        hash: 1,
        pin: 2,
        n: 0,
    };

    #[test]
    fn classes() {
        let ages = Ages {
            max_age_s: 1,
            stale_age_s: 3,
        };
        assert_eq!(
            Class::CatchUp.cache_control(ages),
            "public, max-age=1, stale-while-revalidate=3"
        );
        assert_eq!(Class::Refresh.cache_control(ages), "no-store");
        assert!(
            Class::Snapshot
                .cache_control(ages)
                .to_str()
                .unwrap()
                .contains("s-maxage=3600")
        );
        assert_eq!(
            Class::Live.cache_control(ages),
            "public, max-age=5, stale-while-revalidate=5"
        );
        let events = |seconds| Class::Events(Duration::from_secs(seconds)).cache_control(ages);
        assert_eq!(events(60), "public, max-age=59");
        assert_eq!(events(0), "public, max-age=1");
    }

    #[test]
    fn what_is_for_one_caller_is_private() {
        let ages = Ages {
            max_age_s: 1,
            stale_age_s: 3,
        };
        for class in [Class::Snapshot, Class::CatchUp, Class::Live, Class::Refresh] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, class.cache_control(ages));
            make_private(&mut headers);
            let text = headers["cache-control"].to_str().unwrap();
            assert!(
                text.starts_with("private, max-age=") || text == "no-store",
                "{text}"
            );
            assert!(
                !text.contains("public") && !text.contains("s-maxage"),
                "{text}"
            );
        }
    }

    #[test]
    fn etags_compare_weakly_and_in_lists() {
        let tag = etag(HANDLE, &Offset::Start, &Offset::SnapshotEnd);
        assert_eq!(tag, "\"1-2-0:-1:0_0\"");
        assert!(none_match(&tag, &tag));
        assert!(none_match(&format!("W/{tag}"), &tag));
        assert!(none_match(&format!("\"x\" , {tag}"), &tag));
        assert!(none_match("1-2-0:-1:0_0", &tag));
        assert!(!none_match("*", &tag));
        assert!(!none_match("", &tag));
    }

    #[test]
    fn answers_without_news_are_like_no_other() {
        let offset = Offset::Log(Place::after(5));
        assert_ne!(
            unique_etag(HANDLE, &offset, &offset),
            unique_etag(HANDLE, &offset, &offset)
        );
    }
}
