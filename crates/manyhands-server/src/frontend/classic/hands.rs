//! What a stock client means: a pure state machine that holds tokens for clients that know of none.
//!
//! An unmodified Python client cannot say that it is through with a task, nor how it left. What it
//! does next shows it. This is the one place with the rule that the task of a killed stock worker
//! goes back: [`verdicts`] has it. `docs/delivery.md` has all of these rules in words.
//!
//! No socket, no clock, no `async`, no queue: time and what the engine knows are arguments, and what
//! comes out is tokens with what the engine is to do about them. The life of a task that a stock worker
//! takes:
//!
//! ```text
//!  the worker's session        Hands                                      the engine's verb
//!
//!  get ──────────────────────▶ through_by_get: tasks before are through ─▶ ack(through), get
//!      ◀── the task ────────── take: its token is in the session's hand ◀─ Task
//!  put of its result ────────▶ settled_by_put: the oldest it answers ────▶ put + ack, one step
//!  put of anything else ─────▶ settled_by_put: tasks before are through ─▶ put, ack(through)
//!  task_done ────────────────▶ settled_by_task_done: the oldest ─────────▶ ack, task_done
//!  reply not read ───────────▶ lose ─────────────────────────────────────▶ give back, unread
//!
//!  end of the connection ────▶ end: the session waits for its verdict
//!      1.2 s later, or once    judge: clean, moved, crashed
//!      all is given back           clean    ─▶ ack, or give back where a result is demanded
//!                                  moved    ─▶ transfer to the thread's new session
//!                                  crashed  ─▶ give back, one attempt used up
//! ```
//!
//! - [`hand`]: what a session has in hand, that is, took and has not settled yet;
//! - [`sessions`]: who is connected, and the evidence of how those who left have left;
//! - [`verdicts`]: what becomes of tasks in hand when their session ends.

mod hand;
mod sessions;
#[cfg(test)]
mod tests;
mod verdicts;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::hand::Hand;
use self::sessions::Sessions;
use super::references::{Less, Looked, References};
use crate::config::Limits;
use crate::engine::{Caller, Demand, Held, QueueId, Reference, Settles, Tokens};
use crate::queue::Time;

/// Tasks that one turn of the timer, or one call, settles or gives back for a session. The rest has
/// to wait for the next, so that others have their turn.
pub(super) const SETTLED_AT_ONCE: usize = 256;
/// Tasks whose time was up that a hand keeps, so that late results of them are known as such.
const LAPSED_KEPT: usize = 16;

/// Who is connected, what each has in hand, and the references that they use.
#[derive(Debug)]
pub(super) struct Hands {
    sessions: Sessions,
    /// When it is next to be looked at sessions that have ended.
    deadlines: BTreeSet<(Time, Alarm)>,
    /// The same of references that may be unused. As for names, no timer is set for that: it is looked
    /// when a client connects, and when the timer turns for something else.
    unused: BTreeSet<(Time, Alarm)>,
    /// What the timer sleeps for.
    armed: Option<Time>,
    /// How many tasks were taken so far.
    taken: u64,
}

/// What a deadline is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    /// A session that has ended waits for its verdict.
    Session(Caller),
    /// A reference may be unused.
    Reference(u64),
}

impl Hands {
    pub(super) fn within(limits: &Limits) -> Self {
        Self {
            sessions: Sessions::within(limits.memory_bytes_max, References::within(limits)),
            deadlines: BTreeSet::new(),
            unused: BTreeSet::new(),
            armed: None,
            taken: 0,
        }
    }

    /// What it takes to remember references and who uses which, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.sessions.references.bytes() + self.sessions.use_bytes()
    }

    pub(super) fn references(&self) -> &References {
        &self.sessions.references
    }

    /// Takes a session in. What is returned says whether it is [behind](Self::settle_more).
    pub(super) fn enter(
        &mut self,
        session: Caller,
        name: Arc<str>,
        address: Arc<str>,
        now: Time,
    ) -> Arc<AtomicBool> {
        self.sessions.enter(session, name, address, now)
    }

    fn hand(&mut self, session: Caller) -> Option<&mut Hand> {
        self.sessions.all.get_mut(&session).map(|session| &mut session.hand)
    }

    // ---- tasks that are taken

    /// A session has taken a task, for which its queue demands something.
    pub(super) fn take(&mut self, session: Caller, held: Held, demand: Demand) {
        self.taken += 1;
        let age = self.taken;
        let Some(session) = self.sessions.all.get_mut(&session) else { return };
        session.has_taken = true;
        if demand != Demand::Nothing {
            session.hand.add(held, demand, age);
        }
    }

    /// A session was given a task, which went back because nobody waited for it any more.
    pub(super) fn miss(&mut self, session: Caller) {
        if let Some(session) = self.sessions.all.get_mut(&session) {
            session.has_taken = true;
        }
    }

    /// A session has a task no more.
    pub(super) fn lose(&mut self, session: Caller, held: Held) {
        if let Some(hand) = self.hand(session) {
            hand.remove(held);
        }
    }

    /// Whether a session has taken something that what it does next may settle. `lapsed` says which of
    /// some tasks it has no more because their time was up: of these only a few stay in hand.
    pub(super) fn has_tasks(
        &mut self,
        session: Caller,
        lapsed: impl FnOnce(&[Held]) -> Vec<Held>,
    ) -> bool {
        let Some(hand) = self.hand(session).filter(|hand| !hand.is_empty()) else { return false };
        let len = hand.len();
        let looked = hand.look_on(LAPSED_KEPT);
        let lapsed = lapsed(&looked);
        drop_lapsed(hand, &lapsed);
        lapsed.len() < len
    }

    // ---- what calls show

    /// The next `get` from a queue without results shows that the tasks before are through: they are
    /// in hand no more.
    pub(super) fn through_by_get(&mut self, session: Caller, queue: QueueId) -> Tokens {
        let mut through = Tokens::default();
        let Some(session) = self.sessions.all.get_mut(&session) else { return through };
        let hand = &mut session.hand;
        if let Some((held, demand)) = hand.single() {
            let is_strict =
                if planted!(GetSettlesAll) { false } else { matches!(demand, Demand::Result(_)) };
            if held.queue == queue && !is_strict {
                hand.pop();
                through.push(held);
            }
            return through;
        }
        if hand.is_empty() {
            return through;
        }
        let is_strict = if planted!(GetSettlesAll) { false } else { hand.is_strict(queue) };
        if is_strict {
            return through;
        }
        while let Some((_, held)) = hand.oldest_of(queue) {
            if through.len() == SETTLED_AT_ONCE {
                session.mark_through(queue);
                break;
            }
            hand.remove(held);
            through.push(held);
        }
        through
    }

    /// Whether what a session puts may settle something.
    pub(super) fn may_settle(&self, session: Caller) -> bool {
        let hand = self.sessions.all.get(&session).map(|session| &session.hand);
        hand.is_some_and(|hand| !hand.is_empty()) || self.may_inherit()
    }

    /// What an accepted put to a queue settles: the task that the item is the result of, which is the
    /// oldest in hand whose results go there, and tasks from others queues without results, which are
    /// through.
    pub(super) fn settled_by_put(&self, session: Caller, to: QueueId) -> Settles {
        let mut settles = Settles::default();
        let Some(session) = self.sessions.all.get(&session) else { return settles };
        let hand = &session.hand;
        if hand.is_empty() {
            return settles;
        }
        match hand.single() {
            None => {
                settles.answered = oldest_answered_by(hand, to);
                settles.through = through_by_put(hand, to);
            }
            Some((held, Demand::Result(results))) => {
                settles.answered = (results == Some(to)).then_some(held);
            }
            Some((held, _)) if held.queue != to => settles.through.push(held),
            Some(_) => {}
        }
        settles
    }

    /// Whether a put may be the result of a task that an earlier session of the same thread was cut off
    /// with.
    pub(super) fn may_inherit(&self) -> bool {
        if planted!(CutOffAnswersNothing) {
            return false;
        }
        self.sessions.have_ended()
    }

    /// That task, which is in hand now.
    pub(super) fn inherit(&mut self, session: Caller, to: QueueId, now: Time) -> Option<Held> {
        let (age, held) = self.sessions.inherit(session, to, now)?;
        self.hand(session)?.add(held, Demand::Result(Some(to)), age);
        Some(held)
    }

    /// A put was accepted.
    pub(super) fn accepted(
        &mut self,
        session: Caller,
        to: QueueId,
        answered: Option<Held>,
        through: &Tokens,
    ) {
        let Some(session) = self.sessions.all.get_mut(&session) else { return };
        for held in answered.into_iter().chain(through.iter()) {
            session.hand.remove(held);
        }
        if through.len() == SETTLED_AT_ONCE {
            let hand = &session.hand;
            let more = hand.queues().filter(|from| *from != to && !hand.is_strict(*from));
            for queue in more.collect::<Vec<_>>() {
                session.mark_through(queue);
            }
        }
    }

    /// `task_done` settles the oldest task of its queue, which is in hand no more.
    pub(super) fn settled_by_task_done(&mut self, session: Caller, queue: QueueId) -> Option<Held> {
        if planted!(DoneSettlesNothing) {
            return None;
        }
        let hand = self.hand(session)?;
        let (_, held) = hand.oldest_of(queue)?;
        hand.remove(held);
        Some(held)
    }

    /// Some of the tasks that are through and were too many to be settled at once.
    pub(super) fn settle_more(&mut self, session: Caller) -> Tokens {
        let mut through = Tokens::default();
        let Some(session) = self.sessions.all.get_mut(&session) else { return through };
        while let Some((&queue, &last)) = session.through.first_key_value() {
            while let Some((_, held)) = session.hand.oldest_of(queue)
                && held.token.lease <= last
            {
                if through.len() == SETTLED_AT_ONCE {
                    return through;
                }
                session.hand.remove(held);
                through.push(held);
            }
            session.through.remove(&queue);
        }
        session.is_behind.store(false, Ordering::Relaxed);
        through
    }

    // ---- references

    /// A session calls by a reference. It is counted again if it had gone because it was not used and
    /// `is_there` again.
    pub(super) fn use_reference(
        &mut self,
        session: Caller,
        reference: Reference,
        now: impl FnOnce() -> Time,
        is_there: impl FnOnce() -> bool,
    ) {
        let references = &self.sessions.references;
        if references.may_have_expired(reference.serial)
            && !references.is_full()
            && !references.has(reference.serial)
            && is_there()
        {
            self.refer(reference, now());
        }
        self.sessions.use_reference(session, reference.serial);
    }

    /// Counts a reference once more.
    pub(super) fn refer(&mut self, reference: Reference, now: Time) {
        let alarm = self.sessions.references.count_up(reference, now);
        self.unused.extend(alarm.map(|at| (at, Alarm::Reference(reference.serial))));
    }

    /// A client gives one count of a reference back. The last one may decide how sessions have ended.
    pub(super) fn decref(&mut self, serial: u64, now: Time) -> Less {
        let decref = self.sessions.decref_at(now);
        let less = self.sessions.references.count_down(serial, decref);
        if let Less::Gone(alarm) = less {
            if let Some(alarm) = alarm {
                self.unused.remove(&(alarm, Alarm::Reference(serial)));
            }
            let ended = self.sessions.ended_users(serial);
            self.judge_soon(ended, now);
        }
        less
    }

    /// Looks whether a reference is unused; says so if it is gone.
    pub(super) fn look_at(
        &mut self,
        serial: u64,
        now: Time,
        keeps: impl FnOnce(QueueId) -> bool,
    ) -> Option<Reference> {
        let is_used =
            if planted!(UsedReferenceExpires) { false } else { self.sessions.are_using(serial) };
        match self.sessions.references.look_at(serial, is_used, now, keeps) {
            Looked::NotThere => None,
            Looked::Gone(reference) => Some(reference),
            Looked::Again(at) => {
                self.unused.insert((at, Alarm::Reference(serial)));
                None
            }
        }
    }

    // ---- time

    /// What the timer is to sleep for.
    pub(super) fn arm(&mut self, now: Time) -> Option<Time> {
        self.armed = if self.has_unused(now) { Some(now) } else { self.next_deadline() };
        self.armed
    }

    /// Whether it is to be looked whether a reference is unused.
    pub(super) fn has_unused(&self, now: Time) -> bool {
        self.unused.first().is_some_and(|(time, _)| *time <= now)
    }

    /// Whether the timer sleeps for too long.
    pub(super) fn oversleeps(&self) -> bool {
        let first = self.next_deadline();
        first.is_some_and(|first| self.armed.is_none_or(|armed| first < armed))
    }

    fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(time, _)| *time)
    }

    /// The next thing that is due.
    pub(super) fn next_due(&mut self, now: Time) -> Option<Alarm> {
        let first = [&self.deadlines, &self.unused].map(|alarms| alarms.first());
        let first = first.into_iter().flatten().min().filter(|(time, _)| *time <= now).copied()?;
        match first {
            (_, Alarm::Session(_)) => self.deadlines.remove(&first),
            (_, Alarm::Reference(_)) => self.unused.remove(&first),
        };
        Some(first.1)
    }

    #[cfg(test)]
    pub(super) fn number_of_deadlines(&self) -> usize {
        self.deadlines.len() + self.unused.len()
    }

    /// Whether something is to be done by now.
    #[cfg(test)]
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.has_unused(now) || self.next_deadline().is_some_and(|deadline| deadline <= now)
    }
}

fn drop_lapsed(hand: &mut Hand, lapsed: &[Held]) {
    let too_many = hand.len().saturating_sub(LAPSED_KEPT);
    lapsed.iter().take(too_many).for_each(|held| hand.remove(*held));
}

/// The task that a put to `to` is the result of: the oldest in hand whose results go there.
fn oldest_answered_by(hand: &Hand, to: QueueId) -> Option<Held> {
    let sources = hand.sources_of(to);
    if planted!(ResultOfTheNewest) {
        let newest = sources.filter_map(|from| hand.newest_of(from));
        return newest.max_by_key(|(age, _)| *age).map(|(_, held)| held);
    }
    let oldest = sources.filter_map(|from| hand.oldest_of(from));
    oldest.min_by_key(|(age, _)| *age).map(|(_, held)| held)
}

/// Tasks in hand that an accepted put to `to` shows to be through, or the first of them.
fn through_by_put(hand: &Hand, to: QueueId) -> Tokens {
    let mut through = Tokens::default();
    let others = hand.queues().filter(|from| *from != to && !hand.is_strict(*from));
    let tasks = others.flat_map(|from| hand.of(from));
    tasks.take(SETTLED_AT_ONCE).for_each(|(_, held)| through.push(held));
    through
}
