//! What comes back for a [`Verb`](crate::verb::Verb), by whichever protocol.

use std::sync::Arc;

use crate::Error;
use crate::server::Server;
use crate::verb::Taken;
use crate::wire::pickle::Payload;
use crate::wire::reply::QueueInfo;
use crate::wire::tasks::{Info, Peeked};
use crate::wire::token::LeaseToken;

/// What came back. Whoever asked reads it as what he asked for.
#[derive(Debug)]
#[doc(hidden)]
pub enum Answer {
    Done,
    Count(u64),
    Flag(bool),
    Added(Added),
    Tasks(Vec<Task>),
    /// What became of each settlement.
    Settled(Vec<Result<(), Error>>),
    Peeked(Vec<Peeked>),
    /// Queues, and whether there are more after them.
    Queues(Vec<QueueInfo>, bool),
}

/// What became of items that were put.
#[derive(Debug, Default)]
#[doc(hidden)]
pub struct Added {
    /// How many, from the first on, are in the queue.
    pub count: usize,
    /// Why the next one is not.
    pub refusal: Option<Error>,
    /// The numbers of their tasks, as far as they say something; `None` stands for an item that was
    /// put before with the same key.
    pub numbers: Vec<Option<u64>>,
    /// Whether the server may have got the call before.
    pub is_repeated: bool,
}

/// A task that was taken.
#[derive(Debug)]
#[doc(hidden)]
pub struct Task {
    pub payload: Payload,
    /// How to settle it, if it is leased.
    pub token: Option<LeaseToken>,
    pub info: Option<Box<Info>>,
}

impl Added {
    /// What became of the only item: whether it is new, which it also is if the first of two
    /// attempts added it.
    fn only(self) -> Result<Self, Error> {
        match self.refusal {
            Some(refusal) if self.count == 0 => Err(refusal),
            _ => Ok(self),
        }
    }
}

/// The error for a queue that is not there; the server's text names those that are.
pub(crate) fn unknown_queue(server: &Server, name: &str, text: &str) -> Error {
    let declared = text.split_once("declared are: ").and_then(|(_, names)| names.lines().next());
    Error::UnknownQueue {
        name: name.to_owned(),
        address: Arc::clone(&server.address),
        declared: declared.map(ToOwned::to_owned),
    }
}

/// An answer to something else: both protocols see to it that there is none.
fn unfit<T>(answer: &Answer) -> Result<T, Error> {
    unreachable!("no answer to what was asked: {answer:?}")
}

impl Answer {
    pub(crate) fn done(self) -> Result<(), Error> {
        match self {
            Self::Done => Ok(()),
            other => unfit(&other),
        }
    }

    pub(crate) fn count(self) -> Result<u64, Error> {
        match self {
            Self::Count(count) => Ok(count),
            other => unfit(&other),
        }
    }

    pub(crate) fn flag(self) -> Result<bool, Error> {
        match self {
            Self::Flag(flag) => Ok(flag),
            other => unfit(&other),
        }
    }

    /// What became of items, the first of which was added.
    pub(crate) fn added(self) -> Result<Added, Error> {
        match self {
            Self::Added(added) => added.only(),
            other => unfit(&other),
        }
    }

    /// Whether the only item is new, or was put before with the same key.
    pub fn newly(self) -> Result<bool, Error> {
        let added = self.added()?;
        // The first of two attempts may have been the one that added it.
        Ok(added.is_repeated || added.numbers.first() != Some(&None))
    }

    /// The number of the only item's task, if it is new.
    pub fn number(self) -> Result<Option<u64>, Error> {
        Ok(self.added()?.numbers.into_iter().next().flatten())
    }

    pub(crate) fn tasks(self) -> Result<Vec<Task>, Error> {
        match self {
            Self::Tasks(tasks) => Ok(tasks),
            other => unfit(&other),
        }
    }

    /// The only task that was taken.
    fn task(self) -> Result<Task, Error> {
        self.tasks()?.pop().ok_or(Error::Empty)
    }

    pub(crate) fn payload(self) -> Result<Payload, Error> {
        Ok(self.task()?.payload)
    }

    pub(crate) fn taken(self) -> Result<Taken<Payload>, Error> {
        let Task { payload, info, .. } = self.task()?;
        Ok(Taken { item: payload, info: info.map(|info| *info) })
    }

    pub(crate) fn settled(self) -> Result<Vec<Result<(), Error>>, Error> {
        match self {
            Self::Settled(settled) => Ok(settled),
            other => unfit(&other),
        }
    }

    pub(crate) fn peeked(self) -> Result<Vec<Peeked>, Error> {
        match self {
            Self::Peeked(tasks) => Ok(tasks),
            other => unfit(&other),
        }
    }

    pub(crate) fn queues(self) -> Result<(Vec<QueueInfo>, bool), Error> {
        match self {
            Self::Queues(queues, more) => Ok((queues, more)),
            other => unfit(&other),
        }
    }
}
