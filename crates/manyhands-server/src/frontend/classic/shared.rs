//! What all connections of a server share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use manyhands::wire::auth::AuthKey;
use manyhands::wire::pickle;
use tokio_util::sync::CancellationToken;

use super::foreign::Reception;
use crate::config::{Limits, Policy};
use crate::engine::Engine;

/// How long after the end of a stream the reset of a reply that was not read may come.
const RESET_GRACE: Duration = Duration::from_secs(1);
/// Between two connections that look for their resets. Thousands may be cut off together, and each
/// has a session to end and a socket to close: others are served in between.
const LOOK_INTERVAL: Duration = Duration::from_micros(25);

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) key: AuthKey,
    pub(crate) limits: Limits,
    pub(crate) pickle_limits: pickle::Limits,
    pub(crate) policy: Policy,
    /// For what is no queue, if the embedding program serves that.
    pub(crate) reception: Option<Reception>,
    /// Cancelled when the server stops.
    pub(crate) stop: CancellationToken,
    pub(crate) looks: Looks,
}

/// The turns of connections that ended, to look whether their last reply was read.
#[derive(Debug, Default)]
pub(crate) struct Looks(Mutex<Duration>);

impl Looks {
    /// How long a connection that ended waits for its look. `now` is the uptime.
    pub(super) fn pause(&self, now: Duration) -> Duration {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (now + RESET_GRACE).max(*last + LOOK_INTERVAL);
        last.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_end_together_take_turns_to_look_for_resets() {
        let (looks, now) = (Looks::default(), Duration::from_secs(5));
        let pauses: Vec<_> = (0..10_000).map(|_| looks.pause(now)).collect();
        assert_eq!(pauses[0], RESET_GRACE);
        assert!(pauses.windows(2).all(|two| two[1] - two[0] == LOOK_INTERVAL));
        assert!(pauses[9999] < RESET_GRACE + Duration::from_millis(300));
        assert_eq!(looks.pause(now * 2), RESET_GRACE);
    }
}
