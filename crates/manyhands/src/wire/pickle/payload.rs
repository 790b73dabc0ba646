//! A user's object as opaque bytes.

use bytes::Bytes;

/// A user's object, pickled and never built: the bytes of one argument of a request, cut out so
/// that they stand alone in any reply.
///
/// A standalone pickle of it is `PROTO protocol` + `bytes` + `STOP`. `bytes` is a *prelude* that
/// fills the memo and leaves the stack as it was, then the object's own opcodes; a reply puts its
/// kind between the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Pickle protocol that a reader must know, 0 to 5.
    pub protocol: u8,
    /// Length of the prelude at the start of `bytes`, in bytes; mostly 0 or 4.
    pub prelude_len: u32,
    /// Prelude and object.
    pub bytes: Bytes,
}

impl Payload {
    /// The opcodes that fill the memo and leave the stack as it was; mostly empty.
    #[must_use]
    pub fn prelude(&self) -> &[u8] {
        let len = usize::try_from(self.prelude_len).unwrap_or(usize::MAX);
        self.bytes.get(..len).unwrap_or_default()
    }

    /// The object's own opcodes.
    #[must_use]
    pub fn object(&self) -> &[u8] {
        self.bytes.get(self.prelude().len()..).unwrap_or_default()
    }
}
