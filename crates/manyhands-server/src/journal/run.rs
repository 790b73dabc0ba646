//! The threads of a journal: thin loops around the steps.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::error::During;
use super::recover::{Opened, open};
use super::state::Shared;
use super::{Directory, Entry, Journal, JournalError, Options, Recovered, Upkeep, Writer};
use crate::clock::Clock;

/// How long upkeep, and the writer, wait until they ask a full disk again.
const FULL_DISK_PATIENCE: Duration = Duration::from_secs(1);

/// Longest time that a frame waits for calls that are likely to come.
const COMPANY_PATIENCE_MAX: Duration = Duration::from_millis(2);

/// A journal in a directory, with its threads. Dropped, it makes durable what was appended and ends.
#[derive(Debug)]
pub struct Running {
    journal: Journal,
    recovered: Recovered,
    writer: Option<JoinHandle<Result<(), JournalError>>>,
    upkeep: Option<JoinHandle<()>>,
}

/// What the last synced frame was like, so that the next one is not smaller without need: those who
/// were told just now mostly have something new to say at once, and one sync for all costs less than
/// one for each half of them in turn. Who is alone never waits.
#[derive(Debug, Default)]
struct Company {
    /// Calls in that frame, and those that had gathered when it was synced.
    calls: u32,
    took: Duration,
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
    let mut company = Company::default();
    let mut sync_at = None;
    let mut is_full = false;
    loop {
        let interval = writer.shared().options.sync_interval;
        sync_at = writer.is_dirty().then(|| sync_at.unwrap_or_else(|| clock.now() + interval));
        let work = next_work(&writer, sync_at.map(|at| clock.until(at)))?;
        match work {
            Work::Frame => {
                let calls = company.wait(writer.shared(), &clock);
                let begin = clock.now();
                match writer.step() {
                    Err(error @ JournalError::DiskFull { .. }) => {
                        if !std::mem::replace(&mut is_full, true) {
                            tracing::error!("everybody waits: {error}");
                        }
                        wait_for_space(writer.shared(), &error)?;
                        continue;
                    }
                    done => done?,
                };
                is_full = false;
                if calls > 0 {
                    let gathered = writer.shared().lock().gathered().unwrap_or_default();
                    let took = clock.now().since(begin);
                    company = Company { calls: calls + gathered, took };
                }
            }
            Work::Sync => writer.sync()?,
            Work::Close => return writer.close(),
        }
    }
}

/// Waits until it is worth a try to begin the next segment. A server that is to end does not wait.
fn wait_for_space(shared: &Shared, error: &JournalError) -> Result<(), JournalError> {
    let state = shared.lock();
    if state.closing {
        drop(state);
        return Err(shared.poison(error));
    }
    drop(shared.work.wait_timeout(state, FULL_DISK_PATIENCE));
    Ok(())
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

impl Company {
    /// Gives the calls of the last frame a moment to come again, as long as its sync took; says how
    /// many are there.
    fn wait(&self, shared: &Shared, clock: &Clock) -> u32 {
        let mut state = shared.lock();
        let Some(gathered @ 1..) = state.gathered() else { return 0 };
        state.expected = Some(self.calls).filter(|calls| *calls > gathered);
        let until = clock.now() + self.took.min(COMPANY_PATIENCE_MAX);
        while state.expected.is_some() && state.failed.is_none() && !state.closing {
            let patience = clock.until(until);
            if patience.is_zero() {
                break;
            }
            let waited = shared.work.wait_timeout(state, patience);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.expected = None;
        state.gathered().unwrap_or_default()
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
