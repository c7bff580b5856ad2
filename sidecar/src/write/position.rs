//! Positions of transactions that were written here: a moment after the commit the database gives them, and all that wait for
//! one are answered by one question.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio_postgres::{Client, Statement};

use crate::app::App;
use crate::db::{positions, prepare_positions, prepare_wait, wait};
use crate::error::Error;

/// How long one call sleeps.
const WAIT: Duration = Duration::from_millis(500);
/// Before a lost connection is made again.
const BACKOFF: Duration = Duration::from_millis(250);

/// Who wants the position of a transaction, by its id.
pub struct Wanted {
    xid: u64,
    answer: oneshot::Sender<i64>,
}

/// Where positions are asked for.
#[derive(Clone)]
pub struct Positions(UnboundedSender<Wanted>);

impl Positions {
    /// With the other end, for [`run`].
    pub fn new() -> (Self, UnboundedReceiver<Wanted>) {
        let (sender, receiver) = unbounded_channel();
        (Positions(sender), receiver)
    }

    /// The position of a committed transaction; None if it has none in time.
    pub async fn of(&self, xid: u64, within: Duration) -> Option<i64> {
        let (answer, position) = oneshot::channel();
        self.0.send(Wanted { xid, answer }).ok()?;
        tokio::time::timeout(within, position).await.ok()?.ok()
    }
}

/// Answers for as long as the sidecar runs.
pub async fn run(app: Arc<App>, mut wanted: UnboundedReceiver<Wanted>) {
    let mut waiting = HashMap::new();
    while let Some(first) = wanted.recv().await {
        add(&mut waiting, first);
        while let Err(error) = answer_all(&app, &mut wanted, &mut waiting).await {
            tracing::warn!(cause = error.cause(), "positions cannot be asked for");
            tokio::time::sleep(BACKOFF).await;
        }
    }
}

type Waiting = HashMap<u64, Vec<oneshot::Sender<i64>>>;

fn add(waiting: &mut Waiting, Wanted { xid, answer }: Wanted) {
    waiting.entry(xid).or_default().push(answer);
}

/// Answers until an error.
async fn answer_all(
    app: &App,
    wanted: &mut UnboundedReceiver<Wanted>,
    waiting: &mut Waiting,
) -> Result<(), Error> {
    let client = app.db.connect().await?;
    let (sleep, ask) = (
        prepare_wait(&client).await?,
        prepare_positions(&client).await?,
    );
    loop {
        while let Ok(more) = wanted.try_recv() {
            add(waiting, more);
        }
        let head = answer(&client, &ask, waiting).await?;
        if waiting.is_empty() {
            match wanted.recv().await {
                Some(more) => add(waiting, more),
                None => return Ok(()),
            }
        } else {
            wait(&client, &sleep, head, WAIT).await?;
        }
    }
}

/// Answers those whose transactions have positions by now. Returns where the log ended: what comes later ends the sleep.
async fn answer(client: &Client, ask: &Statement, waiting: &mut Waiting) -> Result<i64, Error> {
    waiting.retain(|_, answers| answers.iter().any(|answer| !answer.is_closed()));
    if waiting.is_empty() {
        return Ok(0);
    }
    let xids: Vec<u64> = waiting.keys().copied().collect();
    let (found, head) = positions(client, ask, &xids).await?;
    for (xid, position) in found {
        for answer in waiting.remove(&xid).unwrap_or_default() {
            // Who asked may have gone.
            let _ = answer.send(position);
        }
    }
    Ok(head)
}
