//! Credit: tasks that are pushed to callers as they come.
//!
//! A caller says how many more tasks of a queue it can take. What comes for it lies in its
//! [`Pushes`], leased by token, at the end of the step that handed it out: one lock and at most one
//! wake-up for all of a step. Credit bounds what lies there. A caller that is gone has its tasks
//! taken from it with its other leases, whether or not it has ever looked at them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use tokio::sync::Notify;

use crate::engine::{Caller, Engine, Promise, QueueId, Reference, State};
use crate::error::CallError;
use crate::queue::{Grant, LEASE_BYTES, Outcome, Queue, SettledBy, Taker, WaiterId};

/// What a caller with credit is told.
#[derive(Debug)]
pub(crate) struct Push {
    /// Where it gave credit.
    pub(crate) reference: Reference,
    pub(crate) pushed: Pushed,
    /// What must be durable before it is told.
    pub(crate) promise: Promise,
}

#[derive(Debug)]
pub(crate) enum Pushed {
    /// It has this task, and has not started it.
    Task(Grant),
    /// It is asked to return so many tasks that it has not started.
    Recall(u32),
    /// Its credit is over: [`Outcome::ShutDown`] or [`Outcome::Unreadable`].
    Ended(Outcome),
}

/// Where what is pushed to one session arrives.
#[derive(Debug, Default)]
pub(crate) struct Pushes {
    /// In the order in which it came.
    arrived: Mutex<Vec<Push>>,
    told: Notify,
}

impl Pushes {
    /// Takes all that has arrived.
    pub(crate) fn take(&self, into: &mut Vec<Push>) {
        into.append(&mut self.arrived.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until something has arrived since the last [`take`](Self::take).
    pub(crate) async fn arrived(&self) {
        self.told.notified().await;
    }

    fn add(&self, pushes: &mut Vec<Push>) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = arrived.is_empty();
        arrived.append(pushes);
        drop(arrived);
        if is_first {
            self.told.notify_one();
        }
    }
}

/// The credit of one caller for one queue.
#[derive(Debug)]
struct Credit {
    caller: Caller,
    reference: Reference,
    pushes: Arc<Pushes>,
    /// What has come in this step.
    fresh: Vec<Push>,
    is_over: bool,
}

/// Invariant: both tables have the same credits, but for those that have ended in this step.
#[derive(Debug, Default)]
pub(super) struct Credits {
    open: HashMap<WaiterId, Credit>,
    by_caller: BTreeMap<(Caller, QueueId), WaiterId>,
    /// Those for which something has come in this step.
    fresh: Vec<WaiterId>,
    /// Queues with credit that waits for the memory of a lease.
    hungry: BTreeSet<QueueId>,
}

impl Credits {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn recall(&mut self, waiter: WaiterId, tasks: u32) {
        let Some(credit) = self.open.get_mut(&waiter) else { return };
        if credit.fresh.is_empty() {
            self.fresh.push(waiter);
        }
        let (reference, pushed) = (credit.reference, Pushed::Recall(tasks));
        credit.fresh.push(Push { reference, pushed, promise: Promise::NOTHING });
    }

    /// The queues that a caller has given credit for.
    fn of(&self, caller: Caller) -> Vec<QueueId> {
        let all = (caller, QueueId::MIN)..=(caller, QueueId::MAX);
        self.by_caller.range(all).map(|(&(_, queue), _)| queue).collect()
    }
}

impl Engine {
    /// A caller can take so many `more` tasks of a queue, each settled as `settled_by` says. It has one credit for a
    /// queue: what is given again adds to it, and stands for the reference and the inbox of the
    /// first time.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`]. That the queue was shut down is [pushed](Pushed::Ended).
    pub(crate) fn credit(
        &self,
        caller: Caller,
        reference: Reference,
        protocol_max: u8,
        settled_by: SettledBy,
        more: u32,
        pushes: &Arc<Pushes>,
    ) -> Result<(), CallError> {
        let mut state = self.lock(reference.queue);
        if !state.queues.contains_key(&reference.queue) {
            return Err(CallError::NoQueue);
        }
        if state.is_stopped {
            return Ok(());
        }
        let waiter = state.open_credit(caller, reference, pushes);
        let (reader, holder) = (protocol_max, caller.holder());
        let taker = Taker { reader, settled_by, holder, is_pushed: true };
        state.on(reference.queue, |queue, step| queue.credit(taker, more, waiter, step));
        self.commit(&mut state);
        Ok(())
    }

    /// A caller takes no more tasks of this queue for now. Returns what was left of its credit, for
    /// the time when it gives that again. What is on its way still comes.
    pub(crate) fn withdraw_credit(&self, caller: Caller, reference: Reference) -> u32 {
        let mut state = self.lock(reference.queue);
        let holder = caller.holder();
        let left = state.on(reference.queue, |queue, _| queue.withdraw_credit(holder));
        self.commit(&mut state);
        left.unwrap_or(0)
    }

    /// The credit of a caller for this queue is over. What is on its way still comes.
    pub(crate) fn end_credit(&self, caller: Caller, reference: Reference) {
        let mut state = self.lock(reference.queue);
        state.end_credit(caller, reference.queue);
        self.commit(&mut state);
    }
}

impl State {
    fn open_credit(
        &mut self,
        caller: Caller,
        reference: Reference,
        pushes: &Arc<Pushes>,
    ) -> WaiterId {
        let number = self.next();
        let at = (caller, reference.queue);
        let waiter = *self.credits.by_caller.entry(at).or_insert(WaiterId(number));
        self.credits.open.entry(waiter).or_insert_with(|| Credit {
            caller,
            reference,
            pushes: pushes.clone(),
            fresh: Vec::new(),
            is_over: false,
        });
        waiter
    }

    fn end_credit(&mut self, caller: Caller, queue: QueueId) {
        self.on(queue, |queue, _| queue.end_credit(caller.holder()));
        self.close_credit(caller, queue);
    }

    /// It goes once what has come for it is told.
    fn close_credit(&mut self, caller: Caller, queue: QueueId) {
        let Some(waiter) = self.credits.by_caller.remove(&(caller, queue)) else { return };
        let Some(credit) = self.credits.open.get_mut(&waiter) else { return };
        credit.is_over = true;
        if credit.fresh.is_empty() {
            self.credits.open.remove(&waiter);
        }
    }

    /// A caller is gone: nothing is pushed to it any more.
    pub(super) fn end_credits(&mut self, caller: Caller) {
        for queue in self.credits.of(caller) {
            self.end_credit(caller, queue);
        }
    }

    /// Nothing is pushed to anybody any more.
    pub(super) fn end_all_credits(&mut self) {
        let all = self.credits.by_caller.keys().copied();
        for (caller, queue) in all.collect::<Vec<_>>() {
            self.end_credit(caller, queue);
        }
    }

    /// Something has come by credit.
    pub(super) fn push(&mut self, waiter: WaiterId, outcome: Outcome) {
        let Some(credit) = self.credits.open.get_mut(&waiter) else { return };
        let Credit { caller, reference, .. } = *credit;
        if credit.fresh.is_empty() {
            self.credits.fresh.push(waiter);
        }
        let pushed = match outcome {
            Outcome::Task(grant) => {
                if !planted!(LostPush) {
                    self.leases.add(caller, reference.queue, grant.token.task);
                }
                Pushed::Task(grant)
            }
            ended => Pushed::Ended(ended),
        };
        let is_over = matches!(pushed, Pushed::Ended(_));
        credit.fresh.push(Push { reference, pushed, promise: Promise::NOTHING });
        if is_over {
            self.close_credit(caller, reference.queue);
        }
    }

    /// Asks for tasks that lie with somebody who has not started them, where others wait for some.
    pub(super) fn recall_in(&mut self, queue: QueueId) {
        if self.credits.is_empty() {
            return;
        }
        let recall = self.queues.get_mut(&queue).and_then(|hosted| hosted.queue.recall());
        if let Some((waiter, tasks)) = recall {
            self.credits.recall(waiter, tasks);
        }
    }

    /// Serves credits that waited for memory, where there is some now.
    pub(super) fn feed_credits(&mut self) {
        if self.credits.is_empty() {
            return;
        }
        for at in 0..self.touched.len() {
            if let Some(&queue) = self.touched.get(at) {
                self.note_hungry(queue);
            }
        }
        while self.step.budget.allows_lease(LEASE_BYTES)
            && let Some(queue) = self.credits.hungry.pop_first()
        {
            self.on(queue, Queue::serve);
            self.follow_up();
            self.note_hungry(queue);
        }
    }

    fn note_hungry(&mut self, queue: QueueId) {
        if self.queues.get(&queue).is_some_and(|hosted| hosted.queue.is_hungry()) {
            self.credits.hungry.insert(queue);
        } else {
            self.credits.hungry.remove(&queue);
        }
    }

    /// Tells what has come by credit in this step, and what each caller has to wait for yet.
    pub(super) fn tell_pushes(&mut self, step: Promise) {
        if self.credits.fresh.is_empty() {
            return;
        }
        let mut waiters = std::mem::take(&mut self.credits.fresh);
        for waiter in waiters.drain(..) {
            let Some(credit) = self.credits.open.get_mut(&waiter) else { continue };
            let (mut fresh, is_over) = (std::mem::take(&mut credit.fresh), credit.is_over);
            for push in &mut fresh {
                push.promise = self.promise_of_push(push, step);
            }
            if is_over && let Some(credit) = self.credits.open.remove(&waiter) {
                credit.pushes.add(&mut fresh);
            } else if let Some(credit) = self.credits.open.get_mut(&waiter) {
                credit.pushes.add(&mut fresh);
                // Its memory is used again.
                credit.fresh = fresh;
            }
        }
        self.credits.fresh = waiters;
    }

    fn promise_of_push(&mut self, push: &Push, step: Promise) -> Promise {
        match &push.pushed {
            _ if planted!(PushBeforeDurable) => Promise::NOTHING,
            // The lease is of this step, and the task of this one or another.
            Pushed::Task(grant) => {
                let put = self.promise_of(push.reference.queue, grant.token.task);
                put.and(step.once_written())
            }
            Pushed::Recall(_) => Promise::NOTHING,
            Pushed::Ended(_) => step,
        }
    }
}
