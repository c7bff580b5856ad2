//! The feed: one session of the database that reports the operations of all live shapes, woken by another that
//! sleeps until the log has grown. When they are lost, both are made again and all shapes attached anew; requests
//! behind the new start read what they missed from the log.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::sleep_until;
use tokio_postgres::{Client, Statement};

use crate::app::App;
use crate::db::{self, FeedRow};
use crate::definition::Definition;
use crate::error::Error;
use crate::live::{LiveShape, ToAttach};
use crate::params::field_error;

/// How long one call sleeps, at the end of which rights and policies are looked at again; also how soon a silently lost
/// connection shows.
const WAIT: Duration = Duration::from_millis(500);
/// The call must have come back by then.
const WAIT_LIMIT: Duration = Duration::from_secs(15);
/// The least time between the beginnings of two reads that found something: each has its price, whatever it finds, and
/// when transactions come fast they share it. One that comes after a pause is not kept waiting.
const LEAST_BETWEEN: Duration = Duration::from_millis(5);
/// How long the feed waits for a table that somebody has locked: shapes on others wait, too.
const LOCK_TIMEOUT: Duration = Duration::from_millis(50);
/// Bytes after which one read of the feed stops, at the end of a transaction.
const READ_BYTES: i64 = 4 << 20;
/// How often idle shapes are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// Pause before a lost session is made again: first and longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The owner of both sessions.
pub struct Feed {
    app: Arc<App>,
    to_attach: ToAttach,
    shapes: HashMap<i32, Arc<LiveShape>>,
    /// Bytes that went into tails since these were trimmed.
    pushed: usize,
}

/// The sessions while they last.
struct Session {
    feed: Client,
    statement: Statement,
    sleeper: Arc<(Client, Statement)>,
    /// Position up to which everything was reported.
    evaluated: i64,
    /// No further read before this.
    rests_until: Instant,
}

impl Feed {
    /// A feed that learns from `to_attach` of shapes.
    pub fn new(app: Arc<App>, to_attach: ToAttach) -> Self {
        Feed {
            app,
            to_attach,
            shapes: HashMap::new(),
            pushed: 0,
        }
    }

    /// Runs for as long as the sidecar does.
    pub async fn run(mut self) {
        let mut pause = BACKOFF.0;
        loop {
            let began = Instant::now();
            let Err(error) = self.session().await;
            self.app.metrics.feed_connected.set(0);
            self.shapes.values().for_each(|shape| shape.set_attaching());
            // What changes now, nobody tells.
            self.app.definitions.forget(|_| true);
            if began.elapsed() > BACKOFF.1 {
                pause = BACKOFF.0;
            }
            tracing::warn!(
                cause = error.cause(),
                live_shapes = self.shapes.len(),
                "feed lost, connecting again"
            );
            self.app.metrics.reconnects.inc();
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn session(&mut self) -> Result<std::convert::Infallible, Error> {
        let mut session = Session::open(&self.app).await?;
        let all = self.shapes.values().cloned().collect();
        self.attach(&mut session, all).await?;
        self.app.metrics.feed_connected.set(1);
        tracing::info!(live_shapes = self.shapes.len(), "feed connected");
        let mut sweep = tokio::time::interval(SWEEP);
        let mut asleep: Option<BoxFuture<'static, Result<(), Error>>> = None;
        loop {
            if asleep.is_none() && !self.shapes.is_empty() {
                asleep = Some(session.sleep());
            }
            let woken = async {
                match asleep.as_mut() {
                    Some(sleep) => sleep.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = woken => {
                    asleep = None;
                    result?;
                    self.read(&mut session).await?;
                }
                Some(first) = self.to_attach.recv() => {
                    let mut shapes = vec![first];
                    while let Ok(shape) = self.to_attach.try_recv() {
                        shapes.push(shape);
                    }
                    self.attach(&mut session, shapes).await?;
                }
                _ = sweep.tick() => self.sweep(&session).await?,
            }
        }
    }

    /// Attaches shapes together, or if one of them cannot be, each by itself.
    async fn attach(
        &mut self,
        session: &mut Session,
        shapes: Vec<Arc<LiveShape>>,
    ) -> Result<(), Error> {
        if shapes.is_empty() {
            return Ok(());
        }
        // Known before the database is asked, so that a lost session does not lose them.
        self.shapes
            .extend(shapes.iter().map(|shape| (shape.id, shape.clone())));
        match session.attach(&shapes).await {
            Ok(position) => self.attached(session, &shapes, position),
            Err(error) if session.is_lost(&error) => return Err(error),
            Err(_) => self.attach_each(session, shapes).await?,
        }
        self.app
            .metrics
            .attached_shapes
            .set(self.shapes.len() as i64);
        Ok(())
    }

    /// Attaches each by itself; of those on a locked table only the first one is tried.
    async fn attach_each(
        &mut self,
        session: &mut Session,
        shapes: Vec<Arc<LiveShape>>,
    ) -> Result<(), Error> {
        let mut locked = HashMap::new();
        for shape in shapes {
            let table = shape.definition.relid;
            if let Some(error) = locked.get(&table) {
                self.failed(&shape, Error::clone(error));
                continue;
            }
            match session.attach(std::slice::from_ref(&shape)).await {
                Ok(position) => self.attached(session, &[shape], position),
                Err(error) if session.is_lost(&error) => return Err(error),
                Err(error) => {
                    self.failed(&shape, error.clone());
                    if error.is_passing() {
                        locked.insert(table, error);
                    }
                }
            }
        }
        Ok(())
    }

    fn attached(&self, session: &mut Session, shapes: &[Arc<LiveShape>], position: i64) {
        if shapes.len() == self.shapes.len() {
            session.evaluated = position;
            self.app.live.set_evaluated(position);
        }
        let share = self.app.live.tail_share(self.shapes.len());
        shapes
            .iter()
            .for_each(|shape| shape.set_attached(position, share));
    }

    fn failed(&mut self, shape: &Arc<LiveShape>, error: Error) {
        tracing::warn!(
            table = shape.definition.table,
            cause = error.cause(),
            "shape cannot be attached"
        );
        self.shapes.remove(&shape.id);
        self.app.live.remove(shape);
        let hash = shape.definition.hash;
        self.app.definitions.forget(|it| it.hash == hash);
        shape.fail(error);
    }

    /// Hands out what the log has grown by.
    async fn read(&mut self, session: &mut Session) -> Result<(), Error> {
        let began = Instant::now();
        let (app, shapes) = (&self.app, &self.shapes);
        let (mut ended, mut over) = (Vec::new(), HashSet::new());
        let (mut upto, mut pushed) = (session.evaluated, 0);
        let (mut touched, mut changed) = (HashSet::new(), HashSet::new());
        db::feed(
            &session.feed,
            &session.statement,
            READ_BYTES,
            |row| match row {
                FeedRow::Operation {
                    ids,
                    position,
                    n,
                    message,
                    last,
                } => {
                    let message = Bytes::copy_from_slice(message.as_bytes());
                    for shape in ids.iter().filter_map(|id| shapes.get(id)) {
                        app.pins
                            .log_grew(shape.definition.hash, message.len() as u64);
                        shape.push(position, n, message.clone(), last);
                        pushed += message.len();
                    }
                    app.metrics.operations.inc();
                }
                FeedRow::Touch {
                    relids,
                    position,
                    xid,
                } => {
                    for relid in relids {
                        app.touches.add(relid as u32, position, xid);
                        touched.insert(relid as u32);
                    }
                }
                FeedRow::Changed { relids } => {
                    changed.extend(relids.iter().map(|relid| *relid as u32));
                }
                FeedRow::Skip { ids, position } => {
                    for shape in ids.iter().filter_map(|id| shapes.get(id)) {
                        shape.skip(position);
                    }
                    app.metrics.skipped.inc();
                }
                FeedRow::End {
                    ids,
                    position,
                    reason,
                    clause,
                } => {
                    let error = if clause {
                        Error::Invalid(field_error("where", reason))
                    } else {
                        Error::refetch(reason)
                    };
                    for shape in ids.iter().filter_map(|id| shapes.get(id)) {
                        tracing::info!(
                            table = shape.definition.table,
                            position,
                            reason,
                            "shape ended"
                        );
                        app.pins.drop_pin(shape.definition.hash, position);
                        ended.push(shape.id);
                        over.insert(shape.definition.hash);
                        app.live.remove(shape);
                        shape.end(position, error.clone());
                    }
                }
                FeedRow::Upto(position) => upto = position,
            },
        )
        .await?;
        if !over.is_empty() || !changed.is_empty() {
            app.definitions
                .forget(|it| over.contains(&it.hash) || changed.contains(&it.relid));
            let changes = app.definitions.changes();
            let altered = |shape: &&Arc<LiveShape>| changed.contains(&shape.definition.relid);
            shapes
                .values()
                .filter(altered)
                .for_each(|it| it.alter(changes));
        }
        if upto > session.evaluated {
            session.rests_until = began + LEAST_BETWEEN;
        }
        session.evaluated = upto;
        app.live.set_evaluated(upto);
        app.live.set_watched(began);
        if app.metrics.wakeful.get() > 0 {
            let touched = |shape: &&Arc<LiveShape>| {
                let mut relids = shape.definition.relids();
                relids.any(|relid| touched.contains(&relid))
            };
            shapes.values().filter(touched).for_each(|it| it.wake());
        }
        app.metrics
            .feed_seconds
            .observe(began.elapsed().as_secs_f64());
        self.pushed += pushed;
        if self.pushed > self.app.config.tail_max_bytes {
            self.trim();
        }
        self.detach(session, &ended).await
    }

    /// Detaches shapes that nobody waits for, and bounds what the others keep.
    async fn sweep(&mut self, session: &Session) -> Result<(), Error> {
        let idle = |shape: &&Arc<LiveShape>| self.app.live.remove_if_idle(shape);
        let ids: Vec<i32> = self
            .shapes
            .values()
            .filter(idle)
            .map(|shape| shape.id)
            .collect();
        self.detach(session, &ids).await?;
        self.trim();
        Ok(())
    }

    /// Bounds what the tails keep.
    fn trim(&mut self) {
        let held = self.app.live.trim(self.shapes.values());
        self.app.metrics.tail_bytes.set(held as i64);
        self.pushed = 0;
    }

    async fn detach(&mut self, session: &Session, ids: &[i32]) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        ids.iter().for_each(|id| drop(self.shapes.remove(id)));
        self.app
            .metrics
            .attached_shapes
            .set(self.shapes.len() as i64);
        db::detach(&session.feed, ids).await
    }
}

impl Session {
    async fn open(app: &App) -> Result<Self, Error> {
        let (feed, sleeper) = tokio::try_join!(app.db.connect(), app.db.connect())?;
        db::refuse_pooler(&feed, &sleeper).await?;
        let lock_timeout = LOCK_TIMEOUT.as_millis();
        feed.batch_execute(&format!(
            "set default_transaction_read_only = on; set lock_timeout = {lock_timeout}"
        ))
        .await?;
        let statement = db::prepare_feed(&feed).await?;
        let waiting = db::prepare_wait(&sleeper).await?;
        Ok(Session {
            feed,
            statement,
            sleeper: Arc::new((sleeper, waiting)),
            evaluated: 0,
            rests_until: Instant::now(),
        })
    }

    /// Completes when the log has grown, or after a while.
    fn sleep(&self) -> BoxFuture<'static, Result<(), Error>> {
        let (sleeper, after) = (self.sleeper.clone(), self.evaluated);
        let rests_until = self.rests_until.into();
        let lost = Error::unavailable("the waiting session does not answer");
        async move {
            sleep_until(rests_until).await;
            let (client, statement) = &*sleeper;
            tokio::time::timeout(WAIT_LIMIT, db::wait(client, statement, after, WAIT))
                .await
                .unwrap_or(Err(lost))
        }
        .boxed()
    }

    /// Nothing can be done in it any more: it has ended, or an error has taken the shapes that it had.
    fn is_lost(&self, error: &Error) -> bool {
        self.feed.is_closed() || error.sqlstate() == Some("SF410")
    }

    async fn attach(&self, shapes: &[Arc<LiveShape>]) -> Result<i64, Error> {
        let shapes: Vec<(i32, &Definition)> = shapes
            .iter()
            .map(|shape| (shape.id, shape.definition.as_ref()))
            .collect();
        db::attach(&self.feed, &shapes).await
    }
}
