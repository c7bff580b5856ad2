//! Answers with a subset of a shape: rows as of the newest batch end, and what a client needs to go on from there
//! (docs/protocol.md, "Subsets").

use std::sync::Arc;

use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::answer::{Asked, STARTS_FOR};
use crate::app::{FIRST_PIN, patiently};
use crate::compression::VARY;
use crate::content::Content;
use crate::definition::Definition;
use crate::error::Error;
use crate::handle::Handle;
use crate::offset::{Offset, Place};
use crate::params::{Subset, nested};
use crate::protocol::header as names;
use crate::response::{JSON, Packing, value};
use crate::spool::Chunk;

/// What the database says of a subset.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    xmin: String,
    xmax: String,
    xip_list: Vec<String>,
    position: i64,
    settled: i64,
}

impl Asked<'_> {
    /// The subset.
    pub async fn subset(
        &self,
        definition: &Arc<Definition>,
        subset: &Subset,
        packing: Packing<'_>,
    ) -> Result<Response, Error> {
        let mut handle = self.handle_of_subset(definition).await?;
        let mark = fastrand::i32(0..);
        while self.at.elapsed() < STARTS_FOR {
            match self.read_subset(definition, subset, mark).await {
                // There is no 409 for a client that starts.
                Err(Error::MustRefetch { .. }) if self.starts() => {
                    self.app.pins.drop_pin(definition.hash, handle.pin);
                    let refused = Some(handle);
                    handle = self.app.first_handle(definition, None, refused).await?;
                }
                Ok((metadata, chunk)) => {
                    let offset = match self.starts() {
                        true => Offset::Log(Place::after(metadata.settled)),
                        // What happened since, to rows that this subset does not have, is still to come.
                        false => self.request.offset.clone(),
                    };
                    return Ok(respond(
                        definition,
                        handle,
                        &offset,
                        (metadata, mark),
                        chunk,
                        packing,
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::unavailable("The table is changing, please retry"))
    }

    fn starts(&self) -> bool {
        matches!(self.request.offset, Offset::Start | Offset::Now)
    }

    async fn handle_of_subset(&self, definition: &Arc<Definition>) -> Result<Handle, Error> {
        if self.starts() {
            return self.first_handle(definition).await;
        }
        let handle = self.handle(definition)?;
        let place = self.request.offset.place(handle.pin);
        let position = place.map_or(handle.pin, Place::position);
        self.app.check(definition, handle.pin, position).await?;
        Ok(handle)
    }

    async fn read_subset(
        &self,
        definition: &Arc<Definition>,
        subset: &Subset,
        mark: i32,
    ) -> Result<(Metadata, Chunk), Error> {
        let queryable = self.request.shape.queryable.as_deref();
        let read = || {
            self.app
                .snapshots
                .subset(definition, subset, queryable, mark)
        };
        let result = patiently(Instant::now() + FIRST_PIN, Error::is_passing, read).await;
        result.map_err(|error| match error {
            // An error of the query, which has two conditions.
            Error::Invalid(mut errors) if errors.contains_key("where") => {
                errors.retain(|field, _| field == "where");
                Error::Invalid(nested(errors))
            }
            error => error,
        })
    }
}

fn respond(
    definition: &Definition,
    handle: Handle,
    offset: &Offset,
    (metadata, mark): (Metadata, i32),
    chunk: Chunk,
    packing: Packing<'_>,
) -> Response {
    let Metadata {
        xmin,
        xmax,
        xip_list,
        position,
        ..
    } = metadata;
    let metadata = json!({
        "xmin": xmin, "xmax": xmax, "xip_list": xip_list, "snapshot_mark": mark,
        // Above all that the subset holds, since clients take a change from there on for news.
        "database_lsn": (position + 1).to_string(),
    });
    let before = Bytes::from(format!("{{\"metadata\":{metadata},\"data\":["));
    let after = Bytes::from_static(b"]}");
    let (mut response, _) = packing.pack(Content::snapshot(before, chunk, after));
    let headers = response.headers_mut();
    headers.insert(header::VARY, VARY);
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(names::SNAPSHOT, HeaderValue::from_static("true"));
    headers.insert(names::HANDLE, value(handle));
    headers.insert(names::OFFSET, value(offset));
    headers.insert(names::SCHEMA, definition.schema.clone());
    // Keeps clients from fetching ahead, which would be the same query again.
    headers.insert(names::UP_TO_DATE, HeaderValue::from_static(""));
    response
}
