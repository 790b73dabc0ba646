//! What a queue is made with.

use std::fmt;

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

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fifo => "fifo",
            Self::Lifo => "lifo",
            Self::Priority => "priority",
        })
    }
}

/// What a queue is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct QueueOptions {
    /// Which task a `get` takes.
    pub order: Order,
    /// Ready tasks from which on a `put` waits; 0 is no bound.
    pub maxsize: usize,
}

impl QueueOptions {
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
}
