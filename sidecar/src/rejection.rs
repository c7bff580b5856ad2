//! Requests that are not even HTTP to hyper get a bare status from it. This gives them the JSON and the CORS headers
//! that all our errors have, and reads on for a moment, so that the client sees the answer instead of a reset.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long, and how much, is read on after a rejection.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 8 << 20;

/// All responses of the router say so; those that hyper makes by itself do not.
const OURS: &[u8] = b"\r\nserver: shapefeed/";

/// A connection whose bare rejections are replaced.
pub struct Rejecting<S> {
    stream: S,
    replacement: Option<Bytes>,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Rejecting<S> {
    /// Wraps a connection.
    pub fn new(stream: S) -> Self {
        Rejecting {
            stream,
            replacement: None,
            linger: None,
        }
    }
}

/// The response to write in place of `head`, if that is one of hyper's own.
fn replacement(head: &[u8]) -> Option<Bytes> {
    let status = head.strip_prefix(b"HTTP/1.1 4")?.get(..2)?;
    if head.windows(OURS.len()).any(|window| window == OURS) {
        return None;
    }
    let (status, message) = match status {
        b"14" => (
            "414 URI Too Long",
            r#"{"message":"URI Too Long","errors":{"url":["is too long"]}}"#,
        ),
        b"31" => (
            "431 Request Header Fields Too Large",
            r#"{"message":"Request Header Fields Too Large"}"#,
        ),
        _ => ("400 Bad Request", r#"{"message":"Bad Request"}"#),
    };
    Some(Bytes::from(format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json; charset=utf-8\r\ncache-control: no-store\r\n\
         access-control-allow-origin: *\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{message}",
        message.len()
    )))
}

impl<S: AsyncWrite + Unpin> Rejecting<S> {
    /// Writes what is left of the replacement; ready at once when there is none.
    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self
            .replacement
            .as_mut()
            .filter(|rest| rest.has_remaining())
        {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            rest.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Rejecting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        head: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replacement.is_none() {
            let Some(replacement) = replacement(head) else {
                return Pin::new(&mut self.stream).poll_write(cx, head);
            };
            self.replacement = Some(replacement);
        }
        ready!(self.poll_replacement(cx))?;
        Poll::Ready(Ok(head.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let head = parts.iter().find(|part| !part.is_empty());
        match head {
            Some(head) if self.replacement.is_some() || replacement(head).is_some() => {
                self.poll_write(cx, head)
            }
            _ => Pin::new(&mut self.stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        if this.replacement.is_none() {
            return Poll::Ready(Ok(()));
        }
        let new = || (Box::pin(tokio::time::sleep(LINGER)), 0);
        let (timeout, read) = this.linger.get_or_insert_with(new);
        let mut scratch = [0; 16 << 10];
        while *read < LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    *read += buffer.filled().len()
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return timeout.as_mut().poll(cx).map(Ok),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rejecting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_rejections_are_replaced() {
        let bare = b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let text = String::from_utf8(replacement(bare).unwrap().to_vec()).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 414 ") && text.contains("access-control-allow-origin: *")
        );
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(text.contains(&format!("content-length: {}", body.len())));
        assert!(
            replacement(b"HTTP/1.1 400 Bad Request\r\nserver: shapefeed/0.1.0\r\n\r\n").is_none()
        );
        assert!(replacement(b"HTTP/1.1 200 OK\r\n\r\n").is_none());
        assert!(replacement(b"HTTP/1.1 4").is_none());
    }
}
