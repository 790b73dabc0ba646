//! Plain data out of a pickle: what a manager's client may look at.
//!
//! Nothing is executed or resolved: a pickle is replayed on a stack of *nodes* ([`Reader`]), then
//! the node that is left becomes a [`Value`] ([`Builder`](builder::Builder)). Nodes refer to each other by number, so
//! a memo reference costs nothing until it is built, and each building of it counts against
//! [`Limits`]: a small pickle cannot grow into a large value.

mod builder;
mod node;
mod number;
mod reader;
#[cfg(test)]
mod tests;

use std::fmt;

use self::number::is_negative;
pub(super) use self::number::{hexadecimal, shortest};
use self::reader::Reader;
use super::opcode::Opcodes;
use super::{Limits, Payload, PickleError};

/// Plain Python data; everything that would need code to build is an inert [`Object`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// `None`
    None,
    /// `bool`
    Bool(bool),
    /// `int` that fits 64 bits
    Int(i64),
    /// Larger `int`: two's complement, little-endian, shortest form.
    BigInt(Vec<u8>),
    /// `float`
    Float(f64),
    /// `str`; also a Python 2 byte string that is ASCII
    Str(String),
    /// `bytes`; also a Python 2 byte string that is not ASCII
    Bytes(Vec<u8>),
    /// `bytearray`
    ByteArray(Vec<u8>),
    /// `list`
    List(Vec<Self>),
    /// `tuple`
    Tuple(Vec<Self>),
    /// `dict`, in its order
    Dict(Vec<(Self, Self)>),
    /// `set`
    Set(Vec<Self>),
    /// `frozenset`
    FrozenSet(Vec<Self>),
    /// An instance, class or function: named, never resolved.
    Object(Box<Object>),
}

/// What a pickle says of an object that only its own code could build.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Module of the class or function, as the pickle names it.
    pub module: String,
    /// Name inside the module.
    pub name: String,
    /// Arguments it was to be called with, keyword arguments as a dict behind them; `None` for the
    /// class or function itself.
    pub args: Option<Vec<Value>>,
    /// State, list items and the like that were to be applied afterwards.
    pub state: Vec<Value>,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// Shows the value as Python's `repr` would; an object as the call that would build it, and what
/// would then be applied to it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(number) => write!(f, "{number}"),
            Self::BigInt(bytes) => f.write_str(&hexadecimal(bytes)),
            Self::Float(number) => write!(f, "{number:?}"),
            Self::Str(text) => write!(f, "'{}'", text.escape_debug()),
            Self::Bytes(bytes) => write!(f, "b'{}'", bytes.escape_ascii()),
            Self::ByteArray(bytes) => write!(f, "bytearray(b'{}')", bytes.escape_ascii()),
            Self::List(items) => write!(f, "[{}]", Joined(items)),
            Self::Tuple(items) if items.len() == 1 => write!(f, "({},)", Joined(items)),
            Self::Tuple(items) => write!(f, "({})", Joined(items)),
            Self::Dict(pairs) => {
                f.write_str("{")?;
                for (i, (key, value)) in pairs.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{key}: {value}")?;
                }
                f.write_str("}")
            }
            Self::Set(items) if items.is_empty() => f.write_str("set()"),
            Self::Set(items) => write!(f, "{{{}}}", Joined(items)),
            Self::FrozenSet(items) => write!(f, "frozenset([{}])", Joined(items)),
            Self::Object(object) => match &object.args {
                Some(args) if object.state.is_empty() => {
                    write!(f, "{object}({})", Joined(args))
                }
                Some(args) => {
                    write!(f, "{object}({}) with {}", Joined(args), Joined(&object.state))
                }
                None => write!(f, "{object}"),
            },
        }
    }
}

/// Values with commas between them.
struct Joined<'a>(&'a [Value]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, value) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{value}")?;
        }
        Ok(())
    }
}

impl Value {
    /// Reads the one value that a run of opcodes leaves.
    pub(super) fn of_opcodes(opcodes: Opcodes<'_>, limits: &Limits) -> Result<Self, PickleError> {
        let len = opcodes.len();
        let mut reader = Reader::new(limits);
        for op in opcodes {
            reader.apply(op?)?;
        }
        reader.finish(len)
    }

    /// An `int` of any size from its two's complement, little-endian.
    #[must_use]
    pub fn int_from_le_bytes(bytes: &[u8]) -> Self {
        let bytes = shortest(bytes);
        let sign = if is_negative(bytes) { 0xff } else { 0 };
        let mut word = [sign; 8];
        match word.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Self::Int(i64::from_le_bytes(word))
            }
            None => Self::BigInt(bytes.to_vec()),
        }
    }
}

impl Payload {
    /// Reads the payload as plain data, within `limits`.
    ///
    /// # Errors
    ///
    /// [`PickleError`] when the bytes are not a pickle, a limit is reached, or the data contains
    /// itself. Offsets count from the start of [`bytes`](Self::bytes).
    pub fn value(&self, limits: &Limits) -> Result<Value, PickleError> {
        Value::of_opcodes(Opcodes::new(&self.bytes), limits)
    }
}

fn malformed(what: &'static str, offset: usize) -> PickleError {
    PickleError::Malformed { what, offset }
}

/// How [`Value`] tells our own serde code what serde has no word for: names of newtype structs,
/// which every other format passes over.
pub(super) const ANY: &str = "manyhands::Value";
pub(super) const TUPLE: &str = "manyhands::tuple";
pub(super) const BIG_INT: &str = "manyhands::int";
pub(super) const BYTE_ARRAY: &str = "manyhands::bytearray";
pub(super) const SET: &str = "manyhands::set";
pub(super) const FROZEN_SET: &str = "manyhands::frozenset";
