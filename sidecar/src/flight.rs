//! One flight for all who want the same thing at the same time.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::task::JoinHandle;

use crate::error::Error;

type Work<V> = BoxFuture<'static, Result<V, Error>>;
type Flight<V> = Shared<Work<V>>;

/// Work in progress by key. It ends before its time when nobody waits for it any more.
pub struct Flights<K, V> {
    // Held for a look-up, never across an await.
    slots: Slots<K, V>,
}

type Slots<K, V> = Arc<Mutex<HashMap<K, Slot<V>>>>;

/// The flights of a key: one in the air, and one for those who came after it took off.
struct Slot<V> {
    number: u64,
    /// How many of them have not landed.
    tasks: u32,
    flying: WeakShared<Work<V>>,
    boarding: Option<WeakShared<Work<V>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Flights {
            slots: Arc::default(),
        }
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins what runs under `key` or starts `work`. The answer may be older than the question.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, Error>
    where
        F: Future<Output = Result<V, Error>> + Send + 'static,
    {
        let flight = {
            let mut slots = lock(&self.slots);
            let flying = slots.get(&key).and_then(|slot| slot.flying.upgrade());
            flying.unwrap_or_else(|| self.start(&mut slots, key, work()))
        };
        flight.await
    }

    /// Starts `work`, or has it begin once when what runs under `key` is done, for all who came meanwhile: the answer
    /// is never older than the question.
    pub async fn run_later<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, Error>
    where
        F: Future<Output = Result<V, Error>> + Send + 'static,
    {
        let flight = {
            let mut slots = lock(&self.slots);
            let slot = slots.get_mut(&key);
            match slot.and_then(|slot| Some((slot.flying.upgrade()?, slot))) {
                None => self.start(&mut slots, key, work()),
                Some((flying, slot)) => {
                    let boarding = slot.boarding.as_ref().and_then(WeakShared::upgrade);
                    boarding.unwrap_or_else(|| {
                        let flight = self.start_after(flying, slot.number, key, work());
                        slot.tasks += 1;
                        slot.boarding = flight.downgrade();
                        flight
                    })
                }
            }
        };
        flight.await
    }

    fn start(
        &self,
        slots: &mut HashMap<K, Slot<V>>,
        key: K,
        work: impl Future<Output = Result<V, Error>> + Send + 'static,
    ) -> Flight<V> {
        let number = fastrand::u64(..);
        let landing = Landing {
            slots: self.slots.clone(),
            key: key.clone(),
            number,
        };
        let flight = in_a_task(async move {
            let _landing = landing;
            work.await
        });
        let slot = Slot {
            number,
            tasks: 1,
            flying: flight.downgrade().expect("it has not been polled"),
            boarding: None,
        };
        slots.insert(key, slot);
        flight
    }

    fn start_after(
        &self,
        flying: Flight<V>,
        number: u64,
        key: K,
        work: impl Future<Output = Result<V, Error>> + Send + 'static,
    ) -> Flight<V> {
        let landing = Landing {
            slots: self.slots.clone(),
            key,
            number,
        };
        in_a_task(async move {
            let landing = landing;
            // Whether it went well is of no interest here.
            let _ = flying.await;
            landing.take_off();
            work.await
        })
    }
}

fn lock<K, V>(slots: &Mutex<HashMap<K, Slot<V>>>) -> MutexGuard<'_, HashMap<K, Slot<V>>> {
    slots.lock().expect("no panic while held")
}

/// Runs at its own pace, whoever polls it.
fn in_a_task<V: Clone + Send + 'static>(
    work: impl Future<Output = Result<V, Error>> + Send + 'static,
) -> Flight<V> {
    let mut task = Task(tokio::spawn(work));
    async move {
        (&mut task.0)
            .await
            .unwrap_or_else(|error| Err(Error::internal(error)))
    }
    .boxed()
    .shared()
}

struct Task<V>(JoinHandle<Result<V, Error>>);

impl<V> Drop for Task<V> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Has a slot go when its last flight has landed, also when the work of that panics or is given up.
struct Landing<K: Eq + Hash, V> {
    slots: Slots<K, V>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, V> Landing<K, V> {
    /// From now on those who come have to wait for the next one.
    fn take_off(&self) {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get_mut(&self.key)
            && slot.number == self.number
            && let Some(flight) = slot.boarding.take()
        {
            slot.flying = flight;
        }
    }
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get_mut(&self.key)
            && slot.number == self.number
        {
            slot.tasks -= 1;
            if slot.tasks == 0 {
                slots.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Semaphore;

    /// Work that says how often it was begun before.
    fn counting() -> impl Fn() -> Work<u32> {
        let runs = Arc::new(AtomicU32::new(0));
        move || {
            let run = runs.clone();
            async move {
                let number = run.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok(number)
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn callers_at_the_same_time_share_the_work() {
        let flights = Flights::default();
        let work = counting();
        let (a, b) = tokio::join!(flights.run(1, &work), flights.run(1, &work));
        assert_eq!((a.unwrap(), b.unwrap()), (0, 0));
        assert_eq!(flights.run(1, &work).await.unwrap(), 1);
        assert!(lock(&flights.slots).is_empty());
    }

    #[tokio::test]
    async fn who_comes_later_gets_what_began_later() {
        let flights = Flights::default();
        let work = counting();
        let go = Arc::new(Semaphore::new(0));
        let first = flights.run_later(1, || {
            let (go, work) = (go.clone(), work());
            async move {
                let _permit = go.acquire().await;
                work.await
            }
        });
        let later = || flights.run_later(1, &work);
        let (a, b, c, ()) = tokio::join!(first, later(), later(), async { go.add_permits(1) });
        assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (0, 1, 1));
        assert_eq!(later().await.unwrap(), 2);
        assert!(lock(&flights.slots).is_empty());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_ends() {
        let flights = Flights::default();
        let ended = Arc::new(Semaphore::new(0));
        let endless = || {
            let ended = ended.clone();
            async move {
                let _ended = when_dropped(ended);
                std::future::pending::<Result<u32, Error>>().await
            }
        };
        for _ in 0..2 {
            tokio::select! {
                _ = flights.run_later(1, endless) => unreachable!(),
                _ = flights.run_later(1, endless) => unreachable!(),
                () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
            }
            ended.acquire().await.unwrap().forget();
            assert_eq!(flights.run_later(2, || async { Ok(7) }).await.unwrap(), 7);
        }
        let work = counting();
        assert_eq!(flights.run_later(1, &work).await.unwrap(), 0);
        assert!(lock(&flights.slots).is_empty());
    }

    fn when_dropped(ended: Arc<Semaphore>) -> impl Drop {
        struct Guard(Arc<Semaphore>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.add_permits(1);
            }
        }
        Guard(ended)
    }
}
