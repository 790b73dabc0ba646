//! The one owner of all queues: their names, the references that clients hold, and the calls that
//! wait.
//!
//! Every call takes the lock once, applies itself to the pure [`Queue`] and hands out what that
//! sets free; nothing is awaited under the lock. The order of the lock is the order of the queue.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use hashbrown::HashMap;
use manyhands::wire::message::{Parameter, QueueInfo, Wait, repr};
use manyhands::wire::pickle::{Atom, Payload};
use tokio::sync::{Notify, oneshot};

use crate::clock::Clock;
use crate::config::Limits;
use crate::queue::{
    Budget, OrderError, Outcome, Patience, Queue, QueueOptions, Task, Time, TooManyTaskDone,
    WaiterId, Wake,
};

/// Names that a `SyncManager` registers for types that are no queues.
const NOT_QUEUES: [&str; 16] = [
    "Array",
    "AsyncResult",
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "Iterator",
    "Lock",
    "Namespace",
    "Pool",
    "RLock",
    "Semaphore",
    "Value",
    "dict",
    "list",
    "set",
];
/// Names that a `SyncManager` registers for fresh queues.
const FRESH_QUEUES: [&str; 2] = ["JoinableQueue", "Queue"];
/// Longest name of a queue, in bytes: it is shown in lists and logs.
const NAME_LEN_MAX: usize = 255;

type QueueId = u64;

/// A client's reference to a queue. `serial` tells apart the references to one queue, so that we
/// know which of them a client has released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    queue: QueueId,
    serial: u64,
}

/// Why there is no such queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoQueue {
    /// Only declared names exist, and this is none.
    #[error("there is no queue named {}; declared are: {declared}", repr(.name))]
    Undeclared {
        /// The name asked for.
        name: String,
        /// The names there are.
        declared: String,
    },
    /// The name is empty, too long or holds control characters.
    #[error("{} cannot name a queue: a name has 1 to 255 bytes and no control characters", repr(.0))]
    BadName(String),
    /// There are as many queues as the limit allows.
    #[error("no further queue: there are {0} already, which is the limit")]
    TooMany(usize),
    /// Declared twice.
    #[error("the queue {} is declared twice", repr(.0))]
    Declared(String),
}

/// What became of a call.
#[derive(Debug)]
pub(crate) enum Called {
    Now(Outcome),
    Later(Waiter),
}

pub(crate) struct Engine {
    state: Mutex<State>,
    clock: Clock,
    /// Told when a deadline comes before the one that the timer sleeps for.
    timer: Notify,
    queues_max: usize,
    create_on_use: bool,
    /// Part of every ident, so that those of an earlier run are not taken for ours.
    boot: u32,
}

#[derive(Debug)]
struct State {
    queues: HashMap<QueueId, Hosted>,
    names: HashMap<Arc<str>, QueueId>,
    references: HashMap<u64, Counted>,
    waiting: HashMap<WaiterId, Waiting>,
    /// The first deadline of each queue that has one.
    deadlines: BTreeSet<(Time, QueueId)>,
    /// What the timer sleeps for.
    armed: Option<Time>,
    /// Queues with a `put` that waits for memory rather than for a slot.
    short_of_memory: BTreeSet<QueueId>,
    budget: Budget,
    wakes: Vec<Wake>,
    is_stopped: bool,
    /// Source of queue ids, serials and waiter ids.
    counter: u64,
}

#[derive(Debug)]
struct Hosted {
    queue: Queue,
    /// A queue without a name lives as long as it is referenced.
    name: Option<Arc<str>>,
    deadline: Option<Time>,
}

#[derive(Debug)]
struct Counted {
    queue: QueueId,
    count: u64,
}

#[derive(Debug)]
struct Waiting {
    reference: Reference,
    outcome: oneshot::Sender<Outcome>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    pub(crate) fn new(limits: &Limits, create_on_use: bool, boot: u32) -> Self {
        let state = State {
            queues: HashMap::new(),
            names: HashMap::new(),
            references: HashMap::new(),
            waiting: HashMap::new(),
            deadlines: BTreeSet::new(),
            armed: None,
            short_of_memory: BTreeSet::new(),
            budget: Budget { used: 0, max: limits.memory_bytes_max },
            wakes: Vec::new(),
            is_stopped: false,
            counter: 0,
        };
        Self {
            state: Mutex::new(state),
            clock: Clock::start(),
            timer: Notify::new(),
            queues_max: limits.queues_max,
            create_on_use,
            boot,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|_| {
            // Queues that a panic left half changed must not be served on.
            tracing::error!("the queue engine failed; the process ends");
            std::process::abort()
        })
    }

    // ---- names and references

    /// Makes a queue before anybody asks for it.
    pub(crate) fn declare(&self, name: &str, options: QueueOptions) -> Result<(), NoQueue> {
        let mut state = self.lock();
        if state.names.contains_key(name) {
            return Err(NoQueue::Declared(name.to_owned()));
        }
        self.add(&mut state, Some(name), options).map(drop)
    }

    /// The queue called `name`, made now if names come into being by use.
    pub(crate) fn open(&self, name: &str) -> Result<Reference, NoQueue> {
        let mut state = self.lock();
        let queue = self.find_or_add(&mut state, name)?;
        Ok(Reference { queue, serial: 0 })
    }

    /// Answers the manager's `create`: a new reference and its ident.
    ///
    /// # Errors
    ///
    /// The text of a traceback for the client.
    pub(crate) fn create(&self, typeid: &str, parameters: &[Parameter]) -> Result<String, String> {
        let mut state = self.lock();
        let queue = if state.names.contains_key(typeid) {
            without_parameters(typeid, parameters)?;
            self.find_or_add(&mut state, typeid)
        } else if FRESH_QUEUES.contains(&typeid) {
            let options = QueueOptions::default().maxsize(maxsize(parameters)?);
            self.add(&mut state, None, options)
        } else if NOT_QUEUES.contains(&typeid) {
            return Err(format!(
                "manyhands serves queues. {typeid} objects live in Python: start this manager with \
                 the Python drop-in, `python -m manyhands script.py`, which serves both\n\
                 KeyError: {}",
                repr(typeid)
            ));
        } else {
            without_parameters(typeid, parameters)?;
            self.find_or_add(&mut state, typeid)
        };
        let queue = queue.map_err(|error| format!("{error}\nKeyError: {}", repr(typeid)))?;
        let serial = state.next();
        state.references.insert(serial, Counted { queue, count: 1 });
        Ok(self.ident(Reference { queue, serial }))
    }

    fn find_or_add(&self, state: &mut State, name: &str) -> Result<QueueId, NoQueue> {
        match state.names.get(name) {
            Some(queue) => Ok(*queue),
            None if self.create_on_use => self.add(state, Some(name), QueueOptions::default()),
            None => {
                let mut declared: Vec<_> = state.names.keys().map(|name| repr(name)).collect();
                declared.sort_unstable();
                Err(NoQueue::Undeclared { name: name.into(), declared: declared.join(", ") })
            }
        }
    }

    fn add(
        &self,
        state: &mut State,
        name: Option<&str>,
        options: QueueOptions,
    ) -> Result<QueueId, NoQueue> {
        if let Some(name) = name
            && (name.is_empty() || name.len() > NAME_LEN_MAX || name.contains(char::is_control))
        {
            return Err(NoQueue::BadName(name.to_owned()));
        }
        if state.queues.len() >= self.queues_max {
            return Err(NoQueue::TooMany(state.queues.len()));
        }
        let id = state.next();
        let name: Option<Arc<str>> = name.map(Into::into);
        if let Some(name) = &name {
            state.names.insert(name.clone(), id);
        }
        let hosted = Hosted { queue: Queue::new(options), name, deadline: None };
        state.queues.insert(id, hosted);
        Ok(id)
    }

    fn ident(&self, Reference { queue, serial }: Reference) -> String {
        format!("{queue:x}.{serial:x}.{:08x}", self.boot)
    }

    /// The reference that `ident` names, if its queue is there. A named queue stays reachable by
    /// its idents when their count has come to zero, because proxies travel between processes.
    pub(crate) fn resolve(&self, ident: &str) -> Option<Reference> {
        let reference = self.parse(ident)?;
        self.lock().queues.contains_key(&reference.queue).then_some(reference)
    }

    /// The reference that `ident` names, whether or not its queue is still there.
    pub(crate) fn parse(&self, ident: &str) -> Option<Reference> {
        let mut numbers = ident.splitn(3, '.').map(|hex| u64::from_str_radix(hex, 16).ok());
        let (queue, serial, boot) = (numbers.next()??, numbers.next()??, numbers.next()??);
        (boot == u64::from(self.boot)).then_some(Reference { queue, serial })
    }

    /// Counts one more reference; false if the ident is unknown.
    pub(crate) fn incref(&self, ident: &str) -> bool {
        let Some(Reference { queue, serial }) = self.resolve(ident) else { return false };
        let mut state = self.lock();
        state.references.entry(serial).or_insert(Counted { queue, count: 0 }).count += 1;
        true
    }

    /// Counts one reference fewer; false if there was none. The last one takes the calls that wait
    /// on it along, and its queue if that has no name.
    pub(crate) fn decref(&self, ident: &str) -> bool {
        let Some(Reference { queue, serial }) = self.resolve(ident) else { return false };
        let mut state = self.lock();
        let Some(counted) = state.references.get_mut(&serial) else { return false };
        counted.count -= 1;
        if counted.count == 0 {
            state.references.remove(&serial);
            state.release(queue, serial);
        }
        true
    }

    /// Whether a client still holds this reference.
    pub(crate) fn is_referenced(&self, reference: Reference) -> bool {
        self.lock().references.contains_key(&reference.serial)
    }

    pub(crate) fn number_of_objects(&self) -> u64 {
        self.lock().references.len() as u64
    }

    /// A text about every reference, in the form of CPython's server.
    pub(crate) fn debug_info(&self) -> String {
        let state = self.lock();
        let mut references: Vec<_> = state.references.iter().collect();
        references.sort_unstable_by_key(|(serial, _)| **serial);
        let lines = references.into_iter().map(|(&serial, &Counted { queue, count })| {
            let ident = self.ident(Reference { queue, serial });
            let text = state.describe(queue);
            format!("  {ident}:       refcount={count}\n    {}", text.get(..75).unwrap_or(&text))
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// What `str()` of a proxy shows.
    pub(crate) fn describe(&self, reference: Reference) -> String {
        self.lock().describe(reference.queue)
    }

    /// Every queue that has a name, sorted by it.
    pub(crate) fn queues(&self) -> Vec<QueueInfo> {
        let state = self.lock();
        let mut infos: Vec<_> = state.queues.values().filter_map(Hosted::info).collect();
        infos.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        infos
    }

    // ---- calls of queues

    /// Adds an item; waits for a free slot, or for memory, as long as `wait` says.
    pub(crate) fn put(
        self: &Arc<Self>,
        reference: Reference,
        item: Payload,
        wait: Wait,
    ) -> Result<Called, CallError> {
        self.call(reference, |queue, patience, waiter, budget, wakes| {
            if wait == Wait::Negative && queue.options().maxsize > 0 {
                return Err(CallError::NegativeTimeout);
            }
            queue.put(item, patience(wait), waiter, budget, wakes).map_err(CallError::Order)
        })
    }

    /// Takes an item that a reader of pickle protocols up to `protocol_max` understands; waits for
    /// one as long as `wait` says.
    pub(crate) fn get(
        self: &Arc<Self>,
        reference: Reference,
        protocol_max: u8,
        wait: Wait,
    ) -> Result<Called, CallError> {
        self.call(reference, |queue, patience, waiter, budget, wakes| {
            if wait == Wait::Negative {
                return Err(CallError::NegativeTimeout);
            }
            Ok(queue.get(protocol_max, patience(wait), waiter, budget, wakes))
        })
    }

    /// Waits until every item that was put is done.
    pub(crate) fn join(self: &Arc<Self>, reference: Reference) -> Result<Called, CallError> {
        self.call(reference, |queue, _, waiter, _, _| Ok(queue.join(waiter)))
    }

    /// Counts one item as done.
    pub(crate) fn task_done(&self, reference: Reference) -> Result<(), CallError> {
        let mut state = self.lock();
        let State { queues, wakes, .. } = &mut *state;
        let hosted = queues.get_mut(&reference.queue).ok_or(CallError::NoQueue)?;
        let done = hosted.queue.task_done(wakes).map_err(CallError::TooManyTaskDone);
        self.settle(&mut state, reference.queue);
        done
    }

    /// Closes the queue for puts and, once it is empty, for gets.
    pub(crate) fn shut_down(&self, reference: Reference, immediate: bool) -> Result<(), CallError> {
        let mut state = self.lock();
        let State { queues, wakes, budget, .. } = &mut *state;
        let hosted = queues.get_mut(&reference.queue).ok_or(CallError::NoQueue)?;
        hosted.queue.shutdown(immediate, budget, wakes);
        self.settle(&mut state, reference.queue);
        Ok(())
    }

    /// What `look` sees of the queue.
    pub(crate) fn look<R>(
        &self,
        reference: Reference,
        look: impl FnOnce(&Queue) -> R,
    ) -> Result<R, CallError> {
        let state = self.lock();
        state
            .queues
            .get(&reference.queue)
            .map(|hosted| look(&hosted.queue))
            .ok_or(CallError::NoQueue)
    }

    /// Takes back an item that did not reach its client, to its original place.
    pub(crate) fn restore(&self, reference: Reference, task: Task) {
        let mut state = self.lock();
        self.restore_locked(&mut state, reference, task);
    }

    fn restore_locked(&self, state: &mut State, reference: Reference, task: Task) {
        let State { queues, wakes, budget, .. } = state;
        if let Some(hosted) = queues.get_mut(&reference.queue) {
            hosted.queue.restore(task, budget, wakes);
            self.settle(state, reference.queue);
        }
    }

    /// One call that may have to wait.
    fn call(
        self: &Arc<Self>,
        reference: Reference,
        call: impl FnOnce(
            &mut Queue,
            &dyn Fn(Wait) -> Patience,
            WaiterId,
            &mut Budget,
            &mut Vec<Wake>,
        ) -> Result<Option<Outcome>, CallError>,
    ) -> Result<Called, CallError> {
        let mut state = self.lock();
        let id = WaiterId(state.next());
        let State { queues, wakes, budget, .. } = &mut *state;
        let hosted = queues.get_mut(&reference.queue).ok_or(CallError::NoQueue)?;
        let patience = |wait| match wait {
            Wait::No | Wait::Negative => Patience::Now,
            Wait::For(timeout) => Patience::Until(self.clock.now() + timeout),
            Wait::Forever => Patience::Forever,
        };
        let called = match call(&mut hosted.queue, &patience, id, budget, wakes)? {
            Some(outcome) => Called::Now(outcome),
            None => Called::Later(self.park(&mut state, reference, id)),
        };
        self.settle(&mut state, reference.queue);
        Ok(called)
    }

    fn park(self: &Arc<Self>, state: &mut State, reference: Reference, id: WaiterId) -> Waiter {
        let (sender, receiver) = oneshot::channel();
        // Without its sender the receiver tells at once that nobody will answer.
        if !state.is_stopped {
            state.waiting.insert(id, Waiting { reference, outcome: sender });
        }
        Waiter { engine: self.clone(), reference, id, outcome: receiver }
    }

    /// After every change of a queue: hands out what became free and looks after the deadlines.
    fn settle(&self, state: &mut State, queue: QueueId) {
        state.deliver();
        state.note_shortage(queue);
        state.relieve_shortage();
        if state.note_deadline(queue) {
            self.timer.notify_one();
        }
    }

    // ---- time and end

    /// Answers the calls whose time-out has come, for ever.
    pub(crate) async fn keep_time(&self) {
        loop {
            let armed = self.arm();
            let sleep = async {
                match armed {
                    Some(deadline) => tokio::time::sleep(self.clock.until(deadline)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.timer.notified() => {}
            }
            self.expire();
        }
    }

    fn arm(&self) -> Option<Time> {
        let mut state = self.lock();
        state.armed = state.deadlines.first().map(|&(deadline, _)| deadline);
        state.armed
    }

    fn expire(&self) {
        let mut state = self.lock();
        let now = self.clock.now();
        while let Some(&(_, queue)) = state.deadlines.first().filter(|(first, _)| *first <= now) {
            let State { queues, wakes, budget, .. } = &mut *state;
            if let Some(hosted) = queues.get_mut(&queue) {
                hosted.queue.expire(now, budget, wakes);
            }
            self.settle(&mut state, queue);
        }
    }

    /// Ends every call that waits, and every later one that would, without an answer.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.is_stopped = true;
        state.waiting.clear();
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn describe(&self, queue: QueueId) -> String {
        match self.queues.get(&queue) {
            Some(hosted) => hosted.describe(),
            None => "<manyhands queue, gone>".into(),
        }
    }

    /// Answers the calls that the queues set free. A client that left meanwhile has taken its call
    /// out of the queue, under the same lock, so nobody is answered who does not wait.
    fn deliver(&mut self) {
        for (id, outcome) in self.wakes.drain(..) {
            if let Some(waiting) = self.waiting.remove(&id) {
                // An abandoned receiver reads its outcome on drop and gives a task back.
                drop(waiting.outcome.send(outcome));
            }
        }
    }

    /// Keeps `deadlines` true; says whether the timer sleeps too long now.
    fn note_deadline(&mut self, queue: QueueId) -> bool {
        let Some(hosted) = self.queues.get_mut(&queue) else { return false };
        let next = hosted.queue.next_deadline();
        let Some(before) = (hosted.deadline != next).then_some(hosted.deadline) else {
            return false;
        };
        hosted.deadline = next;
        if let Some(before) = before {
            self.deadlines.remove(&(before, queue));
        }
        let Some(next) = next else { return false };
        self.deadlines.insert((next, queue));
        self.armed.is_none_or(|armed| next < armed)
    }

    fn note_shortage(&mut self, queue: QueueId) {
        let Some(hosted) = self.queues.get(&queue) else { return };
        if hosted.queue.waiting_putters() > 0 && !hosted.queue.is_full() {
            self.short_of_memory.insert(queue);
        } else {
            self.short_of_memory.remove(&queue);
        }
    }

    /// Lets puts in that waited for memory.
    fn relieve_shortage(&mut self) {
        if self.short_of_memory.is_empty() || self.budget.used >= self.budget.max {
            return;
        }
        for queue in self.short_of_memory.clone() {
            let Some(hosted) = self.queues.get_mut(&queue) else { continue };
            hosted.queue.admit(&mut self.budget, &mut self.wakes);
            self.deliver();
            self.note_deadline(queue);
            self.note_shortage(queue);
        }
    }

    /// The last count of a reference is gone.
    fn release(&mut self, queue: QueueId, serial: u64) {
        let released = Reference { queue, serial };
        let waiting: Vec<_> = self.waiting.extract_if(|_, it| it.reference == released).collect();
        for (id, _) in waiting {
            self.cancel(queue, id);
        }
        let nameless = self.queues.get(&queue).is_some_and(|hosted| hosted.name.is_none());
        if nameless && !self.references.values().any(|counted| counted.queue == queue) {
            self.forget(queue);
        } else {
            self.note_deadline(queue);
        }
    }

    /// Takes a call out of its queue, which answers it no more.
    fn cancel(&mut self, queue: QueueId, id: WaiterId) {
        if let Some(hosted) = self.queues.get_mut(&queue) {
            hosted.queue.cancel(id, &mut self.budget, &mut self.wakes);
        }
    }

    fn forget(&mut self, queue: QueueId) {
        let Some(mut hosted) = self.queues.remove(&queue) else { return };
        hosted.queue.shutdown(true, &mut self.budget, &mut self.wakes);
        self.deliver();
        self.short_of_memory.remove(&queue);
        if let Some(deadline) = hosted.deadline {
            self.deadlines.remove(&(deadline, queue));
        }
    }
}

impl Hosted {
    fn describe(&self) -> String {
        let name = self.name.as_deref().map_or_else(|| "without a name".into(), repr);
        let options = self.queue.options();
        let (order, len) = (options.order, self.queue.len());
        format!("<manyhands queue {name} {order} maxsize={} qsize={len}>", options.maxsize)
    }

    fn info(&self) -> Option<QueueInfo> {
        let options = self.queue.options();
        Some(QueueInfo {
            name: self.name.as_deref()?.to_owned(),
            order: options.order.to_string(),
            maxsize: options.maxsize as u64,
            qsize: self.queue.len() as u64,
            unfinished: self.queue.unfinished(),
        })
    }
}

/// Why a call of a queue fails at once.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the queue is gone")]
    NoQueue,
    #[error("'timeout' must be a non-negative number")]
    NegativeTimeout,
    #[error(transparent)]
    Order(OrderError),
    #[error(transparent)]
    TooManyTaskDone(TooManyTaskDone),
}

/// A call that waits. Dropping it ends the wait: what it was given meanwhile goes back.
#[derive(Debug)]
pub(crate) struct Waiter {
    engine: Arc<Engine>,
    reference: Reference,
    id: WaiterId,
    outcome: oneshot::Receiver<Outcome>,
}

impl Future for Waiter {
    /// `None` if the call was ended without an answer: its reference was released, or the server
    /// stops.
    type Output = Option<Outcome>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.outcome).poll(cx)).ok())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.outcome.is_terminated() {
            return;
        }
        let mut state = self.engine.lock();
        if state.waiting.remove(&self.id).is_some() {
            state.cancel(self.reference.queue, self.id);
            self.engine.settle(&mut state, self.reference.queue);
        } else if let Ok(Outcome::Task(task)) = self.outcome.try_recv() {
            self.engine.restore_locked(&mut state, self.reference, task);
        }
    }
}

fn without_parameters(typeid: &str, parameters: &[Parameter]) -> Result<(), String> {
    match parameters.len() {
        0 => Ok(()),
        given => Err(format!("TypeError: {typeid}() takes no arguments but {given} were given")),
    }
}

/// The argument of `Queue(maxsize=0)`. Zero and less mean no bound.
fn maxsize(parameters: &[Parameter]) -> Result<usize, String> {
    match parameters {
        [] => Ok(0),
        [Parameter { keyword, value: Some(Atom::Int(maxsize)) }]
            if keyword.as_deref().is_none_or(|keyword| keyword == "maxsize") =>
        {
            Ok(usize::try_from(*maxsize).unwrap_or(0))
        }
        _ => Err("TypeError: Queue() takes one argument, an int: maxsize".into()),
    }
}
