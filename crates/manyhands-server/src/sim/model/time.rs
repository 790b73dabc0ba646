//! What is due, and what comes back after a restart.

use std::time::Duration;

use super::{Answer, Back, Due, Held, Model, Place};
use crate::queue::Time;

impl Model {
    /// The next instant with something due.
    pub(in super::super) fn next_time(&self) -> Option<Time> {
        self.due().into_iter().map(|(time, _)| time).min()
    }

    fn due(&self) -> Vec<(Time, Due)> {
        let verdicts = self.silent.iter().map(|(time, session)| (*time, Due::Verdict(*session)));
        let mut due: Vec<_> = verdicts.collect();
        for (queue, it) in self.queues.iter().enumerate() {
            let getters = it.getters.iter();
            due.extend(getters.filter_map(|it| Some((it.until?, Due::Getter(queue, it.call)))));
            let putters = it.putters.iter();
            due.extend(putters.filter_map(|it| Some((it.until?, Due::Putter(queue, it.call)))));
            due.extend(it.keys.iter().map(|(until, key)| (*until, Due::Key(queue, *key))));
            for (at, task) in it.tasks.iter().enumerate() {
                match task.place {
                    Place::Delayed(until) => due.push((until, Due::Ready((queue, at)))),
                    Place::Held { until: Some(until), .. } => {
                        due.push((until, Due::Lease((queue, at))));
                    }
                    _ => {}
                }
                if matches!(task.place, Place::Ready | Place::Delayed(_)) {
                    due.extend(task.expires.map(|time| (time, Due::Expiry((queue, at)))));
                }
            }
        }
        due
    }

    /// Does what is due at this instant. Returns what it was like in between.
    pub(in super::super) fn pass(&mut self, now: Time) -> Vec<Self> {
        self.now = now;
        let mut between = vec![];
        let first = |due: &(Time, Due)| (due.1.queue().is_none(), due.1.queue(), *due);
        // What came due while the server was away is due now, queue by queue; sessions are judged last.
        let next = |it: &Self| it.due().into_iter().filter(|(at, _)| *at <= now).min_by_key(first);
        while let Some((_, due)) = next(self) {
            self.ring(due);
            self.follow_up();
            // What is due in one queue is one step.
            if next(self).is_none_or(|(_, next)| next.queue() != due.queue()) {
                self.end_step();
            }
            between.push(self.clone());
        }
        between
    }

    /// The server was killed, and is there again at `now`; by the time of day it is later by
    /// `ahead` and earlier by `behind`.
    pub(in super::super) fn restart(&mut self, now: Time, ahead: Duration, behind: Duration) {
        self.sessions.clear();
        self.silent.clear();
        self.answers.clear();
        self.pushed.clear();
        self.full = false;
        let shifted = |time: Time| Time::default() + (time + behind).since(Time::default() + ahead);
        self.now = now;
        self.restart_leases();
        for queue in &mut self.queues {
            queue.getters.clear();
            queue.credits.clear();
            queue.putters.clear();
            queue.joiners.clear();
            for (until, _) in &mut queue.keys {
                *until = shifted(*until);
            }
            for task in &mut queue.tasks {
                task.expires = task.expires.map(shifted);
                match &mut task.place {
                    Place::Delayed(until) => *until = shifted(*until),
                    Place::Held { .. } | Place::Ready | Place::Gone => {}
                }
            }
        }
    }

    fn ring(&mut self, due: Due) {
        match due {
            Due::Getter(queue, call) => {
                self.queues[queue].getters.retain(|getter| getter.call != call);
                self.answer(call, Answer::Empty);
            }
            Due::Putter(queue, call) => {
                let line = &mut self.queues[queue].putters;
                let at = line.iter().position(|putter| putter.call == call).unwrap();
                let answers = line.remove(at).answers;
                self.refused(call, answers);
            }
            Due::Ready(at) => {
                self.place(at).place = Place::Ready;
                self.run(at.0);
            }
            Due::Lease(at) => {
                if let Place::Held { lease, .. } = self.place(at).place {
                    self.give_back(Held { at, lease }, Back::Failed, None);
                }
            }
            Due::Expiry(at) => {
                self.place(at).place = Place::Gone;
                self.resultless.push(at);
                self.finish(at.0, 1);
            }
            Due::Key(queue, key) => self.queues[queue].keys.retain(|(_, known)| *known != key),
            Due::Verdict(session) => {
                self.silent.retain(|(_, silent)| *silent != session);
                self.judge(session);
            }
        }
    }
}

impl Due {
    fn queue(self) -> Option<usize> {
        match self {
            Self::Getter(queue, _) | Self::Putter(queue, _) | Self::Key(queue, _) => Some(queue),
            Self::Ready((queue, _)) | Self::Lease((queue, _)) | Self::Expiry((queue, _)) => {
                Some(queue)
            }
            Self::Verdict(_) => None,
        }
    }
}
