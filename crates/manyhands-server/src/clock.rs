//! The only reader of the clock.

use std::time::{Duration, Instant, SystemTime};

use crate::queue::Time;

/// A monotonic clock that starts with the server, and the time of day for what outlives it.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    #[cfg(test)]
    hands: std::sync::Mutex<Hands>,
}

/// What a test does to a clock.
#[cfg(test)]
#[derive(Debug, Default)]
struct Hands {
    /// By how much it was put forward.
    ahead: Duration,
    /// Time of day at which it began, in milliseconds; it stands still but for what it is put
    /// forward.
    stopped_at: Option<u64>,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            #[cfg(test)]
            hands: std::sync::Mutex::default(),
        }
    }

    /// A clock that only moves when it is [put forward](Self::put_forward).
    #[cfg(test)]
    pub(crate) fn manual(unix_millis: u64) -> Self {
        let clock = Self::start();
        clock.hands.lock().unwrap().stopped_at = Some(unix_millis);
        clock
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub(crate) fn now(&self) -> Time {
        #[cfg(test)]
        let Hands { ahead, stopped_at } = *self.hands.lock().unwrap();
        #[cfg(test)]
        if stopped_at.is_some() {
            return Time::default() + ahead;
        }
        let elapsed = Instant::now().saturating_duration_since(self.start);
        #[cfg(test)]
        let elapsed = elapsed + ahead;
        Time::default() + elapsed
    }

    /// Milliseconds of Unix time now; 0 before 1970.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn unix_now(&self) -> u64 {
        #[cfg(test)]
        let Hands { ahead, stopped_at } = *self.hands.lock().unwrap();
        #[cfg(test)]
        if let Some(stopped_at) = stopped_at {
            return stopped_at + millis(ahead);
        }
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        millis(unix.unwrap_or_default())
    }

    /// What the time of day will be at `time`, in milliseconds of Unix time.
    pub(crate) fn unix_millis(&self, time: Time) -> u64 {
        let now = self.now();
        let unix = self.unix_now();
        if time < now {
            unix.saturating_sub(millis(now.since(time)))
        } else {
            unix.saturating_add(millis(time.since(now)))
        }
    }

    /// When it will be `unix_millis` by the time of day; now if that has been.
    pub(crate) fn time_of(&self, unix_millis: u64) -> Time {
        self.now() + Duration::from_millis(unix_millis.saturating_sub(self.unix_now()))
    }

    #[cfg(test)]
    pub(crate) fn put_forward(&self, by: Duration) {
        self.hands.lock().unwrap().ahead += by;
    }

    /// How long until `time`; zero if it has come.
    pub(crate) fn until(&self, time: Time) -> Duration {
        time.since(self.now())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
