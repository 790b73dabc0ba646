//! Who waits while memory is short, and goes on when some is free.

use std::ops::Bound;

use super::{Alarm, Caller, QueueId, State, WaiterId};
use crate::queue::{LEASE_BYTES, Outcome, Patience, Queue, Taker};

/// A call that would take a task, but waits for the memory that a lease needs.
#[derive(Debug)]
pub(super) struct Starved {
    pub(super) queue: QueueId,
    pub(super) taker: Taker,
    pub(super) patience: Patience,
}

impl State {
    pub(super) fn update_shortage(&mut self, queue: QueueId) {
        if self.waiting.is_empty() && self.short_of_memory.is_empty() {
            return;
        }
        let Some(hosted) = self.queues.get(&queue) else { return };
        if hosted.queue.waiting_putters() == 0 && self.short_of_memory.is_empty() {
            return;
        }
        if hosted.queue.waiting_putters() > 0 && !hosted.queue.is_full() {
            self.short_of_memory.insert(queue);
        } else {
            self.short_of_memory.remove(&queue);
        }
    }

    /// Lets puts in that waited for memory.
    pub(super) fn relieve_shortage(&mut self) {
        for at in 0..self.touched.len() {
            if let Some(&queue) = self.touched.get(at) {
                self.update_shortage(queue);
            }
        }
        if self.short_of_memory.is_empty() || self.step.budget.used >= self.step.budget.max {
            return;
        }
        // Each queue has its turn, and once memory is short again the others need not be asked.
        let (before, behind) =
            (..=self.relieved, (Bound::Excluded(self.relieved), Bound::Unbounded));
        let queues = self.short_of_memory.range(behind).chain(self.short_of_memory.range(before));
        for queue in queues.copied().collect::<Vec<_>>() {
            if self.step.budget.used >= self.step.budget.max {
                return;
            }
            self.on(queue, Queue::admit);
            self.follow_up();
            self.relieved = queue;
        }
    }

    /// Whether a caller must not take a task now: there is no memory for a lease, and it has
    /// something to settle first, as the call says or by token. One task at a time everybody gets,
    /// because settled work frees memory.
    pub(super) fn is_starved(&self, caller: Caller, has_tasks: bool) -> bool {
        !self.step.budget.allows_lease(LEASE_BYTES) && (has_tasks || self.leases.has_any(caller))
    }

    /// Lets a call wait for memory; its outcome if it has no patience.
    pub(super) fn starve(&mut self, id: WaiterId, starved: Starved) -> Option<Outcome> {
        match starved.patience {
            Patience::Now => return Some(Outcome::Empty),
            Patience::Until(deadline) => {
                self.deadlines.insert((deadline, Alarm::Starved(id)));
            }
            Patience::Forever => {}
        }
        self.starved.insert(id, starved);
        None
    }

    /// A call waits for memory no more.
    pub(super) fn feed(&mut self, id: WaiterId) -> Option<Starved> {
        let starved = self.starved.remove(&id)?;
        if let Patience::Until(deadline) = starved.patience {
            self.deadlines.remove(&(deadline, Alarm::Starved(id)));
        }
        Some(starved)
    }

    /// The patience of a call that waits for memory has ended.
    pub(super) fn end_starved(&mut self, id: WaiterId) {
        if self.feed(id).is_some() {
            self.step.wakes.push((id, Outcome::Empty));
        }
    }

    /// Lets calls that waited for memory take a task, or wait for one.
    pub(super) fn feed_starved(&mut self) {
        while self.step.budget.allows_lease(LEASE_BYTES)
            && let Some(id) = self.starved.first_key_value().map(|(&id, _)| id)
            && let Some(Starved { queue, taker, patience }) = self.feed(id)
        {
            let taken = self.on(queue, |queue, step| queue.get(taker, patience, id, step));
            let outcome = taken.unwrap_or(Some(Outcome::ShutDown));
            self.step.wakes.extend(outcome.map(|outcome| (id, outcome)));
            self.follow_up();
        }
    }
}
