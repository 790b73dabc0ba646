//! What those who have a token ask for, and what becomes of dead letters.

use std::time::Duration;

use super::{
    Answer, Asked, Back, CallId, Held, Holding, Item, LeaseNumber, Manner, Model, NOBODY, Patience,
    Place, Putter, SessionNumber, TaskAt,
};
use crate::engine::REDRIVEN_AT_ONCE_MAX;

/// How long a lease by token runs after a restart if nobody said; `docs/delivery.md`.
const LEASE: Duration = Duration::from_secs(60);

impl Model {
    /// Gives a task that is ready to somebody: the item, and which attempt it is.
    pub(super) fn lease(
        &mut self,
        at: TaskAt,
        session: SessionNumber,
        call: CallId,
        manner: Manner,
    ) -> (Item, u32) {
        self.leases += 1;
        let held = Held { at, lease: self.leases };
        let (hold, limit) = match manner {
            Manner::Plain | Manner::ForGood => (None, None),
            Manner::Leased(None) => (Some(LEASE), None),
            Manner::Leased(hold) => (hold, hold),
        };
        let until = self.counted_anew(at.0, limit);
        let is_silent = manner != Manner::Plain;
        let terms = Holding { hold, limit, is_silent, ..Holding::since(self.now) };
        let task = self.place(at);
        let given = (task.item, task.failures + 1);
        let may_be_out_of_date = task.expires.is_some() && hold.is_some();
        task.place = Place::Held { lease: held.lease, until, answered: false, terms };
        // A lease outlives a day that is set ahead, and its task may then be in date again.
        self.has_dates |= may_be_out_of_date;
        self.drop_lease(at);
        let taker = self.session(session);
        taker.last.push(held);
        match manner {
            Manner::Plain | Manner::ForGood => {
                taker.hand.push(held);
                taker.has_taken = true;
            }
            Manner::Leased(_) => {
                taker.leases.push(held);
                self.granted.entry(call).or_default().push(held);
            }
        }
        given
    }

    /// Takes what else is there, up to `most`.
    pub(in super::super) fn take_more(
        &mut self,
        session: SessionNumber,
        queue: usize,
        call: CallId,
        manner: Manner,
        most: usize,
    ) -> Vec<(Item, u32)> {
        let mut given = vec![];
        while given.len() < most {
            let tasks = &self.queues[queue].tasks;
            let Some(at) = tasks.iter().position(|task| task.place == Place::Ready) else { break };
            given.push(self.lease((queue, at), session, call, manner));
            self.run(queue);
        }
        given
    }

    /// The leases that a call was given.
    pub(in super::super) fn granted(&self, call: CallId) -> Vec<Held> {
        self.granted.get(&call).cloned().unwrap_or_default()
    }

    /// The number of the last lease that has begun.
    pub(in super::super) fn last_lease(&self) -> LeaseNumber {
        self.leases
    }

    /// Numbers of leases from now on are above those of `other`.
    pub(in super::super) fn number_leases_after(&mut self, other: &Self) {
        self.leases = self.leases.max(other.leases);
    }

    /// Nobody holds this task by a token any more.
    pub(super) fn drop_lease(&mut self, at: TaskAt) {
        self.sessions.values_mut().for_each(|it| it.leases.retain(|held| held.at != at));
    }

    pub(super) fn settled_by_token(&mut self, held: Held) {
        self.settled.insert(held.lease);
        self.drop_lease(held.at);
        self.finish(held.at.0, 1);
    }

    /// What a token is told that is good for nothing more.
    pub(super) fn spent(&self, held: Held) -> Option<Answer> {
        match self.queues[held.at.0].tasks[held.at.1].place {
            // Whether it settles its task is not known yet.
            Place::Held { lease, answered: true, .. } if lease == held.lease => Some(Answer::Stale),
            _ => self.settled.contains(&held.lease).then_some(Answer::Duplicate),
        }
    }

    pub(in super::super) fn ack_alone(&mut self, session: SessionNumber, call: CallId, held: Held) {
        self.session(session).last.clear();
        let answer = if let Some(spent) = self.spent(held) {
            spent
        } else if self.queues[held.at.0].results.is_some() {
            // Its result is missing.
            Answer::Wrong
        } else if self.ack(held) {
            self.resultless.push(held.at);
            self.settled_by_token(held);
            Answer::Accepted
        } else {
            Answer::Stale
        };
        self.answer(call, answer);
    }

    pub(in super::super) fn ack_with(
        &mut self,
        session: SessionNumber,
        call: CallId,
        held: Held,
        item: Item,
        patience: Patience,
    ) {
        self.session(session).last.clear();
        let Some(results) = self.queues[held.at.0].results else {
            return self.answer(call, Answer::NoResults);
        };
        if let Some(spent) = self.spent(held) {
            return self.answer(call, spent);
        }
        if !self.claim(held) {
            return self.answer(call, Answer::Stale);
        }
        // Whoever answers has it from now on, also if the answer is refused.
        self.drop_lease(held.at);
        self.session(session).leases.push(held);
        let (asked, answers) = (Asked::default(), Some(held));
        let putter = Putter { call, session, item, asked, until: None, answers, by_token: true };
        self.line_up(results, putter, patience);
    }

    pub(in super::super) fn nack(
        &mut self,
        session: SessionNumber,
        call: CallId,
        held: Held,
        delay: Option<Duration>,
    ) {
        self.session(session).last.clear();
        let answer = if let Some(spent) = self.spent(held) {
            spent
        } else if self.is_with(held) {
            self.drop_lease(held.at);
            self.has_dates |= delay.is_some();
            self.give_back(held, Back::Failed, delay);
            Answer::Accepted
        } else {
            Answer::Stale
        };
        self.answer(call, answer);
    }

    pub(in super::super) fn extend(
        &mut self,
        session: SessionNumber,
        call: CallId,
        held: Held,
        time: Duration,
    ) {
        self.session(session).last.clear();
        let answer = if let Some(spent) = self.spent(held) {
            spent
        } else if self.is_with(held) {
            if !self.session(session).leases.contains(&held) {
                self.let_go(held.at);
            }
            let (now, max_run) = (self.now, self.queues[held.at.0].options.max_run);
            if let Place::Held { until, terms, .. } = &mut self.place(held.at).place {
                let last = max_run.map(|max_run| terms.since + max_run);
                *until = last.into_iter().chain([now + time]).min();
                (terms.hold, terms.limit) = (Some(time), Some(time));
                terms.is_silent = false;
            }
            if self.sessions.values().any(|it| it.leases.contains(&held)) {
                self.drop_lease(held.at);
                self.session(session).leases.push(held);
            }
            Answer::Extended
        } else {
            Answer::Stale
        };
        self.answer(call, answer);
    }

    pub(super) fn is_with(&mut self, held: Held) -> bool {
        matches!(self.place(held.at).place, Place::Held { lease, .. } if lease == held.lease)
    }

    /// Dead letters, or only one of them, go back to where they came from, in order; everything else
    /// stays. Returns what it was like between two steps.
    pub(in super::super) fn redrive(
        &mut self,
        session: SessionNumber,
        call: CallId,
        queue: usize,
        most: usize,
        only: Option<usize>,
    ) -> Vec<Self> {
        self.session(session).last.clear();
        let (mut moved, mut kept, mut between) = (0, vec![], vec![]);
        while moved < most && kept.len() < most {
            let begins_step = moved > 0 && moved % REDRIVEN_AT_ONCE_MAX == 0;
            let before = begins_step.then(|| self.clone());
            let tasks = &self.queues[queue].tasks;
            let is_next = |at: &usize| {
                let task = &tasks[*at];
                let is_wanted = only.is_none_or(|only| only == *at && task.letter.is_some());
                is_wanted && task.place == Place::Ready
            };
            let Some(at) = (0..tasks.len()).find(is_next) else { break };
            self.leases += 1;
            let held = Held { at: (queue, at), lease: self.leases };
            self.drop_lease(held.at);
            let terms = Holding::since(self.now);
            let (lease, until, answered) = (held.lease, None, false);
            let task = self.place(held.at);
            task.place = Place::Held { lease, until, answered, terms };
            let (item, home) = (task.item, task.letter);
            let Some(home) = home.filter(|_| !self.full) else {
                kept.push(held);
                if home.is_some() {
                    break;
                }
                continue;
            };
            between.extend(before);
            self.place(held.at).place = Place::Gone;
            let now = self.now;
            self.queues[home].unfinished += 1;
            self.queues[home].add(now, item, Asked::default());
            self.run(home);
            self.finish(queue, 1);
            moved += 1;
        }
        kept.into_iter().for_each(|held| self.give_back(held, Back::Unread, None));
        self.answer(call, Answer::Count(moved as u64));
        between
    }

    /// How many tasks a queue has had.
    pub(in super::super) fn tasks_so_far(&self, queue: usize) -> usize {
        self.queues[queue].tasks.len()
    }

    /// Whether there is something that a purge would drop, or nothing that it would forget.
    pub(in super::super) fn is_worth_a_purge(&self, queue: usize) -> bool {
        let it = &self.queues[queue];
        let counts = it.counts();
        counts.ready + counts.delayed > 0 || it.keys.is_empty()
    }

    /// All that is ready or delayed is gone. What somebody has stays as it is.
    pub(in super::super) fn purge(&mut self, session: SessionNumber, call: CallId, queue: usize) {
        self.session(session).last.clear();
        let mut dropped = 0;
        for at in 0..self.queues[queue].tasks.len() {
            let task = self.place((queue, at));
            if matches!(task.place, Place::Ready | Place::Delayed(_)) {
                task.place = Place::Gone;
                self.resultless.push((queue, at));
                dropped += 1;
            }
        }
        let it = &mut self.queues[queue];
        it.keys.clear();
        for (task, _) in std::mem::take(&mut it.early) {
            it.over.insert(task);
            dropped += 1;
        }
        self.finish(queue, dropped);
        self.answer(call, Answer::Count(dropped));
    }

    // ---- restarts

    /// What is with whom after a restart: what was leased by token stays so, with its time counted
    /// anew; everything else is ready.
    pub(super) fn restart_leases(&mut self) {
        self.granted.clear();
        for queue in 0..self.queues.len() {
            for at in 0..self.queues[queue].tasks.len() {
                let now = self.now;
                let task = self.place((queue, at));
                task.since = now;
                let Place::Held { lease, terms: Holding { hold, .. }, .. } = task.place else {
                    continue;
                };
                task.place = Place::Ready;
                if hold.is_some() {
                    let until = self.counted_anew(queue, hold);
                    // Nor is it known whether its holder has begun with it.
                    let lies_with = Some(NOBODY);
                    let terms = Holding { hold, limit: hold, lies_with, ..Holding::since(now) };
                    let place = Place::Held { lease, until, answered: false, terms };
                    self.place((queue, at)).place = place;
                }
            }
        }
    }

    /// Tasks that were with somebody without a token last, of which a log need not know: by which
    /// token they may still be settled is that of the lease before, or none any more.
    pub(in super::super) fn doubts(&self) -> Vec<Held> {
        let mut doubts = vec![];
        for (queue, it) in self.queues.iter().enumerate() {
            for (at, task) in it.tasks.iter().enumerate() {
                if let Some(lease) = task.last_token.filter(|_| task.last != task.last_token) {
                    doubts.push(Held { at: (queue, at), lease });
                }
            }
        }
        doubts
    }

    /// Whether the task may be settled by this token.
    pub(in super::super) fn decide(&mut self, held: Held, is_good: bool) {
        let task = self.place(held.at);
        task.last = task.last_token.filter(|_| is_good);
        task.last_token = task.last;
    }

    /// The lease before of a task that nobody has, if it is not this one.
    pub(in super::super) fn other_last(&self, held: Held) -> Option<Option<LeaseNumber>> {
        let last = self.last_of_free(held)?;
        (last != Some(held.lease)).then_some(last)
    }

    /// Whether this is the lease before of a task that nobody has.
    pub(in super::super) fn is_last(&self, held: Held) -> bool {
        self.last_of_free(held) == Some(Some(held.lease))
    }

    /// The lease before, if there was one, of a task that nobody has.
    fn last_of_free(&self, held: Held) -> Option<Option<LeaseNumber>> {
        let task = &self.queues[held.at.0].tasks[held.at.1];
        matches!(task.place, Place::Ready | Place::Delayed(_)).then_some(task.last)
    }

    /// The task may be settled by this token.
    pub(in super::super) fn decide_for(&mut self, held: Held) {
        let task = self.place(held.at);
        (task.last, task.last_token) = (Some(held.lease), Some(held.lease));
    }

    /// Who has the task that this one had, by a lease for as long, if it is another one.
    pub(in super::super) fn other_holder(&self, held: Held) -> Option<LeaseNumber> {
        match self.queues[held.at.0].tasks[held.at.1].place {
            Place::Held { lease, .. } if lease != held.lease => Some(lease),
            _ => None,
        }
    }

    /// The task is still with this one, for as long.
    pub(in super::super) fn hold_for(&mut self, held: Held) {
        if let Place::Held { lease, .. } = &mut self.place(held.at).place {
            *lease = held.lease;
        }
    }

    /// The item that was leased.
    pub(in super::super) fn item(&self, held: Held) -> Option<Item> {
        self.queues[held.at.0].tasks.get(held.at.1).map(|task| task.item)
    }

    /// Whether nothing is left of an item.
    pub(in super::super) fn is_gone(&self, queue: usize, item: Item) -> bool {
        let mut tasks = self.queues[queue].tasks.iter().filter(|task| task.item == item);
        tasks.all(|task| task.place == Place::Gone)
    }

    pub(in super::super) fn is_delayed(&self, held: Held) -> bool {
        matches!(self.queues[held.at.0].tasks[held.at.1].place, Place::Delayed(_))
    }

    /// Nobody waits for what this call was answered.
    pub(in super::super) fn forget_answer(&mut self, call: CallId) {
        self.answers.retain(|(answered, _)| *answered != call);
    }
}

impl Held {
    pub(in super::super) fn queue(self) -> usize {
        self.at.0
    }

    /// Its lease by number.
    pub(in super::super) fn number(self) -> LeaseNumber {
        self.lease
    }
}
