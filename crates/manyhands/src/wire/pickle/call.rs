//! One request, scanned but not built.

use bytes::Bytes;

/// A scanned request `(ident, method, args, kwds)`.
#[derive(Debug)]
pub struct Call {
    #[expect(dead_code, reason = "filled by the scanner")]
    frame: Bytes,
}

/// Where one argument stands in its [`Call`].
#[derive(Debug, Clone, Copy)]
pub struct Argument {}

/// A simple value of an argument, read without building objects.
#[derive(Debug, Clone, PartialEq)]
pub enum Atom {}
