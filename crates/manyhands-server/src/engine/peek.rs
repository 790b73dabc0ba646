//! A look at the tasks of a queue: what each holds, who has it, and why it failed. It takes nothing.
//!
//! The lock is taken anew for every few hundred tasks, and bodies on disk are read outside of it: a
//! long look keeps nobody waiting, and may miss or repeat a task that moves meanwhile.

use std::sync::Arc;

use manyhands::wire::tasks::{Failure, Peek, Peeked, TaskState};

use super::callers::Names;
use super::persist::JournalError;
use super::{CallError, Caller, Engine, QueueId, Reading, Reference, State};
use crate::memory::Room;
use crate::queue::{Failed, Grant, LookCursor, Queue, Seen, Time, Token};

/// Tasks that are looked at under one lock.
const PAGE_LEN: usize = 256;
/// What a task counts beside its texts and its item, in bytes.
const TASK_BYTES: usize = 200;

/// Tasks that were looked at so far; the items of some may still be on disk.
#[derive(Debug)]
pub(crate) struct Looked {
    peek: Peek,
    cursor: Option<LookCursor>,
    bytes: usize,
    tasks: Vec<Peeked>,
    /// Where among `tasks` those are whose items have to be read, and what reads them.
    away: Vec<usize>,
    grants: Vec<Grant>,
}

impl Looked {
    /// At nothing yet.
    pub(crate) fn of(peek: Peek) -> Self {
        let (tasks, away, grants) = (Vec::new(), Vec::new(), Vec::new());
        Self { peek, cursor: None, bytes: 0, tasks, away, grants }
    }

    /// What was read on another thread.
    pub(crate) fn arrive(&mut self, read: Vec<Grant>) {
        self.grants = read;
    }

    /// The tasks with their items. Those that are gone meanwhile are left out.
    pub(crate) fn finish(mut self) -> Vec<Peeked> {
        for (at, grant) in self.away.into_iter().zip(self.grants) {
            if let Some(task) = self.tasks.get_mut(at) {
                task.item = Some(grant.payload);
            }
        }
        self.tasks.retain(|task| !task.item.as_ref().is_some_and(Queue::is_evicted));
        self.tasks
    }
}

impl Engine {
    /// What a look takes at most, in bytes, roughly: as much as a batch that is handed out.
    pub(crate) fn look_bytes_max(&self) -> u64 {
        self.lock(0).batch_bytes_max as u64
    }

    /// Looks at some more tasks, up to `peek.max` and [so many bytes](Self::look_bytes_max) in all.
    /// True if there may be more.
    pub(crate) fn look_on(
        &self,
        reference: Reference,
        looked: &mut Looked,
    ) -> Result<bool, CallError> {
        let queue = reference.queue;
        let Peek { max, state: of, items } = looked.peek;
        let state = self.lock(queue);
        let hosted = state.queues.get(&queue).ok_or(CallError::NoQueue)?;
        let page_len = PAGE_LEN.min(max.saturating_sub(looked.tasks.len()));
        let (page, next) = hosted.queue.look_at(of, looked.cursor.take(), page_len, items);
        for seen in page {
            if looked.bytes >= state.batch_bytes_max {
                return Ok(false);
            }
            looked.bytes += state.add(looked, queue, (of, seen));
        }
        looked.cursor = next;
        Ok(looked.cursor.is_some() && looked.tasks.len() < max)
    }

    /// Reads the items that are on disk, or begins to.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub(crate) fn read_looked(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        looked: &mut Looked,
        room: &mut Room,
    ) -> Result<Option<Reading>, JournalError> {
        self.fetch(caller, reference, &mut looked.grants, room)
    }
}

impl State {
    /// Adds a task to those that were looked at; says how many bytes it has, roughly.
    fn add(
        &self,
        looked: &mut Looked,
        queue: QueueId,
        (state, mut seen): (TaskState, Seen),
    ) -> usize {
        let task = seen.task;
        let mut bytes = seen.payload.as_ref().map_or(0, |payload| payload.bytes.len());
        if let Some(payload) = seen.payload.take_if(|payload| Queue::is_evicted(payload)) {
            bytes = self.stored(queue, task).map_or(0, |stored| stored.len() as usize);
            looked.away.push(looked.tasks.len());
            looked.grants.push(Grant { token: Token { task, attempt: 0, lease: 0 }, payload });
        }
        let holder = seen.holder.and_then(|holder| self.common.callers.get(holder.into()));
        let peeked = peeked(state, seen, holder.as_deref(), self.step.now);
        bytes += peeked.text_bytes() + TASK_BYTES;
        looked.tasks.push(peeked);
        bytes
    }
}

fn peeked(state: TaskState, seen: Seen, holder: Option<&Names>, now: Time) -> Peeked {
    let failure = |(attempt, failed): (u32, Failed)| Failure {
        attempt,
        worker: failed.worker.as_deref().unwrap_or_default().to_owned(),
        reason: failed.cause.to_string(),
    };
    Peeked {
        task: seen.task.0,
        state,
        item: seen.payload,
        attempt: seen.attempt,
        age: seen.put.map(|put| now.since(put)),
        due_in: seen.due.map(|due| due.since(now)),
        key: seen.key.map(|key| key.to_vec()),
        worker: holder.map(|holder| holder.name.to_string()),
        peer: holder.map(|holder| holder.address.to_string()),
        since: seen.since.map(|since| now.since(since)),
        failures: seen.failures.into_iter().map(failure).collect(),
        origin: seen.origin.map(|(queue, task)| (queue.to_string(), task.0)),
    }
}
