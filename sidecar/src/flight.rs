//! One flight for all who want the same thing at the same time.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::error::Error;

type Running<V> = Shared<BoxFuture<'static, Result<V, Error>>>;

/// Work in progress by key. It runs to its end whoever still waits, so that no later caller joins a stale one.
pub struct Flights<K, V> {
    // Held for a look-up, never across an await.
    running: Arc<Mutex<HashMap<K, Running<V>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Flights {
            running: Arc::default(),
        }
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins what runs under `key` or starts `work`.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, Error>
    where
        F: Future<Output = Result<V, Error>> + Send + 'static,
    {
        let flight = {
            let mut running = self.running.lock().expect("no panic while held");
            running
                .entry(key.clone())
                .or_insert_with(|| self.start(key, work()))
                .clone()
        };
        flight.await
    }

    fn start(
        &self,
        key: K,
        work: impl Future<Output = Result<V, Error>> + Send + 'static,
    ) -> Running<V> {
        let landed = Landed {
            running: self.running.clone(),
            key,
        };
        let task = tokio::spawn(async move {
            let _landed = landed;
            work.await
        });
        async move {
            task.await
                .unwrap_or_else(|error| Err(Error::internal(error)))
        }
        .boxed()
        .shared()
    }
}

/// Removes a flight from those that can be joined, also when its work panics.
struct Landed<K: Eq + Hash, V> {
    running: Arc<Mutex<HashMap<K, Running<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landed<K, V> {
    fn drop(&mut self) {
        self.running
            .lock()
            .expect("no panic while held")
            .remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn callers_at_the_same_time_share_the_work() {
        let flights = Flights::default();
        let runs = Arc::new(AtomicU32::new(0));
        let work = || {
            let runs = runs.clone();
            async move {
                tokio::task::yield_now().await;
                Ok(runs.fetch_add(1, Ordering::SeqCst))
            }
        };
        let (a, b) = tokio::join!(flights.run(1, work), flights.run(1, work));
        assert_eq!((a.unwrap(), b.unwrap()), (0, 0));
        assert_eq!(flights.run(1, work).await.unwrap(), 1);
    }
}
