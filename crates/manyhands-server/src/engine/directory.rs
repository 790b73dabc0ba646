//! The directory: which names there are, how many references to each queue, and how long they stay.

pub(super) mod configured;
pub(super) mod unused;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use hashbrown::HashMap;
use manyhands::wire::text::nearest_first;

use crate::config::Limits;
use crate::engine::{Alarm, Engine, Hosted, Listed, QueueId, QueueLog, State, persist};
use crate::error::NoQueue;
use crate::queue::{Change, Queue, QueueOptions, Time};

/// Longest name of a queue, in bytes: it is shown in lists and logs.
const NAME_LEN_MAX: usize = 255;

/// Which queues there are by name.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) names: HashMap<Arc<str>, QueueId>,
    /// Those that clients know by a name, sorted by it.
    pub(super) listed: BTreeSet<Listed>,
    /// For each name of a queue of results, how many queues' results go there.
    pub(super) results: HashMap<Arc<str>, usize>,
    /// How long names stay that nobody uses; for ever without one.
    pub(super) unused_timeout: Option<Duration>,
    /// When it is to be looked whether names are unused; see [`unused`].
    pub(super) alarms: BTreeSet<(Time, Alarm)>,
}

impl Directory {
    /// An empty one.
    pub(super) fn of(limits: &Limits) -> Self {
        Self {
            names: HashMap::new(),
            listed: BTreeSet::new(),
            results: HashMap::new(),
            unused_timeout: Some(limits.unused_timeout).filter(|timeout| !timeout.is_zero()),
            alarms: BTreeSet::new(),
        }
    }
}

/// Where a call goes: a queue, and the reference to it by which a client calls it, if it has one. The
/// calls that wait on a reference end when it is [released](Engine::release).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    pub(crate) queue: QueueId,
    /// Tells apart the references to one queue; 0 is none.
    pub(crate) serial: u64,
}

impl Engine {
    /// Makes a queue before anybody asks for it.
    pub(crate) fn declare(&self, name: &str, options: QueueOptions) -> Result<(), NoQueue> {
        let mut state = self.lock_home(name);
        if state.directory.names.contains_key(name) {
            return Err(NoQueue::Declared(name.to_owned()));
        }
        check(name, &options)?;
        let queue = self.add(&mut state, Some(name), options)?;
        state.stay(queue);
        Ok(())
    }

    /// Makes the queues that others name for results and dead letters. Those that declared ones name
    /// stay; those that a client's name, until they are dropped.
    pub(crate) fn declare_named(&self) -> Result<(), NoQueue> {
        for mut state in self.lock_each() {
            let named = |hosted: &Hosted| {
                let named: Vec<_> = hosted.queue.options().named().map(str::to_owned).collect();
                named.into_iter().map(|name| (name, hosted.stays)).collect::<Vec<_>>()
            };
            let named: Vec<_> = state.queues.values().flat_map(named).collect();
            for (name, stays) in named {
                let queue = self.find_or_make(&mut state, &name, QueueOptions::default())?;
                if stays {
                    state.stay(queue);
                } else {
                    state.keep_configured(queue);
                }
            }
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
        let queue = self.find_or_make(state, name, options)?;
        state.stay(queue);
        Ok(())
    }

    /// The queue called `name`, made now if need be.
    fn find_or_make(
        &self,
        state: &mut State,
        name: &str,
        options: QueueOptions,
    ) -> Result<QueueId, NoQueue> {
        match state.directory.names.get(name) {
            Some(queue) => Ok(*queue),
            None => self.add(state, Some(name), options),
        }
    }

    /// The queue called `name` for the embedding program, made now if names come into being by use.
    pub(crate) fn open(&self, name: &str) -> Result<Reference, NoQueue> {
        let (mut state, queue) = self.find_or_add(name)?;
        state.stay(queue);
        Ok(Reference { queue, serial: 0 })
    }

    /// A new reference to the queue called `name`, which is made now if names come into being by use.
    pub(crate) fn refer_to(&self, name: &str) -> Result<Reference, NoQueue> {
        let (mut state, queue) = self.find_or_add(name)?;
        Ok(self.refer_in(&mut state, queue))
    }

    /// A reference to a new queue without a name.
    pub(crate) fn refer_to_new(&self, options: QueueOptions) -> Result<Reference, NoQueue> {
        let mut state = self.lock_any();
        let queue = self.add(&mut state, None, options)?;
        Ok(self.refer_in(&mut state, queue))
    }

    /// A new reference to a pinned queue. Clients know it as `label`, if they have a name for it.
    pub(crate) fn refer(&self, pinned: Reference, label: Option<&str>) -> Reference {
        let mut state = self.lock(pinned.queue);
        if let Some(label) = label {
            state.label(pinned.queue, label);
        }
        self.refer_in(&mut state, pinned.queue)
    }

    fn refer_in(&self, state: &mut State, queue: QueueId) -> Reference {
        let reference = Reference { queue, serial: state.next() };
        state.count_reference(queue);
        self.commit(state);
        reference
    }

    /// A reference that was [released](Self::release) is there again; false if its queue is gone.
    pub(crate) fn refer_again(&self, reference: Reference) -> bool {
        self.lock(reference.queue).count_reference(reference.queue)
    }

    /// References are there no more, nor are the calls that wait on them, nor their queues if those can
    /// be reached by nobody else.
    pub(crate) fn release(&self, references: &[Reference]) {
        if references.is_empty() {
            return;
        }
        for mut state in self.lock_each() {
            for reference in references {
                if state.has(reference.queue) {
                    state.release(*reference);
                }
            }
            self.commit(&mut state);
        }
    }

    /// Whether what is in a queue can be reached by references to it alone.
    pub(crate) fn needs_references(&self, queue: QueueId) -> bool {
        let state = self.lock(queue);
        state.queues.get(&queue).is_some_and(|it| it.name.is_none() && !it.queue.is_idle())
    }

    /// Whether a queue is there.
    pub(crate) fn has(&self, reference: Reference) -> bool {
        self.lock(reference.queue).queues.contains_key(&reference.queue)
    }

    /// Whether a queue has this name.
    pub(crate) fn has_queue(&self, name: &str) -> bool {
        self.lock_home(name).directory.names.contains_key(name)
    }

    /// Makes a queue without a name for the embedding program, until it [unpins](Self::unpin) it.
    pub(crate) fn pin_new(&self, options: QueueOptions) -> Result<Reference, NoQueue> {
        let mut state = self.lock_any();
        let queue = self.add(&mut state, None, options)?;
        Ok(state.pin(queue).unwrap_or(Reference { queue, serial: 0 }))
    }

    /// Holds a queue that clients refer to, if it is there.
    pub(crate) fn pin(&self, reference: Reference) -> Option<Reference> {
        self.lock(reference.queue).pin(reference.queue)
    }

    /// The embedding program needs this queue no more.
    pub(crate) fn unpin(&self, reference: Reference) {
        let mut state = self.lock(reference.queue);
        if let Some(hosted) = state.queues.get_mut(&reference.queue) {
            hosted.pins -= 1;
        }
        state.forget_unless_used(reference.queue);
        self.commit(&mut state);
    }

    /// Counts tasks as unfinished that a queue's earlier owner has given out.
    pub(crate) fn add_unfinished(&self, reference: Reference, tasks: u64) {
        if let Some(hosted) = self.lock(reference.queue).queues.get_mut(&reference.queue) {
            hosted.queue.add_unfinished(tasks);
        }
    }

    /// The queue called `name`, made now if names come into being by use, in its shard.
    fn find_or_add(&self, name: &str) -> Result<(MutexGuard<'_, State>, QueueId), NoQueue> {
        let mut state = self.lock_home(name);
        let queue = match state.directory.names.get(name) {
            Some(queue) => *queue,
            None if self.create_on_use => {
                self.add(&mut state, Some(name), QueueOptions::default())?
            }
            None => {
                drop(state);
                return Err(self.undeclared(name));
            }
        };
        Ok((state, queue))
    }

    fn undeclared(&self, name: &str) -> NoQueue {
        let names = |state: MutexGuard<'_, State>| {
            state.directory.names.keys().cloned().collect::<Vec<Arc<str>>>()
        };
        let names: Vec<_> = self.lock_each().flat_map(names).collect();
        let declared = nearest_first(name, names.iter().map(|name| &**name));
        NoQueue::Undeclared { name: name.into(), declared }
    }

    pub(super) fn add(
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
        let queues = state.common.queues.load(Ordering::Relaxed);
        if queues >= self.queues_max {
            return Err(NoQueue::TooMany(queues));
        }
        Ok(state.host(name.map(Into::into), options))
    }

    /// Queues that clients refer to, however often.
    pub(crate) fn number_of_queues(&self) -> usize {
        let referenced = |state: MutexGuard<'_, State>| {
            state.queues.values().filter(|hosted| hosted.references > 0).count()
        };
        self.lock_each().map(referenced).sum()
    }

    /// Its name; empty if it has none or is gone.
    pub(crate) fn name(&self, reference: Reference) -> String {
        let state = self.lock(reference.queue);
        let name = state.queues.get(&reference.queue).and_then(|hosted| hosted.name.as_deref());
        name.unwrap_or_default().to_owned()
    }

    /// Queues that clients know by a name.
    pub(crate) fn number_of_listed(&self) -> usize {
        self.lock_each().map(|state| state.directory.listed.len()).sum()
    }
}

impl State {
    pub(super) fn host(&mut self, name: Option<Arc<str>>, options: QueueOptions) -> QueueId {
        let id = self.next();
        if let Some(name) = &name {
            self.directory.names.insert(name.clone(), id);
        }
        let mut queue = Queue::new(options, self.first_lease);
        let log = self.log.as_mut().filter(|_| name.is_some());
        let queue_log = log.and_then(|log| {
            let queue_log = QueueLog::of(queue.options())?;
            persist::spill(&mut queue);
            log.record_declared((id, queue_log.durability), &queue);
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
            *self.directory.results.entry(results.into()).or_default() += 1;
        }
        self.list(id, &hosted);
        self.queues.insert(id, hosted);
        self.common.queues.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one reference more to a queue; false if that is gone.
    fn count_reference(&mut self, queue: QueueId) -> bool {
        let Some(hosted) = self.queues.get_mut(&queue) else { return false };
        hosted.references += 1;
        true
    }

    fn release(&mut self, Reference { queue, serial }: Reference) {
        if let Some(hosted) = self.queues.get_mut(&queue) {
            hosted.references = hosted.references.saturating_sub(1);
            hosted.last_used = self.step.now;
        }
        for id in self.waiting.on(serial) {
            if let Some(waiting) = self.waiting.remove(id) {
                self.cancel(id, waiting);
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
            self.update_deadline(queue);
        } else {
            self.remove(queue);
        }
    }

    pub(super) fn remove(&mut self, queue: QueueId) {
        self.on(queue, |queue, step| queue.shutdown(true, step));
        let Some(hosted) = self.queues.remove(&queue) else { return };
        self.common.queues.fetch_sub(1, Ordering::Relaxed);
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
            && let Some(sources) = self.directory.results.get_mut(results)
        {
            *sources -= 1;
            if *sources == 0 {
                self.directory.results.remove(results);
            }
        }
        self.observers.tell(self.step.now, queue, hosted.called(), &[Change::Dropped]);
        if let Some(log) = self.log.as_mut().filter(|_| hosted.queue_log.is_some()) {
            log.count_leased(hosted.queue.leased(), 0);
            log.record_dropped(queue);
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
