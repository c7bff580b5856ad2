//! Connections: accepted, served, and let go of when the sidecar is told to stop.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Version;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::app::App;
use crate::rejection::Rejecting;
use crate::router::{MAX_URL_BYTES, normalize, router};
use crate::stall::Impatient;

/// An idle connection is kept at least as long as proxies keep theirs (60 s), so that none sends into a reset.
const IDLE: Duration = Duration::from_secs(180);
/// Bound of what is kept of a request's head, and of an answer that its client does not take.
const BUFFER_BYTES: usize = 2 * MAX_URL_BYTES;
/// Bound of a request's headers over HTTP/2.
const HEADER_LIST_BYTES: u32 = 128 << 10;
/// What HTTP/2 begins with, as far as it takes to tell it from every method of HTTP/1.
const PREFACE: &[u8] = b"PRI ";
/// Between two looks at the first bytes of a connection, when these are not enough.
const PEEK_PAUSE: Duration = Duration::from_millis(10);
/// How long answers that are being sent may take after a stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause when no connection can be accepted, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How connections are served, by version.
#[derive(Clone)]
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Protocols {
    fn new() -> Self {
        let (mut http1, mut http2) = (
            http1::Builder::new(),
            http2::Builder::new(TokioExecutor::new()),
        );
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(BUFFER_BYTES);
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(HEADER_LIST_BYTES);
        Protocols { http1, http2 }
    }
}

/// Serves until the shutdown, then for as long as answers are under way.
pub async fn serve(listener: TcpListener, app: Arc<App>) {
    let service = TowerToHyperService::new(router(app.clone()).map_request(normalize));
    let protocols = Protocols::new();
    let connections = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            () = app.shutdown.cancelled() => break,
        };
        let (app, protocols, service) = (app.clone(), protocols.clone(), service.clone());
        let watcher = connections.watcher();
        tokio::spawn(async move {
            let version = tokio::select! {
                version = version(&stream) => version,
                () = app.shutdown.cancelled() => return,
            };
            let stream = Impatient::new(stream, app.config.send_timeout());
            let stream = TokioIo::new(Rejecting::new(stream));
            // Boxed, so that the task has the room of one of them and not of both.
            let served: BoxFuture<'static, hyper::Result<()>> = match version {
                Some(Version::HTTP_2) => {
                    let connection = protocols.http2.serve_connection(stream, service);
                    watcher.watch(connection).boxed()
                }
                Some(_) => {
                    let connection = protocols.http1.serve_connection(stream, service);
                    watcher.watch(connection).boxed()
                }
                None => return,
            };
            if let Err(error) = served.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, connections.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some answers were not taken in time");
    }
}

/// The version that a client speaks, from its first bytes, which are left where they are: a connection costs one
/// buffer less than with those read. `None` when nothing comes.
async fn version(stream: &TcpStream) -> Option<Version> {
    let until = Instant::now() + IDLE;
    let mut first = [0; PREFACE.len()];
    loop {
        let peeked = tokio::time::timeout_at(until, stream.peek(&mut first)).await;
        let bytes = &first[..peeked.ok()?.ok()?];
        if bytes == PREFACE {
            return Some(Version::HTTP_2);
        }
        if bytes.is_empty() || !PREFACE.starts_with(bytes) {
            return Some(Version::HTTP_11);
        }
        // What is there already would wake us again and again.
        tokio::time::sleep_until(until.min(Instant::now() + PEEK_PAUSE)).await;
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // An answer to a held request is one small packet that must leave at once.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
