//! The one error type: what a caller can do about it decides the variant, `IntoResponse` is the only place that knows
//! statuses. Causes go to the log, never into a body.

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio_postgres::error::SqlState;

use crate::caching;
use crate::handle::Handle;
use crate::params::{FieldErrors, field_error};
use crate::protocol::{self, MUST_REFETCH};

/// What went wrong, shared by all who wait for the same thing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed or asks for what cannot be; asking again is useless.
    #[error("invalid request")]
    Invalid(FieldErrors),
    /// The secret is missing or wrong.
    #[error("invalid secret")]
    Unauthorized,
    /// The token is missing or not good, and nobody is told why.
    #[error("Unauthorized - Invalid token")]
    InvalidToken,
    /// The token is good, and names a role that tokens may not name.
    #[error("Forbidden - The token's role is not allowed")]
    ForbiddenRole,
    /// Nothing of that name.
    #[error("{0}")]
    NotFound(&'static str),
    /// Switched off.
    #[error("{0}")]
    NotAllowed(&'static str),
    /// The URL is longer than any shape needs.
    #[error("request URL too long")]
    UrlTooLong,
    /// The body is longer than any request needs.
    #[error("request body too large")]
    BodyTooLarge,
    /// The body is no JSON object, or did not come.
    #[error("{text}")]
    BadBody {
        /// What is wrong.
        text: &'static str,
        /// Where.
        details: Option<String>,
    },
    /// The handle or offset is void: start over, under the handle named here.
    #[error("must refetch: {reason}")]
    MustRefetch {
        /// Handle to go on with.
        handle: Option<Handle>,
        /// Why, for the log and the metrics.
        reason: String,
    },
    /// The position has not arrived here yet.
    #[error("position is not here yet")]
    NotYet,
    /// Try again.
    #[error("{message}")]
    Unavailable {
        /// For the client.
        message: &'static str,
        /// For the log.
        cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// As many requests of this kind as may be are being answered already.
    #[error("Concurrent {kind} request limit exceeded (limit: {limit}), please retry")]
    Full {
        /// `initial` or `existing`.
        kind: &'static str,
        /// So many may be.
        limit: usize,
    },
    /// A body of another kind than JSON.
    #[error("Unsupported Media Type - application/json is expected")]
    NotJson,
    /// Transactions of the client are missing between its last one and these.
    #[error("Transactions are missing: the client's next one has seq {}", last_seq + 1)]
    WriteGap {
        /// The last one that is done.
        last_seq: i64,
    },
    /// The client's id was first used by somebody else.
    #[error("Forbidden - The client_id belongs to another caller")]
    ForeignClient,
    /// A caller writes more than he may.
    #[error("Too many transactions, please retry")]
    TooManyWrites {
        /// When as many would be taken.
        retry_after_s: u64,
    },
    /// A bug, here or in the extension.
    #[error("internal error: {0}")]
    Internal(Arc<dyn std::error::Error + Send + Sync>),
}

/// Seconds after which an unavailable service is tried again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The same when there are too many requests: spread, so that they do not all come back at once.
const FULL_RETRY_AFTER_S: std::ops::RangeInclusive<u64> = 6..=10;

impl Error {
    /// An unavailable service without a cause of its own.
    pub fn unavailable(message: &'static str) -> Self {
        Error::Unavailable {
            message,
            cause: None,
        }
    }

    /// A void handle or offset, before it is known how to go on.
    pub fn refetch(reason: impl Into<String>) -> Self {
        Error::MustRefetch {
            handle: None,
            reason: reason.into(),
        }
    }

    /// A body that cannot be used.
    pub fn bad_body(text: &'static str) -> Self {
        Error::BadBody {
            text,
            details: None,
        }
    }

    /// An error of something other than the database.
    pub fn internal(cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Internal(Arc::new(cause))
    }

    /// Whether the same request may succeed in a moment.
    pub fn is_passing(&self) -> bool {
        matches!(self, Error::Unavailable { .. } | Error::NotYet)
    }

    /// The SQLSTATE of what the database said, if that is why the service is unavailable.
    pub fn sqlstate(&self) -> Option<&str> {
        let Error::Unavailable { cause, .. } = self else {
            return None;
        };
        let error = cause.as_ref()?.downcast_ref::<tokio_postgres::Error>()?;
        error.code().map(SqlState::code)
    }

    fn status(&self) -> StatusCode {
        match self {
            Error::Invalid(_) => StatusCode::BAD_REQUEST,
            Error::Unauthorized | Error::InvalidToken => StatusCode::UNAUTHORIZED,
            Error::ForbiddenRole | Error::ForeignClient => StatusCode::FORBIDDEN,
            Error::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Error::WriteGap { .. } => StatusCode::CONFLICT,
            Error::TooManyWrites { .. } => StatusCode::TOO_MANY_REQUESTS,
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::NotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Error::UrlTooLong => StatusCode::URI_TOO_LONG,
            Error::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Error::BadBody { .. } => StatusCode::BAD_REQUEST,
            Error::MustRefetch { .. } => StatusCode::CONFLICT,
            Error::NotYet | Error::Unavailable { .. } | Error::Full { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn body(&self) -> serde_json::Value {
        match self {
            Error::Invalid(errors) => json!({"message": "Invalid request", "errors": errors}),
            Error::Unauthorized => json!({"message": "Unauthorized - Invalid API secret"}),
            Error::UrlTooLong => {
                json!({"message": "URI Too Long", "errors": {"url": ["is too long"]}})
            }
            Error::BodyTooLarge => json!({"error": "Request body too large"}),
            Error::BadBody { text, details } => match details {
                Some(details) => json!({"error": text, "details": details}),
                None => json!({"error": text}),
            },
            Error::WriteGap { last_seq } => {
                json!({"message": self.to_string(), "last_seq": last_seq})
            }
            Error::NotYet => {
                json!({"message": "The offset has not arrived here yet, please retry"})
            }
            Error::Full { .. } => {
                json!({"code": "concurrent_request_limit_exceeded", "message": self.to_string()})
            }
            Error::Internal(_) => json!({"error": "Internal server error"}),
            _ => json!({"message": self.to_string()}),
        }
    }

    /// All that is known, for the log.
    pub fn cause(&self) -> String {
        match self {
            Error::Unavailable {
                cause: Some(cause), ..
            }
            | Error::Internal(cause) => chain(cause.as_ref()),
            Error::Invalid(errors) => serde_json::Value::from(errors.clone()).to_string(),
            error => error.to_string(),
        }
    }

    fn log(&self) {
        match self {
            Error::Internal(_) => tracing::error!(cause = self.cause(), "request failed"),
            Error::Unavailable { .. } => tracing::warn!(cause = self.cause(), "request put off"),
            _ => {}
        }
    }
}

/// An error and what caused it, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.log();
        if let Error::MustRefetch { handle, .. } = self {
            return refetch_response(handle);
        }
        let mut response = (self.status(), self.body().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, crate::response::JSON);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            protocol::header::SURROGATE_CONTROL,
            HeaderValue::from_static("no-store"),
        );
        if matches!(self, Error::InvalidToken) {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        if self.is_passing() {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if let Error::TooManyWrites { retry_after_s } = self {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        if let Error::Full { .. } = self {
            let seconds = fastrand::u64(FULL_RETRY_AFTER_S);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            let known = HeaderValue::from_static("true");
            headers.insert(protocol::header::KNOWN_ERROR, known);
        }
        response
    }
}

fn refetch_response(handle: Option<Handle>) -> Response {
    let mut response = (StatusCode::CONFLICT, MUST_REFETCH).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, crate::response::JSON);
    let cache_control = caching::refetch_cache_control(handle.is_some());
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static(cache_control),
    );
    if let Some(handle) = handle {
        headers.insert(protocol::header::HANDLE, crate::response::value(handle));
        headers.insert(
            header::ETAG,
            crate::response::value(format_args!("\"{handle}::\"")),
        );
    }
    response
}

/// SQLSTATEs by what can be done about them (docs/protocol.md, "Errors").
impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            let message = "Cannot connect to the database. Please try again later.";
            return Error::Unavailable {
                message,
                cause: Some(Arc::new(error)),
            };
        };
        let invalid = |field: &str| Error::Invalid(field_error(field, db.message()));
        match (db.code().code(), db.code()) {
            ("SF400", _) => invalid("where"),
            ("SF409", _) => Error::refetch(db.message()),
            ("SF425", _) => Error::NotYet,
            ("SF503", _) => Error::Unavailable {
                message: "The shape cannot be read at this moment, please retry",
                cause: Some(Arc::new(error)),
            },
            (
                _,
                &SqlState::UNDEFINED_TABLE
                | &SqlState::INSUFFICIENT_PRIVILEGE
                | &SqlState::FEATURE_NOT_SUPPORTED,
            ) => invalid("table"),
            (code, _) if is_the_callers(code) => {
                // Values of rows never leave through an error's text: the code says enough.
                Error::Invalid(field_error(
                    "where",
                    format!("evaluation failed with SQLSTATE {code}"),
                ))
            }
            (code, _) if is_a_bug(code) => Error::Internal(Arc::new(error)),
            _ => {
                let message = "The database is busy or restarting, please retry";
                Error::Unavailable {
                    message,
                    cause: Some(Arc::new(error)),
                }
            }
        }
    }
}

/// Classes that an expression over a row can raise.
fn is_the_callers(code: &str) -> bool {
    ["22", "38", "39", "54", "P0"]
        .iter()
        .any(|class| code.starts_with(class))
}

/// Classes that only a mistake in our own statements can raise.
fn is_a_bug(code: &str) -> bool {
    ["42", "XX", "21", "23", "24", "26", "34"]
        .iter()
        .any(|class| code.starts_with(class))
}

impl From<deadpool_postgres::PoolError> for Error {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(error) => error.into(),
            error => Error::Unavailable {
                message: "Too many concurrent requests, please retry",
                cause: Some(Arc::new(error)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refetches_name_another_handle() {
        let handle = Handle {
            hash: 1,
            pin: 2,
            n: 3,
        };
        let response = Error::MustRefetch {
            handle: Some(handle),
            reason: "gone".into(),
        }
        .into_response();
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()["electric-handle"], "1-2-3");
        assert_eq!(response.headers()["etag"], "\"1-2-3::\"");
        assert_eq!(
            response.headers()["cache-control"],
            "public, max-age=60, must-revalidate"
        );
    }

    #[test]
    fn errors_are_never_stored() {
        let response = Error::unavailable("x").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["cache-control"], "no-store");
    }

    #[test]
    fn requests_above_the_limit_come_back_later_and_spread() {
        let kind = "initial";
        let response = Error::Full { kind, limit: 300 }.into_response();
        let headers = response.headers();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(headers["electric-internal-known-error"], "true");
        let after: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(FULL_RETRY_AFTER_S.contains(&after));
    }
}
