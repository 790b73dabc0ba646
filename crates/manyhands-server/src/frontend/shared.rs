//! What all connections of a server share, whatever they speak.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use manyhands::wire::auth::AuthKey;
use manyhands::wire::pickle;
use manyhands::wire::token::hexadecimal;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::alone::Alone;
use super::turns::Turns;
use crate::config::{Limits, Policy};
use crate::engine::{Engine, Reference};

/// Redrives of native sessions at one time.
pub(crate) const REDRIVES_MAX: usize = 4;

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    /// Names of references, by which clients call queues that have no name of their own.
    pub(crate) idents: Idents,
    pub(crate) key: AuthKey,
    pub(crate) limits: Limits,
    pub(crate) pickle_limits: pickle::Limits,
    pub(crate) policy: Policy,
    /// Cancelled when the server stops.
    pub(crate) stop: CancellationToken,
    /// Of native sessions with many dead letters to move, each of which takes a thread.
    pub(crate) redrives: Semaphore,
    /// Of connections that end.
    pub(crate) turns: Turns,
    /// Which session has the server to itself.
    pub(crate) alone: Alone,
}

/// Makes idents of references and knows its own: `queue.serial.seal` in hexadecimal.
#[derive(Debug, Default, Clone)]
pub(crate) struct Idents(RandomState);

impl Idents {
    /// The last part proves that we issued it, in this run: nobody can name references of others.
    pub(crate) fn ident(&self, reference: Reference) -> String {
        let Reference { queue, serial } = reference;
        format!("{queue:x}.{serial:x}.{:016x}", self.0.hash_one(reference))
    }

    /// The reference that `ident` names, if it is ours, whether or not its queue is still there.
    pub(crate) fn parse(&self, ident: &str) -> Option<Reference> {
        let mut numbers = ident.as_bytes().splitn(3, |&byte| byte == b'.').map(hexadecimal);
        let (queue, serial, seal) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let reference = Reference { queue, serial };
        (seal == self.0.hash_one(reference)).then_some(reference)
    }
}
