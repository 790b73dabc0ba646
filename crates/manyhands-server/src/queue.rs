//! One queue as a pure state machine: no socket, disk, clock, randomness, `async` or lock.
//!
//! The rules are those of CPython's `queue.Queue`, `LifoQueue` and `PriorityQueue`, made fair: who
//! waits is served first come first served, and nobody who comes later overtakes. Time is an
//! argument; a call that must wait is parked under the caller's [`WaiterId`], and its outcome comes
//! out of a later call as a [`Wake`].
//!
//! Invariants: no getter waits while a task is ready or a putter waits; a putter waits only if
//! another does, the queue is full, or its payload does not fit the [`Budget`].

mod arena;
mod key;
mod number;
mod options;
mod ready;
#[cfg(test)]
mod tests;
mod time;
mod waiters;

use manyhands::wire::pickle::Payload;

pub use self::key::OrderError;
pub use self::options::{Order, QueueOptions};
use self::ready::{Candidate, Ready};
pub use self::time::{Patience, Time};
use self::waiters::Waiters;

/// A queue of tasks, and the calls that wait for it.
///
/// Calls that may change who can go on take the list that [`Wake`]s are added to; every one of them
/// must reach its waiter. `budget` is the one shared by all queues.
#[derive(Debug)]
pub struct Queue {
    options: QueueOptions,
    phase: Phase,
    ready: Ready,
    /// What the ready tasks take from the budget.
    bytes: u64,
    unfinished: u64,
    next_id: TaskId,
    getters: Waiters<Getter>,
    putters: Waiters<Candidate>,
    joiners: Waiters<()>,
}

/// A task: a payload, and where it stood in the order of puts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Position of its put; a task that is given back finds its place by it.
    pub id: TaskId,
    /// The user's object.
    pub payload: Payload,
}

/// Position of a task's put among the puts of its queue, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TaskId(pub u64);

/// Names a waiting call. The caller chooses it; it must not be waiting in the queue already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// How a call ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// `put`: the task is in the queue, or already with a getter.
    Accepted,
    /// `get`: this task.
    Task(Task),
    /// `get`: no task in time.
    Empty,
    /// `put`: no room in time.
    Full,
    /// `get`, `put`: the queue was shut down.
    ShutDown,
    /// `join`: every task is done.
    Joined,
    /// `get`: the next task needs a reader of this pickle protocol, and stays.
    Unreadable {
        /// Pickle protocol of the task.
        protocol: u8,
    },
    /// `put`, after waiting: the task has no place among those that are in the queue by now.
    Unorderable(OrderError),
}

/// A parked call and how it ended.
pub type Wake = (WaiterId, Outcome);

/// Memory of all queues together, in bytes: payloads, keys and bookkeeping of ready tasks.
///
/// A payload that does not fit waits, or is [`Outcome::Full`], exactly as on a bounded queue. One
/// larger than `max` never fits, so the limit of a message must be lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Taken. Tasks that are given back may bring it above `max`.
    pub used: u64,
    /// The bound.
    pub max: u64,
}

/// `task_done` was called for more tasks than were put; Python's `ValueError`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("task_done() called too many times")]
pub struct TooManyTaskDone;

/// A waiting `get`.
#[derive(Debug)]
struct Getter {
    /// Highest pickle protocol that the client reads.
    reader: u8,
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
    /// An empty queue.
    pub fn new(options: QueueOptions) -> Self {
        Self {
            options,
            phase: Phase::Open,
            ready: Ready::new(options.order),
            bytes: 0,
            unfinished: 0,
            next_id: TaskId::default(),
            getters: Waiters::default(),
            putters: Waiters::default(),
            joiners: Waiters::default(),
        }
    }

    /// Adds a task, or hands it to the getter that has waited longest. `None`: the call waits.
    ///
    /// A getter that cannot read the payload is told so, even if there is no room for it then.
    ///
    /// # Errors
    ///
    /// [`OrderError`] if the task has no place among those in the queue; it is not added then.
    pub fn put(
        &mut self,
        payload: Payload,
        patience: Patience,
        waiter: WaiterId,
        budget: &mut Budget,
        wakes: &mut Vec<Wake>,
    ) -> Result<Option<Outcome>, OrderError> {
        if self.phase != Phase::Open {
            return Ok(Some(Outcome::ShutDown));
        }
        if let Some(getter) = self.getter_for(payload.protocol, wakes) {
            let task = Task { id: self.accept(), payload };
            wakes.push((getter, Outcome::Task(task)));
            return Ok(Some(Outcome::Accepted));
        }
        let candidate = self.ready.candidate(payload);
        self.ready.check(&candidate)?;
        if self.putters.is_empty() && self.has_room(&candidate, budget) {
            self.push(candidate, budget);
            return Ok(Some(Outcome::Accepted));
        }
        Ok(park(&mut self.putters, patience, waiter, candidate, Outcome::Full))
    }

    /// Takes the next task if a `reader` of this pickle protocol can read it. `None`: the call
    /// waits.
    pub fn get(
        &mut self,
        reader: u8,
        patience: Patience,
        waiter: WaiterId,
        budget: &mut Budget,
        wakes: &mut Vec<Wake>,
    ) -> Option<Outcome> {
        if let Some(protocol) = self.next_protocol() {
            if protocol > reader {
                return Some(Outcome::Unreadable { protocol });
            }
            let task = self.pop(budget).or_else(|| self.take_from_putter(wakes));
            self.admit(budget, wakes);
            return task.map(Outcome::Task);
        }
        if self.phase != Phase::Open {
            return Some(Outcome::ShutDown);
        }
        park(&mut self.getters, patience, waiter, Getter { reader }, Outcome::Empty)
    }

    /// Counts one task as done; the last one ends every `join`.
    ///
    /// # Errors
    ///
    /// [`TooManyTaskDone`] if no task is unfinished.
    pub fn task_done(&mut self, wakes: &mut Vec<Wake>) -> Result<(), TooManyTaskDone> {
        if self.unfinished == 0 {
            return Err(TooManyTaskDone);
        }
        self.finish(1, wakes);
        Ok(())
    }

    /// Waits until every task that was put is done. `None`: the call waits.
    pub fn join(&mut self, waiter: WaiterId) -> Option<Outcome> {
        if self.unfinished == 0 {
            return Some(Outcome::Joined);
        }
        self.joiners.park(waiter, None, ());
        None
    }

    /// Ends the queue as CPython 3.13 does: no more puts, and gets only until it is empty, or, if
    /// `immediate`, none: what is ready is dropped and counts as done.
    pub fn shutdown(&mut self, immediate: bool, budget: &mut Budget, wakes: &mut Vec<Wake>) {
        if immediate {
            self.phase = Phase::Closed;
            self.clear(budget, wakes);
        } else if self.phase == Phase::Open {
            self.phase = Phase::Draining;
        }
        // Nothing is ready where a getter waits, so none of them can be served any more.
        while let Some((waiter, _)) = self.getters.pop() {
            wakes.push((waiter, Outcome::ShutDown));
        }
        while let Some((waiter, _)) = self.putters.pop() {
            wakes.push((waiter, Outcome::ShutDown));
        }
    }

    /// Gives a task back, to its original place or to a waiting getter.
    ///
    /// It must not be refused, so it may exceed `maxsize` and `budget`. It is as unfinished as
    /// before; only a queue that was shut down at once drops it, as it dropped those that were
    /// ready.
    pub fn restore(&mut self, task: Task, budget: &mut Budget, wakes: &mut Vec<Wake>) {
        if self.phase == Phase::Closed {
            return self.finish(1, wakes);
        }
        if let Some(getter) = self.getter_for(task.payload.protocol, wakes) {
            return wakes.push((getter, Outcome::Task(task)));
        }
        let candidate = self.ready.candidate(task.payload);
        self.charge(&candidate, budget);
        self.ready.put_back(task.id, candidate);
    }

    /// Forgets a waiting call, whose client hung up or gave up: it receives nothing. True if it was
    /// waiting.
    pub fn cancel(&mut self, waiter: WaiterId, budget: &mut Budget, wakes: &mut Vec<Wake>) -> bool {
        let cancelled = self.getters.cancel(waiter)
            || self.putters.cancel(waiter)
            || self.joiners.cancel(waiter);
        // The next putter may be smaller than the one that left.
        self.admit(budget, wakes);
        cancelled
    }

    /// Answers every call whose deadline has come.
    pub fn expire(&mut self, now: Time, budget: &mut Budget, wakes: &mut Vec<Wake>) {
        while let Some((waiter, _)) = self.getters.pop_expired(now) {
            wakes.push((waiter, Outcome::Empty));
        }
        while let Some((waiter, _)) = self.putters.pop_expired(now) {
            wakes.push((waiter, Outcome::Full));
        }
        self.admit(budget, wakes);
    }

    /// When [`Self::expire`] next has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        let deadlines = [self.getters.next_deadline(), self.putters.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Lets waiting putters in while there is room; to be called when another queue freed memory.
    pub fn admit(&mut self, budget: &mut Budget, wakes: &mut Vec<Wake>) {
        while self.putters.first().is_some_and(|first| self.has_room(first, budget)) {
            let Some((waiter, candidate)) = self.putters.pop() else { return };
            // It was in order when it came, but the queue has changed since.
            let outcome = match self.ready.check(&candidate) {
                Ok(()) => {
                    self.push(candidate, budget);
                    Outcome::Accepted
                }
                Err(error) => Outcome::Unorderable(error),
            };
            wakes.push((waiter, outcome));
        }
    }

    /// What the queue was made with.
    pub fn options(&self) -> QueueOptions {
        self.options
    }

    /// Number of ready tasks; Python's `qsize`.
    pub fn len(&self) -> usize {
        self.ready.len()
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

    /// What the ready tasks take from the budget, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether any call waits.
    pub fn has_waiters(&self) -> bool {
        self.waiting_getters() + self.waiting_putters() + self.joiners.len() > 0
    }

    /// Number of `get` calls that wait.
    pub fn waiting_getters(&self) -> usize {
        self.getters.len()
    }

    /// Number of `put` calls that wait; while there are any, [`Self::admit`] may have work.
    pub fn waiting_putters(&self) -> usize {
        self.putters.len()
    }

    fn has_room(&self, candidate: &Candidate, budget: &Budget) -> bool {
        !self.is_full() && budget.used.saturating_add(candidate.cost) <= budget.max
    }

    /// Counts a put, and gives its task an id.
    fn accept(&mut self) -> TaskId {
        self.unfinished += 1;
        let id = self.next_id;
        self.next_id = TaskId(id.0 + 1);
        id
    }

    fn push(&mut self, candidate: Candidate, budget: &mut Budget) {
        self.charge(&candidate, budget);
        let id = self.accept();
        self.ready.push(id, candidate);
    }

    fn charge(&mut self, candidate: &Candidate, budget: &mut Budget) {
        self.bytes += candidate.cost;
        budget.used += candidate.cost;
    }

    fn pop(&mut self, budget: &mut Budget) -> Option<Task> {
        let (task, cost) = self.ready.pop()?;
        self.bytes -= cost;
        budget.used -= cost;
        Some(task)
    }

    fn clear(&mut self, budget: &mut Budget, wakes: &mut Vec<Wake>) {
        let dropped = self.ready.len() as u64;
        budget.used -= self.bytes;
        self.bytes = 0;
        self.ready = Ready::new(self.options.order);
        self.finish(dropped, wakes);
    }

    /// Counts tasks as done. There may be fewer: nothing stops a client from calling `task_done`
    /// for tasks that it never took.
    fn finish(&mut self, done: u64, wakes: &mut Vec<Wake>) {
        self.unfinished = self.unfinished.saturating_sub(done);
        if self.unfinished == 0 {
            while let Some((waiter, ())) = self.joiners.pop() {
                wakes.push((waiter, Outcome::Joined));
            }
        }
    }

    /// The first waiting getter that can read a payload of this protocol. Those before it are told
    /// that they cannot.
    fn getter_for(&mut self, protocol: u8, wakes: &mut Vec<Wake>) -> Option<WaiterId> {
        while let Some((waiter, getter)) = self.getters.pop() {
            if protocol <= getter.reader {
                return Some(waiter);
            }
            wakes.push((waiter, Outcome::Unreadable { protocol }));
        }
        None
    }

    /// Pickle protocol of the task that a `get` would take.
    fn next_protocol(&self) -> Option<u8> {
        let waiting = || self.putters.first().map(|candidate| candidate.payload.protocol);
        self.ready.next_protocol().or_else(waiting)
    }

    /// Hands the first waiting putter's task on. Only memory can have kept it out of an empty queue.
    fn take_from_putter(&mut self, wakes: &mut Vec<Wake>) -> Option<Task> {
        let (putter, candidate) = self.putters.pop()?;
        wakes.push((putter, Outcome::Accepted));
        Some(Task { id: self.accept(), payload: candidate.payload })
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

impl Budget {
    /// Nothing taken yet of `max` bytes.
    pub fn new(max: u64) -> Self {
        Self { used: 0, max }
    }
}
