//! How many requests are answered at the same time. One that starts a shape may take a snapshot, one that brings a
//! handle mostly waits: each kind has a limit of its own, above which requests are put off.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::error::Error;
use crate::query::Query;

/// Each kind of requests.
#[derive(Debug)]
pub struct Admission {
    initial: Gate,
    existing: Gate,
    writes: Gate,
}

#[derive(Debug)]
struct Gate {
    kind: &'static str,
    limit: usize,
    free: Arc<Semaphore>,
}

impl Gate {
    fn new(kind: &'static str, limit: usize) -> Self {
        Gate {
            kind,
            limit,
            free: Arc::new(Semaphore::new(limit)),
        }
    }

    fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        let full = |_| Error::Full {
            kind: self.kind,
            limit: self.limit,
        };
        self.free.clone().try_acquire_owned().map_err(full)
    }
}

impl Admission {
    /// With the configured limits.
    pub fn new(config: &Config) -> Self {
        Admission {
            initial: Gate::new("initial", config.max_concurrent_initial),
            existing: Gate::new("existing", config.max_concurrent_existing),
            writes: Gate::new("write", config.max_concurrent_writes),
        }
    }

    /// Lets a write in, until what this gives is dropped, or puts it off.
    pub fn enter_to_write(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.writes.enter()
    }

    /// Lets a request in, until what this gives is dropped, or puts it off.
    pub fn enter(&self, query: &Query) -> Result<OwnedSemaphorePermit, Error> {
        let starts = matches!(query.text("offset"), Some("-1" | "now"));
        if starts || query.text("handle").is_none() {
            self.initial.enter()
        } else {
            self.existing.enter()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn each_kind_has_its_limit() {
        let flags = ["--max-concurrent-initial=1", "--max-concurrent-existing=2"];
        let config = Config::parse_from(["sidecar", "--insecure"].into_iter().chain(flags));
        let admission = Admission::new(&config);
        let enter = |text| admission.enter(&Query::parse(text));
        let first = enter("offset=-1&handle=x").unwrap();
        assert!(matches!(
            enter("offset=now"),
            Err(Error::Full {
                kind: "initial",
                limit: 1
            })
        ));
        assert!(enter("offset=0_0").is_err() && enter("offset=0_0&handle=").is_err());
        let held = [enter("offset=0_0&handle=x"), enter("handle=x&live")];
        assert!(held.iter().all(Result::is_ok));
        assert!(matches!(
            enter("offset=0_0&handle=x"),
            Err(Error::Full {
                kind: "existing",
                limit: 2
            })
        ));
        drop((first, held));
        assert!(enter("offset=-1").is_ok() && enter("offset=0_0&handle=x").is_ok());
    }
}
