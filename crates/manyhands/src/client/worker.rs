//! A worker: a function that is called with the tasks of a queue.
//!
//! Each call has a lease, which is extended while the call runs and settled by what it returns. A call
//! whose lease is lost is dropped, because another worker has its task by then.

use std::any::Any;
use std::fmt::Display;
use std::future::poll_fn;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use super::lease::{Claim, Lease};
use super::{Client, Leases};
use crate::Error;

/// How long a lease lasts after the last sign of life.
const HOLD: Duration = Duration::from_secs(60);
/// How many signs of life come in that time.
const BEATS: u32 = 4;
/// How long nobody says anything at least.
const BEAT_MIN: Duration = Duration::from_millis(10);

/// Calls a function with each task of a queue, several at a time.
///
/// ```no_run
/// # async fn example() -> Result<(), manyhands::Error> {
/// use manyhands::{Client, Task, Worker};
///
/// let client = Client::connect("10.0.0.7:5000", b"a key of 16 bytes or more").await?;
/// let square = async |n: u64| n.checked_mul(n).ok_or("too large");
/// Worker::new(&client)
///     .queue("tasks")
///     .concurrency(8)
///     .run(move |task: Task<u64>| async move { square(task.item).await })
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// What the function returns is the task's result, in the queue that `results=` of the task's queue
/// names. An `Err` or a panic is the reason why this attempt failed; the queue's `attempts` and
/// `backoff` say what comes of it. With [`Failed::for_good`] the task is not tried again.
#[derive(Debug)]
#[must_use = "a worker does nothing until it is run"]
pub struct Worker {
    client: Client,
    queue: String,
    concurrency: usize,
    hold: Duration,
    has_results: bool,
    stopper: Stopper,
}

/// A task as a worker's function gets it. It derefs to the item.
#[derive(Debug, Clone)]
pub struct Task<T> {
    /// What was put.
    pub item: T,
    /// Its position among the puts of its queue, from 0.
    pub number: u64,
    /// Which attempt at it this is, from 1.
    pub attempt: u32,
}

impl<T> Deref for Task<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

/// Why an attempt failed. Whatever can be displayed is a reason to try again.
#[derive(Debug, Clone)]
pub struct Failed {
    reason: String,
    is_final: bool,
}

impl Failed {
    /// No further attempt can do it: the task is a dead letter at once.
    pub fn for_good(reason: impl Display) -> Self {
        Self { reason: reason.to_string(), is_final: true }
    }
}

impl<E: Display> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { reason: error.to_string(), is_final: false }
    }
}

/// Ends a [`Worker`] from elsewhere. Clones stop the same worker.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<watch::Sender<bool>>);

impl Stopper {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Lets the worker finish what it has begun, give back what it has not, and end.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    async fn stopped(&self) {
        // It has a sender, so that it cannot be closed.
        self.0.subscribe().wait_for(|is_stopped| *is_stopped).await.ok();
    }
}

/// What a worker has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Tally {
    /// Tasks that were done.
    pub done: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Leases that were lost while the function ran: somebody else has the task.
    pub lost: u64,
}

/// What became of a call.
enum End {
    Done,
    Failed,
    Lost,
}

impl Worker {
    /// A worker at one task at a time.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            queue: String::new(),
            concurrency: 1,
            hold: HOLD,
            has_results: true,
            stopper: Stopper::new(),
        }
    }

    /// The queue whose tasks it takes.
    pub fn queue(self, name: impl Into<String>) -> Self {
        Self { queue: name.into(), ..self }
    }

    /// How many tasks it works on at one time; as many more may be sent ahead.
    pub fn concurrency(self, tasks: usize) -> Self {
        Self { concurrency: tasks.max(1), ..self }
    }

    /// How long a task stays with this worker after the last sign of life: a minute. It gives four in
    /// that time.
    pub fn hold(self, hold: Duration) -> Self {
        Self { hold, ..self }
    }

    /// Drops what the function returns, for a queue without `results=`.
    pub fn without_results(self) -> Self {
        Self { has_results: false, ..self }
    }

    /// What stops this worker.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    pub(crate) fn tasks_at_a_time(&self) -> usize {
        self.concurrency
    }

    /// The same worker on another connection.
    pub(crate) fn moved_to(self, client: &Client) -> Self {
        Self { client: client.clone(), ..self }
    }

    /// Works until the queue is shut down and empty, or until it is [stopped](Self::stopper). Says
    /// what it has done. A task whose item is no `T` is a dead letter.
    ///
    /// Calls are tasks of tokio's. If this future is dropped, they are too, and their tasks go back.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownQueue`], [`Error::Unsupported`] by CPython's own server, that the server was
    /// lost, or [`Error::Remote`] if the queue has no `results=`: see
    /// [`without_results`](Self::without_results).
    pub async fn run<T, R, E, F, C>(self, function: F) -> Result<Tally, Error>
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        E: Into<Failed> + Send + 'static,
        F: Fn(Task<T>) -> C + Send + Sync + 'static,
        C: Future<Output = Result<R, E>> + Send + 'static,
    {
        let queue = self.client.queue::<T>(&self.queue).await?;
        let ahead = u32::try_from(self.concurrency).unwrap_or(u32::MAX);
        let leases = queue.leases(ahead)?;
        self.work(leases, Arc::new(function)).await
    }

    async fn work<T, R, E, F, C>(
        self,
        mut leases: Leases<T>,
        function: Arc<F>,
    ) -> Result<Tally, Error>
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        E: Into<Failed> + Send + 'static,
        F: Fn(Task<T>) -> C + Send + Sync + 'static,
        C: Future<Output = Result<R, E>> + Send + 'static,
    {
        let (mut calls, mut tally) = (JoinSet::new(), Tally::default());
        loop {
            tokio::select! {
                biased;
                () = self.stopper.stopped() => break,
                Some(ended) = calls.join_next() => tally.count(ended)?,
                lease = leases.next(), if calls.len() < self.concurrency => match lease {
                    None => break,
                    Some(Err(Error::Item { .. })) => tally.failed += 1,
                    Some(lease) => {
                        let (function, hold) = (Arc::clone(&function), self.hold);
                        calls.spawn(attempt(lease?, function, hold, self.has_results));
                    }
                },
            }
        }
        // What was sent ahead goes back now, and not when the last call has ended.
        drop(leases);
        while let Some(ended) = calls.join_next().await {
            tally.count(ended)?;
        }
        Ok(tally)
    }
}

impl Tally {
    fn count(&mut self, ended: Result<Result<End, Error>, JoinError>) -> Result<(), Error> {
        // Panics of the function are caught: this would be one of ours.
        let end = ended.unwrap_or(Ok(End::Failed))?;
        *match end {
            End::Done => &mut self.done,
            End::Failed => &mut self.failed,
            End::Lost => &mut self.lost,
        } += 1;
        Ok(())
    }
}

/// Calls the function with a task, and settles it.
async fn attempt<T, R, E, F, C>(
    lease: Lease<T>,
    function: Arc<F>,
    hold: Duration,
    has_results: bool,
) -> Result<End, Error>
where
    R: Serialize,
    E: Into<Failed>,
    F: Fn(Task<T>) -> C,
    C: Future<Output = Result<R, E>>,
{
    let Lease { item, claim } = lease;
    let task = Task { item, number: claim.token.task, attempt: claim.token.attempt };
    let outcome = tokio::select! {
        outcome = caught(async { function(task).await }) => outcome,
        () = lost(&claim, hold) => {
            claim.forget();
            return Ok(End::Lost);
        }
    };
    let result = outcome.map_err(Failed::from).and_then(|outcome| outcome.map_err(Into::into));
    let result = result.and_then(|result| match has_results {
        true => claim.pickled(&result).map(Some).map_err(Failed::from),
        false => Ok(None),
    });
    match result {
        Ok(Some(result)) => ended(claim.ack_with(result).await, End::Done),
        Ok(None) => ended(claim.ack().await, End::Done),
        Err(Failed { reason, is_final: true }) => ended(claim.give_up(&reason).await, End::Failed),
        Err(Failed { reason, .. }) => ended(claim.nack(None, &reason).await, End::Failed),
    }
}

/// What became of a call whose task was settled, or belongs to somebody else by now.
fn ended(settled: Result<(), Error>, end: End) -> Result<End, Error> {
    match settled {
        Ok(()) => Ok(end),
        Err(Error::Stale { .. } | Error::SettledBefore | Error::InDoubt { .. }) => Ok(End::Lost),
        Err(error) => Err(error),
    }
}

/// Gives signs of life, until the lease is over.
async fn lost(claim: &Claim, hold: Duration) {
    loop {
        tokio::time::sleep((hold / BEATS).max(BEAT_MIN)).await;
        // While the server is away, nobody else gets the task.
        if let Err(Error::Stale { .. } | Error::SettledBefore) = claim.extend(hold).await {
            return;
        }
    }
}

/// What a future comes to, or with what text it panics.
async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    poll_fn(|context| {
        // It is not polled again after a panic.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(format!("panicked: {}", text(&*panic)))),
        }
    })
    .await
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a value that is no text")
}
