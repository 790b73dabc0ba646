//! The threads of a journal: thin loops around the steps.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::error::During;
use super::recover::{Opened, open};
use super::{Directory, Entry, Journal, JournalError, Options, Recovered, Upkeep, Writer};
use crate::clock::Clock;
use crate::queue::Time;

/// How long upkeep waits until it asks a full disk again.
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

/// What the last sync was like, so that the next one is not for fewer without need: those who were
/// told just now mostly have something new to say at once, and one sync for all costs less than one
/// for each half of them in turn. Who is alone never waits.
#[derive(Debug, Default)]
struct Company {
    /// Calls that were told, and those that had come until then.
    calls: u32,
    took: Duration,
    /// Until when others are waited for, once somebody waits.
    until: Option<Time>,
}

/// What the writer is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Write,
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
    let (mut company, mut sync_at, mut last) = (Company::default(), None, Work::Sync);
    loop {
        let interval = writer.shared().options.sync_interval;
        sync_at = writer.is_dirty().then(|| sync_at.unwrap_or_else(|| clock.now() + interval));
        let work = next_work(&writer, &mut company, last, sync_at, &clock)?;
        match work {
            Work::Write => drop(writer.write_frame()?),
            Work::Sync => {
                let (calls, begin) = (writer.waiting(), clock.now());
                writer.sync()?;
                sync_at = None;
                if calls > 0 {
                    let calls = calls + writer.shared().lock().gathered();
                    company = Company { calls, took: clock.now().since(begin), until: None };
                }
            }
            Work::Close => return writer.close(),
        }
        last = work;
    }
}

/// Waits for work: for a frame; for a sync, until all who are likely to want it have come; for that
/// of what nobody waits for, until `sync_at`.
fn next_work(
    writer: &Writer,
    company: &mut Company,
    mut last: Work,
    sync_at: Option<Time>,
    clock: &Clock,
) -> Result<Work, JournalError> {
    let shared = writer.shared();
    let mut state = shared.lock();
    loop {
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        let (written, gathered) = (writer.waiting(), state.gathered());
        let patience = company.patience(written + gathered, state.closing, clock);
        let may_write = match patience {
            None => true,
            // Who came while a frame was written need not wait for another sync; one frame, once.
            Some(Duration::ZERO) => written == 0 || last != Work::Write,
            Some(_) => state.is_pressing(),
        };
        if may_write && state.has_batch() {
            return Ok(Work::Write);
        }
        if patience == Some(Duration::ZERO) {
            return Ok(Work::Sync);
        }
        if patience.is_none() && sync_at.is_some_and(|at| clock.until(at).is_zero()) {
            return Ok(Work::Sync);
        }
        if state.closing && !state.has_batch() {
            return Ok(Work::Close);
        }
        state.idle = patience.is_none();
        state.expected = patience.map(|_| company.calls.saturating_sub(written));
        let patience = patience.or_else(|| sync_at.map(|at| clock.until(at)));
        state = match patience {
            None => shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                let waited = shared.work.wait_timeout(state, patience);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        (state.idle, state.expected, last) = (false, None, Work::Sync);
    }
}

impl Company {
    /// How long to wait for others, with so many waiting already; `None` if nobody waits.
    fn patience(&mut self, waiting: u32, in_haste: bool, clock: &Clock) -> Option<Duration> {
        if waiting == 0 {
            return None;
        }
        if in_haste || self.calls <= waiting {
            return Some(Duration::ZERO);
        }
        let took = self.took.min(COMPANY_PATIENCE_MAX);
        Some(clock.until(*self.until.get_or_insert_with(|| clock.now() + took)))
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
