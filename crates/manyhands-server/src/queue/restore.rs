//! A queue as it was before a restart: what a journal has to know of each task, and back.
//!
//! Sessions do not outlive the server, so what was in the hand of one is ready again, in its place
//! and without an attempt used up. What was leased by token stays leased, with its time counted
//! anew. Invariant: tasks are restored in the order of their ids.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::pickle::Payload;

use super::lease::SETTLED_LEN_MAX;
use super::leased::Leased;
use super::meta::{EndedLease, HISTORY_LEN_MAX, Metadata};
use super::sequence::early_bytes;
use super::{
    Counts, Failed, Holder, Order, Origin, Queue, QueueOptions, Step, TaskId, Terms, Time, Timer,
    Token,
};

/// What is known of a task beyond its payload; nothing of most.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// How often it has failed.
    pub failures: u32,
    /// Why, the last times.
    pub history: Vec<Failed>,
    /// Not to be handed out before.
    pub not_before: Option<Time>,
    /// Dropped if it was not taken by then.
    pub expires: Option<Time>,
    /// Its place in a priority queue, if that is not its own.
    pub priority: Option<i64>,
    /// The key of its put.
    pub key: Option<Arc<[u8]>>,
    /// Where it comes from.
    pub origin: Option<Box<Origin>>,
    /// The lease before, by which it may still be settled while nobody has taken it.
    pub last: Option<Token>,
    /// Who has it, by token.
    pub lease: Option<Lease>,
}

/// A lease that is settled by its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Names it.
    pub token: Token,
    /// How long it runs.
    pub hold: Duration,
}

impl Facts {
    /// Remembers one more failure.
    pub fn fail(&mut self, attempt: Failed) {
        if self.history.len() == HISTORY_LEN_MAX {
            self.history.remove(0);
        }
        self.history.push(attempt);
    }
}

impl Queue {
    /// An empty queue that goes on after another: `next` is its next id, and so many of its tasks
    /// are not done.
    pub fn resumed(options: QueueOptions, first_lease: u64, next: TaskId, unfinished: u64) -> Self {
        Self { next_id: next, unfinished, ..Self::new(options, first_lease) }
    }

    /// Evicts payloads that would take this queue above so many bytes: the journal has them, and
    /// they are handed out [without bytes](Self::is_evicted).
    pub fn keep_resident(&mut self, bytes: u64) {
        self.resident_max = bytes;
    }

    /// Whether a payload was evicted: its bytes are on disk only.
    pub fn is_evicted(payload: &Payload) -> bool {
        payload.bytes.is_empty()
    }

    /// Whether a payload must be in memory to be restored here.
    pub fn needs_bytes(&self) -> bool {
        self.options.order == Order::Priority
    }

    /// Id of the next task.
    pub fn next_task(&self) -> TaskId {
        self.next_id
    }

    /// What the queue has counted.
    pub fn counts(&self) -> Counts {
        Counts { next_task: self.next_id, unfinished: self.unfinished }
    }

    /// Puts a task back that was ready and of which nothing more is known.
    pub fn restore(&mut self, task: TaskId, payload: Payload, step: &mut Step) {
        let cost = self.ready.push_plain(task, payload);
        self.charge(cost, step);
    }

    /// Puts a task back of which more is known.
    pub fn restore_with(&mut self, task: TaskId, payload: Payload, facts: Facts, step: &mut Step) {
        let Facts { failures, history, not_before, expires, priority, key, origin, last, lease } =
            facts;
        let terms = Terms { priority, key, origin, ..Terms::default() };
        let terms = (terms != Terms::default()).then(|| Box::new(terms));
        let placed = priority.map(|_| Box::new(Terms { priority, ..Terms::default() }));
        self.add_metadata(task, terms, expires, step);
        self.charge(history.iter().map(Failed::bytes).sum(), step);
        if let Some(meta) = self.metadata.get_mut(&task) {
            (meta.failures, meta.history) = (failures, history);
            meta.last = last.map(|token| EndedLease { token, since: step.now });
        }
        if let Some(Lease { token, hold }) = lease {
            let limit = if planted!(HoldForgotten) { None } else { Some(hold) };
            // Who has it, nobody knows until the token is named.
            let holder = Holder::default();
            // Nor whether that has begun with it.
            let leased = Leased::new(token, holder, payload, step.now);
            let leased = Leased { hold: Some(hold), limit, is_pushed: true, ..leased };
            let leased = self.begin(leased, step);
            return self.leased.insert(leased);
        }
        let candidate = self.ready.candidate(payload, placed);
        match not_before.filter(|until| step.now < *until) {
            Some(until) => self.delay(task, candidate, until, step),
            None => self.make_ready(task, candidate, step),
        }
    }

    /// Puts a result back whose turn has not come.
    pub fn restore_early(
        &mut self,
        task: TaskId,
        payload: Payload,
        origin: Box<Origin>,
        key: Option<Arc<[u8]>>,
        step: &mut Step,
    ) {
        let (queue, of) = (origin.queue.clone(), origin.task);
        let terms = Box::new(Terms { origin: Some(origin), key, ..Terms::default() });
        let candidate = self.ready.candidate(payload, Some(terms));
        self.charge(early_bytes(&candidate), step);
        self.sequence.add(task, &queue, of, candidate);
    }

    /// Goes on handing out results of `queue` in order, from that of `next` on but without those
    /// that will never come.
    pub fn restore_turns(&mut self, queue: Arc<str>, next: TaskId, never: BTreeSet<TaskId>) {
        self.sequence.begin(queue, next, never);
    }

    /// Remembers a key until then.
    pub fn restore_key(&mut self, key: Arc<[u8]>, until: Time, step: &mut Step) {
        self.remember_key(key, until, step);
    }

    /// Remembers tokens that settled their tasks, oldest first; the last of each that is told
    /// twice.
    pub fn restore_settled(&mut self, tokens: impl DoubleEndedIterator<Item = Token>) {
        let mut told = BTreeSet::new();
        let newest = tokens.rev().filter(|token| told.insert(*token)).take(SETTLED_LEN_MAX);
        newest.for_each(|token| self.settled.push_front(token));
    }

    /// Tokens that are remembered to have settled their tasks, oldest first.
    pub fn settled(&self) -> impl Iterator<Item = Token> + '_ {
        self.settled.iter().copied()
    }

    /// What would be needed to [restore](Self::restore_with) a task; `None` if its payload is
    /// enough.
    pub fn facts(&self, task: TaskId) -> Option<Facts> {
        let mut facts = Facts::default();
        if let Some(Metadata { failures, history, last, expires, terms }) = self.metadata.get(&task)
        {
            (facts.failures, facts.history) = (*failures, history.clone());
            (facts.last, facts.expires) = (last.map(|last| last.token), *expires);
            facts.priority = terms.as_ref().and_then(|terms| terms.priority);
            facts.key = terms.as_ref().and_then(|terms| terms.key.clone());
            facts.origin = terms.as_ref().and_then(|terms| terms.origin.clone());
        }
        if let Some(terms) = self.sequence.get(task).and_then(|early| early.terms.as_ref()) {
            (facts.origin, facts.key) = (terms.origin.clone(), terms.key.clone());
        }
        facts.not_before = self.delayed.get(&task).map(|delayed| delayed.until);
        let leased = self.leased.get(task);
        facts.lease = leased.and_then(|(token, it)| Some(Lease { token, hold: it.hold? }));
        (facts != Facts::default()).then_some(facts)
    }

    /// Some keys that are remembered, after those up to `after`, and until when each is; and what
    /// to ask with next.
    pub fn keys_after(
        &self,
        after: Option<KeyCursor>,
        at_most: usize,
    ) -> (Vec<KeyUntil>, Option<KeyCursor>) {
        let from = after.map_or(Bound::Unbounded, |KeyCursor(last)| Bound::Excluded(last));
        let mut keys = Vec::new();
        let mut last = None;
        for timer in self.timers.range((from, Bound::Unbounded)).take(at_most) {
            // The timer of one that was purged may still run.
            if let (until, Timer::Window(key)) = timer
                && self.keys.get(key) == Some(until)
            {
                keys.push((key.clone(), *until));
            }
            last = Some(timer);
        }
        (keys, last.map(|last| KeyCursor(last.clone())))
    }

    /// Tasks that are with somebody.
    pub fn leased_tasks(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.leased.tasks(None).map(|(task, _)| task)
    }
}

/// A key, and until when it is remembered.
pub type KeyUntil = (Arc<[u8]>, Time);

/// A place among the keys of a queue.
#[derive(Debug, Clone)]
pub struct KeyCursor((Time, Timer));
