//! The one owner of all queues: their names, the references that clients hold, the calls that wait,
//! and what each session has in hand.
//!
//! Every call takes the lock once, applies itself to the pure [`Queue`] and hands out what that
//! sets free; nothing is awaited under the lock, and what takes longer for a larger item is done
//! before it. The order of the lock is the order of the queue.
//! All changes of queues go through [`State::on`], the one place where it is known what changed.

mod explicit;
mod hand;
mod notices;
mod parked;
mod peek;
mod persist;
mod remains;
mod sessions;
mod settlement;
mod shortage;
mod signer;
#[cfg(test)]
mod simulated;
mod stats;
#[cfg(test)]
mod tests;
mod ticket;
mod unused;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hashbrown::HashMap;
use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;
use manyhands::wire::text::repr;
use manyhands::wire::token::hexadecimal;
use tokio::sync::{Notify, oneshot};

use self::explicit::Leases;
#[cfg(test)]
pub(crate) use self::explicit::REDRIVEN_AT_ONCE_MAX;
pub(crate) use self::explicit::{Added, BATCH_AT_ONCE, Redriving, Taking};
use self::hand::InHand;
use self::notices::Notices;
use self::parked::{Parked, Waiting};
pub(crate) use self::peek::Looked;
use self::persist::{Books, Journal, Log};
pub(crate) use self::persist::{Recovery, RecoveryError};
pub use self::persist::{Restored, Salvaged, salvage};
use self::remains::Ruin;
pub(crate) use self::sessions::SessionId;
use self::sessions::Sessions;
pub(crate) use self::settlement::Presence;
use self::shortage::Starved;
pub(crate) use self::signer::Signer;
use self::stats::Listed;
pub(crate) use self::stats::{QueueStats, References, Snapshot};
use self::ticket::CallerKind;
pub(crate) use self::ticket::{
    Batch, Called, Caller, Completion, Promise, Reading, Ticket, Waiter,
};
pub(crate) use self::unused::NotDropped;
use crate::clock::Clock;
use crate::config::{Limits, standing_bytes};
use crate::error::{CallError, NoQueue, NoReference};
use crate::memory::Memory;
use crate::queue::{
    DeadLetter, Order, Outcome, Patience, Prepared, Queue, QueueOptions, Room, Step, Taker, TaskId,
    Terms, Time, Token, WaiterId,
};

/// Longest name of a queue, in bytes: it is shown in lists and logs.
const NAME_LEN_MAX: usize = 255;
/// Items up to this many bytes hold nobody up while their place in a priority queue is found.
const PLACED_AT_ONCE_MAX: usize = 4 << 10;
/// How often it is looked whether there is room again for tasks to be handed out.
const LEASE_ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// Alarms that are worked off at a time.
const ALARMS_MAX: usize = 16;
/// How long the timer works them off before it lets calls come in between.
const TURN: Duration = Duration::from_micros(500);

type QueueId = u64;

/// A client's reference to a queue. `serial` tells apart the references to one queue, so that we
/// know which of them a client has released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    queue: QueueId,
    serial: u64,
}

pub(crate) struct Engine {
    state: Mutex<State>,
    clock: Clock,
    memory: Arc<Memory>,
    /// Told when a deadline comes before the one that the timer sleeps for.
    timer: Notify,
    queues_max: usize,
    references_max: usize,
    create_on_use: bool,
    /// Where queues on disk are kept, if there are any.
    journal: Option<Journal>,
    /// Random keys for the seals of idents.
    seal: RandomState,
}

#[derive(Debug)]
struct State {
    queues: HashMap<QueueId, Hosted>,
    names: HashMap<Arc<str>, QueueId>,
    /// Those that clients know by a name, sorted by it.
    listed: BTreeSet<Listed>,
    sessions: Sessions,
    leases: Leases,
    /// For each name of a queue of results, the queues whose results go there.
    sources: HashMap<Arc<str>, Vec<QueueId>>,
    waiting: Parked,
    /// When something is next to be done: for each queue that has a deadline its first one, and for
    /// each session that waits for a verdict.
    deadlines: BTreeSet<(Time, Alarm)>,
    /// What the timer sleeps for.
    armed: Option<Time>,
    /// How long names and references stay that nobody uses; for ever without one.
    unused_timeout: Option<Duration>,
    /// The last reference that went because it was not used.
    last_expired: u64,
    /// Queues with a `put` that waits for memory rather than for a slot.
    short_of_memory: BTreeSet<QueueId>,
    /// Calls that would take a task, but wait for the memory that a lease needs; oldest first.
    starved: BTreeMap<WaiterId, Starved>,
    /// Bytes after which a batch ends.
    batch_bytes_max: usize,
    step: Step,
    /// Queues that are gone and still take memory, oldest first.
    ruins: VecDeque<Ruin>,
    /// Queues that changed in this step.
    touched: Vec<QueueId>,
    /// Tasks that were given up in this step.
    letters: VecDeque<(QueueId, DeadLetter)>,
    /// Tasks that ended in this step without a result.
    resultless: VecDeque<(QueueId, TaskId)>,
    is_stopped: bool,
    /// Source of queue ids, serials, session ids and waiter ids.
    counter: u64,
    /// Number of the first lease of each queue, above those of earlier runs.
    epoch: u64,
    /// What proves that a lease's token is ours.
    signer: Signer,
    /// What is kept on disk; nothing without a data directory.
    log: Option<Box<Log>>,
    /// Calls that ended in this step, to be told at its end.
    answers: Vec<Ended>,
}

/// A call that waited and has ended in this step.
#[derive(Debug)]
struct Ended {
    queue: QueueId,
    outcome: Outcome,
    /// What it takes is settled by its token only.
    explicit: bool,
    is_received: bool,
    to: oneshot::Sender<Completion>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    Queue(QueueId),
    Session(SessionId),
    /// Of a call that waits for the memory of a lease.
    Starved(WaiterId),
    /// A name may be unused.
    Name(QueueId),
    /// A reference may be unused.
    Reference(u64),
    /// What is left of queues that are gone is to be cleared away.
    Ruins,
}

#[derive(Debug)]
struct Hosted {
    queue: Queue,
    /// A queue without a name lives as long as it is referenced, or held.
    name: Option<Arc<str>>,
    /// Signs the tokens of its leases.
    signer: Signer,
    /// What clients call a queue without a name, if the embedding program says so.
    label: Option<Arc<str>>,
    /// How often the embedding program holds it.
    held: u64,
    /// How many references to it clients hold.
    references: usize,
    /// It is declared, or named by a declared queue, or the embedding program has asked for it: its
    /// name stays as long as the server.
    stays: bool,
    /// When it changed, or was referred to, for the last time.
    last_used: Time,
    /// When it is next looked whether it is unused.
    alarm: Option<Time>,
    deadline: Option<Time>,
    notices: Notices,
    /// What is on disk of it; nothing of a queue in memory.
    books: Option<Box<Books>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine of queues in memory. `boot` tells its leases from those of earlier runs.
    pub(crate) fn new(limits: &Limits, create_on_use: bool, boot: u32) -> Self {
        Self::with(limits, create_on_use, Clock::start(), u64::from(boot) << 32)
    }

    fn with(limits: &Limits, create_on_use: bool, clock: Clock, epoch: u64) -> Self {
        let memory = Memory::new(limits);
        let mut step = Step::new(limits.memory_bytes_max, epoch);
        step.budget.over = memory.for_leases();
        let state = State {
            queues: HashMap::new(),
            names: HashMap::new(),
            listed: BTreeSet::new(),
            sessions: Sessions::within(limits.memory_bytes_max),
            leases: Leases::default(),
            sources: HashMap::new(),
            waiting: Parked::default(),
            deadlines: BTreeSet::new(),
            armed: None,
            unused_timeout: Some(limits.unused_timeout).filter(|timeout| !timeout.is_zero()),
            last_expired: 0,
            short_of_memory: BTreeSet::new(),
            starved: BTreeMap::new(),
            batch_bytes_max: limits.batch_bytes_max(),
            step,
            ruins: VecDeque::new(),
            touched: Vec::new(),
            letters: VecDeque::new(),
            resultless: VecDeque::new(),
            is_stopped: false,
            counter: 0,
            epoch,
            signer: Signer::random(),
            log: None,
            answers: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            clock,
            memory,
            timer: Notify::new(),
            queues_max: limits.queues_max,
            references_max: limits.references_max,
            create_on_use,
            journal: None,
            seal: RandomState::new(),
        }
    }

    /// This moment, by the clock of the queues.
    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Since that clock was started.
    pub(crate) fn uptime(&self) -> Duration {
        self.now().since(Time::default())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        #[cfg(test)]
        tests::locks::count();
        let mut state = self.state.lock().unwrap_or_else(|_| {
            // Queues that a panic left half changed must not be served on.
            tracing::error!("the queue engine failed; the process ends");
            std::process::abort()
        });
        state.step.now = self.clock.now();
        state.step.budget.max = self.memory.for_tasks(state.standing_bytes());
        state
    }

    /// The account of all memory that is held for clients.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    // ---- names and references

    /// Makes a queue before anybody asks for it.
    pub(crate) fn declare(&self, name: &str, options: QueueOptions) -> Result<(), NoQueue> {
        let mut state = self.lock();
        if state.names.contains_key(name) {
            return Err(NoQueue::Declared(name.to_owned()));
        }
        check(name, &options)?;
        let queue = self.add(&mut state, Some(name), options)?;
        state.stay(queue);
        Ok(())
    }

    /// Makes the queues that declared ones name for results and dead letters.
    pub(crate) fn declare_named(&self) -> Result<(), NoQueue> {
        let mut state = self.lock();
        let options = state.queues.values().map(|hosted| hosted.queue.options());
        let named: Vec<_> = options
            .flat_map(|options| {
                [options.results.as_deref(), options.dead.as_deref(), options.failures_go_to()]
            })
            .flatten()
            .map(str::to_owned)
            .collect();
        for name in named {
            self.ensure(&mut state, &name, QueueOptions::default())?;
        }
        Ok(())
    }

    /// Sees to it that the queue called `name` is there, made now if need be, and stays.
    fn ensure(&self, state: &mut State, name: &str, options: QueueOptions) -> Result<(), NoQueue> {
        let queue = match state.names.get(name) {
            Some(queue) => *queue,
            None => self.add(state, Some(name), options)?,
        };
        state.stay(queue);
        Ok(())
    }

    /// The queue called `name` for the embedding program, made now if names come into being by use.
    pub(crate) fn open(&self, name: &str) -> Result<Reference, NoQueue> {
        let mut state = self.lock();
        let queue = self.find_or_add(&mut state, name)?;
        state.stay(queue);
        Ok(Reference { queue, serial: 0 })
    }

    /// A client's new reference to the queue called `name`, which is made now if names come into being by
    /// use: its ident.
    pub(crate) fn refer_to(&self, name: &str) -> Result<String, NoReference> {
        self.refer_to_what(|state| self.find_or_add(state, name))
    }

    /// A client's reference to a new queue without a name: its ident.
    pub(crate) fn refer_to_new(&self, options: QueueOptions) -> Result<String, NoReference> {
        self.refer_to_what(|state| self.add(state, None, options))
    }

    fn refer_to_what(
        &self,
        find: impl FnOnce(&mut State) -> Result<QueueId, NoQueue>,
    ) -> Result<String, NoReference> {
        let mut state = self.lock();
        if self.has_all_references(&state) {
            return Err(NoReference::TooMany(self.references_max));
        }
        let queue = find(&mut state)?;
        let reference = Reference { queue, serial: state.next() };
        state.refer(reference).count = 1;
        self.commit(&mut state);
        Ok(self.ident(reference))
    }

    /// Whether a queue has this name.
    pub(crate) fn has_queue(&self, name: &str) -> bool {
        self.lock().names.contains_key(name)
    }

    /// Makes a queue without a name for the embedding program, until it [lets go](Self::let_go).
    pub(crate) fn hold(&self, options: QueueOptions) -> Result<Reference, NoQueue> {
        let mut state = self.lock();
        let queue = self.add(&mut state, None, options)?;
        Ok(state.keep(queue).unwrap_or(Reference { queue, serial: 0 }))
    }

    /// Holds the queue that `ident` names, if it is there.
    pub(crate) fn hold_again(&self, ident: &str) -> Option<Reference> {
        let Reference { queue, .. } = self.parse(ident)?;
        self.lock().keep(queue)
    }

    /// The embedding program holds this queue no more.
    pub(crate) fn let_go(&self, reference: Reference) {
        let mut state = self.lock();
        if let Some(hosted) = state.queues.get_mut(&reference.queue) {
            hosted.held -= 1;
        }
        state.forget_unless_used(reference.queue);
        self.commit(&mut state);
    }

    /// A client's reference to a queue that is held, and its ident. The client knows it as `label`,
    /// if it has a name for it.
    pub(crate) fn refer(&self, Reference { queue, .. }: Reference, label: Option<&str>) -> String {
        let mut state = self.lock();
        if let Some(label) = label {
            state.label(queue, label);
        }
        let serial = state.next();
        state.refer(Reference { queue, serial }).count = 1;
        self.commit(&mut state);
        self.ident(Reference { queue, serial })
    }

    /// Counts tasks as unfinished that a queue's earlier owner has given out.
    pub(crate) fn owe(&self, reference: Reference, tasks: u64) {
        if let Some(hosted) = self.lock().queues.get_mut(&reference.queue) {
            hosted.queue.owe(tasks);
        }
    }

    /// Whether `ident` is one of ours, of a queue that may be gone by now.
    pub(crate) fn is_own(&self, ident: &str) -> bool {
        self.parse(ident).is_some()
    }

    fn find_or_add(&self, state: &mut State, name: &str) -> Result<QueueId, NoQueue> {
        match state.names.get(name) {
            Some(queue) => Ok(*queue),
            None if self.create_on_use => self.add(state, Some(name), QueueOptions::default()),
            None => {
                let declared = nearest_first(name, state.names.keys());
                Err(NoQueue::Undeclared { name: name.into(), declared })
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
        Ok(state.host(name.map(Into::into), options))
    }

    /// The last part proves that we issued it, in this run: nobody can name references of others.
    pub(crate) fn ident(&self, reference: Reference) -> String {
        let Reference { queue, serial } = reference;
        format!("{queue:x}.{serial:x}.{:016x}", self.seal.hash_one(reference))
    }

    /// The reference that `ident` names, if its queue is there. A named queue stays reachable by
    /// its idents when their count has come to zero, because proxies travel between processes.
    pub(crate) fn resolve(&self, ident: &str) -> Option<Reference> {
        let reference = self.parse(ident)?;
        self.lock().queues.contains_key(&reference.queue).then_some(reference)
    }

    /// The reference that `ident` names, whether or not its queue is still there.
    pub(crate) fn parse(&self, ident: &str) -> Option<Reference> {
        let mut numbers = ident.as_bytes().splitn(3, |&byte| byte == b'.').map(hexadecimal);
        let (queue, serial, seal) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let reference = Reference { queue, serial };
        (seal == self.seal.hash_one(reference)).then_some(reference)
    }

    /// Counts one more reference; false if the ident is unknown. So is one that nobody holds any
    /// more, once as many references are held as the limit allows.
    pub(crate) fn incref(&self, ident: &str) -> bool {
        let Some(reference) = self.parse(ident) else { return false };
        let mut state = self.lock();
        let is_held = state.sessions.references.contains_key(&reference.serial);
        if !state.queues.contains_key(&reference.queue)
            || !is_held && self.has_all_references(&state)
        {
            return false;
        }
        state.refer(reference).count += 1;
        self.commit(&mut state);
        true
    }

    /// Counts one reference fewer; false if there was none. The last one takes the calls that wait
    /// on it along, and its queue if that has no name.
    pub(crate) fn decref(&self, ident: &str) -> bool {
        let Some(reference) = self.parse(ident) else { return false };
        let mut state = self.lock();
        let is_counted = state.count_down(reference);
        self.commit(&mut state);
        is_counted || state.may_have_expired(reference.serial)
    }

    /// Whether clients hold as many references as they may.
    fn has_all_references(&self, state: &State) -> bool {
        state.sessions.references.len() >= self.references_max
    }

    /// Whether a client still holds this reference.
    pub(crate) fn is_referenced(&self, reference: Reference) -> bool {
        self.lock().sessions.references.contains_key(&reference.serial)
    }

    /// References of clients to queues.
    pub(crate) fn number_of_references(&self) -> u64 {
        self.lock().sessions.references.len() as u64
    }

    /// Queues that clients refer to, however often.
    pub(crate) fn number_of_queues(&self) -> usize {
        let state = self.lock();
        state.queues.values().filter(|hosted| hosted.references > 0).count()
    }

    /// Its name; empty if it has none or is gone.
    pub(crate) fn name(&self, reference: Reference) -> String {
        let state = self.lock();
        let name = state.queues.get(&reference.queue).and_then(|hosted| hosted.name.as_deref());
        name.unwrap_or_default().to_owned()
    }

    /// Queues that clients know by a name.
    pub(crate) fn number_of_listed(&self) -> usize {
        self.lock().listed.len()
    }

    // ---- calls of queues

    /// Adds an item; waits for a free slot, or for memory, as long as `wait` says.
    ///
    /// If the session has a task in hand whose results go to this queue, the item is the result of
    /// the oldest one and settles it, in one step.
    pub(crate) fn put(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        item: Payload,
        terms: Option<Box<Terms>>,
        wait: Wait,
    ) -> Ticket {
        let mut item = Prepared::new(item, terms.as_deref(), Order::Fifo);
        let to = |_: &State| Some(reference.queue);
        let mut state = self.enter_put(caller, reference, to, &mut item, terms.as_deref());
        if let Err(error) = state.check_put(reference.queue, terms.as_deref(), wait) {
            return Ticket::unchanged(Err(error));
        }
        let session = caller.session;
        let answered = state.task_answered_by(session, reference.queue);
        let patience = patience(wait, state.step.now);
        let called =
            self.put_answer(&mut state, session, reference, answered, (item, terms), patience);
        self.finish_call(&mut state, reference.queue, called)
    }

    /// Takes the lock for a put to the queue that `to` finds. What a large item is compared by
    /// there is found without the lock, so that nobody waits for that.
    fn enter_put(
        &self,
        caller: Caller,
        reference: Reference,
        to: impl FnOnce(&State) -> Option<QueueId>,
        item: &mut Prepared,
        terms: Option<&Terms>,
    ) -> MutexGuard<'_, State> {
        let state = self.enter_call(caller, reference);
        if item.payload_len() <= PLACED_AT_ONCE_MAX {
            return state;
        }
        let options = to(&state).and_then(|to| state.options(to));
        if options.is_none_or(|options| options.order != Order::Priority) {
            return state;
        }
        drop(state);
        item.find_place(terms);
        self.enter_call(caller, reference)
    }

    /// Adds an item, as the result of `answered` if that is there. The step goes on.
    fn put_answer(
        self: &Arc<Self>,
        state: &mut State,
        session: SessionId,
        reference: Reference,
        answered: Option<InHand>,
        (item, mut terms): (Prepared, Option<Box<Terms>>),
        patience: Patience,
    ) -> Result<Called, CallError> {
        let id = WaiterId(state.next());
        if answered.is_none() && state.refuses_unasked(reference.queue) {
            return Err(CallError::Unasked);
        }
        if let Some(held) = answered {
            let claimed = state.claim(session, held);
            if planted!(LateResultDropped) && claimed.is_none() {
                return Ok(Called::Now(Outcome::Done));
            }
            let origin = claimed.ok_or(CallError::Stale)?;
            let terms = terms.get_or_insert_default();
            terms.frees = state.freed_by(held);
            terms.origin = Some(Box::new(origin));
        }
        let answers = answered.map(|held| (held.queue, held.token));
        let put = state.on(reference.queue, |queue, step| {
            queue.put(item, terms, patience, id, step).map_err(CallError::Order)
        });
        match put.unwrap_or(Err(CallError::NoQueue)) {
            Ok(Some(outcome)) => {
                if planted!(ResultAndAckApart) {
                    self.commit(state);
                }
                state.after_put(session, reference.queue, answers, &outcome);
                Ok(Called::Now(outcome))
            }
            Ok(None) => {
                let waiting = Waiting { answers, ..Waiting::new(reference, session) };
                Ok(Called::Later(self.park(state, id, waiting)))
            }
            Err(error) => {
                state.after_put(session, reference.queue, answers, &Outcome::Full);
                Err(error)
            }
        }
    }

    /// Takes an item that a reader of pickle protocols up to `protocol_max` understands; waits for
    /// one as long as `wait` says.
    pub(crate) fn get(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        protocol_max: u8,
        wait: Wait,
    ) -> Ticket {
        let mut state = self.enter_call(caller, reference);
        if wait == Wait::Negative {
            return Ticket::unchanged(Err(CallError::NegativeTimeout));
        }
        let (session, queue) = (caller.session, reference.queue);
        state.settle_by_get(session, queue);
        let taker = Taker::leasing(protocol_max);
        let called = self.take(&mut state, session, reference, taker, wait, false);
        let ticket = self.finish_call(&mut state, queue, called);
        if let Ok(Called::Now(Outcome::Task(grant))) = &ticket.called
            && self.journal.is_some()
            && state.is_received(session, queue, grant)
            && state.is_kept(queue)
        {
            // In a step of its own, which the reply does not wait for.
            state.receive(session, queue, grant.token);
            self.commit(&mut state);
        }
        ticket
    }

    /// Takes an item, by its token if `explicit`. The step goes on.
    fn take(
        self: &Arc<Self>,
        state: &mut State,
        session: SessionId,
        reference: Reference,
        taker: Taker,
        wait: Wait,
        explicit: bool,
    ) -> Result<Called, CallError> {
        let id = WaiterId(state.next());
        let patience = patience(wait, state.step.now);
        let taken = match state.is_starved(session) {
            true => state.starve(id, Starved { queue: reference.queue, taker, patience }),
            false => state
                .on(reference.queue, |queue, step| queue.get(taker, patience, id, step))
                .ok_or(CallError::NoQueue)?,
        };
        Ok(match taken {
            Some(outcome) => {
                if let Outcome::Task(grant) = &outcome {
                    state.hold(session, reference.queue, grant.token, explicit);
                    if !explicit
                        && state.takes_for_good(session, reference.queue)
                        && !state.is_kept(reference.queue)
                    {
                        state.receive(session, reference.queue, grant.token);
                    }
                }
                Called::Now(outcome)
            }
            None => {
                let waiting = Waiting { explicit, ..Waiting::new(reference, session) };
                Called::Later(self.park(state, id, waiting))
            }
        })
    }

    /// Waits until every item that was put is done.
    pub(crate) fn join(self: &Arc<Self>, caller: Caller, reference: Reference) -> Ticket {
        let mut state = self.enter_call(caller, reference);
        let id = WaiterId(state.next());
        let called = match state.on(reference.queue, |queue, _| queue.join(id)) {
            None => Err(CallError::NoQueue),
            Some(Some(outcome)) => Ok(Called::Now(outcome)),
            Some(None) => {
                let waiting = Waiting::new(reference, caller.session);
                Ok(Called::Later(self.park(&mut state, id, waiting)))
            }
        };
        self.finish_call(&mut state, reference.queue, called)
    }

    /// Counts one item as done, and settles the oldest that the session has in hand.
    pub(crate) fn task_done(self: &Arc<Self>, caller: Caller, reference: Reference) -> Ticket {
        let mut state = self.enter_call(caller, reference);
        state.settle_by_task_done(caller.session, reference.queue);
        let done = state.on(reference.queue, |queue, step| queue.task_done(step));
        let called = match done {
            Some(Ok(())) => Ok(Called::Now(Outcome::Done)),
            Some(Err(error)) => Err(CallError::TooManyTaskDone(error)),
            None => Err(CallError::NoQueue),
        };
        self.finish_call(&mut state, reference.queue, called)
    }

    /// Closes the queue for puts and, once it is empty, for gets.
    pub(crate) fn shut_down(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        immediate: bool,
    ) -> Ticket {
        let mut state = self.enter_call(caller, reference);
        let shut = state.on(reference.queue, |queue, step| queue.shutdown(immediate, step));
        let called = shut.map(|()| Called::Now(Outcome::Done)).ok_or(CallError::NoQueue);
        self.finish_call(&mut state, reference.queue, called)
    }

    /// Takes the lock for a call.
    fn enter_call(&self, caller: Caller, reference: Reference) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let now = state.step.now;
        if !caller.is_in_process() && !self.has_all_references(&state) {
            state.revive(reference);
        }
        state.sessions.note_use(caller.session, reference.serial, now);
        state
    }

    /// What `look` sees of the queue.
    pub(crate) fn look<R>(
        &self,
        caller: Caller,
        reference: Reference,
        look: impl FnOnce(&Queue) -> R,
    ) -> Result<R, CallError> {
        let state = self.enter_call(caller, reference);
        state
            .queues
            .get(&reference.queue)
            .map(|hosted| look(&hosted.queue))
            .ok_or(CallError::NoQueue)
    }

    /// Takes back an item that did not reach its client, to its original place.
    pub(crate) fn take_back(&self, caller: Caller, reference: Reference, token: Token) {
        let mut state = self.lock();
        state.return_unread(caller.session, reference.queue, token);
        self.commit(&mut state);
    }

    fn park(self: &Arc<Self>, state: &mut State, id: WaiterId, mut waiting: Waiting) -> Waiter {
        let (sender, receiver) = oneshot::channel();
        let Waiting { reference, session, .. } = waiting;
        waiting.outcome = Some(sender);
        // Without its sender the receiver tells at once that nobody will answer.
        if state.is_stopped {
            state.cancel(id, reference.queue, waiting.answers);
        } else {
            state.waiting.insert(id, waiting);
        }
        Waiter::new(self, session, reference, id, receiver)
    }

    /// After every change: hands out what became free, buries the dead, looks after the deadlines
    /// and writes down what is to be kept. The step ends here; what it changed is durable when the
    /// promise is kept.
    fn commit(&self, state: &mut State) -> Promise {
        state.follow_up();
        if state.look_after() {
            self.timer.notify_one();
        }
        let promise = state.append(&self.clock);
        state.tell_answers(promise);
        promise
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
            tokio::task::yield_now().await;
        }
    }

    /// Lets puts in that waited for the disk, whenever there is more room on it, for ever.
    pub(crate) async fn keep_room(&self) {
        let Some(journal) = self.journal() else { return std::future::pending().await };
        loop {
            let more = journal.more_room();
            self.let_puts_in();
            let mut more = std::pin::pin!(more);
            // Leases that ended make room, too, of which nobody tells.
            while tokio::time::timeout(LEASE_ROOM_INTERVAL, &mut more).await.is_err()
                && !self.lacks_room()
            {}
        }
    }

    /// Whether somebody may wait for room on the disk.
    fn lacks_room(&self) -> bool {
        let state = self.lock();
        let lacks_leases = state.log.as_ref().is_some_and(|log| log.lacks_leases);
        lacks_leases || !state.short_of_memory.is_empty()
    }

    pub(crate) fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    /// Lets puts in that waited for room, and serves getters that did, where there is some now.
    pub(crate) fn let_puts_in(&self) {
        let mut state = self.lock();
        if state.log.as_mut().is_some_and(|log| std::mem::take(&mut log.lacks_leases)) {
            let waits = |hosted: &Hosted| hosted.queue.waiting_getters() > 0;
            let waiting = state.queues.iter().filter(|(_, hosted)| waits(hosted));
            let waiting: Vec<_> = waiting.map(|(queue, _)| *queue).collect();
            for queue in waiting {
                state.on(queue, Queue::serve);
            }
        }
        for queue in state.short_of_memory.clone() {
            state.on(queue, Queue::admit);
        }
        self.commit(&mut state);
    }

    pub(crate) fn arm(&self) -> Option<Time> {
        let mut state = self.lock();
        state.armed = state.deadlines.first().map(|&(deadline, _)| deadline);
        state.armed
    }

    /// Does what is due, a bounded part of it at a time so that calls come in between.
    pub(crate) fn expire(&self) {
        let mut state = self.lock();
        let now = state.step.now;
        let end = now + TURN;
        for _ in 0..ALARMS_MAX {
            let Some(&(time, alarm)) = state.deadlines.first() else { break };
            if now < time {
                break;
            }
            match alarm {
                Alarm::Queue(queue) => {
                    state.on(queue, Queue::expire);
                    state.clear_away(queue);
                }
                Alarm::Session(session) => {
                    state.deadlines.remove(&(time, alarm));
                    state.judge(session);
                }
                Alarm::Starved(id) => state.end_starved(id),
                Alarm::Name(queue) => {
                    state.deadlines.remove(&(time, alarm));
                    state.look_at_name(queue);
                }
                Alarm::Reference(serial) => {
                    state.deadlines.remove(&(time, alarm));
                    state.look_at_reference(serial);
                }
                Alarm::Ruins => {
                    state.deadlines.remove(&(time, alarm));
                    state.clear_oldest_ruin();
                }
            }
            self.commit(&mut state);
            if end < self.clock.now() {
                break;
            }
        }
    }

    /// Ends every call that waits, and every later one that would, without an answer.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.is_stopped = true;
        for (id, waiting) in std::mem::take(&mut state.waiting) {
            state.cancel(id, waiting.reference.queue, waiting.answers);
        }
        self.commit(&mut state);
    }
}

impl State {
    /// What is held for clients beside tasks, in bytes.
    fn standing_bytes(&self) -> u64 {
        let Sessions { all, references, .. } = &self.sessions;
        standing_bytes(all.len(), references.len(), self.queues.len()) + self.sessions.use_bytes()
    }

    /// Whether a queue takes such a put at all.
    fn check_put(
        &self,
        queue: QueueId,
        terms: Option<&Terms>,
        wait: Wait,
    ) -> Result<(), CallError> {
        let options = self.options(queue).ok_or(CallError::NoQueue)?;
        if wait == Wait::Negative && options.maxsize > 0 {
            return Err(CallError::NegativeTimeout);
        }
        if terms.is_some_and(|terms| terms.priority.is_some()) && options.order != Order::Priority {
            return Err(CallError::NoOrder(options.order));
        }
        Ok(())
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn host(&mut self, name: Option<Arc<str>>, options: QueueOptions) -> QueueId {
        let id = self.next();
        if let Some(name) = &name {
            self.names.insert(name.clone(), id);
        }
        let mut queue = Queue::new(options, self.epoch);
        let log = self.log.as_mut().filter(|_| name.is_some());
        let books = log.and_then(|log| {
            let books = Books::of(queue.options())?;
            persist::spill(&mut queue);
            log.note_declared((id, books.durability), &queue);
            Some(books)
        });
        let is_named = name.is_some();
        let signer = self.signer.of(id, name.as_deref());
        self.take_in_hosted(id, Hosted::new(queue, name, signer, books, self.step.now));
        if is_named {
            self.watch_name(id);
        }
        if self.needs_letters_in_memory(id)
            && let Some(hosted) = self.queues.get_mut(&id)
        {
            hosted.queue.keep_resident(u64::MAX);
        }
        id
    }

    /// The name of a queue stays as long as the server.
    fn stay(&mut self, queue: QueueId) {
        if let Some(hosted) = self.queues.get_mut(&queue) {
            hosted.stays = true;
        }
    }

    fn take_in_hosted(&mut self, id: QueueId, hosted: Hosted) {
        if let Some(results) = hosted.queue.options().results.as_deref() {
            self.sources.entry(results.into()).or_default().push(id);
        }
        self.list(id, &hosted);
        self.queues.insert(id, hosted);
    }

    /// Changes a queue, if it is there. What the change leaves to be done is noted for
    /// [`follow_up`](Self::follow_up); its records are those that a journal has to keep.
    fn on<R>(
        &mut self,
        queue: QueueId,
        change: impl FnOnce(&mut Queue, &mut Step) -> R,
    ) -> Option<R> {
        let hosted = self.queues.get_mut(&queue)?;
        hosted.last_used = self.step.now;
        let known = hosted.queue.tally().known;
        let result = match (self.log.as_mut(), &hosted.books) {
            (None, _) | (_, None) => change(&mut hosted.queue, &mut self.step),
            (Some(log), Some(books)) => {
                let (changes, room) = log.open();
                (self.step.changes, self.step.room) = (Some(changes), room);
                let leased = hosted.queue.leased();
                let result = change(&mut hosted.queue, &mut self.step);
                let changes = self.step.changes.take().unwrap_or_default();
                let room = std::mem::replace(&mut self.step.room, Room::ENOUGH);
                log.close((queue, books.durability), changes, room);
                log.note_leased(leased, hosted.queue.leased());
                result
            }
        };
        if self.touched.last() != Some(&queue) {
            self.touched.push(queue);
        }
        let known = hosted.queue.tally().known - known;
        if known > 0 || !self.step.lapsed.is_empty() {
            hosted.tell_step(&self.step.lapsed, known, self.step.now);
        }
        for task in self.step.lapsed.drain(..) {
            self.leases.drop(queue, task);
        }
        if !self.step.dead.is_empty() {
            self.letters.extend(self.step.dead.drain(..).map(|letter| (queue, letter)));
        }
        if !self.step.resultless.is_empty() {
            self.resultless.extend(self.step.resultless.drain(..).map(|task| (queue, task)));
        }
        Some(result)
    }

    fn follow_up(&mut self) {
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
    fn deliver(&mut self) {
        while !self.step.wakes.is_empty() {
            for (id, outcome) in std::mem::take(&mut self.step.wakes) {
                let Some(waiting) = self.waiting.remove(id) else { continue };
                let Waiting { reference, session, answers, explicit, outcome: sender } = waiting;
                let mut is_received = false;
                match &outcome {
                    Outcome::Task(grant) => {
                        self.hold(session, reference.queue, grant.token, explicit);
                        is_received =
                            !explicit && self.is_received(session, reference.queue, grant);
                    }
                    Outcome::Empty | Outcome::Joined | Outcome::Unreadable { .. } => {}
                    _ => self.after_put(session, reference.queue, answers, &outcome),
                }
                if let Some(to) = sender {
                    let queue = reference.queue;
                    self.answers.push(Ended { queue, outcome, explicit, is_received, to });
                }
            }
        }
    }

    /// Tells calls that waited their outcome, and what they have to wait for yet.
    fn tell_answers(&mut self, promise: Promise) {
        if self.answers.is_empty() {
            return;
        }
        let mut answers = std::mem::take(&mut self.answers);
        for Ended { queue, outcome, explicit, is_received, to } in answers.drain(..) {
            let own = self.promise(queue, &outcome);
            let promise = match outcome {
                // A task that was there before is not of this step, but a lease by token is.
                Outcome::Task(_) if explicit && !planted!(LeaseToldTooSoon) => {
                    own.and(promise.once_written())
                }
                Outcome::Task(_) => own,
                _ => own.and(promise),
            };
            let promise = if planted!(WokenBeforeDurable) { Promise::NOTHING } else { promise };
            // An abandoned receiver reads its outcome on drop and gives a task back.
            drop(to.send(Completion { outcome, promise, is_received }));
        }
        self.answers = answers;
    }

    /// Keeps the deadlines and the shortage true; says whether the timer sleeps too long now.
    fn look_after(&mut self) -> bool {
        self.relieve_shortage();
        self.feed_starved();
        let mut sleeps_too_long = false;
        while let Some(queue) = self.touched.pop() {
            self.note_shortage(queue);
            sleeps_too_long |= self.note_deadline(queue);
        }
        let first = self.deadlines.first().map(|(time, _)| *time);
        sleeps_too_long |= first.is_some_and(|first| self.armed.is_none_or(|armed| first < armed));
        sleeps_too_long && !planted!(TimerNotTold)
    }

    /// Keeps `deadlines` true; says whether the timer sleeps too long now.
    fn note_deadline(&mut self, queue: QueueId) -> bool {
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

    /// Counts one reference fewer; false if there was none.
    fn count_down(&mut self, reference: Reference) -> bool {
        let now = self.step.now;
        let Reference { queue, serial } = reference;
        let Some(counted) = self.sessions.references.get_mut(&serial) else { return false };
        counted.count -= 1;
        counted.last_decref = Some(now);
        if counted.count == 0 {
            self.forget_reference(serial);
            let ended = self.sessions.ended_users(serial);
            self.judge_soon(ended);
            self.release(queue, serial);
        }
        true
    }

    /// The last count of a reference is gone.
    fn release(&mut self, queue: QueueId, serial: u64) {
        for id in self.waiting.on(serial) {
            if let Some(waiting) = self.waiting.remove(id) {
                self.cancel(id, queue, waiting.answers);
            }
        }
        self.forget_unless_used(queue);
    }

    fn keep(&mut self, queue: QueueId) -> Option<Reference> {
        self.queues.get_mut(&queue)?.held += 1;
        Some(Reference { queue, serial: 0 })
    }

    /// Forgets a queue that nobody can reach any more.
    fn forget_unless_used(&mut self, queue: QueueId) {
        let is_used = |it: &Hosted| it.name.is_some() || it.held > 0 || it.references > 0;
        if self.queues.get(&queue).is_none_or(is_used) {
            self.note_deadline(queue);
        } else {
            self.remove(queue);
        }
    }

    /// Takes a call out of its queue, which answers it no more.
    fn cancel(&mut self, id: WaiterId, queue: QueueId, answers: Option<(QueueId, Token)>) {
        self.feed(id);
        self.on(queue, |queue, step| queue.cancel(id, step));
        self.unclaim(answers);
    }

    fn remove(&mut self, queue: QueueId) {
        self.on(queue, |queue, step| queue.shutdown(true, step));
        let Some(hosted) = self.queues.remove(&queue) else { return };
        if let Some(name) = &hosted.name {
            self.names.remove(name);
        }
        if let Some(listed) = hosted.listed(queue) {
            self.listed.remove(&listed);
        }
        if let Some(alarm) = hosted.alarm {
            self.deadlines.remove(&(alarm, Alarm::Name(queue)));
        }
        if let Some(results) = hosted.queue.options().results.as_deref()
            && let Some(sources) = self.sources.get_mut(results)
        {
            sources.retain(|source| *source != queue);
        }
        if let Some(log) = self.log.as_mut().filter(|_| hosted.books.is_some()) {
            log.note_leased(hosted.queue.leased(), 0);
            log.note_dropped(queue);
        }
        self.short_of_memory.remove(&queue);
        if let Some(deadline) = hosted.deadline {
            self.deadlines.remove(&(deadline, Alarm::Queue(queue)));
        }
        self.leave_ruin(queue, hosted);
    }
}

impl Hosted {
    fn new(
        queue: Queue,
        name: Option<Arc<str>>,
        signer: Signer,
        books: Option<Box<Books>>,
        last_used: Time,
    ) -> Self {
        Self {
            queue,
            name,
            signer,
            label: None,
            held: 0,
            references: 0,
            stays: false,
            last_used,
            alarm: None,
            deadline: None,
            notices: Notices::default(),
            books,
        }
    }
}

fn patience(wait: Wait, now: Time) -> Patience {
    match wait {
        Wait::No | Wait::Negative => Patience::Now,
        Wait::For(timeout) => Patience::Until(now + timeout),
        Wait::Forever => Patience::Forever,
    }
}

/// Names in a message, at most.
const NAMES_SHOWN_MAX: usize = 20;

/// The names that there are, those first that `name` may have meant.
fn nearest_first<'n>(name: &str, names: impl Iterator<Item = &'n Arc<str>>) -> String {
    let mut names: Vec<_> = names.map(|other| (unlikeness(name, other), &**other)).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(NAMES_SHOWN_MAX);
    let shown: Vec<_> = names.iter().take(NAMES_SHOWN_MAX).map(|(_, name)| repr(name)).collect();
    let end = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &end
}

/// How much two names differ: what is left of both beside what they begin and end with in common.
fn unlikeness(one: &str, other: &str) -> usize {
    let begin = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let rest = one.len().min(other.len()) - begin;
    let (tail, other_tail) = (one.bytes().rev().take(rest), other.bytes().rev());
    let end = tail.zip(other_tail).take_while(|(a, b)| a == b).count();
    one.len() + other.len() - 2 * (begin + end)
}

/// What a declaration must not say.
fn check(name: &str, options: &QueueOptions) -> Result<(), NoQueue> {
    if options.results.as_deref() == Some(name) {
        return Err(NoQueue::Loop(name.to_owned(), "queue of results"));
    }
    if options.dead.as_deref() == Some(name) {
        return Err(NoQueue::Loop(name.to_owned(), "dead-letter queue"));
    }
    if options.failures.is_some() && options.failures_go_to().is_none() {
        return Err(NoQueue::NoResults(name.to_owned()));
    }
    if options.failures_go_to() == Some(name) {
        return Err(NoQueue::Loop(name.to_owned(), "queue of failures"));
    }
    Ok(())
}
