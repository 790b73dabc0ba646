//! What becomes of the tasks in hand when their session ends.
//!
//! `docs/delivery.md` has the rules in words.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::sessions::{End, GRACE, Session, UNDECIDED, Verdict};
use super::{Alarm, Hand, Hands, SETTLED_AT_ONCE};
use crate::engine::{Caller, Demand, Fate, Held, QueueId, Reference};
use crate::frontend::classic::references::Less;
use crate::queue::{Cause, Time};

impl Session {
    /// All that the session has in hand of this queue is through.
    pub(super) fn mark_through(&mut self, queue: QueueId) {
        if let Some((_, newest)) = self.hand.newest_of(queue) {
            self.through.insert(queue, newest.token.lease);
        }
        self.is_behind.store(true, Ordering::Relaxed);
    }
}

impl Hands {
    /// Marks a session as ended; the first time counts. Its verdict waits until it is known
    /// whether its last reply was read.
    pub(in crate::frontend::classic) fn depart(&mut self, session: Caller, at: Time, cut: bool) {
        self.sessions.end(session, End { at, cut, checking: true });
    }

    /// That is known now.
    pub(in crate::frontend::classic) fn end(&mut self, session: Caller, now: Time) {
        let end = End { at: now, cut: true, checking: false };
        if let Some(end) = self.sessions.end(session, end) {
            end.checking = false;
        }
    }

    /// Forgets a session that has nothing in hand, and so needs no verdict; whether it did.
    pub(in crate::frontend::classic) fn dismiss(&mut self, session: Caller) -> bool {
        let is_idle = self.sessions.all.get(&session).is_some_and(|it| it.hand.is_empty());
        is_idle && self.sessions.remove(session).is_some()
    }

    /// Looks at a session that ended, and decides if it can be decided. What is to be done then, up to
    /// [`SETTLED_AT_ONCE`] tasks of it. `undecided` says how long these queues let a task wait whose
    /// session's end explains nothing.
    pub(in crate::frontend::classic) fn judge(
        &mut self,
        id: Caller,
        now: Time,
        undecided: impl FnOnce(&mut dyn Iterator<Item = QueueId>) -> Option<Duration>,
    ) -> Option<Vec<(Held, Fate)>> {
        if planted!(NoVerdict) {
            return None;
        }
        let session = self.sessions.all.get(&id)?;
        if let Some(verdict) = session.verdict {
            return self.part(id, verdict);
        }
        let end = session.end.filter(|end| !end.checking)?;
        if self.sessions.is_released_by(id) {
            return self.conclude(id, Verdict::Clean, now);
        }
        if now < end.at + GRACE {
            self.judge_at(id, end.at + GRACE);
            return None;
        }
        let mut verdict = self.sessions.verdict(id)?;
        if verdict == Verdict::Undecided {
            let hand = self.sessions.all.get(&id).map(|session| &session.hand);
            let until = undecided(&mut hand.into_iter().flat_map(Hand::queues));
            let until = end.at + until.unwrap_or(UNDECIDED);
            if now < until {
                self.judge_at(id, until);
                return None;
            }
            verdict = Verdict::Crashed;
        }
        self.conclude(id, verdict, now)
    }

    fn judge_at(&mut self, id: Caller, time: Time) {
        self.deadlines.insert((time, Alarm::Session(id)));
    }

    /// Looks at sessions as soon as others have had their turn: there may be thousands.
    pub(super) fn judge_soon(&mut self, sessions: Vec<Caller>, now: Time) {
        for session in sessions {
            self.judge_at(session, now);
        }
    }

    /// The verdict on a session is found.
    fn conclude(&mut self, id: Caller, verdict: Verdict, now: Time) -> Option<Vec<(Held, Fate)>> {
        let session = self.sessions.all.get_mut(&id)?;
        session.verdict = Some(verdict);
        tracing::debug!(session = &*session.name, ?verdict, in_hand = session.hand.len());
        match verdict {
            Verdict::Crashed => {
                let threads = self.sessions.mark_crashed(id);
                self.judge_soon(threads, now);
            }
            Verdict::Moved(to) => self.move_hand(id, to),
            Verdict::Clean | Verdict::Undecided => {}
        }
        self.part(id, verdict)
    }

    /// Some of what a session had is in hand no more, and what becomes of it.
    fn part(&mut self, id: Caller, verdict: Verdict) -> Option<Vec<(Held, Fate)>> {
        let session = self.sessions.all.get_mut(&id)?;
        let mut tasks = Vec::new();
        if let Verdict::Moved(to) = verdict {
            let first = session.moved.len().saturating_sub(SETTLED_AT_ONCE);
            tasks.extend(session.moved.drain(first..).map(|held| (held, Fate::With(to))));
        }
        while tasks.len() < SETTLED_AT_ONCE
            && let Some((age, held, demand)) = session.hand.pop()
        {
            let last = session.through.get(&held.queue);
            if last.is_some_and(|last| held.token.lease <= *last) {
                tasks.push((held, Fate::Done));
                continue;
            }
            let is_strict = matches!(demand, Demand::Result(_));
            if is_strict {
                session.leave(held, demand, age);
            }
            let fate = match verdict {
                Verdict::Clean if planted!(ExitSettlesAll) => Fate::Left,
                Verdict::Clean if !is_strict => Fate::Left,
                Verdict::Clean => Fate::Back(Cause::Unanswered),
                _ => Fate::Back(Cause::Crashed),
            };
            tasks.push((held, fate));
        }
        Some(tasks)
    }

    /// That has been done, and perhaps there is more. If not, the session is forgotten, and true. What
    /// a crashed client left behind is added to `released`: the references of which no other session
    /// uses any, one count each.
    pub(in crate::frontend::classic) fn parted(
        &mut self,
        id: Caller,
        now: Time,
        released: &mut Vec<Reference>,
    ) -> bool {
        let Some(session) = self.sessions.all.get(&id) else { return false };
        if !session.hand.is_empty() || !session.moved.is_empty() {
            self.judge_at(id, now);
            return false;
        }
        let verdict = session.verdict;
        let Some(session) = self.sessions.remove(id) else { return false };
        if verdict == Some(Verdict::Crashed) {
            self.release_for(&session, now, released);
        }
        self.sessions.remember(id, session, now);
        true
    }

    /// What a session had goes to another one of the same thread. The engine is told of it bit by bit.
    fn move_hand(&mut self, from: Caller, to: Caller) {
        let Some(from) = self.sessions.all.get_mut(&from) else { return };
        let (hand, through) = (std::mem::take(&mut from.hand), std::mem::take(&mut from.through));
        from.moved = hand.iter().collect();
        if planted!(HandLostInMove) {
            return;
        }
        let Some(to) = self.sessions.all.get_mut(&to) else { return };
        to.hand.take_over(hand);
        to.is_behind.fetch_or(!through.is_empty(), Ordering::Relaxed);
        for (queue, last) in through {
            let newest = to.through.entry(queue).or_default();
            *newest = last.max(*newest);
        }
    }

    fn release_for(&mut self, session: &Session, now: Time, released: &mut Vec<Reference>) {
        for &serial in &session.used {
            let Some(reference) = self.sessions.references.reference(serial) else { continue };
            if !self.sessions.are_using(serial)
                && let Less::Gone(_) = self.decref(serial, now)
            {
                released.push(reference);
            }
        }
    }
}
