//! What a client knows of its server before it is connected.

use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::connect::{Address, ConnectOptions};
use crate::wire::auth::AuthKey;
use crate::wire::pickle::{Payload, from_payload};
use crate::wire::request::Answer;

/// Where a server is, and how to talk to it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: Arc<Address>,
    pub(crate) key: AuthKey,
    pub(crate) options: ConnectOptions,
}

impl Server {
    pub(crate) fn new(address: &str, key: AuthKey, options: ConnectOptions) -> Result<Self, Error> {
        Ok(Self { address: Arc::new(address.parse()?), key, options })
    }

    /// Reads an answer of CPython's protocol.
    pub(crate) fn decode(&self, body: &Bytes) -> Result<Answer, Error> {
        Answer::decode(body, &self.options.limits).map_err(|error| self.unexpected(&error))
    }

    /// Reads an item that was taken from the queue `name`.
    pub(crate) fn item<T: DeserializeOwned>(&self, name: &str, item: Payload) -> Result<T, Error> {
        from_payload(&item, &self.options.limits).map_err(|error| Error::Item {
            queue: name.to_owned(),
            error,
            payload: Box::new(item),
        })
    }

    pub(crate) fn unexpected(&self, what: &dyn Display) -> Error {
        Error::Protocol { address: Arc::clone(&self.address), what: what.to_string() }
    }

    pub(crate) fn closed(&self) -> Error {
        Error::Closed { address: Arc::clone(&self.address) }
    }

    pub(crate) fn lost(&self, error: io::Error) -> Error {
        Error::Lost { address: Arc::clone(&self.address), error }
    }

    pub(crate) fn timed_out(&self, after: Duration) -> Error {
        Error::TimedOut { address: Arc::clone(&self.address), after }
    }
}

/// Locks what no code panics over.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A server whose restarts are waited for.
    pub(crate) fn server(key: &[u8]) -> Server {
        Server::new("localhost:1", AuthKey::new(key), ConnectOptions::default()).unwrap()
    }
}
