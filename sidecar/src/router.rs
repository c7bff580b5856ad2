//! Routes, and what all responses have.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::header::{self, HeaderMap};
use axum::http::{HeaderValue, Method, Request, StatusCode, Uri, Version, uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{BoxError, Router};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use tower::ServiceExt;
use tower_http::services::ServeDir;

use crate::app::App;
use crate::error::Error;
use crate::handlers;
use crate::protocol::EXPOSED_HEADERS;

const SHAPE: &str = "/v1/shape";
const SHAPE_METHODS: HeaderValue = HeaderValue::from_static("GET, POST, HEAD, DELETE, OPTIONS");
const WRITE: &str = "/v1/write";
const WRITE_METHODS: HeaderValue = HeaderValue::from_static("POST, OPTIONS");
const OTHER_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD");
const DEFAULT_CACHE_CONTROL: HeaderValue =
    HeaderValue::from_static("max-age=0, private, must-revalidate");
/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 64 << 10;

/// Who answers requests.
pub struct Service {
    app: Arc<App>,
    routes: Router,
}

impl Service {
    /// The service of a sidecar.
    pub fn new(app: Arc<App>) -> Self {
        Service {
            routes: routes(app.clone()),
            app,
        }
    }

    /// Answers a request. Preflights, the length of URLs, and the headers of every response are the same for all routes.
    pub async fn answer<B>(&self, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let request = normalize(request);
        let envelope = Envelope::of(&request);
        let too_long = |it: &uri::PathAndQuery| it.as_str().len() > MAX_URL_BYTES;
        let response = if envelope.is_preflight {
            preflight(request.headers())
        } else if request.uri().path_and_query().is_some_and(too_long) {
            Error::UrlTooLong.into_response()
        } else if *request.method() == Method::GET && request.uri().path() == SHAPE {
            // What nearly all requests are: without the boxes and copies of a way through the routes.
            let (head, _) = request.into_parts();
            handlers::shape::get(State(self.app.clone()), head).await
        } else {
            let answer = self.routes.clone().oneshot(request.map(Body::new));
            Box::pin(answer)
                .await
                .unwrap_or_else(|never: Infallible| match never {})
        };
        envelope.around(response, &self.app)
    }
}

/// The routes. Their paths must be normal (see [`normalize`]).
fn routes(app: Arc<App>) -> Router {
    let shape = get(handlers::shape::get)
        .delete(handlers::delete::delete)
        .post(handlers::shape::post)
        .fallback(not_found);
    let routes = Router::new()
        .route(SHAPE, shape)
        .route(
            WRITE,
            post(handlers::write::post).fallback(handlers::write::refused),
        )
        .route("/v1/health", get(handlers::health::get).fallback(not_found))
        .route("/metrics", get(handlers::metrics::get).fallback(not_found))
        .route(
            "/openapi.json",
            get(handlers::openapi::get).fallback(not_found),
        );
    let site = app.config.static_dir.as_ref().map(|folder| {
        ServeDir::new(folder)
            .precompressed_br()
            .precompressed_gzip()
    });
    let routes = match site {
        Some(site) => routes.fallback_service(site),
        None => routes
            .route("/", get(handlers::root::get).fallback(not_found))
            .fallback(not_found),
    };
    routes.with_state(app)
}

/// Makes `/v1//shape/` and `/v1/%73hape` what they mean, before they are routed.
fn normalize<B>(mut request: Request<B>) -> Request<B> {
    let path = request.uri().path();
    if path == SHAPE {
        return request;
    }
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

/// What the headers of every response depend on.
struct Envelope {
    version: Version,
    methods: HeaderValue,
    is_preflight: bool,
}

impl Envelope {
    fn of<B>(request: &Request<B>) -> Self {
        Envelope {
            version: request.version(),
            methods: match request.uri().path() {
                SHAPE => SHAPE_METHODS,
                WRITE => WRITE_METHODS,
                _ => OTHER_METHODS,
            },
            is_preflight: *request.method() == Method::OPTIONS,
        }
    }

    fn around(self, mut response: Response, app: &App) -> Response {
        let refused = response.status() == StatusCode::METHOD_NOT_ALLOWED;
        let headers = response.headers_mut();
        if refused {
            headers.insert(header::ALLOW, self.methods.clone());
        }
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            HeaderValue::from_static("*"),
        );
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSED_HEADERS),
        );
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods);
        headers.insert(
            header::SERVER,
            HeaderValue::from_static(concat!("shapefeed/", env!("CARGO_PKG_VERSION"))),
        );
        // Over HTTP/2 the connection says it itself.
        if app.shutdown.is_cancelled() && self.version < Version::HTTP_2 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if !self.is_preflight {
            headers
                .entry(header::CACHE_CONTROL)
                .or_insert(DEFAULT_CACHE_CONTROL);
        }
        response
    }
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
