//! Calls that share a step: one lock, one look at the clock, one commit for all of them.
//!
//! A front end that has several requests at hand makes [`Calls`] of them. The lock is taken by the first
//! and kept until [`Calls::end`], so nobody waits, or does anything else with the engine, before that;
//! and what is done until then is bounded.

use std::fmt;
use std::sync::{Arc, MutexGuard};

use manyhands::wire::arguments::Wait;
use manyhands::wire::token::LeaseToken;

use super::verbs::Added;
use super::{
    Batch, Called, Caller, Engine, Put, QueueId, Reference, Settled, Settlement, Shown, State,
    Taking, Ticket,
};
use crate::queue::{Order, Patience, TaskId};

/// Calls of one caller that share a step.
///
/// Without a journal the step is committed at their end, or as soon as it [owes](State::owes) others
/// something: nobody may be told of an outcome before.
/// With one each call is a step of its own, since what it promises is its own, but the lock is still
/// taken only once.
pub(crate) struct Calls<'e> {
    engine: &'e Arc<Engine>,
    /// The shard that is locked, once there was a call.
    open: Option<(usize, MutexGuard<'e, State>)>,
}

impl fmt::Debug for Calls<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").field("is_open", &self.open.is_some()).finish_non_exhaustive()
    }
}

impl<'e> Calls<'e> {
    pub(crate) fn new(engine: &'e Arc<Engine>) -> Self {
        Self { engine, open: None }
    }

    /// Ends the step, if one has begun. Others have their turn at the queues.
    pub(crate) fn end(&mut self) {
        let Some((_, mut state)) = self.open.take() else { return };
        if std::mem::take(&mut state.goes_on) {
            self.engine.commit(&mut state);
        }
    }

    /// The shard that has a queue. The step ends if it is of another one.
    fn state(&mut self, queue: QueueId) -> &mut State {
        let shard = self.engine.shards.of(queue);
        if self.open.as_ref().is_some_and(|(open, _)| *open != shard) {
            self.end();
        }
        let (_, state) = self.open.get_or_insert_with(|| {
            let mut state = self.engine.lock(queue);
            state.goes_on = state.log.is_none();
            (shard, state)
        });
        state
    }

    /// Same as [`Engine::order_of`].
    pub(crate) fn order_of(&mut self, reference: Reference, of_results: bool) -> Order {
        self.state(reference.queue).order_of(reference, of_results)
    }

    /// Same as [`Engine::put_many`].
    pub(crate) fn put_many<P: Into<Put>>(
        &mut self,
        caller: Caller,
        reference: Reference,
        items: &mut impl Iterator<Item = P>,
        patience: Patience,
        numbers: Option<&mut Vec<Option<TaskId>>>,
    ) -> Added {
        let engine = self.engine;
        let state = self.state(reference.queue);
        engine.put_many_in(state, caller, reference, items, patience, numbers)
    }

    /// Same as [`Engine::get_many`].
    pub(crate) fn get_many(
        &mut self,
        caller: Caller,
        reference: Reference,
        taking: Taking,
        wait: Wait,
        batch: &mut Batch,
    ) -> Ticket<Option<Called>> {
        let engine = self.engine;
        let state = self.state(reference.queue);
        engine.get_many_in(state, caller, reference, taking, wait, &Shown::default(), batch)
    }

    /// Same as [`Engine::settle_many`].
    pub(crate) fn settle_many(
        &mut self,
        caller: Caller,
        reference: Reference,
        settlements: &mut impl Iterator<Item = (LeaseToken, Settlement)>,
        patience: Patience,
        settled: &mut Settled,
    ) -> bool {
        let engine = self.engine;
        let state = self.state(reference.queue);
        engine.settle_many_in(state, caller, reference, settlements, patience, settled)
    }
}

impl Drop for Calls<'_> {
    fn drop(&mut self) {
        // A step that a panic has left half done is not committed: it ends the process.
        if !std::thread::panicking() {
            self.end();
        }
    }
}
