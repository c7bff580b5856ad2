//! Every error that shapefeed raises, with its SQLSTATE. Messages follow Postgres' style guide.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;

/// What went wrong, as the caller can act on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log no longer reaches from where the reader stands to where it wants to be. SQLSTATE SF409.
    #[error("{0}")]
    MustRefetch(String),
    /// The position is not on this server yet. SQLSTATE SF425.
    #[error("position {0} is not here yet")]
    NotYet(i64),
    /// Nothing is wrong that will not be right in a moment. SQLSTATE SF503.
    #[error("{0}")]
    TryAgain(String),
    /// A where clause cannot be followed: it raises an error for a row, or takes too long. SQLSTATE SF400.
    #[error("{0}")]
    Clause(String),
    /// The session's feed has no shapes, or those that it had are lost. SQLSTATE SF410.
    #[error("no shape is attached in this session")]
    FeedLost,
    /// Something that shapefeed does not do. SQLSTATE 0A000.
    #[error("{0}")]
    Unsupported(String, &'static str),
    /// Anything else that has a standard SQLSTATE.
    #[error("{1}")]
    Sql(PgSqlErrorCode, String, &'static str),
    /// A log chunk that cannot be decoded. SQLSTATE XX001.
    #[error(transparent)]
    Corrupt(#[from] crate::record::Corrupt),
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Raises this as a Postgres error.
    pub fn raise(self) -> ! {
        let hint = match &self {
            Error::Unsupported(_, hint) | Error::Sql(_, _, hint) => *hint,
            Error::MustRefetch(_) => "Read the shape again from its start.",
            Error::NotYet(_) | Error::TryAgain(_) => "Try again in a moment.",
            Error::Clause(_) => {
                "Write it so that it raises no error for any row, and costs little."
            }
            Error::FeedLost => "Attach all shapes again, in a new session.",
            Error::Corrupt(_) => "",
        };
        let code = match &self {
            Error::Unsupported(..) => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            Error::Sql(code, ..) => *code,
            Error::Corrupt(_) => PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            Error::MustRefetch(_) => {
                crate::pg::error::raise_custom(b"SF409", &self.to_string(), hint)
            }
            Error::Clause(_) => crate::pg::error::raise_custom(b"SF400", &self.to_string(), hint),
            Error::FeedLost => crate::pg::error::raise_custom(b"SF410", &self.to_string(), hint),
            Error::NotYet(_) => crate::pg::error::raise_custom(b"SF425", &self.to_string(), hint),
            Error::TryAgain(_) => crate::pg::error::raise_custom(b"SF503", &self.to_string(), hint),
        };
        let report = ErrorReport::new(code, self.to_string(), "shapefeed");
        let report = if hint.is_empty() {
            report
        } else {
            report.set_hint(hint)
        };
        report.report(pgrx::PgLogLevel::ERROR);
        unreachable!("an error report of level ERROR does not return")
    }
}

/// Unwraps a result, raising its error as a Postgres error.
pub trait OrRaise<T> {
    /// The value, or the error raised.
    fn or_raise(self) -> T;
}

impl<T> OrRaise<T> for Result<T> {
    fn or_raise(self) -> T {
        self.unwrap_or_else(|error| error.raise())
    }
}
