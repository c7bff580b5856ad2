//! Names and texts that the wire format fixes: headers, control messages, the cursor.

use serde_json::json;

/// Response headers.
pub mod header {
    use axum::http::HeaderName;

    /// Name of the shape's incarnation.
    pub const HANDLE: HeaderName = HeaderName::from_static("electric-handle");
    /// What the client has after this response.
    pub const OFFSET: HeaderName = HeaderName::from_static("electric-offset");
    /// Columns and their types.
    pub const SCHEMA: HeaderName = HeaderName::from_static("electric-schema");
    /// Keeps caches from replaying a live response.
    pub const CURSOR: HeaderName = HeaderName::from_static("electric-cursor");
    /// The response ends with an up-to-date message.
    pub const UP_TO_DATE: HeaderName = HeaderName::from_static("electric-up-to-date");
    /// Whether the response can hold rows or operations.
    pub const HAS_DATA: HeaderName = HeaderName::from_static("electric-has-data");
    /// Proxies pass on each event when it comes.
    pub const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
    /// The response is a subset.
    pub const SNAPSHOT: HeaderName = HeaderName::from_static("electric-snapshot");
    /// The service knows why, and that it passes.
    pub const KNOWN_ERROR: HeaderName = HeaderName::from_static("electric-internal-known-error");
    /// For caches that know it.
    pub const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");
}

/// Headers that a browser may read.
pub const EXPOSED_HEADERS: &str = "electric-cursor,electric-handle,electric-has-data,electric-offset,electric-schema,\
    electric-up-to-date,electric-internal-known-error,retry-after";

/// Body of every 409.
pub const MUST_REFETCH: &str = r#"[{"headers":{"control":"must-refetch"}}]"#;

/// Separates the messages of a body.
pub const SEPARATOR: &[u8] = b",\n";

/// The message that closes an answer which reaches the end of the log. `silent`: transactions up to there that touched the
/// table and are no operation of the shape.
pub fn up_to_date(last_seen: i64, silent: &[u32]) -> String {
    let mut text = String::with_capacity(96 + 11 * silent.len());
    text.push_str(r#"{"headers":{"control":"up-to-date","global_last_seen_lsn":""#);
    let mut digits = itoa::Buffer::new();
    text.push_str(digits.format(last_seen));
    let mut separator = r#"","txids":["#;
    for xid in silent {
        text.push_str(separator);
        text.push_str(digits.format(*xid));
        separator = ",";
    }
    text.push_str(if silent.is_empty() { r#""}}"# } else { "]}}" });
    text
}

/// The message that closes a snapshot: which transactions it holds.
pub fn snapshot_end(xmin: i64, xmax: i64, xip: &[i64]) -> String {
    let text = |xid: &i64| xid.to_string();
    json!({"headers": {
        "control": "snapshot-end",
        "xmin": text(&xmin), "xmax": text(&xmax), "xip_list": xip.iter().map(text).collect::<Vec<_>>(),
    }})
    .to_string()
}

/// Seconds from 1970 to 2024-10-09T00:00:00Z, where cursors start.
const CURSOR_EPOCH_S: u64 = 1_728_432_000;

/// The `electric-cursor` of a live answer: the end of the running interval of `hold_s` seconds, the same for all
/// clients, so that a cache can collapse them. A client that already has it gets a later one at random.
pub fn next_cursor(given: Option<&str>, unix_s: u64, hold_s: u64) -> u64 {
    if hold_s == 0 {
        return 0;
    }
    let given = given.and_then(|text| text.parse().ok()).unwrap_or(0);
    let next = unix_s.saturating_sub(CURSOR_EPOCH_S).div_ceil(hold_s) * hold_s;
    if next > given {
        next
    } else {
        given.saturating_add(fastrand::u64(1..=3600))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages() {
        assert_eq!(
            up_to_date(5, &[]),
            r#"{"headers":{"control":"up-to-date","global_last_seen_lsn":"5"}}"#
        );
        assert_eq!(
            up_to_date(5, &[7, 8]),
            r#"{"headers":{"control":"up-to-date","global_last_seen_lsn":"5","txids":[7,8]}}"#
        );
        let end: serde_json::Value = serde_json::from_str(&snapshot_end(7, 9, &[7])).unwrap();
        assert_eq!(end["headers"]["xmin"], "7");
        assert_eq!(end["headers"]["xip_list"], json!(["7"]));
    }

    #[test]
    fn one_cursor_per_interval() {
        let at = |s| CURSOR_EPOCH_S + s;
        assert_eq!(next_cursor(None, at(41), 20), 60);
        assert_eq!(next_cursor(Some(""), at(60), 20), 60);
        assert_eq!(next_cursor(Some("40"), at(41), 20), 60);
        assert_eq!(next_cursor(Some("x"), at(41), 20), 60);
        assert_eq!(next_cursor(None, at(41), 0), 0);
    }

    #[test]
    fn a_cursor_never_repeats() {
        let next = next_cursor(Some("60"), CURSOR_EPOCH_S + 41, 20);
        assert!((61..=3660).contains(&next));
        let greatest = u64::MAX.to_string();
        assert_eq!(next_cursor(Some(&greatest), CURSOR_EPOCH_S, 20), u64::MAX);
    }
}
