//! Snapshots: taken once for all who want the same one, kept for a while, bounded in number and bytes. A chunk can be
//! cut anew from (definition, position, cursor) by any sidecar; what is kept here is only a cache.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio_postgres::binary_copy::BinaryCopyOutStream;
use tokio_postgres::types::Type;

use crate::config::Config;
use crate::db::Db;
use crate::definition::Definition;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::params::{Subset, nested};
use crate::spool::{Budget, Chunk, Spool, Writer};
use crate::subset::Metadata;

/// A snapshot that nobody has read from during this time is dropped.
const KEPT: Duration = Duration::from_secs(300);
/// Snapshots that are kept at most.
const MAX_KEPT: usize = 256;
/// How long a request waits for its chunk.
const CHUNK_WAIT: Duration = Duration::from_secs(60);

/// The hash of a definition and a position.
type Key = (u64, i64);

/// The snapshots that are kept here.
#[derive(Clone)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

struct Shared {
    db: Db,
    dir: PathBuf,
    chunk_bytes: i64,
    budget: Arc<Budget>,
    metrics: Metrics,
    // Held for a look-up, never across an await.
    spools: Mutex<HashMap<Key, Vec<Arc<Spool>>>>,
}

impl Snapshots {
    /// No snapshots yet.
    pub fn new(db: Db, config: &Config, metrics: Metrics) -> Self {
        let dir = config.spool_dir.clone().unwrap_or_else(std::env::temp_dir);
        let budget = Budget::new(config.spool_max_bytes);
        let spools = Mutex::default();
        Snapshots {
            shared: Arc::new(Shared {
                db,
                dir,
                chunk_bytes: config.chunk_bytes,
                budget,
                metrics,
                spools,
            }),
        }
    }

    /// The chunk of a snapshot that comes after `cursor`.
    pub async fn chunk(
        &self,
        definition: &Arc<Definition>,
        position: i64,
        cursor: Option<String>,
    ) -> Result<Chunk, Error> {
        let spool = self.spool(definition, position, &cursor);
        let late = |_| Err(Error::unavailable("Snapshot takes long, please retry"));
        tokio::time::timeout(CHUNK_WAIT, spool.chunk(&cursor))
            .await
            .unwrap_or_else(late)
    }

    /// A subset of a shape, read completely: what is known of it and its rows.
    pub async fn subset(
        &self,
        definition: &Definition,
        subset: &Subset,
        queryable: Option<&[String]>,
        mark: i32,
    ) -> Result<(Metadata, Chunk), Error> {
        let shared = &self.shared;
        let (connection, rows) = shared
            .db
            .subset(definition, subset, queryable, mark)
            .await?;
        let mut rows = std::pin::pin!(rows);
        let spool = Spool::new(None, shared.budget.clone());
        let mut writer = Writer::new(spool.clone(), shared.dir.clone());
        let mut metadata = None;
        while let Some(row) = rows.try_next().await? {
            let piece: &[u8] = row.try_get(0)?;
            let Some((tag, body)) = piece.split_first() else {
                continue;
            };
            match tag {
                b'X' => {
                    let errors = serde_json::from_slice(body).map_err(Error::internal)?;
                    return Err(connection.end(Error::Invalid(nested(errors))));
                }
                b'M' => metadata = Some(serde_json::from_slice(body).map_err(Error::internal)?),
                b'D' => {
                    shared.reserve(&spool, body.len() as u64)?;
                    writer.rows(body).await.map_err(Error::internal)?;
                }
                _ => writer.close_chunk(None).await.map_err(Error::internal)?,
            }
        }
        connection.end(());
        let metadata =
            metadata.ok_or_else(|| Error::unavailable("The subset ended early, please retry"))?;
        Ok((metadata, spool.chunk(&None).await?))
    }

    /// Drops what nobody reads.
    pub fn sweep(&self) {
        self.shared.drop_idle(KEPT);
        self.shared
            .metrics
            .spool_bytes
            .set(self.shared.budget.used() as i64);
    }

    fn spool(
        &self,
        definition: &Arc<Definition>,
        position: i64,
        cursor: &Option<String>,
    ) -> Arc<Spool> {
        let key = (definition.hash, position);
        self.shared.bound();
        let mut spools = self.shared.spools.lock().expect("no panic while held");
        let kept = spools.entry(key).or_default();
        if let Some(spool) = kept.iter().find(|spool| spool.covers(cursor)) {
            return spool.clone();
        }
        let spool = Spool::new(cursor.clone(), self.shared.budget.clone());
        kept.push(spool.clone());
        let take = Take {
            shared: self.shared.clone(),
            definition: definition.clone(),
            position,
            cursor: cursor.clone(),
        };
        tokio::spawn(take.run(spool.clone()));
        spool
    }
}

impl Shared {
    /// Drops finished spools that were idle for so long.
    fn drop_idle(&self, idle: Duration) {
        let mut spools = self.spools.lock().expect("no panic while held");
        spools.retain(|_, kept| {
            kept.retain(|spool| spool.idle().is_none_or(|since| since < idle));
            !kept.is_empty()
        });
    }

    /// Takes bytes of the budget, if need be from snapshots that nobody has read from for longest.
    fn reserve(&self, spool: &Spool, bytes: u64) -> Result<(), Error> {
        while !spool.reserve(bytes) {
            if !self.drop_most_idle() {
                return Err(Error::unavailable(
                    "Too many large snapshots at the same time, please retry",
                ));
            }
        }
        Ok(())
    }

    /// Makes room for one more.
    fn bound(&self) {
        let count = || {
            let spools = self.spools.lock().expect("no panic while held");
            spools.values().map(Vec::len).sum::<usize>()
        };
        while count() >= MAX_KEPT && self.drop_most_idle() {}
    }

    fn drop_most_idle(&self) -> bool {
        let mut spools = self.spools.lock().expect("no panic while held");
        let idle = spools
            .values()
            .flatten()
            .filter_map(|spool| Some((spool.idle()?, spool.clone())));
        let Some((_, most_idle)) = idle.max_by_key(|(since, _)| *since) else {
            return false;
        };
        spools
            .values_mut()
            .for_each(|kept| kept.retain(|spool| !Arc::ptr_eq(spool, &most_idle)));
        spools.retain(|_, kept| !kept.is_empty());
        true
    }

    fn remove(&self, key: Key, spool: &Arc<Spool>) {
        let mut spools = self.spools.lock().expect("no panic while held");
        if let Some(kept) = spools.get_mut(&key) {
            kept.retain(|other| !Arc::ptr_eq(other, spool));
        }
    }
}

/// A snapshot being taken.
struct Take {
    shared: Arc<Shared>,
    definition: Arc<Definition>,
    position: i64,
    cursor: Option<String>,
}

impl Take {
    async fn run(self, spool: Arc<Spool>) {
        let began = Instant::now();
        let table = &self.definition.table;
        let result = self.copy(&spool).await;
        let (seconds, metrics) = (began.elapsed().as_secs_f64(), &self.shared.metrics);
        metrics.snapshot(result.as_ref().copied().ok(), seconds);
        match result {
            Ok(bytes) => tracing::debug!(
                table,
                position = self.position,
                bytes,
                seconds,
                "snapshot taken"
            ),
            Err(error) => {
                let cause = error.cause();
                match error {
                    Error::Internal(_) | Error::Unavailable { .. } => {
                        tracing::warn!(table, position = self.position, cause, "snapshot failed");
                    }
                    _ => tracing::debug!(table, position = self.position, cause, "no snapshot"),
                }
                self.shared
                    .remove((self.definition.hash, self.position), &spool);
                spool.fail(error);
            }
        }
    }

    /// Copies into the spool and returns the number of bytes.
    async fn copy(&self, spool: &Arc<Spool>) -> Result<u64, Error> {
        let shared = &self.shared;
        let started = shared.db.snapshot(
            &self.definition,
            self.position,
            shared.chunk_bytes,
            self.cursor.as_deref(),
        );
        let (connection, stream) = started.await?;
        let mut rows = std::pin::pin!(BinaryCopyOutStream::new(stream, &[Type::BYTEA]));
        let mut writer = Writer::new(spool.clone(), shared.dir.clone());
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await.map_err(|error| self.refusal(error))? {
            let piece: &[u8] = row.try_get(0)?;
            let Some((tag, body)) = piece.split_first() else {
                continue;
            };
            match tag {
                b'D' => {
                    bytes += body.len() as u64;
                    shared.reserve(spool, body.len() as u64)?;
                    writer.rows(body).await.map_err(Error::internal)?;
                }
                b'C' => writer
                    .close_chunk(Some(cursor(body)?))
                    .await
                    .map_err(Error::internal)?,
                _ => writer.close_chunk(None).await.map_err(Error::internal)?,
            }
        }
        Ok(connection.end(bytes))
    }

    /// A cursor that does not decode was made for another key: the client starts over.
    fn refusal(&self, error: tokio_postgres::Error) -> Error {
        match error.code() {
            Some(code) if code.code() == "22023" && self.cursor.is_some() => {
                Error::refetch("cursor")
            }
            _ => error.into(),
        }
    }
}

fn cursor(body: &[u8]) -> Result<String, Error> {
    String::from_utf8(body.to_vec()).map_err(Error::internal)
}
