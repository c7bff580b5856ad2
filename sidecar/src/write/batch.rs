//! Carrying out a batch: its transactions one after the other, until one of them has to be sent again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Map, Value as Json, json};

use super::request::Request;
use crate::app::App;
use crate::db::{Writing, Written};
use crate::error::Error;
use crate::params::Caller;

/// How long an answer waits for the positions of what was applied.
const POSITIONED_WITHIN: Duration = Duration::from_secs(5);

/// A batch and who sends it.
pub struct Batch {
    /// What is to be done.
    pub request: Request,
    /// As whom.
    pub caller: Caller,
}

/// What came of one transaction.
enum Outcome {
    Applied(Option<u64>),
    Rejected(Map<String, Json>),
    Retry { sqlstate: String, message: String },
}

impl Outcome {
    fn status(&self) -> &'static str {
        match self {
            Outcome::Applied(_) => "applied",
            Outcome::Rejected(_) => "rejected",
            Outcome::Retry { .. } => "retry",
        }
    }
}

/// Does what is to be done and answers for it.
pub async fn run(app: Arc<App>, batch: Batch) -> Result<Json, Error> {
    let (outcomes, last_seq) = carry_out(&app, &batch).await?;
    let first = batch.request.first;
    let results = join_all((first..).zip(outcomes).map(|(seq, outcome)| {
        app.metrics.written(outcome.status());
        result(&app, seq, outcome)
    }));
    Ok(json!({"results": results.await, "last_seq": last_seq}))
}

async fn carry_out(app: &App, batch: &Batch) -> Result<(Vec<Outcome>, i64), Error> {
    let request = &batch.request;
    let mut outcomes = Vec::with_capacity(request.transactions.len());
    let mut last_seq = request.first - 1;
    for (seq, operations) in (request.first..).zip(&request.transactions) {
        let writing = Writing {
            client: request.client.as_str(),
            seq,
            caller: &batch.caller,
        };
        let outcome = match app.db.write(&writing, operations).await {
            Ok(Written::Applied { xid, last }) => {
                last_seq = last;
                Outcome::Applied(xid)
            }
            Ok(Written::Rejected { why, last }) => {
                last_seq = last;
                Outcome::Rejected(why)
            }
            Ok(Written::Retry { sqlstate, message }) => Outcome::Retry { sqlstate, message },
            Ok(Written::Gap { last }) => return Err(Error::WriteGap { last_seq: last }),
            Ok(Written::Foreign) => return Err(Error::ForeignClient),
            // What was done before is told; the rest is sent again and meets the same.
            Err(_) if !outcomes.is_empty() => break,
            Err(error) => return Err(error),
        };
        let ends = matches!(outcome, Outcome::Retry { .. });
        outcomes.push(outcome);
        if ends {
            break;
        }
    }
    Ok((outcomes, last_seq))
}

async fn result(app: &App, seq: i64, outcome: Outcome) -> Json {
    let mut result = json!({"seq": seq, "status": outcome.status()});
    match outcome {
        Outcome::Applied(xid) => {
            let position = match xid {
                Some(xid) => {
                    result["txid"] = (xid as u32).to_string().into();
                    app.positions.of(xid, POSITIONED_WITHIN).await
                }
                // It is so long ago that every position since is after it.
                None => app.recent_head().await.ok().and_then(|head| head.head),
            };
            if let Some(position) = position {
                result["lsn"] = position.to_string().into();
            }
        }
        Outcome::Rejected(why) => {
            let members = result.as_object_mut().expect("it is one");
            members.extend(why);
        }
        Outcome::Retry { sqlstate, message } => {
            result["sqlstate"] = sqlstate.into();
            result["message"] = message.into();
        }
    }
    result
}
