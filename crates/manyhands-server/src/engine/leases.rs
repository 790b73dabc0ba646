//! How tasks get out and back, and the leases that only their token settles: which token has which
//! task, and the session that holds it.
//!
//! A token is what names a lease from outside; a holder is the session that the lease ends with. A
//! task that is out without one is in the [hand](super::hands) of a stock client.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;
use manyhands::wire::text::repr;
use manyhands::wire::token::LeaseToken;

use crate::engine::hands::{Session, Verdict};
use crate::engine::{Caller, Hosted, InHand, Promise, QueueId, SessionId, State, Ticket};
use crate::error::CallError;
use crate::queue::{Ack, Cause, Delivery, Failed, Queue, Retry, TaskId, Token};

/// What settles a task that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SettledBy {
    /// A verb that names the token of its lease.
    Token,
    /// What its session does next, as for a stock client, which knows of no tokens.
    Session,
}

/// Tasks that were taken by token, and the session that each lives as long as. Nothing is known of a
/// lease that is over, however it ended.
#[derive(Debug, Default)]
pub(super) struct Leases {
    holders: HashMap<(QueueId, TaskId), (SessionId, Token)>,
    held: BTreeSet<(SessionId, QueueId, TaskId)>,
}

impl Leases {
    /// Puts a lease into the hand of a session, whoever had it.
    pub(super) fn hold(&mut self, session: SessionId, queue: QueueId, token: Token) {
        self.drop(queue, token.task);
        self.holders.insert((queue, token.task), (session, token));
        self.held.insert((session, queue, token.task));
    }

    /// Who has leased this task, and by which token.
    pub(super) fn holder(&self, queue: QueueId, task: TaskId) -> Option<(SessionId, Token)> {
        self.holders.get(&(queue, task)).copied()
    }

    /// Forgets the lease of this token, if that still has its task; false if not.
    pub(super) fn end(&mut self, queue: QueueId, token: Token) -> bool {
        let is_holder = self.holder(queue, token.task).is_some_and(|(_, held)| held == token);
        is_holder && self.drop(queue, token.task)
    }

    /// Forgets whoever has leased this task; false if nobody has.
    pub(super) fn drop(&mut self, queue: QueueId, task: TaskId) -> bool {
        let Some((session, _)) = self.holders.remove(&(queue, task)) else { return false };
        self.held.remove(&(session, queue, task))
    }

    /// Whether a session has any.
    pub(super) fn has_any(&self, session: SessionId) -> bool {
        let from = (session, QueueId::MIN, TaskId(0));
        self.held.range(from..).next().is_some_and(|(holder, ..)| *holder == session)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.holders.len(), self.held.len());
        self.holders.len()
    }

    /// What a session has.
    pub(super) fn of(&self, session: SessionId) -> impl Iterator<Item = InHand> {
        let all = (session, QueueId::MIN, TaskId(0))..=(session, QueueId::MAX, TaskId(u64::MAX));
        let token = |&(_, queue, task): &(SessionId, QueueId, TaskId)| {
            let (_, token) = self.holders.get(&(queue, task))?;
            Some(InHand { queue, token: *token })
        };
        self.held.range(all).filter_map(token)
    }
}

impl State {
    /// Puts a task into the hand of the session that took it.
    pub(super) fn hold(
        &mut self,
        session: SessionId,
        queue: QueueId,
        token: Token,
        settled_by: SettledBy,
    ) {
        if settled_by == SettledBy::Token {
            return self.leases.hold(session, queue, token);
        }
        self.leases.drop(queue, token.task);
        let age = self.next();
        if let Some(session) = self.sessions.all.get_mut(&session) {
            session.hand.add(InHand { queue, token }, age);
            session.has_taken = true;
        }
    }

    /// A task has reached whom it was for. That settles it where nobody answers for it.
    pub(super) fn receive(&mut self, session: SessionId, queue: QueueId, token: Token) {
        let is_held = |hosted: &Hosted| hosted.queue.holds(token);
        if self.takes_for_good(session, queue) && self.queues.get(&queue).is_some_and(is_held) {
            self.settle(session, InHand { queue, token });
        }
    }

    /// Whether nobody answers for what this session takes from a queue once it has it.
    pub(super) fn takes_for_good(&self, session: SessionId, queue: QueueId) -> bool {
        session == SessionId::NOBODY
            || self.options(queue).is_some_and(|options| options.delivery == Delivery::Cpython)
    }

    /// A task did not reach whom it was for.
    pub(super) fn return_unread(&mut self, session: SessionId, queue: QueueId, token: Token) {
        self.drop_from_hand(session, InHand { queue, token });
        // Somebody else may have it by now.
        self.leases.end(queue, token);
        self.on(queue, |queue, step| queue.give_back(token, Cause::Unread, Retry::Backoff, step));
    }

    /// A task comes back from `worker`.
    pub(super) fn give_back(&mut self, held: InHand, cause: Cause, worker: Option<Arc<str>>) {
        let attempt = Failed { cause, worker };
        let InHand { queue, token } = held;
        self.on(queue, |queue, step| queue.give_back(token, attempt, Retry::Backoff, step));
    }

    /// Does what is due in a queue. Who has a lease that runs out is noted before it does.
    pub(super) fn expire_in(&mut self, queue: QueueId) {
        let Some(hosted) = self.queues.get(&queue) else { return };
        let worker = |task| {
            let (session, _) = self.leases.holder(queue, task)?;
            Some((task, self.sessions.all.get(&session)?.worker()))
        };
        self.step.overdue = hosted.queue.overdue(self.step.now).filter_map(worker).collect();
        self.on(queue, Queue::expire);
        self.step.overdue.clear();
    }

    /// Settles a task that needs no result.
    pub(super) fn ack_alone(&mut self, InHand { queue, token }: InHand) -> Result<(), CallError> {
        if let Some(results) = self.options(queue).and_then(|it| it.results.clone()) {
            return Err(CallError::NoResult(results));
        }
        let ack = self.on(queue, |queue, step| {
            let ack = queue.ack_without_result(token, step);
            if ack == Ack::Accepted {
                queue.conclude(token, step);
            }
            ack
        });
        match ack.ok_or(CallError::NoQueue)? {
            Ack::Accepted => {
                self.leases.end(queue, token);
                Ok(())
            }
            Ack::AcceptedBefore => Err(CallError::SettledBefore),
            Ack::Stale => Err(CallError::StaleToken),
        }
    }

    /// Refuses a token. Who is told that it settled its task waits until that is durable.
    pub(super) fn refuse_token<T>(&self, queue: QueueId, error: CallError) -> Ticket<T> {
        let promise = match error {
            CallError::SettledBefore => self.promise_of_all(queue),
            _ => Promise::NOTHING,
        };
        Ticket { called: Err(error), promise }
    }

    /// The lease that a token names, unless it was settled or may be about to be.
    pub(super) fn lease(
        &mut self,
        caller: Caller,
        queue: QueueId,
        token: LeaseToken,
    ) -> Result<InHand, CallError> {
        let hosted = self.queues.get(&queue).ok_or(CallError::NoQueue)?;
        let Some(token) = hosted.signer.verify(token) else {
            self.refuse_forged(caller.session, queue);
            return Err(CallError::StaleToken);
        };
        if hosted.queue.is_claimed(token) {
            // It may still be refused: nobody must be told that it was kept.
            let is_told_so = planted!(AnsweringIsSettled);
            return Err(if is_told_so { CallError::SettledBefore } else { CallError::Answering });
        }
        let is_over = !hosted.queue.holds(token) || planted!(RefusedCountsAsSettled);
        if is_over && hosted.queue.has_settled(token) {
            return Err(CallError::SettledBefore);
        }
        Ok(InHand { queue, token })
    }

    /// Counts a token that we did not give out, or not for this queue.
    fn refuse_forged(&mut self, session: SessionId, queue: QueueId) {
        let peer = self.sessions.all.get(&session).map(Session::worker);
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

    /// A session ended: what it had leased, up to `left` tasks, goes to another of the same client,
    /// or back.
    pub(super) fn pass_leases_on(&mut self, id: SessionId, verdict: Verdict, left: &mut usize) {
        let leases: Vec<_> = self.leases.of(id).take(*left).collect();
        if leases.is_empty() || planted!(LeasesNotGivenBack) {
            return;
        }
        *left -= leases.len();
        let heir = match verdict {
            Verdict::Moved(heir) => Some(heir),
            _ => self.sessions.all.get(&id).and_then(|session| self.sessions.heir(session)),
        };
        let worker = self.sessions.all.get(&id).map(Session::worker);
        for held in leases {
            match heir {
                Some(heir) => self.leases.hold(heir, held.queue, held.token),
                None => {
                    self.leases.drop(held.queue, held.token.task);
                    let is_clean = verdict == Verdict::Clean;
                    let cause = if is_clean { Cause::Unanswered } else { Cause::Crashed };
                    self.give_back(held, cause, worker.clone());
                }
            }
        }
    }
}
