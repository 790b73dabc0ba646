//! From the records of a journal back to queues.
//!
//! [`Recovery`] is told every record that is not forgotten, in order, and knows then what they come
//! to; [`Engine::recover`] makes queues of it. A checkpoint may be younger than the log that is
//! replayed over it, so every record bears being replayed over what came after it: counts begin at
//! the checkpoint's own, and what speaks of a task that is gone says nothing.
//!
//! Payloads stay on disk, except where the order of the queue needs them.

mod salvage;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::salvage::Gaps;
pub use self::salvage::{Salvaged, salvage};
use super::records::{attempt_of, decode_note, priority_of};
use super::{Ledger, Log, QueueLog, Stored, spill};
use crate::clock::Clock;
use crate::config::Limits;
use crate::engine::{Engine, Hosted, NoQueue, QueueId, Signer, State, check};
use crate::journal::{Body, Entry, Journal, JournalError, Location, Record, TaskOptions};
use crate::queue::{Facts, Lease, Origin, Queue, QueueOptions, SETTLED_LEN_MAX, TaskId, Token};

/// What the records of a journal come to.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    queues: BTreeMap<QueueId, Found>,
    /// The highest id of a queue so far.
    last_queue: QueueId,
    error: Option<JournalError>,
    /// What is known of a journal with gaps; of a whole one nothing.
    gaps: Option<Gaps>,
}

/// Why the queues of a journal cannot be there again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoveryError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Queue(#[from] NoQueue),
}

/// What was there after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Restored {
    /// Queues.
    pub queues: usize,
    /// Tasks in them.
    pub tasks: usize,
    /// Tasks that are still leased, by token.
    pub leases: usize,
    /// Starts of the server on this directory, with this one.
    pub epoch: u64,
    /// From the begin of reading until everything was there.
    pub took: Duration,
}

/// A queue as it was.
#[derive(Debug, Default)]
struct Found {
    name: String,
    options: QueueOptions,
    next_task: u64,
    unfinished: u64,
    ledger: Ledger,
    /// What is known of tasks that are not plain.
    known: BTreeMap<TaskId, Known>,
    keys: BTreeMap<Arc<[u8]>, u64>,
    /// Tokens that settled their tasks, oldest first. Those in a checkpoint may come again in the log,
    /// so twice as many as are remembered.
    settled: VecDeque<Token>,
}

#[derive(Debug, Default)]
struct Known {
    facts: Facts,
    /// In milliseconds of Unix time.
    not_before: Option<u64>,
    expires: Option<u64>,
}

impl Recovery {
    /// Is told the next record.
    pub(crate) fn visit(&mut self, entry: &Entry<'_>) {
        if self.gaps.is_some() {
            self.bridge(&entry.record);
        }
        if self.error.is_none() && self.apply(&entry.record, entry.location).is_none() {
            let file = entry.segment.map_or_else(
                || format!("{:020}.ckpt", entry.lsn.0),
                |segment| format!("{segment:010}.seg"),
            );
            let what = format!("a record makes no sense after those before it: {:?}", entry.record);
            let what = what.chars().take(200).collect();
            let error = JournalError::Damaged { file, offset: entry.offset, what };
            match &mut self.gaps {
                Some(gaps) => gaps.damages.push(error),
                None => self.error = Some(error),
            }
        }
    }

    /// Nothing if the record cannot be.
    fn apply(&mut self, record: &Record<'_>, location: Option<Location>) -> Option<()> {
        match *record {
            Record::Epoch { .. } | Record::Closed => {}
            Record::Queue { queue, name, settings, next_task, unfinished } => {
                self.last_queue = self.last_queue.max(queue);
                let found = self.queues.entry(queue).or_default();
                found.name = name.to_owned();
                found.options = QueueOptions::from_settings(settings).ok()?;
                (found.next_task, found.unfinished) = (next_task, unfinished);
            }
            Record::Removed { queue } => drop(self.queues.remove(&queue)),
            Record::Dead { queue, task, to_queue, to_task, cause } => {
                self.bury((queue, TaskId(task)), (to_queue, TaskId(to_task)), cause)?;
            }
            Record::Redriven { queue, task, to_queue, to_task } => {
                let moved = self.queues.get_mut(&queue)?.forget(TaskId(task));
                let moved = if planted!(RedrivenForgotten) { None } else { moved };
                let to = self.queues.get_mut(&to_queue)?;
                to.count_put(TaskId(to_task));
                // If it is gone, then it was told where it is now, or what became of it there follows.
                if let Some((stored, known)) = moved {
                    to.ledger.insert(TaskId(to_task), stored);
                    if let Some(key) = known.and_then(|known| known.facts.key) {
                        let facts = Facts { key: Some(key), ..Facts::default() };
                        to.known.insert(TaskId(to_task), Known { facts, ..Known::default() });
                    }
                }
            }
            Record::Ack { queue, task, ref result, .. } => {
                self.queues.get_mut(&queue)?.forget(TaskId(task));
                if let Some(result) = result {
                    let results = self.queues.get_mut(&result.queue)?;
                    results.put(TaskId(result.task), &result.options, &result.body, location?)?;
                }
            }
            _ => {
                let [queue, _] = queues_of(record);
                self.queues.get_mut(&queue?)?.apply(record, location)?;
            }
        }
        Some(())
    }

    /// A task that was given up goes on in another queue, and its history with it.
    fn bury(
        &mut self,
        (queue, task): (QueueId, TaskId),
        (to_queue, to_task): (QueueId, TaskId),
        cause: &str,
    ) -> Option<()> {
        let from = self.queues.get_mut(&queue)?;
        from.unfinished = from.unfinished.saturating_sub(1);
        let name = Arc::from(from.name.as_str());
        let moved = from.forget(task);
        let moved = if planted!(LetterForgotten) { None } else { moved };
        let to = self.queues.get_mut(&to_queue)?;
        to.count_put(to_task);
        // If it is gone, then it was told where it is now, or what became of it there follows.
        let Some((stored, known)) = moved else { return Some(()) };
        let mut facts = known.unwrap_or_default().facts;
        facts.fail(attempt_of(cause)?);
        let origin = Origin {
            queue: name,
            task,
            attempt: facts.failures + 1,
            worker: "".into(),
            waited: Duration::ZERO,
            ran: Duration::ZERO,
            history: facts.history,
        };
        to.ledger.insert(to_task, stored);
        let key = facts.key;
        let facts = Facts { key, origin: Some(Box::new(origin)), ..Facts::default() };
        to.known.insert(to_task, Known { facts, ..Known::default() });
        Some(())
    }
}

impl Found {
    fn apply(&mut self, record: &Record<'_>, location: Option<Location>) -> Option<()> {
        match *record {
            Record::Put { task, ref options, ref body, .. } => {
                self.put(TaskId(task), options, body, location?)?;
            }
            Record::Returned { task, attempt, not_before, cause, .. } => {
                self.give_back(TaskId(task), attempt, not_before, cause)?;
            }
            Record::Purged { before, ref kept, .. } => {
                // They were written in order, and may be many.
                let stays = |task: TaskId| kept.binary_search(&task.0).is_ok();
                self.ledger.purge(TaskId(before), stays);
                self.known.retain(|task, _| before <= task.0 || stays(*task));
                self.keys.clear();
            }
            Record::Moved { task, ref body, .. } => {
                let task = TaskId(task);
                if self.ledger.get(task).is_some() {
                    self.ledger.insert(task, stored(body, location?));
                }
            }
            Record::Seen { key, until, .. } => drop(self.keys.insert(key.into(), until)),
            Record::Leased { task, attempt, lease, hold, .. } => {
                let task = TaskId(task);
                if self.ledger.get(task).is_some() {
                    let token = Token { task, attempt, lease };
                    let lease = Lease { token, hold: Duration::from_millis(hold) };
                    self.known.entry(task).or_default().facts.lease = Some(lease);
                }
            }
            Record::Settled { task, attempt, lease, .. } => {
                if self.settled.len() == 2 * SETTLED_LEN_MAX {
                    self.settled.pop_front();
                }
                self.settled.push_back(Token { task: TaskId(task), attempt, lease });
            }
            Record::Done { tasks, .. } => self.unfinished = self.unfinished.saturating_sub(tasks),
            Record::Turned { task, turned, .. } => {
                self.next_task = self.next_task.max(turned + 1);
                if let Some((stored, known)) = self.forget(TaskId(task)) {
                    self.ledger.insert(TaskId(turned), stored);
                    self.known.extend(known.map(|known| (TaskId(turned), known)));
                }
            }
            Record::Expired { task, .. } => {
                self.unfinished = self.unfinished.saturating_sub(1);
                self.forget(TaskId(task));
            }
            Record::Lasts { .. } if planted!(ExpiryForgotten) => {}
            Record::Lasts { task, until, .. } => {
                let task = TaskId(task);
                if self.ledger.get(task).is_some() {
                    self.known.entry(task).or_default().expires = Some(until);
                }
            }
            Record::Live { task, ref options, codec, prelude_len, location, .. } => {
                self.ledger.insert(TaskId(task), Stored { location, codec, prelude_len });
                self.know(TaskId(task), options)?;
            }
            _ => return None,
        }
        Some(())
    }

    fn put(
        &mut self,
        task: TaskId,
        options: &TaskOptions<'_>,
        body: &Body<'_>,
        location: Location,
    ) -> Option<()> {
        self.count_put(task);
        self.ledger.insert(task, stored(body, location));
        self.know(task, options)
    }

    fn count_put(&mut self, task: TaskId) {
        self.unfinished += 1;
        self.next_task = self.next_task.max(task.0 + 1);
    }

    fn know(&mut self, task: TaskId, options: &TaskOptions<'_>) -> Option<()> {
        if *options == TaskOptions::default() {
            self.known.remove(&task);
            return Some(());
        }
        let TaskOptions { priority, not_before, expires, key, attempt, note } = *options;
        let key = key.map(Arc::from);
        let mut facts = Facts { failures: attempt, key, ..Facts::default() };
        decode_note(task, note, &mut facts)?;
        if let Some(priority) = priority {
            facts.priority = Some(priority_of(priority)?);
        }
        self.known.insert(task, Known { facts, not_before, expires });
        Some(())
    }

    fn give_back(
        &mut self,
        task: TaskId,
        attempt: u32,
        not_before: Option<u64>,
        cause: &str,
    ) -> Option<()> {
        if self.ledger.get(task).is_none() {
            return Some(());
        }
        let failures = attempt.checked_sub(1)?;
        let known = self.known.entry(task).or_default();
        known.not_before = not_before;
        let lease = known.facts.lease.take();
        known.facts.last = lease.map(|lease| lease.token).or(known.facts.last);
        if planted!(FailuresForgotten) {
            return Some(());
        }
        if failures > known.facts.failures {
            known.facts.failures = failures;
            known.facts.fail(attempt_of(cause)?);
        }
        Some(())
    }

    fn forget(&mut self, task: TaskId) -> Option<(Stored, Option<Known>)> {
        let known = self.known.remove(&task);
        Some((self.ledger.remove(task)?, known))
    }
}

/// The queues that must be there for a record to make sense.
fn queues_of(record: &Record<'_>) -> [Option<QueueId>; 2] {
    match *record {
        Record::Epoch { .. } | Record::Closed | Record::Queue { .. } | Record::Removed { .. } => {
            [None, None]
        }
        Record::Dead { queue, to_queue, .. } | Record::Redriven { queue, to_queue, .. } => {
            [Some(queue), Some(to_queue)]
        }
        Record::Ack { queue, ref result, .. } => {
            [Some(queue), result.as_ref().map(|result| result.queue)]
        }
        Record::Put { queue, .. }
        | Record::Returned { queue, .. }
        | Record::Purged { queue, .. }
        | Record::Moved { queue, .. }
        | Record::Seen { queue, .. }
        | Record::Leased { queue, .. }
        | Record::Settled { queue, .. }
        | Record::Done { queue, .. }
        | Record::Turned { queue, .. }
        | Record::Lasts { queue, .. }
        | Record::Expired { queue, .. }
        | Record::Live { queue, .. } => [Some(queue), None],
    }
}

fn stored(body: &Body<'_>, location: Location) -> Stored {
    Stored { location, codec: body.codec, prelude_len: body.prelude_len }
}

// ---- from there to queues

/// For each queue whose results are ordered elsewhere: the tasks that may still have one.
type Awaited = BTreeMap<Arc<str>, (BTreeSet<TaskId>, TaskId)>;

impl Engine {
    /// An engine that goes on where the journal ends, with `declared` queues, whose options win
    /// over those that were kept.
    ///
    /// # Errors
    ///
    /// [`RecoveryError`]: the first record that makes no sense, a body that is not intact where it
    /// is needed, a declaration that cannot be.
    pub(crate) fn recover(
        limits: &Limits,
        create_on_use: bool,
        clock: Clock,
        journal: &Journal,
        recovery: Recovery,
        declared: &[(String, QueueOptions)],
    ) -> Result<(Self, Restored), RecoveryError> {
        if let Some(error) = recovery.error {
            return Err(error.into());
        }
        let epoch = if planted!(EpochOfLeasesAgain) { 1 } else { journal.epoch() };
        let mut engine = Self::with(limits, create_on_use, clock, epoch << 32, 1);
        engine.journal = Some(journal.clone());
        let mut found = recovery.queues;
        let mut state = engine.lock_kept();
        state.log = Some(Box::new(Log::new(journal.clone())));
        state.signer = Signer::new(journal.identity());
        state.counter = recovery.last_queue;
        let mut names = BTreeSet::new();
        for (name, options) in declared {
            check(name, options)?;
            if !names.insert(name) {
                return Err(NoQueue::Declared(name.clone()).into());
            }
            if let Some(again) = found.values_mut().find(|found| found.name == *name) {
                again.options = options.clone();
            }
        }
        let awaited = awaited(&found);
        let options = found.values().map(|it| (&it.name, &it.options));
        let options = options.chain(declared.iter().map(|(name, options)| (name, options)));
        let in_memory: BTreeSet<String> =
            options.filter(|(_, it)| it.needs_bytes()).map(|(name, _)| name.clone()).collect();
        let mut restored = Restored { epoch: journal.epoch(), ..Restored::default() };
        for (id, found) in found {
            restored.queues += 1;
            restored.tasks += found.ledger.len();
            restored.leases +=
                state.restore(id, found, &awaited, &in_memory, &engine.clock, journal)?;
        }
        for (name, options) in declared {
            engine.ensure(&mut state, name, options.clone())?;
        }
        state.keep_letters_in_memory();
        engine.commit(&mut state);
        drop(state);
        engine.declare_named()?;
        Ok((engine, restored))
    }
}

impl State {
    /// Makes a queue of what was found of it; says how many of its tasks are leased by token.
    fn restore(
        &mut self,
        id: QueueId,
        found: Found,
        awaited: &Awaited,
        in_memory: &BTreeSet<String>,
        clock: &Clock,
        journal: &Journal,
    ) -> Result<usize, RecoveryError> {
        let Found { name, options, next_task, unfinished, ledger, mut known, keys, settled } =
            found;
        let name: Arc<str> = name.into();
        let queue_log = QueueLog::of(&options);
        let mut queue = Queue::resumed(options, self.first_lease, TaskId(next_task), unfinished);
        let bodies = journal.bodies();
        let letters = queue.options().dead_letters_of(&name);
        let needs_bytes =
            queue.needs_bytes() || queue_log.is_none() || in_memory.contains(&letters);
        if queue_log.is_some() {
            spill(&mut queue);
        }
        let mut leases = 0;
        let step = &mut self.step;
        if queue.options().ordered {
            for (source, (tasks, next)) in awaited {
                let results = known.values().filter_map(|known| known.facts.origin.as_deref());
                let early: BTreeSet<_> = results
                    .filter(|origin| origin.queue == *source && origin.history.is_empty())
                    .map(|origin| origin.task)
                    .collect();
                let first = tasks.first().copied().unwrap_or(*next);
                let never = (first.0..next.0).map(TaskId);
                let never = never.filter(|task| !tasks.contains(task) && !early.contains(task));
                queue.restore_turns(source.clone(), first, never.collect());
            }
        }
        for (task, stored) in ledger.iter() {
            let mut payload = stored.evicted();
            if needs_bytes {
                let read = bodies.read(stored.location);
                payload.bytes =
                    read.map_err(|error| error.of_task(|| Some((name.to_string(), task.0))))?;
            }
            let Some(Known { mut facts, not_before, expires }) = known.remove(&task) else {
                queue.restore(task, payload, step);
                continue;
            };
            let not_before = if planted!(DelayForgotten) { None } else { not_before };
            facts.not_before = not_before.map(|unix| clock.time_of(unix));
            facts.expires = expires.map(|unix| clock.time_of(unix));
            leases += usize::from(facts.lease.is_some());
            match facts.origin.take_if(|origin| {
                let first = awaited.get(&origin.queue).and_then(|(tasks, _)| tasks.first());
                let is_early = first.is_some_and(|first| *first < origin.task);
                queue.options().ordered && origin.history.is_empty() && is_early
            }) {
                Some(origin) => queue.restore_early(task, payload, origin, facts.key, step),
                None => queue.restore_with(task, payload, facts, step),
            }
        }
        for (key, until) in keys {
            queue.restore_key(key, clock.time_of(until), step);
        }
        if !planted!(SettledForgotten) {
            queue.restore_settled(settled.into_iter());
        }
        let log = self.log.as_mut();
        let queue_log = queue_log.map(|mut queue_log| {
            queue_log.ledger = ledger;
            queue_log
        });
        match (log, &queue_log) {
            (Some(log), Some(queue_log)) => {
                log.count_leased(0, queue.leased());
                log.record_declared((id, queue_log.durability), &queue);
            }
            (Some(log), None) => log.record_dropped(id),
            (None, _) => {}
        }
        self.directory.names.insert(name.clone(), id);
        let signer = self.signer.of(id, Some(&name));
        let hosted = Hosted::new(queue, Some(name), signer, queue_log, self.step.now);
        self.take_in_hosted(id, hosted);
        self.watch_name(id);
        self.touched.push(id);
        Ok(leases)
    }
}

/// The tasks of every queue that results in order may still come of.
fn awaited(found: &BTreeMap<QueueId, Found>) -> Awaited {
    let ordered: BTreeSet<_> =
        found.values().filter(|it| it.options.ordered).map(|it| it.name.as_str()).collect();
    let has_ordered_results = |it: &&Found| {
        it.options.results.as_deref().is_some_and(|results| ordered.contains(results))
    };
    found
        .values()
        .filter(has_ordered_results)
        .map(|it| {
            let tasks = it.ledger.iter().map(|(task, _)| task).collect();
            (Arc::from(it.name.as_str()), (tasks, TaskId(it.next_task)))
        })
        .collect()
}
