//! A look at tasks that takes nothing: where each stands, and what is known of it.

use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::pickle::Payload;
use manyhands::wire::tasks::TaskState;

use super::ready::{After, Looked, numbered};
use super::{Failed, Holder, Origin, Phase, Queue, QueueOptions, TaskId, Time};

/// One task as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which task.
    pub task: TaskId,
    /// The user's object, if it was asked for; [without bytes](Queue::is_evicted) if those are
    /// elsewhere.
    pub payload: Option<Payload>,
    /// Which attempt this is, or the next one will be.
    pub attempt: u32,
    /// When it was put, as far as that is known.
    pub put: Option<Time>,
    /// When a delayed task becomes ready, or a lease runs out.
    pub due: Option<Time>,
    /// When it was handed out.
    pub since: Option<Time>,
    /// Who has it.
    pub holder: Option<Holder>,
    /// The key of its put.
    pub key: Option<Arc<[u8]>>,
    /// The last attempts that failed, and the number of each.
    pub failures: Vec<(u32, Failed)>,
    /// The queue and the task that a result or a dead letter comes from.
    pub origin: Option<(Arc<str>, TaskId)>,
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

/// Where a look goes on.
#[derive(Debug)]
pub struct LookCursor(After);

impl Queue {
    /// What the queue was made with.
    pub fn options(&self) -> &QueueOptions {
        &self.options
    }

    /// Number of ready tasks; Python's `qsize`.
    pub fn len(&self) -> usize {
        if planted!(SizeCountsLeased) {
            return self.ready.len() + self.leased.len();
        }
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

    pub(super) fn oldest_task(&self) -> Option<TaskId> {
        let leased = self.leased.first();
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

    /// Where a task comes from that is ready, delayed or leased, if it is a result or a dead letter.
    pub fn origin(&self, task: TaskId) -> Option<&Origin> {
        let meta = self.metadata.get(&task)?;
        meta.terms.as_ref()?.origin.as_deref()
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

    /// Whether no task is here, in any state.
    pub(super) fn is_vacant(&self) -> bool {
        self.ready.is_empty()
            && self.leased.is_empty()
            && self.delayed.is_empty()
            && self.sequence.len() == 0
    }

    /// Looks at up to `max` tasks after `cursor`: ready ones in the order of `get`, others in that
    /// of their puts. With what to go on with, if there may be more.
    pub fn look_at(
        &self,
        state: TaskState,
        cursor: Option<LookCursor>,
        max: usize,
        with_items: bool,
    ) -> (Vec<Seen>, Option<LookCursor>) {
        let after = cursor.map_or(After::Nothing, |LookCursor(after)| after);
        let (tasks, after) = match state {
            TaskState::Ready => self.ready.look(after, max, with_items),
            TaskState::Delayed => self.delayed_after(after, max, with_items),
            TaskState::Leased => self.leased_after(after, max, with_items),
        };
        let is_end = tasks.len() < max;
        let seen = tasks.into_iter().map(|(task, payload)| self.seen(task, payload)).collect();
        (seen, (!is_end).then_some(LookCursor(after)))
    }

    fn leased_after(&self, after: After, max: usize, with_items: bool) -> Looked {
        let after = if let After::Task(task) = after { Some(task) } else { None };
        let leased = self.leased.tasks(after);
        let leased = leased.map(|(task, payload)| (task, with_items.then(|| payload.clone())));
        numbered(leased.take(max).collect())
    }

    /// Tasks that are delayed, and results before their turn.
    fn delayed_after(&self, after: After, max: usize, with_items: bool) -> Looked {
        let payload = |payload: &Payload| with_items.then(|| payload.clone());
        let delayed = self.delayed.range(after.bounds());
        let delayed = delayed.map(|(task, it)| (*task, payload(&it.candidate.payload)));
        let early = self.sequence.after(after.bounds());
        let early = early.map(|(task, it)| (task, payload(&it.payload)));
        let mut tasks: Vec<_> = delayed.take(max).chain(early.take(max)).collect();
        tasks.sort_unstable_by_key(|(task, _)| *task);
        tasks.truncate(max);
        numbered(tasks)
    }

    fn seen(&self, task: TaskId, payload: Option<Payload>) -> Seen {
        let leased = self.leased.get(task).map(|(_, leased)| leased);
        let meta = self.metadata.get(&task);
        let early = self.sequence.get(task).and_then(|result| result.terms.as_deref());
        let terms = meta.and_then(|meta| meta.terms.as_deref()).or(early);
        let origin = terms.and_then(|terms| terms.origin.as_deref());
        let tried = meta.map_or(0, |meta| meta.failures);
        // Of a dead letter, the life that it had counts.
        let (attempts, history) = match origin {
            Some(origin) if !origin.history.is_empty() => (origin.attempt, &origin.history[..]),
            _ => (tried, meta.map_or(&[][..], |meta| &meta.history)),
        };
        let is_letter = origin.is_some_and(|origin| !origin.history.is_empty());
        let first = attempts.saturating_sub(u32::try_from(history.len()).unwrap_or(u32::MAX));
        Seen {
            task,
            payload,
            attempt: if is_letter { attempts } else { tried + 1 },
            put: self.stamps.of(task),
            due: match leased {
                Some(leased) => leased.deadline,
                None => self.delayed.get(&task).map(|delayed| delayed.until),
            },
            since: leased.map(|leased| leased.since),
            holder: leased.map(|leased| leased.holder),
            key: terms.and_then(|terms| terms.key.clone()),
            failures: (first + 1..).zip(history.iter().cloned()).collect(),
            origin: origin.map(|origin| (origin.queue.clone(), origin.task)),
        }
    }
}
