//! `/v1/health`: whether shapes can be served.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::response::JSON;

/// An answer that takes longer says that the database is not there.
const TIMEOUT: Duration = Duration::from_secs(2);

/// `active` when the database answers and has the extension, else `starting`.
pub async fn get(State(app): State<Arc<App>>) -> Response {
    let head = tokio::time::timeout(TIMEOUT, app.recent_head()).await;
    let (status, body) = match head {
        Ok(Ok(_)) => (StatusCode::OK, r#"{"status":"active"}"#),
        _ => (StatusCode::ACCEPTED, r#"{"status":"starting"}"#),
    };
    let mut response = (status, body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    let cache_control = HeaderValue::from_static("no-cache, no-store, must-revalidate");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, cache_control);
    response
}
