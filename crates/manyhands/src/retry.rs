//! What to do when a server was lost in the middle of a call: connect again, and when not.
//!
//! Sans-IO: [`Retry`] judges a call, [`Pauses`] says how long to wait between two attempts.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Error;
use crate::verb::Repeat;
use crate::wire::auth::AuthError;

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
    /// How long it may go on after the first failure.
    time: Duration,
    failed_at: Option<Instant>,
    /// Whether the server may have got the call before.
    pub(crate) is_repeated: bool,
}

impl Retry {
    pub(crate) fn new(time: Duration, repeat: Repeat) -> Self {
        Self { repeat, time, failed_at: None, is_repeated: false }
    }

    /// Whether the call is to be made again.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub(crate) fn judge(&mut self, failure: Failure, now: Instant) -> Result<(), Error> {
        let Failure { error, sent } = failure;
        self.is_repeated |= sent;
        self.failed_at.get_or_insert(now);
        let is_doubtful = sent && self.repeat == Repeat::Doubtful;
        let is_doubtful = is_doubtful && !planted!(DoubtfulPutRepeated);
        match error {
            Error::Lost { address, error } if is_doubtful => Err(Error::InDoubt { address, error }),
            Error::Lost { .. } | Error::Connect { .. } if !self.left(now).is_zero() => Ok(()),
            Error::TimedOut { .. } if !sent && !self.left(now).is_zero() => Ok(()),
            error => Err(error),
        }
    }

    /// Has it not be made again any more.
    pub(crate) fn hurry(&mut self) {
        self.time = Duration::ZERO;
    }

    /// Says whether the next attempt may be made twice.
    pub(crate) fn repeat(&mut self, repeat: Repeat) {
        self.repeat = repeat;
    }

    /// How much longer it may go on.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        let passed = self.failed_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.time.saturating_sub(passed)
    }
}

/// The pauses between attempts to connect.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = jittered(self.0);
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        pause
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

/// The same failure for another of the calls that it ends.
pub(crate) fn same(error: &Error) -> Error {
    let same_io = |error: &io::Error| {
        let turned_away = error.get_ref().and_then(|it| it.downcast_ref::<AuthError>());
        match (error.raw_os_error(), turned_away) {
            (Some(code), _) => io::Error::from_raw_os_error(code),
            (None, Some(turned_away)) => io::Error::other(turned_away.clone()),
            (None, None) => io::Error::new(error.kind(), error.to_string()),
        }
    };
    match error {
        Error::Lost { address, error } => {
            Error::Lost { address: Arc::clone(address), error: same_io(error) }
        }
        Error::Connect { address, error } => {
            Error::Connect { address: Arc::clone(address), error: same_io(error) }
        }
        Error::TimedOut { address, after } => {
            Error::TimedOut { address: Arc::clone(address), after: *after }
        }
        Error::Authentication { address, error } => {
            Error::Authentication { address: Arc::clone(address), error: error.clone() }
        }
        Error::Protocol { address, what } => {
            Error::Protocol { address: Arc::clone(address), what: what.clone() }
        }
        Error::Closed { address } => Error::Closed { address: Arc::clone(address) },
        other => Error::Remote { class: "RemoteError".to_owned(), message: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::Address;

    fn lost() -> Error {
        let address: Arc<Address> = Arc::new("localhost:1".parse().unwrap());
        Error::Lost { address, error: io::ErrorKind::BrokenPipe.into() }
    }

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[test]
    fn pauses_grow() {
        let mut pauses = Pauses::default();
        let pauses: Vec<_> = std::iter::repeat_with(|| pauses.next()).take(20).collect();
        assert!(pauses[0] >= FIRST_PAUSE / 2 && pauses[0] <= FIRST_PAUSE, "{pauses:?}");
        assert!(pauses[8] >= LONGEST_PAUSE / 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE), "{pauses:?}");
    }

    #[test]
    fn a_call_is_made_again_until_its_time_is_up() {
        let (start, time) = (now(), Duration::from_secs(30));
        let mut retry = Retry::new(time, Repeat::Safe);
        assert!(retry.judge(Failure::sent(lost()), start).is_ok());
        assert!(retry.judge(Failure::unsent(lost()), start + time / 2).is_ok());
        let failed = retry.judge(Failure::unsent(lost()), start + time);
        assert!(matches!(failed, Err(Error::Lost { .. })));
        let mut never = Retry::new(Duration::ZERO, Repeat::Safe);
        assert!(matches!(never.judge(Failure::unsent(lost()), start), Err(Error::Lost { .. })));
    }

    #[test]
    fn what_would_be_done_twice_is_in_doubt_once_it_was_sent() {
        let mut retry = Retry::new(Duration::from_secs(1), Repeat::Doubtful);
        assert!(retry.judge(Failure::unsent(lost()), now()).is_ok());
        let failed = retry.judge(Failure::sent(lost()), now());
        assert!(matches!(failed, Err(Error::InDoubt { .. })));
    }

    #[test]
    fn only_what_was_sent_counts_as_repeated() {
        let mut retry = Retry::new(Duration::from_secs(1), Repeat::Safe);
        assert!(retry.judge(Failure::unsent(lost()), now()).is_ok() && !retry.is_repeated);
        assert!(retry.judge(Failure::sent(lost()), now()).is_ok() && retry.is_repeated);
    }
}
