//! Routes, and what all responses have.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap};
use axum::http::{HeaderValue, Method, StatusCode, Uri, Version, uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use percent_encoding::percent_decode_str;

use crate::admission::admit;
use crate::app::App;
use crate::error::Error;
use crate::handlers;
use crate::protocol::EXPOSED_HEADERS;

const SHAPE: &str = "/v1/shape";
const SHAPE_METHODS: HeaderValue = HeaderValue::from_static("GET, POST, HEAD, DELETE, OPTIONS");
const OTHER_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD");
const DEFAULT_CACHE_CONTROL: HeaderValue =
    HeaderValue::from_static("max-age=0, private, must-revalidate");
/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 64 << 10;

/// The service. Its paths must be normal (see [`normalize`]).
pub fn router(app: Arc<App>) -> Router {
    let shape = get(handlers::shape::get)
        .delete(handlers::delete::delete)
        .post(handlers::shape::post)
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(app.clone(), admit));
    let routes = Router::new()
        .route("/", get(handlers::root::get).fallback(not_found))
        .route(SHAPE, shape)
        .route("/v1/health", get(handlers::health::get).fallback(not_found))
        .route("/metrics", get(handlers::metrics::get).fallback(not_found))
        .route(
            "/openapi.json",
            get(handlers::openapi::get).fallback(not_found),
        )
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(app.clone(), envelope));
    routes.with_state(app)
}

/// Makes `/v1//shape/` and `/v1/%73hape` what they mean, before they are routed.
pub fn normalize<B>(mut request: axum::http::Request<B>) -> axum::http::Request<B> {
    let path = request.uri().path();
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let segments: Vec<&str> = decoded
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let normal = format!("/{}", segments.join("/"));
    if normal != path {
        let query = request
            .uri()
            .query()
            .map_or(String::new(), |query| format!("?{query}"));
        // What is no path even then is no route either.
        let path_and_query = format!("{normal}{query}")
            .parse()
            .unwrap_or(uri::PathAndQuery::from_static("/-"));
        *request.uri_mut() = Uri::from(path_and_query);
    }
    request
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "Not found").into_response()
}

/// Preflights, the length of URLs, and the headers of every response.
async fn envelope(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let version = request.version();
    let methods = if request.uri().path() == SHAPE {
        SHAPE_METHODS
    } else {
        OTHER_METHODS
    };
    let is_preflight = *request.method() == Method::OPTIONS;
    let mut response = if is_preflight {
        preflight(request.headers())
    } else if request
        .uri()
        .path_and_query()
        .is_some_and(|it| it.as_str().len() > MAX_URL_BYTES)
    {
        Error::UrlTooLong.into_response()
    } else {
        next.run(request).await
    };
    let refused = response.status() == StatusCode::METHOD_NOT_ALLOWED;
    let headers = response.headers_mut();
    if refused {
        headers.insert(header::ALLOW, methods.clone());
    }
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(EXPOSED_HEADERS),
    );
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(
        header::SERVER,
        HeaderValue::from_static(concat!("shapefeed/", env!("CARGO_PKG_VERSION"))),
    );
    // Over HTTP/2 the connection says it itself.
    if app.shutdown.is_cancelled() && version < Version::HTTP_2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if !is_preflight {
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(DEFAULT_CACHE_CONTROL);
    }
    response
}

/// Any page may send any header; browsers may remember that for a day.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("86400"),
    );
    let allowed = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        allowed.unwrap_or(HeaderValue::from_static("*")),
    );
    response
}
