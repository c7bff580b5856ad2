//! `GET /v1/shape`.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use crate::access::authorize;
use crate::answer::Asked;
use crate::app::App;
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
    let began = Instant::now();
    let packing = Packing {
        compression: &app.compression,
        accepted: Coding::accepted(&headers),
    };
    // Only what is needed later is kept: a held request must not keep the buffer that it was read into.
    let (request, given) = read(&app, query, headers);
    let (class, result) = match request {
        Ok(request) => (
            class(&request),
            serve(
                &app,
                &request,
                method != Method::HEAD,
                given.as_deref(),
                packing,
            )
            .await,
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
        Offset::Start => "initial",
        Offset::Now => "now",
        Offset::Snapshot(_) => "snapshot",
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
    match asked.answer(&definition).await {
        Ok(answer) => Ok(response::respond(
            request,
            &definition,
            answer,
            given,
            packing,
            &app.config,
        )),
        Err(Error::MustRefetch { reason, .. }) => {
            let (refused, expired) = (request.handle, request.expired);
            let handle = Box::pin(app.replacement(&definition, refused, expired)).await;
            Err(Error::MustRefetch { handle, reason })
        }
        Err(error) => Err(error),
    }
}
