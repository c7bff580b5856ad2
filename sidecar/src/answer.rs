//! From a request to its answer: the start of a shape, a chunk of its snapshot, its log, or the wait for more of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::app::{App, nothing_sequenced, patiently};
use crate::caching;
use crate::content::Content;
use crate::definition::Definition;
use crate::error::Error;
use crate::handle::Handle;
use crate::hold::{Hold, Outcome};
use crate::offset::{Offset, Place};
use crate::params::{Log, ShapeParams, ShapeRequest};
use crate::protocol;
use crate::response::{Answer, array, brackets};
use crate::tail::Operations;

/// How long a request which starts tries one pin after the other: its shape may be ended again and again meanwhile.
pub const STARTS_FOR: Duration = Duration::from_secs(10);

/// A request on its way to an answer.
pub struct Asked<'a> {
    /// The sidecar.
    pub app: &'a Arc<App>,
    /// What is asked for.
    pub request: &'a ShapeRequest,
    /// `if-none-match`
    pub given: Option<&'a str>,
    /// A HEAD request is never held.
    pub holds: bool,
    /// When its caller's token is good no more.
    pub expires: Option<Instant>,
    /// When it came.
    pub at: Instant,
}

impl Asked<'_> {
    /// When the request is answered in any case.
    pub fn deadline(&self) -> Instant {
        let deadline = if self.holds {
            self.at + self.app.config.hold()
        } else {
            self.at
        };
        self.expires
            .map_or(deadline, |expires| deadline.min(expires))
    }

    /// An error when the caller's token has expired: a client then gets another one and goes on where it was.
    fn require_token(&self) -> Result<(), Error> {
        match self.expires {
            Some(expires) if Instant::now() >= expires => Err(Error::InvalidToken),
            _ => Ok(()),
        }
    }

    /// When a position that is still to come is given up.
    pub fn arrival_deadline(&self) -> Instant {
        if self.holds {
            self.at + self.app.config.hold() / 2
        } else {
            self.at
        }
    }

    /// What it is about.
    pub async fn definition(&self) -> Result<Arc<Definition>, Error> {
        self.define(&self.request.shape).await
    }

    async fn define(&self, shape: &ShapeParams) -> Result<Arc<Definition>, Error> {
        let app = self.app;
        if !self.request.live {
            return Box::pin(app.definition(shape)).await;
        }
        if let Some(definition) = app.definitions.recent(shape, |hash| app.live.watches(hash)) {
            return Ok(definition);
        }
        // A live request outlives a restart of the database.
        let define = || app.definition(shape);
        Box::pin(patiently(self.deadline(), Error::is_passing, define)).await
    }

    /// Shapes without rows of the tables that the request names in `wake`: with them the feed tells of those tables.
    pub async fn others(&self) -> Result<Option<Box<[Arc<Definition>]>>, Error> {
        let Some(tables) = &self.request.wake else {
            return Ok(None);
        };
        let mut others = Vec::with_capacity(tables.len());
        for table in tables {
            let shape =
                ShapeParams::of_table(table.clone(), false, self.request.shape.caller.clone());
            let definition = Box::pin(self.define(&shape)).await;
            others.push(definition.map_err(of_wake)?);
        }
        Ok(Some(others.into()))
    }

    /// The answer. All but the wait is boxed: a held request must not take the room of what it does not do.
    pub async fn answer(&self, definition: &Arc<Definition>) -> Result<Answer, Error> {
        match &self.request.offset {
            Offset::Start => Box::pin(self.initial(definition)).await,
            Offset::Now => Box::pin(self.now(definition)).await,
            Offset::Snapshot(cursor) => {
                let handle = self.handle(definition)?;
                Box::pin(self.next_of_snapshot(definition, handle, cursor)).await
            }
            Offset::SnapshotEnd | Offset::SnapshotInf | Offset::Log(_) => {
                let handle = self.handle(definition)?;
                let from = self
                    .request
                    .offset
                    .place(handle.pin)
                    .expect("an offset in the log");
                if self.request.live {
                    self.live(definition, handle, from).await
                } else {
                    Box::pin(self.catch_up(definition, handle, from)).await
                }
            }
        }
    }

    /// The request's handle, if it is one of this definition.
    pub fn handle(&self, definition: &Definition) -> Result<Handle, Error> {
        let handle = self
            .request
            .handle
            .filter(|handle| handle.hash == definition.hash);
        handle.ok_or_else(|| Error::refetch("handle"))
    }

    /// The handle that a client which starts is given.
    pub async fn first_handle(&self, definition: &Arc<Definition>) -> Result<Handle, Error> {
        self.app
            .first_handle(definition, self.request.handle, self.request.expired)
            .await
    }

    /// The start of a shape. A pin that turns out to be void is replaced: there is no 409 here.
    async fn initial(&self, definition: &Arc<Definition>) -> Result<Answer, Error> {
        if self.request.shape.log == Log::ChangesOnly {
            return self.changes_only(definition).await;
        }
        let mut handle = self.first_handle(definition).await?;
        while self.at.elapsed() < STARTS_FOR {
            match self.snapshot(definition, handle, None).await {
                Err(Error::MustRefetch { .. }) => {
                    self.app.pins.drop_pin(definition.hash, handle.pin);
                    handle = self
                        .app
                        .first_handle(definition, None, Some(handle))
                        .await?;
                }
                result => return result,
            }
        }
        Err(Error::unavailable("The table is changing, please retry"))
    }

    /// The start of a shape without rows: as new as can be, since everything after it is replayed.
    async fn changes_only(&self, definition: &Arc<Definition>) -> Result<Answer, Error> {
        let batch = self.app.newest_batch(definition).await?;
        let handle = Handle::unlike(
            definition.hash,
            batch.position,
            [self.request.expired, None],
        );
        let end = protocol::snapshot_end(batch.xmin, batch.xmax, &batch.xip);
        let body = array(Bytes::new(), Some(end));
        Ok(Answer {
            handle,
            offset: Offset::SnapshotEnd,
            up_to_date: false,
            has_data: true,
            body,
        })
    }

    async fn next_of_snapshot(
        &self,
        definition: &Arc<Definition>,
        handle: Handle,
        cursor: &str,
    ) -> Result<Answer, Error> {
        self.app.check(definition, handle.pin, handle.pin).await?;
        self.snapshot(definition, handle, Some(cursor.to_owned()))
            .await
    }

    /// A chunk of the snapshot; the last one says which transactions it holds.
    async fn snapshot(
        &self,
        definition: &Arc<Definition>,
        handle: Handle,
        cursor: Option<String>,
    ) -> Result<Answer, Error> {
        let chunk = self
            .app
            .snapshots
            .chunk(definition, handle.pin, cursor)
            .await?;
        let (offset, end) = match &chunk.next {
            Some(next) => (Offset::Snapshot(next.clone()), None),
            None => (
                Offset::SnapshotEnd,
                Some(self.snapshot_end(definition, handle.pin).await?),
            ),
        };
        self.app
            .pins
            .saw_snapshot(definition.hash, handle.pin, chunk.total);
        let (before, after) = brackets(chunk.len() == 0, end);
        let (hash, pin, from) = (definition.hash, handle.pin, &self.request.offset);
        let body = Content::snapshot(before, chunk, after)
            .known_as(format!("{hash}-{pin}:{from}:{offset}"));
        Ok(Answer {
            handle,
            offset,
            up_to_date: false,
            has_data: true,
            body,
        })
    }

    async fn snapshot_end(&self, definition: &Definition, pin: i64) -> Result<String, Error> {
        let batch = self.app.batch(definition, pin).await?;
        Ok(protocol::snapshot_end(batch.xmin, batch.xmax, &batch.xip))
    }

    /// Nothing but where the log ends.
    async fn now(&self, definition: &Arc<Definition>) -> Result<Answer, Error> {
        let handle = self.first_handle(definition).await?;
        let head = self
            .app
            .db
            .head()
            .await?
            .head
            .ok_or_else(nothing_sequenced)?;
        let body = array(Bytes::new(), Some(protocol::up_to_date(head, &[])));
        let offset = Offset::Log(Place::after(head));
        Ok(Answer {
            handle,
            offset,
            up_to_date: true,
            has_data: false,
            body,
        })
    }

    /// The log from a place on, up to the head as it was when the request came, or later.
    async fn catch_up(
        &self,
        definition: &Arc<Definition>,
        handle: Handle,
        from: Place,
    ) -> Result<Answer, Error> {
        let read = || self.app.read_log(definition, handle.pin, from);
        let is_to_come = |error: &Error| matches!(error, Error::NotYet);
        let chunk = patiently(self.arrival_deadline(), is_to_come, read).await?;
        self.app.crowd.step().await;
        match (chunk.end, chunk.upto) {
            (Some(end), upto) => {
                let operations = Operations::new(chunk.messages, end, upto.is_none());
                operations.silent(|| chunk.silent);
                Ok(self.news(definition, handle, &operations, upto))
            }
            (None, upto) => {
                let upto = upto.unwrap_or(from.position());
                Ok(Answer {
                    has_data: true,
                    ..self.idle(
                        definition,
                        handle,
                        from,
                        (upto, &chunk.silent),
                        chunk.resting,
                    )
                })
            }
        }
    }

    /// The log from a place on, or the wait for it.
    async fn live(
        &self,
        definition: &Arc<Definition>,
        handle: Handle,
        from: Place,
    ) -> Result<Answer, Error> {
        let idle_etag = || caching::etag(handle, &self.request.offset, &self.request.offset);
        let known = self
            .given
            .is_some_and(|given| caching::none_match(given, &idle_etag()));
        let deadline = if known { self.at } else { self.deadline() };
        let others = self.others().await?;
        let hold = Hold {
            app: self.app,
            definition,
            caller: &self.request.shape.caller,
            pin: handle.pin,
            deadline,
            arrival_deadline: self.arrival_deadline(),
            wake: others.as_deref(),
        };
        let _wakeful = hold.wake.map(|_| self.app.metrics.wakeful());
        let _held = self.app.metrics.held();
        match hold.wait(from).await? {
            Outcome::News(operations) => {
                // Deterministic: all who get these operations get the same bytes.
                let last_seen = (!operations.closed).then_some(operations.end.position());
                Ok(self.news(definition, handle, &operations, last_seen))
            }
            Outcome::Idle(evaluated, silent) => {
                self.require_token()?;
                let resting = self.resting().await;
                Ok(self.idle(definition, handle, from, (evaluated, &silent), resting))
            }
        }
    }

    /// Operations, and up to date if `last_seen` says how far.
    fn news(
        &self,
        definition: &Definition,
        handle: Handle,
        operations: &Operations,
        last_seen: Option<i64>,
    ) -> Answer {
        // The log is a function of the change table: these operations are the same for all who are there.
        let (hash, pin, from) = (definition.hash, handle.pin, &self.request.offset);
        let end = operations.end;
        let body = operations.array(last_seen, || format!("{hash}-{pin}:{from}:{end}"));
        let handle = last_seen.map_or(handle, |seen| {
            self.handle_at_the_end(definition, handle, seen)
        });
        Answer {
            handle,
            offset: Offset::Log(end),
            up_to_date: last_seen.is_some(),
            has_data: true,
            body,
        }
    }

    /// The newest resting position, if that is known.
    pub async fn resting(&self) -> Option<i64> {
        let head = Box::pin(self.app.recent_head()).await;
        head.ok().and_then(|head| head.resting)
    }

    /// Nothing happened up to `evaluated`. The offset moves on to the newest resting position, the same one for all
    /// clients, so that none of them is left behind by retention.
    pub fn idle(
        &self,
        definition: &Definition,
        handle: Handle,
        from: Place,
        (evaluated, silent): (i64, &[u32]),
        resting: Option<i64>,
    ) -> Answer {
        // A client that is woken goes on behind what woke it.
        let resting = if self.request.wake.is_some() {
            Some(evaluated)
        } else {
            resting
        };
        let from_position = from.position().max(handle.pin);
        let offset = match resting {
            Some(resting) if resting > from_position && resting <= evaluated => {
                Offset::Log(Place::after(resting))
            }
            _ => self.request.offset.clone(),
        };
        let handle = self.handle_at_the_end(definition, handle, evaluated);
        let body = array(Bytes::new(), Some(protocol::up_to_date(evaluated, silent)));
        Answer {
            handle,
            offset,
            up_to_date: true,
            has_data: false,
            body,
        }
    }

    /// The handle for a client that has reached the end of the log: as new as can be, and the one that all others here
    /// have, so that caches can serve them together.
    fn handle_at_the_end(&self, definition: &Definition, handle: Handle, seen: i64) -> Handle {
        match self.app.pin_seen(definition.hash, seen) {
            Some(pin) if handle.pin < pin => {
                Handle::unlike(definition.hash, pin, [self.request.expired, None])
            }
            _ => handle,
        }
    }
}

/// Errors of a table that `wake` names.
fn of_wake(error: Error) -> Error {
    match error {
        Error::Invalid(mut errors) => {
            let texts = errors.remove("table");
            errors.extend(texts.map(|texts| ("wake".to_owned(), texts)));
            Error::Invalid(errors)
        }
        error => error,
    }
}
