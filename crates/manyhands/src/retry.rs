//! What to do when a server was lost in the middle of a call: connect again, and when not.
//!
//! Sans-IO: [`Retry`] judges, its owner pauses and calls.

use std::time::Duration;

use crate::Error;
use crate::server::Server;
use crate::verb::Repeat;

/// The first pause before a call is made again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether the server may have got the request.
    pub(crate) sent: bool,
}

impl Failure {
    pub(crate) fn unsent(error: Error) -> Self {
        Self { error, sent: false }
    }

    pub(crate) fn sent(error: Error) -> Self {
        Self { error, sent: true }
    }
}

/// The judge of one call.
#[derive(Debug)]
pub(crate) struct Retry {
    repeat: Repeat,
    /// How much longer it may go on.
    left: Duration,
    pause: Duration,
    /// Whether the server may have got the call before.
    pub(crate) is_repeated: bool,
    is_renewed: bool,
}

impl Retry {
    /// Only manyhands' own servers are waited for: they may come back with what they had.
    pub(crate) fn new(server: &Server, repeat: Repeat, is_manyhands: bool) -> Self {
        let left = if is_manyhands { server.options.reconnect_for } else { Duration::ZERO };
        Self::within(left, repeat)
    }

    /// The judge of the first connection.
    pub(crate) fn first(server: &Server) -> Self {
        let options = &server.options;
        Self::within(options.connect_for.unwrap_or(options.reconnect_for), Repeat::Safe)
    }

    fn within(left: Duration, repeat: Repeat) -> Self {
        Self { repeat, left, pause: FIRST_PAUSE, is_repeated: false, is_renewed: false }
    }

    /// How long to pause before the call is made again.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub(crate) fn judge(&mut self, Failure { error, sent }: Failure) -> Result<Duration, Error> {
        self.is_repeated |= sent;
        let is_doubtful = sent && self.repeat == Repeat::Doubtful;
        match error {
            Error::Lost { address, error } if is_doubtful => Err(Error::InDoubt { address, error }),
            Error::Lost { .. } | Error::Connect { .. } => self.next_pause(error),
            Error::TimedOut { after, .. } if !sent => {
                self.left = self.left.saturating_sub(after);
                self.next_pause(error)
            }
            error => Err(error),
        }
    }

    /// Whether the call is to be made by a new reference, because the server was started anew and has
    /// forgotten the old one. Once: what is then unknown is gone.
    pub(crate) fn is_renewable(&mut self, is_forgotten: bool) -> bool {
        let is_renewable = is_forgotten && !self.is_renewed && !self.left.is_zero();
        self.is_renewed |= is_renewable;
        is_renewable
    }

    fn next_pause(&mut self, error: Error) -> Result<Duration, Error> {
        if self.left.is_zero() {
            return Err(error);
        }
        let pause = jittered(self.pause).min(self.left);
        self.left -= pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(pause)
    }
}

/// Some time between half of `whole` and all of it, so that a thousand clients do not come back at
/// the same moment.
fn jittered(whole: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness they do.
    getrandom::fill(&mut random).ok();
    whole / 2 + whole.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::connect::Address;

    fn server(reconnect_for: Duration) -> Server {
        let mut server = crate::server::tests::server(b"key");
        server.options.reconnect_for = reconnect_for;
        server
    }

    fn lost() -> Error {
        let address: Arc<Address> = Arc::new("localhost:1".parse().unwrap());
        Error::Lost { address, error: io::ErrorKind::BrokenPipe.into() }
    }

    #[test]
    fn pauses_grow_until_the_time_is_up() {
        let mut retry = Retry::new(&server(Duration::from_secs(30)), Repeat::Safe, true);
        let pauses: Vec<_> =
            std::iter::from_fn(|| retry.judge(Failure::sent(lost())).ok()).collect();
        assert_eq!(pauses.iter().sum::<Duration>(), Duration::from_secs(30));
        assert!(pauses[0] >= FIRST_PAUSE / 2 && pauses[0] <= FIRST_PAUSE, "{pauses:?}");
        assert!(pauses[8] >= LONGEST_PAUSE / 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE), "{pauses:?}");
    }

    #[test]
    fn what_would_be_done_twice_is_in_doubt_once_it_was_sent() {
        let server = server(Duration::from_secs(1));
        let mut retry = Retry::new(&server, Repeat::Doubtful, true);
        assert!(retry.judge(Failure::unsent(lost())).is_ok());
        assert!(matches!(retry.judge(Failure::sent(lost())), Err(Error::InDoubt { .. })));
    }

    #[test]
    fn only_what_was_sent_counts_as_repeated() {
        let mut retry = Retry::new(&server(Duration::from_secs(1)), Repeat::Safe, true);
        assert!(retry.judge(Failure::unsent(lost())).is_ok() && !retry.is_repeated);
        assert!(retry.judge(Failure::sent(lost())).is_ok() && retry.is_repeated);
    }

    #[test]
    fn pythons_own_servers_are_not_waited_for() {
        let server = server(Duration::from_secs(1));
        let mut retry = Retry::new(&server, Repeat::Safe, false);
        assert!(matches!(retry.judge(Failure::unsent(lost())), Err(Error::Lost { .. })));
    }
}
