//! What all requests share, and how a request comes to its definition, pin and handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::Value as Json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::behind::{Behind, ToRead};
use crate::compression::Compression;
use crate::config::Config;
use crate::crowd::Crowd;
use crate::db::{Batch, Db, Head, LogChunk, Placed};
use crate::definition::{Definition, Definitions, Untracked};
use crate::error::Error;
use crate::flight::Flights;
use crate::handle::Handle;
use crate::live::{LiveShapes, ToAttach};
use crate::metrics::Metrics;
use crate::offset::Place;
use crate::params::{Caller, FieldErrors, ShapeParams, Source, field_error};
use crate::pin::Pins;
use crate::snapshot::Snapshots;
use crate::token::{Identity, Tokens};
use crate::touches::Touches;
use crate::write::position::{Positions, Wanted};
use crate::write::rate::Rates;

/// Between two looks at something that is about to happen in the database.
pub const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How long a request waits for the first batch end after its table was tracked.
pub const FIRST_PIN: Duration = Duration::from_secs(10);
/// How long a 409 waits for the pin that it names.
const REPLACEMENT: Duration = Duration::from_secs(1);

/// The sidecar. It holds nothing that another sidecar needs.
pub struct App {
    /// Flags.
    pub config: Config,
    /// The database.
    pub db: Db,
    /// Definitions that live requests use.
    pub definitions: Definitions,
    /// Where snapshots are taken.
    pub pins: Pins,
    /// Snapshots that are kept.
    pub snapshots: Snapshots,
    /// Shapes that clients wait for.
    pub live: LiveShapes,
    /// Transactions that touched their tables.
    pub touches: Touches,
    /// Counters.
    pub metrics: Metrics,
    /// When the sidecar was started.
    pub began: Instant,
    /// How many requests are answered at the same time.
    pub admission: Admission,
    /// Those that come all at once.
    pub crowd: Arc<Crowd>,
    /// Who callers are; None if all are the same.
    pub tokens: Option<Tokens>,
    /// How much callers may write.
    pub rates: Rates,
    /// Positions of what was written here.
    pub positions: Positions,
    /// Compressed bodies.
    pub compression: Compression,
    /// Cancelled when the sidecar is told to stop.
    pub shutdown: CancellationToken,
    // What many requests want at the same time is asked once.
    defined: Flights<ShapeParams, Arc<Definition>>,
    resting: AtomicI64,
    newest_head: AtomicI64,
    behind: Behind,
    catch_ups: Flights<(u64, i64, Place), LogChunk>,
    places: Flights<(u64, i64, i64), Placed>,
    newest: Flights<u64, Batch>,
    batches: Flights<i64, Option<Batch>>,
    heads: Flights<(), Head>,
    tracks: Flights<u32, ()>,
}

/// Where the tasks of a sidecar learn what to do.
pub struct Tasks {
    /// Shapes that the feed is to tell of.
    pub to_attach: ToAttach,
    /// What is wanted of requests' past.
    pub to_read: ToRead,
    /// Transactions whose positions are wanted.
    pub to_position: UnboundedReceiver<Wanted>,
}

impl App {
    /// A sidecar that has not connected yet, and where its tasks learn what to do.
    pub fn new(config: Config) -> Result<(Arc<Self>, Tasks), Box<dyn std::error::Error>> {
        let db = Db::new(&config)?;
        let metrics = Metrics::new();
        let snapshots = Snapshots::new(db.clone(), &config, metrics.clone());
        let (live, to_attach) = LiveShapes::new(config.tail_max_bytes);
        let (behind, to_read) = Behind::new();
        let (positions, to_position) = Positions::new();
        let app = App {
            db,
            behind,
            snapshots,
            live,
            touches: Touches::default(),
            metrics,
            admission: Admission::new(&config),
            crowd: Arc::new(Crowd::new()),
            tokens: Tokens::new(&config)?,
            rates: Rates::new(config.write_rate),
            positions,
            compression: Compression::new(config.compression, config.compressed_max_bytes),
            config,
            definitions: Definitions::default(),
            pins: Pins::default(),
            began: Instant::now(),
            shutdown: CancellationToken::new(),
            defined: Flights::default(),
            resting: AtomicI64::new(0),
            newest_head: AtomicI64::new(0),
            catch_ups: Flights::default(),
            places: Flights::default(),
            newest: Flights::default(),
            batches: Flights::default(),
            heads: Flights::default(),
            tracks: Flights::default(),
        };
        let tasks = Tasks {
            to_attach,
            to_read,
            to_position,
        };
        Ok((Arc::new(app), tasks))
    }

    /// Who a request with these headers is made as.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Identity, Error> {
        match &self.tokens {
            Some(tokens) => tokens.identify(headers).await,
            None => Ok(Identity::default()),
        }
    }

    /// Whether clients may ask for such a shape at all.
    pub fn allow(&self, shape: &ShapeParams) -> Result<(), Error> {
        if self.config.named_shapes_only && matches!(shape.source, Source::Table(_)) {
            let text = "can't be asked for, only named shapes can: give shape";
            return Err(Error::Invalid(field_error("table", text)));
        }
        Ok(())
    }

    /// Reads keys that rotate from time to time.
    pub async fn follow_keys(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.follow_keys().await;
        }
    }

    /// The definition as of now, of a table that is tracked.
    pub async fn definition(&self, shape: &ShapeParams) -> Result<Arc<Definition>, Error> {
        if let Some(queryable) = &shape.queryable {
            self.check_queryable(shape, queryable).await?;
        }
        let mut definition = self.define(shape).await?;
        if !definition.tracked {
            for table in &definition.untracked {
                self.track(table).await?;
            }
            definition = self.define(shape).await?;
        }
        Ok(definition)
    }

    /// Whether the table of a caller's shape of all its columns has others by now.
    pub async fn has_other_columns(
        &self,
        definition: &Definition,
        caller: &Caller,
    ) -> Result<bool, Error> {
        let shape = ShapeParams::of_table(definition.relation(), true, caller.clone());
        if let Some(current) = self.definitions.recent(&shape, |_| false) {
            return Ok(!current.has_columns_of(definition));
        }
        match self.define(&shape).await {
            Ok(current) => Ok(!current.has_columns_of(definition)),
            // What is wrong with it the next request is told.
            Err(Error::Invalid(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Columns that may be named must be such that a shape could have just them.
    async fn check_queryable(
        &self,
        shape: &ShapeParams,
        queryable: &[String],
    ) -> Result<(), Error> {
        let shape = ShapeParams {
            columns: Some(queryable.to_vec()),
            condition: None,
            ..shape.clone()
        };
        let result = self.db.define(&shape).await;
        result.map(|_| ()).map_err(|error| match error {
            Error::Invalid(errors) => Error::Invalid(of_queryable(errors)),
            error => error,
        })
    }

    async fn define(&self, shape: &ShapeParams) -> Result<Arc<Definition>, Error> {
        let (db, asked) = (self.db.clone(), shape.clone());
        let changes = self.definitions.changes();
        let define = move || async move {
            let definition = db.define(&asked).await?;
            definition.set_outlived(changes);
            Ok(Arc::new(definition))
        };
        let definition = self.defined.run_later(shape.clone(), define).await?;
        if definition.tracked {
            self.definitions.remember(shape, &definition, changes);
        }
        Ok(definition)
    }

    async fn place(
        &self,
        definition: &Arc<Definition>,
        pin: i64,
        position: i64,
    ) -> Result<Placed, Error> {
        let (db, definition) = (self.db.clone(), definition.clone());
        let key = (definition.hash, pin, position);
        let place = || async move { db.place(&definition, pin, position).await };
        self.places.run_later(key, place).await
    }

    /// The batch of a snapshot.
    pub async fn batch(&self, definition: &Definition, pin: i64) -> Result<Batch, Error> {
        let known = self.pins.current(definition.hash);
        if let Some(batch) = known.filter(|batch| batch.position == pin) {
            return Ok(Batch::clone(&batch));
        }
        let db = self.db.clone();
        let batch = self.batches.run(pin, || async move { db.batch(pin).await });
        batch.await?.ok_or_else(|| Error::refetch("batch"))
    }

    async fn track(&self, table: &Untracked) -> Result<(), Error> {
        let (relid, table) = (table.relid, table.name());
        if !self.config.auto_track {
            let text = format!(
                "Table {table} is not tracked. Its owner can do so: call shapefeed.track('{table}')"
            );
            return Err(Error::Invalid(field_error("table", text)));
        }
        tracing::info!(table, "tracking a table for its first request");
        let db = self.db.clone();
        self.tracks
            .run(relid, || async move { db.track(relid).await })
            .await
    }

    /// The batch end at which this definition's snapshots are taken here.
    pub async fn pin(&self, definition: &Arc<Definition>) -> Result<Arc<Batch>, Error> {
        if let Some(batch) = self.pins.current(definition.hash) {
            let position = batch.position;
            match self.place(definition, position, position).await? {
                Placed::Here => return Ok(batch),
                _ => self.pins.drop_pin(definition.hash, position),
            }
        }
        Ok(self
            .pins
            .renew(definition.hash, self.newest_batch(definition).await?))
    }

    /// The newest batch end at which this shape can be read.
    pub async fn newest_batch(&self, definition: &Arc<Definition>) -> Result<Batch, Error> {
        patiently(Instant::now() + FIRST_PIN, Error::is_passing, || {
            let (db, hash, definition) = (self.db.clone(), definition.hash, definition.clone());
            let pin = || async move { db.pin(&definition).await };
            self.newest.run_later(hash, pin)
        })
        .await
    }

    /// The handle that a client which starts is given: the one that it brings if that is good, never one that it
    /// knows to be void.
    pub async fn first_handle(
        &self,
        definition: &Arc<Definition>,
        brought: Option<Handle>,
        expired: Option<Handle>,
    ) -> Result<Handle, Error> {
        let brought = brought.filter(|it| it.hash == definition.hash && Some(*it) != expired);
        if let Some(handle) = brought
            && self.place(definition, handle.pin, handle.pin).await? == Placed::Here
        {
            return Ok(handle);
        }
        let batch = self.pin(definition).await?;
        Ok(Handle::unlike(
            definition.hash,
            batch.position,
            [expired, None],
        ))
    }

    /// The handle that a 409 names: never the refused one.
    pub async fn replacement(
        &self,
        definition: &Arc<Definition>,
        refused: Option<Handle>,
        expired: Option<Handle>,
    ) -> Option<Handle> {
        let hash = definition.hash;
        match tokio::time::timeout(REPLACEMENT, self.pin(definition)).await {
            Ok(Ok(batch)) => Some(Handle::unlike(hash, batch.position, [refused, expired])),
            // The table is gone, or not readable right now: any other name makes the client start over.
            _ => refused.map(|handle| Handle::unlike(hash, handle.pin, [refused, expired])),
        }
    }

    /// Whether the log of a handle can be read from `position` on, as of now.
    pub async fn check(
        &self,
        definition: &Arc<Definition>,
        pin: i64,
        position: i64,
    ) -> Result<(), Error> {
        match self.place(definition, pin, position).await? {
            Placed::Here => Ok(()),
            Placed::Later => Err(Error::NotYet),
            Placed::Gone(reason) => Err(Error::refetch(reason)),
        }
    }

    /// Where the log ends, for what need not be newer than the request.
    pub async fn recent_head(&self) -> Result<Head, Error> {
        let db = self.db.clone();
        let head = self
            .heads
            .run((), || async move { db.head().await })
            .await?;
        if let Some(resting) = head.resting {
            self.resting.fetch_max(resting, Ordering::Relaxed);
        }
        if let Some(newest) = head.head {
            self.newest_head.fetch_max(newest, Ordering::Relaxed);
        }
        Ok(head)
    }

    /// Where the log ends as of now; asked once for all who ask at the same time.
    async fn head(&self) -> Result<Head, Error> {
        let db = self.db.clone();
        let head = || async move { db.head().await };
        self.heads.run_later((), head).await
    }

    /// The newest pin that a client of this shape can go over to which has seen everything up to `seen`: the one that
    /// others start with here, or the newest resting position. So no handle of a client that stays gets old.
    pub fn pin_seen(&self, hash: u64, seen: i64) -> Option<i64> {
        let current = self.pins.current(hash).map(|batch| batch.position);
        let resting = Some(self.resting.load(Ordering::Relaxed));
        [current, resting]
            .into_iter()
            .flatten()
            .filter(|pin| *pin <= seen)
            .max()
    }

    /// A chunk of the log after `from`, up to the head as it is now, or later; read once for all who are there.
    pub async fn read_log(
        self: &Arc<Self>,
        definition: &Arc<Definition>,
        pin: i64,
        from: Place,
    ) -> Result<LogChunk, Error> {
        // By what was known a moment ago: those who are near read by themselves anyway.
        let known = self.newest_head.load(Ordering::Relaxed);
        if self.is_behind(definition, from, known)
            && let Some(chunk) = self.read_behind(definition, pin, from).await?
        {
            return Ok(chunk);
        }
        let (app, definition) = (self.clone(), definition.clone());
        let key = (definition.hash, pin, from);
        let read = || async move { app.read_log_now(&definition, pin, from).await };
        self.catch_ups.run_later(key, read).await
    }

    /// Whether the log from a place on is read together with others'.
    fn is_behind(&self, definition: &Definition, from: Place, head: i64) -> bool {
        let distance = head.saturating_sub(from.position());
        definition.inner.is_empty() && distance >= self.config.shared_read_behind
    }

    /// Reads the log together with others who are behind; `None` when that cannot be done.
    async fn read_behind(
        &self,
        definition: &Arc<Definition>,
        pin: i64,
        from: Place,
    ) -> Result<Option<LogChunk>, Error> {
        let check = self.check(definition, pin, from.position());
        let (head, ()) = tokio::try_join!(self.head(), check)?;
        let end = head.head.ok_or_else(nothing_sequenced)?;
        let mut chunk = self.behind.read(definition, from, end).await;
        if let Some(chunk) = &mut chunk {
            self.log_was_read(definition, (pin, from), head, chunk);
        }
        Ok(chunk)
    }

    fn log_was_read(
        &self,
        definition: &Definition,
        (pin, from): (i64, Place),
        head: Head,
        chunk: &mut LogChunk,
    ) {
        chunk.resting = head.resting;
        if from == Place::after(pin) {
            let bytes = chunk.messages.len() as u64;
            self.pins.saw_log(definition.hash, pin, bytes);
        }
    }

    async fn read_log_now(
        &self,
        definition: &Arc<Definition>,
        pin: i64,
        from: Place,
    ) -> Result<LogChunk, Error> {
        let (head, ()) =
            tokio::try_join!(self.db.head(), self.check(definition, pin, from.position()))?;
        let end = head.head.ok_or_else(nothing_sequenced)?;
        let mut chunk = self
            .db
            .log(definition, from, end, self.config.chunk_bytes)
            .await?;
        self.log_was_read(definition, (pin, from), head, &mut chunk);
        Ok(chunk)
    }
}

/// Errors of `columns` as those of `queryable_columns`.
fn of_queryable(mut errors: FieldErrors) -> FieldErrors {
    if let Some(Json::Array(texts)) = errors.remove("columns") {
        let text = |text: &Json| {
            let text = text.as_str().unwrap_or_default();
            let text = text.replacen("list of columns", "list of queryable columns", 1);
            text.replacen(
                "The following columns",
                "The following queryable columns",
                1,
            )
        };
        let texts: Vec<String> = texts.iter().map(text).collect();
        errors.insert("queryable_columns".into(), texts.into());
    }
    errors
}

/// The log has no position yet.
pub fn nothing_sequenced() -> Error {
    Error::unavailable("The log is not ready yet, please retry")
}

/// Tries again until `deadline` what fails in a way that may pass.
pub async fn patiently<T, F>(
    deadline: Instant,
    may_pass: impl Fn(&Error) -> bool,
    attempt: impl Fn() -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    loop {
        match attempt().await {
            Err(error) if may_pass(&error) && Instant::now() + LOOK_AGAIN < deadline => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            result => return result,
        }
    }
}
