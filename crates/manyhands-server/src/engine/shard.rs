//! What the lock of a shard guards: queues with their names, deadlines, leases, budget and log, and the
//! calls that wait on them.
//!
//! [`State::on`] is the single door of every change to a queue. Whatever has to know what changed
//! (the log, the deadlines, the leases, the dead letters) learns it there, so that no change can go
//! past it.
//!
//! A step is one call, or one alarm of the timer:
//!
//! ```text
//! Engine::lock ─▶ State::on, once or several times ─▶ Engine::commit ─▶ Promise
//!                   Queue::put, get, ack, …            follow_up   calls that were set free, dead letters
//!                   observers and log learn of it       look_after  deadlines, shortage of memory
//!                                                      append      one frame for all of it
//!                                                      tell_answers
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;
use tokio::sync::oneshot;

use crate::config::{Limits, standing_bytes};
use crate::engine::directory::Directory;
use crate::engine::{
    Common, Completion, Credits, Leases, Log, Notices, Observers, Parked, Promise, QueueId,
    QueueLog, Ruin, Signer, Starved, Waiting,
};
use crate::queue::{DeadLetter, Outcome, Queue, QueueOptions, Room, Step, TaskId, Time, WaiterId};

/// All that the lock of one shard guards.
#[derive(Debug)]
pub(super) struct State {
    /// Which one it is, and of how many: numbers that it gives out tell.
    pub(super) shard: u64,
    shards: u64,
    /// What it has in common with the others.
    pub(super) common: Arc<Common>,
    /// Which queue has which name. Knows no tasks.
    pub(super) directory: Directory,
    pub(super) queues: HashMap<QueueId, Hosted>,
    pub(super) leases: Leases,
    pub(super) waiting: Parked,
    pub(super) credits: Credits,
    /// When something is next to be done: for each queue that has a deadline its first one.
    pub(super) deadlines: BTreeSet<(Time, Alarm)>,
    /// What the timer sleeps for.
    pub(super) armed: Option<Time>,
    /// Queues with a `put` that waits for memory rather than for a slot.
    pub(super) short_of_memory: BTreeSet<QueueId>,
    /// The last of these that puts were let into.
    pub(super) relieved: QueueId,
    /// Calls that would take a task, but wait for the memory that a lease needs; oldest first.
    pub(super) starved: BTreeMap<WaiterId, Starved>,
    /// Bytes after which a batch ends.
    pub(super) batch_bytes_max: usize,
    pub(super) step: Step,
    /// Queues that are gone and still take memory, oldest first.
    pub(super) ruins: VecDeque<Ruin>,
    /// Whether further calls belong to this step, which ends after them.
    pub(super) goes_on: bool,
    /// Whether this step has cleared some of a ruin away.
    pub(super) has_cleared: bool,
    /// Queues that changed in this step.
    pub(super) touched: Vec<QueueId>,
    /// Tasks that were given up in this step.
    pub(super) letters: VecDeque<(QueueId, DeadLetter)>,
    /// Tasks that ended in this step without a result.
    pub(super) resultless: VecDeque<(QueueId, TaskId)>,
    pub(super) is_stopped: bool,
    /// Source of queue ids, serials and waiter ids.
    pub(super) counter: u64,
    /// Number of the first lease of each queue, above those of earlier runs.
    pub(super) first_lease: u64,
    /// What proves that a lease's token is ours.
    pub(super) signer: Signer,
    /// What is kept on disk; nothing without a data directory.
    pub(super) log: Option<Box<Log>>,
    /// Whoever looks at every change, of queues in memory too.
    pub(super) observers: Observers,
    /// Calls that ended in this step, to be told at its end.
    pub(super) answers: Vec<Ended>,
}

/// A call that waited and has ended in this step.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) queue: QueueId,
    pub(super) outcome: Outcome,
    pub(super) is_by_token: bool,
    pub(super) is_received: bool,
    pub(super) to: oneshot::Sender<Completion>,
}

/// What a deadline is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    Queue(QueueId),
    /// Of a call that waits for the memory of a lease.
    Starved(WaiterId),
    /// A name may be unused.
    Name(QueueId),
    /// What is left of queues that are gone is to be cleared away.
    Ruins,
}

/// A queue and what the engine knows of it.
#[derive(Debug)]
pub(super) struct Hosted {
    pub(super) queue: Queue,
    /// A queue without a name lives as long as it is referenced, or pinned.
    pub(super) name: Option<Arc<str>>,
    /// Signs the tokens of its leases.
    pub(super) signer: Signer,
    /// What clients call a queue without a name, if the embedding program says so.
    pub(super) label: Option<Arc<str>>,
    /// How many handles of the embedding program keep it alive.
    pub(super) pins: u64,
    /// How many references to it clients hold.
    pub(super) references: usize,
    /// It is declared, or named by a declared queue, or the embedding program has asked for it: its
    /// name stays as long as the server.
    pub(super) stays: bool,
    /// A client has declared it: it stays until it is dropped.
    pub(super) is_configured: bool,
    /// When it changed, or was referred to, for the last time.
    pub(super) last_used: Time,
    /// When it is next looked whether it is unused.
    pub(super) alarm: Option<Time>,
    pub(super) deadline: Option<Time>,
    pub(super) notices: Notices,
    /// What is on disk of it; nothing of a queue in memory.
    pub(super) queue_log: Option<Box<QueueLog>>,
}

impl State {
    /// One of several shards, without queues.
    pub(super) fn new(
        limits: &Limits,
        step: Step,
        first_lease: u64,
        common: Arc<Common>,
        (shard, shards): (u64, u64),
    ) -> Self {
        Self {
            shard,
            shards,
            common,
            directory: Directory::of(limits),
            queues: HashMap::new(),
            leases: Leases::default(),
            waiting: Parked::default(),
            credits: Credits::default(),
            deadlines: BTreeSet::new(),
            armed: None,
            short_of_memory: BTreeSet::new(),
            relieved: 0,
            starved: BTreeMap::new(),
            batch_bytes_max: limits.batch_bytes_max(),
            step,
            ruins: VecDeque::new(),
            goes_on: false,
            has_cleared: false,
            touched: Vec::new(),
            letters: VecDeque::new(),
            resultless: VecDeque::new(),
            is_stopped: false,
            counter: shard,
            first_lease,
            signer: Signer::random(),
            log: None,
            observers: Observers::default(),
            answers: Vec::new(),
        }
    }

    /// What is held for clients beside tasks, in bytes.
    pub(super) fn standing_bytes(&self) -> u64 {
        let queues = self.common.queues.load(Ordering::Relaxed);
        standing_bytes(self.common.callers.len(), queues)
    }

    /// Whether this shard has a queue, if it is there.
    pub(super) fn has(&self, queue: QueueId) -> bool {
        self.shards == 1 || queue % self.shards == self.shard
    }

    /// A number that nothing else has in this run.
    pub(super) fn next(&mut self) -> u64 {
        self.counter += self.shards;
        self.counter
    }

    /// The single door of every change to a queue.
    ///
    /// Changes it, if it is there. [`follow_up`](Self::follow_up) does what it leaves to be
    /// done; what a journal has to keep of it goes to the log, and all of it to observers.
    pub(super) fn on<R>(
        &mut self,
        queue: QueueId,
        change: impl FnOnce(&mut Queue, &mut Step) -> R,
    ) -> Option<R> {
        let hosted = self.queues.get_mut(&queue)?;
        hosted.last_used = self.step.now;
        let known = hosted.queue.tally().known;
        let result = if hosted.queue_log.is_none() && self.observers.is_empty() {
            #[cfg(test)]
            crate::engine::work::add(1);
            change(&mut hosted.queue, &mut self.step)
        } else {
            let mut log = self.log.as_mut().zip(hosted.queue_log.as_ref());
            let (changes, room) =
                log.as_mut().map_or((Vec::new(), Room::ENOUGH), |(log, _)| log.open());
            let begin = changes.len();
            (self.step.changes, self.step.room) = (Some(changes), room);
            let leased = hosted.queue.leased();
            let result = change(&mut hosted.queue, &mut self.step);
            let changes = self.step.changes.take().unwrap_or_default();
            let room = std::mem::replace(&mut self.step.room, Room::ENOUGH);
            let recorded = changes.get(begin..).unwrap_or_default();
            #[cfg(test)]
            crate::engine::work::add(recorded.len());
            self.observers.tell(self.step.now, queue, hosted.called(), recorded);
            if let Some((log, queue_log)) = log {
                log.close((queue, queue_log.durability), (changes, begin), room);
                log.count_leased(leased, hosted.queue.leased());
            }
            result
        };
        if self.touched.last() != Some(&queue) {
            self.touched.push(queue);
        }
        let known = hosted.queue.tally().known - known;
        if known > 0 || !self.step.lapsed.is_empty() {
            hosted.tell_step(&self.step.lapsed, known, self.step.now);
        }
        for (task, holder) in self.step.lapsed.drain(..) {
            self.leases.remove(holder.into(), queue, task);
        }
        if !self.step.dead.is_empty() {
            self.letters.extend(self.step.dead.drain(..).map(|letter| (queue, letter)));
        }
        if !self.step.resultless.is_empty() {
            self.resultless.extend(self.step.resultless.drain(..).map(|task| (queue, task)));
        }
        Some(result)
    }

    /// Whether somebody outside of the queues that a step changed waits for what is done at its end:
    /// another queue, or whoever there was no memory for.
    pub(super) fn owes(&self) -> bool {
        !(self.letters.is_empty()
            && self.resultless.is_empty()
            && self.short_of_memory.is_empty()
            && self.starved.is_empty()
            && self.credits.is_empty())
    }

    /// Does what the changes of this step have left to be done, until nothing is left.
    pub(super) fn follow_up(&mut self) {
        loop {
            self.deliver();
            if let Some((queue, letter)) = self.letters.pop_front() {
                self.bury(queue, letter);
            } else if let Some((queue, task)) = self.resultless.pop_front() {
                self.skip_result(queue, task);
            } else {
                return;
            }
        }
    }

    /// Answers the calls that the queues set free. A client that left meanwhile has taken its call
    /// out of the queue, under the same lock, so nobody is answered who does not wait.
    pub(super) fn deliver(&mut self) {
        while !self.step.wakes.is_empty() {
            for (id, outcome) in std::mem::take(&mut self.step.wakes) {
                let Some(waiting) = self.waiting.remove(id) else {
                    self.push(id, outcome);
                    continue;
                };
                let Waiting { reference, caller, settles, is_by_token, receives, outcome: sender } =
                    waiting;
                let queue = reference.queue;
                let mut is_received = false;
                match &outcome {
                    Outcome::Task(grant) => {
                        if is_by_token {
                            self.leases.add(caller, queue, grant.token.task);
                        }
                        is_received = receives && self.is_received(caller, queue, grant);
                    }
                    Outcome::Empty | Outcome::Joined | Outcome::Unreadable { .. } => {}
                    _ => self.after_put(settles.as_deref(), &outcome),
                }
                if let Some(to) = sender {
                    self.answers.push(Ended { queue, outcome, is_by_token, is_received, to });
                }
            }
        }
    }

    /// Tells calls that waited their outcome, and what they have to wait for yet.
    pub(super) fn tell_answers(&mut self, promise: Promise) {
        if self.answers.is_empty() {
            return;
        }
        let mut answers = std::mem::take(&mut self.answers);
        for Ended { queue, outcome, is_by_token, is_received, to } in answers.drain(..) {
            let own = self.promise(queue, &outcome);
            let promise = match outcome {
                Outcome::Task(_) if planted!(LeaseToldTooSoon) => own,
                // A task that was there before is not of this step, but a lease by token is.
                Outcome::Task(_) if is_by_token => own.and(promise.once_written()),
                Outcome::Task(_) => own,
                _ => own.and(promise),
            };
            let promise = if planted!(WokenBeforeDurable) { Promise::NOTHING } else { promise };
            // An abandoned receiver reads its outcome on drop and gives a task back.
            drop(to.send(Completion::new(outcome, promise, is_received)));
        }
        self.answers = answers;
    }

    /// The first alarm that has come.
    pub(super) fn due(&self) -> Option<(Time, Alarm)> {
        let first = [&self.deadlines, &self.directory.alarms].map(|alarms| alarms.first());
        first.into_iter().flatten().min().filter(|(time, _)| *time <= self.step.now).copied()
    }

    /// What the timer is to sleep for.
    pub(super) fn arm(&mut self) -> Option<Time> {
        let overdue = self.has_unused().then_some(self.step.now);
        self.armed = overdue.or(self.deadlines.first().map(|&(deadline, _)| deadline));
        self.armed
    }

    /// Does the first thing that is due; false if nothing is.
    pub(super) fn expire_first(&mut self) -> bool {
        let Some((time, alarm)) = self.due() else { return false };
        match alarm {
            Alarm::Queue(queue) => {
                self.expire_in(queue);
                self.clear_away(queue);
            }
            Alarm::Starved(id) => self.end_starved(id),
            Alarm::Name(queue) => {
                self.directory.alarms.remove(&(time, alarm));
                self.look_at_name(queue);
            }
            Alarm::Ruins => {
                self.deadlines.remove(&(time, alarm));
                self.clear_oldest_ruin();
            }
        }
        true
    }

    /// Lets puts in that waited for room, and serves getters that did, where there is some now.
    pub(super) fn let_puts_in(&mut self) {
        if self.log.as_mut().is_some_and(|log| std::mem::take(&mut log.lacks_leases)) {
            let waits = |hosted: &Hosted| hosted.queue.waiting_getters() > 0;
            let waiting = self.queues.iter().filter(|(_, hosted)| waits(hosted));
            let waiting: Vec<_> = waiting.map(|(queue, _)| *queue).collect();
            for queue in waiting {
                self.on(queue, Queue::serve);
            }
        }
        for queue in self.short_of_memory.clone() {
            self.on(queue, Queue::admit);
        }
    }

    /// Keeps the deadlines and the shortage true; says whether the timer sleeps too long now.
    pub(super) fn look_after(&mut self) -> bool {
        self.relieve_shortage();
        self.feed_starved();
        self.feed_credits();
        let mut sleeps_too_long = false;
        while let Some(queue) = self.touched.pop() {
            self.update_shortage(queue);
            self.recall_in(queue);
            sleeps_too_long |= self.update_deadline(queue);
        }
        let first = self.deadlines.first().map(|(time, _)| *time);
        sleeps_too_long |= first.is_some_and(|first| self.armed.is_none_or(|armed| first < armed));
        if planted!(TimerNotTold) {
            return false;
        }
        sleeps_too_long
    }

    /// Keeps `deadlines` true; says whether the timer sleeps too long now.
    pub(super) fn update_deadline(&mut self, queue: QueueId) -> bool {
        let Some(hosted) = self.queues.get_mut(&queue) else { return false };
        let next = hosted.next_deadline();
        let Some(before) = (hosted.deadline != next).then_some(hosted.deadline) else {
            return false;
        };
        hosted.deadline = next;
        if let Some(before) = before {
            self.deadlines.remove(&(before, Alarm::Queue(queue)));
        }
        let Some(next) = next else { return false };
        self.deadlines.insert((next, Alarm::Queue(queue)));
        self.armed.is_none_or(|armed| next < armed)
    }

    /// Takes a call out of its queue, which answers it no more.
    pub(super) fn cancel(&mut self, id: WaiterId, Waiting { reference, settles, .. }: Waiting) {
        self.feed(id);
        self.on(reference.queue, |queue, step| queue.cancel(id, step));
        // That may have let others in, which must not be cancelled before they are told.
        self.deliver();
        self.unclaim(settles.as_deref());
    }

    pub(super) fn options(&self, queue: QueueId) -> Option<&QueueOptions> {
        self.queues.get(&queue).map(|hosted| hosted.queue.options())
    }
}

impl Hosted {
    /// What clients call it, if they have a name for it.
    pub(super) fn called(&self) -> Option<&Arc<str>> {
        self.name.as_ref().or(self.label.as_ref())
    }

    pub(super) fn new(
        queue: Queue,
        name: Option<Arc<str>>,
        signer: Signer,
        queue_log: Option<Box<QueueLog>>,
        last_used: Time,
    ) -> Self {
        Self {
            queue,
            name,
            signer,
            label: None,
            pins: 0,
            references: 0,
            stays: false,
            is_configured: false,
            last_used,
            alarm: None,
            deadline: None,
            notices: Notices::default(),
            queue_log,
        }
    }
}
