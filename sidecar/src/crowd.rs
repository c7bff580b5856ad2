//! Fairness between clients that follow and those that come in a crowd, as after a restart or a network that is back. A
//! crowd's requests are all ready in the same moment; each is begun, and later answered, in a step. Only so many steps
//! are taken before everything else that is ready has run, so that a change waits for those few and not for all.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_util::sync::PollSemaphore;

/// Steps of a round. One takes 10 µs to begin a request and 100 µs to send a large answer.
const STEPS: usize = 8;
/// A round lasts no longer when there is always something else to do.
const ROUND: Duration = Duration::from_millis(2);

/// Gives out the steps of a round, and those of the next one when whatever else was ready has run.
#[derive(Debug)]
pub struct Crowd {
    steps: Arc<Semaphore>,
    taken: Notify,
}

impl Crowd {
    /// With the steps of the first round.
    pub fn new() -> Self {
        Crowd {
            steps: Arc::new(Semaphore::new(STEPS)),
            taken: Notify::new(),
        }
    }

    /// Begins one round after another for as long as it is polled.
    pub async fn run(&self) {
        loop {
            self.taken.notified().await;
            // Comes back when the runtime has looked for what has happened, and done all of that.
            let _ = timeout(ROUND, yield_now()).await;
            self.steps
                .add_permits(STEPS - self.steps.available_permits());
        }
    }

    /// Takes a step, in the order of asking.
    pub async fn step(&self) {
        self.steps
            .acquire()
            .await
            .expect("it is never closed")
            .forget();
        self.taken.notify_one();
    }
}

/// Where a connection stands in the crowd.
pub struct Place {
    crowd: Arc<Crowd>,
    steps: PollSemaphore,
}

impl Place {
    /// At no place yet.
    pub fn new(crowd: &Arc<Crowd>) -> Self {
        Place {
            crowd: crowd.clone(),
            steps: PollSemaphore::new(crowd.steps.clone()),
        }
    }

    /// Takes a step.
    pub fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.steps.poll_acquire(cx).map(|step| {
            step.expect("it is never closed").forget();
            self.crowd.taken.notify_one();
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn what_is_ready_runs_before_the_next_round() {
        let crowd = Arc::new(Crowd::new());
        let order = Arc::new(Mutex::new(Vec::new()));
        let rounds = crowd.clone();
        let running = tokio::spawn(async move { rounds.run().await });
        let mut comers = Vec::new();
        for _ in 0..3 * STEPS {
            let (crowd, order) = (crowd.clone(), order.clone());
            comers.push(tokio::spawn(async move {
                crowd.step().await;
                order.lock().unwrap().push("crowd");
            }));
        }
        let other = order.clone();
        tokio::spawn(async move { other.lock().unwrap().push("follower") })
            .await
            .unwrap();
        for comer in comers {
            comer.await.unwrap();
        }
        running.abort();
        let order = order.lock().unwrap();
        assert_eq!(order.iter().position(|who| *who == "follower"), Some(STEPS));
        assert_eq!(order.len(), 3 * STEPS + 1);
    }

    #[tokio::test]
    async fn a_round_ends_although_there_is_always_something_to_do() {
        let crowd = Arc::new(Crowd::new());
        let rounds = crowd.clone();
        let running = tokio::spawn(async move { rounds.run().await });
        let busy = tokio::spawn(async {
            loop {
                tokio::task::consume_budget().await;
                tokio::time::sleep(Duration::ZERO).await;
            }
        });
        for _ in 0..3 * STEPS {
            timeout(Duration::from_secs(10), crowd.step())
                .await
                .unwrap();
        }
        busy.abort();
        running.abort();
    }
}
