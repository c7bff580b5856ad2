//! The bytes of a log chunk: what capture writes and every reader decodes. Pure; no Postgres in here.
//!
//! A chunk is one format version byte and then whole records, back to back, all integers little-endian:
//!
//! ```text
//! record    := kind u8, relid u32, layout u64, [old image], [new image]
//! old image := tid, length u32, bytes, copied u16, copied × (attnum u16, toast value id u32)     U, D
//! new image := tid, length u32, bytes                                                            I, U
//! tid       := block u32, offset u16
//! ```
//!
//! `bytes` is a heap tuple from `t_infomask2` on (the visibility fields and the ctid before it are left out).
//! An on-disk toast pointer inside it means: this value was left alone by the update. An out-of-line value of the
//! old row that the change replaced or deleted is copied into the old image, and `copied` remembers its toast value
//! id, so that an earlier record that left it alone can be completed from here.

/// First byte of each chunk. A new format starts with the next ring member, never inside one.
pub const FORMAT_VERSION: u8 = 1;

/// Bytes of `HeapTupleHeaderData` that an image leaves out: `t_choice` and `t_ctid`.
pub const SKIPPED_HEADER_BYTES: usize = 18;

/// What a record says about its relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A row version was made: new image only.
    Insert = b'I',
    /// A row version replaced another: both images.
    Update = b'U',
    /// A row version ended: old image only.
    Delete = b'D',
    /// All rows went at once: no image. Ends the epoch.
    Truncate = b'T',
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        match byte {
            b'I' => Some(Kind::Insert),
            b'U' => Some(Kind::Update),
            b'D' => Some(Kind::Delete),
            b'T' => Some(Kind::Truncate),
            _ => None,
        }
    }

    fn has_old(self) -> bool {
        matches!(self, Kind::Update | Kind::Delete)
    }

    fn has_new(self) -> bool {
        matches!(self, Kind::Insert | Kind::Update)
    }
}

/// Place of a row version inside its leaf relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tid {
    /// Block number.
    pub block: u32,
    /// Line pointer in the block.
    pub offset: u16,
}

/// One row version as it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Where the version was stored; pairs versions inside a transaction.
    pub tid: Tid,
    /// The heap tuple from `t_infomask2` on.
    pub bytes: &'a [u8],
    copied: &'a [u8],
}

impl<'a> Image<'a> {
    /// An image without copied out-of-line values.
    pub fn new(tid: Tid, bytes: &'a [u8]) -> Self {
        Image {
            tid,
            bytes,
            copied: &[],
        }
    }

    /// `(attnum, toast value id)` of each value that was out of line and is copied into this old image.
    pub fn copied(&self) -> impl Iterator<Item = (u16, u32)> + 'a {
        self.copied.chunks_exact(6).map(|pair| {
            (
                u16::from_le_bytes([pair[0], pair[1]]),
                u32::from_le_bytes([pair[2], pair[3], pair[4], pair[5]]),
            )
        })
    }
}

/// One change to one row of one leaf relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Insert, update, delete or truncate.
    pub kind: Kind,
    /// The leaf relation.
    pub relid: u32,
    /// Hash of the tuple layout that the images have.
    pub layout: u64,
    /// The version that ended.
    pub old: Option<Image<'a>>,
    /// The version that was made.
    pub new: Option<Image<'a>>,
}

/// Appends the fixed head of a record.
pub fn put_head(out: &mut Vec<u8>, kind: Kind, relid: u32, layout: u64) {
    out.push(kind as u8);
    out.extend_from_slice(&relid.to_le_bytes());
    out.extend_from_slice(&layout.to_le_bytes());
}

/// Appends an old image with the out-of-line values that were copied into it.
pub fn put_old(out: &mut Vec<u8>, tid: Tid, bytes: &[u8], copied: &[(u16, u32)]) {
    put_new(out, tid, bytes);
    out.extend_from_slice(&(copied.len() as u16).to_le_bytes());
    for (attnum, value_id) in copied {
        out.extend_from_slice(&attnum.to_le_bytes());
        out.extend_from_slice(&value_id.to_le_bytes());
    }
}

/// Appends a new image.
pub fn put_new(out: &mut Vec<u8>, tid: Tid, bytes: &[u8]) {
    out.extend_from_slice(&tid.block.to_le_bytes());
    out.extend_from_slice(&tid.offset.to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Why a chunk cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Written by a version of shapefeed that this one does not know.
    #[error("unknown log format version {0}")]
    Version(u8),
    /// A byte that is no record kind.
    #[error("unknown record kind {0}")]
    Kind(u8),
    /// The chunk ends inside a record.
    #[error("log chunk ends inside a record")]
    Short,
}

/// Reads the records of one chunk in order.
pub struct Records<'a> {
    rest: &'a [u8],
}

/// The records of `chunk`, which starts with its format version.
pub fn records(chunk: &[u8]) -> Result<Records<'_>, Corrupt> {
    match chunk.split_first() {
        Some((&FORMAT_VERSION, rest)) => Ok(Records { rest }),
        Some((&version, _)) => Err(Corrupt::Version(version)),
        None => Err(Corrupt::Short),
    }
}

impl<'a> Records<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Corrupt> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Corrupt::Short)?;
        self.rest = rest;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, Corrupt> {
        self.take(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Result<u32, Corrupt> {
        self.take(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self) -> Result<u64, Corrupt> {
        self.take(8)
            .map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes were taken")))
    }

    fn image(&mut self) -> Result<Image<'a>, Corrupt> {
        let tid = Tid {
            block: self.u32()?,
            offset: self.u16()?,
        };
        let length = self.u32()? as usize;
        Ok(Image::new(tid, self.take(length)?))
    }

    fn old_image(&mut self) -> Result<Image<'a>, Corrupt> {
        let image = self.image()?;
        let copied = self.u16()? as usize;
        Ok(Image {
            copied: self.take(copied * 6)?,
            ..image
        })
    }

    fn record(&mut self) -> Result<Record<'a>, Corrupt> {
        let byte = self.take(1)?[0];
        let kind = Kind::from_byte(byte).ok_or(Corrupt::Kind(byte))?;
        let relid = self.u32()?;
        let layout = self.u64()?;
        let old = if kind.has_old() {
            Some(self.old_image()?)
        } else {
            None
        };
        let new = if kind.has_new() {
            Some(self.image()?)
        } else {
            None
        };
        Ok(Record {
            kind,
            relid,
            layout,
            old,
            new,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Tid = Tid {
        block: 7,
        offset: 3,
    };
    const B: Tid = Tid {
        block: 7,
        offset: 4,
    };

    fn chunk() -> Vec<u8> {
        let mut out = vec![FORMAT_VERSION];
        put_head(&mut out, Kind::Insert, 16384, 99);
        put_new(&mut out, A, b"abc");
        put_head(&mut out, Kind::Update, 16384, 99);
        put_old(&mut out, A, b"abc", &[(2, 70000)]);
        put_new(&mut out, B, b"defg");
        put_head(&mut out, Kind::Delete, 16385, 98);
        put_old(&mut out, B, b"", &[]);
        put_head(&mut out, Kind::Truncate, 16385, 0);
        out
    }

    #[test]
    fn what_is_written_is_read() {
        let chunk = chunk();
        let all: Vec<Record> = records(&chunk).unwrap().map(Result::unwrap).collect();
        assert_eq!(
            all.iter().map(|r| r.kind).collect::<Vec<_>>(),
            [Kind::Insert, Kind::Update, Kind::Delete, Kind::Truncate]
        );
        assert_eq!(all[0].new.unwrap().bytes, b"abc");
        assert_eq!(
            all[1].old.unwrap().copied().collect::<Vec<_>>(),
            [(2, 70000)]
        );
        assert_eq!(all[1].new.unwrap().tid, B);
        assert_eq!((all[2].relid, all[2].layout), (16385, 98));
        assert!(all[3].old.is_none() && all[3].new.is_none());
    }

    #[test]
    fn damage_is_an_error_and_ends_the_chunk() {
        let chunk = chunk();
        for end in 2..chunk.len() {
            let read: Vec<_> = records(&chunk[..end]).unwrap().collect();
            let complete = read.iter().all(Result::is_ok);
            assert!(complete || read.iter().filter(|r| r.is_err()).count() == 1);
        }
        assert_eq!(records(&[]).err(), Some(Corrupt::Short));
        assert_eq!(records(&[9]).err(), Some(Corrupt::Version(9)));
        assert_eq!(
            records(&[FORMAT_VERSION, b'x']).unwrap().next(),
            Some(Err(Corrupt::Kind(b'x')))
        );
    }
}
