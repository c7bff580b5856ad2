//! The SQL that the sidecar may call, one function each. What they mean is in the extension's `sql/functions`.

mod asking;
mod queries;
mod session;
mod writes;

use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use serde_json::value::RawValue;
use tokio_postgres::Client;
use tokio_postgres::types::Json as AsJson;
use tokio_postgres_rustls::MakeRustlsConnect;

pub use asking::Asking;
pub use queries::{Batch, Head, LogChunk, Placed, read_head};
pub use session::{
    FeedRow, attach, attach_at, detach, feed, prepare_feed, prepare_wait, refuse_pooler, retain,
    sequence, wait,
};
pub use writes::{Writing, Written, positions, prepare_positions};

use crate::config::Config;
use crate::definition::Definition;
use crate::error::Error;
use crate::tls;

/// How long a request waits for a connection of the pool.
const POOL_WAIT: Duration = Duration::from_secs(5);
/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for a table that somebody has locked: others need its connection.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Bound of any statement but those that wait or copy.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// The way to the database: pools for requests and snapshots, and connections of one's own.
#[derive(Clone)]
pub struct Db {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    requests: Pool,
    snapshots: Pool,
    writes: Pool,
    write_timeout: Duration,
    role: Option<String>,
}
impl Db {
    /// Pools that connect when they are first used.
    pub fn new(config: &Config) -> Result<Self, Box<dyn std::error::Error>> {
        let (url, verify) = tls::split_ssl(&config.database_url);
        let mut pg: tokio_postgres::Config = url.parse()?;
        if pg.get_application_name().is_none() {
            pg.application_name("shapefeed-sidecar");
        }
        pg.connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(30));
        pg.tcp_user_timeout(Duration::from_secs(30));
        let tls = tls::connector(&verify)?;
        let pool = |size, timeout, locks| pool(&pg, &tls, size, (timeout, locks));
        let requests = pool(config.pool_size, STATEMENT_TIMEOUT, LOCK_TIMEOUT)?;
        let snapshots = pool(
            config.snapshot_pool_size,
            Duration::from_secs(config.snapshot_timeout),
            LOCK_TIMEOUT,
        )?;
        let write_timeout = Duration::from_secs(config.write_timeout);
        let writes = pool(config.write_pool_size, write_timeout, write_timeout)?;
        Ok(Db {
            config: pg,
            tls,
            requests,
            snapshots,
            writes,
            write_timeout,
            role: config.role.clone(),
        })
    }

    /// A connection of one's own, whose statements have no time limit.
    pub async fn connect(&self) -> Result<Client, Error> {
        let (client, connection) = self.config.connect(self.tls.clone()).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %crate::error::chain(&error), "connection lost");
            }
        });
        client
            .batch_execute(&session_settings(Duration::ZERO))
            .await?;
        Ok(client)
    }

    /// A connection for a request's questions.
    async fn ask(&self) -> Result<Asking, Error> {
        Asking::begin(&self.requests, &self.tls).await
    }

    /// Connections of the request pool: (all, free).
    pub fn pool_status(&self) -> (usize, usize) {
        let status = self.requests.status();
        (status.size, status.available)
    }
}

/// Sends a definition as it came.
fn definition(definition: &Definition) -> AsJson<&RawValue> {
    AsJson(definition.raw())
}
fn pool(
    config: &tokio_postgres::Config,
    tls: &MakeRustlsConnect,
    size: usize,
    (statement_timeout, lock_timeout): (Duration, Duration),
) -> Result<Pool, Box<dyn std::error::Error>> {
    let recycling = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_config(config.clone(), tls.clone(), recycling);
    let locks = lock_timeout.as_millis();
    let settings = format!(
        "{}; set lock_timeout = {locks}",
        session_settings(statement_timeout)
    );
    let set = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
        let settings = settings.clone();
        Box::pin(async move {
            client
                .batch_execute(&settings)
                .await
                .map_err(HookError::Backend)
        })
    });
    let pool = Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .post_create(set);
    Ok(pool
        .wait_timeout(Some(POOL_WAIT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .build()?)
}
/// What the extension sets while it acts for a role: where it is so already, that costs nothing.
const PINNED: &str = "set timezone = 'UTC'; set datestyle = 'ISO, DMY'; set intervalstyle = 'iso_8601'; \
    set lc_monetary = 'C'; set lc_numeric = 'C'; set lc_time = 'C'";

/// Readers must not take part in serializable writers' conflicts, and what we embed must mean what it says.
fn session_settings(statement_timeout: Duration) -> String {
    format!(
        "set default_transaction_isolation = 'read committed'; set standard_conforming_strings = on; \
         set client_min_messages = warning; set idle_in_transaction_session_timeout = '60s'; \
         set statement_timeout = {}; {PINNED}",
        statement_timeout.as_millis()
    )
}
