//! The threads of a journal: thin loops around the steps.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::desk::{self, Desk};
use super::error::During;
use super::recover::{Opened, open};
use super::state::Shared;
use super::{Directory, Entry, Journal, JournalError, Options, Recovered, Upkeep, Writer};
use crate::clock::Clock;

/// How long upkeep, and the writer, wait until they ask a full disk again.
const FULL_DISK_PATIENCE: Duration = Duration::from_secs(1);

/// Longest time that a frame waits for calls that are likely to come.
const COMPANY_PATIENCE_MAX: Duration = Duration::from_millis(2);

/// Up to so many calls a lease does not wait for them: more keep the writer busy anyway, and one write
/// for all costs less.
const FEW: u32 = 32;

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
    /// Somebody else has written what is to be synced in time.
    Timer,
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
        let desk = journal.share(writer, Clock::start());
        let writer = spawn("journal-writer", move || write(&desk))?;
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

fn write(desk: &Mutex<Desk>) -> Result<(), JournalError> {
    let shared = desk::lock(desk)?.writer.shared().clone();
    let clock = Clock::start();
    let mut company = Company::default();
    let mut sync_at = None;
    let mut is_full = false;
    loop {
        let interval = shared.options.sync_interval;
        let is_dirty = shared.lock().is_dirty();
        sync_at = is_dirty.then(|| sync_at.unwrap_or_else(|| clock.now() + interval));
        let work = next_work(&shared, sync_at.map(|at| clock.until(at)))?;
        let desk = &mut *desk::lock(desk)?;
        match work {
            Work::Frame => match company.write(desk, &clock) {
                Err(error @ JournalError::DiskFull { .. }) => {
                    if !std::mem::replace(&mut is_full, true) {
                        tracing::error!("everybody waits: {error}");
                    }
                    wait_for_space(&shared, &error)?;
                }
                done => {
                    done?;
                    is_full = false;
                }
            },
            Work::Timer => {}
            Work::Sync => desk.writer.sync()?,
            Work::Close => return desk.writer.close(),
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
fn next_work(shared: &Shared, patience: Option<Duration>) -> Result<Work, JournalError> {
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
        if patience.is_none() && state.is_dirty() {
            return Ok(Work::Timer);
        }
        (state.idle, state.has_timer) = (true, patience.is_some());
        state = match patience {
            None => shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                let waited = shared.work.wait_timeout(state, patience);
                let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state.has_timer = false;
                if timeout.timed_out() && !state.has_batch() {
                    return Ok(Work::Sync);
                }
                state
            }
        };
    }
}

impl Company {
    /// Writes what has gathered, and syncs it if somebody waits for that, once all are there who are
    /// likely to come.
    fn write(&mut self, desk: &mut Desk, clock: &Clock) -> Result<(), JournalError> {
        let calls = self.gather(&mut desk.writer, clock)?;
        let took = desk.step()?;
        if calls > 0 {
            *self = Self { calls: calls + desk.writer.shared().lock().gathered(), took };
        }
        Ok(())
    }

    /// Gives the calls of the last sync a moment to come again, as long as it took; says how many are
    /// there. Where they are few, what waits for no more than the writing is written meanwhile, as its
    /// callers may want a sync next.
    fn gather(&self, writer: &mut Writer, clock: &Clock) -> Result<u32, JournalError> {
        let shared = writer.shared().clone();
        let until = clock.now() + self.took.min(COMPANY_PATIENCE_MAX);
        let are_few = self.calls <= FEW;
        loop {
            let mut state = shared.lock();
            let calls = writer.waiting() + state.gathered();
            let patience = clock.until(until);
            let is_over = patience.is_zero() || state.failed.is_some() || state.closing;
            if calls == 0 || self.calls <= calls || is_over {
                return Ok(calls);
            }
            if are_few && state.is_pressing() {
                drop(state);
                writer.write_frame()?;
                continue;
            }
            (state.expected, state.is_at_hand) = (Some(self.calls - writer.waiting()), are_few);
            let waited = shared.work.wait_timeout(state, patience);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            (state.expected, state.is_at_hand) = (None, false);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::disk::Disk;
    use crate::journal::{Durability, Record};

    #[test]
    fn what_somebody_else_has_only_written_is_synced_in_time() {
        let options = Options {
            segment_bytes: 4096,
            sync_interval: Duration::from_millis(1),
            ..Options::default()
        };
        let opened = open(Arc::new(Disk::default()), options, 1, &mut |_| {});
        let Opened { journal, writer, .. } = opened.unwrap();
        // By this clock every sync is quick.
        let desk = journal.share(writer, Clock::manual(0));
        let append = |durability| {
            journal.append(&[Record::Done { queue: 1, tasks: 1 }], durability, &mut Vec::new())
        };
        thread::scope(|scope| {
            scope.spawn(|| write(&desk));
            for _ in 0..20 {
                let put = append(Durability::Disk);
                journal.durable(put, Durability::Disk).wait().unwrap();
                let lease = append(Durability::Os);
                journal.write_here();
                journal.durable(lease, Durability::Disk).wait().unwrap();
            }
            journal.close();
        });
    }

    #[test]
    fn a_lease_is_written_while_the_writer_waits_for_few_others() {
        let options = Options { segment_bytes: 4096, ..Options::default() };
        let opened = open(Arc::new(Disk::default()), options, 1, &mut |_| {});
        let Opened { journal, mut writer, .. } = opened.unwrap();
        let append = |durability| {
            journal.append(&[Record::Done { queue: 1, tasks: 1 }], durability, &mut Vec::new())
        };
        // By this clock nobody loses patience.
        let clock = Clock::manual(0);
        let company = Company { calls: 2, took: COMPANY_PATIENCE_MAX };
        append(Durability::Disk);
        thread::scope(|scope| {
            let gathered = scope.spawn(|| {
                let calls = company.gather(&mut writer, &clock);
                (calls, writer.waiting())
            });
            let lease = append(Durability::Os);
            while !journal.durable(lease, Durability::Os).is_over() {
                thread::yield_now();
            }
            assert!(!gathered.is_finished(), "another one is waited for");
            assert!(!journal.durable(lease, Durability::Disk).is_over());
            append(Durability::Disk);
            assert!(matches!(gathered.join(), Ok((Ok(2), 1))));
        });
        // Those that were written before are synced with it.
        writer.step().unwrap();
        assert!(!writer.is_dirty() && writer.waiting() == 0);
    }
}
