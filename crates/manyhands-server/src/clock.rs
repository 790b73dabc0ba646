//! The only reader of the clock.

use std::time::{Duration, Instant};

use crate::queue::Time;

/// A monotonic clock that starts with the server.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// By how much a test has put it forward.
    #[cfg(test)]
    ahead: std::sync::Mutex<Duration>,
    /// Whether it goes on only when a test puts it forward.
    #[cfg(test)]
    stopped: bool,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            #[cfg(test)]
            ahead: std::sync::Mutex::default(),
            #[cfg(test)]
            stopped: false,
        }
    }

    /// One that goes on only when it is put forward.
    #[cfg(test)]
    pub(crate) fn manual(_unix_millis: u64) -> Self {
        Self { stopped: true, ..Self::start() }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub(crate) fn now(&self) -> Time {
        let elapsed = Instant::now().saturating_duration_since(self.start);
        #[cfg(test)]
        let elapsed = if self.stopped { Duration::ZERO } else { elapsed };
        #[cfg(test)]
        let elapsed = elapsed + *self.ahead.lock().unwrap();
        Time::default() + elapsed
    }

    #[cfg(test)]
    pub(crate) fn put_forward(&self, by: Duration) {
        *self.ahead.lock().unwrap() += by;
    }

    /// How long until `time`; zero if it has come.
    pub(crate) fn until(&self, time: Time) -> Duration {
        time.since(self.now())
    }
}
