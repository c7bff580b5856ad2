//! `POST /v1/write`.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value as Json;

use crate::access::authorize;
use crate::app::App;
use crate::body;
use crate::error::Error;
use crate::params::Caller;
use crate::query::Query;
use crate::response::JSON;
use crate::write::{self, Batch};

/// Answers and counts a request.
pub async fn post(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    mut body: Body,
) -> Response {
    let began = Instant::now();
    let query = Query::parse(query.as_deref().unwrap_or(""));
    let response = match answer(&app, &query, &headers, &mut body).await {
        Ok(results) => respond(&results),
        Err(error) => {
            body::skip(&mut body).await;
            error.into_response()
        }
    };
    let (status, elapsed) = (response.status().as_u16(), began.elapsed());
    app.metrics.request("write", status, elapsed.as_secs_f64());
    response
}

/// Answers any other method.
pub async fn refused(mut body: Body) -> Response {
    body::skip(&mut body).await;
    Error::NotAllowed("Method Not Allowed - POST is expected").into_response()
}

fn respond(results: &Json) -> Response {
    let headers = [
        (header::CONTENT_TYPE, JSON),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, results.to_string()).into_response()
}

async fn answer(
    app: &Arc<App>,
    query: &Query<'_>,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Json, Error> {
    authorize(&app.config, query)?;
    let caller = app.identify(headers).await?.caller;
    let permit = app.admission.enter_to_write()?;
    if !is_json(headers) {
        return Err(Error::NotJson);
    }
    let request = write::read(&body::read_part(body, app.config.write_max_bytes).await?)?;
    let payer = payer(&caller, request.client.as_str());
    let (count, now) = (request.transactions.len(), Instant::now());
    let taken = app.rates.take(&payer, count, now);
    taken.map_err(|after| Error::TooManyWrites {
        retry_after_s: after.as_secs_f64().ceil() as u64,
    })?;
    let app = app.clone();
    // A client that goes away has sent it all the same, and finds it done.
    let run = tokio::spawn(async move {
        let _permit = permit;
        write::run(app, Batch { request, caller }).await
    });
    run.await.map_err(Error::internal)?
}

/// Whose transactions are counted together: those of one user, and of a client where users are not told apart.
fn payer(caller: &Caller, client: &str) -> String {
    match (caller.subject(), &caller.role) {
        (Some(subject), Some(role)) => format!("{role} {subject}"),
        _ => client.to_owned(),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE);
    let media_type = given.and_then(|it| it.to_str().ok()?.split(';').next());
    media_type.is_some_and(|it| it.trim().eq_ignore_ascii_case("application/json"))
}
