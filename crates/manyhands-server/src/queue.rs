//! One queue as a pure state machine: no socket, disk, clock, randomness, `async` or lock.
//!
//! The rules are those of CPython's `queue.Queue`, `LifoQueue` and `PriorityQueue`, made fair: who
//! waits is served first come first served, and nobody who comes later overtakes. A task that is
//! handed out is *leased*: it stays in the books until it is settled, or comes back to its original
//! place. Time and randomness come with the [`Step`]; a call that must wait is parked under the
//! caller's [`WaiterId`], and its outcome comes out of a later call as a [`Wake`].
//!
//! Invariants: no getter waits while a task is ready or a putter waits, unless there is no
//! [`Room`] or no memory to hand one out; a putter waits only if another does, the queue is full, or
//! its payload does not fit the [`Budget`]; a task is in exactly one place: ready, delayed, leased, or
//! kept back until its turn.

mod arena;
mod key;
mod look;
mod number;
mod options;
mod ready;
mod remains;
mod restore;
mod sequence;
mod settings;
mod stamps;
mod step;
#[cfg(test)]
mod tests;
mod time;
mod waiters;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::pickle::Payload;

pub use self::key::OrderError;
pub use self::look::{LookCursor, Seen};
pub use self::options::{Delivery, Durability, Order, QueueOptions, Unasked};
pub use self::ready::Prepared;
use self::ready::{Candidate, Ready};
use self::remains::Remains;
pub use self::restore::{Facts, KeyCursor, KeyUntil, Lease};
use self::sequence::Sequence;
pub use self::settings::SettingError;
use self::stamps::Stamps;
pub use self::step::{
    Budget, Cause, Change, Counts, DeadLetter, Origin, Random, Retry, Room, Step, Terms, Wake,
};
pub use self::time::{Patience, Time};
use self::waiters::Waiters;

/// What a leased task takes besides its payload, in bytes: its place in the books, at the half to two
/// thirds that tree nodes and tables are full on average, and the handles of its payload.
pub(crate) const LEASE_BYTES: u64 = 450;
/// Timers that one call of [`Queue::expire`] works off, so that a million of them stop nobody.
const EXPIRED_MAX: usize = 1000;
/// Failures of one task that are remembered.
const HISTORY_LEN_MAX: usize = 32;
/// How long a lease by token runs after a restart, unless its queue or its holder says otherwise.
const LEASE: Duration = Duration::from_secs(60);
/// Settled leases that are remembered, so that an ack that is repeated is not called stale.
pub(crate) const SETTLED_LEN_MAX: usize = 1024;

/// A queue of tasks, and the calls that wait for it.
///
/// Every call takes the [`Step`] that what it sets free is added to.
#[derive(Debug)]
pub struct Queue {
    options: QueueOptions,
    phase: Phase,
    ready: Ready,
    delayed: BTreeMap<TaskId, Delayed>,
    leased: BTreeMap<TaskId, Leased>,
    /// What is known of tasks beyond their payload: few have a note.
    notes: BTreeMap<TaskId, Note>,
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
    next_epoch: u64,
    /// Bytes above which payloads do not stay in memory, because they are kept elsewhere.
    resident_max: u64,
    getters: Waiters<Getter>,
    putters: Waiters<Candidate>,
    joiners: Waiters<()>,
}

/// A task that is ready: a payload, and where it stood in the order of puts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Task {
    /// Position of its put; a task that is given back finds its place by it.
    pub(crate) id: TaskId,
    /// The user's object.
    pub(crate) payload: Payload,
}

/// A task that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// By which it is settled, or given back.
    pub token: Token,
    /// The user's object.
    pub payload: Payload,
}

/// Names one lease of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// Which task.
    pub task: TaskId,
    /// Which attempt at it, from 1. One that did not reach its worker does not count.
    pub attempt: u32,
    /// Number of the lease in this queue; none is used twice.
    pub epoch: u64,
}

/// Position of a task's put among the puts of its queue, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TaskId(pub u64);

/// Names a waiting call. The caller chooses it; it must not be waiting in the queue already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// Who takes a task, and on which terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taker {
    /// Highest pickle protocol that it reads.
    pub reader: u8,
    /// Until when it has to settle what it takes.
    pub hold: Hold,
}

/// How long a task stays with who took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It is settled as it is handed out.
    No,
    /// As long as the queue allows.
    Session,
    /// So long, and no longer than the queue allows.
    For(Duration),
    /// As long as the queue allows, by whoever has the token.
    Token,
}

/// How a call ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// `put`: the task is in the queue, or already with a getter.
    Accepted(TaskId),
    /// `put`: a task with this key was put before.
    Known,
    /// `get`: this task.
    Task(Grant),
    /// `get`: no task in time.
    Empty,
    /// `put`: no room in time.
    Full,
    /// `put`: no room in time with whoever keeps the changes.
    NoRoom,
    /// `get`, `put`: the queue was shut down.
    ShutDown,
    /// `join`: every task is done.
    Joined,
    /// `task_done`, `shutdown`: it has happened.
    Done,
    /// `get`: the next task needs a reader of this pickle protocol, and stays.
    Unreadable {
        /// Pickle protocol of the task.
        protocol: u8,
    },
    /// `put`, after waiting: the task has no place among those that are in the queue by now.
    Unorderable(OrderError),
}

/// What a token is still good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The task is settled now.
    Kept,
    /// It was settled before, by the same token.
    KeptBefore,
    /// It is somebody else's by now, or was settled by somebody else. Nothing happened.
    Stale,
}

/// What is known of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// From the task's put to when it was handed out.
    pub waited: Duration,
    /// From there until now.
    pub ran: Duration,
}

/// Counts that only rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Tasks that were put.
    pub put: u64,
    /// Tasks that were handed out.
    pub taken: u64,
    /// Tasks that were settled.
    pub done: u64,
    /// Acks that came too late and were refused.
    pub stale: u64,
    /// Tasks that came back.
    pub returned: u64,
    /// Tasks that were given up.
    pub dead: u64,
    /// Tasks that were not taken in their time.
    pub expired: u64,
    /// Puts of keys that were known.
    pub known: u64,
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

/// A task that is not to be handed out yet.
#[derive(Debug)]
struct Delayed {
    candidate: Candidate,
    until: Time,
}

/// A task with somebody.
#[derive(Debug)]
struct Leased {
    payload: Payload,
    token: Token,
    since: Time,
    deadline: Option<Time>,
    /// How long its holder asked for, if it settles the task by the token.
    hold: Option<Duration>,
    /// How long it may last by what was asked for; `max_run` limits it further.
    limit: Option<Duration>,
    /// Its result waits for room: nobody else is to do it again.
    answered: bool,
}

/// What is known of a task beyond its payload.
#[derive(Debug, Default)]
struct Note {
    failures: u32,
    history: Vec<Cause>,
    /// The lease before, by which it may still be settled while nobody has taken it.
    last: Option<Leave>,
    expires: Option<Time>,
    terms: Option<Box<Terms>>,
}

/// A lease that ended without an ack.
#[derive(Debug, Clone, Copy)]
struct Leave {
    token: Token,
    since: Time,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A delayed task is to be ready.
    Due(TaskId),
    /// A lease runs out.
    Lease(TaskId),
    /// A task was not taken in its time.
    Expiry(TaskId),
    /// A key may be used again.
    Window(Arc<[u8]>),
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
    /// An empty queue. `epoch` is the number of its first lease; it must be above all that were
    /// used in earlier runs.
    pub fn new(options: QueueOptions, epoch: u64) -> Self {
        Self {
            phase: Phase::Open,
            ready: Ready::new(options.order),
            delayed: BTreeMap::new(),
            leased: BTreeMap::new(),
            notes: BTreeMap::new(),
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
            next_epoch: epoch,
            resident_max: u64::MAX,
            getters: Waiters::default(),
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
        let protocol = prepared.payload.protocol;
        let fits = step.takes(&prepared.payload, terms.as_deref());
        if is_plain
            && fits
            && step.budget.lends(lease_bytes(&prepared.payload))
            && let Some((getter, taker)) = self.getter_for(protocol, step)
        {
            let payload = prepared.into_payload();
            let id = self.accept(&payload, None, step);
            let grant = self.lend(Task { id, payload }, taker, step);
            step.wake(getter, Outcome::Task(grant));
            return Ok(Some(Outcome::Accepted(id)));
        }
        let candidate = self.ready.admit(prepared, terms);
        self.ready.check(&candidate)?;
        let enters = self.is_next(&candidate, step) && self.has_room(&candidate, step);
        let lends = step.budget.lends(lease_bytes(&candidate.payload));
        if enters || fits && lends && self.is_awaited(candidate.payload.protocol, step) {
            return Ok(Some(Outcome::Accepted(self.enter(candidate, step))));
        }
        let refusal = if fits { Outcome::Full } else { Outcome::NoRoom };
        if patience == Patience::Now {
            return Ok(Some(refusal));
        }
        let settles = settles(&candidate);
        let refused = park(&mut self.putters, patience, waiter, candidate.kept(), refusal);
        if settles && refused.is_none() {
            self.putters.note_settling(waiter);
        }
        Ok(refused)
    }

    /// Adds a task that must not be refused, such as a dead letter: whatever the bounds, and
    /// whether or not the queue was shut down.
    pub fn force(&mut self, payload: Payload, terms: Option<Box<Terms>>, step: &mut Step) {
        let candidate = self.ready.candidate(payload, terms);
        self.enter(candidate, step);
    }

    /// The same, but only if whoever keeps the changes has room for it; false if not.
    pub fn force_within_room(&mut self, payload: Payload, step: &mut Step) -> bool {
        let has_room = step.takes(&payload, None);
        if has_room {
            self.force(payload, None, step);
        }
        has_room
    }

    /// Lets waiting putters in while there is room; to be called when another queue freed memory.
    pub fn admit(&mut self, step: &mut Step) {
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
    /// whoever keeps the changes has no room for: it may make some.
    fn is_next(&self, candidate: &Candidate, step: &Step) -> bool {
        self.putters.first().is_none_or(|first| {
            settles(candidate) && !takes(first, step) && self.putters.first_settling().is_none()
        })
    }

    /// Takes a task in: it becomes ready, or is delayed, or kept back until its turn.
    fn enter(&mut self, candidate: Candidate, step: &mut Step) -> TaskId {
        let origin = candidate.terms.as_ref().and_then(|terms| terms.origin.as_ref());
        if self.options.ordered
            && let Some(origin) = origin
            && origin.history.is_empty()
        {
            let (queue, task) = (origin.queue.clone(), origin.task);
            let id = self.accept(&candidate.payload, candidate.terms.as_deref(), step);
            self.charge(early_bytes(&candidate), step);
            self.sequence.add(id, &queue, task, candidate.kept());
            self.release_in_turn(&queue, step);
            return id;
        }
        let id = self.accept(&candidate.payload, candidate.terms.as_deref(), step);
        self.place(id, candidate, step);
        id
    }

    fn place(&mut self, id: TaskId, mut candidate: Candidate, step: &mut Step) {
        if self.goes_away(&candidate, step) {
            candidate.send_away();
        }
        let terms = candidate.terms.take();
        let delay = terms.as_ref().and_then(|terms| terms.delay);
        let expires = terms.as_ref().and_then(|terms| terms.expires).or(self.options.expires);
        if terms.is_none() && expires.is_none() {
            if let Some((getter, taker)) = self.getter_for(candidate.payload.protocol, step) {
                let grant = self.lend(Task { id, payload: candidate.kept().payload }, taker, step);
                return step.wake(getter, Outcome::Task(grant));
            }
            self.charge(candidate.cost, step);
            return self.ready.push(id, candidate);
        }
        let candidate = candidate.kept();
        self.note(id, terms, expires.map(|expires| step.now + expires), step);
        match delay.filter(|delay| !delay.is_zero() && !planted!(DelayIgnored)) {
            Some(delay) => self.delay(id, candidate, step.now + delay, step),
            None => self.make_ready(id, candidate, step),
        }
    }

    /// Opens the books on a task that is not plain.
    fn note(
        &mut self,
        id: TaskId,
        terms: Option<Box<Terms>>,
        expires: Option<Time>,
        step: &mut Step,
    ) {
        if let Some(key) = terms.as_ref().and_then(|terms| terms.key.clone()) {
            self.remember_key(key, step.now + self.options.dedup, step);
        }
        self.timers.extend(expires.map(|expires| (expires, Timer::Expiry(id))));
        let note = Note { expires, terms, ..Note::default() };
        self.charge(note.bytes(), step);
        self.notes.insert(id, note);
    }

    fn remember_key(&mut self, key: Arc<[u8]>, until: Time, step: &mut Step) {
        if !self.keys.contains_key(&key) {
            self.charge(Terms::key_bytes(&key), step);
            self.timers.insert((until, Timer::Window(key.clone())));
            self.keys.insert(key, until);
        }
    }

    fn forget(&mut self, id: TaskId, step: &mut Step) {
        let Some(note) = self.notes.remove(&id) else { return };
        self.discharge(note.bytes(), step);
        if let Some(expires) = note.expires {
            self.timers.remove(&(expires, Timer::Expiry(id)));
        }
    }

    /// Whether the key of a put was used a short while ago.
    fn knows(&mut self, terms: Option<&Terms>) -> bool {
        let key = terms.and_then(|terms| terms.key.as_ref());
        let known = key.is_some_and(|key| self.keys.contains_key(key)) && !planted!(NoDedup);
        self.tally.known += u64::from(known);
        known
    }

    fn delay(&mut self, id: TaskId, candidate: Candidate, until: Time, step: &mut Step) {
        self.charge(candidate.cost, step);
        self.timers.insert((until, Timer::Due(id)));
        self.delayed.insert(id, Delayed { candidate, until });
    }

    /// Puts a task that has a note to its place, or hands it to a waiting getter.
    fn make_ready(&mut self, id: TaskId, candidate: Candidate, step: &mut Step) {
        if let Some((getter, taker)) = self.getter_for(candidate.payload.protocol, step) {
            let grant = self.lend(Task { id, payload: candidate.payload }, taker, step);
            return step.wake(getter, Outcome::Task(grant));
        }
        self.charge(candidate.cost, step);
        self.ready.set_apart(id, candidate);
    }

    /// A task of `queue` ended without a result: those after it need not wait for it.
    pub fn skip(&mut self, queue: &Arc<str>, task: TaskId, step: &mut Step) {
        if self.options.ordered {
            self.sequence.skip(queue, task);
            self.release_in_turn(queue, step);
        }
    }

    fn release_in_turn(&mut self, queue: &Arc<str>, step: &mut Step) {
        while let Some((task, candidate)) = self.sequence.pop(queue) {
            self.discharge(early_bytes(&candidate), step);
            let mut turned = task;
            if self.next_id.0 != task.0 + 1 {
                turned = self.new_id();
                step.record(|| Change::Turned { task, turned });
            }
            self.place(turned, candidate, step);
        }
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
        while let Some(protocol) = self.next_protocol(step).filter(|_| step.lends()) {
            if protocol > taker.reader {
                return Some(Outcome::Unreadable { protocol });
            }
            // What a waiting putter brings may turn out not to be ready.
            let Some(task) = self.pop(step).or_else(|| self.take_from_putter(step)) else {
                continue;
            };
            let grant = self.lend(task, taker, step);
            self.admit(step);
            return Some(Outcome::Task(grant));
        }
        if self.phase != Phase::Open && (self.is_empty() || step.lends()) {
            return Some(Outcome::ShutDown);
        }
        park(&mut self.getters, patience, waiter, Getter { taker }, Outcome::Empty)
    }

    /// Hands what is ready to getters that waited for room to do so.
    pub fn serve(&mut self, step: &mut Step) {
        while let Some(protocol) = self.ready.next_protocol()
            && let Some((getter, taker)) = self.getter_for(protocol, step)
        {
            let grant = self.pop(step).map(|task| self.lend(task, taker, step));
            step.wake(getter, grant.map_or(Outcome::Empty, Outcome::Task));
            self.admit(step);
        }
    }

    /// Hands a task out.
    fn lend(&mut self, Task { id, payload }: Task, taker: Taker, step: &mut Step) -> Grant {
        let failures = self.notes.get(&id).map_or(0, |note| note.failures);
        let token = Token { task: id, attempt: failures + 1, epoch: self.next_epoch };
        self.next_epoch += u64::from(!planted!(EpochTwice));
        self.tally.taken += 1;
        let hold = match taker.hold {
            Hold::For(hold) => Some(hold),
            Hold::Token => Some(self.options.lease.unwrap_or(LEASE)),
            Hold::Session | Hold::No => None,
        };
        step.record(|| Change::Leased { token, hold });
        step.use_lease();
        if taker.hold == Hold::No {
            self.tally.done += 1;
            self.forget(id, step);
            step.record(|| Change::Acked { task: id, attempt: token.attempt });
            return Grant { token, payload };
        }
        let limit = hold.filter(|_| taker.hold != Hold::Token);
        self.lease(token, payload.clone(), (hold, limit), step);
        Grant { token, payload }
    }

    fn lease(
        &mut self,
        token: Token,
        payload: Payload,
        (hold, limit): (Option<Duration>, Option<Duration>),
        step: &mut Step,
    ) {
        self.charge(lease_bytes(&payload), step);
        let shortest = limit.into_iter().chain(self.options.max_run).min();
        let deadline = shortest.map(|limit| step.now + limit);
        self.timers.extend(deadline.map(|deadline| (deadline, Timer::Lease(token.task))));
        let (since, answered) = (step.now, false);
        let leased = Leased { payload, token, since, deadline, hold, limit, answered };
        self.leased.insert(token.task, leased);
    }

    // ---- settlement

    /// Settles a task. A late ack is kept if nobody has taken the task since.
    pub fn ack(&mut self, token: Token, step: &mut Step) -> Ack {
        let held = self.leased.get(&token.task).filter(|_| planted!(StaleAckKept));
        let token = held.map_or(token, |leased| leased.token);
        if self.end_lease(token, step).is_none() && !self.take_back(token, step) {
            if self.settled.contains(&token) {
                return Ack::KeptBefore;
            }
            self.tally.stale += 1;
            return Ack::Stale;
        }
        self.tally.done += 1;
        self.forget(token.task, step);
        step.record(|| Change::Acked { task: token.task, attempt: token.attempt });
        self.admit(step);
        Ack::Kept
    }

    /// The same where no result of the task will come.
    pub fn ack_without_result(&mut self, token: Token, step: &mut Step) -> Ack {
        let ack = self.ack(token, step);
        if ack == Ack::Kept {
            self.note_resultless(token.task, step);
        }
        ack
    }

    /// The holder of this token has settled its task and said so: nobody will call `task_done` for
    /// it, so it counts as done. For a while it is remembered that the token was good, for a client
    /// that may ask again.
    pub fn conclude(&mut self, token: Token, step: &mut Step) {
        step.record(|| Change::Settled { token });
        // It may have been counted already, by one `task_done` too many.
        self.count_down(step).ok();
        if self.settled.len() == SETTLED_LEN_MAX {
            self.settled.pop_front();
        }
        self.settled.push_back(token);
    }

    /// Whether a task is with the holder of this token.
    pub fn holds(&self, token: Token) -> bool {
        self.leased.get(&token.task).is_some_and(|leased| leased.token == token)
    }

    /// Whether this token settled its task not long ago.
    pub fn has_settled(&self, token: Token) -> bool {
        self.settled.contains(&token)
    }

    /// Whether a result of this lease waits for room.
    pub fn is_claimed(&self, token: Token) -> bool {
        self.leased.get(&token.task).is_some_and(|it| it.token == token && it.answered)
    }

    /// Reserves a task for a result that is about to be put: from now on it is not given to
    /// anybody else. `None` if that has happened already.
    pub fn claim(&mut self, token: Token, step: &mut Step) -> Option<Run> {
        let is_held = self.leased.get(&token.task).is_some_and(|leased| leased.token == token);
        let is_held = is_held || planted!(LateResultKept) && self.leased.contains_key(&token.task);
        if !is_held && self.reclaim(token, step).is_none() {
            self.tally.stale += 1;
            return None;
        }
        let leased = self.leased.get_mut(&token.task)?;
        if std::mem::replace(&mut leased.answered, true) {
            return None;
        }
        if let Some(deadline) = leased.deadline.take() {
            self.timers.remove(&(deadline, Timer::Lease(token.task)));
        }
        let put = self.stamps.of(token.task).unwrap_or(leased.since);
        Some(Run { waited: leased.since.since(put), ran: step.now.since(leased.since) })
    }

    /// Takes a task that came back into the lease by which it left.
    fn reclaim(&mut self, token: Token, step: &mut Step) -> Option<()> {
        let last = self.notes.get(&token.task)?.last;
        let Leave { since, .. } = last.filter(|last| last.token == token)?;
        let payload = self.take_out(token.task, step)?;
        self.charge(lease_bytes(&payload), step);
        let (deadline, hold, limit, answered) = (None, None, None, false);
        let leased = Leased { payload, token, since, deadline, hold, limit, answered };
        self.leased.insert(token.task, leased);
        Some(())
    }

    /// The result was not put after all: the lease goes on, with its time limit counted anew.
    pub fn unclaim(&mut self, token: Token, step: &mut Step) {
        let Some(leased) = self.leased.get_mut(&token.task) else { return };
        leased.answered = false;
        let asked = leased.limit.filter(|_| !planted!(HoldLostOnFull));
        let limit = asked.into_iter().chain(self.options.max_run).min();
        leased.deadline = limit.map(|limit| step.now + limit);
        let timer = leased.deadline.map(|deadline| (deadline, Timer::Lease(token.task)));
        self.timers.extend(timer);
    }

    /// Lets a lease run for `hold` from now on, or as long as `max_run` allows. False if it is over.
    pub fn extend(&mut self, token: Token, hold: Duration, step: &mut Step) -> bool {
        let Some(leased) = self.leased.get_mut(&token.task).filter(|it| it.token == token) else {
            self.tally.stale += 1;
            return false;
        };
        if let Some(deadline) = leased.deadline {
            self.timers.remove(&(deadline, Timer::Lease(token.task)));
        }
        let last = self.options.max_run.map(|max_run| leased.since + max_run);
        let deadline = last.map_or(step.now + hold, |last| last.min(step.now + hold));
        (leased.deadline, leased.limit) = (Some(deadline), Some(hold));
        // After a restart too it runs as long as was asked for last.
        leased.hold = Some(hold);
        self.timers.insert((deadline, Timer::Lease(token.task)));
        step.record(|| Change::Extended { token, hold });
        true
    }

    /// Gives a task back, to its original place or to a waiting getter; or gives it up if it has
    /// failed too often. False if it is not with the holder of this token any more.
    ///
    /// It may exceed `maxsize` and the budget. It is as unfinished as before; only a queue that was
    /// shut down at once drops it, as it dropped those that were ready.
    pub fn give_back(&mut self, token: Token, cause: Cause, retry: Retry, step: &mut Step) -> bool {
        let Some(leased) = self.end_lease(token, step) else {
            self.tally.stale += u64::from(matches!(cause, Cause::Refused(_)));
            return false;
        };
        self.tally.returned += 1;
        let task = token.task;
        if self.phase == Phase::Closed {
            self.forget(task, step);
            step.record(|| Change::Acked { task, attempt: token.attempt });
            self.finish(1, step);
        } else {
            self.come_back(leased, cause, retry, step);
        }
        self.admit(step);
        true
    }

    fn come_back(
        &mut self,
        Leased { payload, token, since, .. }: Leased,
        cause: Cause,
        retry: Retry,
        step: &mut Step,
    ) {
        let task = token.task;
        let failed = cause != Cause::Unread || planted!(UnreadCostsAttempt);
        if !self.notes.contains_key(&task) {
            self.note(task, None, None, step);
        }
        let Some(note) = self.notes.get_mut(&task) else { return };
        note.last = Some(Leave { token, since });
        let (mut forgotten, mut remembered) = (0, 0);
        if failed {
            note.failures += 1;
            if note.history.len() == HISTORY_LEN_MAX {
                forgotten = note.history.remove(0).bytes();
            }
            remembered = cause.bytes();
            note.history.push(cause.clone());
        }
        let failures = if planted!(RetryNotCapped) { 1 } else { note.failures };
        let is_expired = note.expires.is_some_and(|expires| expires <= step.now);
        self.charge(remembered, step);
        self.discharge(forgotten, step);
        if retry == Retry::Never {
            return self.give_up(task, payload, cause, step);
        }
        if is_expired {
            return self.drop_expired(task, step);
        }
        if failed && self.options.attempts != 0 && failures >= self.options.attempts {
            return self.give_up(task, payload, cause, step);
        }
        let pause = match retry {
            Retry::After(delay) => delay,
            Retry::Backoff if failed => step.random.jitter(self.options.pause(failures, &cause)),
            Retry::Backoff | Retry::Never => Duration::ZERO,
        };
        let not_before = (!pause.is_zero()).then(|| step.now + pause);
        step.record(|| Change::Returned { task, failures, not_before, cause });
        let terms = self.notes.get(&task).and_then(|note| note.terms.as_ref());
        let priority = terms.and_then(|terms| terms.priority);
        let terms = priority.map(|_| Box::new(Terms { priority, ..Terms::default() }));
        let candidate = self.ready.candidate(payload, terms);
        match not_before {
            _ if planted!(ReturnedDropped) && !self.ready.is_empty() => {}
            Some(until) => self.delay(task, candidate, until, step),
            None => self.make_ready(task, candidate, step),
        }
    }

    fn give_up(&mut self, task: TaskId, payload: Payload, cause: Cause, step: &mut Step) {
        let history = self.notes.get(&task).map(|note| note.history.clone());
        let attempts = self.notes.get(&task).map_or(0, |note| note.failures);
        let terms = self.notes.get(&task).and_then(|note| note.terms.as_ref());
        let key = terms.and_then(|terms| terms.key.clone());
        self.tally.dead += 1;
        self.forget(task, step);
        step.record(|| Change::Dead { task, cause });
        let history = history.unwrap_or_default();
        step.dead.push(DeadLetter { payload, task, key, attempts, history });
        self.note_resultless(task, step);
        self.finish(1, step);
    }

    fn drop_expired(&mut self, task: TaskId, step: &mut Step) {
        self.tally.expired += 1;
        self.forget(task, step);
        step.record(|| Change::Expired { task });
        self.note_resultless(task, step);
        self.finish(1, step);
    }

    fn note_resultless(&self, task: TaskId, step: &mut Step) {
        if self.options.results.is_some() {
            step.resultless.push(task);
        }
    }

    /// Takes a task out of the hand of the token's holder.
    fn end_lease(&mut self, token: Token, step: &mut Step) -> Option<Leased> {
        if self.leased.get(&token.task)?.token != token {
            return None;
        }
        let leased = self.leased.remove(&token.task)?;
        self.discharge(lease_bytes(&leased.payload), step);
        if let Some(deadline) = leased.deadline {
            self.timers.remove(&(deadline, Timer::Lease(token.task)));
        }
        Some(leased)
    }

    /// Takes a task that came back and that nobody has taken since.
    fn take_back(&mut self, token: Token, step: &mut Step) -> bool {
        let last = self.notes.get(&token.task).and_then(|note| note.last);
        last.is_some_and(|last| last.token == token) && self.take_out(token.task, step).is_some()
    }

    /// Takes a task with a note out of the queue, wherever it stands.
    fn take_out(&mut self, id: TaskId, step: &mut Step) -> Option<Payload> {
        if let Some(Delayed { candidate, until }) = self.delayed.remove(&id) {
            self.timers.remove(&(until, Timer::Due(id)));
            self.discharge(candidate.cost, step);
            return Some(candidate.payload);
        }
        let (task, cost) = self.ready.remove(id)?;
        self.discharge(cost, step);
        Some(task.payload)
    }

    // ---- done, join, shutdown

    /// Counts one task as done; the last one ends every `join`.
    ///
    /// # Errors
    ///
    /// [`TooManyTaskDone`] if no task is unfinished.
    pub fn task_done(&mut self, step: &mut Step) -> Result<(), TooManyTaskDone> {
        self.is_joined = true;
        self.count_down(step)
    }

    fn count_down(&mut self, step: &mut Step) -> Result<(), TooManyTaskDone> {
        if self.unfinished == 0 {
            return Err(TooManyTaskDone);
        }
        step.record(|| Change::Done(1));
        self.finish(1, step);
        Ok(())
    }

    /// Counts `tasks` as unfinished that were put and taken before this queue took over.
    pub fn owe(&mut self, tasks: u64) {
        self.unfinished += tasks;
    }

    /// Waits until every task that was put is done. `None`: the call waits.
    pub fn join(&mut self, waiter: WaiterId) -> Option<Outcome> {
        self.is_joined = true;
        if self.unfinished == 0 {
            return Some(Outcome::Joined);
        }
        self.joiners.park(waiter, None, ());
        None
    }

    /// Ends the queue as CPython 3.13 does: no more puts, and gets only until it is empty, or, if
    /// `immediate`, none: what is ready or delayed is dropped and counts as done.
    pub fn shutdown(&mut self, immediate: bool, step: &mut Step) {
        step.record(|| Change::ShutDown { immediate });
        if immediate {
            self.phase = Phase::Closed;
            self.clear(false, step);
        } else if self.phase == Phase::Open {
            self.phase = Phase::Draining;
        }
        // Nothing is ready where a getter waits, so none of them can be served any more.
        while let Some((waiter, _)) = self.getters.pop() {
            step.wake(waiter, Outcome::ShutDown);
        }
        while let Some((waiter, _)) = self.putters.pop() {
            step.wake(waiter, Outcome::ShutDown);
        }
    }

    /// Drops all that is not with anybody, and counts it as done. Says how much that was. To be
    /// followed by [`Self::admit`], and by [`Self::clear_away`] while there are remains. If results
    /// are `awaited` in order, that names each task that will have none.
    pub fn purge(&mut self, awaited: bool, step: &mut Step) -> u64 {
        let dropped = (self.len() + self.delayed()) as u64;
        self.clear(awaited, step);
        dropped
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

    // ---- time

    /// Does what is due: answers calls, ends leases, makes delayed tasks ready.
    ///
    /// Works off a bounded number of timers; [`Self::next_deadline`] says whether some are left.
    pub fn expire(&mut self, step: &mut Step) {
        let now = step.now;
        while let Some((waiter, _)) = self.getters.pop_expired(now) {
            step.wake(waiter, Outcome::Empty);
        }
        while let Some((waiter, candidate)) = self.putters.pop_expired(now) {
            let fits = takes(&candidate, step);
            step.wake(waiter, if fits { Outcome::Full } else { Outcome::NoRoom });
        }
        for _ in 0..EXPIRED_MAX {
            if self.timers.first().is_none_or(|(time, _)| now < *time) {
                break;
            }
            let Some((time, timer)) = self.timers.pop_first() else { break };
            self.ring(time, timer, step);
        }
        self.admit(step);
    }

    fn ring(&mut self, time: Time, timer: Timer, step: &mut Step) {
        match timer {
            Timer::Due(id) => {
                if let Some(Delayed { candidate, .. }) = self.delayed.remove(&id) {
                    self.discharge(candidate.cost, step);
                    self.make_ready(id, candidate, step);
                }
            }
            Timer::Lease(_) if planted!(MaxRunIgnored) => {}
            Timer::Lease(id) => {
                if let Some(token) = self.leased.get(&id).map(|leased| leased.token) {
                    step.lapsed.push(id);
                    self.give_back(token, Cause::Overdue, Retry::Backoff, step);
                }
            }
            Timer::Expiry(id) => {
                if !planted!(ExpiryIgnored) && self.take_out(id, step).is_some() {
                    self.drop_expired(id, step);
                }
            }
            // It may have been purged, and put again.
            Timer::Window(key) if self.keys.get(&key) == Some(&time) => {
                self.keys.remove(&key);
                self.discharge(Terms::key_bytes(&key), step);
            }
            Timer::Window(_) => {}
        }
        self.admit(step);
    }

    /// When [`Self::expire`] next has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        let timer = self.timers.first().map(|(time, _)| *time);
        let deadlines = [self.getters.next_deadline(), self.putters.next_deadline(), timer];
        deadlines.into_iter().flatten().min()
    }

    // ---- looks

    /// What the queue was made with.
    pub fn options(&self) -> &QueueOptions {
        &self.options
    }

    /// Number of ready tasks; Python's `qsize`.
    pub fn len(&self) -> usize {
        self.ready.len() + if planted!(SizeCountsLeased) { self.leased.len() } else { 0 }
    }

    /// Whether no task is ready; Python's `empty`.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `maxsize` tasks are ready; Python's `full`. The memory budget does not count.
    pub fn is_full(&self) -> bool {
        0 < self.options.maxsize && self.options.maxsize <= self.len()
    }

    /// Whether the queue was shut down.
    pub fn is_shut_down(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Tasks put and not yet counted as done.
    pub fn unfinished(&self) -> u64 {
        self.unfinished
    }

    /// Whether `join` or `task_done` was called.
    pub fn is_joined(&self) -> bool {
        self.is_joined
    }

    /// How long ago the oldest task was put that is here, as far as this run of the server knows;
    /// nothing in a priority queue, whose order does not tell.
    pub fn oldest(&self, now: Time) -> Option<Duration> {
        let oldest = self.oldest_task()?;
        Some(now.since(self.stamps.of(oldest).unwrap_or_default()))
    }

    fn oldest_task(&self) -> Option<TaskId> {
        let leased = self.leased.first_key_value().map(|(id, _)| *id);
        let delayed = self.delayed.first_key_value().map(|(id, _)| *id);
        let apart = leased.into_iter().chain(delayed).chain(self.sequence.oldest());
        apart.chain(self.ready.oldest()?).min()
    }

    /// Tasks with somebody.
    pub fn leased(&self) -> usize {
        self.leased.len()
    }

    /// Tasks that are not to be handed out yet, and results before their turn.
    pub fn delayed(&self) -> usize {
        self.delayed.len() + self.sequence.len()
    }

    /// What has happened so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Where a task that is leased comes from, if it is a result or a dead letter.
    pub fn origin(&self, token: Token) -> Option<&Origin> {
        let note = self.notes.get(&token.task)?;
        note.terms.as_ref()?.origin.as_deref()
    }

    /// What the tasks take from the budget, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether any call waits.
    pub fn has_waiters(&self) -> bool {
        self.waiting() > 0
    }

    /// Number of calls that wait.
    pub fn waiting(&self) -> usize {
        self.waiting_getters() + self.waiting_putters() + self.joiners.len()
    }

    /// Whether the queue holds no task, no key, and no call that waits.
    pub fn is_idle(&self) -> bool {
        let tasks = self.ready.len() + self.delayed() + self.leased();
        tasks == 0 && self.keys.is_empty() && !self.has_waiters()
    }

    /// Number of `get` calls that wait.
    pub fn waiting_getters(&self) -> usize {
        self.getters.len()
    }

    /// Number of `join` calls that wait.
    pub fn waiting_joiners(&self) -> usize {
        self.joiners.len()
    }

    /// Number of `put` calls that wait; while there are any, [`Self::admit`] may have work.
    pub fn waiting_putters(&self) -> usize {
        self.putters.len()
    }

    // ---- parts

    /// Whether no task is here, in any state.
    fn is_vacant(&self) -> bool {
        self.ready.is_empty()
            && self.leased.is_empty()
            && self.delayed.is_empty()
            && self.sequence.len() == 0
    }

    fn has_room(&self, candidate: &Candidate, step: &Step) -> bool {
        let terms = candidate.terms.as_ref().map_or(0, |terms| terms.bytes());
        let cost = if self.goes_away(candidate, step) { ready::AWAY_BYTES } else { candidate.cost };
        !self.is_full() && step.budget.holds(cost + terms) && takes(candidate, step)
    }

    /// Whether a payload is not to stay in memory: enough others do, or there is no room.
    fn goes_away(&self, candidate: &Candidate, step: &Step) -> bool {
        let (cost, budget) = (candidate.cost, step.budget);
        self.resident_max != u64::MAX
            && self.options.order != Order::Priority
            && cost > ready::AWAY_BYTES
            && (self.bytes.saturating_add(cost) > self.resident_max || !budget.holds(cost))
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
        self.stamps.note(id, step.now);
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

    /// Drops what is not with anybody. It is gone at once; [`Self::clear_away`] gives back what it
    /// takes.
    fn clear(&mut self, is_awaited: bool, step: &mut Step) {
        let dropped = self.ready.len() + self.delayed.len() + self.sequence.clear();
        if planted!(PurgeForgetsAttempts) {
            let leased: Vec<_> = self.leased_tasks().collect();
            leased.into_iter().for_each(|task| self.forget(task, step));
        }
        let remains = Remains {
            ready: mem::replace(&mut self.ready, Ready::new(self.options.order)),
            delayed: mem::take(&mut self.delayed),
            keys: mem::take(&mut self.keys),
            is_awaited,
        };
        self.remains.extend(Some(remains).filter(|remains| !remains.is_empty()));
        self.finish(dropped as u64, step);
        step.record(|| Change::Cleared {
            counts: self.counts(),
            kept: self.leased_tasks().collect(),
        });
    }

    /// Counts tasks as done. There may be fewer: nothing stops a client from calling `task_done`
    /// for tasks that it never took.
    fn finish(&mut self, done: u64, step: &mut Step) {
        self.unfinished = self.unfinished.saturating_sub(done);
        if self.unfinished == u64::from(planted!(JoinTooEarly)) {
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
        let served = self.getters.pop().map(|(waiter, Getter { taker })| (waiter, taker));
        if planted!(ServedTwice)
            && let Some((waiter, taker)) = served
        {
            self.getters.park(waiter, None, Getter { taker });
        }
        served
    }

    /// Whether a getter waits that can read a payload of this protocol. Those before it are told
    /// that they cannot.
    fn is_awaited(&mut self, protocol: u8, step: &mut Step) -> bool {
        if !step.lends() {
            return false;
        }
        while let Some(first) = self.getters.first() {
            if protocol <= first.taker.reader {
                return true;
            }
            if let Some((waiter, _)) = self.getters.pop() {
                step.wake(waiter, Outcome::Unreadable { protocol });
            }
        }
        false
    }

    /// Pickle protocol of the task that a `get` would take.
    fn next_protocol(&self, step: &Step) -> Option<u8> {
        let fits = |it: &&Candidate| takes(it, step) && step.budget.lends(lease_bytes(&it.payload));
        let waiting = || self.putters.first().filter(fits).map(|it| it.payload.protocol);
        self.ready.next_protocol().or_else(waiting)
    }

    /// Lets the first waiting putter in past the budget, which alone can have kept it out of an
    /// empty queue, and takes what it brought.
    fn take_from_putter(&mut self, step: &mut Step) -> Option<Task> {
        let (putter, candidate) = self.putters.pop()?;
        if candidate.terms.is_some() || self.options.expires.is_some() {
            let outcome = match self.knows(candidate.terms.as_deref()) {
                true => Outcome::Known,
                false => Outcome::Accepted(self.enter(candidate, step)),
            };
            step.wake(putter, outcome);
            return self.pop(step);
        }
        let id = self.accept(&candidate.payload, None, step);
        step.wake(putter, Outcome::Accepted(id));
        Some(Task { id, payload: candidate.payload })
    }
}

/// Whether a put settles a task whose room on the disk it may take.
fn settles(candidate: &Candidate) -> bool {
    candidate.terms.as_ref().is_some_and(|terms| terms.frees > 0)
}

/// Whether whoever keeps the changes has room for a put.
fn takes(candidate: &Candidate, step: &Step) -> bool {
    step.takes(&candidate.payload, candidate.terms.as_deref())
}

/// What a task takes that is with somebody.
fn lease_bytes(payload: &Payload) -> u64 {
    LEASE_BYTES + payload.bytes.len() as u64
}

/// What a result takes whose turn has not come.
fn early_bytes(candidate: &Candidate) -> u64 {
    candidate.cost + candidate.terms.as_ref().map_or(0, |terms| terms.note_bytes())
}

impl Note {
    /// What it takes in memory, in bytes, roughly.
    fn bytes(&self) -> u64 {
        let terms = self.terms.as_ref().map_or_else(Terms::least_bytes, |terms| terms.note_bytes());
        terms + self.history.iter().map(Cause::bytes).sum::<u64>()
    }
}

impl Taker {
    /// Takes for good.
    pub fn of_all(reader: u8) -> Self {
        Self { reader, hold: Hold::No }
    }

    /// Takes until it says, or shows, that it is through.
    pub fn leasing(reader: u8) -> Self {
        Self { reader, hold: Hold::Session }
    }
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
