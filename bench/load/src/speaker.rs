//! What one connection says to its server: requests as bytes, and where a reply ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Digits that number an item; the rest of it is random.
const NUMBER_LEN: usize = 16;

/// Makes items, all different.
#[derive(Debug, Clone)]
pub(crate) struct Items {
    item: Vec<u8>,
    next: Arc<AtomicU64>,
}

impl Items {
    /// Items of `len` bytes.
    pub(crate) fn new(len: usize) -> Result<Self> {
        ensure!(len >= NUMBER_LEN, "an item needs {NUMBER_LEN} bytes for its number");
        let mut item = vec![0; len];
        getrandom::fill(&mut item).map_err(std::io::Error::other)?;
        Ok(Self { item, next: Arc::default() })
    }

    /// Another one.
    pub(crate) fn make(&mut self) -> &[u8] {
        let mut number = self.next.fetch_add(1, Ordering::Relaxed);
        for digit in self.item.iter_mut().take(NUMBER_LEN).rev() {
            *digit = b"0123456789abcdef".get((number & 15) as usize).copied().unwrap_or(b'?');
            number >>= 4;
        }
        &self.item
    }
}

/// One request of a producer or consumer.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// Put so many items.
    Put(&'a mut Items, usize),
    /// Take so many items.
    Take(usize),
    /// Say that the item that was taken is done.
    Settle,
}

/// A reply at the start of what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply<'a> {
    /// Its length, in bytes.
    pub(crate) len: usize,
    /// Whose request it answers.
    pub(crate) to: To,
    /// Of an item that was taken: how to name it to settle it.
    pub(crate) receipt: &'a [u8],
}

/// Whose request a reply answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// Replies come in the order of requests.
    Oldest,
    /// It names its slot: a protocol whose replies come in any order.
    Slot(usize),
    /// What the server says unasked.
    Nobody,
}

/// One side of a protocol, without I/O.
pub(crate) trait Speaker: Send {
    /// Appends a slot's request to `out`. `receipt` is that of its last reply.
    fn ask(&mut self, slot: usize, receipt: &[u8], step: Step<'_>, out: &mut Vec<u8>);

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

/// Sends a request of the setup and waits until `is_whole` says that its reply is there.
pub(crate) async fn exchange(
    socket: &mut TcpStream,
    request: &[u8],
    is_whole: impl Fn(&[u8]) -> bool,
) -> Result<Vec<u8>> {
    socket.write_all(request).await?;
    let mut reply = Vec::new();
    while !is_whole(&reply) {
        ensure!(socket.read_buf(&mut reply).await? > 0, "closed by the server");
    }
    Ok(reply)
}

/// Appends a number in decimal.
pub(crate) fn decimal(number: usize, out: &mut Vec<u8>) {
    if number >= 10 {
        decimal(number / 10, out);
    }
    out.push(b"0123456789".get(number % 10).copied().unwrap_or(b'?'));
}
