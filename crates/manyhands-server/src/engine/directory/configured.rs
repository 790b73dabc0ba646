//! Queues that clients declare while the server runs, and what clients are told of those that they
//! open.
//!
//! A queue that a client has declared stays until it is dropped, also while nobody uses it. After a
//! restart it is as long there as any other that the server was not started with.

use manyhands::wire::text::repr;

use super::check;
use crate::engine::{Engine, Promise, QueueId, Reference, Signer, State};
use crate::error::{CallError, NoQueue};
use crate::queue::{Durability, QueueOptions};

/// What is known of a queue that was opened, which never changes.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) options: QueueOptions,
    /// What survives of it here.
    pub(crate) durability: Durability,
    /// Signs the tokens of its leases.
    pub(crate) signer: Signer,
}

/// Why a queue was not declared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotConfigured {
    #[error(transparent)]
    NoQueue(#[from] NoQueue),
    #[error("the queue {} is there with other options: {settings}", repr(.name))]
    Differs { name: String, settings: String },
    #[error("the queues of this server are declared in its options, and {} is none", repr(.0))]
    Fixed(String),
    #[error("durability={0} needs a data directory, and the server has none")]
    NoData(Durability),
}

impl Engine {
    /// What is known of a queue.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`].
    pub(crate) fn opened(&self, reference: Reference) -> Result<Opened, CallError> {
        let state = self.lock(reference.queue);
        let hosted = state.queues.get(&reference.queue).ok_or(CallError::NoQueue)?;
        let options = hosted.queue.options().clone();
        let durability = match hosted.queue_log {
            Some(_) => options.durability.unwrap_or(Durability::Disk),
            None => Durability::Memory,
        };
        Ok(Opened { options, durability, signer: hosted.signer })
    }

    /// Makes a queue with these options. One that is there stays as it is, and must have the same. It
    /// is there for good when the promise is kept.
    pub(crate) fn configure(
        &self,
        name: &str,
        options: QueueOptions,
    ) -> Result<Promise, NotConfigured> {
        check(name, &options)?;
        if let Some(durability) = options.durability.filter(|it| *it != Durability::Memory)
            && self.journal.is_none()
        {
            return Err(NotConfigured::NoData(durability));
        }
        let mut state = self.lock_home(name);
        if let Some(queue) = state.directory.names.get(name).copied() {
            let there = state.options(queue).filter(|there| **there != options);
            if let Some(there) = there {
                let settings = there.settings();
                return Err(NotConfigured::Differs { name: name.to_owned(), settings });
            }
            return Ok(state.promise_of_all(queue));
        }
        if !self.create_on_use {
            return Err(NotConfigured::Fixed(name.to_owned()));
        }
        let named: Vec<_> = options.named().map(str::to_owned).collect();
        for name in named {
            let queue = self.find_or_make(&mut state, &name, QueueOptions::default())?;
            state.keep_configured(queue);
        }
        let queue = self.add(&mut state, Some(name), options)?;
        state.keep_configured(queue);
        Ok(self.commit(&mut state))
    }
}

impl State {
    /// A queue stays until it is dropped.
    pub(super) fn keep_configured(&mut self, queue: QueueId) {
        if let Some(hosted) = self.queues.get_mut(&queue) {
            hosted.is_configured = true;
        }
    }
}
