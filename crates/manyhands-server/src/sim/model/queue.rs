//! What can happen in a queue.

use std::collections::BTreeSet;

use super::super::world::payload;
use super::{Answer, Asked, CallId, Getter, Held, Model, Place, Putter, TaskAt};

impl Model {
    pub(super) fn run(&mut self, queue: usize) {
        while self.admit(queue) || self.serve(queue) {}
    }

    /// There is room again.
    pub(in super::super) fn let_puts_in(&mut self) {
        (0..self.queues.len()).for_each(|queue| self.run(queue));
    }

    pub(super) fn end_joins(&mut self, queue: usize) {
        let it = &mut self.queues[queue];
        if it.unfinished == 0 {
            let joined: Vec<_> = it.joiners.drain(..).collect();
            joined.into_iter().for_each(|call| self.answer(call, Answer::Joined));
        }
    }

    /// Whether there is room for it on the disk.
    pub(super) fn has_room(&self, putter: &Putter) -> bool {
        // What settles a task needs no more room than it frees.
        let settles = |held: Held| {
            let task = self.queues[held.at.0].tasks[held.at.1].item;
            payload(putter.item).bytes.len() <= 256 + payload(task).bytes.len()
        };
        !self.full || putter.answers.is_some_and(settles)
    }

    fn admit(&mut self, queue: usize) -> bool {
        let it = &self.queues[queue];
        let maxsize = it.options.maxsize;
        let Some(first) = it.putters.first() else { return false };
        // One that settles a task passes those that the disk has no room for.
        let next = match self.has_room(first) {
            true => Some(0),
            false => it.putters.iter().position(|putter| putter.answers.is_some()),
        };
        let Some(next) = next.filter(|next| self.has_room(&it.putters[*next])) else {
            return false;
        };
        if maxsize > 0 && it.counts().ready >= maxsize {
            return false;
        }
        let putter = self.queues[queue].putters.remove(next);
        if self.knows(queue, putter.asked.key) {
            self.accepted(queue, &putter, Answer::Known);
            return true;
        }
        let (now, it) = (self.now, &mut self.queues[queue]);
        it.keys.extend(putter.asked.key.map(|key| (now + it.options.dedup, key)));
        it.unfinished += 1;
        self.has_dates |= putter.asked.key.is_some() || putter.asked.delay.is_some();
        match putter.answers.filter(|_| it.options.ordered) {
            Some(held) => it.early.push((held.at, putter.item)),
            None => it.add(now, putter.item, putter.asked),
        }
        self.accepted(queue, &putter, Answer::Accepted);
        self.release_in_turn(queue);
        true
    }

    fn serve(&mut self, queue: usize) -> bool {
        let it = &mut self.queues[queue];
        let Some(at) = it.tasks.iter().position(|task| task.place == Place::Ready) else {
            return false;
        };
        if it.getters.is_empty() {
            return false;
        }
        let Getter { call, session, manner, .. } = it.getters.remove(0);
        let (item, attempt) = self.lease((queue, at), session, call, manner);
        self.answer(call, Answer::Item(item, attempt));
        true
    }

    pub(super) fn accepted(&mut self, queue: usize, putter: &Putter, answer: Answer) {
        self.answer(putter.call, answer);
        if let Some(held) = putter.answers.filter(|_| putter.by_token) {
            self.ack(held);
            return self.settled_by_token(held);
        }
        if let Some(held) = putter.answers {
            self.session(putter.session).hand.retain(|other| *other != held);
            self.ack(held);
        }
        let strict: Vec<_> = self.queues.iter().map(|it| it.results.is_some()).collect();
        self.settle_all(putter.session, |at| at.0 != queue && !strict[at.0]);
    }

    pub(super) fn refused(&mut self, call: CallId, answers: Option<Held>) {
        self.unclaim(answers);
        self.answer(call, Answer::Full);
    }

    pub(super) fn knows(&self, queue: usize, key: Option<u8>) -> bool {
        key.is_some_and(|key| self.queues[queue].keys.iter().any(|(_, known)| *known == key))
    }

    /// Counts tasks as done. Whoever joined is told before another put is let in.
    pub(super) fn finish(&mut self, queue: usize, tasks: u64) {
        let it = &mut self.queues[queue];
        it.unfinished = it.unfinished.saturating_sub(tasks);
        self.end_joins(queue);
        self.run(queue);
    }

    /// A result goes before those of later tasks.
    pub(super) fn release_in_turn(&mut self, queue: usize) {
        loop {
            let now = self.now;
            let it = &mut self.queues[queue];
            let is_next = |(source, at): TaskAt, over: &BTreeSet<TaskAt>| {
                (0..at).all(|before| over.contains(&(source, before)))
            };
            let Some(at) = it.early.iter().position(|(task, _)| is_next(*task, &it.over)) else {
                return;
            };
            let (task, item) = it.early.remove(at);
            it.over.insert(task);
            it.add(now, item, Asked::default());
            self.run(queue);
        }
    }
}
