//! `/metrics`: for Prometheus.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use crate::app::App;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// A scrape does not wait longer for the database.
const TIMEOUT: Duration = Duration::from_secs(1);

/// All metrics, those that are looked up included.
pub async fn get(State(app): State<Arc<App>>) -> impl IntoResponse {
    let evaluated = app.live.evaluated();
    app.metrics.evaluated.set(evaluated);
    if let Ok(Ok(head)) = tokio::time::timeout(TIMEOUT, app.recent_head()).await {
        let head = head.head.unwrap_or(0);
        app.metrics.head.set(head);
        let attached = app.metrics.attached_shapes.get() > 0;
        app.metrics
            .behind
            .set(i64::from(attached && evaluated < head));
    }
    let (size, free) = app.db.pool_status();
    app.metrics.pool_size.set(size as i64);
    app.metrics.pool_free.set(free as i64);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.metrics.text())
}
