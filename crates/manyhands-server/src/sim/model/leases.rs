//! What becomes of tasks that are with somebody.

use std::time::Duration;

use super::{Asked, Held, Holding, Model, Place, SessionNumber, Task, TaskAt};
use crate::queue::{QueueOptions, Time};

/// Why a task comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Back {
    /// Nobody has seen it.
    Unread,
    /// Its worker is gone.
    Left,
    /// Its worker said so, or its time was up.
    Failed,
}

impl Model {
    pub(super) fn place(&mut self, (queue, at): TaskAt) -> &mut Task {
        &mut self.queues[queue].tasks[at]
    }

    /// Whether the task is still this client's, or nobody's since.
    pub(super) fn claim(&mut self, held: Held) -> bool {
        let task = self.place(held.at);
        let is_mine = match task.place {
            Place::Held { lease, answered, .. } => lease == held.lease && !answered,
            Place::Ready | Place::Delayed(_) => task.last == Some(held.lease),
            Place::Gone => false,
        };
        if is_mine {
            self.let_go(held.at);
            let task = self.place(held.at);
            let terms = match task.place {
                Place::Held { terms, .. } => terms,
                _ => Holding::since(task.since),
            };
            task.place = Place::Held { lease: held.lease, until: None, answered: true, terms };
            self.run(held.at.0);
        }
        is_mine
    }

    pub(super) fn unclaim(&mut self, held: Option<Held>) {
        let Some(held) = held else { return };
        let Place::Held { terms, .. } = self.place(held.at).place else { return };
        let until = self.counted_anew(held.at.0, terms.limit);
        self.place(held.at).place =
            Place::Held { lease: held.lease, until, answered: false, terms };
    }

    /// When a lease ends whose time begins now.
    pub(super) fn counted_anew(&self, queue: usize, limit: Option<Duration>) -> Option<Time> {
        let limits = limit.into_iter().chain(self.queues[queue].options.max_run);
        limits.min().map(|limit| self.now + limit)
    }

    pub(super) fn ack(&mut self, held: Held) -> bool {
        let task = self.place(held.at);
        let is_kept = match task.place {
            Place::Held { lease, .. } => lease == held.lease,
            Place::Ready | Place::Delayed(_) => task.last == Some(held.lease),
            Place::Gone => false,
        };
        if is_kept {
            self.let_go(held.at);
            self.place(held.at).place = Place::Gone;
            self.run(held.at.0);
        }
        is_kept
    }

    /// No result of it will come.
    pub(super) fn settle(&mut self, held: Held) {
        if self.ack(held) {
            self.resultless.push(held.at);
        }
    }

    pub(super) fn settle_all(&mut self, session: SessionNumber, is: impl Fn(TaskAt) -> bool) {
        while let Some(at) = self.session(session).hand.iter().position(|held| is(held.at)) {
            let held = self.session(session).hand.remove(at);
            self.settle(held);
        }
    }

    /// What a step leaves to be done.
    pub(in super::super) fn follow_up(&mut self) {
        for (queue, item) in std::mem::take(&mut self.letters) {
            let dead = self.queues[queue].dead;
            let now = self.now;
            self.queues[dead].unfinished += 1;
            self.queues[dead].add(now, item, Asked::default());
            self.queues[dead].tasks.last_mut().unwrap().letter = Some(queue);
            self.run(dead);
        }
        for task in std::mem::take(&mut self.resultless) {
            self.end_without_result(task);
        }
    }

    pub(super) fn end_without_result(&mut self, task: TaskAt) {
        if let Some(results) = self.queues[task.0].results {
            self.queues[results].over.insert(task);
            self.release_in_turn(results);
        }
    }

    /// Gives leases back in the order of their tasks.
    pub(super) fn give_all_back(&mut self, mut leases: Vec<Held>) {
        leases.sort_by_key(|held| held.at);
        leases.into_iter().for_each(|held| self.give_back(held, Back::Left, None));
    }

    pub(super) fn give_back(&mut self, held: Held, back: Back, delay: Option<Duration>) {
        let (now, queue) = (self.now, held.at.0);
        let back = self.come_from(held, back);
        let attempts = self.queues[queue].options.attempts;
        let task = &mut self.queues[queue].tasks[held.at.1];
        let terms = match task.place {
            Place::Held { lease, terms, .. } if lease == held.lease => terms,
            _ => return,
        };
        task.last = Some(held.lease);
        task.since = terms.since;
        if terms.hold.is_some() {
            task.last_token = task.last;
        }
        let failed = back != Back::Unread;
        task.failures += u32::from(failed);
        let (item, failures) = (task.item, task.failures);
        let is_expired = task.expires.is_some_and(|expires| expires <= now);
        let is_dead = failed && attempts > 0 && failures >= attempts;
        if is_expired || is_dead {
            self.place(held.at).place = Place::Gone;
        } else {
            let pause = match delay {
                Some(delay) => delay,
                None if failed => self.pause(queue, failures, back),
                None => Duration::ZERO,
            };
            let place = if pause.is_zero() { Place::Ready } else { Place::Delayed(now + pause) };
            self.place(held.at).place = place;
        }
        if is_dead && !is_expired {
            self.letters.push((queue, item));
        }
        if is_expired || is_dead {
            self.resultless.push(held.at);
            self.finish(queue, 1);
        }
        self.run(queue);
    }

    pub(super) fn pause(&mut self, queue: usize, failures: u32, back: Back) -> Duration {
        let QueueOptions { backoff, backoff_max, .. } = self.queues[queue].options;
        let pause = match (back, failures) {
            (Back::Left, 1) => Duration::ZERO,
            (Back::Left, _) => backoff * 2u32.pow(failures - 2),
            _ => backoff * 2u32.pow(failures - 1),
        };
        self.random.jitter(pause.min(backoff_max))
    }
}
