//! What purged and dropped queues leave behind. It is gone for everybody at once; the timer gives
//! back what it takes, some at a time, because there may be millions of tasks.

use super::persist::Ledger;
use super::{Alarm, Hosted, QueueId, State};
use crate::queue::{Queue, Time, earlier};

/// A queue that is gone, whose tasks still take memory.
#[derive(Debug)]
pub(super) struct Ruin {
    id: QueueId,
    queue: Queue,
    ledger: Ledger,
}

impl Ruin {
    fn is_cleared(&self) -> bool {
        self.queue.is_torn_down() && self.ledger.is_empty()
    }
}

impl Hosted {
    /// Whether there is something to clear away.
    pub(super) fn has_remains(&self) -> bool {
        self.queue.has_remains()
            || self.queue_log.as_ref().is_some_and(|it| it.ledger.has_remains())
    }

    /// When there is something to be done, which may be at once.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        let is_more = self.has_remains() || self.queue.is_cut();
        earlier(self.queue.next_deadline(), is_more.then_some(self.last_used))
    }
}

impl State {
    /// Clears away some of what a purge has left.
    pub(super) fn clear_away(&mut self, queue: QueueId) {
        if !self.queues.get(&queue).is_some_and(Hosted::has_remains) {
            return;
        }
        self.on(queue, Queue::clear_away);
        let queue_log =
            self.queues.get_mut(&queue).and_then(|hosted| hosted.queue_log.as_deref_mut());
        if let Some(queue_log) = queue_log {
            queue_log.ledger.clear_away();
        }
    }

    /// Clears away what is left of a queue that was removed, or as much as one step may, in which many
    /// may be removed.
    pub(super) fn leave_ruin(&mut self, id: QueueId, Hosted { queue, queue_log, .. }: Hosted) {
        let ledger = queue_log.map(|queue_log| queue_log.ledger).unwrap_or_default();
        let ruin = Ruin { id, queue, ledger };
        if ruin.is_cleared() {
            return;
        }
        if std::mem::replace(&mut self.has_cleared, true) {
            self.keep_ruin(ruin);
        } else {
            self.clear_ruin(ruin);
        }
    }

    /// Clears away some of the oldest ruin.
    pub(super) fn clear_oldest_ruin(&mut self) {
        let Some(ruin) = self.ruins.pop_front() else { return };
        let others = !self.ruins.is_empty();
        self.clear_ruin(ruin);
        if others {
            self.deadlines.insert((self.step.now, Alarm::Ruins));
        }
    }

    fn clear_ruin(&mut self, mut ruin: Ruin) {
        for (task, holder) in ruin.queue.tear_down(&mut self.step) {
            self.leases.remove(holder.into(), ruin.id, task);
        }
        // Nobody waits for results of a queue that is gone.
        self.step.resultless.clear();
        ruin.ledger.tear_down();
        if !ruin.is_cleared() {
            self.keep_ruin(ruin);
        }
    }

    /// The timer is to clear it away.
    fn keep_ruin(&mut self, ruin: Ruin) {
        self.ruins.push_back(ruin);
        if self.ruins.len() == 1 {
            self.deadlines.insert((self.step.now, Alarm::Ruins));
        }
    }
}
