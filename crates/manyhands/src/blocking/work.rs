//! Workers and masters for programs without `async`.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;

use super::Client;
use crate::stream::now;
use crate::{Error, Failed, Items, Stopper, Tally, Task, client};

/// Same as [`Worker`](crate::Worker), for a function that blocks its thread.
///
/// ```no_run
/// use manyhands::Task;
/// use manyhands::blocking::{Client, Worker};
///
/// let client = Client::connect("10.0.0.7:5000", b"a key of 16 bytes or more")?;
/// Worker::new(&client)
///     .queue("tasks")
///     .concurrency(8)
///     .run(|task: Task<u64>| task.checked_mul(*task).ok_or("too large"))?;
/// # Ok::<(), manyhands::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a worker does nothing until it is run"]
pub struct Worker(client::Worker, client::Client);

impl Worker {
    /// Same as [`Worker::new`](crate::Worker::new).
    pub fn new(client: &Client) -> Self {
        Self(client::Worker::new(&client.0), client.0.clone())
    }

    /// Same as [`Worker::queue`](crate::Worker::queue).
    pub fn queue(self, name: impl Into<String>) -> Self {
        Self(self.0.queue(name), self.1)
    }

    /// Same as [`Worker::concurrency`](crate::Worker::concurrency): the number of threads.
    pub fn concurrency(self, tasks: usize) -> Self {
        Self(self.0.concurrency(tasks), self.1)
    }

    /// Same as [`Worker::hold`](crate::Worker::hold).
    pub fn hold(self, hold: Duration) -> Self {
        Self(self.0.hold(hold), self.1)
    }

    /// Same as [`Worker::without_results`](crate::Worker::without_results).
    pub fn without_results(self) -> Self {
        Self(self.0.without_results(), self.1)
    }

    /// Same as [`Worker::stopper`](crate::Worker::stopper).
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.0.stopper()
    }

    /// Same as [`Worker::run`](crate::Worker::run), blocking. It connects once more, and calls the
    /// function on threads of its own. A call whose lease is lost cannot be ended: it goes on, and what
    /// it returns is dropped.
    pub fn run<T, R, E>(
        self,
        function: impl Fn(Task<T>) -> Result<R, E> + Send + Sync + 'static,
    ) -> Result<Tally, Error>
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        E: Into<Failed> + Send + 'static,
    {
        let Self(worker, client) = self;
        let threads = worker.tasks_at_a_time();
        let runtime =
            Builder::new_current_thread().enable_all().max_blocking_threads(threads).build();
        let cannot_start =
            |error| Error::Connect { address: client.address().clone().into(), error };
        runtime.map_err(cannot_start)?.block_on(async {
            let client = client.connect_again().await?;
            let function = Arc::new(function);
            let call = move |task| {
                let function = Arc::clone(&function);
                async move {
                    match spawn_blocking(move || function(task)).await {
                        Ok(outcome) => outcome,
                        // The worker catches it, and it becomes the reason of the attempt.
                        Err(error) => resume_unwind(error.into_panic()),
                    }
                }
            };
            let worked = worker.moved_to(&client).run(call).await;
            let closed = client.close().await;
            worked.and_then(|tally| closed.map(|()| tally))
        })
    }
}

/// Same as [`Master`](crate::Master), blocking.
///
/// ```no_run
/// use manyhands::blocking::{Client, Master};
///
/// let client = Client::connect("10.0.0.7:5000", b"a key of 16 bytes or more")?;
/// let master = Master::new(&client).queue("tasks").results("answers");
/// for square in master.map::<u64, _>(1..=1_000_000u64)? {
///     println!("{}", square?);
/// }
/// # Ok::<(), manyhands::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a master does nothing until something is mapped"]
pub struct Master(client::Master);

impl Master {
    /// Same as [`Master::new`](crate::Master::new).
    pub fn new(client: &Client) -> Self {
        Self(client::Master::new(&client.0))
    }

    /// Same as [`Master::queue`](crate::Master::queue).
    pub fn queue(self, name: impl Into<String>) -> Self {
        Self(self.0.queue(name))
    }

    /// Same as [`Master::results`](crate::Master::results).
    pub fn results(self, name: impl Into<String>) -> Self {
        Self(self.0.results(name))
    }

    /// Same as [`Master::window`](crate::Master::window).
    pub fn window(self, tasks: usize) -> Self {
        Self(self.0.window(tasks))
    }

    /// Same as [`Master::map`](crate::Master::map), as an iterator.
    pub fn map<R, I>(&self, items: I) -> Result<Map<I::IntoIter, R>, Error>
    where
        I: IntoIterator,
        I::Item: Serialize,
        R: DeserializeOwned,
    {
        now(self.0.map(items)).map(Map)
    }
}

/// Same as [`Map`](crate::Map), blocking.
#[derive(Debug)]
pub struct Map<I, R>(client::Map<Items<I>, R>);

impl<I, R> Map<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    /// Same as [`Map::as_completed`](crate::Map::as_completed).
    #[must_use]
    pub fn as_completed(self) -> Self {
        Self(self.0.as_completed())
    }

    /// Same as [`Map::next_indexed`](crate::Map::next_indexed), blocking.
    pub fn next_indexed(&mut self) -> Option<(usize, Result<R, Error>)> {
        now(self.0.next_indexed())
    }
}

impl<I, R> Iterator for Map<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Item = Result<R, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        now(self.0.next())
    }
}
