//! How tasks are taken: one, or a batch of what is there.

use std::sync::Arc;

use manyhands::wire::arguments::Wait;
use manyhands::wire::tasks::Info;

use crate::engine::{
    BATCH_AT_ONCE, Batch, Called, Caller, Engine, QueueId, Reference, Starved, State, Taking,
    Waiting, patience,
};
use crate::error::CallError;
use crate::queue::{Grant, Origin, Outcome, Patience, Taker, WaiterId};

impl Engine {
    /// Takes an item. The step goes on.
    pub(in crate::engine) fn take(
        self: &Arc<Self>,
        state: &mut State,
        caller: Caller,
        reference: Reference,
        taking: Taking,
        wait: Wait,
        has_tasks: bool,
    ) -> Result<Called, CallError> {
        let taker = taking.taker(caller);
        let id = WaiterId(state.next());
        let patience = patience(wait, state.step.now);
        let taken = match state.is_starved(caller, has_tasks) {
            true => state.starve(id, Starved { queue: reference.queue, taker, patience }),
            false => state
                .on(reference.queue, |queue, step| queue.get(taker, patience, id, step))
                .ok_or(CallError::NoQueue)?,
        };
        Ok(match taken {
            Some(outcome) => {
                if let Outcome::Task(grant) = &outcome {
                    state.assign(caller, reference.queue, taking, std::slice::from_ref(grant));
                }
                Called::Now(outcome)
            }
            None => {
                let (is_by_token, receives) = (taking.settled_by.is_by_token(), taking.receives());
                let waiting = Waiting::new(reference, caller);
                let waiting = Waiting { is_by_token, receives, ..waiting };
                Called::Later(self.park(state, id, waiting))
            }
        })
    }

    /// Tasks of a queue on disk whose bodies are in memory have been received, if the caller takes
    /// them for good.
    pub(super) fn receive_kept(
        &self,
        state: &mut State,
        caller: Caller,
        queue: QueueId,
        batch: &mut Batch,
    ) {
        if self.journal.is_none() || !batch.receives || !state.takes_for_good(caller, queue) {
            return;
        }
        for grant in &batch.grants {
            if state.is_received(caller, queue, grant) {
                state.receive(caller, queue, grant.token);
            }
        }
        batch.promise = batch.promise.and(self.commit(state));
    }
}

impl State {
    pub(super) fn take_more(
        &mut self,
        caller: Caller,
        queue: QueueId,
        taking: Taking,
        batch: &mut Batch,
    ) -> bool {
        batch.receives = taking.receives();
        let bytes_max = self.batch_bytes_max.min(taking.bytes_max);
        let Batch { grants, promise, bytes, .. } = batch;
        if grants.len() >= taking.max {
            return false;
        }
        if *bytes == 0 {
            *bytes = grants.iter().map(|grant| self.told_bytes(queue, grant, taking)).sum();
        }
        let taker = taking.taker(caller);
        let end = taking.max.min(grants.len() + BATCH_AT_ONCE);
        while grants.len() < end && *bytes < bytes_max {
            let (before, left) = (grants.len(), bytes_max - *bytes);
            let wanted = if taking.is_informed { 1 } else { end - before };
            self.on(queue, |queue, step| queue.get_more(taker, (wanted, left), grants, step));
            let taken = grants.get(before..).unwrap_or_default();
            let Some(last) = taken.iter().map(|grant| grant.token.task).max() else {
                return false;
            };
            if !planted!(BatchNotHeld) {
                self.assign(caller, queue, taking, taken);
            }
            // Those that were put before it are durable once it is.
            *promise = promise.and(self.promise_of(queue, last));
            *bytes += taken.iter().map(|it| self.told_bytes(queue, it, taking)).sum::<usize>();
        }
        grants.len() < taking.max && *bytes < bytes_max
    }

    /// Tasks were taken. In memory, they are received by that.
    fn assign(&mut self, caller: Caller, queue: QueueId, taking: Taking, grants: &[Grant]) {
        if taking.settled_by.is_by_token() {
            for grant in grants {
                self.leases.add(caller, queue, grant.token.task);
            }
        } else if taking.receives() && self.takes_for_good(caller, queue) && !self.is_on_disk(queue)
        {
            self.receive_all(caller, queue, grants);
        }
    }

    /// What a reply takes that hands a task out, in bytes, roughly.
    fn told_bytes(&self, queue: QueueId, grant: &Grant, taking: Taking) -> usize {
        let info = if taking.is_informed { self.info_bytes(queue, grant) } else { 0 };
        self.length(queue, grant) + usize::try_from(info).unwrap_or(usize::MAX)
    }

    /// What is known of a task beside its payload, in bytes, roughly.
    pub(super) fn info_bytes(&self, queue: QueueId, grant: &Grant) -> u64 {
        let hosted = self.queues.get(&queue);
        hosted.and_then(|hosted| hosted.queue.origin(grant.token.task)).map_or(0, Origin::bytes)
    }

    /// Length of a payload, wherever it is, in bytes.
    pub(in crate::engine) fn length(&self, queue: QueueId, grant: &Grant) -> usize {
        match grant.payload.bytes.len() {
            0 => self.stored(queue, grant.token.task).map_or(0, |it| it.len() as usize),
            len => len,
        }
    }

    pub(in crate::engine) fn take_now(&mut self, queue: QueueId, taker: Taker) -> Option<Grant> {
        // It does not wait, so it needs no number.
        let nobody = WaiterId(0);
        match self.on(queue, |queue, step| queue.get(taker, Patience::Now, nobody, step))?? {
            Outcome::Task(grant) => Some(grant),
            _ => None,
        }
    }
}

pub(super) fn info(origin: &Origin) -> Info {
    Info {
        queue: origin.queue.to_string(),
        task: origin.task.0,
        attempt: origin.attempt,
        worker: origin.worker.to_string(),
        waited: origin.waited,
        ran: origin.ran,
        history: origin.history.iter().map(|attempt| attempt.cause.to_string()).collect(),
    }
}
