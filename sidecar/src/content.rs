//! Bodies of answers, as the parts that they are made of: shared messages between what each answer has of its own.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};

use crate::spool::Chunk;

/// Messages of the log above this are sent as they are, not copied.
const COPIED_BYTES: usize = 32 << 10;

/// Name and end of a body.
pub type Identity = (Arc<str>, Box<[u8]>);

/// A body.
#[derive(Clone, Debug)]
pub struct Content {
    before: Bytes,
    messages: Messages,
    after: Bytes,
    /// Bytes at the end that are no messages, whether or not they stand in `after`.
    closing: usize,
    name: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
enum Messages {
    Log(Bytes),
    Snapshot(Chunk),
}

impl Content {
    /// Messages of the log.
    pub fn log(before: Bytes, messages: Bytes, after: Bytes) -> Self {
        let closing = after.len();
        let (before, messages, after) = if messages.len() <= COPIED_BYTES {
            let whole = [before, messages, after].concat();
            (Bytes::new(), whole.into(), Bytes::new())
        } else {
            (before, messages, after)
        };
        Content {
            before,
            messages: Messages::Log(messages),
            after,
            closing,
            name: None,
        }
    }

    /// Rows of a snapshot.
    pub fn snapshot(before: Bytes, chunk: Chunk, after: Bytes) -> Self {
        Content {
            before,
            messages: Messages::Snapshot(chunk),
            closing: after.len(),
            after,
            name: None,
        }
    }

    /// Names it: all bodies of this name that have the same end have the same bytes.
    pub fn known_as(mut self, name: String) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What only bodies have that are of the same bytes; none if it has no name.
    pub fn identity(&self) -> Option<Identity> {
        let end = match &self.messages {
            Messages::Log(whole) if self.after.is_empty() => &whole[whole.len() - self.closing..],
            _ => &self.after[..],
        };
        Some((self.name.clone()?, end.into()))
    }

    /// Bytes of it.
    pub fn len(&self) -> u64 {
        let messages = match &self.messages {
            Messages::Log(messages) => messages.len() as u64,
            Messages::Snapshot(chunk) => chunk.len(),
        };
        self.before.len() as u64 + messages + self.after.len() as u64
    }

    /// Its bytes one after the other, if they are in memory.
    pub fn parts(&self) -> Option<[Bytes; 3]> {
        let messages = match &self.messages {
            Messages::Log(messages) => messages.clone(),
            Messages::Snapshot(chunk) => chunk.bytes()?,
        };
        Some([self.before.clone(), messages, self.after.clone()])
    }

    /// Its bytes in pieces.
    pub fn into_pieces(self) -> BoxStream<'static, io::Result<Bytes>> {
        if let Some(parts) = self.parts() {
            return stream::iter(parts.map(Ok)).boxed();
        }
        let edge = |bytes| stream::iter([Ok(bytes)]);
        match self.messages {
            Messages::Log(_) => unreachable!("messages of the log are in memory"),
            Messages::Snapshot(chunk) => edge(self.before)
                .chain(chunk.into_pieces())
                .chain(edge(self.after))
                .boxed(),
        }
    }

    /// It, as it is sent.
    pub fn into_body(self) -> Body {
        match self.messages {
            Messages::Log(whole) if self.before.is_empty() && self.after.is_empty() => {
                Body::from(whole)
            }
            _ => Body::from_stream(self.into_pieces()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies_are_their_parts() {
        for size in [0, 10, COPIED_BYTES, COPIED_BYTES + 1] {
            let messages = Bytes::from(vec![b'x'; size]);
            let part = Bytes::from_static;
            let content = Content::log(part(b"["), messages, part(b"]"));
            assert_eq!(content.len(), size as u64 + 2);
            let body = axum::body::to_bytes(content.into_body(), usize::MAX)
                .await
                .unwrap();
            assert_eq!(body.len(), size + 2);
            assert!(body.starts_with(b"[") && body.ends_with(b"]"));
        }
    }

    #[test]
    fn the_same_name_and_end_is_the_same_body() {
        for size in [0, 10, COPIED_BYTES + 1] {
            let identity = |end: &'static [u8]| {
                let messages = Bytes::from(vec![b'x'; size]);
                let content =
                    Content::log(Bytes::from_static(b"["), messages, Bytes::from_static(end));
                assert_eq!(content.identity(), None);
                content.known_as("name".into()).identity().unwrap()
            };
            assert_eq!(identity(b",1]"), identity(b",1]"));
            assert_ne!(identity(b",1]"), identity(b",2]"));
        }
    }
}
