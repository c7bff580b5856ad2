//! `GET /v1/shape`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::access::authorize;
use crate::answer::Asked;
use crate::app::App;
use crate::body;
use crate::caching;
use crate::compression::Coding;
use crate::error::Error;
use crate::offset::Offset;
use crate::pace::Keeping;
use crate::params::{self, ShapeRequest};
use crate::query::Query;
use crate::response::{self, Packing};
use crate::token::Identity;

/// How the database begins to say that a transaction moves more rows of a shape than may be.
const AMPLIFICATION: &str = "amplification";

/// Answers and counts a request.
pub async fn get(State(app): State<Arc<App>>, head: Parts) -> Response {
    let query = Query::parse(head.uri.query().unwrap_or(""));
    let permit = match admit(&app, &query) {
        Ok(permit) => permit,
        Err(response) => return *response,
    };
    let accepted = Coding::accepted(&head.headers);
    let given = response::if_none_match(&head.headers).map(str::to_owned);
    let holds = head.method != Method::HEAD;
    let request = authorize(&app.config, &query)
        .and_then(|()| params::shape_request(&query).map_err(Error::Invalid));
    let (request, known) = known(&app, &head.headers, request).await;
    // A held request must not keep the buffer that it was read into.
    drop(query);
    drop(head);
    let response = answer(&app, request, holds, given, accepted).await;
    keep(known.shield(response), permit)
}

/// The same for a request with parameters in its body.
pub async fn post(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let accepted = Coding::accepted(&headers);
    let mut query = Query::parse(query.as_deref().unwrap_or(""));
    let permit = match admit(&app, &query) {
        Ok(permit) => permit,
        Err(response) => return *response,
    };
    let request = match authorize(&app.config, &query) {
        Ok(()) => read_body(&mut query, body).await,
        Err(error) => Err(error),
    };
    let (request, known) = known(&app, &headers, request).await;
    drop(headers);
    let response = answer(&app, request, true, None, accepted).await;
    let mut response = known.shield(response);
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    keep(response, permit)
}

/// What is known of who asks, as far as caches are concerned.
struct Known {
    /// Callers are told apart.
    varies: bool,
    is_private: bool,
}

impl Known {
    /// No shared cache may show one caller's answer to another.
    fn shield(&self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        if self.varies {
            headers.append(header::VARY, HeaderValue::from_static("authorization"));
        }
        if self.is_private {
            caching::make_private(headers);
        }
        response
    }
}

/// A request made as its caller, who must be known before anything is said of what is asked for.
async fn known(
    app: &App,
    headers: &HeaderMap,
    request: Result<ShapeRequest, Error>,
) -> (Result<(ShapeRequest, Option<Instant>), Error>, Known) {
    let mut known = Known {
        varies: app.tokens.is_some(),
        is_private: false,
    };
    if matches!(request, Err(Error::Unauthorized)) {
        return (Err(Error::Unauthorized), known);
    }
    let request = match app.identify(headers).await {
        Ok(Identity {
            caller,
            is_private,
            expires,
        }) => {
            known.is_private = is_private;
            request.and_then(|mut request| {
                app.allow(&request.shape)?;
                request.shape.caller = caller;
                Ok((request, expires))
            })
        }
        Err(error) => Err(error),
    };
    (request, known)
}

/// Lets a request in, or puts it off.
fn admit(app: &App, query: &Query) -> Result<OwnedSemaphorePermit, Box<Response>> {
    app.admission.enter(query).map_err(|error| {
        let response = error.into_response();
        app.metrics
            .request("put_off", response.status().as_u16(), 0.0);
        Box::new(response)
    })
}

/// It is in until its answer was sent.
fn keep(response: Response, permit: OwnedSemaphorePermit) -> Response {
    response.map(|body| Body::new(Keeping::new(body, permit)))
}

async fn read_body(query: &mut Query<'_>, body: Body) -> Result<ShapeRequest, Error> {
    body::read_into(query, body).await?;
    params::shape_request(query).map_err(Error::Invalid)
}

async fn answer(
    app: &Arc<App>,
    request: Result<(ShapeRequest, Option<Instant>), Error>,
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
        Ok((request, expires)) => {
            let asked = Asked {
                app,
                request: &request,
                given: given.as_deref(),
                holds,
                expires,
                at: Instant::now(),
            };
            (class(&request), serve(asked, packing).await)
        }
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

async fn serve(asked: Asked<'_>, packing: Packing<'_>) -> Result<Response, Error> {
    let (app, request, given) = (asked.app, asked.request, asked.given);
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
            // What is asked for may have become another shape while the request was held.
            let current = if request.live {
                asked.definition().await.ok()
            } else {
                None
            };
            let definition = current.unwrap_or(definition);
            if reason.starts_with(AMPLIFICATION) {
                // Whoever began before would come to the same transaction again.
                app.pins.drop_pin(definition.hash, i64::MAX);
            }
            let handle = Box::pin(app.replacement(&definition, refused, expired)).await;
            Err(Error::MustRefetch { handle, reason })
        }
        result => result,
    }
}
