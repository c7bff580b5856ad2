//! What is known of a client's transactions: `shapefeed.write_client` and `shapefeed.write_result`. With the owner's rights.

use pgrx::datum::{JsonB, Uuid};
use pgrx::spi;
use serde_json::Value;

use super::Caller;
use crate::pg::statement::execute;

/// A transaction of a client, by its number.
#[derive(Clone, Copy)]
pub struct Transaction {
    /// The client.
    pub client: Uuid,
    /// 1, 2, …
    pub seq: i64,
}

/// What is to be done with a transaction.
pub enum Begun {
    /// It is the next one. Nobody else does it until this transaction has ended.
    Next,
    /// It was applied or rejected, the last one of the client.
    Done(i64),
    /// There are others before it that were not sent, after the last one.
    Gap(i64),
    /// The client belongs to somebody else.
    Foreign,
}

/// What became of one that is done.
pub enum Outcome {
    /// Applied by this transaction, or by one that is not recorded any more.
    Applied(Option<String>),
    /// Rejected, and why.
    Rejected(Value),
}

/// Takes the client's row for this transaction.
pub fn begin(transaction: Transaction, caller: &Caller) -> Begun {
    let Transaction { client, seq } = transaction;
    let mut found = hold(client, caller);
    if found.is_none() && seq == 1 {
        // One that comes at the same time waits here for the other.
        let insert = "insert into shapefeed.write_client (id, role, subject, last_seq, used_at)
                      values ($1, $2, $3, 0, now()) on conflict do nothing";
        let values = [
            client.into(),
            caller.role.as_str().into(),
            caller.subject.clone().into(),
        ];
        execute(insert, &values, |_| Ok(()));
        found = hold(client, caller);
    }
    match found {
        None => Begun::Gap(0),
        Some((false, _)) => Begun::Foreign,
        Some((true, last)) if seq <= last => Begun::Done(last),
        Some((true, last)) if seq > last + 1 => Begun::Gap(last),
        Some((true, _)) => Begun::Next,
    }
}

/// Locks the client's row; whether it is the caller's, and the number of its last transaction.
fn hold(client: Uuid, caller: &Caller) -> Option<(bool, i64)> {
    let select = "select role = $2 and subject is not distinct from $3, last_seq
                  from shapefeed.write_client where id = $1 for update";
    let values = [
        client.into(),
        caller.role.as_str().into(),
        caller.subject.clone().into(),
    ];
    execute(select, &values, |rows| {
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.first();
        Ok::<_, spi::Error>(row.get::<bool>(1)?.zip(row.get::<i64>(2)?))
    })
}

/// What became of a transaction that is done.
pub fn outcome(Transaction { client, seq }: Transaction) -> Outcome {
    let select =
        "select xid::text, rejection from shapefeed.write_result where client = $1 and seq = $2";
    let row = execute(select, &[client.into(), seq.into()], |rows| {
        if rows.is_empty() {
            return Ok((None, None));
        }
        let row = rows.first();
        Ok::<_, spi::Error>((row.get::<String>(1)?, row.get::<JsonB>(2)?))
    });
    match row {
        (_, Some(rejection)) => Outcome::Rejected(rejection.0),
        (xid, None) => Outcome::Applied(xid),
    }
}

/// Records what becomes of the next transaction, by the current one. Returns the current one's id.
pub fn record(Transaction { client, seq }: Transaction, rejection: Option<Value>) -> String {
    let record = "with recorded as (
                    insert into shapefeed.write_result (client, seq, xid, rejection, recorded_at)
                    values ($1, $2, pg_current_xact_id(), $3, now())
                    returning xid
                  )
                  update shapefeed.write_client c set last_seq = $2, used_at = now() from recorded r
                  where c.id = $1 returning r.xid::text";
    let values = [client.into(), seq.into(), rejection.map(JsonB).into()];
    let xid = execute(record, &values, |rows| rows.first().get_one::<String>());
    xid.expect("the client's row is there")
}
