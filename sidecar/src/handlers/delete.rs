//! `DELETE /v1/shape`: ends all handles of a definition, for tests and for repairs.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use crate::access::authorize;
use crate::app::{App, LOOK_AGAIN};
use crate::db::Placed;
use crate::definition::Definition;
use crate::error::Error;
use crate::handle::Handle;
use crate::params::{self, DeleteRequest};
use crate::query::Query;

/// The rotation is sequenced by then.
const SEQUENCED_WITHIN: Duration = Duration::from_secs(10);
/// So long for a definition that is not known here, of which it cannot be asked.
const UNKNOWN_WITHIN: Duration = Duration::from_millis(500);

const NO_SHAPE: Error = Error::NotFound("No existing shape found");

/// Rotates; 202 when no request here can be answered with an old handle any more.
pub async fn delete(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let query = Query::parse(query.as_deref().unwrap_or(""));
    let mut response = match run(&app, &query, &headers).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(error) => error.into_response(),
    };
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn run(app: &Arc<App>, query: &Query<'_>, headers: &HeaderMap) -> Result<(), Error> {
    authorize(&app.config, query)?;
    let identity = app.identify(headers).await?;
    if !app.config.allow_delete {
        return Err(Error::NotAllowed("DELETE not allowed"));
    }
    let mut request = params::delete_request(query).map_err(Error::Invalid)?;
    if let Some(shape) = &mut request.shape {
        shape.caller = identity.caller;
    }
    let (hash, definition) = target(app, &request).await?;
    rotate(app, hash, definition.as_deref()).await
}

/// Which definition is meant. A handle of another one than the parameters describe is not rotated.
async fn target(
    app: &App,
    request: &DeleteRequest,
) -> Result<(u64, Option<Arc<Definition>>), Error> {
    let handle = request
        .handle
        .as_deref()
        .map(|text| Handle::parse(text).ok_or(NO_SHAPE))
        .transpose();
    let Some(shape) = &request.shape else {
        let hash = handle?.ok_or(NO_SHAPE)?.hash;
        return Ok((hash, app.definitions.by_hash(hash)));
    };
    let definition = app.db.define(shape).await?;
    let another = handle?.is_some_and(|handle| handle.hash != definition.hash);
    if another || !definition.tracked {
        return Err(NO_SHAPE);
    }
    Ok((definition.hash, Some(Arc::new(definition))))
}

async fn rotate(app: &App, hash: u64, definition: Option<&Definition>) -> Result<(), Error> {
    let before = app.db.head().await?.head.unwrap_or(0);
    app.db.rotate(hash).await?;
    let within = if definition.is_some() {
        SEQUENCED_WITHIN
    } else {
        UNKNOWN_WITHIN
    };
    let deadline = Instant::now() + within;
    while !sequenced(app, definition, before).await? && Instant::now() < deadline {
        tokio::time::sleep(LOOK_AGAIN / 5).await;
    }
    app.pins.drop_pin(hash, i64::MAX);
    Ok(())
}

/// Whether a handle from before the rotation is void now.
async fn sequenced(app: &App, definition: Option<&Definition>, before: i64) -> Result<bool, Error> {
    match definition {
        Some(definition) => Ok(matches!(
            app.db.place(definition, before, before).await?,
            Placed::Gone(_)
        )),
        None => Ok(app.db.head().await?.head.unwrap_or(0) > before),
    }
}
