//! What a purge leaves behind: tasks that are gone for everybody at once, and whose memory is given
//! back a portion at a time, because there may be millions of them.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use super::ready::{Delayed, Ready};
use super::sequence::early_bytes;
use super::{Change, Holder, Queue, Step, TaskId, Terms, Time, Timer};

/// Tasks that one step clears away.
const CLEARED_AT_ONCE: usize = if cfg!(test) { 3 } else { 256 };

/// Tasks and keys that were dropped together. Their metadata and timers are still in the queue's
/// tables.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) ready: Ready,
    pub(super) delayed: BTreeMap<TaskId, Delayed>,
    pub(super) keys: BTreeMap<Arc<[u8]>, Time>,
    /// Whether somebody waits for their results in order, and has to be told of each.
    pub(super) is_awaited: bool,
}

impl Remains {
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.delayed.is_empty() && self.keys.is_empty()
    }
}

impl Queue {
    /// Drops all that is not with anybody, and counts it as done. Says how much that was. To be
    /// followed by [`Self::admit`], and by [`Self::clear_away`] while there are remains. If results
    /// are `awaited` in order, that names each task that will have none.
    pub fn purge(&mut self, awaited: bool, step: &mut Step) -> u64 {
        let dropped = (self.len() + self.delayed()) as u64;
        self.clear(awaited, step);
        dropped
    }

    /// Drops what is not with anybody. It is gone at once; [`Self::clear_away`] gives back what it
    /// takes.
    pub(super) fn clear(&mut self, is_awaited: bool, step: &mut Step) {
        let dropped = self.ready.len() + self.delayed.len() + self.sequence.clear();
        if planted!(PurgeForgetsAttempts) {
            let leased: Vec<_> = self.leased_tasks().collect();
            leased.into_iter().for_each(|task| self.drop_metadata(task, step));
        }
        let remains = Remains {
            ready: mem::replace(&mut self.ready, Ready::new(self.options.order)),
            delayed: mem::take(&mut self.delayed),
            keys: mem::take(&mut self.keys),
            is_awaited,
        };
        self.remains.extend(Some(remains).filter(|remains| !remains.is_empty()));
        self.finish(dropped as u64, step);
        step.record(|| Change::Cleared {
            counts: self.counts(),
            kept: self.leased_tasks().collect(),
        });
    }

    /// Whether there is something to [clear away](Self::clear_away).
    pub fn has_remains(&self) -> bool {
        !self.remains.is_empty() || self.sequence.has_dropped()
    }

    /// Gives back what some of the tasks take that were dropped.
    pub fn clear_away(&mut self, step: &mut Step) {
        for _ in 0..CLEARED_AT_ONCE {
            if !self.clear_one(step) {
                break;
            }
        }
        self.admit(step);
    }

    /// False if there was nothing.
    fn clear_one(&mut self, step: &mut Step) -> bool {
        let Some(remains) = self.remains.front_mut() else {
            let result = self.sequence.clear_one();
            self.discharge(result.as_ref().map_or(0, early_bytes), step);
            return result.is_some();
        };
        let is_awaited = remains.is_awaited;
        if let Some((task, cost)) = remains.ready.discard() {
            self.clear_task(task, cost, is_awaited, step);
        } else if let Some((task, Delayed { candidate, until })) = remains.delayed.pop_first() {
            self.timers.remove(&(until, Timer::Due(task)));
            self.clear_task(task, candidate.cost, is_awaited, step);
        } else if let Some((key, until)) = remains.keys.pop_first() {
            self.clear_key(key, until, step);
        }
        if self.remains.front().is_some_and(Remains::is_empty) {
            self.remains.pop_front();
        }
        true
    }

    fn clear_task(&mut self, task: TaskId, cost: u64, is_awaited: bool, step: &mut Step) {
        self.discharge(cost, step);
        self.drop_metadata(task, step);
        if is_awaited {
            step.resultless.push(task);
        }
    }

    fn clear_key(&mut self, key: Arc<[u8]>, until: Time, step: &mut Step) {
        self.discharge(Terms::key_bytes(&key), step);
        // The same key may have been put again since, with a window that ends at the same time.
        if self.keys.get(&key) != Some(&until) {
            self.timers.remove(&(until, Timer::Window(key)));
        }
    }

    /// Gives back some of what a queue takes that is gone; names tasks that were with somebody, and with whom.
    /// Nothing is left once [`is_torn_down`](Self::is_torn_down) says so.
    pub fn tear_down(&mut self, step: &mut Step) -> Vec<(TaskId, Holder)> {
        if self.has_remains() {
            self.clear_away(step);
            return Vec::new();
        }
        let mut leased = Vec::new();
        while leased.len() < CLEARED_AT_ONCE
            && let Some(lease) = self.leased.pop_first()
        {
            self.discharge(lease.bytes(), step);
            for token in lease.tokens().iter() {
                self.drop_metadata(token.task, step);
                leased.push((token.task, lease.holder));
            }
            if let Some(deadline) = lease.deadline {
                self.timers.remove(&(deadline, Timer::Lease(lease.token.task)));
            }
        }
        leased
    }

    /// Whether no task takes any memory.
    pub fn is_torn_down(&self) -> bool {
        !self.has_remains() && self.leased.is_empty()
    }
}
