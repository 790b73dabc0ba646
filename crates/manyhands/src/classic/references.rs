//! The references to queues that a client holds at a server of CPython's, which counts them.

use std::sync::Mutex;

use super::calls::Call;
use crate::Error;
use crate::server::lock;

/// The references that a client holds.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// Of queues that are in use.
    used: Vec<String>,
    /// Of queues that are no longer.
    dropped: Vec<String>,
}

impl References {
    pub(crate) fn add(&mut self, ident: String) {
        self.used.push(ident);
    }

    /// Removes one use of a queue; tells whether its reference is still held.
    pub(crate) fn remove(&mut self, ident: &str) -> bool {
        let position = self.used.iter().position(|used| used == ident);
        position.map(|position| self.used.remove(position)).is_some()
    }

    /// The same, for a reference that is given back some time later.
    pub(crate) fn defer(&mut self, ident: &str) {
        if self.remove(ident) {
            self.dropped.push(ident.to_owned());
        }
    }

    /// Takes a reference that is to be given back now, if there is one.
    pub(crate) fn pop_dropped(&mut self) -> Option<String> {
        self.dropped.pop()
    }

    /// Takes any reference, the newest first, as a Python program gives them back at its end.
    pub(crate) fn pop(&mut self) -> Option<String> {
        self.used.pop().or_else(|| self.pop_dropped())
    }
}

/// A reference on its way back to the server. It counts as held, and is tried again at the next
/// occasion, unless [`settle`](Self::settle) finds that it arrived.
#[derive(Debug)]
pub(crate) struct Returning<'a> {
    references: &'a Mutex<References>,
    ident: Option<String>,
    pub(crate) call: Call,
}

impl<'a> Returning<'a> {
    pub(crate) fn new(references: &'a Mutex<References>, ident: String) -> Self {
        let call = Call::named("decref", &ident);
        Self { references, ident: Some(ident), call }
    }

    /// Judges by what came of the call. A reference that has perhaps arrived is not given back
    /// again: CPython's server would take the second for another client's.
    pub(crate) fn settle<T>(mut self, outcome: Result<T, Error>) -> Result<(), Error> {
        let is_unsent = matches!(
            outcome,
            Err(Error::Connect { .. } | Error::Authentication { .. } | Error::TimedOut { .. })
        );
        if !is_unsent {
            self.ident = None;
        }
        outcome.map(drop)
    }
}

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        lock(self.references).dropped.extend(self.ident.take());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server::tests::server;

    #[test]
    fn references_go_back_newest_first() {
        let mut references = References::default();
        for ident in ["a", "b", "c"] {
            references.add(ident.to_owned());
        }
        references.defer("a");
        assert_eq!(references.pop_dropped().as_deref(), Some("a"));
        assert_eq!(references.pop_dropped(), None);
        assert_eq!([references.pop(), references.pop()], [Some("c".into()), Some("b".into())]);
        assert!(!references.remove("b"), "each goes back once");
    }

    #[test]
    fn a_reference_is_kept_until_it_has_perhaps_arrived() {
        let address = server(b"key").address;
        let timed_out = Error::TimedOut { address, after: Duration::ZERO };
        let references = Mutex::default();
        let returning = || Returning::new(&references, "a".to_owned());
        drop(returning());
        assert_eq!(lock(&references).pop().as_deref(), Some("a"), "it was cancelled");
        returning().settle::<()>(Err(timed_out)).unwrap_err();
        assert_eq!(lock(&references).pop().as_deref(), Some("a"), "nobody answered");
        returning().settle(Ok(())).unwrap();
        assert_eq!(lock(&references).pop(), None, "it arrived");
    }
}
