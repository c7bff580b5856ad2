//! What the feed and the sequencer call, each on a connection of its own.

use std::time::Duration;

use futures_util::TryStreamExt;
use serde_json::value::RawValue;
use tokio_postgres::types::Json as AsJson;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::definition;
use crate::definition::Definition;
use crate::error::Error;

/// A row of the feed.
#[derive(Debug)]
pub enum FeedRow<'a> {
    /// An operation of these shapes.
    Operation {
        /// Shapes.
        ids: Vec<i32>,
        /// Position.
        position: i64,
        /// Number inside it.
        n: i64,
        /// JSON.
        message: &'a str,
        /// Whether it is the last one of these shapes in this position.
        last: bool,
    },
    /// A transaction touched these tables; before its operations.
    Touch {
        /// Tables.
        relids: Vec<i32>,
        /// Position.
        position: i64,
        /// Low half of its id.
        xid: u32,
    },
    /// What the catalogs say of these tables has changed.
    Changed {
        /// Tables.
        relids: Vec<i32>,
    },
    /// What a transaction does to these shapes is to be read from their logs.
    Skip {
        /// Shapes.
        ids: Vec<i32>,
        /// Position of the transaction.
        position: i64,
    },
    /// These shapes ended.
    End {
        /// Shapes.
        ids: Vec<i32>,
        /// Where.
        position: i64,
        /// Why.
        reason: &'a str,
        /// Their where clause is at fault.
        clause: bool,
    },
    /// All up to here was reported.
    Upto(i64),
}

/// What a session has attached is lost behind a pooler that lends backends by the transaction. That shows when a second
/// connection is inside a transaction: a backend was lent to it that the first one had, or the first one gets another.
/// Asked a few times: other clients of the pooler may hide it once.
pub async fn refuse_pooler(first: &Client, second: &Client) -> Result<(), Error> {
    const TIMES: usize = 3;
    let mut own = 0;
    while own < TIMES && have_own_backends(first, second).await? {
        own += 1;
    }
    if own == TIMES {
        return Ok(());
    }
    tracing::error!(
        "the database's URL leads to a pooler that shares sessions: it must lead to Postgres itself"
    );
    Err(Error::unavailable(
        "connected through a pooler that shares sessions",
    ))
}

async fn have_own_backends(first: &Client, second: &Client) -> Result<bool, Error> {
    let before = backend(first).await?;
    second.batch_execute("begin").await?;
    let (other, after) = (backend(second).await?, backend(first).await?);
    second.batch_execute("commit").await?;
    Ok(before == after && before != other)
}

async fn backend(client: &Client) -> Result<Option<String>, Error> {
    // Not prepared: behind a pooler that would already fail, in other words.
    let answer = client
        .simple_query("select pg_catalog.pg_backend_pid()")
        .await?;
    Ok(answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// Sleeps in the database until the log goes past `after`.
pub async fn wait(
    client: &Client,
    statement: &Statement,
    after: i64,
    timeout: Duration,
) -> Result<(), Error> {
    let timeout_ms = timeout.as_millis() as i32;
    client.execute(statement, &[&after, &timeout_ms]).await?;
    Ok(())
}

/// The statement of the wait, prepared once per session.
pub async fn prepare_wait(client: &Client) -> Result<Statement, Error> {
    Ok(client.prepare("call shapefeed.wait($1, $2)").await?)
}

/// Gives positions to what was committed, where no worker does.
pub async fn sequence(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("call shapefeed.sequence()").await
}

/// Drops what of the log is older than it need be, where no worker does.
pub async fn retain(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("call shapefeed.retain()").await
}

/// Attaches these shapes alone to this session's feed, which reports what came after `position`.
pub async fn attach_at(
    client: &Client,
    shapes: &[(i32, &Definition)],
    position: i64,
) -> Result<(), Error> {
    let (ids, definitions) = split(shapes);
    let sql = "select shapefeed._attach_at($1, $2, $3)";
    client.query(sql, &[&ids, &definitions, &position]).await?;
    Ok(())
}

fn split<'a>(shapes: &[(i32, &'a Definition)]) -> (Vec<i32>, Vec<AsJson<&'a RawValue>>) {
    let pairs = shapes.iter().map(|(id, shape)| (*id, definition(shape)));
    pairs.unzip()
}

/// Attaches shapes to this session's feed and returns the position after which it reports them.
pub async fn attach(client: &Client, shapes: &[(i32, &Definition)]) -> Result<i64, Error> {
    let (ids, definitions) = split(shapes);
    Ok(client
        .query_one("select shapefeed._attach($1, $2)", &[&ids, &definitions])
        .await?
        .try_get(0)?)
}

/// Detaches shapes.
pub async fn detach(client: &Client, ids: &[i32]) -> Result<(), Error> {
    client
        .execute("select shapefeed._detach($1)", &[&ids])
        .await?;
    Ok(())
}

/// The statement of the feed, prepared once per session.
pub async fn prepare_feed(client: &Client) -> Result<Statement, Error> {
    let sql = "select ids, position, n, message, last, kind from shapefeed._feed($1)";
    Ok(client.prepare(sql).await?)
}

/// Reads the feed on from where it was; each row is handed out as it arrives.
pub async fn feed(
    client: &Client,
    statement: &Statement,
    max_bytes: i64,
    mut each: impl FnMut(FeedRow<'_>),
) -> Result<(), Error> {
    let rows = client.query_raw(statement, [&max_bytes]).await?;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.try_next().await? {
        let position = row.try_get(1)?;
        let ids = || {
            row.try_get::<_, Option<Vec<i32>>>(0)
                .map(Option::unwrap_or_default)
        };
        let message = || {
            row.try_get::<_, Option<&str>>(3)
                .map(Option::unwrap_or_default)
        };
        each(match row.try_get(5)? {
            "upto" => FeedRow::Upto(position),
            kind @ ("end" | "clause") => FeedRow::End {
                ids: ids()?,
                position,
                reason: message()?,
                clause: kind == "clause",
            },
            "skip" => FeedRow::Skip {
                ids: ids()?,
                position,
            },
            "changed" => FeedRow::Changed { relids: ids()? },
            "touch" => FeedRow::Touch {
                relids: ids()?,
                position,
                xid: row.try_get::<_, i64>(2)? as u32,
            },
            _ => FeedRow::Operation {
                ids: ids()?,
                position,
                n: row.try_get(2)?,
                message: message()?,
                last: row.try_get::<_, Option<bool>>(4)? == Some(true),
            },
        });
    }
    Ok(())
}
