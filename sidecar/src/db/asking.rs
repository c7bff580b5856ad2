//! A connection of a pool while it is asked something.

use std::ops::Deref;

use deadpool_postgres::{Object, Pool};
use tokio::runtime::Handle;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::Error;

/// A connection that is asked something. When whoever asked goes away before the answer, the statement is cancelled and
/// the connection closed: in the pool, the next one would wait behind it.
pub struct Asking {
    // Always there until it is dropped.
    client: Option<Object>,
    tls: MakeRustlsConnect,
    answered: bool,
}

impl Asking {
    /// Takes a connection.
    pub async fn begin(pool: &Pool, tls: &MakeRustlsConnect) -> Result<Self, Error> {
        Ok(Asking {
            client: Some(pool.get().await?),
            tls: tls.clone(),
            answered: false,
        })
    }

    /// Hands on a result; nothing is under way any more, whatever it is.
    pub fn end<T>(mut self, result: T) -> T {
        self.answered = true;
        result
    }
}

impl Deref for Asking {
    type Target = Object;

    fn deref(&self) -> &Object {
        self.client.as_ref().expect("there until the drop")
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(client) = self.client.take().filter(|_| !self.answered) else {
            return;
        };
        let client = Object::take(client);
        if let Ok(runtime) = Handle::try_current() {
            let (token, tls) = (client.cancel_token(), self.tls.clone());
            runtime.spawn(async move {
                if let Err(error) = token.cancel_query(tls).await {
                    tracing::debug!(%error, "cannot cancel a statement");
                }
                drop(client);
            });
        }
    }
}
