//! Live shapes: those that clients wait for, each with the tail of its log. The feed (`feed.rs`) fills the tails,
//! requests wait on them (`hold.rs`).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::definition::{Definition, TRUSTED_FOR};
use crate::error::Error;
use crate::offset::Place;
use crate::tail::{Operations, Read, Tail};

/// A shape that no request waited for during this time is detached.
const IDLE: Duration = Duration::from_secs(60);
/// Bounds of the tail of one shape, whatever its share of all tails.
const TAIL_BYTES: std::ops::RangeInclusive<usize> = 256 << 10..=16 << 20;

/// A shape that is, or is about to be, attached to the feed.
#[derive(Debug)]
pub struct LiveShape {
    /// Its number in the feed.
    pub id: i32,
    /// What it is.
    pub definition: Arc<Definition>,
    // Held for short reads and writes of memory, never across an await.
    state: Mutex<State>,
    changed: Notify,
    /// `Definitions::changes` after the feed has told that the table may be another.
    altered: AtomicU64,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    tail: Tail,
    /// Counts attachments: what was checked under one is not known under the next.
    attachment: u64,
    /// Pins known to be good since the shape was attached; the feed tells when that ends.
    placed: HashSet<i64>,
    requests: usize,
    idle_since: Instant,
}

#[derive(Clone, Debug)]
enum Phase {
    /// The feed will attach it.
    Attaching,
    /// The feed reports everything after this position.
    Attached(i64),
    /// It is over.
    Ended { position: i64, error: Error },
    /// The feed cannot have it.
    Failed(Error),
}

/// So many pins of a shape are known to be good at the same time.
const MOST_PLACED: usize = 1000;

/// What a shape has for a request.
#[derive(Debug)]
pub enum Seen {
    /// Not attached yet: only the database knows.
    Attaching,
    /// The place is before the tail: the database knows.
    Behind,
    /// The pin or place was never checked under this attachment.
    Unchecked(u64),
    /// Nothing after the place, up to this position.
    Nothing(i64),
    /// Operations after the place.
    Operations(Operations),
    /// Ended at a position.
    Ended(i64, Error),
    /// Cannot be attached.
    Failed(Error),
}

impl LiveShape {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Completes when the shape changes. To lose no change, enable it before looking.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// What there is after `from` for a handle with this pin. `checked`: the attachment under which the request has
    /// had its place checked; `evaluated`: how far the feed is.
    pub fn read(
        &self,
        from: Place,
        pin: i64,
        checked: Option<u64>,
        evaluated: i64,
        max_bytes: usize,
    ) -> Seen {
        let mut state = self.state();
        let attached = match &state.phase {
            Phase::Attaching => return Seen::Attaching,
            Phase::Ended { position, error } => return Seen::Ended(*position, error.clone()),
            Phase::Failed(error) => return Seen::Failed(error.clone()),
            Phase::Attached(position) => *position,
        };
        // Operations show before the feed has reported their whole stretch: who has them may be ahead of it.
        let evaluated = evaluated.max(attached).max(state.tail.shown());
        let known = state.placed.contains(&pin) && from.position() <= evaluated;
        if !known && checked != Some(state.attachment) {
            return Seen::Unchecked(state.attachment);
        }
        match state.tail.read(from, max_bytes) {
            Read::Behind => Seen::Behind,
            Read::Nothing => Seen::Nothing(evaluated.max(from.position())),
            Read::Operations(operations) => Seen::Operations(operations),
        }
    }

    /// The pin was found good under this attachment.
    pub fn set_placed(&self, pin: i64, attachment: u64) {
        let mut state = self.state();
        if state.attachment == attachment {
            // Any position of the log makes a good pin, and anybody can invent some: those in use are found good again.
            if state.placed.len() >= MOST_PLACED {
                state.placed.clear();
            }
            state.placed.insert(pin);
        }
    }

    /// The feed reports what comes after `position`.
    pub fn set_attached(&self, position: i64, tail_bytes: usize) {
        let mut state = self.state();
        state.tail = Tail::new(position, tail_bytes);
        state.phase = Phase::Attached(position);
        drop(state);
        self.changed.notify_waiters();
    }

    /// The feed was lost. Requests go on waiting.
    pub fn set_attaching(&self) {
        let mut state = self.state();
        state.phase = Phase::Attaching;
        state.attachment += 1;
        state.placed.clear();
    }

    /// Something happened to its table.
    pub fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Its table may be another by now.
    pub fn alter(&self, changes: u64) {
        self.altered.store(changes, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// When it was altered last, in terms of `Definitions::changes`.
    pub fn altered(&self) -> u64 {
        self.altered.load(Ordering::Acquire)
    }

    /// Whether something may have happened to its table after a position that the feed does not tell of.
    pub fn may_have_missed(&self, position: i64) -> bool {
        match self.state().phase {
            Phase::Attached(attached) => attached > position,
            Phase::Ended { .. } => true,
            Phase::Attaching | Phase::Failed(_) => false,
        }
    }

    /// An operation; those who wait are woken by the last one of a transaction.
    pub fn push(&self, position: i64, n: i64, message: Bytes, last: bool) {
        if self.state().tail.push(position, n, message, last) {
            self.changed.notify_waiters();
        }
    }

    /// What a transaction did is in the database only.
    pub fn skip(&self, position: i64) {
        self.state().tail.skip(position);
        self.changed.notify_waiters();
    }

    /// The shape ended: what its requests are answered from then on.
    pub fn end(&self, position: i64, error: Error) {
        self.state().phase = Phase::Ended { position, error };
        self.changed.notify_waiters();
    }

    /// The shape cannot be attached.
    pub fn fail(&self, error: Error) {
        self.state().phase = Phase::Failed(error);
        self.changed.notify_waiters();
    }
}

/// Where the feed learns of shapes.
pub type ToAttach = UnboundedReceiver<Arc<LiveShape>>;

/// The live shapes of this sidecar.
#[derive(Debug)]
pub struct LiveShapes {
    // Held for a look-up, never across an await.
    shapes: Mutex<HashMap<u64, Arc<LiveShape>>>,
    attach: UnboundedSender<Arc<LiveShape>>,
    evaluated: AtomicI64,
    /// When the feed last looked for changes of tables and rights.
    watched: Mutex<Option<Instant>>,
    next_id: AtomicI32,
    tail_max_bytes: usize,
}

/// A request's part in a live shape; it stays attached while there is one.
#[derive(Debug)]
pub struct Guest(Arc<LiveShape>);

impl std::ops::Deref for Guest {
    type Target = LiveShape;

    fn deref(&self) -> &LiveShape {
        &self.0
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests -= 1;
        state.idle_since = Instant::now();
    }
}

impl LiveShapes {
    /// No shapes yet, and where the feed learns of them.
    pub fn new(tail_max_bytes: usize) -> (Self, ToAttach) {
        let (attach, to_attach) = unbounded_channel();
        let (shapes, evaluated, next_id) = (Mutex::default(), AtomicI64::new(0), AtomicI32::new(1));
        (
            LiveShapes {
                shapes,
                attach,
                evaluated,
                watched: Mutex::default(),
                next_id,
                tail_max_bytes,
            },
            to_attach,
        )
    }

    /// Takes part in the live shape of a definition, which starts with its first guest.
    pub fn join(&self, definition: &Arc<Definition>) -> Guest {
        let mut shapes = self.shapes.lock().expect("no panic while held");
        let shape = shapes
            .entry(definition.hash)
            .or_insert_with(|| self.start(definition))
            .clone();
        shape.state().requests += 1;
        Guest(shape)
    }

    fn start(&self, definition: &Arc<Definition>) -> Arc<LiveShape> {
        let shape = Arc::new(LiveShape {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            definition: definition.clone(),
            state: Mutex::new(State {
                phase: Phase::Attaching,
                tail: Tail::new(0, 0),
                attachment: 0,
                placed: HashSet::new(),
                requests: 0,
                idle_since: Instant::now(),
            }),
            changed: Notify::new(),
            altered: AtomicU64::new(0),
        });
        // Without a receiver the sidecar is on its way out.
        let _ = self.attach.send(shape.clone());
        shape
    }

    /// Forgets a shape; its guests keep what they have.
    pub fn remove(&self, shape: &Arc<LiveShape>) {
        let mut shapes = self.shapes.lock().expect("no panic while held");
        if shapes
            .get(&shape.definition.hash)
            .is_some_and(|current| Arc::ptr_eq(current, shape))
        {
            shapes.remove(&shape.definition.hash);
        }
    }

    /// Removes a shape that nobody has waited for in a while.
    pub fn remove_if_idle(&self, shape: &Arc<LiveShape>) -> bool {
        let mut shapes = self.shapes.lock().expect("no panic while held");
        let state = shape.state();
        let idle = state.requests == 0 && state.idle_since.elapsed() >= IDLE;
        let current = shapes
            .get(&shape.definition.hash)
            .is_some_and(|current| Arc::ptr_eq(current, shape));
        if idle && current {
            shapes.remove(&shape.definition.hash);
        }
        idle
    }

    /// Bytes that each of so many shapes may keep, as long as not all of them do.
    pub fn tail_share(&self, shapes: usize) -> usize {
        (self.tail_max_bytes / shapes.max(1)).clamp(*TAIL_BYTES.start(), *TAIL_BYTES.end())
    }

    /// Bounds the tails of all these shapes and returns what they hold.
    pub fn trim<'a>(
        &self,
        shapes: impl ExactSizeIterator<Item = &'a Arc<LiveShape>> + Clone,
    ) -> usize {
        let apply = |max_bytes: usize| {
            let trim = |shape: &Arc<LiveShape>| {
                let mut state = shape.state();
                state.tail.set_max_bytes(max_bytes);
                state.tail.bytes()
            };
            shapes.clone().map(trim).sum()
        };
        let share = self.tail_share(shapes.len());
        let held: usize = apply(share);
        if held <= self.tail_max_bytes {
            return held;
        }
        apply(self.tail_max_bytes / shapes.len());
        apply(share)
    }

    /// Whether the feed has a shape and has told of all that had changed a moment ago.
    pub fn watches(&self, hash: u64) -> bool {
        let watched = *self.watched.lock().expect("no panic while held");
        let lately = watched.is_some_and(|at| at.elapsed() < TRUSTED_FOR);
        let shapes = self.shapes.lock().expect("no panic while held");
        let is_attached =
            |shape: &Arc<LiveShape>| matches!(shape.state().phase, Phase::Attached(_));
        lately && shapes.get(&hash).is_some_and(is_attached)
    }

    /// The feed has told of all that had changed by then.
    pub fn set_watched(&self, at: Instant) {
        *self.watched.lock().expect("no panic while held") = Some(at);
    }

    /// Position up to which the feed has reported everything.
    pub fn evaluated(&self) -> i64 {
        self.evaluated.load(Ordering::Acquire)
    }

    /// The feed has reported everything up to here.
    pub fn set_evaluated(&self, position: i64) {
        self.evaluated.store(position, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::tests::definition;

    const MAX: usize = 1000;

    fn seen(shape: &LiveShape, at: i64, pin: i64, evaluated: i64) -> Seen {
        shape.read(Place::after(at), pin, None, evaluated, MAX)
    }

    #[test]
    fn a_shape_from_its_first_guest_to_its_end() {
        let (live, mut to_attach) = LiveShapes::new(MAX);
        let guest = live.join(&definition(1));
        let shape = to_attach.try_recv().unwrap();
        assert!(to_attach.try_recv().is_err());
        assert!(matches!(seen(&guest, 10, 5, 0), Seen::Attaching));

        shape.set_attached(10, MAX);
        let Seen::Unchecked(attachment) = seen(&guest, 10, 5, 0) else {
            panic!()
        };
        guest.set_placed(5, attachment);
        assert!(matches!(seen(&guest, 10, 5, 12), Seen::Nothing(12)));
        assert!(matches!(seen(&guest, 13, 5, 12), Seen::Unchecked(_)));
        let ahead = shape.read(Place::after(13), 5, Some(attachment), 12, MAX);
        assert!(matches!(ahead, Seen::Nothing(13)));
        assert!(matches!(seen(&guest, 9, 5, 12), Seen::Behind));
        assert!(!live.watches(1));
        live.set_watched(Instant::now());
        assert!(live.watches(1) && !live.watches(2));
        live.set_watched(Instant::now() - TRUSTED_FOR);
        assert!(!live.watches(1));
        shape.push(13, 1, Bytes::from_static(b"x"), true);
        assert!(matches!(seen(&guest, 13, 5, 12), Seen::Nothing(13)));
        assert!(matches!(seen(&guest, 10, 5, 13), Seen::Operations(_)));

        shape.skip(14);
        assert!(matches!(seen(&guest, 13, 5, 13), Seen::Behind));
        assert!(matches!(seen(&guest, 14, 5, 14), Seen::Nothing(14)));

        shape.set_attaching();
        shape.set_attached(20, MAX);
        assert!(matches!(seen(&guest, 20, 5, 20), Seen::Unchecked(_)));
        guest.set_placed(5, attachment);
        assert!(matches!(seen(&guest, 20, 5, 20), Seen::Unchecked(_)));

        shape.end(21, Error::refetch("truncate"));
        live.remove(&shape);
        assert!(matches!(seen(&guest, 20, 5, 21), Seen::Ended(21, _)));
        let next = live.join(&definition(1));
        assert_ne!(next.id, guest.id);
    }

    #[tokio::test]
    async fn pins_that_are_known_are_bounded() {
        let (live, mut to_attach) = LiveShapes::new(MAX);
        let guest = live.join(&definition(1));
        to_attach.try_recv().unwrap().set_attached(10, MAX);
        let Seen::Unchecked(attachment) = seen(&guest, 10, 5, 10) else {
            panic!("its pin was never checked");
        };
        for pin in 0..10 * MOST_PLACED as i64 {
            guest.set_placed(pin, attachment);
            assert!(matches!(seen(&guest, 10, pin, 10), Seen::Nothing(10)));
        }
        assert!(guest.state().placed.len() <= MOST_PLACED);
    }

    #[tokio::test]
    async fn no_change_is_lost_between_looking_and_waiting() {
        let (live, mut to_attach) = LiveShapes::new(MAX);
        let guest = live.join(&definition(1));
        let mut changed = std::pin::pin!(guest.changed());
        changed.as_mut().enable();
        assert!(matches!(seen(&guest, 10, 5, 0), Seen::Attaching));
        to_attach.try_recv().unwrap().set_attached(10, MAX);
        changed.await;
    }

    #[test]
    fn only_idle_shapes_go() {
        let (live, mut to_attach) = LiveShapes::new(MAX);
        let guest = live.join(&definition(1));
        let shape = to_attach.try_recv().unwrap();
        assert!(!live.remove_if_idle(&shape));
        drop(guest);
        assert!(!live.remove_if_idle(&shape));
        shape.state().idle_since -= IDLE;
        assert!(live.remove_if_idle(&shape));
        assert_eq!(
            (live.tail_share(1), live.tail_share(1000)),
            (256 << 10, 256 << 10)
        );
    }

    #[test]
    fn the_tails_of_many_shapes_are_bounded_together() {
        let (live, mut to_attach) = LiveShapes::new(MAX);
        let shapes: Vec<_> = (0..10)
            .map(|hash| {
                drop(live.join(&definition(hash)));
                to_attach.try_recv().unwrap()
            })
            .collect();
        for shape in &shapes {
            shape.set_attached(1, live.tail_share(10));
        }
        for position in 2..12 {
            shapes[0].push(position, 1, Bytes::from_static(&[b'x'; 50]), true);
        }
        assert_eq!(
            live.trim(shapes.iter()),
            500,
            "one may have more than its share"
        );
        for shape in &shapes {
            shape.push(12, 1, Bytes::from_static(&[b'x'; 90]), true);
        }
        assert!(live.trim(shapes.iter()) <= MAX);
        assert!(matches!(
            shapes[1].state().tail.read(Place::after(11), MAX),
            Read::Operations(_)
        ));
    }
}
