//! When a task in hand is settled, and what becomes of it when its session ends.
//!
//! Unmodified clients cannot say that they are through with a task; what they do next shows it.
//! `docs/delivery.md` has the rules in words.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::engine::hands::hand::Hand;
use crate::engine::hands::sessions::{GRACE, UNDECIDED};
use crate::engine::hands::{Session, Verdict};
use crate::engine::{Alarm, InHand, QueueId, Reference, SessionId, State};
use crate::queue::{Ack, Cause, Time};

/// Tasks that one turn of the timer, or one call, settles or gives back for a session. The rest has
/// to wait for the next, so that others have their turn.
pub(in crate::engine) const SETTLED_AT_ONCE: usize = 256;

impl State {
    fn hand(&mut self, session: SessionId) -> Option<&mut Hand> {
        self.sessions.all.get_mut(&session).map(|session| &mut session.hand)
    }

    /// Whether only a result settles the tasks of this queue.
    fn is_strict(&self, queue: QueueId) -> bool {
        self.options(queue).is_some_and(|options| options.results.is_some())
    }

    // ---- signals

    /// The next `get` from a queue without results shows that the tasks before are through.
    pub(in crate::engine) fn settle_by_get(&mut self, session: SessionId, queue: QueueId) {
        let is_shown = !self.is_strict(queue) || planted!(GetSettlesAll);
        if is_shown && !self.settle_of(session, queue, u64::MAX, &mut { SETTLED_AT_ONCE }) {
            self.note_through(session, &[queue]);
        }
    }

    /// An accepted put to one queue shows the same for tasks from others.
    pub(in crate::engine) fn settle_by_put(&mut self, session: SessionId, to: QueueId) {
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
    pub(in crate::engine) fn settle_through(&mut self, session: SessionId) {
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

    pub(in crate::engine) fn settle_by_task_done(&mut self, session: SessionId, queue: QueueId) {
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

    pub(in crate::engine) fn drop_from_hand(&mut self, session: SessionId, held: InHand) {
        if let Some(hand) = self.hand(session) {
            hand.remove(held);
        }
    }

    pub(in crate::engine) fn settle(&mut self, session: SessionId, held: InHand) -> Option<Ack> {
        self.drop_from_hand(session, held);
        self.on(held.queue, |queue, step| queue.ack_without_result(held.token, step))
    }

    // ---- results

    /// Whether a session has taken something that what it does next may settle.
    pub(in crate::engine) fn has_in_hand(&self, session: SessionId) -> bool {
        self.sessions.all.get(&session).is_some_and(|session| !session.hand.is_empty())
    }

    /// The task that a put to `to` is the result of: the oldest in hand whose results go there, or
    /// that of an earlier session of this thread, which was cut off with it; then it is in hand now.
    pub(in crate::engine) fn task_answered_by(
        &mut self,
        session: SessionId,
        to: QueueId,
    ) -> Option<InHand> {
        if self.directory.sources.is_empty() {
            return None;
        }
        let in_hand = self.oldest_answered_by(session, to);
        if in_hand.is_some() || planted!(CutOffAnswersNothing) {
            return in_hand;
        }
        let sources = self.directory.sources.get(self.queues.get(&to)?.name.as_deref()?)?;
        let (age, held) = self.sessions.inherit(session, sources, self.step.now)?;
        self.hand(session)?.add(held, age);
        Some(held)
    }

    fn oldest_answered_by(&self, session: SessionId, to: QueueId) -> Option<InHand> {
        let hand = &self.sessions.all.get(&session).filter(|it| !it.hand.is_empty())?.hand;
        let sources = self.directory.sources.get(self.queues.get(&to)?.name.as_deref()?)?.iter();
        if planted!(ResultOfTheNewest) {
            let newest = sources.filter_map(|from| hand.newest_of(*from));
            return newest.max_by_key(|(age, _)| *age).map(|(_, held)| held);
        }
        let oldest = sources.filter_map(|from| hand.oldest_of(*from));
        oldest.min_by_key(|(age, _)| *age).map(|(_, held)| held)
    }

    // ---- the end of a session

    /// Looks at a session that ended, and decides if it can be decided.
    pub(in crate::engine) fn judge(&mut self, id: SessionId) {
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
    pub(in crate::engine) fn judge_soon(&mut self, sessions: Vec<SessionId>) {
        let now = self.step.now;
        for session in sessions {
            self.judge_at(session, now);
        }
    }

    pub(in crate::engine) fn is_empty_handed(&self, id: SessionId) -> bool {
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
        let worker = self.sessions.all.get(&id).map(Session::worker);
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
                Verdict::Clean => self.give_back(held, Cause::Unanswered, worker.clone()),
                _ => self.give_back(held, Cause::Crashed, worker.clone()),
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
}
