//! A connection in memory, whose bytes the world moves, holds back and loses.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::journal::tests::random::Random;
use crate::socket::Socket;

/// How the bytes of one direction end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Closed,
    Broken,
}

/// The bytes of one direction.
#[derive(Debug, Default)]
struct Way {
    /// Those that are on the way, and those that have come.
    flight: BytesMut,
    come: BytesMut,
    /// What comes after these.
    end: Option<End>,
    /// Whether that has come.
    is_over: bool,
}

#[derive(Debug)]
struct State {
    /// To the server, and from it.
    up: Way,
    down: Way,
    /// How many bytes the server may have written that the client has not read.
    capacity: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The client's end, which is the world's, too.
#[derive(Debug)]
pub(super) struct Link(Arc<Mutex<State>>);

/// The server's end.
#[derive(Debug)]
pub(super) struct ServerEnd(Arc<Mutex<State>>);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

impl Way {
    /// Moves up to `max` bytes on, and what comes after the last of them. Tells whether it did.
    fn advance(&mut self, max: usize) -> bool {
        let moved = self.flight.split_to(max.min(self.flight.len()));
        self.come.extend_from_slice(&moved);
        let is_end = self.flight.is_empty() && self.end.is_some() && !self.is_over && max > 0;
        self.is_over |= is_end;
        is_end || !moved.is_empty()
    }

    /// Loses what is on the way from some byte on.
    fn tear(&mut self, end: End, random: &mut Random) {
        self.flight.truncate(random.below(self.flight.len() + 1));
        self.end.get_or_insert(end);
    }
}

impl Link {
    pub(super) fn new(capacity: usize) -> (Self, ServerEnd) {
        let (up, down) = (Way::default(), Way::default());
        let state = State { up, down, capacity, reader: None, writer: None };
        let state = Arc::new(Mutex::new(state));
        (Self(state.clone()), ServerEnd(state))
    }

    /// Sends bytes on their way; false if nobody will get them.
    pub(super) fn write(&self, bytes: &[u8]) -> bool {
        let mut state = lock(&self.0);
        let is_open = state.up.end.is_none();
        if is_open {
            state.up.flight.extend_from_slice(bytes);
        }
        is_open
    }

    /// Moves bytes to the server; whether it did.
    pub(super) fn move_up(&self, max: usize) -> bool {
        let mut state = lock(&self.0);
        let is_moved = state.up.advance(max);
        if is_moved {
            state.reader.take().into_iter().for_each(Waker::wake);
        }
        is_moved
    }

    /// Moves bytes to the client, and reads them: what has come, and how it ended.
    pub(super) fn read(&self, max: usize) -> (BytesMut, Option<End>) {
        let mut state = lock(&self.0);
        state.down.advance(max);
        let come = state.down.come.split();
        if !come.is_empty() {
            state.writer.take().into_iter().for_each(Waker::wake);
        }
        (come, state.down.end.filter(|_| state.down.is_over))
    }

    /// The client is gone: what it has not sent off does not come any more.
    pub(super) fn leave(&self, end: End, random: &mut Random) {
        let mut state = lock(&self.0);
        if random.percent(50) {
            state.up.tear(end, random);
        } else {
            state.up.end.get_or_insert(end);
        }
        state.down.flight.clear();
        state.down.end = Some(End::Broken);
        state.writer.take().into_iter().for_each(Waker::wake);
    }

    /// The network is gone: both sides find out, each in its own time.
    pub(super) fn tear(&self, random: &mut Random) {
        let mut state = lock(&self.0);
        state.up.tear(End::Broken, random);
        state.down.tear(End::Broken, random);
        state.writer.take().into_iter().for_each(Waker::wake);
    }

    /// The process of the server ends, and some of what it has written does not come any more.
    pub(super) fn end_server(&self, random: &mut Random) {
        let mut state = lock(&self.0);
        state.up.end = Some(End::Broken);
        state.down.tear(End::Closed, random);
    }

    /// Whether the server has no end of it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Drop for ServerEnd {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.up.end = Some(End::Broken);
        state.down.end.get_or_insert(End::Closed);
    }
}

impl Socket for ServerEnd {}

impl AsyncRead for ServerEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = lock(&self.0);
        let len = buffer.remaining().min(state.up.come.len());
        match state.up.end.filter(|_| state.up.is_over) {
            _ if len > 0 => {
                buffer.put_slice(&state.up.come[..len]);
                state.up.come.advance(len);
                Poll::Ready(Ok(()))
            }
            Some(End::Closed) => Poll::Ready(Ok(())),
            Some(End::Broken) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for ServerEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.0);
        if state.down.end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = state.down.flight.len() + state.down.come.len();
        let len = bytes.len().min(state.capacity.saturating_sub(taken));
        if len == 0 && !bytes.is_empty() {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        state.down.flight.extend_from_slice(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).down.end.get_or_insert(End::Closed);
        Poll::Ready(Ok(()))
    }
}
