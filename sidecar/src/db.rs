//! The SQL that the sidecar may call, one function each. What they mean is in the extension's `sql/functions`.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime,
};
use futures_util::TryStreamExt;
use serde_json::value::RawValue;
use tokio_postgres::types::{Json as AsJson, ToSql};
use tokio_postgres::{Client, CopyOutStream};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::Config;
use crate::definition::Definition;
use crate::error::Error;
use crate::offset::Place;
use crate::params::{FieldErrors, ShapeParams, field_error};
use crate::protocol::SEPARATOR;
use crate::tls::{self, Verify};

/// How long a request waits for a connection of the pool.
const POOL_WAIT: Duration = Duration::from_secs(5);
/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound of any statement but those that wait or copy.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// The way to the database: pools for requests and snapshots, and connections of one's own.
#[derive(Clone)]
pub struct Db {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    requests: Pool,
    snapshots: Pool,
    role: Option<String>,
}

/// Where the log ends.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Newest position; `None` while nothing was sequenced yet.
    pub head: Option<i64>,
    /// Newest resting position.
    pub resting: Option<i64>,
    /// A standby, or still replaying.
    pub in_recovery: bool,
    /// The extension sequences by itself.
    pub preloaded: bool,
}

/// A batch end and the MVCC snapshot that was stored with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Position.
    pub position: i64,
    /// Transactions below it had ended.
    pub xmin: i64,
    /// Those from it on had not.
    pub xmax: i64,
    /// Those between that had not.
    pub xip: Vec<i64>,
}

/// What can be read from a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Everything after it.
    Here,
    /// Nothing any more, and why.
    Gone(String),
    /// Not yet.
    Later,
}

/// A piece of a shape's log.
#[derive(Clone, Debug)]
pub struct LogChunk {
    /// Messages, joined by the separator.
    pub messages: Bytes,
    /// Where the last message leaves the client; `None` without messages.
    pub end: Option<Place>,
    /// Position up to which there is nothing more; `None` if the chunk was closed before that.
    pub upto: Option<i64>,
}

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
    /// These shapes ended.
    End {
        /// Shapes.
        ids: Vec<i32>,
        /// Where.
        position: i64,
        /// Why.
        reason: &'a str,
    },
    /// All up to here was reported.
    Upto(i64),
}

/// Sends a definition as it came.
fn definition(definition: &Definition) -> AsJson<&RawValue> {
    AsJson(definition.raw())
}

impl Db {
    /// Pools that connect when they are first used.
    pub fn new(config: &Config) -> Result<Self, Box<dyn std::error::Error>> {
        let (url, verify) = split_ssl(&config.database_url);
        let mut pg: tokio_postgres::Config = url.parse()?;
        if pg.get_application_name().is_none() {
            pg.application_name("shapefeed-sidecar");
        }
        pg.connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(30));
        pg.tcp_user_timeout(Duration::from_secs(30));
        let tls = tls::connector(&verify)?;
        let pool = |size, timeout| pool(&pg, &tls, size, timeout);
        let requests = pool(config.pool_size, STATEMENT_TIMEOUT)?;
        let snapshots = pool(
            config.snapshot_pool_size,
            Duration::from_secs(config.snapshot_timeout),
        )?;
        Ok(Db {
            config: pg,
            tls,
            requests,
            snapshots,
            role: config.role.clone(),
        })
    }

    /// A connection of one's own, whose statements have no time limit.
    pub async fn connect(&self) -> Result<Client, Error> {
        let (client, connection) = self.config.connect(self.tls.clone()).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %crate::error::chain(&error), "connection lost");
            }
        });
        client
            .batch_execute(&session_settings(Duration::ZERO))
            .await?;
        Ok(client)
    }

    /// Connections of the request pool: (all, free).
    pub fn pool_status(&self) -> (usize, usize) {
        let status = self.requests.status();
        (status.size, status.available)
    }

    /// What a shape is, or why it cannot be.
    pub async fn define(&self, shape: &ShapeParams) -> Result<Definition, Error> {
        let relation = [
            shape.relation.schema.as_str(),
            shape.relation.table.as_str(),
        ];
        let (replica, log) = (shape.replica.as_str(), shape.log.as_str());
        let client = self.requests.get().await?;
        let sql = "select shapefeed._define($1, $2, $3, $4, $5, $6, $7)";
        let statement = client.prepare_cached(sql).await?;
        let arguments: [&(dyn ToSql + Sync); 7] = [
            &relation.as_slice(),
            &shape.condition,
            &shape.params,
            &shape.columns,
            &replica,
            &log,
            &self.role,
        ];
        let AsJson(answer): AsJson<Box<RawValue>> =
            client.query_one(&statement, &arguments).await?.try_get(0)?;
        read_definition(answer)
    }

    /// Where the log ends now.
    pub async fn head(&self) -> Result<Head, Error> {
        let client = self.requests.get().await?;
        read_head(&client).await
    }

    /// The newest batch end at which a snapshot of this shape can be taken.
    pub async fn pin(&self, shape: &Definition) -> Result<Batch, Error> {
        let client = self.requests.get().await?;
        let sql = "select position, xmin, xmax, xip from shapefeed._pin($1)";
        let statement = client.prepare_cached(sql).await?;
        let row = client.query_one(&statement, &[&definition(shape)]).await?;
        Ok(Batch {
            position: row.try_get(0)?,
            xmin: row.try_get(1)?,
            xmax: row.try_get(2)?,
            xip: row.try_get(3)?,
        })
    }

    /// The batch that ended at `position`.
    pub async fn batch(&self, position: i64) -> Result<Option<Batch>, Error> {
        let client = self.requests.get().await?;
        let statement = client
            .prepare_cached("select xmin, xmax, xip from shapefeed._batch($1)")
            .await?;
        let row = client.query_opt(&statement, &[&position]).await?;
        row.map(|row| {
            Ok(Batch {
                position,
                xmin: row.try_get(0)?,
                xmax: row.try_get(1)?,
                xip: row.try_get(2)?,
            })
        })
        .transpose()
    }

    /// Whether a handle with this pin can be read from `position` on.
    pub async fn place(
        &self,
        shape: &Definition,
        pin: i64,
        position: i64,
    ) -> Result<Placed, Error> {
        let client = self.requests.get().await?;
        let statement = client
            .prepare_cached("select state, reason from shapefeed._place($1, $2, $3)")
            .await?;
        let row = client
            .query_one(&statement, &[&definition(shape), &pin, &position])
            .await?;
        Ok(match row.try_get(0)? {
            "ok" => Placed::Here,
            "later" => Placed::Later,
            _ => Placed::Gone(row.try_get::<_, Option<String>>(1)?.unwrap_or_default()),
        })
    }

    /// Operations after `from` up to `to`, until they have `max_bytes`.
    pub async fn log(
        &self,
        shape: &Definition,
        from: Place,
        to: i64,
        max_bytes: i64,
    ) -> Result<LogChunk, Error> {
        let client = self.requests.get().await?;
        let sql = "select position, n, message, last, upto from shapefeed._log($1, $2, $3, $4, $5)";
        let statement = client.prepare_cached(sql).await?;
        let definition = definition(shape);
        let (position, n) = (from.position(), from.n());
        let arguments: [&(dyn ToSql + Sync); 5] = [&definition, &position, &n, &to, &max_bytes];
        let rows = client.query_raw(&statement, arguments).await?;
        let mut rows = std::pin::pin!(rows);
        let mut messages = BytesMut::new();
        let mut chunk = LogChunk {
            messages: Bytes::new(),
            end: None,
            upto: None,
        };
        while let Some(row) = rows.try_next().await? {
            let Some(message): Option<&str> = row.try_get(2)? else {
                chunk.upto = row.try_get(4)?;
                continue;
            };
            if !messages.is_empty() {
                messages.put_slice(SEPARATOR);
            }
            messages.put_slice(message.as_bytes());
            let n = if row.try_get::<_, Option<bool>>(3)? == Some(true) {
                0
            } else {
                row.try_get(1)?
            };
            chunk.end = Some(Place::new(row.try_get(0)?, n));
        }
        chunk.messages = messages.freeze();
        Ok(chunk)
    }

    /// Starts to track a table, outside a transaction so that it can try again and again for its lock.
    pub async fn track(&self, relid: u32) -> Result<(), Error> {
        let client = self.connect().await?;
        client
            .batch_execute(&format!(
                "call shapefeed.track({relid}::pg_catalog.oid::pg_catalog.regclass)"
            ))
            .await?;
        Ok(())
    }

    /// Writes the end of all handles of a definition into the log.
    pub async fn rotate(&self, hash: u64) -> Result<(), Error> {
        let client = self.requests.get().await?;
        Ok(client
            .batch_execute(&format!("call shapefeed._rotate('{hash}')"))
            .await?)
    }

    /// Starts to copy a snapshot, or what of it comes after `cursor`. The connection must live as long as the stream.
    pub async fn snapshot(
        &self,
        shape: &Definition,
        position: i64,
        chunk_bytes: i64,
        cursor: Option<&str>,
    ) -> Result<(Object, CopyOutStream), Error> {
        let client = self.snapshots.get().await?;
        let literal = postgres_protocol::escape::escape_literal;
        let definition = literal(shape.raw().get());
        let cursor = cursor.map_or("null".into(), literal);
        let sql = format!(
            "copy (select shapefeed._snapshot({definition}::pg_catalog.jsonb, {position}, {chunk_bytes}, {cursor})) \
             to stdout (format binary)"
        );
        let stream = client.copy_out(&sql).await?;
        Ok((client, stream))
    }
}

/// Where the log ends, by a connection of one's own.
pub async fn read_head(client: &Client) -> Result<Head, Error> {
    let sql = "select head, resting, in_recovery, preloaded from shapefeed._head()";
    let row = client.query_one(sql, &[]).await?;
    Ok(Head {
        head: row.try_get(0)?,
        resting: row.try_get(1)?,
        in_recovery: row.try_get(2)?,
        preloaded: row.try_get(3)?,
    })
}

/// Sleeps in the database until the log goes past `after`.
pub async fn wait(client: &Client, after: i64, timeout: Duration) -> Result<(), Error> {
    let sql = format!("call shapefeed.wait({after}, {})", timeout.as_millis());
    Ok(client.batch_execute(&sql).await?)
}

/// Gives positions to what was committed, where no worker does.
pub async fn sequence(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("call shapefeed.sequence()").await
}

/// Attaches shapes to this session's feed and returns the position after which it reports them.
pub async fn attach(client: &Client, shapes: &[(i32, &Definition)]) -> Result<i64, Error> {
    let ids: Vec<i32> = shapes.iter().map(|(id, _)| *id).collect();
    let definitions: Vec<_> = shapes.iter().map(|(_, shape)| definition(shape)).collect();
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
pub async fn prepare_feed(client: &Client) -> Result<tokio_postgres::Statement, Error> {
    let sql = "select ids, position, n, message, last, kind from shapefeed._feed($1)";
    Ok(client.prepare(sql).await?)
}

/// Reads the feed on from where it was; each row is handed out as it arrives.
pub async fn feed(
    client: &Client,
    statement: &tokio_postgres::Statement,
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
            "end" => FeedRow::End {
                ids: ids()?,
                position,
                reason: message()?,
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

fn pool(
    config: &tokio_postgres::Config,
    tls: &MakeRustlsConnect,
    size: usize,
    statement_timeout: Duration,
) -> Result<Pool, Box<dyn std::error::Error>> {
    let recycling = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_config(config.clone(), tls.clone(), recycling);
    let settings = session_settings(statement_timeout);
    let set = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
        let settings = settings.clone();
        Box::pin(async move {
            client
                .batch_execute(&settings)
                .await
                .map_err(HookError::Backend)
        })
    });
    let pool = Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .post_create(set);
    Ok(pool
        .wait_timeout(Some(POOL_WAIT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .build()?)
}

/// Readers must not take part in serializable writers' conflicts, and what we embed must mean what it says.
fn session_settings(statement_timeout: Duration) -> String {
    format!(
        "set default_transaction_isolation = 'read committed'; set standard_conforming_strings = on; \
         set client_min_messages = warning; set idle_in_transaction_session_timeout = '60s'; \
         set statement_timeout = {}",
        statement_timeout.as_millis()
    )
}

/// What `_define` answers: a definition, errors by field, or that the caller may not.
fn read_definition(answer: Box<RawValue>) -> Result<Definition, Error> {
    #[derive(serde::Deserialize)]
    struct Refusal {
        errors: Option<FieldErrors>,
        denied: Option<String>,
    }
    let refusal: Refusal = serde_json::from_str(answer.get()).map_err(Error::internal)?;
    match (refusal.errors, refusal.denied) {
        (Some(errors), _) => Err(Error::Invalid(errors)),
        (None, Some(text)) => Err(Error::Invalid(field_error("table", text))),
        (None, None) => Definition::new(answer).map_err(Error::internal),
    }
}

/// tokio-postgres knows `sslmode` up to `require` and no `sslrootcert`: takes both out where they say more.
fn split_ssl(url: &str) -> (String, Verify) {
    let mut root = None;
    let mut full = false;
    let mut rest = Vec::new();
    let is_url = url.contains("://");
    let (front, options) = if is_url {
        url.split_once('?').unwrap_or((url, ""))
    } else {
        ("", url)
    };
    for option in options
        .split(if is_url { '&' } else { ' ' })
        .filter(|option| !option.is_empty())
    {
        match option.split_once('=') {
            Some(("sslrootcert", file)) => root = Some(file.to_owned()),
            Some(("sslmode", "verify-full" | "verify-ca")) => {
                full = true;
                rest.push("sslmode=require");
            }
            _ => rest.push(option),
        }
    }
    let verify = match root {
        Some(file) if file != "system" => Verify::RootsFrom(file),
        Some(_) => Verify::SystemRoots,
        None if full => Verify::SystemRoots,
        None => Verify::No,
    };
    let rest = rest.join(if is_url { "&" } else { " " });
    (
        if is_url && !rest.is_empty() {
            format!("{front}?{rest}")
        } else {
            format!("{front}{rest}")
        },
        verify,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssl_options() {
        let split = |url| split_ssl(url);
        let url = "postgres://u@h/d";
        assert_eq!(split(url), (url.into(), Verify::No));
        assert_eq!(
            split("postgres://u@h/d?sslmode=verify-full&sslrootcert=/ca"),
            (
                "postgres://u@h/d?sslmode=require".into(),
                Verify::RootsFrom("/ca".into())
            )
        );
        assert_eq!(
            split("host=h sslmode=verify-full user=u"),
            ("host=h sslmode=require user=u".into(), Verify::SystemRoots)
        );
        assert_eq!(split("host=h sslmode=require").1, Verify::No);
    }

    #[test]
    fn answers_of_define() {
        let read = |json: serde_json::Value| {
            read_definition(RawValue::from_string(json.to_string()).unwrap())
        };
        let errors = read(serde_json::json!({"errors": {"where": ["x"]}})).unwrap_err();
        assert!(matches!(errors, Error::Invalid(fields) if fields["where"][0] == "x"));
        let denied = read(serde_json::json!({"denied": "no"})).unwrap_err();
        assert!(matches!(denied, Error::Invalid(fields) if fields["table"][0] == "no"));
        assert!(matches!(
            read(serde_json::json!({})),
            Err(Error::Internal(_))
        ));
    }
}
