//! `GET /v1/shape`.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use crate::access::authorize;
use crate::answer::Asked;
use crate::app::App;
use crate::error::Error;
use crate::offset::Offset;
use crate::params::{self, ShapeRequest};
use crate::query::Query;
use crate::response;

/// Answers and counts a request.
pub async fn get(
    State(app): State<Arc<App>>,
    method: Method,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let began = Instant::now();
    let query = Query::parse(query.as_deref().unwrap_or(""));
    let (class, result) = match read(&app, &query) {
        Ok(request) => (
            class(&request),
            serve(&app, &request, &method, &headers).await,
        ),
        Err(error) => ("refused", Err(error)),
    };
    if let Err(Error::MustRefetch { reason, .. }) = &result {
        app.metrics.refetch(reason);
    }
    let response = result.unwrap_or_else(Error::into_response);
    app.metrics.request(
        class,
        response.status().as_u16(),
        began.elapsed().as_secs_f64(),
    );
    response
}

fn read(app: &App, query: &Query) -> Result<ShapeRequest, Error> {
    authorize(&app.config, query)?;
    params::shape_request(query).map_err(Error::Invalid)
}

fn class(request: &ShapeRequest) -> &'static str {
    match request.offset {
        Offset::Start => "initial",
        Offset::Now => "now",
        Offset::Snapshot(_) => "snapshot",
        _ if request.events => "events",
        _ if request.live => "live",
        _ => "catch_up",
    }
}

async fn serve(
    app: &Arc<App>,
    request: &ShapeRequest,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let given = response::if_none_match(headers);
    let asked = Asked {
        app,
        request,
        given,
        holds: *method != Method::HEAD,
        at: Instant::now(),
    };
    let definition = asked.definition().await?;
    let result = if request.events {
        asked.stream(&definition).await
    } else {
        let respond = |answer| response::respond(request, &definition, answer, given, &app.config);
        asked.answer(&definition).await.map(respond)
    };
    match result {
        Err(Error::MustRefetch { reason, .. }) => {
            let handle = app
                .replacement(&definition, request.handle, request.expired)
                .await;
            Err(Error::MustRefetch { handle, reason })
        }
        result => result,
    }
}
