//! What one connection says to its server: requests as bytes, and where a reply ends.

use anyhow::Result;

/// One request of a producer or consumer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    /// Put these items.
    Put(&'a [Vec<u8>]),
    /// Take one item.
    Take,
    /// Say that the item with this receipt is done.
    Settle(&'a [u8]),
}

/// A reply at the start of what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply<'a> {
    /// Its length, in bytes.
    pub(crate) len: usize,
    /// Of an item that was taken: how to name it to settle it.
    pub(crate) receipt: &'a [u8],
}

/// One side of a protocol, without I/O.
pub(crate) trait Speaker: Send {
    /// Appends a request to `out`.
    fn ask(&mut self, step: Step<'_>, out: &mut Vec<u8>);

    /// The reply at the start of `inbound`, once all of it has come.
    ///
    /// # Errors
    ///
    /// Whatever is no success: a figure with failures in it would mean nothing.
    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>>;

    /// Whether an item that was taken must be settled.
    fn settles(&self) -> bool {
        true
    }
}

/// The first line of `inbound`, without its end.
pub(crate) fn line(inbound: &[u8]) -> Option<&[u8]> {
    let end = memchr::memchr(b'\n', inbound)?;
    inbound.get(..end)?.strip_suffix(b"\r")
}
