//! The changes of one transaction until it commits: a stack that rolled-back subtransactions are cut from. Pure.
//!
//! Entries are length-prefixed, back to back, in memory or, once they are many, in a temporary file with the rest in
//! memory behind it. Subtransaction ids only grow, and a subtransaction that ends is the newest one: so rolling back
//! `s` removes every entry from the first one that `s` or a later one wrote, and committing one hands them to its parent.

/// First byte of an entry that is a note (JSON) and not a record of [`crate::record`].
pub const NOTE: u8 = b'N';

/// Bytes in front of each entry.
const LENGTH_BYTES: usize = 4;
/// What a buffer begins with: most transactions change a row or two.
const FIRST_BYTES: usize = 1024;

/// Where entries go when memory does not hold them.
pub trait Spill {
    /// Writes at a place that is at most the end of what was written.
    fn write_at(&mut self, place: u64, bytes: &[u8]);
    /// Begins reading at the start.
    fn rewind(&mut self);
    /// Reads what comes next; says how many bytes there were.
    fn read(&mut self, bytes: &mut [u8]) -> usize;
}

impl Spill for crate::pg::spill::SpillFile {
    fn write_at(&mut self, place: u64, bytes: &[u8]) {
        self.write_at(place, bytes)
    }
    fn rewind(&mut self) {
        self.rewind()
    }
    fn read(&mut self, bytes: &mut [u8]) -> usize {
        self.read(bytes)
    }
}

/// Entries of one transaction, oldest first.
pub struct Buffer<S> {
    memory: Vec<u8>,
    file: Option<S>,
    file_bytes: u64,
    /// `(subtransaction, place of its first entry)`, both growing.
    starts: Vec<(u32, u64)>,
}

impl<S> Default for Buffer<S> {
    fn default() -> Self {
        Buffer {
            memory: Vec::new(),
            file: None,
            file_bytes: 0,
            starts: Vec::new(),
        }
    }
}

impl<S: Spill> Buffer<S> {
    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.end() == 0
    }

    /// Bytes that it takes in memory.
    pub fn in_memory_bytes(&self) -> usize {
        self.memory.len()
    }

    /// Bytes that it takes, in memory and in the file.
    pub fn bytes(&self) -> u64 {
        self.end()
    }

    /// A part of it is in a file.
    pub fn is_spilled(&self) -> bool {
        self.file.is_some()
    }

    fn end(&self) -> u64 {
        self.file_bytes + self.memory.len() as u64
    }

    /// Adds the entry that `write` writes, for a subtransaction.
    pub fn append(&mut self, subtransaction: u32, write: impl FnOnce(&mut Vec<u8>)) {
        if self
            .starts
            .last()
            .is_none_or(|&(newest, _)| newest < subtransaction)
        {
            self.starts.push((subtransaction, self.end()));
        }
        if self.memory.capacity() == 0 {
            self.memory.reserve(FIRST_BYTES);
        }
        let start = self.memory.len();
        self.memory.extend_from_slice(&[0; LENGTH_BYTES]);
        write(&mut self.memory);
        let length = (self.memory.len() - start - LENGTH_BYTES) as u32;
        self.memory[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    }

    /// Removes what `subtransaction` and later ones added.
    pub fn drop_from(&mut self, subtransaction: u32) {
        let kept = self.starts.partition_point(|&(id, _)| id < subtransaction);
        let Some(&(_, place)) = self.starts.get(kept) else {
            return;
        };
        self.starts.truncate(kept);
        if place >= self.file_bytes {
            self.memory.truncate((place - self.file_bytes) as usize);
        } else {
            self.file_bytes = place;
            self.memory.clear();
        }
    }

    /// Gives what `subtransaction` added to its parent: nothing is remembered of a subtransaction that is over.
    pub fn keep(&mut self, subtransaction: u32, parent: u32) {
        let kept = self.starts.partition_point(|&(id, _)| id < subtransaction);
        let Some(&(_, place)) = self.starts.get(kept) else {
            return;
        };
        self.starts.truncate(kept);
        if self
            .starts
            .last()
            .is_none_or(|&(newest, _)| newest < parent)
        {
            self.starts.push((parent, place));
        }
    }

    /// Moves what is in memory to the file.
    pub fn spill(&mut self, create: impl FnOnce() -> S) {
        let file = self.file.get_or_insert_with(create);
        file.write_at(self.file_bytes, &self.memory);
        self.file_bytes += self.memory.len() as u64;
        self.memory.clear();
    }

    /// Calls `each` with every entry, oldest first.
    pub fn for_each(&mut self, mut each: impl FnMut(&[u8])) {
        if let Some(file) = &mut self.file {
            file.rewind();
            let mut left = self.file_bytes;
            let mut entry = Vec::new();
            while left > 0 {
                let mut length = [0; LENGTH_BYTES];
                fill(file, &mut length);
                entry.resize(u32::from_le_bytes(length) as usize, 0);
                fill(file, &mut entry);
                each(&entry);
                left -= (LENGTH_BYTES + entry.len()) as u64;
            }
        }
        let mut rest = &self.memory[..];
        while let Some((length, tail)) = rest.split_first_chunk::<LENGTH_BYTES>() {
            let (entry, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
            each(entry);
            rest = tail;
        }
    }

    /// The file, if it has one.
    pub fn into_file(self) -> Option<S> {
        self.file
    }
}

fn fill(file: &mut impl Spill, mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        match file.read(bytes) {
            0 => panic!("a temporary file of shapefeed ended early"),
            n => bytes = &mut bytes[n..],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct InMemory(Vec<u8>, usize);

    impl Spill for InMemory {
        fn write_at(&mut self, place: u64, bytes: &[u8]) {
            assert!(place as usize <= self.0.len());
            self.0.truncate(place as usize);
            self.0.extend_from_slice(bytes);
        }
        fn rewind(&mut self) {
            self.1 = 0;
        }
        fn read(&mut self, bytes: &mut [u8]) -> usize {
            let n = bytes.len().min(self.0.len() - self.1).min(3);
            bytes[..n].copy_from_slice(&self.0[self.1..self.1 + n]);
            self.1 += n;
            n
        }
    }

    fn put(buffer: &mut Buffer<InMemory>, subtransaction: u32, text: &str) {
        buffer.append(subtransaction, |out| out.extend_from_slice(text.as_bytes()));
    }

    fn texts(buffer: &mut Buffer<InMemory>) -> Vec<String> {
        let mut all = Vec::new();
        buffer.for_each(|entry| all.push(String::from_utf8(entry.to_vec()).unwrap()));
        all
    }

    #[test]
    fn rolling_back_cuts_the_newest_and_committing_keeps() {
        let mut b = Buffer::default();
        put(&mut b, 1, "a");
        put(&mut b, 2, "b");
        put(&mut b, 3, "c");
        b.drop_from(3);
        put(&mut b, 2, "d"); // 2 goes on after its child is gone
        b.keep(2, 1);
        put(&mut b, 1, "e");
        put(&mut b, 4, "f");
        b.drop_from(4);
        assert_eq!(texts(&mut b), ["a", "b", "d", "e"]);
    }

    #[test]
    fn a_parent_that_is_rolled_back_takes_its_committed_children_along() {
        let mut b = Buffer::default();
        put(&mut b, 1, "a");
        put(&mut b, 3, "b"); // 2 has written nothing yet
        b.keep(3, 2);
        put(&mut b, 4, "c");
        b.keep(4, 2);
        put(&mut b, 2, "d");
        b.keep(5, 2); // wrote nothing
        b.drop_from(2);
        assert_eq!(texts(&mut b), ["a"]);
    }

    #[test]
    fn subtransactions_that_are_over_take_no_memory() {
        let mut b = Buffer::default();
        for subtransaction in 2..1000 {
            put(&mut b, subtransaction, "x");
            b.keep(subtransaction, 1);
        }
        assert_eq!(b.starts.len(), 1);
    }

    #[test]
    fn a_spilled_part_can_be_rolled_back_and_overwritten() {
        let mut b = Buffer::default();
        put(&mut b, 1, "first");
        put(&mut b, 2, "second");
        b.spill(InMemory::default);
        put(&mut b, 2, "third");
        b.spill(|| unreachable!());
        put(&mut b, 3, "fourth");
        assert_eq!(texts(&mut b), ["first", "second", "third", "fourth"]);
        b.drop_from(2);
        assert_eq!(texts(&mut b), ["first"]);
        put(&mut b, 4, "fifth");
        b.spill(|| unreachable!());
        assert_eq!(texts(&mut b), ["first", "fifth"]);
        b.drop_from(1);
        assert!(b.is_empty());
    }
}
