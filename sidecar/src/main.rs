//! The sidecar: serves shapes over HTTP (docs/protocol.md). It reads operations and snapshots from the database's SQL
//! functions, knows nothing of predicates or row images, and holds nothing that another sidecar needs.
#![forbid(unsafe_code)]

// The parts; docs/architecture.md has them in the order of a request.
mod access;
mod admission;
mod aliases;
mod answer;
mod app;
mod behind;
mod body;
mod caching;
mod certificate;
mod compression;
mod config;
mod content;
mod crowd;
mod db;
mod definition;
mod error;
mod feed;
mod fetch;
mod flight;
mod handle;
mod handlers;
mod hold;
mod identifier;
mod keys;
mod live;
mod metrics;
mod offset;
mod pace;
mod params;
mod pin;
mod protocol;
mod query;
mod rejection;
mod response;
mod router;
mod sequencer;
mod serve;
mod snapshot;
mod spool;
mod sse;
mod subset;
mod tail;
mod tls;
mod token;
mod touches;
mod write;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::app::App;
use crate::certificate::Certificate;
use crate::config::{Config, LogFormat};
use crate::feed::Feed;

/// How often it is looked where the log stands when no request asks.
const LOOK_AT_HEAD: Duration = Duration::from_secs(1);
/// How often kept snapshots are looked through.
const SWEEP: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::read();
    log_to_stderr(&config)?;
    raise_file_limit();
    if let Some(dir) = &config.spool_dir {
        std::fs::create_dir_all(dir)?;
    }
    let certificate = certificate(&config)?;
    let (app, tasks) = App::new(config)?;
    tokio::spawn(Feed::new(app.clone(), tasks.to_attach).run());
    tokio::spawn(behind::run(app.clone(), tasks.to_read));
    tokio::spawn(write::position::run(app.clone(), tasks.to_position));
    tokio::spawn(sequencer::run(app.clone()));
    let crowded = app.clone();
    tokio::spawn(async move { crowded.crowd.run().await });
    tokio::spawn(sweep(app.clone()));
    tokio::spawn(follow_resting(app.clone()));
    tokio::spawn(stop_on_signal(app.clone()));
    let keyed = app.clone();
    tokio::spawn(async move { keyed.follow_keys().await });
    let address = app.config.address();
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}"))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    serve::serve(listener, app, certificate).await;
    tracing::info!("stopped");
    Ok(())
}

fn log_to_stderr(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    // The pool warns of every connection that a restart of the database closed, and HTTP/2 tells of each header, the
    // URL with its secret included.
    let filter = EnvFilter::try_new(format!("deadpool=error,h2=warn,{}", config.log_level))?;
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(terminal)
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// The certificate to serve with, which SIGHUP reads again.
fn certificate(config: &Config) -> Result<Option<Arc<Certificate>>, Box<dyn std::error::Error>> {
    let (Some(chain), Some(key)) = (&config.tls_cert, &config.tls_key) else {
        return Ok(None);
    };
    let certificate = Arc::new(Certificate::read(chain, key)?);
    let mut hangup = signal(SignalKind::hangup())?;
    let reloaded = certificate.clone();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match reloaded.reload() {
                Ok(()) => tracing::info!("certificate read again"),
                Err(error) => tracing::error!(%error, "the certificate stays as it was"),
            }
        }
    });
    Ok(Some(certificate))
}

/// Each client is an open file, and the usual limit is meant for programs that may use select(2).
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

async fn sweep(app: Arc<App>) {
    let mut tick = tokio::time::interval(SWEEP);
    loop {
        tick.tick().await;
        app.snapshots.sweep();
    }
}

/// Clients that get nothing but news go over to newer handles, too: for that the resting position must be known.
async fn follow_resting(app: Arc<App>) {
    let mut tick = tokio::time::interval(LOOK_AT_HEAD);
    loop {
        tick.tick().await;
        if let Err(error) = app.recent_head().await {
            tracing::debug!(cause = error.cause(), "no head");
        }
    }
}

/// The first signal answers all who wait and stops, a second one stops at once.
async fn stop_on_signal(app: Arc<App>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    for _ in 0..2 {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if app.shutdown.is_cancelled() {
            std::process::exit(1);
        }
        tracing::info!("stopping");
        app.shutdown.cancel();
    }
    Ok(())
}
