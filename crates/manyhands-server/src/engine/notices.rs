//! What may happen many times a second, and is logged once for each queue and minute.

use std::time::Duration;

use manyhands::wire::text::repr;

use super::{Caller, Hosted, QueueId, State};
use crate::queue::{Holder, TaskId, Time};

/// How long it stays unsaid after it was logged.
const PAUSE: Duration = Duration::from_secs(60);

/// One kind of thing that happens to a queue.
#[derive(Debug, Default)]
pub(super) struct Notice {
    last: Option<Time>,
    unsaid: u64,
}

/// What is logged of one queue.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// A client left with a task in hand that counts as done.
    pub(super) left: Notice,
    /// A lease ran out.
    pub(super) lapsed: Notice,
    /// The key of a put was known.
    pub(super) known: Notice,
    /// A token that nobody was given.
    pub(super) forged: Notice,
}

impl Hosted {
    /// Tells of leases that ran out in this step, and of puts whose keys were known.
    pub(super) fn tell_step(&mut self, lapsed: &[(TaskId, Holder)], known: u64, now: Time) {
        let Self { queue, name, notices, .. } = self;
        let name = name.as_deref().map(repr);
        let (task, max_run) = (lapsed.first().map(|(task, _)| task.0), queue.options().max_run);
        if let Some(leases) = notices.lapsed.add(lapsed.len() as u64, now) {
            tracing::info!(
                queue = name,
                task,
                leases,
                ?max_run,
                "leases ran out; their tasks go back"
            );
        }
        if let Some(puts) = notices.known.add(known, now) {
            let window = queue.options().dedup;
            tracing::info!(
                queue = name,
                puts,
                ?window,
                "puts with a key that was used a short while ago added nothing"
            );
        }
    }
}

impl State {
    /// A client left of its own accord, and a task that it had in hand counts as done: it may have
    /// been done, or it may have been lost by an exception that nobody caught.
    pub(super) fn tell_left(&mut self, id: QueueId, caller: Caller) {
        let now = self.step.now;
        let Some(worker) = self.common.callers.worker(caller) else { return };
        let Some(hosted) = self.queues.get_mut(&id) else { return };
        let Some(tasks) = hosted.notices.left.add(1, now) else { return };
        let name = hosted.name.clone().unwrap_or_default();
        // Who collects results leaves with the last one, as it should.
        if self.directory.results.contains_key(&*name) {
            return;
        }
        let (queue, worker) = (repr(&name), &*worker);
        let remedy =
            "declare a queue of results (results=NAME) if tasks without a result shall go back";
        tracing::warn!(
            queue,
            worker,
            tasks,
            remedy,
            "clients left with tasks in hand, which count as done"
        );
    }
}

impl Notice {
    /// It has happened `times` more: says how often since it was logged last, if it is to be logged
    /// now.
    pub(super) fn add(&mut self, times: u64, now: Time) -> Option<u64> {
        self.unsaid += times;
        if self.unsaid == 0 || self.last.is_some_and(|last| now < last + PAUSE) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_said_once_a_minute_with_how_often() {
        let at = |seconds| Time::default() + Duration::from_secs(seconds);
        let mut notice = Notice::default();
        assert_eq!(notice.add(0, at(0)), None);
        assert_eq!(notice.add(1, at(0)), Some(1));
        assert_eq!(notice.add(2, at(1)), None);
        assert_eq!(notice.add(1, at(59)), None);
        assert_eq!(notice.add(1, at(60)), Some(4));
    }
}
