//! `GET /v1/shape`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use crate::access::authorize;
use crate::answer::Asked;
use crate::app::App;
use crate::body;
use crate::compression::Coding;
use crate::error::Error;
use crate::offset::Offset;
use crate::params::{self, ShapeRequest};
use crate::query::Query;
use crate::response::{self, Packing};

/// Answers and counts a request.
pub async fn get(
    State(app): State<Arc<App>>,
    method: Method,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let accepted = Coding::accepted(&headers);
    let (request, given) = read(&app, query, headers);
    let holds = method != Method::HEAD;
    answer(&app, request, holds, given, accepted).await
}

/// The same for a request with parameters in its body.
pub async fn post(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let accepted = Coding::accepted(&headers);
    drop(headers);
    let mut query = Query::parse(query.as_deref().unwrap_or(""));
    let request = match authorize(&app.config, &query) {
        Ok(()) => read_body(&mut query, body).await,
        Err(error) => Err(error),
    };
    let mut response = answer(&app, request, true, None, accepted).await;
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn read_body(query: &mut Query, body: Body) -> Result<ShapeRequest, Error> {
    body::read_into(query, body).await?;
    params::shape_request(query).map_err(Error::Invalid)
}

// Only what is needed later is kept: a held request must not keep the buffer that it was read into.
async fn answer(
    app: &Arc<App>,
    request: Result<ShapeRequest, Error>,
    holds: bool,
    given: Option<String>,
    accepted: Option<Coding>,
) -> Response {
    let began = Instant::now();
    let packing = Packing {
        compression: &app.compression,
        accepted,
    };
    let (class, result) = match request {
        Ok(request) => (
            class(&request),
            serve(app, &request, holds, given.as_deref(), packing).await,
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

fn read(
    app: &App,
    query: Option<String>,
    headers: HeaderMap,
) -> (Result<ShapeRequest, Error>, Option<String>) {
    let query = Query::parse(query.as_deref().unwrap_or(""));
    let request = authorize(&app.config, &query)
        .and_then(|()| params::shape_request(&query).map_err(Error::Invalid));
    let given = response::if_none_match(&headers).map(str::to_owned);
    (request, given)
}

fn class(request: &ShapeRequest) -> &'static str {
    match request.offset {
        _ if request.subset.is_some() => "subset",
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
    holds: bool,
    given: Option<&str>,
    packing: Packing<'_>,
) -> Result<Response, Error> {
    let asked = Asked {
        app,
        request,
        given,
        holds,
        at: Instant::now(),
    };
    let definition = asked.definition().await?;
    let result = if let Some(subset) = &request.subset {
        asked.subset(&definition, subset, packing).await
    } else if request.events {
        asked.stream(&definition).await
    } else {
        let respond =
            |answer| response::respond(request, &definition, answer, given, packing, &app.config);
        asked.answer(&definition).await.map(respond)
    };
    match result {
        Err(Error::MustRefetch { reason, .. }) => {
            let (refused, expired) = (request.handle, request.expired);
            let handle = Box::pin(app.replacement(&definition, refused, expired)).await;
            Err(Error::MustRefetch { handle, reason })
        }
        result => result,
    }
}
