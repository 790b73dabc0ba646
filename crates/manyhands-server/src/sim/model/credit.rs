//! Tasks that are given as they come to whoever says how many it can take.

use super::leases::Back;
use super::{Answer, CallId, Getter, Held, Item, Manner, Model, Place, SessionNumber, TaskAt};

/// How many tasks of a queue a session can still take.
#[derive(Debug, Clone)]
pub(super) struct Credit {
    session: SessionNumber,
    left: u32,
    is_open: bool,
    /// It was asked for some back and has not begun or returned any since.
    is_recalled: bool,
}

/// What came by credit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Push {
    pub(in super::super) session: SessionNumber,
    pub(in super::super) queue: usize,
    pub(in super::super) pushed: Pushed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Pushed {
    /// This item at this attempt, by this lease.
    Task(Item, u32, Held),
    /// So many are asked for.
    Recall(u32),
}

impl Model {
    /// A session can take so many more tasks.
    pub(in super::super) fn credit(
        &mut self,
        session: SessionNumber,
        queue: usize,
        call: CallId,
        manner: Manner,
        more: u32,
    ) {
        self.session(session).last.clear();
        let has_work = self.has_work(queue, session);
        let it = &mut self.queues[queue];
        let at = it.credits.iter().position(|credit| credit.session == session);
        let at = at.unwrap_or_else(|| {
            let (left, is_open, is_recalled) = (0, false, false);
            it.credits.push(Credit { session, left, is_open, is_recalled });
            it.credits.len() - 1
        });
        let credit = &mut it.credits[at];
        it.looks_for_work |= !has_work || !credit.is_open;
        credit.is_open = true;
        let is_in_line = credit.left > 0;
        credit.left += more;
        if is_in_line {
            let mut getters = it.getters.iter_mut();
            let getter = getters.find(|it| it.is_credit && it.session == session).unwrap();
            getter.manner = manner;
        } else if more > 0 {
            let (until, is_credit) = (None, true);
            it.getters.push(Getter { call, session, manner, until, is_credit });
        }
        self.run(queue);
    }

    /// A session takes no more for now. Returns what was left.
    pub(in super::super) fn withdraw(&mut self, session: SessionNumber, queue: usize) -> u32 {
        let it = &mut self.queues[queue];
        it.getters.retain(|getter| !getter.is_credit || getter.session != session);
        let credit = it.credits.iter_mut().find(|credit| credit.session == session);
        credit.map_or(0, |credit| std::mem::take(&mut credit.left))
    }

    pub(in super::super) fn end_credit(&mut self, session: SessionNumber, queue: usize) {
        self.withdraw(session, queue);
        let mut credits = self.queues[queue].credits.iter_mut();
        if let Some(credit) = credits.find(|credit| credit.session == session) {
            credit.is_open = false;
        }
    }

    pub(super) fn end_credits(&mut self, session: SessionNumber) {
        (0..self.queues.len()).for_each(|queue| self.end_credit(session, queue));
    }

    /// Gives a task to a credit, which goes to the end of the line.
    pub(super) fn push(&mut self, at: TaskAt, getter: Getter) {
        let Getter { session, call, manner, .. } = getter;
        let queue = at.0;
        let (item, attempt) = self.lease(at, session, call, manner);
        // It is no answer to the call that gave the credit.
        self.session(session).last.pop();
        let held = self.granted.get_mut(&call).unwrap().pop().unwrap();
        let has_work = self.has_work(queue, session);
        if let Place::Held { terms, .. } = &mut self.place(at).place {
            (terms.lies_with, terms.is_silent) = (Some(session), false);
        }
        let it = &mut self.queues[queue];
        let credit = it.credits.iter_mut().find(|credit| credit.session == session).unwrap();
        it.looks_for_work |= has_work;
        credit.left -= 1;
        if credit.left > 0 {
            it.getters.push(getter);
        }
        let pushed = Pushed::Task(item, attempt, held);
        self.pushed.push(Push { session, queue, pushed });
    }

    /// What came by credit since the last look.
    pub(in super::super) fn take_pushed(&mut self) -> Vec<Push> {
        std::mem::take(&mut self.pushed)
    }

    /// How many tasks of a queue a session has and has not started.
    fn lying_with(&self, queue: usize, session: SessionNumber) -> u32 {
        let lies = |place: &Place| match place {
            Place::Held { terms, .. } => terms.lies_with == Some(session),
            _ => false,
        };
        let tasks = self.queues[queue].tasks.iter();
        u32::try_from(tasks.filter(|task| lies(&task.place)).count()).unwrap()
    }

    /// How many tasks of a queue a session has to do that came by credit.
    fn work_of(&self, queue: usize, session: SessionNumber) -> usize {
        let tasks = self.queues[queue].tasks.iter();
        let is_its = |place: &Place| match place {
            Place::Held { terms, .. } => [terms.lies_with, terms.works_on].contains(&Some(session)),
            _ => false,
        };
        tasks.filter(|task| is_its(&task.place)).count()
    }

    fn has_work(&self, queue: usize, session: SessionNumber) -> bool {
        self.work_of(queue, session) > 0
    }

    /// Work on a task begins.
    pub(super) fn begin(&mut self, at: TaskAt) {
        let Place::Held { terms, .. } = &mut self.place(at).place else { return };
        terms.is_silent = false;
        let Some(session) = terms.lies_with.take() else { return };
        terms.works_on = Some(session);
        let it = &mut self.queues[at.0];
        if let Some(credit) = it.credits.iter_mut().find(|credit| credit.session == session) {
            it.looks_for_work |= std::mem::take(&mut credit.is_recalled);
        }
    }

    /// A task is not with whom it was given to by credit any more.
    pub(super) fn let_go(&mut self, at: TaskAt) {
        let Place::Held { terms, .. } = &mut self.place(at).place else { return };
        let worked_on = terms.works_on.take();
        self.begin(at);
        let Place::Held { terms, .. } = &mut self.place(at).place else { return };
        terms.works_on = None;
        let Some(session) = worked_on else { return };
        self.queues[at.0].looks_for_work |= !self.has_work(at.0, session);
    }

    /// Where a task comes back from: one that lay with somebody was never begun with, and whoever
    /// returns one lets others go first.
    pub(super) fn come_from(&mut self, held: Held, back: Back) -> Back {
        let Place::Held { lease, terms, .. } = self.place(held.at).place else { return back };
        if lease == held.lease {
            self.let_go(held.at);
        }
        let Some(session) = terms.lies_with.filter(|_| lease == held.lease) else { return back };
        if back == Back::Failed {
            return back;
        }
        let line = &mut self.queues[held.at.0].getters;
        let is_its = |getter: &Getter| getter.is_credit && getter.session == session;
        if let Some(at) = line.iter().position(is_its) {
            let getter = line.remove(at);
            line.push(getter);
        }
        Back::Unread
    }

    pub(in super::super) fn start(&mut self, session: SessionNumber, call: CallId, held: Held) {
        self.session(session).last.clear();
        let answer = if let Some(spent) = self.spent(held) {
            spent
        } else if self.is_with(held) {
            self.begin(held.at);
            Answer::Started
        } else {
            Answer::Stale
        };
        self.answer(call, answer);
    }

    pub(in super::super) fn hand_back(&mut self, session: SessionNumber, call: CallId, held: Held) {
        self.session(session).last.clear();
        let lies = match self.place(held.at).place {
            Place::Held { lease, terms, .. } => {
                (lease == held.lease).then_some(terms.lies_with.is_some() || terms.is_silent)
            }
            _ => None,
        };
        let answer = match (self.spent(held), lies) {
            (Some(spent), _) => spent,
            (None, None) => Answer::Stale,
            (None, Some(false)) => Answer::Wrong,
            (None, Some(true)) => {
                self.drop_lease(held.at);
                self.give_back(held, Back::Unread, None);
                Answer::Accepted
            }
        };
        self.answer(call, answer);
    }

    /// A step ends: where somebody waits without work, whoever has most that it has not started is
    /// asked for some.
    pub(in super::super) fn end_step(&mut self) {
        self.follow_up();
        for queue in 0..self.queues.len() {
            if !std::mem::take(&mut self.queues[queue].looks_for_work) {
                continue;
            }
            let it = &self.queues[queue];
            let mut waiting = 0;
            for getter in &it.getters {
                let has_work = getter.is_credit && self.has_work(queue, getter.session);
                waiting += u32::from(!has_work);
            }
            let has = |at: usize| self.lying_with(queue, it.credits[at].session);
            // For another credit nobody gives the only task that it has.
            let is_for_get = it.getters.iter().any(|getter| !getter.is_credit);
            let can_give = |at: &usize| {
                let credit = &it.credits[*at];
                let has_more = is_for_get || self.work_of(queue, credit.session) > 1;
                credit.is_open && !credit.is_recalled && has(*at) > 0 && has_more
            };
            let is_idle = waiting > 0 && it.counts().ready == 0;
            let who = (0..it.credits.len()).filter(|at| is_idle && can_give(at));
            // The first of those that have most.
            let who = who.max_by_key(|at| (has(*at), std::cmp::Reverse(it.credits[*at].session)));
            let Some(at) = who else { continue };
            let tasks = waiting.min(has(at).div_ceil(2));
            let credit = &mut self.queues[queue].credits[at];
            credit.is_recalled = true;
            let (session, pushed) = (credit.session, Pushed::Recall(tasks));
            self.pushed.push(Push { session, queue, pushed });
        }
    }
}
