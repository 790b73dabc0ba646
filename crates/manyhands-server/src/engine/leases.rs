//! How tasks get out and back: every task that is out has a token, by which it is settled, and a
//! holder, who took it.
//!
//! [`Leases`] knows by their holders those leases that only their tokens settle: they end with their
//! holder. Of all others the front end knows who has them, and says what becomes of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use manyhands::wire::text::repr;
use manyhands::wire::token::LeaseToken;

use crate::engine::{
    BATCH_AT_ONCE, Called, Caller, Engine, Held, Promise, QueueId, Reference, State,
};
use crate::error::CallError;
use crate::queue::{
    Ack, Cause, Delivery, Failed, Holder, Outcome, Queue, QueueOptions, Retry, TaskId, Token,
    TokenRun,
};

/// Tasks that were leased by token, by who has them. Nothing is known of a lease that is over,
/// however it ended.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: BTreeSet<(Caller, QueueId, TaskId)>,
}

impl Leases {
    pub(super) fn add(&mut self, caller: Caller, queue: QueueId, task: TaskId) {
        self.held.insert((caller, queue, task));
    }

    /// False if it was not by token.
    pub(super) fn remove(&mut self, caller: Caller, queue: QueueId, task: TaskId) -> bool {
        self.held.remove(&(caller, queue, task))
    }

    /// Whether a caller has any.
    pub(super) fn has_any(&self, caller: Caller) -> bool {
        self.of(caller).next().is_some()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Some of what a caller has of a queue, from this task on.
    fn of_queue(&self, caller: Caller, queue: QueueId, from: TaskId) -> Vec<TaskId> {
        let all = (caller, queue, from)..=(caller, queue, TaskId(u64::MAX));
        self.held.range(all).take(BATCH_AT_ONCE).map(|&(_, _, task)| task).collect()
    }

    /// What a caller has.
    fn of(&self, caller: Caller) -> impl Iterator<Item = (QueueId, TaskId)> {
        let all = (caller, QueueId::MIN, TaskId(0))..=(caller, QueueId::MAX, TaskId(u64::MAX));
        self.held.range(all).map(|&(_, queue, task)| (queue, task))
    }
}

/// What a queue demands of whoever takes a task of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Demand {
    /// Nothing: the task is settled once it is received.
    Nothing,
    /// That it is settled.
    #[default]
    Settlement,
    /// A result, which goes to this queue, if that is there.
    Result(Option<QueueId>),
}

/// Some tokens; the one that most calls are about needs no memory of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    first: Option<Held>,
    others: Vec<Held>,
}

impl Tokens {
    pub(crate) fn push(&mut self, held: Held) {
        match self.first {
            None => self.first = Some(held),
            Some(_) => self.others.push(held),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Held> {
        self.first.iter().chain(&self.others).copied()
    }
}

/// What becomes of a task whose holder is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It counts as done.
    Done,
    /// The same, although nothing that its holder did has shown it.
    Left,
    /// It goes back.
    Back(Cause),
    /// Somebody else has it.
    With(Caller),
}

impl Engine {
    /// Settles tasks that are through, those of each shard in a step of its own.
    pub(crate) fn ack_many(&self, tokens: &Tokens) -> Promise {
        let mut promise = Promise::NOTHING;
        for mut state in self.lock_each() {
            state.ack_many(tokens);
            promise = promise.and(self.commit(&mut state));
        }
        promise
    }

    /// Tasks of one queue that were taken for good have reached whom they were for, and are settled.
    pub(crate) fn settle_received(&self, at: Reference, tokens: impl Iterator<Item = TokenRun>) {
        let mut state = self.lock(at.queue);
        state.settle_received(at.queue, tokens);
        // The reply has left, and does not say that.
        self.commit(&mut state);
    }

    /// Those of some tasks that are not with the holders of their tokens any more.
    pub(crate) fn lapsed(&self, tasks: &[Held]) -> Vec<Held> {
        let mut lapsed = Vec::new();
        for state in self.lock_each() {
            let is_leased = |Held { queue, token }: &Held| {
                state.queues.get(queue).is_some_and(|hosted| hosted.queue.is_leased_to(*token))
            };
            let own = tasks.iter().filter(|held| state.has(held.queue));
            lapsed.extend(own.filter(|held| !is_leased(held)));
        }
        lapsed
    }

    /// Tasks that are through and that another shard than this one has.
    pub(super) fn through_elsewhere(&self, state: &State, through: &Tokens) -> Option<Box<Tokens>> {
        if !self.shards.are_several() {
            return None;
        }
        let mut elsewhere = Box::<Tokens>::default();
        let others = through.iter().filter(|held| !state.has(held.queue));
        others.for_each(|held| elsewhere.push(held));
        Some(elsewhere).filter(|elsewhere| !elsewhere.is_empty())
    }

    /// Settles these once the put is accepted that has shown them to be through.
    pub(super) fn ack_elsewhere(&self, elsewhere: Box<Tokens>, put: Option<&mut Called>) {
        match put {
            Some(Called::Now(Outcome::Accepted(_) | Outcome::Known)) => {
                self.ack_many(&elsewhere);
            }
            Some(Called::Later(waiter)) => waiter.shows(elsewhere),
            _ => {}
        }
    }

    /// A caller has closed a queue: tasks that were pushed to it and that it has not started go back.
    /// Looks at some of its leases, from this task on; says where to go on if there are more.
    pub(crate) fn return_unstarted(
        &self,
        caller: Caller,
        at: Reference,
        from: TaskId,
    ) -> Option<TaskId> {
        let queue = at.queue;
        let mut state = self.lock(queue);
        let tasks = state.leases.of_queue(caller, queue, from);
        let next = tasks.get(BATCH_AT_ONCE - 1).map(|last| TaskId(last.0 + 1));
        for task in tasks {
            let unstarted = state.queues.get(&queue).and_then(|hosted| {
                hosted.queue.token(task).filter(|token| hosted.queue.is_unstarted(*token))
            });
            if let Some(token) = unstarted {
                state.end(Held { queue, token }, Fate::Back(Cause::Unread), None);
            }
        }
        self.commit(&mut state);
        next
    }

    /// Tasks did not reach this caller: each goes back to its original place, unless somebody else has
    /// taken it over.
    pub(crate) fn return_all_unread(&self, caller: Caller, at: Reference, tokens: &[Token]) {
        for some in tokens.chunks(BATCH_AT_ONCE) {
            let mut state = self.lock(at.queue);
            for token in some {
                state.return_unread(caller, at.queue, *token);
            }
            self.commit(&mut state);
        }
    }

    /// Does what becomes of some tasks of a caller that is gone. What is done about one has nothing to do
    /// with any other.
    pub(crate) fn part(&self, caller: Caller, mut tasks: Vec<(Held, Fate)>) {
        let worker = self.shards.common().callers.worker(caller);
        let worker = worker.as_ref();
        for mut state in self.lock_each() {
            for (held, fate) in
                tasks.extract_if(.., |(held, _)| state.has(held.queue)).collect::<Vec<_>>()
            {
                if fate == Fate::Left {
                    state.tell_left(held.queue, caller);
                }
                state.end(held, fate, worker);
            }
            self.commit(&mut state);
        }
    }

    /// Gives back up to `max` leases by token of a caller that is gone; true if more are left. Its credit
    /// ends with the first.
    pub(crate) fn end_leases(&self, caller: Caller, cause: &Cause, max: usize) -> bool {
        let worker = self.shards.common().callers.worker(caller);
        let mut is_more = false;
        for mut state in self.lock_each() {
            is_more |= state.end_leases(caller, cause, max, worker.as_ref());
            self.commit(&mut state);
        }
        is_more
    }

    /// The longest time for which one of these queues leases its tasks, if any says so.
    pub(crate) fn longest_lease(
        &self,
        queues: impl Iterator<Item = QueueId>,
    ) -> Option<std::time::Duration> {
        queues.filter_map(|queue| self.lock(queue).options(queue)?.lease).max()
    }
}

impl State {
    /// What a queue demands of this caller for a task.
    pub(super) fn demand(&self, caller: Caller, queue: QueueId) -> Demand {
        let Some(options) = self.options(queue) else { return Demand::default() };
        if caller.is_in_process() || options.delivery == Delivery::Cpython {
            return Demand::Nothing;
        }
        match options.results.as_deref() {
            None => Demand::Settlement,
            Some(results) => Demand::Result(self.directory.names.get(results).copied()),
        }
    }

    /// Whether nobody answers for what this caller takes from a queue once it has it.
    pub(super) fn takes_for_good(&self, caller: Caller, queue: QueueId) -> bool {
        let is_cpython = |options: &QueueOptions| options.delivery == Delivery::Cpython;
        caller.is_in_process() || self.options(queue).is_some_and(is_cpython)
    }

    /// A task has reached whom it was for. That settles it where nobody answers for it.
    pub(super) fn receive(&mut self, caller: Caller, queue: QueueId, token: Token) {
        if self.takes_for_good(caller, queue) {
            self.settle_received(queue, std::iter::once(token.into()));
        }
    }

    /// Settles tasks that nobody answers for, if they are still out by these tokens.
    pub(super) fn settle_received(
        &mut self,
        queue: QueueId,
        tokens: impl Iterator<Item = TokenRun>,
    ) {
        self.on(queue, |queue, step| tokens.for_each(|tokens| queue.receive(tokens, step)));
    }

    /// A task did not reach this caller. Whoever has taken it over since keeps it.
    pub(super) fn return_unread(&mut self, caller: Caller, queue: QueueId, token: Token) {
        let holder = self.queues.get(&queue).and_then(|hosted| hosted.queue.holder(token));
        if holder == Some(caller.holder()) {
            self.end(Held { queue, token }, Fate::Back(Cause::Unread), None);
        }
    }

    /// Ends a lease that `worker` has, unless somebody else has the task by now.
    pub(super) fn end(&mut self, held: Held, fate: Fate, worker: Option<&Arc<str>>) {
        let Held { queue, token } = held;
        match fate {
            Fate::Done | Fate::Left => drop(self.settle(held)),
            Fate::Back(cause) => {
                self.forget_lease(held);
                self.give_back(held, cause, worker.cloned());
            }
            Fate::With(caller) => {
                if self.forget_lease(held) {
                    self.leases.add(caller, queue, token.task);
                }
                self.on(queue, |queue, _| queue.transfer(token, caller.holder()));
            }
        }
    }

    /// A task comes back from `worker`.
    pub(super) fn give_back(&mut self, held: Held, cause: Cause, worker: Option<Arc<str>>) {
        let attempt = Failed { cause, worker };
        let Held { queue, token } = held;
        self.on(queue, |queue, step| queue.give_back(token, attempt, Retry::Backoff, step));
    }

    /// Does what is due in a queue. Who has a lease that runs out is looked up before it does.
    pub(super) fn expire_in(&mut self, queue: QueueId) {
        let Some(hosted) = self.queues.get(&queue) else { return };
        let worker = |(task, holder): (TaskId, Holder)| {
            Some((task, self.common.callers.worker(holder.into())?))
        };
        self.step.overdue = hosted.queue.overdue(self.step.now).filter_map(worker).collect();
        self.on(queue, Queue::expire);
        self.step.overdue.clear();
    }

    pub(super) fn settle(&mut self, Held { queue, token }: Held) -> Option<Ack> {
        self.on(queue, |queue, step| queue.ack_without_result(token, step))
    }

    pub(super) fn ack_many(&mut self, tokens: &Tokens) {
        for held in tokens.iter() {
            self.settle(held);
        }
    }

    /// Forgets who has the lease of this token, if that still has its task; false if it is not by
    /// token.
    pub(super) fn forget_lease(&mut self, Held { queue, token }: Held) -> bool {
        let holder = self.queues.get(&queue).and_then(|hosted| hosted.queue.holder(token));
        holder.is_some_and(|holder| self.leases.remove(holder.into(), queue, token.task))
    }

    /// Settles a task that needs no result.
    pub(super) fn ack_alone(&mut self, held: Held) -> Result<(), CallError> {
        if let Some(results) = self.options(held.queue).and_then(|it| it.results.clone()) {
            return Err(CallError::NoResult(results));
        }
        self.settle_counted(held, true)
    }

    /// Settles a task without a result, and counts it as done if nobody calls `task_done` for it.
    pub(super) fn settle_counted(&mut self, held: Held, counts: bool) -> Result<(), CallError> {
        let Held { queue, token } = held;
        self.forget_lease(held);
        let ack = self.on(queue, |queue, step| {
            let ack = queue.ack_without_result(token, step);
            if ack == Ack::Accepted && counts {
                queue.conclude(token, step);
            }
            ack
        });
        match ack.ok_or(CallError::NoQueue)? {
            Ack::Accepted => Ok(()),
            Ack::AcceptedBefore => Err(CallError::SettledBefore),
            Ack::Stale => Err(CallError::StaleToken),
        }
    }

    /// The lease that a token names, unless it was settled or may be about to be.
    pub(super) fn lease(
        &mut self,
        caller: Caller,
        queue: QueueId,
        token: LeaseToken,
    ) -> Result<Held, CallError> {
        let hosted = self.queues.get(&queue).ok_or(CallError::NoQueue)?;
        let Some(token) = hosted.signer.verify(token) else {
            self.refuse_forged(caller, queue);
            return Err(CallError::StaleToken);
        };
        if hosted.queue.is_claimed(token) {
            // The result may still be refused: nobody must be told that it was accepted.
            if planted!(AnsweringIsSettled) {
                return Err(CallError::SettledBefore);
            }
            return Err(CallError::Answering);
        }
        let is_leased =
            if planted!(RefusedCountsAsSettled) { false } else { hosted.queue.is_leased_to(token) };
        if !is_leased && hosted.queue.has_settled(token) {
            return Err(CallError::SettledBefore);
        }
        Ok(Held { queue, token })
    }

    /// Counts a token that we did not give out, or not for this queue.
    fn refuse_forged(&mut self, caller: Caller, queue: QueueId) {
        let peer = self.common.callers.worker(caller);
        let Some(hosted) = self.queues.get_mut(&queue) else { return };
        if let Some(tokens) = hosted.notices.forged.add(1, self.step.now) {
            let name = hosted.name.as_deref().map(repr);
            tracing::warn!(
                queue = name,
                last = peer.as_deref(),
                tokens,
                "refused lease tokens that this queue did not give out"
            );
        }
    }

    /// Ends up to `max` of the leases by token of a caller that is gone; true if more are left.
    fn end_leases(
        &mut self,
        caller: Caller,
        cause: &Cause,
        max: usize,
        worker: Option<&Arc<str>>,
    ) -> bool {
        if planted!(LeasesNotGivenBack) {
            return false;
        }
        self.end_credits(caller);
        let leases: Vec<_> = self.leases.of(caller).take(max).collect();
        for (queue, task) in leases {
            let token = self.queues.get(&queue).and_then(|hosted| hosted.queue.token(task));
            if let Some(token) = token {
                self.end(Held { queue, token }, Fate::Back(cause.clone()), worker);
            }
            self.leases.remove(caller, queue, task);
        }
        self.leases.has_any(caller)
    }
}
