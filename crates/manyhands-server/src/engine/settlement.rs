//! When a task in hand is settled, and what becomes of it when its session ends.
//!
//! Unmodified clients cannot say that they are through with a task; what they do next shows it.
//! `docs/delivery.md` has the rules in words.

use std::sync::Arc;
use std::time::Duration;

use super::sessions::{End, GRACE, InHand, Session, SessionId, UNDECIDED, Verdict};
use super::{Alarm, Engine, Hosted, QueueId, Reference, State};
use crate::queue::{
    Ack, Cause, DeadLetter, Delivery, Origin, Outcome, QueueOptions, Retry, TaskId, Terms, Token,
};

/// A session that is registered with the engine. Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct Presence {
    engine: Arc<Engine>,
    id: SessionId,
}

impl Presence {
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// The connection ended; `cut` if in the middle of something. The verdict waits until it is
    /// known whether the last reply was read, which [`Drop`] tells.
    pub(crate) fn depart(&self, cut: bool) {
        let mut state = self.engine.lock();
        let at = state.step.now;
        if let Some(session) = state.sessions.all.get_mut(&self.id) {
            session.end = Some(End { at, cut, checking: true });
        }
        self.engine.commit(&mut state);
    }
}

impl Presence {
    /// Forgets the session if it holds nothing: then there is nothing to give a verdict on. Whether it
    /// did.
    pub(crate) fn dismiss(&self) -> bool {
        let mut state = self.engine.lock();
        state.is_empty_handed(self.id) && state.sessions.remove(self.id).is_some()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut state = self.engine.lock();
        let now = state.step.now;
        if let Some(session) = state.sessions.all.get_mut(&self.id) {
            let end = session.end.get_or_insert(End { at: now, cut: true, checking: false });
            end.checking = false;
        }
        state.judge(self.id);
        self.engine.commit(&mut state);
    }
}

impl Engine {
    /// Registers a session.
    pub(crate) fn enter(self: &Arc<Self>, name: &str, peer: &Arc<str>) -> Presence {
        let mut state = self.lock();
        let id = SessionId(state.next());
        let session = Session::new(name, peer.clone(), state.step.now);
        state.sessions.all.insert(id, session);
        Presence { engine: self.clone(), id }
    }
}

impl State {
    /// Puts a task into the hand of the session that took it.
    pub(super) fn hold(
        &mut self,
        session: SessionId,
        queue: QueueId,
        token: Token,
        explicit: bool,
    ) {
        if explicit {
            return self.leases.hold(session, queue, token);
        }
        self.leases.drop(queue, token.task);
        if let Some(session) = self.sessions.all.get_mut(&session) {
            session.hand.push_back(InHand { queue, token });
        }
    }

    /// A task has reached whom it was for. That settles it where nobody answers for it.
    pub(super) fn receive(&mut self, session: SessionId, queue: QueueId, token: Token) {
        let for_good = session == SessionId::NOBODY
            || self.options(queue).is_some_and(|options| options.delivery == Delivery::Cpython);
        let is_held = |hosted: &Hosted| hosted.queue.holds(token);
        if for_good && self.queues.get(&queue).is_some_and(is_held) {
            self.settle(session, InHand { queue, token });
        }
    }

    /// A task did not reach whom it was for.
    pub(super) fn return_unread(&mut self, session: SessionId, queue: QueueId, token: Token) {
        if let Some(session) = self.sessions.all.get_mut(&session) {
            session.drop_from_hand(queue, token);
        }
        // Somebody else may have it by now.
        self.leases.end(queue, token);
        self.on(queue, |queue, step| queue.give_back(token, Cause::Unread, Retry::Backoff, step));
    }

    fn options(&self, queue: QueueId) -> Option<&QueueOptions> {
        self.queues.get(&queue).map(|hosted| hosted.queue.options())
    }

    /// Whether only a result settles the tasks of this queue.
    fn is_strict(&self, queue: QueueId) -> bool {
        self.options(queue).is_some_and(|options| options.results.is_some())
    }

    // ---- signals

    /// The next `get` from a queue without results shows that the task before is through.
    pub(super) fn settle_by_get(&mut self, session: SessionId, queue: QueueId) {
        if !self.is_strict(queue) || planted!(GetSettlesAll) {
            self.settle_all(session, |held| held.queue == queue);
        }
    }

    /// An accepted put to one queue shows the same for tasks from others.
    fn settle_by_put(&mut self, session: SessionId, to: QueueId) {
        let Some(it) = self.sessions.all.get(&session) else { return };
        if it.hand.is_empty() {
            return;
        }
        let strict: Vec<_> =
            it.hand.iter().map(|held| held.queue).filter(|from| self.is_strict(*from)).collect();
        self.settle_all(session, |held| held.queue != to && !strict.contains(&held.queue));
    }

    pub(super) fn settle_by_task_done(&mut self, session: SessionId, queue: QueueId) {
        let oldest = self.oldest(session, |held| held.queue == queue);
        if let Some(held) = oldest.filter(|_| !planted!(DoneSettlesNothing)) {
            self.settle(session, held);
        }
    }

    fn settle_all(&mut self, session: SessionId, is: impl Fn(&InHand) -> bool) {
        while let Some(held) = self.oldest(session, &is) {
            self.settle(session, held);
        }
    }

    fn oldest(&self, session: SessionId, is: impl Fn(&InHand) -> bool) -> Option<InHand> {
        self.sessions.all.get(&session)?.oldest(is)
    }

    fn settle(&mut self, session: SessionId, held: InHand) -> Option<Ack> {
        if let Some(session) = self.sessions.all.get_mut(&session) {
            session.drop_from_hand(held.queue, held.token);
        }
        self.on(held.queue, |queue, step| queue.ack_without_result(held.token, step))
    }

    // ---- results

    /// Whether a session has taken something that what it does next may settle.
    pub(super) fn has_in_hand(&self, session: SessionId) -> bool {
        self.sessions.all.get(&session).is_some_and(|session| !session.hand.is_empty())
    }

    /// The task that a put to `to` is the result of: the oldest in hand whose results go there.
    pub(super) fn task_answered_by(&self, session: SessionId, to: QueueId) -> Option<InHand> {
        let session = self.sessions.all.get(&session).filter(|it| !it.hand.is_empty())?;
        let to = self.queues.get(&to)?.name.as_deref()?;
        let is_answered = |held: &InHand| {
            let results = self.options(held.queue).and_then(|it| it.results.as_deref());
            results == Some(to)
        };
        if planted!(ResultOfTheNewest) {
            return session.hand.iter().rev().copied().find(is_answered);
        }
        session.oldest(is_answered)
    }

    /// Keeps a task for the result that is about to be put; `None` if it comes too late.
    pub(super) fn claim(&mut self, session: SessionId, held: InHand) -> Option<Origin> {
        let run = self.on(held.queue, |queue, step| queue.claim(held.token, step))?;
        let worker = self.sessions.all.get(&session).map(Session::worker);
        let Some(run) = run else {
            if let Some(session) = self.sessions.all.get_mut(&session) {
                session.drop_from_hand(held.queue, held.token);
            }
            tracing::warn!(worker = worker.as_deref(), "a result came too late and was refused");
            return None;
        };
        Some(Origin {
            queue: self.queues.get(&held.queue)?.name.clone().unwrap_or_default(),
            task: held.token.task,
            attempt: held.token.attempt,
            worker: worker.unwrap_or_default(),
            waited: run.waited,
            ran: run.ran,
            history: Vec::new(),
        })
    }

    /// The put that was to answer a task did not happen.
    pub(super) fn unclaim(&mut self, answers: Option<(QueueId, Token)>) {
        if let Some((queue, token)) = answers.filter(|_| !planted!(RefusedResultKeepsTask)) {
            self.on(queue, |queue, step| queue.unclaim(token, step));
        }
    }

    /// A put ended: if it was accepted, what it answers is settled in the same step.
    pub(super) fn after_put(
        &mut self,
        session: SessionId,
        to: QueueId,
        answers: Option<(QueueId, Token)>,
        outcome: &Outcome,
    ) {
        if !matches!(outcome, Outcome::Accepted(_) | Outcome::Known) {
            if let Some((queue, token)) = answers.filter(|_| planted!(RefusedCountsAsSettled)) {
                self.on(queue, |queue, _| queue.restore_settled([token].into_iter()));
            }
            return self.unclaim(answers);
        }
        if let Some((queue, token)) = answers {
            if !planted!(ResultWithoutAck) {
                self.on(queue, |queue, step| queue.ack(token, step));
            }
            if self.leases.end(queue, token) {
                // Our own client has said all that it means.
                self.on(queue, |queue, step| queue.conclude(token, step));
                return;
            }
            if let Some(session) = self.sessions.all.get_mut(&session) {
                session.drop_from_hand(queue, token);
            }
        }
        self.settle_by_put(session, to);
    }

    /// No result of this task will come: those of later ones need not wait for it.
    pub(super) fn skip_result(&mut self, from: QueueId, task: TaskId) {
        let Some(name) = self.queues.get(&from).and_then(|hosted| hosted.name.clone()) else {
            return;
        };
        let results = self.options(from).and_then(|options| options.results.as_deref());
        let results = results.filter(|_| !planted!(GivenUpIsWaitedFor));
        if let Some(&to) = results.and_then(|results| self.names.get(results)) {
            self.on(to, |queue, step| queue.skip(&name, task, step));
        }
    }

    /// Moves a task that was given up to the dead-letter queue, which is made if need be.
    pub(super) fn bury(&mut self, from: QueueId, letter: DeadLetter) {
        if planted!(DeadLetterLost) {
            return;
        }
        let DeadLetter { payload, task, attempts, history } = letter;
        self.leases.drop(from, task);
        let Some(hosted) = self.queues.get(&from) else { return };
        let Some(name) = hosted.name.clone() else {
            tracing::warn!(?history, "a task of a queue without a name was given up and is gone");
            return;
        };
        let dead = hosted.queue.options().dead.clone().unwrap_or_else(|| format!("{name}.dead"));
        tracing::warn!(queue = &*name, task = task.0, attempts, ?history, "task given up");
        let to = self.names.get(dead.as_str()).copied();
        let to =
            to.unwrap_or_else(|| self.host(Some(dead.into()), QueueOptions::default().attempts(0)));
        let payload = if self.holds_bodies(to) { payload } else { self.bring(from, task, payload) };
        let origin = Origin {
            queue: name,
            task,
            attempt: attempts,
            worker: "".into(),
            waited: Duration::ZERO,
            ran: Duration::ZERO,
            history,
        };
        let terms = Terms { origin: Some(Box::new(origin)), ..Terms::default() };
        self.on(to, |queue, step| queue.force(payload, Some(Box::new(terms)), step));
    }

    // ---- the end of a session

    /// Looks at a session that ended, and decides if it can be decided.
    pub(super) fn judge(&mut self, id: SessionId) {
        if planted!(NoVerdict) {
            return;
        }
        let now = self.step.now;
        let undecided = self.undecided_time(id);
        let Some(verdict) = self.sessions.verdict(id, now, undecided) else { return };
        let Some(end) = self.sessions.all.get(&id).and_then(|session| session.end) else { return };
        match verdict {
            Verdict::Clean if self.is_empty_handed(id) => {
                self.sessions.remove(id);
            }
            Verdict::Clean if self.sessions.is_released_by(id) => self.conclude(id, verdict),
            _ if now < end.at + GRACE => self.wait_for_verdict(id, end.at + GRACE),
            Verdict::Undecided => self.wait_for_verdict(id, end.at + undecided),
            _ => self.conclude(id, verdict),
        }
    }

    fn wait_for_verdict(&mut self, id: SessionId, until: crate::queue::Time) {
        self.deadlines.insert((until, Alarm::Session(id)));
    }

    fn is_empty_handed(&self, id: SessionId) -> bool {
        self.sessions.all.get(&id).is_some_and(|session| session.hand.is_empty())
            && self.leases.of(id).is_empty()
    }

    /// The longest that a queue in whose debt the session is lets an undecided task wait.
    fn undecided_time(&self, id: SessionId) -> Duration {
        let hand = self.sessions.all.get(&id).map(|session| &session.hand);
        let queues = hand.into_iter().flatten().map(|held| held.queue);
        let leases = queues.filter_map(|queue| self.options(queue)?.lease);
        leases.max().unwrap_or(UNDECIDED)
    }

    fn conclude(&mut self, id: SessionId, verdict: Verdict) {
        let Some(session) = self.sessions.remove(id) else { return };
        tracing::debug!(session = &*session.name, ?verdict, in_hand = session.hand.len());
        self.pass_leases_on(id, &session, verdict);
        match verdict {
            Verdict::Moved(to) => {
                let to = self.sessions.all.get_mut(&to);
                if let Some(to) = to.filter(|_| !planted!(HandLostInMove)) {
                    for held in session.hand.into_iter().rev() {
                        to.hand.push_front(held);
                    }
                }
            }
            Verdict::Clean => {
                for held in session.hand {
                    if self.is_strict(held.queue) && !planted!(ExitSettlesAll) {
                        self.give_back(held, Cause::Unanswered);
                    } else {
                        self.settle(SessionId::NOBODY, held);
                    }
                }
            }
            Verdict::Crashed | Verdict::Undecided => {
                let threads = self.sessions.note_crash(&session);
                for held in &session.hand {
                    self.give_back(*held, Cause::Crashed);
                }
                for thread in threads {
                    self.judge(thread);
                }
                self.release_for(&session);
            }
        }
    }

    /// Gives back, one count each, the references that a crashed client left behind and that no
    /// other session uses.
    fn release_for(&mut self, session: &Session) {
        for serial in &session.used {
            let Some(counted) = self.sessions.references.get(serial) else { continue };
            if counted.sessions.is_empty() {
                self.count_down(Reference { queue: counted.queue, serial: *serial });
            }
        }
    }

    pub(super) fn give_back(&mut self, held: InHand, cause: Cause) {
        self.on(held.queue, |queue, step| queue.give_back(held.token, cause, Retry::Backoff, step));
    }
}
