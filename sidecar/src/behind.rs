//! Requests that are far behind: one pass over the log for all of them, by the feed of a session that lasts as long as the
//! pass. A request that comes meanwhile for a shape and a place that are being read joins in; others wait for the next
//! pass. What the pass cannot do (an error, a shape that ends, too much to keep) each request does by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Statement};

use crate::app::App;
use crate::db::{self, FeedRow, LogChunk};
use crate::definition::Definition;
use crate::error::Error;
use crate::offset::Place;
use crate::protocol::SEPARATOR;
use crate::touches::Touches;

/// Clients that come back do so together: a pass begins when none came for a moment, but soon.
const GATHER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// A request that no pass has begun for by then reads by itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes after which one read of the feed stops, at the end of a transaction.
const READ_BYTES: i64 = 4 << 20;

/// Where requests that are behind go.
pub struct Behind {
    wanted: UnboundedSender<Wanted>,
}

/// What is wanted.
pub type ToRead = UnboundedReceiver<Wanted>;

/// A stretch of a shape's log that a request waits for.
pub struct Wanted {
    definition: Arc<Definition>,
    from: Place,
    /// At least up to this position.
    upto: i64,
    since: Instant,
    answer: oneshot::Sender<LogChunk>,
}

impl Behind {
    /// A way to ask, and where the questions arrive.
    pub fn new() -> (Self, ToRead) {
        let (wanted, to_read) = unbounded_channel();
        (Behind { wanted }, to_read)
    }

    /// A chunk of a shape's log after `from`, evaluated up to `upto` at least; `None` when it has to be read by itself.
    pub async fn read(
        &self,
        definition: &Arc<Definition>,
        from: Place,
        upto: i64,
    ) -> Option<LogChunk> {
        let (answer, answered) = oneshot::channel();
        let wanted = Wanted {
            definition: definition.clone(),
            from,
            upto,
            since: Instant::now(),
            answer,
        };
        self.wanted.send(wanted).ok()?;
        answered.await.ok()
    }
}

/// Makes passes for as long as the sidecar runs.
pub async fn run(app: Arc<App>, mut to_read: ToRead) {
    let mut next = Vec::new();
    loop {
        if next.is_empty() {
            let Some(first) = to_read.recv().await else {
                return;
            };
            next.push(first);
        }
        gather(&mut to_read, &mut next).await;
        let mut pass = Pass::new(&app);
        next.drain(..).for_each(|wanted| pass.add(wanted));
        if let Err(error) = pass.run(&mut to_read, &mut next).await {
            tracing::debug!(cause = error.cause(), "a pass over the log has failed");
        }
    }
}

async fn gather(to_read: &mut ToRead, next: &mut Vec<Wanted>) {
    let began = Instant::now();
    while began.elapsed() < GATHER.1 {
        match timeout(GATHER.0, to_read.recv()).await {
            Ok(Some(wanted)) => next.push(wanted),
            _ => return,
        }
    }
}

/// A shape and those who read it.
struct Shape {
    definition: Arc<Definition>,
    readers: Vec<Reader>,
}

/// All who are at the same place of a shape, and what there is for them.
struct Reader {
    from: Place,
    upto: i64,
    answers: Vec<oneshot::Sender<LogChunk>>,
    messages: BytesMut,
    /// Bytes of the messages without what separates them.
    size: i64,
    end: Option<Place>,
    /// Positions of the operations, ascending.
    positions: Vec<i64>,
}

impl Reader {
    fn new(wanted: Wanted) -> Self {
        Reader {
            from: wanted.from,
            upto: wanted.upto,
            answers: vec![wanted.answer],
            messages: BytesMut::new(),
            size: 0,
            end: None,
            positions: Vec::new(),
        }
    }

    /// The position after which it must be read: the rest of a transaction comes with all of it.
    fn begins(&self) -> i64 {
        self.from.position() - i64::from(self.from.n() > 0)
    }

    /// Takes an operation; false when the chunk is full: this one is the next one's.
    fn take(&mut self, (position, n): (i64, i64), message: &str, last: bool, most: i64) -> bool {
        if Place::new(position, n) <= self.from {
            return true;
        }
        if self.size >= most {
            return false;
        }
        if !self.messages.is_empty() {
            self.messages.put_slice(SEPARATOR);
        }
        self.messages.put_slice(message.as_bytes());
        self.size += message.len() as i64;
        let end = match last {
            true => Place::after(position),
            false => Place::new(position, n),
        };
        self.end = Some(end);
        if self.positions.last() != Some(&position) {
            self.positions.push(position);
        }
        true
    }

    /// Answers all who wait. `upto`: there is nothing more up to there; without it, the chunk is full.
    fn answer(self, relid: u32, touches: &Touches, upto: Option<i64>) {
        let after = self.from.position();
        let end = upto.or(self.end.map(|end| end.position()));
        let silent = touches.between([relid], after, end.unwrap_or(after), &self.positions);
        let chunk = LogChunk {
            messages: self.messages.freeze(),
            end: self.end,
            upto,
            silent,
            resting: None,
        };
        for answer in self.answers {
            // Whoever has gone away does not need it.
            let _ = answer.send(chunk.clone());
        }
    }
}

/// One pass.
struct Pass<'a> {
    app: &'a App,
    /// By their numbers in the feed.
    shapes: HashMap<i32, Shape>,
    numbers: HashMap<u64, i32>,
    touches: Touches,
    /// Shapes that nobody reads any more.
    done: Vec<i32>,
}

impl<'a> Pass<'a> {
    fn new(app: &'a App) -> Self {
        Pass {
            app,
            shapes: HashMap::new(),
            numbers: HashMap::new(),
            touches: Touches::default(),
            done: Vec::new(),
        }
    }

    /// Adds a request before the pass begins.
    fn add(&mut self, wanted: Wanted) {
        let Some(wanted) = self.join(wanted) else {
            return;
        };
        let number = self.numbers.len() as i32;
        let number = *self.numbers.entry(wanted.definition.hash).or_insert(number);
        let shape = self.shapes.entry(number).or_insert_with(|| Shape {
            definition: wanted.definition.clone(),
            readers: Vec::new(),
        });
        shape.readers.push(Reader::new(wanted));
    }

    /// Has a request join those who are at its place, or gives it back.
    fn join(&mut self, wanted: Wanted) -> Option<Wanted> {
        let number = self.numbers.get(&wanted.definition.hash);
        let shape = number.and_then(|number| self.shapes.get_mut(number));
        let mut readers = shape.into_iter().flat_map(|shape| &mut shape.readers);
        let Some(reader) = readers.find(|reader| reader.from == wanted.from) else {
            return Some(wanted);
        };
        reader.upto = reader.upto.max(wanted.upto);
        reader.answers.push(wanted.answer);
        None
    }

    async fn run(mut self, to_read: &mut ToRead, next: &mut Vec<Wanted>) -> Result<(), Error> {
        let client = self.app.db.connect().await?;
        let statement = db::prepare_feed(&client).await?;
        let shapes = self.shapes.iter();
        let attached: Vec<_> = shapes
            .map(|(number, shape)| (*number, &*shape.definition))
            .collect();
        let readers = self.shapes.values().flat_map(|shape| &shape.readers);
        let Some(start) = readers.map(Reader::begins).min() else {
            return Ok(());
        };
        db::attach_at(&client, &attached, start).await?;
        self.app.metrics.shared_passes.inc();
        while !self.shapes.is_empty() {
            let upto = self.read(&client, &statement).await?;
            while let Ok(wanted) = to_read.try_recv() {
                next.extend(self.join(wanted));
            }
            next.retain(|wanted| wanted.since.elapsed() < PATIENCE);
            self.settle(upto);
            if !self.done.is_empty() {
                db::detach(&client, &std::mem::take(&mut self.done)).await?;
            }
        }
        Ok(())
    }

    /// Reads on; returns how far it came.
    async fn read(&mut self, client: &Client, statement: &Statement) -> Result<i64, Error> {
        let mut upto = 0;
        db::feed(client, statement, READ_BYTES, |row| match row {
            FeedRow::Operation {
                ids,
                position,
                n,
                message,
                last,
            } => {
                for id in ids {
                    self.operation(id, (position, n), message, last);
                }
            }
            FeedRow::Touch {
                relids,
                position,
                xid,
            } => {
                for relid in relids {
                    self.touches.add(relid as u32, position, xid);
                }
            }
            // Those who wait for one of these are told when they read by themselves.
            FeedRow::End { ids, .. } | FeedRow::Skip { ids, .. } => {
                ids.iter().for_each(|id| drop(self.shapes.remove(id)));
            }
            FeedRow::Changed { .. } => {}
            FeedRow::Upto(position) => upto = position,
        })
        .await?;
        Ok(upto)
    }

    fn operation(&mut self, id: i32, at: (i64, i64), message: &str, last: bool) {
        let Some(shape) = self.shapes.get_mut(&id) else {
            return;
        };
        let (most, relid) = (self.app.config.chunk_bytes, shape.definition.relid);
        let full = |reader: &mut Reader| !reader.take(at, message, last, most);
        for reader in shape.readers.extract_if(.., full) {
            reader.answer(relid, &self.touches, None);
        }
    }

    /// Answers those for whom the pass has come far enough, and lets go of those who are not there any more or need too
    /// much.
    fn settle(&mut self, upto: i64) {
        for shape in self.shapes.values_mut() {
            let relid = shape.definition.relid;
            for reader in &mut shape.readers {
                reader.answers.retain(|answer| !answer.is_closed());
            }
            shape.readers.retain(|reader| !reader.answers.is_empty());
            for reader in shape.readers.extract_if(.., |reader| reader.upto <= upto) {
                reader.answer(relid, &self.touches, Some(upto));
            }
        }
        self.bound();
        let done = self.shapes.extract_if(|_, shape| shape.readers.is_empty());
        self.done.extend(done.map(|(number, _)| number));
    }

    /// Lets go of those with most to keep until the rest is within bounds.
    fn bound(&mut self) {
        let kept = |shape: &Shape| -> usize {
            let messages = shape.readers.iter().map(|reader| reader.messages.len());
            messages.sum()
        };
        let mut sum: usize = self.shapes.values().map(kept).sum();
        while sum > self.app.config.tail_max_bytes {
            let most = self.shapes.values_mut().max_by_key(|shape| kept(shape));
            let Some(shape) = most else { return };
            sum -= kept(shape);
            shape.readers.clear();
        }
    }
}
