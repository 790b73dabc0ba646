//! A look at tasks that takes nothing: where each stands, and what is known of it.

use std::ops::Bound;
use std::sync::Arc;

use manyhands::wire::pickle::Payload;
use manyhands::wire::tasks::TaskState;

use super::ready::After;
use super::{Cause, Queue, TaskId, Time};

/// One task as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which task.
    pub task: TaskId,
    /// The user's object, if it was asked for; [without bytes](Queue::is_away) if those are
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
    /// The key of its put.
    pub key: Option<Arc<[u8]>>,
    /// Why the last attempts failed, and the number of each.
    pub failures: Vec<(u32, Cause)>,
    /// The queue and the task that a result or a dead letter comes from.
    pub origin: Option<(Arc<str>, TaskId)>,
}

/// Where a look goes on.
#[derive(Debug)]
pub struct LookCursor(After);

impl Queue {
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
        let leased = self.leased.range(after.bounds());
        let leased =
            leased.map(|(task, leased)| (*task, with_items.then(|| leased.payload.clone())));
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
        let leased = self.leased.get(&task);
        let note = self.notes.get(&task);
        let early = self.sequence.get(task).and_then(|result| result.terms.as_deref());
        let terms = note.and_then(|note| note.terms.as_deref()).or(early);
        let origin = terms.and_then(|terms| terms.origin.as_deref());
        let tried = note.map_or(0, |note| note.failures);
        // Of a dead letter, the life that it had counts.
        let (attempts, history) = match origin {
            Some(origin) if !origin.history.is_empty() => (origin.attempt, &origin.history[..]),
            _ => (tried, note.map_or(&[][..], |note| &note.history)),
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
            key: terms.and_then(|terms| terms.key.clone()),
            failures: (first + 1..).zip(history.iter().cloned()).collect(),
            origin: origin.map(|origin| (origin.queue.clone(), origin.task)),
        }
    }
}

/// Tasks in their order, and where that ends.
pub(super) type Looked = (Vec<(TaskId, Option<Payload>)>, After);

/// Tasks that are told in the order of their numbers.
pub(super) fn numbered(tasks: Vec<(TaskId, Option<Payload>)>) -> Looked {
    let after = tasks.last().map_or(After::Nothing, |(task, _)| After::Task(*task));
    (tasks, after)
}

impl After {
    pub(super) fn bounds(&self) -> (Bound<TaskId>, Bound<TaskId>) {
        match self {
            Self::Task(task) => (Bound::Excluded(*task), Bound::Unbounded),
            Self::Nothing | Self::Place(_) => (Bound::Unbounded, Bound::Unbounded),
        }
    }
}
