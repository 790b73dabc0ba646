//! The server's side of a world: an engine in memory, or one on a simulated disk, without threads.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;
use manyhands::wire::token::LeaseToken;

use super::model::Kept;
use super::setting::Setting;
use super::world::{NAMES, item};
use crate::clock::Clock;
use crate::config::Limits;
use crate::engine::{Caller, Engine, Recovery, RecoveryError};
use crate::frontend::classic::verbs::Classic;
use crate::journal::tests::beside::Beside;
use crate::journal::tests::disk::Disk;
use crate::journal::{
    self, Checkpointed, Desk, Durability, Journal, JournalError, Lsn, Opened, Options, Upkeep,
};
use crate::queue::{Facts, Outcome, Queue, TaskId, Time};

/// 2026 in milliseconds of Unix time, when every world begins.
pub(super) const BEGIN: u64 = 1_770_000_000_000;

/// When every world begins by its clock: late enough for the time of day to be set back often.
pub(super) fn begin() -> Time {
    Time::default() + Duration::from_secs(1000 * 24 * 3600)
}

const OPTIONS: Options = Options {
    segment_bytes: 0,
    frame_bytes_max: 0,
    spares_max: 3,
    checkpoint_bytes_min: 0,
    checkpoint_chunk_bytes: 0,
    sparse_percent: 90,
    sync_interval: Duration::ZERO,
};

/// Room for the results of one action, in bytes.
const RESULTS_BYTES: u64 = 4096;

/// One life of a server.
pub(super) struct Machine {
    pub(super) engine: Arc<Engine>,
    /// What stock clients have in hand; it ends with the process.
    pub(super) classic: Arc<Classic>,
    log: Option<(Arc<Mutex<Desk>>, Upkeep)>,
    /// A checkpoint that is being written.
    checkpoint: Option<Beside<Result<Checkpointed, JournalError>>>,
}

impl Machine {
    pub(super) fn in_memory(setting: &Setting) -> Self {
        let engine = Engine::simulated(&limits(), Clock::manual(BEGIN));
        engine.clock().put_forward(begin().since(Time::default()));
        for (name, options) in setting.declared() {
            engine.declare(&name, options).unwrap();
        }
        Self::of(engine, None)
    }

    /// Goes on with what is on the disk, at `now`; at the begin of time it was `unix` by the time of
    /// day. Nothing if the process dies of a fault meanwhile.
    pub(super) fn on(disk: &Disk, setting: &Setting, now: Time, unix: u64) -> Option<Self> {
        let mut recovery = Recovery::default();
        let storage = Arc::new(disk.clone());
        let Setting { frame_bytes_max, checkpoint_chunk_bytes, segment_bytes, .. } = *setting;
        let options = Options { frame_bytes_max, checkpoint_chunk_bytes, segment_bytes, ..OPTIONS };
        let opened = journal::open(storage, options, 7, &mut |entry| recovery.visit(&entry));
        let Opened { journal, writer, upkeep, .. } = survive(opened)?;
        let clock = Clock::manual(unix);
        clock.put_forward(now.since(Time::default()));
        let declared = setting.declared();
        let recovered = Engine::recover(&limits(), true, clock, &journal, recovery, &declared);
        let (engine, _) = match recovered {
            Err(RecoveryError::Journal(error)) => survive(Err(error))?,
            recovered => recovered.unwrap(),
        };
        let log = Some((journal.share(writer, Clock::manual(unix)), upkeep));
        Some(Self::of(engine, log))
    }

    fn of(engine: Engine, log: Option<(Arc<Mutex<Desk>>, Upkeep)>) -> Self {
        let engine = Arc::new(engine);
        let classic = Classic::new(engine.clone(), &limits());
        Self { engine, classic, log, checkpoint: None }
    }

    /// What the timers sleep for.
    pub(super) fn arm(&self) -> Option<Time> {
        [self.engine.arm(), self.classic.arm()].into_iter().flatten().min()
    }

    /// Whether a timer was told of an earlier deadline.
    pub(super) fn timer_is_told(&self) -> bool {
        let context = &mut Context::from_waker(Waker::noop());
        let engine = pin!(self.engine.timer_is_told()).poll(context).is_ready();
        let classic = pin!(self.classic.timer_is_told()).poll(context).is_ready();
        engine || classic
    }

    /// Does some of what is due.
    pub(super) fn expire(&self) {
        self.engine.expire();
        self.classic.expire();
    }

    /// Writes a frame, if there is one, as a session that is alone does if it can; false if the process
    /// died.
    pub(super) fn write(&mut self) -> bool {
        let Some((desk, _)) = &self.log else { return true };
        let before = self.written();
        self.engine.journal().into_iter().for_each(Journal::write_here);
        before < self.written() || desk.lock().unwrap().step().is_ok()
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self) -> bool {
        let Some((desk, _)) = &self.log else { return true };
        let mut desk = desk.lock().unwrap();
        let writer = desk.writer();
        loop {
            match writer.step() {
                Ok(true) => {}
                Ok(false) => return writer.sync().is_ok(),
                Err(_) => return false,
            }
        }
    }

    /// Sees to it that there is room for puts.
    pub(super) fn keep_room(&self) -> bool {
        let Some((_, upkeep)) = &self.log else { return true };
        while upkeep.is_short() {
            if upkeep.step().is_err() {
                return false;
            }
        }
        true
    }

    /// Takes all room for puts away, as others who fill the disk do, and leaves that for results;
    /// false if there is none for results.
    pub(super) fn take_room(&self) -> bool {
        let journal = self.journal();
        journal.is_some_and(|journal| {
            journal.refuse_puts();
            journal.rooms().puts == 0 && journal.rooms().results >= RESULTS_BYTES
        })
    }

    /// There is room again, or will be once [`Self::keep_room`] has seen to it.
    pub(super) fn give_room(&self) {
        if let Some(journal) = self.journal() {
            journal.make_spares_again();
        }
    }

    fn journal(&self) -> Option<&Journal> {
        self.engine.journal()
    }

    /// Begins to write a checkpoint, or goes on with it up to the next call of the disk. What it came
    /// to, if that was the end of it.
    pub(super) fn checkpoint(&mut self) -> Option<Result<Checkpointed, JournalError>> {
        let engine = &self.engine;
        let checkpoint = self.checkpoint.get_or_insert_with(|| {
            let engine = engine.clone();
            Beside::new(move || engine.checkpoint(&AtomicBool::new(false)))
        });
        let done = checkpoint.step()?;
        self.checkpoint = None;
        Some(done)
    }

    /// Takes what is ready in a queue, for good.
    pub(super) fn take(&mut self, queue: usize) -> Option<Payload> {
        let (engine, caller) = (self.engine.clone(), Caller::IN_PROCESS);
        let reference = engine.open(NAMES[queue]).unwrap();
        let ticket = engine.get(caller, reference, 5, Wait::No);
        let mut redeemed = pin!(engine.redeem(caller, reference, ticket));
        let mut context = Context::from_waker(Waker::noop());
        let mut outcome = redeemed.as_mut().poll(&mut context);
        if outcome.is_pending() {
            assert!(self.sync(), "faults are over");
            outcome = redeemed.as_mut().poll(&mut context);
        }
        let Poll::Ready(outcome) = outcome else { panic!("it waits for more than the disk") };
        match outcome.unwrap().unwrap() {
            Outcome::Task(grant) => Some(grant.payload),
            _ => None,
        }
    }

    /// Whether a checkpoint is being written.
    pub(super) fn is_in_checkpoint(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// Whether nothing becomes durable any more.
    pub(super) fn has_failed(&self) -> bool {
        self.journal().is_some_and(|journal| journal.failure().is_some())
    }

    /// The last frame with something that queues changed.
    pub(super) fn appended(&self) -> Lsn {
        self.engine.appended()
    }

    /// The last frame that survives everything.
    pub(super) fn durable(&self) -> Lsn {
        self.journal().map(|journal| journal.reached(Durability::Disk)).unwrap_or_default()
    }

    /// The last frame that survives the end of the process.
    pub(super) fn written(&self) -> Lsn {
        self.journal().map(|journal| journal.reached(Durability::Os)).unwrap_or_default()
    }

    /// Whether a task that nobody has may still be settled by this token.
    pub(super) fn is_last(&self, queue: usize, token: LeaseToken) -> bool {
        let last = self.facts(queue, token).and_then(|facts| facts.last);
        last.is_some_and(|last| last.lease == token.lease)
    }

    /// Whether somebody has a task by this token.
    pub(super) fn is_held(&self, queue: usize, token: LeaseToken) -> bool {
        let lease = self.facts(queue, token).and_then(|facts| facts.lease);
        lease.is_some_and(|lease| lease.token.lease == token.lease)
    }

    fn facts(&self, queue: usize, token: LeaseToken) -> Option<Facts> {
        self.engine.inspect(NAMES[queue], |queue| queue.facts(TaskId(token.task)))
    }

    /// The process ends: nothing that it does from now on reaches the disk.
    pub(super) fn end(&mut self) {
        self.checkpoint = None;
        self.log = None;
    }

    /// What the journal would bring back.
    pub(super) fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        for (queue, name) in NAMES.into_iter().enumerate() {
            kept.unfinished.push(self.engine.inspect(name, Queue::unfinished));
            for (payload, facts) in self.engine.stored(name) {
                let item = item(&payload);
                kept.leases.extend(facts.lease.map(|it| (queue, item, it.hold.as_millis())));
                assert!(kept.tasks.insert((queue, item, facts.failures)), "{item} is there twice");
            }
        }
        kept
    }
}

/// What a fault of the disk is an answer to; every other error is one of ours.
fn survive<T>(result: Result<T, JournalError>) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(JournalError::Io { .. } | JournalError::Poisoned(_) | JournalError::Stopped(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Names and references go soon that nobody uses, so that they do in most worlds.
fn limits() -> Limits {
    Limits { unused_timeout: Duration::from_secs(20), ..Limits::default() }
}
