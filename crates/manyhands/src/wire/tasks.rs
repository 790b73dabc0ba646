//! What is known of tasks: where a result or a dead letter comes from, and what a look at one shows.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pickle::Payload;

/// Where a result or a dead letter comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Info {
    /// Name of the queue of its task.
    pub queue: String,
    /// The task's position among the puts of that queue, from 0.
    pub task: u64,
    /// Which attempt at it this comes from, from 1.
    pub attempt: u32,
    /// Who made it: session and address.
    pub worker: String,
    /// From the task's put to its start.
    pub waited: Duration,
    /// From there to the result.
    pub ran: Duration,
    /// Why each attempt failed, of a dead letter.
    pub history: Vec<String>,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TaskState {
    /// It may be taken.
    #[default]
    Ready,
    /// It is not to be handed out yet: for a time, or, a result in order, until its turn.
    Delayed,
    /// A worker has it.
    Leased,
}

impl TaskState {
    /// As it is called on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Delayed => "delayed",
            Self::Leased => "leased",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ready, Self::Delayed, Self::Leased].into_iter().find(|state| state.name() == name)
    }
}

/// What to look at, without taking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peek {
    /// How many tasks at most: 10.
    pub max: usize,
    /// In which state: ready ones.
    pub state: TaskState,
    /// Whether with their items.
    pub items: bool,
}

impl Default for Peek {
    fn default() -> Self {
        Self { max: 10, state: TaskState::Ready, items: true }
    }
}

/// A task that was looked at. What is not known is left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Peeked {
    /// Its position among the puts of its queue, from 0.
    pub task: u64,
    /// Where it stands.
    pub state: TaskState,
    /// The item, if it was asked for.
    pub item: Option<Payload>,
    /// Which attempt this is, or the next one will be; of a dead letter, how many were made.
    pub attempt: u32,
    /// Since its put.
    pub age: Option<Duration>,
    /// Until it becomes ready, or its lease runs out.
    pub due_in: Option<Duration>,
    /// The key of its put.
    pub key: Option<Vec<u8>>,
    /// Who has it, as its session says: process and thread, or a client of ours and its pid.
    pub worker: Option<String>,
    /// The address of who has it.
    pub peer: Option<String>,
    /// How long who has it has had it.
    pub since: Option<Duration>,
    /// The attempts that failed, the last ones if there were many.
    pub failures: Vec<Failure>,
    /// The queue and number of the task that a result or a dead letter comes from.
    pub origin: Option<(String, u64)>,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which one, from 1.
    pub attempt: u32,
    /// Whose it was; empty if that is not known.
    pub worker: String,
    /// Why it failed.
    pub reason: String,
}

impl Peeked {
    /// The bytes of its texts.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let failures = self.failures.iter().map(|it| it.worker.len() + it.reason.len());
        failures.sum::<usize>()
            + self.key.as_ref().map_or(0, Vec::len)
            + self.worker.as_ref().map_or(0, String::len)
            + self.origin.as_ref().map_or(0, |(queue, _)| queue.len())
    }
}
