//! The threads of a journal: thin loops around the steps.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::error::During;
use super::recover::{Opened, open};
use super::{Directory, Entry, Journal, JournalError, Options, Recovered, Upkeep, Writer};
use crate::clock::Clock;

/// How long upkeep waits until it asks a full disk again.
const FULL_DISK_PATIENCE: Duration = Duration::from_secs(1);

/// A journal in a directory, with its threads. Dropped, it makes durable what was appended and ends.
#[derive(Debug)]
pub struct Running {
    journal: Journal,
    recovered: Recovered,
    writer: Option<JoinHandle<Result<(), JournalError>>>,
    upkeep: Option<JoinHandle<()>>,
}

/// What the writer is to do next.
enum Work {
    Frame,
    Sync,
    Close,
}

impl Running {
    /// Opens the journal in `directory`, which is made if need be, and starts its threads. `visit`
    /// is told every record that is not forgotten, in order.
    ///
    /// # Errors
    ///
    /// [`JournalError`]; a directory that it names as damaged is left as it is.
    pub fn start(
        directory: &Path,
        options: Options,
        visit: &mut dyn FnMut(Entry<'_>),
    ) -> Result<Self, JournalError> {
        let storage = Arc::new(Directory::open(directory)?);
        let identity = getrandom::u64().map_err(std::io::Error::other);
        let identity = identity.during("draw a random number for", "the journal")?;
        let Opened { journal, writer, upkeep, recovered } =
            open(storage, options, identity, visit)?;
        let writer = spawn("journal-writer", move || write(writer))?;
        let mut running = Self { journal, recovered, writer: Some(writer), upkeep: None };
        running.upkeep = Some(spawn("journal-upkeep", move || keep_up(&upkeep))?);
        Ok(running)
    }

    /// To append with.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What was there.
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// Makes durable what was appended, and ends. Handles that are left accept nothing any more.
    ///
    /// # Errors
    ///
    /// What the writer failed with, now or before.
    pub fn close(mut self) -> Result<(), JournalError> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), JournalError> {
        self.journal.close();
        if let Some(upkeep) = self.upkeep.take() {
            // It has nothing to say that the writer has not.
            upkeep.join().ok();
        }
        let panicked = |_| Err(JournalError::Poisoned("its writer panicked".into()));
        self.writer.take().map_or(Ok(()), |writer| writer.join().unwrap_or_else(panicked))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!("{error}");
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, JournalError> {
    thread::Builder::new().name(name.into()).spawn(run).during("start the thread", name)
}

fn write(mut writer: Writer) -> Result<(), JournalError> {
    let clock = Clock::start();
    let mut sync_at = None;
    loop {
        let interval = writer.shared().options.sync_interval;
        sync_at = writer.is_dirty().then(|| sync_at.unwrap_or_else(|| clock.now() + interval));
        let work = next_work(&writer, sync_at.map(|at| clock.until(at)))?;
        match work {
            Work::Frame => drop(writer.step()?),
            Work::Sync => writer.sync()?,
            Work::Close => return writer.close(),
        }
    }
}

/// Waits for work; for a sync, until `patience` is over.
fn next_work(writer: &Writer, patience: Option<Duration>) -> Result<Work, JournalError> {
    let shared = writer.shared();
    let mut state = shared.lock();
    loop {
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        if patience == Some(Duration::ZERO) {
            return Ok(Work::Sync);
        }
        if state.has_batch() {
            return Ok(Work::Frame);
        }
        if state.closing {
            return Ok(Work::Close);
        }
        state.idle = true;
        state = match patience {
            None => shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                let waited = shared.work.wait_timeout(state, patience);
                let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                if timeout.timed_out() && !state.has_batch() {
                    return Ok(Work::Sync);
                }
                state
            }
        };
    }
}

fn keep_up(upkeep: &Upkeep) {
    let shared = upkeep.shared();
    let mut was_full = false;
    loop {
        let step = upkeep.step();
        if let Err(error) = &step
            && !was_full
        {
            tracing::warn!("no room for more tasks: {error}");
        }
        was_full = step.is_err();
        let state = shared.lock();
        if state.closing || state.failed.is_some() {
            return;
        }
        if matches!(step, Ok(true)) {
            continue;
        }
        // Told of every spare that is taken; only a full disk is asked again unasked.
        if was_full {
            drop(shared.upkeep.wait_timeout(state, FULL_DISK_PATIENCE));
        } else if !state.wants_spares() {
            drop(shared.upkeep.wait(state));
        }
    }
}
