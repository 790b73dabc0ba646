//! One queue as a pure state machine: no socket, disk, clock, randomness, `async` or lock.
//!
//! The rules are those of CPython's `queue.Queue`, `LifoQueue` and `PriorityQueue`, made fair: who
//! waits is served first come first served, and nobody who comes later overtakes. A task that is
//! handed out is *leased*: the queue knows it until it is settled, or comes back to its original
//! place. Time and randomness come with the [`Step`]; a call that must wait is parked under the
//! caller's [`WaiterId`], and its outcome comes out of a later call as a [`Wake`].
//!
//! Invariants: no getter waits while a task is ready or a putter waits, unless there is no [`Room`]
//! or no memory to hand one out; a putter waits only if another does, the queue is full, or its
//! payload does not fit the [`Budget`]; a task is in exactly one place: ready, delayed, leased, or
//! kept back until its turn.
//!
//! This file has the calls: `put`, `get`, `join` and `shutdown`. Of the rest, in the order in which a
//! reader may want it:
//!
//! - `task.rs`: what a task is, with a drawing of its states and of what moves it between them.
//! - `lease.rs`: how a task is handed out, settled, claimed for its result, extended, given back or
//!   given up; `leased.rs` has those that are out. `credit.rs`: how tasks are handed out as they come, without a call for each.
//! - `meta.rs`: what is known of a task beyond its payload, and the keys of recent puts.
//! - `ready.rs`: tasks in the order of the queue, packed in `arena.rs` or sorted by `key.rs` and
//!   `number.rs`.
//! - `sequence.rs`: results that are kept back until their turn. `waiters.rs`: calls that wait.
//! - `options.rs`, `settings.rs`: what a queue is made with, and as text. `stamps.rs`, `time.rs`:
//!   when tasks were put, and time without a clock. `timers.rs`: what is due at some time.
//! - `step.rs`: what a step needs, and what it leaves to be done. `look.rs`: counts and looks that
//!   change nothing.
//! - `remains.rs`: what a purge leaves to be freed. `restore.rs`: a queue after a restart.

mod arena;
mod credit;
mod key;
mod lease;
mod leased;
mod look;
mod meta;
mod number;
mod options;
mod ready;
mod remains;
mod restore;
mod sequence;
mod settings;
mod stamps;
mod step;
mod task;
#[cfg(test)]
mod tests;
mod time;
mod timers;
mod unfinished;
mod waiters;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use manyhands::wire::pickle::Payload;

use self::credit::Credit;
#[cfg(test)]
pub(crate) use self::credit::SERVED_AT_ONCE;
#[cfg(not(test))]
use self::credit::SERVED_AT_ONCE;
pub use self::key::OrderError;
pub(crate) use self::lease::SETTLED_LEN_MAX;
pub(crate) use self::leased::LEASE_BYTES;
use self::leased::{LeaseTable, lease_bytes};
pub use self::look::{LookCursor, Seen, Tally};
use self::meta::Metadata;
pub(crate) use self::options::DEAD_LETTERS_SUFFIX;
pub use self::options::{Delivery, Durability, Order, QueueOptions, Unasked};
pub use self::ready::Prepared;
use self::ready::{Candidate, Delayed, Ready};
use self::remains::Remains;
pub use self::restore::{Facts, KeyCursor, KeyUntil, Lease};
use self::sequence::{Sequence, early_bytes};
pub use self::settings::SettingError;
use self::stamps::Stamps;
pub use self::step::{Budget, Change, Counts, Random, Room, Step, Wake};
use self::task::Task;
pub use self::task::{
    Ack, Cause, DeadLetter, Failed, Grant, Holder, Origin, Outcome, Retry, Run, SettledBy, Taker,
    TaskId, Terms, Token, TokenRun,
};
pub(crate) use self::time::earlier;
pub use self::time::{Patience, Time};
use self::timers::Timer;
pub use self::waiters::WaiterId;
use self::waiters::Waiters;

/// A queue of tasks, and the calls that wait for it.
///
/// Every call takes the [`Step`] that what it sets free is added to.
#[derive(Debug)]
pub struct Queue {
    options: QueueOptions,
    phase: Phase,
    ready: Ready,
    delayed: BTreeMap<TaskId, Delayed>,
    leased: LeaseTable,
    /// What is known of tasks beyond their payload: few tasks have any.
    metadata: BTreeMap<TaskId, Metadata>,
    /// Results before their turn.
    sequence: Sequence,
    /// Keys of recent puts, and until when each is remembered.
    keys: BTreeMap<Arc<[u8]>, Time>,
    timers: BTreeSet<(Time, Timer)>,
    stamps: Stamps,
    /// Leases that were settled by a token, oldest first.
    settled: VecDeque<Token>,
    tally: Tally,
    /// Tasks that are gone and still take memory.
    remains: VecDeque<Remains>,
    /// What the tasks take from the budget.
    bytes: u64,
    unfinished: u64,
    /// Whether anybody counts them.
    is_joined: bool,
    next_id: TaskId,
    next_lease: u64,
    /// Bytes of payloads in memory above which further ones are evicted to disk.
    resident_max: u64,
    getters: Waiters<Getter>,
    /// Who takes what comes, and has tasks of it that are not started.
    credits: BTreeMap<Holder, Credit>,
    /// How many of them wait for memory.
    hungry: usize,
    /// More can be handed out than one step may do: [`Queue::serve`] goes on.
    is_cut: bool,
    /// Somebody has begun to wait without work, or may get some again: see [`Queue::recall`].
    looks_for_work: bool,
    putters: Waiters<Candidate>,
    joiners: Waiters<()>,
}

/// `task_done` was called for more tasks than were put; Python's `ValueError`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("task_done() called too many times")]
pub struct TooManyTaskDone;

/// A waiting `get`.
#[derive(Debug)]
struct Getter {
    taker: Taker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Takes and gives tasks.
    Open,
    /// Shut down: gives what it has.
    Draining,
    /// Shut down at once: gives nothing any more.
    Closed,
}

impl Queue {
    /// An empty queue. `first_lease` is the number of its first lease; it must be above all that were
    /// used in earlier runs.
    pub fn new(options: QueueOptions, first_lease: u64) -> Self {
        Self {
            phase: Phase::Open,
            ready: Ready::new(options.order),
            delayed: BTreeMap::new(),
            leased: LeaseTable::default(),
            metadata: BTreeMap::new(),
            sequence: Sequence::default(),
            keys: BTreeMap::new(),
            timers: BTreeSet::new(),
            // Where results tell how long their tasks waited, they tell it exactly.
            stamps: Stamps::new(if options.results.is_some() { 4096 } else { 256 }),
            settled: VecDeque::new(),
            tally: Tally::default(),
            remains: VecDeque::new(),
            bytes: 0,
            unfinished: 0,
            is_joined: false,
            next_id: TaskId::default(),
            next_lease: first_lease,
            resident_max: u64::MAX,
            getters: Waiters::default(),
            credits: BTreeMap::new(),
            hungry: 0,
            is_cut: false,
            looks_for_work: false,
            putters: Waiters::default(),
            joiners: Waiters::default(),
            options,
        }
    }

    // ---- puts

    /// Adds a task, or hands it to the getter that has waited longest. `None`: the call waits.
    ///
    /// The payload is prepared for the [order](QueueOptions::order) of this queue, with the same
    /// terms. A getter that cannot read it is told so, even if there is no room for it then.
    ///
    /// # Errors
    ///
    /// [`OrderError`] if the task has no place among those in the queue; it is not added then.
    pub fn put(
        &mut self,
        prepared: Prepared,
        terms: Option<Box<Terms>>,
        patience: Patience,
        waiter: WaiterId,
        step: &mut Step,
    ) -> Result<Option<Outcome>, OrderError> {
        if self.phase != Phase::Open {
            return Ok(Some(Outcome::ShutDown));
        }
        if self.knows(terms.as_deref()) {
            return Ok(Some(Outcome::Known));
        }
        let is_plain = terms.is_none() && self.options.expires.is_none();
        let fits = step.takes(&prepared.payload, terms.as_deref());
        if is_plain
            && fits
            && let Some(id) = self.append(&prepared.payload, step)
        {
            return Ok(Some(Outcome::Accepted(id)));
        }
        let protocol = prepared.payload.protocol();
        if is_plain
            && fits
            && step.budget.allows_lease(lease_bytes(&prepared.payload))
            && let Some((getter, taker)) = self.getter_for_new(protocol, step)
        {
            let payload = prepared.into_payload();
            let id = self.accept(&payload, None, step);
            let grant = self.lease(Task { id, payload }, taker, step);
            step.wake(getter, Outcome::Task(grant));
            return Ok(Some(Outcome::Accepted(id)));
        }
        let candidate = self.ready.admit(prepared, terms);
        self.ready.check(&candidate)?;
        let enters = self.is_next(&candidate, step) && self.has_room(&candidate, step);
        let lends = step.budget.allows_lease(lease_bytes(&candidate.payload));
        let protocol = candidate.payload.protocol();
        if enters || fits && lends && self.ready.is_empty() && self.is_awaited(protocol, step) {
            return Ok(Some(Outcome::Accepted(self.enter(candidate, step))));
        }
        let refusal = if fits { Outcome::Full } else { Outcome::NoRoom };
        if patience == Patience::Now {
            return Ok(Some(refusal));
        }
        let settles = settles(&candidate);
        let refused = park(&mut self.putters, patience, waiter, candidate.detached(), refusal);
        if settles && refused.is_none() {
            self.putters.mark_settling(waiter);
        }
        Ok(refused)
    }

    /// Puts a small task of which nothing more is known, and for which the journal has room, behind
    /// all others, as nearly all puts do: no call waits for it, and it has to wait for nothing.
    fn append(&mut self, payload: &Payload, step: &mut Step) -> Option<TaskId> {
        if !self.getters.is_empty() || !self.putters.is_empty() {
            return None;
        }
        let cost = self.ready.packed_cost(payload)?;
        if !self.has_slot(cost, step) || self.evicts(cost, step) {
            return None;
        }
        let id = self.accept(payload, None, step);
        self.charge(cost, step);
        self.ready.pack(id, payload);
        Some(id)
    }

    /// Adds a task that must not be refused, such as a dead letter: whatever the bounds, and
    /// whether or not the queue was shut down. Its key is that of the task that it was, and keeps no
    /// other put away.
    pub fn force(&mut self, payload: Payload, terms: Option<Box<Terms>>, step: &mut Step) {
        let candidate = self.ready.candidate(payload, terms);
        self.take_in(candidate, step);
    }

    /// The same, but only if the journal has room for it; false if not.
    pub fn force_within_room(
        &mut self,
        payload: Payload,
        terms: Option<Box<Terms>>,
        step: &mut Step,
    ) -> bool {
        let has_room = step.takes(&payload, terms.as_deref());
        if has_room {
            self.force(payload, terms, step);
        }
        has_room
    }

    /// Lets waiting putters in while there is room; to be called when another queue freed memory.
    #[inline]
    pub fn admit(&mut self, step: &mut Step) {
        if !self.putters.is_empty() {
            self.let_in(step);
        }
    }

    fn let_in(&mut self, step: &mut Step) {
        while let Some((waiter, candidate)) = self.pop_putter(step) {
            // It was in order when it came, but the queue has changed since.
            let outcome = match self.ready.check(&candidate) {
                _ if self.knows(candidate.terms.as_deref()) => Outcome::Known,
                Ok(()) => Outcome::Accepted(self.enter(candidate, step)),
                Err(error) => Outcome::Unorderable(error),
            };
            step.wake(waiter, outcome);
        }
    }

    /// Takes the putter whose turn it is out of the line, if there is room for what it brings.
    fn pop_putter(&mut self, step: &Step) -> Option<(WaiterId, Candidate)> {
        let first = self.putters.first()?;
        if self.has_room(first, step) {
            return self.putters.pop();
        }
        if takes(first, step) {
            return None;
        }
        let (waiter, settling) = self.putters.first_settling()?;
        if self.has_room(settling, step) { self.putters.take(waiter) } else { None }
    }

    /// Whether it is the turn of a put that comes now. One that settles a task passes those that
    /// the journal has no room for: it may make some.
    fn is_next(&self, candidate: &Candidate, step: &Step) -> bool {
        self.putters.first().is_none_or(|first| {
            settles(candidate) && !takes(first, step) && self.putters.first_settling().is_none()
        })
    }

    /// Takes the task of a put in, whose key no other put may have for a while.
    fn enter(&mut self, candidate: Candidate, step: &mut Step) -> TaskId {
        let key = candidate.terms.as_ref().and_then(|terms| terms.key.clone());
        let task = self.take_in(candidate, step);
        if let Some(key) = key {
            step.record(|| Change::Seen { key: key.clone() });
            self.remember_key(key, step.now + self.options.dedup, step);
        }
        task
    }

    /// Takes a task in: it becomes ready, or is delayed, or kept back until its turn.
    fn take_in(&mut self, candidate: Candidate, step: &mut Step) -> TaskId {
        let origin = candidate.terms.as_ref().and_then(|terms| terms.origin.as_ref());
        if self.options.ordered
            && let Some(origin) = origin
            && origin.history.is_empty()
        {
            let (queue, task) = (origin.queue.clone(), origin.task);
            let id = self.accept(&candidate.payload, candidate.terms.as_deref(), step);
            self.charge(early_bytes(&candidate), step);
            self.sequence.add(id, &queue, task, candidate.detached());
            self.release_in_turn(&queue, step);
            return id;
        }
        let id = self.accept(&candidate.payload, candidate.terms.as_deref(), step);
        self.place(id, candidate, step);
        id
    }

    fn place(&mut self, id: TaskId, mut candidate: Candidate, step: &mut Step) {
        if self.evicts(candidate.cost, step) {
            candidate.evict();
        }
        let terms = candidate.terms.take();
        let delay = terms.as_ref().and_then(|terms| terms.delay);
        let expires = terms.as_ref().and_then(|terms| terms.expires).or(self.options.expires);
        if terms.is_none() && expires.is_none() {
            let protocol = candidate.payload.protocol();
            if let Some((getter, taker)) = self.getter_for_new(protocol, step) {
                let grant =
                    self.lease(Task { id, payload: candidate.detached().payload }, taker, step);
                return step.wake(getter, Outcome::Task(grant));
            }
            self.charge(candidate.cost, step);
            return self.ready.push(id, candidate);
        }
        let candidate = candidate.detached();
        self.add_metadata(id, terms, expires.map(|expires| step.now + expires), step);
        let delay = if planted!(DelayIgnored) { None } else { delay };
        match delay.filter(|delay| !delay.is_zero()) {
            Some(delay) => self.delay(id, candidate, step.now + delay, step),
            None => self.make_ready(id, candidate, step),
        }
    }

    fn delay(&mut self, id: TaskId, candidate: Candidate, until: Time, step: &mut Step) {
        self.charge(candidate.cost, step);
        self.timers.insert((until, Timer::Due(id)));
        self.delayed.insert(id, Delayed { candidate, until });
    }

    /// Puts a task that has metadata to its place, or hands it to a waiting getter.
    fn make_ready(&mut self, id: TaskId, candidate: Candidate, step: &mut Step) {
        if let Some((getter, taker)) = self.getter_for_new(candidate.payload.protocol(), step) {
            let grant = self.lease(Task { id, payload: candidate.payload }, taker, step);
            return step.wake(getter, Outcome::Task(grant));
        }
        self.charge(candidate.cost, step);
        self.ready.set_apart(id, candidate);
    }

    // ---- gets

    /// Takes the next task if the taker can read it. `None`: the call waits.
    pub fn get(
        &mut self,
        taker: Taker,
        patience: Patience,
        waiter: WaiterId,
        step: &mut Step,
    ) -> Option<Outcome> {
        match self.take(taker, step) {
            Some(Ok(grant)) => return Some(Outcome::Task(grant)),
            Some(Err(protocol)) => return Some(Outcome::Unreadable { protocol }),
            None => {}
        }
        if self.phase != Phase::Open && (self.is_empty() || step.allows_lease()) {
            return Some(Outcome::ShutDown);
        }
        self.looks_for_work |= patience != Patience::Now && !self.credits.is_empty();
        park(&mut self.getters, patience, waiter, Getter { taker }, Outcome::Empty)
    }

    /// Takes what else is there for somebody who waits for nothing more: up to `max` tasks, until they
    /// have `bytes_max` bytes or there is no memory for another lease. One whose bytes are on disk is
    /// the last. Tasks that are taken for good are settled together, and may share their memory.
    pub fn get_more(
        &mut self,
        taker: Taker,
        (max, bytes_max): (usize, usize),
        grants: &mut Vec<Grant>,
        step: &mut Step,
    ) {
        let is_for_good = taker.settled_by == SettledBy::Session;
        let (mut bytes, end) = (0, grants.len().saturating_add(max));
        while grants.len() < end && bytes < bytes_max && step.budget.allows_lease(LEASE_BYTES) {
            let (before, limits) = (grants.len(), (end - grants.len(), bytes_max - bytes));
            if is_for_good {
                self.take_run(taker, limits, grants, step);
            }
            if grants.len() == before {
                let Some(Ok(grant)) = self.take(taker, step) else { return };
                grants.push(grant);
            }
            let taken = grants.get(before..).unwrap_or_default();
            bytes += taken.iter().map(|grant| grant.payload.bytes.len()).sum::<usize>();
            if taken.last().is_some_and(|last| Self::is_evicted(&last.payload)) {
                return;
            }
        }
    }

    /// Takes tasks that lie together, if there are some, and nobody waits who is let in between, and
    /// as many as there is memory for.
    fn take_run(
        &mut self,
        taker: Taker,
        (max, bytes_max): (usize, usize),
        grants: &mut Vec<Grant>,
        step: &mut Step,
    ) {
        let leases = step.room.leases.min(step.budget.left_for_leases() / LEASE_BYTES);
        let max = max.min(usize::try_from(leases).unwrap_or(usize::MAX));
        if !self.putters.is_empty() || max == 0 {
            return;
        }
        let mut tasks = Vec::with_capacity(max.min(self.ready.len()));
        let cost = self.ready.pop_run(taker.reader, (max, bytes_max), &mut tasks);
        self.discharge(cost, step);
        grants.reserve(tasks.len());
        for task in tasks {
            grants.push(self.lease(task, taker, step));
        }
    }

    /// Takes the next task. `None` if there is none.
    ///
    /// # Errors
    ///
    /// The pickle protocol of the task, if the taker cannot read that; it stays.
    fn take(&mut self, taker: Taker, step: &mut Step) -> Option<Result<Grant, u8>> {
        while step.allows_lease() {
            let task = match self.ready.pop_for(taker.reader) {
                Some(Ok((task, cost))) => {
                    self.discharge(cost, step);
                    Some(task)
                }
                Some(Err(protocol)) => return Some(Err(protocol)),
                None => match self.next_protocol(step)? {
                    protocol if protocol > taker.reader => return Some(Err(protocol)),
                    _ => self.take_from_putter(step),
                },
            };
            let Some(task) = task else {
                // What the putter brought was not ready. Others may have room now.
                self.admit(step);
                continue;
            };
            let grant = self.lease(task, taker, step);
            self.admit(step);
            return Some(Ok(grant));
        }
        None
    }

    /// Takes this task out of turn, if it is ready and something is known of it: others can only be
    /// taken in their turn.
    pub fn get_task(&mut self, id: TaskId, taker: Taker, step: &mut Step) -> Option<Grant> {
        if !step.allows_lease() {
            return None;
        }
        let (task, cost) = self.ready.remove(id)?;
        self.discharge(cost, step);
        let grant = self.lease(task, taker, step);
        self.admit(step);
        Some(grant)
    }

    /// Hands what is there to those in line: to getters that waited for room, and to credits, as much
    /// as one step may.
    pub fn serve(&mut self, step: &mut Step) {
        self.is_cut = false;
        self.feed(step);
        for _ in 0..SERVED_AT_ONCE {
            if !self.serve_one(step) {
                if self.phase != Phase::Open && self.is_empty() {
                    self.dismiss_getters(step);
                }
                return;
            }
        }
        self.is_cut = !self.getters.is_empty() && step.allows_lease() && !self.is_empty();
    }

    /// False if there is nothing to be handed out, or nobody to have it.
    fn serve_one(&mut self, step: &mut Step) -> bool {
        let Some(protocol) = self.next_protocol(step) else { return false };
        if !self.is_awaited(protocol, step) {
            return false;
        }
        let Some(task) = self.pop(step) else {
            // What the first putter brings is handed out as it comes.
            return self.let_first_in(step);
        };
        if let Some((getter, taker)) = self.next_getter() {
            let grant = self.lease(task, taker, step);
            step.wake(getter, Outcome::Task(grant));
        }
        self.admit(step);
        true
    }

    // ---- shutdown

    /// Ends the queue as CPython 3.13 does: no more puts, and gets only until it is empty, or, if
    /// `immediate`, none: what is ready or delayed is dropped and counts as done.
    pub fn shutdown(&mut self, immediate: bool, step: &mut Step) {
        step.record(|| Change::ShutDown { immediate });
        if immediate {
            self.phase = Phase::Closed;
            self.clear(false, step);
        } else if self.phase == Phase::Open {
            self.phase = Phase::Draining;
            while self.is_cut {
                self.serve(step);
            }
        }
        // Nothing is ready where a getter waits, so none of them can be served any more.
        self.dismiss_getters(step);
        self.end_credits(step);
        while let Some((waiter, _)) = self.putters.pop() {
            step.wake(waiter, Outcome::ShutDown);
        }
    }

    /// Forgets a waiting call, whose client hung up or gave up: it receives nothing. True if it was
    /// waiting.
    pub fn cancel(&mut self, waiter: WaiterId, step: &mut Step) -> bool {
        let cancelled = self.getters.cancel(waiter)
            || self.putters.cancel(waiter)
            || self.joiners.cancel(waiter);
        // The next putter may be smaller than the one that left.
        self.admit(step);
        cancelled
    }

    // ---- room and accounts

    fn has_room(&self, candidate: &Candidate, step: &Step) -> bool {
        let terms = candidate.terms.as_ref().map_or(0, |terms| terms.bytes());
        let cost = candidate.cost;
        let cost = if self.evicts(cost, step) { ready::EVICTED_BYTES } else { cost };
        self.has_slot(cost + terms, step) && takes(candidate, step)
    }

    /// Whether there is a free slot, and memory for so many bytes.
    fn has_slot(&self, bytes: u64, step: &Step) -> bool {
        !self.is_full() && step.budget.allows_put(bytes)
    }

    /// Whether a payload of this cost is evicted to disk as it is put: enough others are in memory,
    /// or there is no room.
    fn evicts(&self, cost: u64, step: &Step) -> bool {
        self.resident_max != u64::MAX
            && self.options.order != Order::Priority
            && cost > ready::EVICTED_BYTES
            && (self.bytes.saturating_add(cost) > self.resident_max
                || !step.budget.allows_put(cost))
    }

    /// Counts a put, and gives its task an id.
    fn accept(&mut self, payload: &Payload, terms: Option<&Terms>, step: &mut Step) -> TaskId {
        self.unfinished += 1;
        self.tally.put += 1;
        let id = self.new_id();
        if self.is_vacant() {
            self.stamps.clear();
        } else if self.stamps.is_full(step.now)
            && let Some(oldest) = self.oldest_task()
        {
            self.stamps.forget_before(oldest);
        }
        self.stamps.record(id, step.now);
        step.use_room(payload, terms);
        step.record(|| Change::Put {
            task: id,
            payload: payload.clone(),
            terms: terms.cloned().map(Box::new),
        });
        id
    }

    fn new_id(&mut self) -> TaskId {
        let id = self.next_id;
        self.next_id = TaskId(id.0 + 1);
        id
    }

    fn charge(&mut self, bytes: u64, step: &mut Step) {
        self.bytes += bytes;
        step.budget.used += bytes;
    }

    fn discharge(&mut self, bytes: u64, step: &mut Step) {
        self.bytes -= bytes;
        step.budget.used -= bytes;
    }

    fn pop(&mut self, step: &mut Step) -> Option<Task> {
        let (task, cost) = self.ready.pop()?;
        self.discharge(cost, step);
        Some(task)
    }

    /// Counts tasks as done. There may be fewer: nothing stops a client from calling `task_done`
    /// for tasks that it never took.
    fn finish(&mut self, done: u64, step: &mut Step) {
        self.unfinished = self.unfinished.saturating_sub(done);
        let last = if planted!(JoinTooEarly) { 1 } else { 0 };
        if self.unfinished == last {
            while let Some((waiter, ())) = self.joiners.pop() {
                step.wake(waiter, Outcome::Joined);
            }
        }
    }

    /// The first waiting getter that can read a payload of this protocol. Those before it are told
    /// that they cannot.
    fn getter_for(&mut self, protocol: u8, step: &mut Step) -> Option<(WaiterId, Taker)> {
        if !self.is_awaited(protocol, step) {
            return None;
        }
        let served = self.next_getter();
        if planted!(ServedTwice)
            && let Some((waiter, taker)) = served
            && !taker.is_pushed
        {
            self.getters.park(waiter, None, Getter { taker });
        }
        served
    }

    /// The same for a task that is not among those that are ready: whoever waits while there are some
    /// gets these first.
    fn getter_for_new(&mut self, protocol: u8, step: &mut Step) -> Option<(WaiterId, Taker)> {
        if self.ready.is_empty() {
            return self.getter_for(protocol, step);
        }
        self.is_cut |= !self.getters.is_empty() && step.allows_lease();
        None
    }

    /// Whether a getter waits that can read a payload of this protocol. Those before it are told
    /// that they cannot.
    fn is_awaited(&mut self, protocol: u8, step: &mut Step) -> bool {
        if !step.allows_lease() {
            return false;
        }
        while let Some(&Getter { taker }) = self.getters.first() {
            if self.goes_hungry(taker, step) {
                continue;
            }
            if protocol <= taker.reader {
                return true;
            }
            self.dismiss_getter(Outcome::Unreadable { protocol }, step);
        }
        false
    }

    /// Pickle protocol of the task that a `get` would take.
    fn next_protocol(&self, step: &Step) -> Option<u8> {
        let fits =
            |it: &&Candidate| takes(it, step) && step.budget.allows_lease(lease_bytes(&it.payload));
        let waiting = || self.putters.first().filter(fits).map(|it| it.payload.protocol());
        self.ready.next_protocol().or_else(waiting)
    }

    /// Lets the first waiting putter in past the budget, which alone can have kept it out of an
    /// empty queue, and takes what it brought.
    fn take_from_putter(&mut self, step: &mut Step) -> Option<Task> {
        let first = self.putters.first()?;
        if first.terms.is_some() || self.options.expires.is_some() {
            self.let_first_in(step);
            return self.pop(step);
        }
        let (putter, candidate) = self.putters.pop()?;
        let id = self.accept(&candidate.payload, None, step);
        step.wake(putter, Outcome::Accepted(id));
        Some(Task { id, payload: candidate.payload })
    }

    /// Lets the first waiting putter in, whether or not there is room; false if there is none.
    fn let_first_in(&mut self, step: &mut Step) -> bool {
        let Some((putter, candidate)) = self.putters.pop() else { return false };
        let outcome = match self.knows(candidate.terms.as_deref()) {
            true => Outcome::Known,
            false => Outcome::Accepted(self.enter(candidate, step)),
        };
        step.wake(putter, outcome);
        true
    }
}

/// Whether a put settles a task whose room on the disk it may take.
fn settles(candidate: &Candidate) -> bool {
    candidate.terms.as_ref().is_some_and(|terms| terms.frees > 0)
}

/// Whether the journal has room for a put.
fn takes(candidate: &Candidate, step: &Step) -> bool {
    step.takes(&candidate.payload, candidate.terms.as_deref())
}

/// Parks a call, or ends it with `otherwise` if it cannot wait.
fn park<T>(
    line: &mut Waiters<T>,
    patience: Patience,
    waiter: WaiterId,
    call: T,
    otherwise: Outcome,
) -> Option<Outcome> {
    let deadline = match patience {
        Patience::Now => return Some(otherwise),
        Patience::Until(deadline) => Some(deadline),
        Patience::Forever => None,
    };
    line.park(waiter, deadline, call);
    None
}
