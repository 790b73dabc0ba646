//! What may happen many times a second, and is logged once for each queue and minute.

use std::time::Duration;

use crate::queue::Time;

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
    /// A token that nobody was given.
    pub(super) forged: Notice,
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
