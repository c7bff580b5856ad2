//! Questions and commands of requests, by the pools.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::TryStreamExt;
use serde_json::value::RawValue;
use tokio_postgres::types::{Json as AsJson, ToSql};
use tokio_postgres::{Client, CopyOutStream, Row, RowStream};

use super::{Asking, Db, definition};
use crate::definition::Definition;
use crate::error::Error;
use crate::offset::Place;
use crate::params::{FieldErrors, ShapeParams, Source, Subset, field_error};
use crate::protocol::SEPARATOR;

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
    /// Transactions up to there that touched the table and are no operation of the shape.
    pub silent: Vec<u32>,
    /// Newest resting position when it was read, if that is known.
    pub resting: Option<i64>,
}
impl Db {
    /// What a shape is, or why it cannot be.
    pub async fn define(&self, shape: &ShapeParams) -> Result<Definition, Error> {
        let relation = match &shape.source {
            Source::Table(relation) => vec![relation.schema.as_str(), relation.table.as_str()],
            Source::Named(name) => vec![name.as_str()],
        };
        let (replica, log) = (shape.replica.as_str(), shape.log.as_str());
        let sql = "select shapefeed._define($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9)";
        let role = shape.caller.role.as_ref().or(self.role.as_ref());
        let named = (!shape.named.is_empty()).then_some(AsJson(&shape.named));
        let arguments: [&(dyn ToSql + Sync); 9] = [
            &relation,
            &shape.condition,
            &shape.params,
            &shape.columns,
            &replica,
            &log,
            &role,
            &shape.caller.settings,
            &named,
        ];
        let AsJson(answer): AsJson<Box<RawValue>> = self.one(sql, &arguments).await?.try_get(0)?;
        read_definition(answer)
    }

    /// Where the log ends now.
    pub async fn head(&self) -> Result<Head, Error> {
        let client = self.ask().await?;
        let head = read_head(&client).await;
        client.end(head)
    }

    /// The newest batch end at which a snapshot of this shape can be taken.
    pub async fn pin(&self, shape: &Definition) -> Result<Batch, Error> {
        let sql = "select position, xmin, xmax, xip from shapefeed._pin($1)";
        let row = self.one(sql, &[&definition(shape)]).await?;
        Ok(Batch {
            position: row.try_get(0)?,
            xmin: row.try_get(1)?,
            xmax: row.try_get(2)?,
            xip: row.try_get(3)?,
        })
    }

    /// The batch that ended at `position`.
    pub async fn batch(&self, position: i64) -> Result<Option<Batch>, Error> {
        let sql = "select xmin, xmax, xip from shapefeed._batch($1)";
        let rows = self.rows(sql, &[&position]).await?;
        rows.first()
            .map(|row| {
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
        let sql = "select state, reason from shapefeed._place($1, $2, $3)";
        let row = self
            .one(sql, &[&definition(shape), &pin, &position])
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
        let definition = definition(shape);
        let (position, n) = (from.position(), from.n());
        let client = self.ask().await?;
        let chunk = read_log(&client, [&definition, &position, &n, &to, &max_bytes]).await;
        client.end(chunk)
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
        self.execute(&format!("call shapefeed._rotate('{hash}')"))
            .await
    }

    /// Rows of a shape as of now, as `_subset` gives them. The connection must live as long as the stream.
    pub async fn subset(
        &self,
        shape: &Definition,
        subset: &Subset,
        queryable: Option<&[String]>,
        mark: i32,
    ) -> Result<(Asking, RowStream), Error> {
        let client = self.ask().await?;
        let sql = "select shapefeed._subset($1, $2, $3, $4, $5, $6, $7, $8)";
        let definition = definition(shape);
        let arguments: [&(dyn ToSql + Sync); 8] = [
            &definition,
            &subset.condition,
            &subset.params,
            &subset.order_by,
            &subset.limit,
            &subset.offset,
            &queryable,
            &mark,
        ];
        let asked = async {
            let statement = client.prepare_cached(sql).await?;
            client.query_raw(&statement, arguments).await
        };
        match asked.await {
            Ok(rows) => Ok((client, rows)),
            Err(error) => Err(client.end(error.into())),
        }
    }

    /// Starts to copy a snapshot, or what of it comes after `cursor`. The connection must live as long as the stream.
    pub async fn snapshot(
        &self,
        shape: &Definition,
        position: i64,
        chunk_bytes: i64,
        cursor: Option<&str>,
    ) -> Result<(Asking, CopyOutStream), Error> {
        let client = Asking::begin(&self.snapshots, &self.tls).await?;
        let literal = postgres_protocol::escape::escape_literal;
        let definition = literal(shape.raw().get());
        let cursor = cursor.map_or("null".into(), literal);
        let sql = format!(
            "copy (select shapefeed._snapshot({definition}::pg_catalog.jsonb, {position}, {chunk_bytes}, {cursor})) \
             to stdout (format binary)"
        );
        match client.copy_out(&sql).await {
            Ok(stream) => Ok((client, stream)),
            Err(error) => Err(client.end(error.into())),
        }
    }

    async fn one(&self, sql: &str, arguments: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        let mut rows = self.rows(sql, arguments).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(Error::internal(std::io::Error::other(format!(
                "not one row: {sql}"
            )))),
        }
    }

    async fn rows(&self, sql: &str, arguments: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let client = self.ask().await?;
        let rows = async {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, arguments).await
        }
        .await;
        Ok(client.end(rows)?)
    }

    async fn execute(&self, sql: &str) -> Result<(), Error> {
        let client = self.ask().await?;
        let done = client.batch_execute(sql).await;
        Ok(client.end(done)?)
    }
}
/// Puts together what `_log` returns.
async fn read_log(
    client: &deadpool_postgres::Client,
    arguments: [&(dyn ToSql + Sync); 5],
) -> Result<LogChunk, Error> {
    let sql =
        "select position, n, message, last, upto, silent from shapefeed._log($1, $2, $3, $4, $5)";
    let statement = client.prepare_cached(sql).await?;
    let rows = client.query_raw(&statement, arguments).await?;
    let mut rows = std::pin::pin!(rows);
    let mut messages = BytesMut::new();
    let mut chunk = LogChunk {
        messages: Bytes::new(),
        end: None,
        upto: None,
        silent: Vec::new(),
        resting: None,
    };
    while let Some(row) = rows.try_next().await? {
        let Some(message): Option<&str> = row.try_get(2)? else {
            chunk.upto = row.try_get(4)?;
            let silent: Option<Vec<i64>> = row.try_get(5)?;
            chunk.silent = silent.iter().flatten().map(|xid| *xid as u32).collect();
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
#[cfg(test)]
mod tests {
    use super::*;

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
