//! A run whose jobs are tasks of a queue, so that workers on any machine do them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Error, Result};
use futures_core::Stream;
use manyhands::{Client, Master, Stopper, Tally, Value};
use tokio::sync::{mpsc, watch};

use super::joblog::Past;
use super::launch::Launch;
use super::output::{self, Done};
use super::process::{Ended, Outcome, Printed};
use super::run::{Next, Run};
use super::shop::Shop;
use super::signals::Signals;
use super::template::Input;
use super::work;

/// Where the tasks of a run go, and where their results come from.
pub(super) struct Queues<'a> {
    pub(super) client: &'a Client,
    pub(super) tasks: &'a str,
    pub(super) results: &'a str,
}

/// A task that is out, since when.
struct Out {
    input: Input,
    since: (SystemTime, Instant),
}

/// What is put, and what is known of it until its result comes.
struct Inputs {
    arguments: mpsc::Receiver<Result<Vec<u8>>>,
    past: Arc<Past>,
    read: u64,
    put: usize,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    out: HashMap<usize, Out>,
    /// Why there are no more arguments.
    error: Option<Error>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream for Inputs {
    type Item = Value;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Value>> {
        loop {
            let argument = match ready!(self.arguments.poll_recv(context)) {
                Some(Ok(argument)) => argument,
                Some(Err(error)) => {
                    lock(&self.shared).error = Some(error);
                    return Poll::Ready(None);
                }
                None => return Poll::Ready(None),
            };
            self.read += 1;
            if self.past.has(self.read) {
                continue;
            }
            let input = Input { number: self.read, argument };
            let item = value(&input.argument);
            lock(&self.shared).out.insert(self.put, Out { input, since: now() });
            self.put += 1;
            return Poll::Ready(Some(item));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "says when a task was put, and how long it was out")]
fn now() -> (SystemTime, Instant) {
    (SystemTime::now(), Instant::now())
}

/// An argument as an item: text if it is.
fn value(argument: &[u8]) -> Value {
    std::str::from_utf8(argument)
        .map_or_else(|_| Value::Bytes(argument.to_vec()), |text| Value::Str(text.to_owned()))
}

impl Run {
    /// Has the tasks done by whoever works on the queue, and by `crew` here.
    pub(super) async fn work_by_queue(
        &mut self,
        arguments: mpsc::Receiver<Result<Vec<u8>>>,
        queues: &Queues<'_>,
        (launch, keeps_order): (&Launch, bool),
        crew: Option<(Shop, watch::Sender<bool>, usize)>,
    ) -> Result<()> {
        let mut signals = Signals::new()?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let inputs =
            Inputs { arguments, past: self.past(), read: 0, put: 0, shared: Arc::clone(&shared) };
        let master = Master::new(queues.client).queue(queues.tasks).results(queues.results);
        let mut results = master.map_stream::<Value, _>(inputs).await?;
        if !keeps_order {
            results = results.as_completed();
        }
        let (stopper, mut working) = self::crew(queues, crew);
        loop {
            let (index, result) = tokio::select! {
                biased;
                signal = signals.next() => {
                    let running = lock(&shared).out.len();
                    self.interrupted(signal, running);
                    break;
                }
                worked = &mut working => {
                    // The queue was shut down.
                    worked?;
                    working = Box::pin(std::future::pending());
                    continue;
                }
                next = results.next_indexed() => match next {
                    Some(next) => next,
                    None => break,
                },
            };
            let Some(out) = lock(&shared).out.remove(&index) else {
                result?;
                continue;
            };
            let outcome = outcome(result, out.since)?;
            let line = launch.invocation(&out.input, 1).line;
            // A result that is its turn was waited for.
            if self.ended(index as u64, Done { input: out.input, line, outcome })? != Next::More {
                break;
            }
        }
        if self.is_stopped() {
            // Nobody waits for them any more.
            queues.client.queue::<Value>(queues.tasks).await?.purge().await?;
            return Ok(());
        }
        if let Some(stopper) = stopper {
            stopper.stop();
            working.await?;
        }
        lock(&shared).error.take().map_or(Ok(()), Err)
    }
}

type Working = Pin<Box<dyn Future<Output = Result<Tally, manyhands::Error>>>>;

/// The workers of this process, if it has any.
fn crew(
    queues: &Queues<'_>,
    crew: Option<(Shop, watch::Sender<bool>, usize)>,
) -> (Option<Stopper>, Working) {
    let Some((shop, cancel, jobs)) = crew else {
        return (None, Box::pin(std::future::pending()));
    };
    let (stopper, working) = work::start(queues.client, queues.tasks, jobs, Arc::new(shop));
    let working = async move {
        let worked = working.await;
        // It is not needed, but has to be there: a job ends with it.
        drop(cancel);
        worked
    };
    (Some(stopper), Box::pin(working))
}

/// What became of a task. An error that is not its own ends everything.
fn outcome(
    result: Result<Value, manyhands::Error>,
    (started, clock): (SystemTime, Instant),
) -> Result<Outcome> {
    let ran: Duration = now().1.duration_since(clock);
    let (ended, stdout, stderr) = match result {
        Ok(Value::Str(text)) => (Ended::Exit(0), text.into_bytes(), Vec::new()),
        Ok(Value::Bytes(bytes)) => (Ended::Exit(0), bytes, Vec::new()),
        Ok(other) => (Ended::Exit(0), format!("{other}\n").into_bytes(), Vec::new()),
        Err(manyhands::Error::GivenUp { reasons, .. }) => {
            let (ended, tail) = output::told(reasons.last().map_or("", String::as_str));
            (ended, Vec::new(), tail)
        }
        Err(error) => return Err(error.into()),
    };
    let (stdout, stderr) = (Printed::Bytes(stdout), Printed::Bytes(stderr));
    Ok(Outcome { ended, started, ran, stdout, stderr })
}
