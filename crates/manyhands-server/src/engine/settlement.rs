//! When a task in hand is settled, and what becomes of it when its session ends.
//!
//! Unmodified clients cannot say that they are through with a task; what they do next shows it.
//! `docs/delivery.md` has the rules in words.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use manyhands::wire::announcement::announced;
use manyhands::wire::pickle::{Dialect, Payload, Value, to_payload};

use super::hand::{Hand, InHand};
use super::sessions::{End, GRACE, Session, SessionId, UNDECIDED, Verdict};
use super::{Alarm, Caller, CallerKind, Engine, Hosted, Promise, QueueId, Reference, State};
use crate::queue::{
    Ack, Cause, DeadLetter, Delivery, Origin, Outcome, Queue, QueueOptions, Retry, TaskId, Terms,
    Time, Token, Unasked,
};

/// Tasks that one turn of the timer, or one call, settles or gives back for a session. The rest has
/// to wait for the next, so that others have their turn.
pub(super) const SETTLED_AT_ONCE: usize = 256;

/// A session that is registered with the engine. Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct Presence {
    engine: Arc<Engine>,
    caller: Caller,
    /// Whether tasks are left to be settled that it has shown to be through.
    is_behind: Arc<AtomicBool>,
}

impl Presence {
    pub(crate) fn caller(&self) -> Caller {
        self.caller
    }

    /// Whether tasks are left that what the session did has shown to be through: they were too many
    /// to be settled at once.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Relaxed)
    }

    /// Settles some of these.
    pub(crate) fn settle_more(&self) -> Promise {
        let mut state = self.engine.lock();
        state.settle_through(self.caller.session);
        self.engine.commit(&mut state)
    }

    /// The connection ended `at` a moment ago; `cut` if in the middle of something. The verdict waits
    /// until it is known whether the last reply was read, which [`Drop`] tells.
    pub(crate) fn depart(&self, at: Time, cut: bool) {
        let mut state = self.engine.lock();
        state.sessions.end(self.caller.session, End { at, cut, checking: true });
        self.engine.commit(&mut state);
    }
}

impl Presence {
    /// Forgets the session if it holds nothing: then there is nothing to give a verdict on. Whether it
    /// did.
    pub(crate) fn dismiss(&self) -> bool {
        let mut state = self.engine.lock();
        let id = self.caller.session;
        state.is_empty_handed(id) && state.sessions.remove(id).is_some()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut state = self.engine.lock();
        let now = state.step.now;
        let end = End { at: now, cut: true, checking: false };
        if let Some(end) = state.sessions.end(self.caller.session, end) {
            end.checking = false;
        }
        state.judge(self.caller.session);
        self.engine.commit(&mut state);
    }
}

impl Engine {
    /// Registers a session.
    pub(crate) fn enter(self: &Arc<Self>, name: &str, peer: &Arc<str>) -> Presence {
        let mut state = self.lock();
        let id = SessionId(state.next());
        let now = state.step.now;
        let is_behind = state.sessions.enter(id, name, peer.clone(), now);
        let kind = match announced(name) {
            0 => CallerKind::Stock,
            _ => CallerKind::Own,
        };
        Presence { engine: self.clone(), caller: Caller { session: id, kind }, is_behind }
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
        let age = self.next();
        if let Some(session) = self.sessions.all.get_mut(&session) {
            session.hand.add(InHand { queue, token }, age);
            session.has_taken = true;
        }
    }

    fn hand(&mut self, session: SessionId) -> Option<&mut Hand> {
        self.sessions.all.get_mut(&session).map(|session| &mut session.hand)
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

    pub(super) fn options(&self, queue: QueueId) -> Option<&QueueOptions> {
        self.queues.get(&queue).map(|hosted| hosted.queue.options())
    }

    /// Whether only a result settles the tasks of this queue.
    fn is_strict(&self, queue: QueueId) -> bool {
        self.options(queue).is_some_and(|options| options.results.is_some())
    }

    // ---- signals

    /// The next `get` from a queue without results shows that the tasks before are through.
    pub(super) fn settle_by_get(&mut self, session: SessionId, queue: QueueId) {
        let is_shown = !self.is_strict(queue) || planted!(GetSettlesAll);
        if is_shown && !self.settle_of(session, queue, u64::MAX, &mut { SETTLED_AT_ONCE }) {
            self.note_through(session, &[queue]);
        }
    }

    /// An accepted put to one queue shows the same for tasks from others.
    fn settle_by_put(&mut self, session: SessionId, to: QueueId) {
        let Some(it) = self.sessions.all.get(&session).filter(|it| !it.hand.is_empty()) else {
            return;
        };
        let others = it.hand.queues().filter(|from| *from != to && !self.is_strict(*from));
        let others: Vec<_> = others.collect();
        let mut left = SETTLED_AT_ONCE;
        for (at, from) in others.iter().enumerate() {
            if !self.settle_of(session, *from, u64::MAX, &mut left) {
                return self.note_through(session, others.get(at..).unwrap_or_default());
            }
        }
    }

    /// All that a session has in hand of these queues is through.
    fn note_through(&mut self, session: SessionId, queues: &[QueueId]) {
        let Some(session) = self.sessions.all.get_mut(&session) else { return };
        for &queue in queues {
            if let Some((_, newest)) = session.hand.newest_of(queue) {
                session.through.insert(queue, newest.token.epoch);
            }
        }
        session.is_behind.store(true, Ordering::Relaxed);
    }

    /// Settles some of what is through.
    fn settle_through(&mut self, session: SessionId) {
        let mut left = SETTLED_AT_ONCE;
        while let Some(it) = self.sessions.all.get_mut(&session) {
            let Some((queue, last)) = it.through.first_key_value().map(|(at, last)| (*at, *last))
            else {
                return it.is_behind.store(false, Ordering::Relaxed);
            };
            if !self.settle_of(session, queue, last, &mut left) {
                return;
            }
            if let Some(it) = self.sessions.all.get_mut(&session) {
                it.through.remove(&queue);
            }
        }
    }

    pub(super) fn settle_by_task_done(&mut self, session: SessionId, queue: QueueId) {
        let oldest = self.oldest_of(session, queue);
        if let Some(held) = oldest.filter(|_| !planted!(DoneSettlesNothing)) {
            self.settle(session, held);
        }
    }

    /// Settles what a session has of one queue, up to this lease and up to `left` tasks; false if
    /// that is not all.
    fn settle_of(
        &mut self,
        session: SessionId,
        queue: QueueId,
        last: u64,
        left: &mut usize,
    ) -> bool {
        while let Some(held) = self.oldest_of(session, queue).filter(|it| it.token.epoch <= last) {
            if *left == 0 {
                return false;
            }
            *left -= 1;
            self.settle(session, held);
        }
        true
    }

    fn oldest_of(&self, session: SessionId, queue: QueueId) -> Option<InHand> {
        self.sessions.all.get(&session)?.hand.oldest_of(queue).map(|(_, held)| held)
    }

    fn drop_from_hand(&mut self, session: SessionId, held: InHand) {
        if let Some(hand) = self.hand(session) {
            hand.remove(held);
        }
    }

    fn settle(&mut self, session: SessionId, held: InHand) -> Option<Ack> {
        self.drop_from_hand(session, held);
        self.on(held.queue, |queue, step| queue.ack_without_result(held.token, step))
    }

    // ---- results

    /// Whether a session has taken something that what it does next may settle.
    pub(super) fn has_in_hand(&self, session: SessionId) -> bool {
        self.sessions.all.get(&session).is_some_and(|session| !session.hand.is_empty())
    }

    /// The task that a put to `to` is the result of: the oldest in hand whose results go there, or
    /// that of an earlier session of this thread, which was cut off with it; then it is in hand now.
    pub(super) fn task_answered_by(&mut self, session: SessionId, to: QueueId) -> Option<InHand> {
        if self.sources.is_empty() {
            return None;
        }
        let in_hand = self.oldest_answered_by(session, to);
        if in_hand.is_some() || planted!(CutOffAnswersNothing) {
            return in_hand;
        }
        let sources = self.sources.get(self.queues.get(&to)?.name.as_deref()?)?;
        let (age, held) = self.sessions.inherit(session, sources, self.step.now)?;
        self.hand(session)?.add(held, age);
        Some(held)
    }

    fn oldest_answered_by(&self, session: SessionId, to: QueueId) -> Option<InHand> {
        let hand = &self.sessions.all.get(&session).filter(|it| !it.hand.is_empty())?.hand;
        let sources = self.sources.get(self.queues.get(&to)?.name.as_deref()?)?.iter();
        if planted!(ResultOfTheNewest) {
            let newest = sources.filter_map(|from| hand.newest_of(*from));
            return newest.max_by_key(|(age, _)| *age).map(|(_, held)| held);
        }
        let oldest = sources.filter_map(|from| hand.oldest_of(*from));
        oldest.min_by_key(|(age, _)| *age).map(|(_, held)| held)
    }

    /// Whether a queue is there for results alone.
    pub(super) fn refuses_unasked(&self, queue: QueueId) -> bool {
        self.options(queue).is_some_and(|options| options.unasked == Unasked::Refuse)
    }

    /// Keeps a task for the result that is about to be put; `None` if it comes too late.
    pub(super) fn claim(&mut self, session: SessionId, held: InHand) -> Option<Origin> {
        let run = self.on(held.queue, |queue, step| queue.claim(held.token, step))?;
        let worker = self.sessions.all.get(&session).map(Session::worker);
        let Some(run) = run else {
            self.drop_from_hand(session, held);
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
            self.drop_from_hand(session, InHand { queue, token });
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
        let DeadLetter { payload, task, key, attempts, history } = letter;
        self.leases.drop(from, task);
        let Some(hosted) = self.queues.get(&from) else { return };
        let Some(name) = hosted.name.clone() else {
            let last = last_reason(&history);
            tracing::warn!(last, "a task of a queue without a name was given up and is gone");
            return;
        };
        let dead = hosted.queue.options().dead_letters_of(&name);
        let last = last_reason(&history);
        tracing::warn!(queue = &*name, task = task.0, attempts, last, to = &*dead, "task given up");
        let to = self.names.get(dead.as_str()).copied();
        let to =
            to.unwrap_or_else(|| self.host(Some(dead.into()), QueueOptions::default().attempts(0)));
        // A queue whose letters are needed in memory keeps its payloads there: nothing is read here.
        debug_assert!(self.holds_bodies(to) || !self.is_kept(from) || !Queue::is_away(&payload));
        let told = self.options(from).and_then(QueueOptions::failures_go_to);
        let told = told.and_then(|told| self.names.get(told).copied());
        let notice = told.and_then(|told| {
            Some((told, notice(&name, task, key.as_deref(), attempts, &history)?))
        });
        let origin = Origin {
            queue: name,
            task,
            attempt: attempts,
            worker: "".into(),
            waited: Duration::ZERO,
            ran: Duration::ZERO,
            history,
        };
        // The notice stands for the task's result: it takes its turn, and is no dead letter itself.
        let of_notice = Origin { history: Vec::new(), ..origin.clone() };
        self.force(to, payload, origin);
        if let Some((told, notice)) = notice {
            self.force(told, notice, of_notice);
        }
    }

    fn force(&mut self, to: QueueId, payload: Payload, origin: Origin) {
        let terms = Terms { origin: Some(Box::new(origin)), ..Terms::default() };
        self.on(to, |queue, step| queue.force(payload, Some(Box::new(terms)), step));
    }

    // ---- the end of a session

    /// Looks at a session that ended, and decides if it can be decided.
    pub(super) fn judge(&mut self, id: SessionId) {
        if planted!(NoVerdict) {
            return;
        }
        let Some(session) = self.sessions.all.get(&id) else { return };
        if let Some(verdict) = session.verdict {
            return self.carry_out(id, verdict);
        }
        let Some(end) = session.end.filter(|end| !end.checking) else { return };
        let now = self.step.now;
        if self.sessions.is_released_by(id) {
            return self.conclude(id, Verdict::Clean);
        }
        if now < end.at + GRACE {
            return self.judge_at(id, end.at + GRACE);
        }
        let undecided = self.undecided_time(id);
        match self.sessions.verdict(id, now, undecided) {
            None => {}
            Some(Verdict::Undecided) => self.judge_at(id, end.at + undecided),
            Some(verdict) => self.conclude(id, verdict),
        }
    }

    fn judge_at(&mut self, id: SessionId, time: Time) {
        self.deadlines.insert((time, Alarm::Session(id)));
    }

    /// Looks at sessions as soon as others have had their turn: there may be thousands.
    pub(super) fn judge_soon(&mut self, sessions: Vec<SessionId>) {
        let now = self.step.now;
        for session in sessions {
            self.judge_at(session, now);
        }
    }

    fn is_empty_handed(&self, id: SessionId) -> bool {
        self.sessions.all.get(&id).is_some_and(|session| session.hand.is_empty())
            && self.leases.of(id).next().is_none()
    }

    /// The longest that a queue in whose debt the session is lets an undecided task wait.
    fn undecided_time(&self, id: SessionId) -> Duration {
        let hand = self.sessions.all.get(&id).map(|session| &session.hand);
        let queues = hand.into_iter().flat_map(Hand::queues);
        let leases = queues.filter_map(|queue| self.options(queue)?.lease);
        leases.max().unwrap_or(UNDECIDED)
    }

    /// The verdict on a session is found.
    fn conclude(&mut self, id: SessionId, verdict: Verdict) {
        let Some(session) = self.sessions.all.get_mut(&id) else { return };
        session.verdict = Some(verdict);
        tracing::debug!(session = &*session.name, ?verdict, in_hand = session.hand.len());
        if verdict == Verdict::Crashed {
            let threads = self.sessions.note_crash(id);
            self.judge_soon(threads);
        }
        self.carry_out(id, verdict);
    }

    /// Decides on what a session had, some of it at a time, and then forgets the session.
    fn carry_out(&mut self, id: SessionId, verdict: Verdict) {
        let mut left = SETTLED_AT_ONCE;
        self.pass_leases_on(id, verdict, &mut left);
        self.empty_hand(id, verdict, &mut left);
        if left == 0 && !self.is_empty_handed(id) {
            return self.judge_at(id, self.step.now);
        }
        let Some(session) = self.sessions.remove(id) else { return };
        if verdict == Verdict::Crashed {
            self.release_for(&session);
        }
        self.sessions.remember(id, session, self.step.now);
    }

    fn empty_hand(&mut self, id: SessionId, verdict: Verdict, left: &mut usize) {
        if let Verdict::Moved(to) = verdict {
            return self.move_hand(id, to);
        }
        while *left > 0
            && let Some(session) = self.sessions.all.get_mut(&id)
            && let Some((age, held)) = session.hand.pop()
        {
            *left -= 1;
            let last = session.through.get(&held.queue);
            if last.is_some_and(|last| held.token.epoch <= *last) {
                self.settle(SessionId::NOBODY, held);
                continue;
            }
            if self.is_strict(held.queue)
                && let Some(session) = self.sessions.all.get_mut(&id)
            {
                session.leave(held, age);
            }
            match verdict {
                Verdict::Clean if !self.is_strict(held.queue) || planted!(ExitSettlesAll) => {
                    self.tell_left(held.queue, id);
                    self.settle(SessionId::NOBODY, held);
                }
                Verdict::Clean => self.give_back(held, Cause::Unanswered),
                _ => self.give_back(held, Cause::Crashed),
            }
        }
    }

    fn move_hand(&mut self, from: SessionId, to: SessionId) {
        let Some(from) = self.sessions.all.get_mut(&from) else { return };
        let (hand, through) = (std::mem::take(&mut from.hand), std::mem::take(&mut from.through));
        let to = self.sessions.all.get_mut(&to).filter(|_| !planted!(HandLostInMove));
        let Some(to) = to else { return };
        to.hand.take_over(hand);
        to.is_behind.fetch_or(!through.is_empty(), Ordering::Relaxed);
        to.through.extend(through);
    }

    /// Gives back, one count each, the references that a crashed client left behind and that no
    /// other session uses.
    fn release_for(&mut self, session: &Session) {
        for serial in &session.used {
            let Some(counted) = self.sessions.references.get(serial) else { continue };
            if !self.sessions.are_using(*serial) {
                self.count_down(Reference { queue: counted.queue, serial: *serial });
            }
        }
    }

    pub(super) fn give_back(&mut self, held: InHand, cause: Cause) {
        self.on(held.queue, |queue, step| queue.give_back(held.token, cause, Retry::Backoff, step));
    }
}

/// Why a task failed the last time.
fn last_reason(history: &[Cause]) -> String {
    history.last().map(shortened).unwrap_or_default()
}

/// Why a task failed, cut short.
fn shortened(cause: &Cause) -> String {
    const SHOWN_CHARS_MAX: usize = 200;
    let reason = cause.to_string();
    let shown: String = reason.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < reason.len() { shown + "..." } else { shown }
}

/// What a master is told of a task that was given up, as every Python reads it.
fn notice(
    queue: &str,
    task: TaskId,
    key: Option<&[u8]>,
    attempts: u32,
    history: &[Cause],
) -> Option<Payload> {
    let key = key.map_or(Value::None, |key| match std::str::from_utf8(key) {
        Ok(text) => Value::Str(text.to_owned()),
        Err(_) => Value::Bytes(key.to_vec()),
    });
    let reasons = history.iter().map(|cause| Value::Str(shortened(cause))).collect();
    let named = |name: &str, value| (Value::Str(name.to_owned()), value);
    let notice = Value::Dict(vec![
        named("given_up", Value::Bool(true)),
        named("queue", Value::Str(queue.to_owned())),
        named("task", Value::Int(i64::try_from(task.0).unwrap_or(i64::MAX))),
        named("key", key),
        named("attempts", Value::Int(attempts.into())),
        named("reasons", Value::List(reasons)),
    ]);
    to_payload(&notice, Dialect::Python3).ok()
}
