//! A pair, which every reply of a manager is: cut in two, but not built.

use bytes::Bytes;

use super::opcode::Opcodes;
use super::regions::Kind;
use super::scan::Scanner;
use super::{Atom, Limits, Payload, PickleError, cut};

/// A pickled pair of a simple value and any object.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// What the pickle's PROTO says; 0 without it.
    pub protocol: u8,
    /// The first half.
    pub first: Atom,
    /// Whether the pickle has a memo entry for the first half.
    pub is_first_stored: bool,
    /// The second half.
    pub second: Payload,
}

impl Pair {
    /// Scans a pickle, once and without recursion, and cuts its second half out whole.
    ///
    /// # Errors
    ///
    /// What is wrong with the pickle, or with its being a pair, or the bound of `limits` that it
    /// reaches.
    pub fn parse(pickle: &Bytes, limits: &Limits) -> Result<Self, PickleError> {
        let mut scanner = Scanner::default();
        let scan = scanner.scan(pickle, limits)?;
        let malformed = |what| PickleError::Malformed { what, offset: scan.root.start };
        let [first, second] = scan.parts else { return Err(malformed("not a pair")) };
        let atom = match first.kind {
            Kind::Constant(at) => Opcodes::between(pickle, at, first.end).next(),
            _ => None,
        };
        let atom = atom.and_then(|op| Atom::read(&op.ok()?));
        if second.leans {
            return Err(malformed("object that copies another one from the stack"));
        }
        Ok(Self {
            protocol: scan.header.declared,
            first: atom.ok_or(malformed("pair that does not begin with a simple value"))?,
            is_first_stored: second.stored > first.stored,
            second: cut::cut(pickle, &scan.header, second, limits)?,
        })
    }
}
