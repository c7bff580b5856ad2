//! The recent end of one shape's log, in memory: messages that were encoded once and are shared by all who wait for
//! them. Bounded: what falls out is read from the database again.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};

use crate::content::Content;
use crate::offset::Place;
use crate::protocol::{self, SEPARATOR};
use crate::response::array;
use crate::sse;

#[derive(Debug)]
struct Entry {
    place: Place,
    message: Bytes,
}

/// Operations after `start`. Those of a transaction show when its last one has arrived.
#[derive(Debug)]
pub struct Tail {
    start: Place,
    entries: VecDeque<Entry>,
    /// Entries that show.
    visible: usize,
    bytes: usize,
    max_bytes: usize,
    /// The last answer made, for all others who are at the same place.
    made: Option<(Place, Operations)>,
}

/// Messages for a client, joined by the separator.
#[derive(Clone, Debug)]
pub struct Operations {
    /// The messages.
    pub messages: Bytes,
    /// Where they leave the client.
    pub end: Place,
    /// The chunk is full and there is more.
    pub closed: bool,
    /// Positions of the operations, ascending; those of a tail only.
    pub positions: Arc<[i64]>,
    shared: Arc<Shared>,
}

/// What is found out or made once for all who get the same operations.
#[derive(Debug, Default)]
struct Shared {
    silent: OnceLock<Vec<u32>>,
    array: OnceLock<Content>,
    events: OnceLock<Bytes>,
}

impl Operations {
    /// Operations that leave the client at `end`.
    pub fn new(messages: Bytes, end: Place, closed: bool) -> Self {
        Operations {
            messages,
            end,
            closed,
            positions: Arc::default(),
            shared: Arc::default(),
        }
    }

    /// Transactions up to the end that touched the table and are none of these operations, found by `find` unless they are
    /// known.
    pub fn silent(&self, find: impl FnOnce() -> Vec<u32>) -> &[u32] {
        self.shared.silent.get_or_init(find)
    }

    /// The same as an array, closed by up-to-date if `last_seen` says how far. `name`: what all arrays of these messages have.
    pub fn array(&self, last_seen: Option<i64>, name: impl FnOnce() -> String) -> Content {
        let make = || {
            let silent = self.silent(Vec::new);
            let last = last_seen.map(|seen| protocol::up_to_date(seen, silent));
            array(self.messages.clone(), last).known_as(name())
        };
        self.shared.array.get_or_init(make).clone()
    }

    /// The same as events.
    pub fn events(&self) -> Bytes {
        let last_seen = (!self.closed).then_some(self.end.position());
        let make = || sse::events(&self.messages, last_seen, self.silent(Vec::new));
        self.shared.events.get_or_init(make).clone()
    }
}

/// What the tail has for a place.
#[derive(Debug)]
pub enum Read {
    /// It does not reach back that far.
    Behind,
    /// Nothing after it.
    Nothing,
    /// These.
    Operations(Operations),
}

impl Tail {
    /// A tail of what comes after `position`.
    pub fn new(position: i64, max_bytes: usize) -> Self {
        let start = Place::after(position);
        Tail {
            start,
            entries: VecDeque::new(),
            visible: 0,
            bytes: 0,
            max_bytes,
            made: None,
        }
    }

    /// Adds an operation; `last` shows it and those before it. Returns whether something new shows.
    pub fn push(&mut self, position: i64, n: i64, message: Bytes, last: bool) -> bool {
        self.bytes += message.len();
        let place = if last {
            Place::after(position)
        } else {
            Place::new(position, n)
        };
        self.entries.push_back(Entry { place, message });
        if last {
            self.visible = self.entries.len();
            self.made = None;
        }
        self.shrink();
        last
    }

    /// Drops everything up to a position, and what there was at it.
    pub fn skip(&mut self, position: i64) {
        *self = Tail::new(position, self.max_bytes);
    }

    /// Sets the bound.
    pub fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
        self.shrink();
    }

    /// Position up to which operations were shown.
    pub fn shown(&self) -> i64 {
        let newest = self.visible.checked_sub(1).map(|n| self.entries[n].place);
        newest.unwrap_or(self.start).position()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What comes after `from`, cut as the database cuts a chunk: behind the message that makes it `max_bytes`.
    pub fn read(&mut self, from: Place, max_bytes: usize) -> Read {
        if from < self.start {
            return Read::Behind;
        }
        if let Some((place, operations)) = &self.made
            && *place == from
        {
            return Read::Operations(operations.clone());
        }
        let first = self.entries.partition_point(|entry| entry.place <= from);
        if first >= self.visible {
            return Read::Nothing;
        }
        let operations = join(self.entries.range(first..self.visible), max_bytes);
        self.made = Some((from, operations.clone()));
        Read::Operations(operations)
    }

    fn shrink(&mut self) {
        while self.bytes > self.max_bytes {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= oldest.message.len();
            self.visible = self.visible.saturating_sub(1);
            self.start = oldest.place;
            self.made = None;
        }
    }
}

fn join<'a>(entries: impl Iterator<Item = &'a Entry>, max_bytes: usize) -> Operations {
    let mut entries = entries.peekable();
    let mut messages = BytesMut::with_capacity(entries.peek().map_or(0, |it| it.message.len()));
    let mut size = 0;
    let mut end = Place::after(0);
    let mut closed = false;
    let mut positions = Vec::new();
    for entry in entries {
        closed = size >= max_bytes;
        if closed {
            break;
        }
        if !messages.is_empty() {
            messages.put_slice(SEPARATOR);
        }
        messages.put_slice(&entry.message);
        size += entry.message.len();
        end = entry.place;
        positions.push(end.position());
    }
    positions.dedup();
    Operations {
        positions: positions.into(),
        ..Operations::new(messages.freeze(), end, closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(tail: &mut Tail, position: i64, n: i64, text: &'static str, last: bool) -> bool {
        tail.push(position, n, Bytes::from_static(text.as_bytes()), last)
    }

    fn read(tail: &mut Tail, from: Place, max_bytes: usize) -> Option<(String, Place, bool)> {
        match tail.read(from, max_bytes) {
            Read::Operations(it) => Some((
                String::from_utf8(it.messages.to_vec()).unwrap(),
                it.end,
                it.closed,
            )),
            Read::Nothing => None,
            Read::Behind => panic!("behind"),
        }
    }

    #[test]
    fn transactions_show_whole() {
        let mut tail = Tail::new(10, 100);
        assert!(!push(&mut tail, 11, 1, "a", false));
        assert_eq!(read(&mut tail, Place::after(10), 50), None);
        assert_eq!(tail.shown(), 10);
        assert!(push(&mut tail, 11, 3, "b", true));
        assert_eq!(tail.shown(), 11);
        assert_eq!(
            read(&mut tail, Place::after(10), 50),
            Some(("a,\nb".into(), Place::after(11), false))
        );
        assert_eq!(
            read(&mut tail, Place::new(11, 1), 50),
            Some(("b".into(), Place::after(11), false))
        );
        assert_eq!(read(&mut tail, Place::after(11), 50), None);
        assert!(matches!(tail.read(Place::after(9), 50), Read::Behind));
    }

    #[test]
    fn chunks_end_behind_the_message_that_fills_them() {
        let mut tail = Tail::new(10, 100);
        push(&mut tail, 11, 1, "aaa", false);
        push(&mut tail, 11, 2, "bbb", true);
        push(&mut tail, 12, 1, "c", true);
        assert_eq!(
            read(&mut tail, Place::after(10), 3),
            Some(("aaa".into(), Place::new(11, 1), true))
        );
        assert_eq!(
            read(&mut tail, Place::new(11, 1), 3),
            Some(("bbb".into(), Place::after(11), true))
        );
        assert_eq!(
            read(&mut tail, Place::after(10), 4),
            Some(("aaa,\nbbb".into(), Place::after(11), true))
        );
        assert_eq!(
            read(&mut tail, Place::after(11), 4),
            Some(("c".into(), Place::after(12), false))
        );
        assert_eq!(
            read(&mut tail, Place::after(11), 1),
            Some(("c".into(), Place::after(12), false)),
            "full, but nothing is left"
        );
    }

    #[test]
    fn answers_are_made_once_and_anew_when_more_shows() {
        let mut tail = Tail::new(10, 100);
        push(&mut tail, 11, 1, "a", true);
        let answer = |tail: &mut Tail| match tail.read(Place::after(10), 50) {
            Read::Operations(it) => {
                assert_eq!(it.events().as_ptr(), it.clone().events().as_ptr());
                it.messages
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(answer(&mut tail).as_ptr(), answer(&mut tail).as_ptr());
        push(&mut tail, 12, 1, "b", true);
        assert_eq!(answer(&mut tail), "a,\nb");
    }

    #[test]
    fn what_does_not_fit_is_behind() {
        let mut tail = Tail::new(10, 4);
        push(&mut tail, 11, 1, "aaa", true);
        push(&mut tail, 12, 1, "bbb", true);
        assert!(matches!(tail.read(Place::after(10), 50), Read::Behind));
        assert_eq!(
            read(&mut tail, Place::after(11), 50),
            Some(("bbb".into(), Place::after(12), false))
        );
        // A transaction larger than the tail leaves all who wait for it behind.
        for n in 1..10 {
            push(&mut tail, 13, n, "ccc", n == 9);
        }
        assert!(matches!(tail.read(Place::after(12), 50), Read::Behind));
        assert_eq!(
            read(&mut tail, Place::new(13, 8), 50),
            Some(("ccc".into(), Place::after(13), false))
        );
        tail.set_max_bytes(0);
        assert_eq!(tail.bytes(), 0);
        assert!(matches!(tail.read(Place::after(13), 50), Read::Nothing));
    }
}
