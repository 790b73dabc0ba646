//! What a client knows of its server, and the references that it holds there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;

use crate::Error;
use crate::calls::Call;
use crate::connect::{Address, ConnectOptions};
use crate::wire::announcement::announced;
use crate::wire::auth::AuthKey;
use crate::wire::pickle::{Dialect, Payload, to_payload};
use crate::wire::request::Answer;

/// What a client knows of its server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: Arc<Address>,
    pub(crate) key: AuthKey,
    pub(crate) options: ConnectOptions,
    /// Whether this client says that it knows more than CPython's methods.
    pub(crate) announces: bool,
    /// Which Python reads there.
    pub(crate) dialect: Dialect,
    pub(crate) references: Mutex<References>,
}

impl Server {
    /// A server that nothing is known of but where it is.
    pub(crate) fn new(address: &str, key: AuthKey, options: ConnectOptions) -> Result<Self, Error> {
        let address = Arc::new(address.parse()?);
        let announces = announced(&options.session_name) > 0;
        let (dialect, references) = (Dialect::Python3, Mutex::default());
        Ok(Self { address, key, options, announces, dialect, references })
    }

    pub(crate) fn decode(&self, body: &Bytes) -> Result<Answer, Error> {
        Answer::decode(body, &self.options.limits).map_err(|error| self.unexpected(&error))
    }

    /// An item as the Python there reads it.
    pub(crate) fn pickled<T: Serialize + ?Sized>(&self, item: &T) -> Result<Payload, Error> {
        Ok(to_payload(item, self.dialect)?)
    }

    pub(crate) fn pickled_all<'a, T: Serialize + 'a>(
        &self,
        items: impl IntoIterator<Item = &'a T>,
    ) -> Result<Vec<Payload>, Error> {
        items.into_iter().map(|item| self.pickled(item)).collect()
    }

    pub(crate) fn unexpected(&self, what: &dyn std::fmt::Display) -> Error {
        Error::Protocol { address: Arc::clone(&self.address), what: what.to_string() }
    }

    pub(crate) fn closed(&self) -> Error {
        Error::Closed { address: Arc::clone(&self.address) }
    }
}

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

    /// A server that was started anew knows the reference by another ident.
    pub(crate) fn rename(&mut self, old: &str, new: &str) {
        if let Some(ident) = self.used.iter_mut().find(|ident| *ident == old) {
            new.clone_into(ident);
        }
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

/// Locks what no code panics over.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::frame::Outbound;
    use crate::wire::reply;

    /// A server of manyhands that restarts are waited for.
    pub(crate) fn server(key: &[u8]) -> Server {
        Server::new("localhost:1", AuthKey::new(key), ConnectOptions::default()).unwrap()
    }

    /// What a client receives when its server says `reply`.
    pub(crate) fn received(server: &Server, reply: &reply::Reply) -> Answer {
        let mut frame = Outbound::default();
        reply.push_frame(reply::Reader::Manyhands, &mut frame);
        server.decode(&frame.own().split_off(4).freeze()).unwrap()
    }

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
