//! What is wrong with a frame.

use std::fmt;

use super::Code;
use crate::wire::pickle::PickleError;

/// Why a body was not understood. Its text names the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Which item, settlement or task of the batch, from 0.
    pub item: Option<u32>,
    /// What is wrong with it.
    pub what: What,
}

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum What {
    /// No frame has this op.
    #[error("no frame has op {0:02x}")]
    UnknownOp(u8),
    /// A flag that this op does not have.
    #[error("{found:08b} are flags that op {op:02x} does not have")]
    UnknownFlag {
        /// The op.
        op: u8,
        /// The flags that it does not have.
        found: u8,
    },
    /// The batch has more items than are allowed.
    #[error("{count} items are more than {max}, the most of a batch")]
    TooMany {
        /// How many there are.
        count: u32,
        /// The limit.
        max: u32,
    },
    /// The body ends too early.
    #[error("{field} needs {len} bytes at byte {at} of the body, which has {left} more")]
    Truncated {
        /// What was expected.
        field: &'static str,
        /// Its length, in bytes.
        len: usize,
        /// Where it begins.
        at: usize,
        /// How many bytes are there.
        left: usize,
    },
    /// The body goes on after its last field.
    #[error("the body ends at byte {at}, and {left} more came")]
    Rest {
        /// Where it should end.
        at: usize,
        /// How many bytes follow.
        left: usize,
    },
    /// A field has a value that it cannot have.
    #[error("{field} at byte {at} of the body is {found}; expected {expected}")]
    Value {
        /// Which field.
        field: &'static str,
        /// Where it stands.
        at: usize,
        /// Its value.
        found: u64,
        /// What would be right.
        expected: &'static str,
    },
    /// A text is not UTF-8.
    #[error("{field} at byte {at} of the body is not UTF-8")]
    NotUtf8 {
        /// Which text.
        field: &'static str,
        /// Where it stands.
        at: usize,
    },
    /// A payload that says that it is a pickle is none that could be taken.
    #[error("the pickle at byte {at} of the body: {error}")]
    Pickle {
        /// Where it begins.
        at: usize,
        /// What is wrong with it, with its own offset.
        error: PickleError,
    },
    /// A text that is not the JSON that was expected.
    #[error("the JSON text at byte {at} of the body: {error}")]
    Json {
        /// Where it begins.
        at: usize,
        /// What is wrong with it.
        error: String,
    },
}

impl DecodeError {
    /// The code by which a server answers it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self.what {
            What::UnknownOp(_) => Code::UnknownOp,
            What::TooMany { .. } => Code::TooLong,
            _ => Code::Malformed,
        }
    }
}

impl From<What> for DecodeError {
    fn from(what: What) -> Self {
        Self { item: None, what }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(item) = self.item {
            write!(f, "item {item}: ")?;
        }
        self.what.fmt(f)
    }
}

impl std::error::Error for DecodeError {}
