//! Connections: accepted, served, and let go of when the sidecar is told to stop.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt};

use crate::app::App;
use crate::certificate::Certificate;
use crate::pace::{Keeping, Late, Limits, Pace, Paced};
use crate::rejection::Rejecting;
use crate::router::{MAX_URL_BYTES, normalize, router};

/// Bound of what is kept of a request's head, and of an answer that its client does not take.
const BUFFER_BYTES: usize = 2 * MAX_URL_BYTES;
/// Bound of a request's headers over HTTP/2.
const HEADER_LIST_BYTES: u32 = 128 << 10;
/// Requests at the same time over one connection: shapes that a page, or a proxy's clients, follow through it.
const STREAMS: u32 = 1000;
/// Over HTTP/2 a client that is gone is found out by a ping.
const PING: Duration = Duration::from_secs(30);
/// How long answers that are being sent may take after a stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause when no connection can be accepted, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
struct Server {
    app: Arc<App>,
    builder: Builder<TokioExecutor>,
    limits: Limits,
    certificate: Option<Arc<Certificate>>,
}

/// Serves until the shutdown, then for as long as answers are under way.
pub async fn serve(listener: TcpListener, app: Arc<App>, certificate: Option<Arc<Certificate>>) {
    let service = router(app.clone()).map_request(normalize);
    let server = Arc::new(Server {
        builder: builder(),
        limits: app.config.limits(),
        certificate,
        app,
    });
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            () = server.app.shutdown.cancelled() => break,
        };
        connections.spawn(connection(server.clone(), stream, service.clone()));
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::warn!("some answers were not taken in time");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // How long a head may take is watched by `pace`: here that would be the time between requests as well.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(BUFFER_BYTES)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
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

async fn connection<S>(server: Arc<Server>, stream: TcpStream, service: S)
where
    S: Service<
            Request<Incoming>,
            Response = axum::response::Response,
            Error = std::convert::Infallible,
        >,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let Some(certificate) = &server.certificate else {
        return talk(&server, stream, service).await;
    };
    match timeout(server.limits.head, certificate.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => talk(&server, stream, service).await,
        Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
        Err(_) => tracing::debug!("no TLS in time"),
    }
}

/// Answers requests over a stream until one side ends that.
async fn talk<S>(
    server: &Server,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: S,
) where
    S: Service<
            Request<Incoming>,
            Response = axum::response::Response,
            Error = std::convert::Infallible,
        >,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let pace = Pace::new(server.limits);
    let stream = Rejecting::new(Paced::new(stream, pace.clone()));
    let requests = pace.clone();
    let answer = hyper::service::service_fn(move |request| {
        let running = requests.request();
        let answer = service.clone().oneshot(request);
        async move {
            let answer = answer.await?;
            Ok::<_, std::convert::Infallible>(answer.map(|body| Keeping::new(body, running)))
        }
    });
    let mut talk = std::pin::pin!(
        server
            .builder
            .serve_connection(TokioIo::new(stream), answer)
    );
    let mut late = std::pin::pin!(pace.late());
    let mut ending = false;
    loop {
        tokio::select! {
            // What is late is known after the stream was looked at.
            biased;
            end = talk.as_mut() => {
                if let Err(error) = end {
                    tracing::debug!(error, "connection ended");
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
            talk.as_mut().graceful_shutdown();
        }
    }
}
