//! A live request: what is there for its place, or a wait for it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, Pending, pending, select_all};
use tokio::time::{Instant, sleep_until};

use crate::app::{App, LOOK_AGAIN};
use crate::db::LogChunk;
use crate::definition::Definition;
use crate::error::Error;
use crate::live::{Guest, Seen};
use crate::offset::Place;
use crate::params::Caller;
use crate::tail::Operations;
use crate::touches::NAMED;

/// Before a shape that could not be attached is attached again: the feed of all others stands still meanwhile.
const ATTACH_AGAIN: Duration = Duration::from_millis(500);

/// How a live request ends.
#[derive(Debug)]
pub enum Outcome {
    /// With operations.
    News(Operations),
    /// With none, up to this position; and the transactions up to there that touched the table nevertheless.
    Idle(i64, Vec<u32>),
}

/// A held request.
pub struct Hold<'a> {
    /// The sidecar.
    pub app: &'a Arc<App>,
    /// The shape.
    pub definition: &'a Arc<Definition>,
    /// Who asks.
    pub caller: &'a Caller,
    /// Pin of the request's handle.
    pub pin: i64,
    /// When it is answered without operations.
    pub deadline: Instant,
    /// When a position that has not arrived yet is given up.
    pub arrival_deadline: Instant,
    /// Answer also when the shape's tables, or those of these shapes, are touched.
    pub wake: Option<&'a [Arc<Definition>]>,
}

/// What a look led to.
enum Step {
    Done(Outcome),
    /// Look again at once.
    Again,
    /// Look again when the shape changes.
    Wait,
    /// Look again when the shape changes, or soon.
    Retry,
    /// The shape is over, a new one begins.
    Rejoin,
}

/// How far a request has come while it is held.
struct Progress {
    /// There is nothing between the request's place and this one.
    at: Place,
    /// Position up to which there is nothing, once that is known.
    evaluated: Option<i64>,
    /// Transactions up to `at` that touched the table.
    silent: Vec<u32>,
    /// When a request that is to be woken is answered.
    woken: Option<Instant>,
    /// Attachment under which the place was checked.
    checked: Option<u64>,
    /// Whether the shape that the request first waited for was over.
    rejoined: bool,
}

impl Hold<'_> {
    /// Holds the request until there are operations after `from`, or its time is over.
    pub async fn wait(&self, from: Place) -> Result<Outcome, Error> {
        let mut progress = Progress {
            at: from,
            evaluated: None,
            silent: Vec::new(),
            woken: None,
            checked: None,
            rejoined: false,
        };
        let others = self.wake.into_iter().flatten();
        let others: Vec<Guest> = others.map(|it| self.app.live.join(it)).collect();
        loop {
            let guest = self.app.live.join(self.definition);
            if let Some(outcome) = self.wait_as(&guest, &others, &mut progress).await? {
                return Ok(outcome);
            }
        }
    }

    /// Waits as a guest of one live shape; `None` when that is over and another one takes its place.
    async fn wait_as(
        &self,
        guest: &Guest,
        others: &[Guest],
        progress: &mut Progress,
    ) -> Result<Option<Outcome>, Error> {
        loop {
            // Interest first, then the look: what happens in between wakes us.
            let mut changed = std::pin::pin!(guest.changed());
            changed.as_mut().enable();
            let touched = any_changed(others);
            let over = Instant::now() >= self.deadline || self.app.shutdown.is_cancelled();
            let until = match self.look(guest, others, progress).await? {
                Step::Done(outcome) => return Ok(Some(outcome)),
                Step::Again => continue,
                _ if over => return self.idle(progress).map(Some),
                Step::Rejoin => return Ok(None),
                Step::Wait => self.deadline,
                Step::Retry => self.deadline.min(Instant::now() + LOOK_AGAIN),
            };
            tokio::select! {
                () = changed => {}
                () = touched => {}
                () = sleep_until(until) => {}
                () = self.app.shutdown.cancelled() => {}
            }
        }
    }

    fn idle(&self, progress: &Progress) -> Result<Outcome, Error> {
        let unknown = || Error::unavailable("The database did not answer in time, please retry");
        let evaluated = progress.evaluated.ok_or_else(unknown)?;
        let mut silent = progress.silent.clone();
        silent.extend(self.silent(progress, evaluated, &[]));
        silent.drain(..silent.len().saturating_sub(NAMED));
        Ok(Outcome::Idle(evaluated, silent))
    }

    /// Transactions behind where progress is that touched the table, but those at some positions.
    fn silent(&self, progress: &Progress, upto: i64, but: &[i64]) -> Vec<u32> {
        let (relids, after) = (self.definition.relids(), progress.at.position());
        self.app.touches.between(relids, after, upto, but)
    }

    /// Whether one of these shapes' tables was touched since, or may have been.
    fn is_touched(&self, others: &[Guest], progress: &Progress, upto: i64) -> bool {
        let after = progress.at.position();
        let touched = |it: &Guest| {
            let touches = &self.app.touches;
            let known = touches.between([it.definition.relid], after, upto, &[]);
            !known.is_empty() || it.may_have_missed(after)
        };
        others.iter().any(touched)
    }

    /// Whether a request that is to be woken is now, or when it will be.
    fn wake(
        &self,
        others: &[Guest],
        progress: &mut Progress,
        evaluated: i64,
    ) -> Result<Step, Error> {
        let quiet = progress.silent.is_empty()
            && self.silent(progress, evaluated, &[]).is_empty()
            && !self.is_touched(others, progress, evaluated);
        if progress.woken.is_none() && quiet {
            return Ok(Step::Wait);
        }
        let at = Instant::now() + LOOK_AGAIN;
        let at = *progress.woken.get_or_insert(at);
        if Instant::now() < at {
            return Ok(Step::Retry);
        }
        self.idle(progress).map(Step::Done)
    }

    /// Who asked for all columns asks for another shape once there are others.
    async fn look_at_columns(&self, altered: u64) -> Result<Step, Error> {
        match self
            .app
            .has_other_columns(self.definition, self.caller)
            .await
        {
            Ok(true) => Err(Error::refetch("columns")),
            Ok(false) => {
                self.definition.set_outlived(altered);
                Ok(Step::Again)
            }
            Err(error) => self.put_off(error),
        }
    }

    async fn look(
        &self,
        guest: &Guest,
        others: &[Guest],
        progress: &mut Progress,
    ) -> Result<Step, Error> {
        let max_bytes = self.app.config.chunk_bytes as usize;
        let seen = guest.read(
            progress.at,
            self.pin,
            progress.checked,
            self.app.live.evaluated(),
            max_bytes,
        );
        match seen {
            Seen::Operations(it) => {
                if !it.closed {
                    it.silent(|| self.silent(progress, it.end.position(), &it.positions));
                }
                Ok(Step::Done(Outcome::News(it)))
            }
            Seen::Nothing(evaluated) => {
                progress.evaluated = progress.evaluated.max(Some(evaluated));
                let altered = guest.altered();
                if self.definition.all_columns && !self.definition.outlived(altered) {
                    return Box::pin(self.look_at_columns(altered)).await;
                }
                match self.wake {
                    Some(_) => self.wake(others, progress, evaluated),
                    None => Ok(Step::Wait),
                }
            }
            // One that ended before this request's snapshot was another's; its successor would not have begun.
            Seen::Ended(position, error) if position > self.pin || progress.rejoined => Err(error),
            Seen::Ended(..) => {
                progress.rejoined = true;
                Ok(Step::Rejoin)
            }
            Seen::Failed(error) if !error.is_passing() => Err(error),
            Seen::Failed(_) => {
                sleep_until(self.deadline.min(Instant::now() + ATTACH_AGAIN)).await;
                Ok(Step::Rejoin)
            }
            // Boxed: what is held for long takes little room.
            Seen::Attaching => {
                let step = Box::pin(self.read_log(progress)).await?;
                Ok(step.unwrap_or(Step::Wait))
            }
            Seen::Behind => {
                let step = Box::pin(self.read_log(progress)).await?;
                Ok(step.unwrap_or(Step::Again))
            }
            Seen::Unchecked(attachment) => Box::pin(self.check(guest, attachment, progress)).await,
        }
    }

    /// Has the place checked, later than the shape was attached: from then on the feed tells if that changes.
    async fn check(
        &self,
        guest: &Guest,
        attachment: u64,
        progress: &mut Progress,
    ) -> Result<Step, Error> {
        let (app, position) = (self.app, progress.at.position());
        match app.check(self.definition, self.pin, position).await {
            Ok(()) => {
                progress.checked = Some(attachment);
                guest.set_placed(self.pin, attachment);
                Ok(Step::Again)
            }
            Err(error) => self.put_off(error),
        }
    }

    /// What may pass is tried again, but a position that is still to come only for so long.
    fn put_off(&self, error: Error) -> Result<Step, Error> {
        match error {
            Error::NotYet if Instant::now() >= self.arrival_deadline => Err(Error::NotYet),
            error if error.is_passing() => Ok(Step::Retry),
            error => Err(error),
        }
    }

    /// Reads the database's log; `None` when there is nothing up to where progress then is.
    async fn read_log(&self, progress: &mut Progress) -> Result<Option<Step>, Error> {
        match self
            .app
            .read_log(self.definition, self.pin, progress.at)
            .await
        {
            Ok(LogChunk {
                messages,
                end: Some(end),
                upto,
                silent,
                ..
            }) => {
                let operations = Operations::new(messages, end, upto.is_none());
                operations.silent(|| silent);
                Ok(Some(Step::Done(Outcome::News(operations))))
            }
            Ok(LogChunk { upto, silent, .. }) => {
                progress.silent.extend(silent);
                let upto = upto.unwrap_or(progress.at.position());
                progress.at = progress.at.max(Place::after(upto));
                progress.evaluated = progress.evaluated.max(Some(upto));
                Ok(None)
            }
            Err(error) => self.put_off(error).map(Some),
        }
    }
}

/// Completes when one of these shapes changes; what happens from now on counts.
fn any_changed(shapes: &[Guest]) -> Either<Pending<()>, impl Future<Output = ()>> {
    if shapes.is_empty() {
        return Either::Left(pending());
    }
    let mut changes: Vec<_> = shapes.iter().map(|it| Box::pin(it.changed())).collect();
    for change in &mut changes {
        change.as_mut().enable();
    }
    Either::Right(select_all(changes).map(|_| ()))
}
