//! Where the extension is not preloaded nobody sequences by itself: the sidecars do, in turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;

use crate::app::App;
use crate::db;
use crate::error::Error;

/// Between two steps while clients wait, and while none do.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(25));
/// Between two looks whether something of the log can be dropped.
const RETAIN_EVERY: Duration = Duration::from_secs(1);
/// Before it is looked again whether there is something to do here.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// After an error, as when the connection is lost or another sidecar is at it for long.
const BACKOFF: Duration = Duration::from_secs(1);

/// Runs for as long as the sidecar does.
pub async fn run(app: Arc<App>) {
    loop {
        let pause = match steps(&app).await {
            Ok(()) => LOOK_AGAIN,
            Err(error) => {
                tracing::debug!(cause = error.cause(), "sequencing interrupted");
                BACKOFF
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Sequences until that fails; returns when it is not for us to do.
async fn steps(app: &App) -> Result<(), Error> {
    let client = app.db.connect().await?;
    let head = db::read_head(&client).await?;
    if head.preloaded || head.in_recovery {
        return Ok(());
    }
    tracing::info!("the extension is not preloaded: sequencing from here");
    let mut retained = Instant::now();
    loop {
        if retained.elapsed() >= RETAIN_EVERY {
            db::retain(&client).await?;
            retained = Instant::now();
        }
        if let Err(error) = db::sequence(&client).await {
            let refused = [
                SqlState::INSUFFICIENT_PRIVILEGE,
                SqlState::READ_ONLY_SQL_TRANSACTION,
            ];
            if error.code().is_some_and(|code| refused.contains(code)) {
                tracing::warn!(%error, "may not sequence: add shapefeed to shared_preload_libraries");
                return Ok(());
            }
            return Err(error.into());
        }
        let waited_for = app.metrics.attached_shapes.get() > 0;
        tokio::time::sleep(if waited_for { PAUSE.0 } else { PAUSE.1 }).await;
    }
}
