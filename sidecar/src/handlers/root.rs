//! `/`: who this is.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use crate::response::JSON;

/// Name and version.
pub async fn get() -> impl IntoResponse {
    let body = concat!(
        r#"{"name":"shapefeed-sidecar","version":""#,
        env!("CARGO_PKG_VERSION"),
        r#""}"#
    );
    ([(CONTENT_TYPE, JSON)], body)
}
