//! The only reader of the clock.

use std::time::{Duration, Instant};

use crate::queue::Time;

/// A monotonic clock that starts with the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub(crate) fn now(&self) -> Time {
        Time::default() + Instant::now().saturating_duration_since(self.start)
    }

    /// How long until `time`; zero if it has come.
    pub(crate) fn until(&self, time: Time) -> Duration {
        time.since(self.now())
    }
}
