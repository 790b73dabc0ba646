//! Leases: how a task leaves the queue, and how it is settled or comes back.

use std::time::Duration;

use manyhands::wire::pickle::Payload;

use super::leased::{Leased, lease_bytes};
use super::meta::EndedLease;
use super::ready::{self, Candidate, Delayed};
use super::task::Task;
use super::{
    Ack, Cause, Change, DeadLetter, Failed, Grant, Holder, Phase, Queue, Retry, Run, SettledBy,
    Step, Taker, TaskId, Terms, Timer, Token, TokenRun,
};

/// How long a lease by token runs after a restart, unless its queue or its holder says otherwise.
const LEASE: Duration = Duration::from_secs(60);
/// Settled leases that are remembered, so that an ack that is repeated is not called stale.
pub(crate) const SETTLED_LEN_MAX: usize = 1024;

impl Queue {
    /// Hands a task out.
    pub(super) fn lease(
        &mut self,
        Task { id, payload }: Task,
        taker: Taker,
        step: &mut Step,
    ) -> Grant {
        let failures = self.metadata.get(&id).map_or(0, |meta| meta.failures);
        let token = Token { task: id, attempt: failures + 1, lease: self.next_lease };
        if !planted!(EpochTwice) {
            self.next_lease += 1;
        }
        self.tally.taken += 1;
        let hold = match taker.settled_by {
            SettledBy::TokenWithin(hold) => Some(hold),
            SettledBy::Token => Some(self.options.lease.unwrap_or(LEASE)),
            SettledBy::Session | SettledBy::TokenOfSession | SettledBy::Delivery => None,
        };
        step.record(|| Change::Leased { token, hold });
        step.use_lease();
        if taker.settled_by == SettledBy::Delivery {
            self.tally.done += 1;
            self.drop_metadata(id, step);
            step.record(|| Change::Acked { task: id, attempt: token.attempt });
            return Grant { token, payload };
        }
        let Taker { holder, is_pushed, settled_by, .. } = taker;
        let is_endless = self.options.max_run.is_none() && !is_pushed;
        if settled_by == SettledBy::Session
            && is_endless
            && self.leased.append(token, holder, step.now, &payload)
        {
            self.charge(lease_bytes(&payload), step);
            return Grant { token, payload };
        }
        let limit = hold.filter(|_| settled_by != SettledBy::Token);
        let leased = Leased::new(token, holder, payload.clone(), step.now);
        let leased = self.begin(Leased { hold, limit, is_pushed, ..leased }, step);
        self.leased.insert(leased);
        Grant { token, payload }
    }

    /// A lease begins, and the time after which it runs out.
    pub(super) fn begin(&mut self, mut leased: Leased, step: &mut Step) -> Leased {
        self.charge(leased.bytes(), step);
        let shortest = leased.limit.into_iter().chain(self.options.max_run).min();
        leased.deadline = shortest.map(|limit| step.now + limit);
        let timer = leased.deadline.map(|deadline| (deadline, Timer::Lease(leased.token.task)));
        self.timers.extend(timer);
        leased
    }

    /// Settles a task. A late ack is kept if nobody has taken the task since.
    pub fn ack(&mut self, token: Token, step: &mut Step) -> Ack {
        let token = if planted!(StaleAckKept) { self.newest_of(token) } else { token };
        if self.end_lease(token, step).is_none() && !self.settle_returned(token, step) {
            if self.settled.contains(&token) {
                return Ack::AcceptedBefore;
            }
            self.tally.stale += 1;
            return Ack::Stale;
        }
        self.count_settled(token, step);
        self.admit(step);
        Ack::Accepted
    }

    fn count_settled(&mut self, Token { task, attempt, .. }: Token, step: &mut Step) {
        self.tally.done += 1;
        self.drop_metadata(task, step);
        step.record(|| Change::Acked { task, attempt });
    }

    /// The same where no result of the task will come.
    pub fn ack_without_result(&mut self, token: Token, step: &mut Step) -> Ack {
        let ack = self.ack(token, step);
        if ack == Ack::Accepted {
            self.report_resultless(token.task, step);
        }
        ack
    }

    /// Tasks that were taken for good have reached whom they were for. Those that are still out by
    /// these tokens are settled.
    pub fn receive(&mut self, mut tokens: TokenRun, step: &mut Step) {
        while tokens.len > 0 {
            let received = self.end_leases(tokens, step).map_or(0, |leased| {
                for token in leased.tokens().iter() {
                    self.count_settled(token, step);
                    self.report_resultless(token.task, step);
                }
                leased.len()
            });
            tokens = tokens.skip(received.max(1));
        }
        self.admit(step);
    }

    /// The holder of this token has settled its task and said so: nobody will call `task_done` for
    /// it, so it counts as done. For a while it is remembered that the token was good, for a client
    /// that may ask again.
    pub fn conclude(&mut self, token: Token, step: &mut Step) {
        step.record(|| Change::Settled { token });
        // It may have been counted already, by one `task_done` too many.
        self.count_down(step).ok();
        if self.settled.len() == SETTLED_LEN_MAX {
            self.settled.pop_front();
        }
        self.settled.push_back(token);
    }

    /// Whether a task is leased to the holder of this token.
    pub fn is_leased_to(&self, token: Token) -> bool {
        self.leased.of(token).is_some()
    }

    /// Whether this token settled its task not long ago.
    pub fn has_settled(&self, token: Token) -> bool {
        self.settled.contains(&token)
    }

    /// Who has the task of this token, if it is still with its holder.
    pub fn holder(&self, token: Token) -> Option<Holder> {
        self.leased.of(token).map(|leased| leased.holder)
    }

    /// The token by which a task is out, if it is.
    pub fn token(&self, task: TaskId) -> Option<Token> {
        self.leased.get(task).map(|(token, _)| token)
    }

    /// The task of this token, if it still has it, is with somebody else from now on.
    pub fn transfer(&mut self, token: Token, holder: Holder) {
        if self.holder(token).is_some_and(|other| other != holder) {
            self.pass_on(token, holder);
        }
    }

    /// A leased task is with `holder` from now on, who has begun with it.
    fn pass_on(&mut self, token: Token, holder: Holder) {
        let Some(leased) = self.leased.of_mut(token) else { return };
        let before = std::mem::replace(&mut leased.holder, holder);
        let was_started = std::mem::replace(&mut leased.is_started, true);
        if std::mem::take(&mut leased.is_pushed) {
            self.count_ended(before, was_started);
        }
    }

    /// Whether a result of this lease waits for room.
    pub fn is_claimed(&self, token: Token) -> bool {
        self.leased.of(token).is_some_and(|leased| leased.claimed)
    }

    /// Reserves a task for a result that is about to be put by `holder`, who has it from now on.
    /// `None` if it was given to somebody else already.
    pub fn claim(&mut self, token: Token, holder: Holder, step: &mut Step) -> Option<Run> {
        let token = if planted!(LateResultKept) { self.newest_of(token) } else { token };
        if !self.is_leased_to(token) && self.reclaim(token, holder, step).is_none() {
            self.tally.stale += 1;
            return None;
        }
        let leased = self.leased.of_mut(token)?;
        if std::mem::replace(&mut leased.claimed, true) {
            return None;
        }
        self.pass_on(token, holder);
        let leased = self.leased.of_mut(token)?;
        if let Some(deadline) = leased.deadline.take() {
            self.timers.remove(&(deadline, Timer::Lease(token.task)));
        }
        let put = self.stamps.of(token.task).unwrap_or(leased.since);
        Some(Run { waited: leased.since.since(put), ran: step.now.since(leased.since) })
    }

    /// Takes a task that came back into the lease by which it left.
    fn reclaim(&mut self, token: Token, holder: Holder, step: &mut Step) -> Option<()> {
        let last = self.metadata.get(&token.task)?.last;
        let EndedLease { since, .. } = last.filter(|last| last.token == token)?;
        let payload = self.take_out(token.task, step)?;
        self.charge(lease_bytes(&payload), step);
        let leased = Leased { is_started: true, ..Leased::new(token, holder, payload, since) };
        self.leased.insert(leased);
        Some(())
    }

    /// The result was not put after all: the lease goes on, with its time limit counted anew, unless
    /// it is over.
    pub fn unclaim(&mut self, token: Token, step: &mut Step) {
        let leased = self.leased.of_mut(token);
        let Some(leased) = leased.filter(|leased| leased.claimed) else { return };
        leased.claimed = false;
        let asked = if planted!(HoldLostOnFull) { None } else { leased.limit };
        let limit = asked.into_iter().chain(self.options.max_run).min();
        leased.deadline = limit.map(|limit| step.now + limit);
        let timer = leased.deadline.map(|deadline| (deadline, Timer::Lease(token.task)));
        self.timers.extend(timer);
    }

    /// Lets a lease run for `hold` from now on, or as long as `max_run` allows. False if it is
    /// over.
    pub fn extend(&mut self, token: Token, hold: Duration, step: &mut Step) -> bool {
        let Some(leased) = self.leased.of_mut(token) else {
            self.tally.stale += 1;
            return false;
        };
        if let Some(deadline) = leased.deadline {
            self.timers.remove(&(deadline, Timer::Lease(token.task)));
        }
        let last = self.options.max_run.map(|max_run| leased.since + max_run);
        let deadline = last.map_or(step.now + hold, |last| last.min(step.now + hold));
        (leased.deadline, leased.limit) = (Some(deadline), Some(hold));
        // After a restart too it runs as long as was asked for last.
        leased.hold = Some(hold);
        // What was pushed may lie with its holder for long; what was asked for is seen by then.
        leased.is_started |= !leased.is_pushed;
        self.timers.insert((deadline, Timer::Lease(token.task)));
        step.record(|| Change::Extended { token, hold });
        true
    }

    /// Gives a task back, to its original place or to a waiting getter; or gives it up if it has
    /// failed too often. False if it is not with the holder of this token any more.
    ///
    /// It may exceed `maxsize` and the budget. It is as unfinished as before; only a queue that was
    /// shut down at once drops it, as it dropped those that were ready.
    pub fn give_back(
        &mut self,
        token: Token,
        failed: impl Into<Failed>,
        retry: Retry,
        step: &mut Step,
    ) -> bool {
        let mut failed = failed.into();
        let Some(leased) = self.end_lease(token, step) else {
            self.tally.stale += u64::from(matches!(failed.cause, Cause::Refused(_)));
            return false;
        };
        let is_left = matches!(failed.cause, Cause::Crashed | Cause::Unanswered);
        if is_left && leased.lies_there() && !planted!(UnstartedUsesAttempt) {
            // Its holder had not begun with it.
            failed.cause = Cause::Unread;
        }
        if leased.lies_there() && failed.cause == Cause::Unread {
            self.yield_turn(leased.holder);
        }
        self.tally.returned += 1;
        let task = token.task;
        if self.phase == Phase::Closed {
            self.drop_metadata(task, step);
            step.record(|| Change::Acked { task, attempt: token.attempt });
            self.finish(1, step);
        } else {
            self.come_back(*leased, failed, retry, step);
        }
        self.admit(step);
        true
    }

    /// Counts the failure, then decides: back to the queue, dropped because it expired, or given
    /// up.
    fn come_back(&mut self, leased: Leased, attempt: Failed, retry: Retry, step: &mut Step) {
        let Leased { payload, token, since, .. } = leased;
        let task = token.task;
        // A reply that never reached its worker says nothing of the task.
        let failed =
            if planted!(UnreadCostsAttempt) { true } else { attempt.cause != Cause::Unread };
        let last = EndedLease { token, since };
        let known = self.remember_return(last, failed.then_some(&attempt), step);
        let Some((failures, expires)) = known else { return };
        let is_expired = expires.is_some_and(|expires| expires <= step.now);
        let is_last = failed && self.options.attempts != 0 && failures >= self.options.attempts;
        let is_last = if planted!(RetryNotCapped) { false } else { is_last };
        if retry == Retry::Never {
            return self.give_up(task, payload, attempt, step);
        }
        if is_expired {
            return self.drop_expired(task, step);
        }
        if is_last {
            return self.give_up(task, payload, attempt, step);
        }
        let pause = match retry {
            Retry::After(delay) => delay,
            Retry::Backoff if failed => {
                let pause = self.options.pause(failures, &attempt.cause);
                step.random.jitter(pause)
            }
            Retry::Backoff | Retry::Never => Duration::ZERO,
        };
        let not_before = (!pause.is_zero()).then(|| step.now + pause);
        step.record(|| Change::Returned { task, failures, not_before, attempt });
        if planted!(ReturnedDropped) && !self.ready.is_empty() {
            return;
        }
        let candidate = self.returned(task, payload);
        match not_before {
            Some(until) => self.delay(task, candidate, until, step),
            None => self.make_ready(task, candidate, step),
        }
    }

    /// A task that came back, with the place that its put asked for.
    fn returned(&self, task: TaskId, payload: Payload) -> Candidate {
        let terms = self.metadata.get(&task).and_then(|meta| meta.terms.as_ref());
        let priority = terms.and_then(|terms| terms.priority);
        let terms = priority.map(|_| Box::new(Terms { priority, ..Terms::default() }));
        // It may share its memory with tasks that are gone.
        self.ready.candidate(ready::apart(payload), terms)
    }

    fn give_up(&mut self, task: TaskId, payload: Payload, attempt: Failed, step: &mut Step) {
        let history = self.metadata.get(&task).map(|meta| meta.history.clone());
        let attempts = self.metadata.get(&task).map_or(0, |meta| meta.failures);
        let key = self.key(task);
        self.tally.dead += 1;
        self.drop_metadata(task, step);
        step.record(|| Change::Dead { task, attempt });
        let history = history.unwrap_or_default();
        let payload = ready::apart(payload);
        step.dead.push(DeadLetter { payload, task, key, attempts, history });
        self.report_resultless(task, step);
        self.finish(1, step);
    }

    /// Nobody wants a task any more, whoever has it: it counts as done, and its token is stale. False
    /// if it is not there, if its result waits for room, if whoever has it calls `task_done` itself,
    /// or if it is ready, was never in hand, and was put without terms: such tasks leave in their
    /// order alone.
    pub fn revoke(&mut self, task: TaskId, step: &mut Step) -> bool {
        let was_there = match self.leased.get(task) {
            Some((_, leased)) if leased.claimed || leased.hold.is_none() => false,
            Some((token, _)) => self.end_lease(token, step).is_some(),
            None => self.take_out(task, step).is_some(),
        };
        if was_there {
            self.drop_expired(task, step);
            self.admit(step);
        }
        was_there
    }

    pub(super) fn drop_expired(&mut self, task: TaskId, step: &mut Step) {
        self.tally.expired += 1;
        self.drop_metadata(task, step);
        step.record(|| Change::Expired { task });
        self.report_resultless(task, step);
        self.finish(1, step);
    }

    fn report_resultless(&self, task: TaskId, step: &mut Step) {
        if self.options.results.is_some() {
            step.resultless.push(task);
        }
    }

    /// Takes a task out of the hand of the token's holder.
    fn end_lease(&mut self, token: Token, step: &mut Step) -> Option<Box<Leased>> {
        self.end_leases(token.into(), step)
    }

    /// The same for the first of some, and those behind it that share its entry.
    fn end_leases(&mut self, tokens: TokenRun, step: &mut Step) -> Option<Box<Leased>> {
        let leased = self.leased.remove(tokens)?;
        self.discharge(leased.bytes(), step);
        if let Some(deadline) = leased.deadline {
            self.timers.remove(&(deadline, Timer::Lease(leased.token.task)));
        }
        if leased.is_pushed {
            self.count_ended(leased.holder, leased.is_started);
        }
        Some(leased)
    }

    /// The token of whoever has this token's task now.
    fn newest_of(&self, token: Token) -> Token {
        self.token(token.task).unwrap_or(token)
    }

    /// Settles a task that came back and that nobody has taken since, by the token that it had.
    fn settle_returned(&mut self, token: Token, step: &mut Step) -> bool {
        let last = self.metadata.get(&token.task).and_then(|meta| meta.last);
        last.is_some_and(|last| last.token == token) && self.take_out(token.task, step).is_some()
    }

    /// Takes a task with metadata out of the queue, wherever it stands.
    pub(super) fn take_out(&mut self, id: TaskId, step: &mut Step) -> Option<Payload> {
        if let Some(Delayed { candidate, until }) = self.delayed.remove(&id) {
            self.timers.remove(&(until, Timer::Due(id)));
            self.discharge(candidate.cost, step);
            return Some(candidate.payload);
        }
        let (task, cost) = self.ready.remove(id)?;
        self.discharge(cost, step);
        Some(task.payload)
    }
}
