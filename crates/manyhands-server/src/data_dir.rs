//! The data directory of a server: its journal, the engine that goes on where that ends, and the
//! thread that writes checkpoints.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::Limits;
use crate::engine::{Engine, Recovery, RecoveryError, Restored};
use crate::error::StartError;
use crate::journal::{self, Journal};
pub(crate) use crate::journal::{JournalError, Running};
use crate::queue::{Durability, QueueOptions};

/// What a frame takes beside the request that it keeps, in bytes: names, notes, headers.
const FRAME_OVERHEAD_BYTES: u64 = 64 << 10;
/// Largest segment, in bytes: positions have 32 bits, with room to spare.
const SEGMENT_BYTES_MAX: u64 = (1 << 30) - 1;
/// How often it is looked whether a checkpoint is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// The same while the disk is full and others wait for what a checkpoint frees.
const LOOK_INTERVAL_ON_FULL_DISK: Duration = Duration::from_millis(20);
/// Looks after which a checkpoint is tried on a full disk, even if little has happened.
const LOOKS_ON_FULL_DISK: u32 = 250;
/// Pause after a checkpoint that failed, mostly because the disk is full.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Segments that are written between two checkpoints, at least.
const SEGMENTS_PER_CHECKPOINT: u64 = 4;

/// The journal in `directory` and an engine with what it holds.
pub(crate) fn open(
    directory: &Path,
    limits: &Limits,
    create_on_use: bool,
    declared: &[(String, QueueOptions)],
) -> Result<(Running, Engine, Restored), StartError> {
    // What cannot be looked at cannot be opened either, and that says why.
    if let Ok(Some(shared)) = journal::readable_by_others(directory) {
        tracing::warn!("other users of this machine have access to {shared}");
    }
    let clock = Clock::start();
    let mut recovery = Recovery::default();
    let running = Running::start(directory, options(limits)?, &mut |entry| recovery.visit(&entry))?;
    let recovered =
        Engine::recover(limits, create_on_use, clock, running.journal(), recovery, declared);
    let (engine, mut restored) = recovered.map_err(|error| match error {
        RecoveryError::Journal(error) => StartError::Journal(error),
        RecoveryError::Queue(error) => StartError::Queue(error),
    })?;
    restored.took = engine.uptime();
    if let Some((segment, offset)) = running.recovered().torn {
        tracing::warn!(segment, offset, "cut off what was being written when the server ended");
    }
    Ok((running, engine, restored))
}

fn options(limits: &Limits) -> Result<journal::Options, StartError> {
    let needed = limits.frame_bytes_max.saturating_add(FRAME_OVERHEAD_BYTES);
    let bytes = limits.segment_bytes.max(needed).next_multiple_of(4096);
    let segment_bytes = u32::try_from(bytes).ok().filter(|_| bytes <= SEGMENT_BYTES_MAX);
    let segment_bytes = segment_bytes.ok_or(StartError::SegmentBytes(bytes))?;
    let checkpoint_bytes_min = SEGMENTS_PER_CHECKPOINT * u64::from(segment_bytes);
    Ok(journal::Options { segment_bytes, checkpoint_bytes_min, ..journal::Options::default() })
}

/// The journal of a server that runs.
#[derive(Debug)]
pub(crate) struct Data {
    running: Option<Running>,
    /// Dropped to end the thread.
    ends: Option<Sender<()>>,
    stops: Arc<AtomicBool>,
    checkpoints: Option<JoinHandle<()>>,
}

impl Data {
    /// Has checkpoints written whenever one is due.
    pub(crate) fn new(running: Running, engine: &Arc<Engine>) -> std::io::Result<Self> {
        let (ends, ended) = channel();
        let stops = Arc::new(AtomicBool::new(false));
        let checkpoints =
            std::thread::Builder::new().name("journal-checkpoints".into()).spawn({
                let (engine, journal, stops) =
                    (engine.clone(), running.journal().clone(), stops.clone());
                move || keep_checkpoints(&engine, &journal, &stops, &ended)
            })?;
        Ok(Self { running: Some(running), ends: Some(ends), stops, checkpoints: Some(checkpoints) })
    }

    /// Resolves when nothing can be kept any more.
    pub(crate) async fn failed(&self) -> JournalError {
        match &self.running {
            Some(running) => running.journal().failed().await,
            None => std::future::pending().await,
        }
    }

    /// The journal, to append with.
    pub(crate) fn journal(&self) -> Option<Journal> {
        self.running.as_ref().map(|running| running.journal().clone())
    }

    /// Makes durable what was appended, and ends.
    pub(crate) fn close(mut self) -> Result<(), JournalError> {
        self.stop_checkpoints();
        self.running.take().map_or(Ok(()), Running::close)
    }

    fn stop_checkpoints(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        self.ends = None;
        if let Some(checkpoints) = self.checkpoints.take() {
            // It has nothing to say that the journal has not.
            checkpoints.join().ok();
        }
    }
}

fn keep_checkpoints(engine: &Engine, journal: &Journal, stops: &AtomicBool, ended: &Receiver<()>) {
    let mut pause = LOOK_INTERVAL;
    let mut looks = 0;
    while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let may_help = journal.checkpoint_may_help();
        pause = if may_help { LOOK_INTERVAL_ON_FULL_DISK } else { LOOK_INTERVAL };
        looks = if may_help { looks + 1 } else { 0 };
        if !journal.checkpoint_is_due() && looks < LOOKS_ON_FULL_DISK {
            continue;
        }
        looks = 0;
        match engine.checkpoint(stops) {
            Ok(done) => tracing::debug!(bytes = done.bytes, freed = done.freed, "checkpoint"),
            Err(_) if stops.load(Ordering::Relaxed) => return,
            Err(error) => {
                tracing::warn!("no checkpoint: {error}");
                pause = PAUSE_AFTER_FAILURE;
            }
        }
    }
}

/// Without a data directory nothing can be kept.
pub(crate) fn check_without(declared: &[(String, QueueOptions)]) -> Result<(), StartError> {
    let kept = |(name, options): &(String, QueueOptions)| {
        let durability = options.durability.filter(|it| *it != Durability::Memory)?;
        Some(StartError::NoData { queue: name.clone(), durability })
    };
    declared.iter().find_map(kept).map_or(Ok(()), Err)
}

impl Drop for Data {
    fn drop(&mut self) {
        self.stop_checkpoints();
    }
}
