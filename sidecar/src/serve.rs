//! Connections: accepted, served, and let go of when the sidecar is told to stop.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::certificate::Certificate;
use crate::pace::{Keeping, Late, Limits, Pace, Paced, Readable};
use crate::rejection::Rejecting;
use crate::router::{MAX_URL_BYTES, Service};

/// Bound of what is kept of a request's head, and of an answer that its client does not take.
const BUFFER_BYTES: usize = 2 * MAX_URL_BYTES;
/// Bound of a request's headers over HTTP/2.
const HEADER_LIST_BYTES: u32 = 128 << 10;
/// Requests at the same time over one connection: shapes that a page, or a proxy's clients, follow through it.
const STREAMS: u32 = 1000;
/// Over HTTP/2 a client that is gone is found out by a ping.
const PING: Duration = Duration::from_secs(30);
/// What HTTP/2 begins with, as far as it takes to tell it from every method of HTTP/1.
const PREFACE: &[u8] = b"PRI ";
/// Between two looks at the first bytes of a connection, when these are not enough.
const PEEK_PAUSE: Duration = Duration::from_millis(10);
/// How long answers that are being sent may take after a stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause when no connection can be accepted, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
struct Server {
    app: Arc<App>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    limits: Limits,
    certificate: Option<Arc<Certificate>>,
    service: Arc<Service>,
}

/// Serves until the shutdown, then for as long as answers are under way.
pub async fn serve(listener: TcpListener, app: Arc<App>, certificate: Option<Arc<Certificate>>) {
    let server = Arc::new(Server {
        http1: http1_builder(),
        http2: http2_builder(),
        limits: app.config.limits(),
        certificate,
        service: Arc::new(Service::new(app.clone())),
        app,
    });
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener, &server.app) => stream,
            () = server.app.shutdown.cancelled() => break,
        };
        connections.spawn(connection(server.clone(), stream));
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::warn!("some answers were not taken in time");
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    // How long a head may take is watched by `pace`: here that would be the time between requests as well.
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(BUFFER_BYTES);
    builder
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(BUFFER_BYTES)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

async fn accept(listener: &TcpListener, app: &App) -> TcpStream {
    loop {
        app.crowd.step().await;
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

async fn connection(server: Arc<Server>, stream: TcpStream) {
    let Some(certificate) = &server.certificate else {
        let version = tokio::select! {
            version = version(&stream, server.limits) => version,
            () = server.app.shutdown.cancelled() => None,
        };
        if let Some(version) = version {
            talk(&server, stream, version).await;
        }
        return;
    };
    match timeout(server.limits.head, certificate.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => {
            let version = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Version::HTTP_2,
                _ => Version::HTTP_11,
            };
            talk(&server, stream, version).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
        Err(_) => tracing::debug!("no TLS in time"),
    }
}

/// The version that a client speaks, from its first bytes, which are left where they are: a connection costs one
/// buffer less than with those read. `None` when nothing comes, or too little.
async fn version(stream: &TcpStream, limits: Limits) -> Option<Version> {
    let mut until = Instant::now() + limits.idle;
    let mut first = [0; PREFACE.len()];
    let mut began = false;
    loop {
        let peeked = timeout_at(until, stream.peek(&mut first)).await;
        let bytes = &first[..peeked.ok()?.ok()?];
        if bytes == PREFACE {
            return Some(Version::HTTP_2);
        }
        if bytes.is_empty() || !PREFACE.starts_with(bytes) {
            return Some(Version::HTTP_11);
        }
        let now = Instant::now();
        if !began {
            (began, until) = (true, now + limits.head);
        } else if now >= until {
            return None;
        }
        // What is there already would wake us again and again.
        sleep_until(until.min(now + PEEK_PAUSE)).await;
    }
}

/// Answers requests over a stream until one side ends that.
async fn talk(
    server: &Server,
    stream: impl AsyncRead + AsyncWrite + Readable + Unpin + Send + 'static,
    version: Version,
) {
    let pace = Pace::new(server.limits);
    let stream = Rejecting::new(Paced::new(stream, pace.clone(), &server.app.crowd));
    let requests = pace.clone();
    let service = server.service.clone();
    let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
        let live = request.uri().query().is_some_and(is_live);
        let running = requests.request(live);
        let service = service.clone();
        async move {
            // Boxed, so that its room is given back while a stream goes on, and between requests.
            let answer = Box::pin(service.answer(request)).await;
            Ok::<_, Infallible>(answer.map(|body| Keeping::new(body, running)))
        }
    });
    let stream = TokioIo::new(stream);
    // Boxed, so that the task has the room of one of them and not of both.
    if version == Version::HTTP_2 {
        let connection = server.http2.serve_connection(stream, answer);
        Box::pin(drive(server, connection, pace)).await;
    } else {
        let connection = server.http1.serve_connection(stream, answer);
        Box::pin(drive(server, connection, pace)).await;
    }
}

/// Whether a request is that of a client that follows.
fn is_live(query: &str) -> bool {
    query.split('&').any(|pair| pair == "live=true")
}

/// Drives a connection until it ends, is late, or has to end because the sidecar does.
async fn drive(
    server: &Server,
    connection: impl GracefulConnection<Error = hyper::Error>,
    pace: Pace,
) {
    let mut connection = std::pin::pin!(connection);
    let mut late = std::pin::pin!(pace.late());
    let mut ending = false;
    loop {
        tokio::select! {
            // What is late is known after the stream was looked at.
            biased;
            end = connection.as_mut() => {
                if let Err(error) = end {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = server.app.shutdown.cancelled(), if !ending => {}
            late = late.as_mut() => if late != Late::Idle || ending {
                tracing::debug!(?late, "connection cut");
                return;
            }
        }
        if !ending {
            ending = true;
            connection.as_mut().graceful_shutdown();
        }
    }
}
