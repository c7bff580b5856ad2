//! Connections: accepted, served, and let go of when the sidecar is told to stop.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
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
/// How long answers that are being sent may take after a stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause when no connection can be accepted, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the shutdown, then for as long as answers are under way.
pub async fn serve(listener: TcpListener, app: Arc<App>) {
    let service = TowerToHyperService::new(router(app.clone()).map_request(normalize));
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_LIST_BYTES);
    let connections = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            () = app.shutdown.cancelled() => break,
        };
        let stream = Rejecting::new(Impatient::new(stream, app.config.send_timeout()));
        let connection = builder.serve_connection(TokioIo::new(stream), service.clone());
        let watched = connections.watch(connection.into_owned());
        tokio::spawn(async move {
            if let Err(error) = watched.await {
                tracing::debug!(error, "connection ended");
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
