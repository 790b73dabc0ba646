//! When tasks were put, in far less memory than a time for each.

use std::collections::VecDeque;
use std::time::Duration;

use super::{TaskId, Time};

/// Room for so many is kept when all of them go.
const STAMPS_KEPT: usize = 64;
/// How far apart stamps are at first.
const FINEST: Duration = Duration::from_millis(1);

/// Times of puts, exact to a step that doubles whenever there are too many of them.
///
/// Invariant: ids and times rise.
#[derive(Debug)]
pub(super) struct Stamps {
    stamps: VecDeque<(TaskId, Time)>,
    /// When the next one is due.
    due: Time,
    step: Duration,
    /// Most stamps that are kept. When there are as many, every second one goes.
    len_max: usize,
}

impl Stamps {
    pub(super) fn new(len_max: usize) -> Self {
        Self { stamps: VecDeque::new(), due: Time::default(), step: FINEST, len_max }
    }

    /// Whether one more stamp costs exactness now.
    pub(super) fn is_full(&self, now: Time) -> bool {
        self.due <= now && self.stamps.len() >= self.len_max
    }

    /// One more is due a step after the last one.
    fn set_due(&mut self) {
        self.due = self.stamps.back().map_or(Time::default(), |&(_, last)| last + self.step);
    }

    /// Forgets what is known only of tasks before `oldest`, and is exact again if that was much.
    pub(super) fn forget_before(&mut self, oldest: TaskId) {
        let after = self.stamps.partition_point(|&(stamped, _)| stamped <= oldest);
        self.stamps.drain(..after.saturating_sub(1));
        if self.stamps.len() < self.len_max / 2 {
            self.step = FINEST;
        }
        self.set_due();
    }

    /// Records that the task was put now.
    pub(super) fn record(&mut self, task: TaskId, now: Time) {
        if now < self.due {
            return;
        }
        if self.is_full(now) {
            self.step *= 2;
            let mut nth = 0_usize;
            self.stamps.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
        }
        self.stamps.push_back((task, now));
        self.set_due();
    }

    /// When the task was put; nothing is known of those before the first stamp.
    pub(super) fn of(&self, task: TaskId) -> Option<Time> {
        let after = self.stamps.partition_point(|&(stamped, _)| stamped <= task);
        self.stamps.get(after.checked_sub(1)?).map(|&(_, time)| time)
    }

    /// Begins anew: no task is left that was put before.
    pub(super) fn clear(&mut self) {
        self.stamps.clear();
        self.stamps.shrink_to(STAMPS_KEPT);
        (self.step, self.due) = (FINEST, Time::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::default() + Duration::from_millis(millis)
    }

    #[test]
    fn a_million_puts_are_remembered_to_a_thousandth_of_the_whole_in_a_few_stamps() {
        let mut stamps = Stamps::new(4096);
        for task in 0..1_000_000 {
            stamps.record(TaskId(task), at(task));
        }
        assert!(stamps.stamps.len() <= 4096);
        for task in [0, 1, 999, 500_000, 999_999] {
            let error = at(task).since(stamps.of(TaskId(task)).unwrap());
            assert!(error <= Duration::from_secs(1), "task {task} is {error:?} off");
        }
    }

    #[test]
    fn puts_in_one_step_share_a_stamp() {
        let mut stamps = Stamps::new(4096);
        assert_eq!(stamps.of(TaskId(0)), None);
        for task in 0..100 {
            stamps.record(TaskId(task), at(5));
        }
        assert_eq!((stamps.stamps.len(), stamps.of(TaskId(99))), (1, Some(at(5))));
        stamps.clear();
        assert_eq!(stamps.of(TaskId(99)), None);
    }

    #[test]
    fn tasks_that_are_gone_cost_no_exactness() {
        let mut stamps = Stamps::new(16);
        for task in 0..100_000 {
            if stamps.is_full(at(task)) {
                stamps.forget_before(TaskId(task - 4));
            }
            stamps.record(TaskId(task), at(task));
            assert!(stamps.stamps.len() <= 16);
            let error = at(task).since(stamps.of(TaskId(task.saturating_sub(3))).unwrap());
            assert!(error <= Duration::from_millis(3), "task {task} is {error:?} off");
        }
    }
}
