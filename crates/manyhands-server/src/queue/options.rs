//! What a queue is made with.

use std::fmt;
use std::time::Duration;

use super::Cause;

/// Which task a `get` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The first put.
    #[default]
    Fifo,
    /// The last put.
    Lifo,
    /// The least, by Python's `<`; the first put among equals.
    ///
    /// Compares numbers, text, bytes, and tuples and lists of these. NaN comes after all other
    /// numbers.
    Priority,
}

impl Order {
    pub(super) const WORDS: [(&str, Self); 3] =
        [("fifo", Self::Fifo), ("lifo", Self::Lifo), ("priority", Self::Priority)];
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fifo => "fifo",
            Self::Lifo => "lifo",
            Self::Priority => "priority",
        })
    }
}

/// When a task that was handed to an unmodified client counts as settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// When the client shows by what it does next that it is through with it.
    #[default]
    Leased,
    /// When it is handed out, as CPython's server has it: what a client that dies had is lost.
    Cpython,
}

impl Delivery {
    pub(super) const WORDS: [(&str, Self); 2] =
        [("leased", Self::Leased), ("cpython", Self::Cpython)];
}

/// What becomes of a put that is no result of a task, on a queue that is there for results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unasked {
    /// It is added as an item like others.
    #[default]
    Accept,
    /// It is refused.
    Refuse,
}

impl Unasked {
    pub(super) const WORDS: [(&str, Self); 2] =
        [("accept", Self::Accept), ("refuse", Self::Refuse)];
}

/// What survives, of a queue whose server has a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Nothing: the queue is gone when the server ends, however it does.
    Memory,
    /// What was answered survives the server, also `kill -9`. A power cut takes up to the last
    /// moments, mostly 50 ms.
    Os,
    /// What was answered survives a power cut too.
    Disk,
}

impl Durability {
    pub(super) const WORDS: [(&str, Self); 3] =
        [("disk", Self::Disk), ("os", Self::Os), ("memory", Self::Memory)];
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Os => "os",
            Self::Disk => "disk",
        })
    }
}

/// What a queue is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueOptions {
    /// Which task a `get` takes.
    pub order: Order,
    /// Ready tasks from which on a `put` waits; 0 is no bound.
    pub maxsize: usize,
    /// When a task counts as settled.
    pub delivery: Delivery,
    /// The queue that the results of this one's tasks are put on. Then a task is settled by its
    /// result alone, and given back without one, however its worker left.
    pub results: Option<String>,
    /// How often a task is tried before it is given up: 10; 0 is no bound.
    pub attempts: u32,
    /// The queue that tasks which were given up go to: `NAME.dead` if it is not said.
    pub dead: Option<String>,
    /// The queue that is told of each task that was given up, for a master that waits for results:
    /// `results` is the queue that [`results`](Self::results) names.
    pub failures: Option<String>,
    /// How long a task may stay with any worker: as long as its session, if it is not said.
    pub max_run: Option<Duration>,
    /// How long a task may stay with a client that leases it and says no more; also how long one
    /// stays with a thread that ended while nothing is known of its process (60 s then).
    pub lease: Option<Duration>,
    /// Pause after the first failure, doubled for each further one: a second. The first time that a
    /// worker leaves with a task there is none, so that the next worker has it at once.
    pub backoff: Duration,
    /// Longest pause: 5 minutes.
    pub backoff_max: Duration,
    /// How long a task may wait to be taken before it is dropped: for ever, if it is not said.
    pub expires: Option<Duration>,
    /// How long a further put with the same key is taken for the same task: 10 minutes.
    pub dedup: Duration,
    /// Hands out results in the order in which their tasks were put.
    pub ordered: bool,
    /// What becomes of a put that is no result of a task that whoever puts has in hand.
    pub unasked: Unasked,
    /// What survives a restart; if it is not said, [`Durability::Disk`] where the server has a data
    /// directory and [`Durability::Memory`] where it has none.
    pub durability: Option<Durability>,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            order: Order::Fifo,
            maxsize: 0,
            delivery: Delivery::Leased,
            results: None,
            attempts: 10,
            dead: None,
            failures: None,
            max_run: None,
            lease: None,
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            expires: None,
            dedup: Duration::from_secs(600),
            ordered: false,
            unasked: Unasked::Accept,
            durability: None,
        }
    }
}

/// What stands behind the name of a queue in that of its dead letters, unless its options say
/// otherwise.
pub(crate) const DEAD_LETTERS_SUFFIX: &str = ".dead";

impl QueueOptions {
    /// Where the tasks of a queue of this name go that are given up.
    pub(crate) fn dead_letters_of(&self, name: &str) -> String {
        self.dead.clone().unwrap_or_else(|| format!("{name}{DEAD_LETTERS_SUFFIX}"))
    }

    /// The queues that such a queue names.
    pub(crate) fn named(&self) -> impl Iterator<Item = &str> {
        let named = [self.results.as_deref(), self.dead.as_deref(), self.failures_go_to()];
        named.into_iter().flatten()
    }

    /// Whether such a queue has the payloads of its tasks in memory, wherever else they are.
    pub(crate) fn needs_bytes(&self) -> bool {
        self.order == Order::Priority || self.durability == Some(Durability::Memory)
    }

    /// First in, first out, of `maxsize` tasks; 0 is no bound.
    pub fn bounded(maxsize: usize) -> Self {
        Self::default().maxsize(maxsize)
    }

    /// Last in, first out, without a bound.
    pub fn lifo() -> Self {
        Self { order: Order::Lifo, ..Self::default() }
    }

    /// Least first, without a bound.
    pub fn priority() -> Self {
        Self { order: Order::Priority, ..Self::default() }
    }

    /// The same with another bound; 0 is none.
    #[must_use]
    pub fn maxsize(self, maxsize: usize) -> Self {
        Self { maxsize, ..self }
    }

    /// The same with the queue that results are put on.
    #[must_use]
    pub fn results(self, queue: impl Into<String>) -> Self {
        Self { results: Some(queue.into()), ..self }
    }

    /// The same with a queue that is told of each task that was given up.
    #[must_use]
    pub fn failures(self, queue: impl Into<String>) -> Self {
        Self { failures: Some(queue.into()), ..self }
    }

    /// The queue that is told of each task that was given up, if one is.
    pub(crate) fn failures_go_to(&self) -> Option<&str> {
        match self.failures.as_deref()? {
            "results" => self.results.as_deref(),
            queue => Some(queue),
        }
    }

    /// The same with another number of attempts; 0 is no bound.
    #[must_use]
    pub fn attempts(self, attempts: u32) -> Self {
        Self { attempts, ..self }
    }

    /// The same, giving a task that a worker has for longer than this to another one.
    #[must_use]
    pub fn max_run(self, max_run: Duration) -> Self {
        Self { max_run: Some(max_run), ..self }
    }

    /// The same with another durability.
    #[must_use]
    pub fn durability(self, durability: Durability) -> Self {
        Self { durability: Some(durability), ..self }
    }

    /// The same with another pause after the first failure; zero is none.
    #[must_use]
    pub fn backoff(self, backoff: Duration) -> Self {
        Self { backoff, ..self }
    }

    /// The pause after so many failures, before it is spread. Workers die for reasons of their own:
    /// one that did is no sign yet that the task kills them.
    pub(super) fn pause(&self, failures: u32, last: &Cause) -> Duration {
        let is_death = matches!(last, Cause::Crashed | Cause::Unanswered);
        let Some(doublings) = failures.checked_sub(1 + u32::from(is_death)) else {
            return Duration::ZERO;
        };
        let doubled = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.backoff.saturating_mul(doubled).min(self.backoff_max)
    }
}
