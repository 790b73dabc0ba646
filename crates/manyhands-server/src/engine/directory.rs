//! The directory: which names and references there are, and how long they stay.

pub(super) mod unused;

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use manyhands::wire::text::nearest_first;
use manyhands::wire::token::hexadecimal;

use crate::config::Limits;
use crate::engine::{Alarm, Engine, Hosted, Listed, QueueId, QueueLog, State, persist};
use crate::error::{NoQueue, NoReference};
use crate::queue::{Change, Queue, QueueOptions, Time};

/// Longest name of a queue, in bytes: it is shown in lists and logs.
const NAME_LEN_MAX: usize = 255;

/// Which queues there are by name.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) names: HashMap<Arc<str>, QueueId>,
    /// Those that clients know by a name, sorted by it.
    pub(super) listed: BTreeSet<Listed>,
    /// For each name of a queue of results, the queues whose results go there.
    pub(super) sources: HashMap<Arc<str>, Vec<QueueId>>,
    /// How long names and references stay that nobody uses; for ever without one.
    pub(super) unused_timeout: Option<Duration>,
    /// When it is to be looked whether they are unused; see [`unused`].
    pub(super) alarms: BTreeSet<(Time, Alarm)>,
    /// The last reference that went because it was not used.
    pub(super) last_expired: u64,
}

impl Directory {
    /// An empty one.
    pub(super) fn of(limits: &Limits) -> Self {
        Self {
            names: HashMap::new(),
            listed: BTreeSet::new(),
            sources: HashMap::new(),
            unused_timeout: Some(limits.unused_timeout).filter(|timeout| !timeout.is_zero()),
            alarms: BTreeSet::new(),
            last_expired: 0,
        }
    }
}

/// A client's reference to a queue. `serial` tells apart the references to one queue, so that we
/// know which of them a client has released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    pub(super) queue: QueueId,
    pub(super) serial: u64,
}

impl Engine {
    /// Makes a queue before anybody asks for it.
    pub(crate) fn declare(&self, name: &str, options: QueueOptions) -> Result<(), NoQueue> {
        let mut state = self.lock();
        if state.directory.names.contains_key(name) {
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
    pub(super) fn ensure(
        &self,
        state: &mut State,
        name: &str,
        options: QueueOptions,
    ) -> Result<(), NoQueue> {
        let queue = match state.directory.names.get(name) {
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
        self.lock().directory.names.contains_key(name)
    }

    /// Makes a queue without a name for the embedding program, until it [unpins](Self::unpin) it.
    pub(crate) fn pin_new(&self, options: QueueOptions) -> Result<Reference, NoQueue> {
        let mut state = self.lock();
        let queue = self.add(&mut state, None, options)?;
        Ok(state.pin(queue).unwrap_or(Reference { queue, serial: 0 }))
    }

    /// Pins the queue that `ident` names, if it is there.
    pub(crate) fn pin(&self, ident: &str) -> Option<Reference> {
        let Reference { queue, .. } = self.parse(ident)?;
        self.lock().pin(queue)
    }

    /// The embedding program needs this queue no more.
    pub(crate) fn unpin(&self, reference: Reference) {
        let mut state = self.lock();
        if let Some(hosted) = state.queues.get_mut(&reference.queue) {
            hosted.pins -= 1;
        }
        state.forget_unless_used(reference.queue);
        self.commit(&mut state);
    }

    /// A client's reference to a queue that is pinned, and its ident. The client knows it as `label`,
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
    pub(crate) fn add_unfinished(&self, reference: Reference, tasks: u64) {
        if let Some(hosted) = self.lock().queues.get_mut(&reference.queue) {
            hosted.queue.add_unfinished(tasks);
        }
    }

    /// Whether `ident` is one of ours, of a queue that may be gone by now.
    pub(crate) fn is_own(&self, ident: &str) -> bool {
        self.parse(ident).is_some()
    }

    fn find_or_add(&self, state: &mut State, name: &str) -> Result<QueueId, NoQueue> {
        match state.directory.names.get(name) {
            Some(queue) => Ok(*queue),
            None if self.create_on_use => self.add(state, Some(name), QueueOptions::default()),
            None => {
                let names = state.directory.names.keys().map(|name| &**name);
                let declared = nearest_first(name, names);
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
    pub(super) fn has_all_references(&self, state: &State) -> bool {
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
        self.lock().directory.listed.len()
    }
}

impl State {
    pub(super) fn host(&mut self, name: Option<Arc<str>>, options: QueueOptions) -> QueueId {
        let id = self.next();
        if let Some(name) = &name {
            self.directory.names.insert(name.clone(), id);
        }
        let mut queue = Queue::new(options, self.epoch);
        let log = self.log.as_mut().filter(|_| name.is_some());
        let queue_log = log.and_then(|log| {
            let queue_log = QueueLog::of(queue.options())?;
            persist::spill(&mut queue);
            log.note_declared((id, queue_log.durability), &queue);
            Some(queue_log)
        });
        let is_named = name.is_some();
        self.observers.tell(self.step.now, id, name.as_ref(), &[Change::Declared(queue.counts())]);
        let signer = self.signer.of(id, name.as_deref());
        self.take_in_hosted(id, Hosted::new(queue, name, signer, queue_log, self.step.now));
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
    pub(super) fn stay(&mut self, queue: QueueId) {
        if let Some(hosted) = self.queues.get_mut(&queue) {
            hosted.stays = true;
        }
    }

    pub(super) fn take_in_hosted(&mut self, id: QueueId, hosted: Hosted) {
        if let Some(results) = hosted.queue.options().results.as_deref() {
            self.directory.sources.entry(results.into()).or_default().push(id);
        }
        self.list(id, &hosted);
        self.queues.insert(id, hosted);
    }

    /// Counts one reference fewer; false if there was none.
    pub(super) fn count_down(&mut self, reference: Reference) -> bool {
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
    pub(super) fn release(&mut self, queue: QueueId, serial: u64) {
        for id in self.waiting.on(serial) {
            if let Some(waiting) = self.waiting.remove(id) {
                self.cancel(id, queue, waiting.answers);
            }
        }
        self.forget_unless_used(queue);
    }

    pub(super) fn pin(&mut self, queue: QueueId) -> Option<Reference> {
        self.queues.get_mut(&queue)?.pins += 1;
        Some(Reference { queue, serial: 0 })
    }

    /// Forgets a queue that nobody can reach any more.
    pub(super) fn forget_unless_used(&mut self, queue: QueueId) {
        let is_used = |it: &Hosted| it.name.is_some() || it.pins > 0 || it.references > 0;
        if self.queues.get(&queue).is_none_or(is_used) {
            self.note_deadline(queue);
        } else {
            self.remove(queue);
        }
    }

    pub(super) fn remove(&mut self, queue: QueueId) {
        self.on(queue, |queue, step| queue.shutdown(true, step));
        let Some(hosted) = self.queues.remove(&queue) else { return };
        if let Some(name) = &hosted.name {
            self.directory.names.remove(name);
        }
        if let Some(listed) = hosted.listed(queue) {
            self.directory.listed.remove(&listed);
        }
        if let Some(alarm) = hosted.alarm {
            self.directory.alarms.remove(&(alarm, Alarm::Name(queue)));
        }
        if let Some(results) = hosted.queue.options().results.as_deref()
            && let Some(sources) = self.directory.sources.get_mut(results)
        {
            sources.retain(|source| *source != queue);
        }
        self.observers.tell(self.step.now, queue, hosted.called(), &[Change::Dropped]);
        if let Some(log) = self.log.as_mut().filter(|_| hosted.queue_log.is_some()) {
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

/// What a declaration must not say.
pub(super) fn check(name: &str, options: &QueueOptions) -> Result<(), NoQueue> {
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
