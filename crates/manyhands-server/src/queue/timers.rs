//! What is due at some time: the ends of waits and leases, delays, expiries, and windows of keys.

use std::sync::Arc;

use super::ready::Delayed;
use super::{
    Cause, Failed, Holder, Outcome, Queue, Retry, Step, TaskId, Terms, Time, earlier, takes,
};

/// Timers that one call of [`Queue::expire`] works off, so that a million of them stop nobody.
pub(super) const EXPIRED_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A delayed task is to be ready.
    Due(TaskId),
    /// A lease runs out.
    Lease(TaskId),
    /// A task was not taken in its time.
    Expiry(TaskId),
    /// A key may be used again.
    Window(Arc<[u8]>),
}

impl Queue {
    /// Does what is due: answers calls, ends leases, makes delayed tasks ready.
    ///
    /// Works off a bounded number of timers; [`Self::next_deadline`] says whether some are left.
    pub fn expire(&mut self, step: &mut Step) {
        let now = step.now;
        while let Some((waiter, _)) = self.getters.pop_expired(now) {
            step.wake(waiter, Outcome::Empty);
        }
        while let Some((waiter, candidate)) = self.putters.pop_expired(now) {
            let fits = takes(&candidate, step);
            step.wake(waiter, if fits { Outcome::Full } else { Outcome::NoRoom });
        }
        for _ in 0..EXPIRED_MAX {
            if self.timers.first().is_none_or(|(time, _)| now < *time) {
                break;
            }
            let Some((time, timer)) = self.timers.pop_first() else { break };
            self.ring(time, timer, step);
        }
        if self.is_cut {
            self.serve(step);
        }
        self.admit(step);
    }

    fn ring(&mut self, time: Time, timer: Timer, step: &mut Step) {
        match timer {
            Timer::Due(id) => {
                if let Some(Delayed { candidate, .. }) = self.delayed.remove(&id) {
                    self.discharge(candidate.cost, step);
                    self.make_ready(id, candidate, step);
                }
            }
            Timer::Lease(_) if planted!(MaxRunIgnored) => {}
            Timer::Lease(id) => {
                if let Some((token, leased)) = self.leased.get(id) {
                    let holder = leased.holder;
                    step.lapsed.push((id, holder));
                    let worker = step.overdue.remove(&id);
                    let attempt = Failed { cause: Cause::Overdue, worker };
                    self.give_back(token, attempt, Retry::Backoff, step);
                }
            }
            Timer::Expiry(_) if planted!(ExpiryIgnored) => {}
            Timer::Expiry(id) => {
                if self.take_out(id, step).is_some() {
                    self.drop_expired(id, step);
                }
            }
            // It may have been purged, and put again.
            Timer::Window(key) if self.keys.get(&key) == Some(&time) => {
                self.keys.remove(&key);
                self.discharge(Terms::key_bytes(&key), step);
            }
            Timer::Window(_) => {}
        }
        self.admit(step);
    }

    /// Leased tasks that [`Self::expire`] takes from their holders now.
    pub fn overdue(&self, now: Time) -> impl Iterator<Item = (TaskId, Holder)> {
        let due = self.timers.iter().take(EXPIRED_MAX).take_while(move |(time, _)| *time <= now);
        due.filter_map(|(_, timer)| match timer {
            Timer::Lease(task) => Some((*task, self.leased.get(*task)?.1.holder)),
            _ => None,
        })
    }

    /// When [`Self::expire`] next has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        let timer = self.timers.first().map(|(time, _)| *time);
        earlier(earlier(self.getters.next_deadline(), self.putters.next_deadline()), timer)
    }
}
