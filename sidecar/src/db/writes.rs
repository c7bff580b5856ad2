//! Writes of clients: each transaction is one statement, on a pool of its own.

use std::time::Duration;

use futures_util::TryStreamExt;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Json as AsJson, ToSql};
use tokio_postgres::{Client, Statement};

use super::{Asking, Db};
use crate::error::Error;
use crate::params::Caller;

/// How much longer than it may take a transaction is waited for.
const LATE: Duration = Duration::from_secs(2);

/// A client's transaction, and who sends it.
#[derive(Clone, Copy, Debug)]
pub struct Writing<'a> {
    /// The client's UUID.
    pub client: &'a str,
    /// Number of the transaction.
    pub seq: i64,
    /// As whom it is done.
    pub caller: &'a Caller,
}

/// What became of it.
#[derive(Debug)]
pub enum Written {
    /// Applied, by the transaction of this id if that is still known.
    Applied {
        /// Transaction id.
        xid: Option<u64>,
        /// The client's last transaction.
        last: i64,
    },
    /// Rejected for good.
    Rejected {
        /// What the client is told.
        why: Map<String, Json>,
        /// The client's last transaction.
        last: i64,
    },
    /// Nothing; it may succeed when it is sent again.
    Retry {
        /// SQLSTATE.
        sqlstate: String,
        /// For people.
        message: String,
    },
    /// Others come before it that were not sent.
    Gap {
        /// The client's last transaction.
        last: i64,
    },
    /// The client's id belongs to another caller.
    Foreign,
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    xid: Option<String>,
    rejection: Option<Map<String, Json>>,
    #[serde(default)]
    last_seq: i64,
}

impl From<Answer> for Written {
    fn from(answer: Answer) -> Self {
        let last = answer.last_seq;
        match answer.status.as_str() {
            "applied" => Written::Applied {
                xid: answer.xid.and_then(|xid| xid.parse().ok()),
                last,
            },
            "gap" => Written::Gap { last },
            "foreign" => Written::Foreign,
            _ => Written::Rejected {
                why: answer.rejection.unwrap_or_default(),
                last,
            },
        }
    }
}

/// Where it failed.
enum Failed {
    /// No connection, or no answer: nobody knows.
    Connecting(Error),
    /// Before there was a result.
    Running(tokio_postgres::Error),
    /// When the result was committed.
    Committing(tokio_postgres::Error),
}

impl Failed {
    /// What the client is told: to send it again, or that nothing can be said.
    fn outcome(self) -> Result<Written, Error> {
        let error = match self {
            Failed::Connecting(error) => return Err(error),
            Failed::Running(error) | Failed::Committing(error) => error,
        };
        match error.as_db_error() {
            Some(cause) if may_pass(cause.code()) => Ok(Written::Retry {
                sqlstate: cause.code().code().to_owned(),
                message: cause.message().to_owned(),
            }),
            Some(_) => Err(Error::internal(error)),
            // Nobody knows whether it was committed: the client asks again.
            None => Err(error.into()),
        }
    }

    /// Why it can never be committed.
    fn rejection(&self) -> Option<Json> {
        let Failed::Committing(error) = self else {
            return None;
        };
        let cause = error.as_db_error().filter(|it| !may_pass(it.code()))?;
        let mut why = json!({"sqlstate": cause.code().code(), "message": cause.message()});
        if let Some(constraint) = cause.constraint() {
            why["constraint"] = constraint.into();
        }
        Some(why)
    }
}

/// Conflicts with others, locks, a lack of resources, an operator's doing, a server that does not write now.
fn may_pass(code: &SqlState) -> bool {
    let classes = ["40", "53", "57", "58"];
    classes.iter().any(|class| code.code().starts_with(class))
        || [
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::READ_ONLY_SQL_TRANSACTION,
        ]
        .contains(code)
}

impl Db {
    /// Does a client's transaction, once.
    pub async fn write(&self, writing: &Writing<'_>, operations: &str) -> Result<Written, Error> {
        let written = self.call("_write", writing, operations).await;
        let written = match written.as_ref().err().and_then(Failed::rejection) {
            Some(why) => self.call("_reject", writing, &why.to_string()).await,
            None => written,
        };
        written.or_else(Failed::outcome)
    }

    async fn call(
        &self,
        function: &str,
        writing: &Writing<'_>,
        json: &str,
    ) -> Result<Written, Failed> {
        let client = Asking::begin(&self.writes, &self.tls).await;
        let client = client.map_err(Failed::Connecting)?;
        let role = writing.caller.role.as_ref().or(self.role.as_ref());
        let Writing {
            client: id, seq, ..
        } = writing;
        let values: [&(dyn ToSql + Sync); 5] = [id, seq, &json, &role, &writing.caller.settings];
        // What statement_timeout does not see: triggers that run at the commit, and a network that is silent.
        let late = self.write_timeout + LATE;
        let answer = tokio::time::timeout(late, ask(&client, function, values)).await;
        match answer {
            Ok(answer) => client.end(answer).map(Written::from),
            Err(_) => Err(Failed::Connecting(Error::unavailable(
                "The transaction takes too long, please retry",
            ))),
        }
    }
}

/// One statement is one transaction: it is committed once all of its rows were read.
async fn ask(
    client: &deadpool_postgres::Client,
    function: &str,
    values: [&(dyn ToSql + Sync); 5],
) -> Result<Answer, Failed> {
    let sql = format!(
        "select shapefeed.{function}($1::text::uuid, $2, $3::text::jsonb, $4, $5::text::jsonb)"
    );
    let statement = client.prepare_cached(&sql).await.map_err(Failed::Running)?;
    let rows = client.query_raw(&statement, values).await;
    let mut rows = std::pin::pin!(rows.map_err(Failed::Running)?);
    let row = rows.try_next().await.map_err(Failed::Running)?;
    while rows.try_next().await.map_err(Failed::Committing)?.is_some() {}
    let AsJson(answer) = row
        .expect("a select without a table has one row")
        .try_get(0)
        .map_err(Failed::Running)?;
    Ok(answer)
}

/// The statement of [`positions`], prepared once per session.
pub async fn prepare_positions(client: &Client) -> Result<Statement, Error> {
    let sql = "select xid::text, position, head from shapefeed._positions($1::text[]::xid8[])";
    Ok(client.prepare(sql).await?)
}

/// Positions of transactions, of those that have one, and where the log ended then.
pub async fn positions(
    client: &Client,
    statement: &Statement,
    xids: &[u64],
) -> Result<(Vec<(u64, i64)>, i64), Error> {
    let xids: Vec<String> = xids.iter().map(u64::to_string).collect();
    let (mut found, mut head) = (Vec::new(), 0);
    for row in client.query(statement, &[&xids]).await? {
        let xid: &str = row.try_get(0)?;
        let position: Option<i64> = row.try_get(1)?;
        found.extend(xid.parse().ok().zip(position));
        head = row.try_get::<_, Option<i64>>(2)?.unwrap_or(0);
    }
    Ok((found, head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_sent_again() {
        let passes = |code| may_pass(&SqlState::from_code(code));
        for code in [
            "40001", "40P01", "55P03", "57014", "53300", "57P01", "25006", "58030",
        ] {
            assert!(passes(code), "{code}");
        }
        for code in [
            "23505", "42501", "P0002", "XX000", "55000", "22P02", "SF412",
        ] {
            assert!(!passes(code), "{code}");
        }
    }

    #[test]
    fn answers_are_read() {
        let read = |json: Json| Written::from(serde_json::from_value::<Answer>(json).unwrap());
        let applied = read(json!({"status": "applied", "xid": "4294967297", "last_seq": 3}));
        assert!(matches!(
            applied,
            Written::Applied {
                xid: Some(4294967297),
                last: 3
            }
        ));
        let forgotten = read(json!({"status": "applied", "xid": null, "last_seq": 3}));
        assert!(matches!(forgotten, Written::Applied { xid: None, .. }));
        let why =
            read(json!({"status": "rejected", "rejection": {"sqlstate": "23505"}, "last_seq": 1}));
        assert!(matches!(why, Written::Rejected { why, last: 1 } if why["sqlstate"] == "23505"));
        assert!(matches!(
            read(json!({"status": "gap", "last_seq": 9})),
            Written::Gap { last: 9 }
        ));
        assert!(matches!(
            read(json!({"status": "foreign"})),
            Written::Foreign
        ));
    }
}
