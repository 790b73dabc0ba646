//! Which session has the server to itself.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Caller;

/// Requests in a row after which a session counts as the only one.
const REQUESTS: u64 = 8;
/// The bits of the count.
const COUNT_BITS: u32 = 4;

/// The session that has made a request last, and how many since another one did, in one number. It is a
/// hint: what is lost between two threads only makes it come true later.
#[derive(Debug, Default)]
pub(crate) struct Alone(AtomicU64);

impl Alone {
    /// A session has made a request, or several at once.
    pub(in crate::frontend) fn note(&self, caller: Caller) {
        let last = self.0.load(Ordering::Relaxed);
        let this = caller.0 << COUNT_BITS;
        let next = match last.checked_sub(this) {
            Some(count) if count < REQUESTS => last + 1,
            Some(REQUESTS) => return,
            _ => this + 1,
        };
        self.0.store(next, Ordering::Relaxed);
    }

    /// Whether no other session has made a request for a while.
    pub(in crate::frontend) fn is(&self, caller: Caller) -> bool {
        self.0.load(Ordering::Relaxed) == (caller.0 << COUNT_BITS) + REQUESTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_alone_once_it_made_all_of_some_requests() {
        let alone = Alone::default();
        for caller in [Caller(1), Caller(2), Caller(1)] {
            for _ in 0..REQUESTS {
                assert!(!alone.is(caller));
                alone.note(caller);
            }
            assert!(alone.is(caller) && !alone.is(Caller(3)));
            alone.note(caller);
            assert!(alone.is(caller));
        }
        alone.note(Caller(2));
        assert!(!alone.is(Caller(1)) && !alone.is(Caller(2)));
    }
}
