//! Bounded pickle: reads calls without executing them, cuts user objects out whole, writes what
//! every CPython loads.
//!
//! [`Call`] scans a request; [`Payload`] is a user's object as opaque bytes; [`Value`] is plain data;
//! [`Outline`] is what of an object can be compared.

mod atom;
mod call;
mod cut;
mod de;
mod lines;
mod memo;
mod opcode;
mod outline;
mod pair;
mod payload;
mod plain;
mod proxies;
mod regions;
mod scan;
mod ser;
#[cfg(test)]
mod serde_tests;
mod template;
mod value;
mod value_serde;

pub use atom::Atom;
pub use call::{Argument, Call};
pub use de::{from_payload, from_value};
pub(super) use opcode::Opcode;
pub use outline::Outline;
pub use pair::Pair;
pub use payload::{Codec, Payload};
pub use ser::{Dialect, to_payload};
pub use template::RequestTemplates;
pub use value::{Object, Value};

/// Bounds on what a pickle may ask of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Values on the stack at one time, when a [`Value`] is built; a scan needs no bound.
    pub stack_max: usize,
    /// Open marks at one time.
    pub marks_max: usize,
    /// Memo entries in one pickle.
    pub memo_max: usize,
    /// Containers inside containers, when a [`Value`] is built.
    pub depth_max: usize,
    /// Values built in all, memo references counted each time they are read.
    pub values_max: usize,
    /// Bytes that repairing an argument's memo references may add to it.
    pub expansion_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stack_max: 1 << 20,
            marks_max: 1 << 16,
            memo_max: 1 << 24,
            depth_max: 128,
            values_max: 1 << 20,
            expansion_max: 1 << 20,
        }
    }
}

/// What is wrong with a pickle. Offsets count from the start of the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// An opcode that no protocol from 0 to 5 has.
    #[error("unknown pickle opcode 0x{opcode:02x} at offset {offset}")]
    UnknownOpcode {
        /// The byte found.
        opcode: u8,
        /// Where it stands.
        offset: usize,
    },
    /// The message ends inside an opcode or before STOP.
    #[error("pickle data was truncated at offset {offset}")]
    Truncated {
        /// Where bytes were missing.
        offset: usize,
    },
    /// Anything else that breaks the format.
    #[error("{what} at offset {offset}")]
    Malformed {
        /// What is wrong, in words.
        what: &'static str,
        /// Where.
        offset: usize,
    },
    /// A bound of [`Limits`] was reached.
    #[error("pickle exceeds the limit of {limit} {what}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// Well-formed, but not the shape that a manager's request has.
    #[error("not a manager request: {what}")]
    NotARequest {
        /// What differs from `(ident, method, args, kwds)`.
        what: &'static str,
    },
}

/// Why a Rust value and a payload do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The payload cannot be read as plain data.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// The value has no such form, or not the form that was asked for.
    #[error("{0}")]
    Shape(String),
}

impl DataError {
    fn new(text: String) -> Self {
        Self::Shape(text)
    }
}

impl serde::ser::Error for DataError {
    fn custom<T: std::fmt::Display>(text: T) -> Self {
        Self::Shape(text.to_string())
    }
}

impl serde::de::Error for DataError {
    fn custom<T: std::fmt::Display>(text: T) -> Self {
        Self::Shape(text.to_string())
    }
}
