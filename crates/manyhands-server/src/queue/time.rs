//! Instants and patience, without a clock.

use std::ops::Add;
use std::time::Duration;

/// An instant: nanoseconds of a monotonic clock since the server began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

/// How long a call may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Not at all.
    Now,
    /// Until this instant comes.
    Until(Time),
    /// Until it is served.
    Forever,
}

impl Time {
    /// This many nanoseconds after the server began.
    pub fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// How long after `earlier`; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The earlier of two instants, if there is any.
pub(crate) fn earlier(first: Option<Time>, second: Option<Time>) -> Option<Time> {
    match (first, second) {
        (Some(first), Some(second)) => Some(first.min(second)),
        (first, second) => first.or(second),
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// The latest instant there is, 584 years after the start, if the sum is beyond it.
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}
