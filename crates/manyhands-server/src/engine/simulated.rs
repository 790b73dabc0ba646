//! What the simulator drives and sees of an engine beyond the calls of a client: its clock, its timer,
//! its journal, and its queues without using a name.

use manyhands::wire::pickle::Payload;

use super::{Engine, Hosted};
use crate::clock::Clock;
use crate::config::Limits;
use crate::journal::Lsn;
use crate::queue::{Facts, Queue, Random, TaskId};

impl Engine {
    /// An engine in memory whose clock stands still until it is put forward.
    pub(crate) fn simulated(limits: &Limits, clock: Clock) -> Self {
        Self { clock, ..Self::new(limits, true, 7) }
    }

    /// Has all payloads stay in memory that are put from now on, so that no thread has to read one
    /// that waits to be written.
    pub(crate) fn keep_resident(&self) {
        for mut state in self.lock_each() {
            state.queues.values_mut().for_each(|hosted| hosted.queue.keep_resident(u64::MAX));
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Ends when the timer is told of an earlier deadline.
    pub(crate) fn timer_is_told(&self) -> impl Future<Output = ()> {
        self.timer.notified()
    }

    /// What spreads retries.
    pub(crate) fn random(&self) -> Random {
        self.lock(0).step.random
    }

    /// What all queues take from the budget, in bytes.
    pub(crate) fn memory_used(&self) -> u64 {
        self.lock_each().map(|state| state.step.budget.used).sum()
    }

    /// The last frame with something that queues changed.
    pub(crate) fn appended(&self) -> Lsn {
        let state = self.lock_kept();
        let queue_log = state.queues.values().filter_map(|hosted| hosted.queue_log.as_ref());
        queue_log.map(|queue_log| queue_log.last).max().unwrap_or_default()
    }

    /// Looks at a queue of this name, which must be there.
    pub(crate) fn inspect<R>(&self, name: &str, look: impl FnOnce(&Queue) -> R) -> R {
        self.inspect_hosted(name, |hosted| look(&hosted.queue))
    }

    /// The tasks of a queue that the journal would bring back, and what is known of each.
    pub(crate) fn stored(&self, name: &str) -> Vec<(Payload, Facts)> {
        let Some(journal) = self.journal() else { return Vec::new() };
        self.inspect_hosted(name, |hosted| {
            let Some(queue_log) = &hosted.queue_log else { return Vec::new() };
            let stored = queue_log.ledger.from(TaskId(0)).map(|(task, stored)| {
                let bytes = stored.read(journal).unwrap();
                let payload = Payload { bytes, ..stored.evicted() };
                (payload, hosted.queue.facts(task).unwrap_or_default())
            });
            stored.collect()
        })
    }

    fn inspect_hosted<R>(&self, name: &str, look: impl FnOnce(&Hosted) -> R) -> R {
        let state = self.lock_home(name);
        look(&state.queues[&state.directory.names[name]])
    }
}
