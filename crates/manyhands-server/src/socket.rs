//! The kinds of stream that a connection runs on, and the bytes on their way.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
#[cfg(unix)]
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use manyhands::wire::frame::{self, Decoder, Frame, FrameError, Header, Outbound};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::config::SMALL_BYTES;
use crate::error::ConnectionError;
use crate::memory::Room;

/// Silence before the kernel asks whether a peer is still there, and how often it asks.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long sent bytes may stay unacknowledged before the peer counts as gone.
#[cfg(any(target_os = "linux", target_os = "android"))]
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A stream of bytes to one client.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + Sync {
    /// Acknowledges at once what has been received, instead of some 40 ms later.
    ///
    /// CPython's clients write small pieces with Nagle's algorithm on, so the next piece waits for
    /// this acknowledgement. The effect lasts for one read.
    fn acknowledge(&self) {}

    /// Has small writes leave at once, and a peer that vanished noticed. Strangers are not worth the
    /// time that it takes: what they get are single small writes, and they are given a few seconds.
    fn prepare(&self) {}

    /// Sends a few bytes, if the system takes them at once.
    fn send_at_once(&self, _bytes: &[u8]) {}

    /// A second descriptor of it, if it has one.
    #[cfg(unix)]
    fn duplicate(&self) -> Option<OwnedFd> {
        None
    }

    /// Whether the peer has broken the connection off, beyond having closed its side.
    fn is_broken(&self) -> bool {
        false
    }
}

impl Socket for tokio::net::TcpStream {
    fn prepare(&self) {
        let raw = SockRef::from(self);
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
        let prepared = self.set_nodelay(true).and_then(|()| raw.set_tcp_keepalive(&keepalive));
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let prepared = prepared.and_then(|()| raw.set_tcp_user_timeout(Some(USER_TIMEOUT)));
        if let Err(error) = prepared {
            tracing::debug!("cannot set socket options: {error}");
        }
    }

    fn send_at_once(&self, bytes: &[u8]) {
        // A client that does not get them sees the connection close.
        drop(SockRef::from(self).send(bytes));
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn acknowledge(&self) {
        // A socket that is gone says so at the next read.
        drop(SockRef::from(self).set_tcp_quickack(true));
    }

    #[cfg(unix)]
    fn duplicate(&self) -> Option<OwnedFd> {
        self.as_fd().try_clone_to_owned().ok()
    }

    fn is_broken(&self) -> bool {
        !matches!(self.take_error(), Ok(None))
    }
}

#[cfg(unix)]
impl Socket for tokio::net::UnixStream {
    fn send_at_once(&self, bytes: &[u8]) {
        drop(SockRef::from(self).send(bytes));
    }

    fn duplicate(&self) -> Option<OwnedFd> {
        self.as_fd().try_clone_to_owned().ok()
    }

    fn is_broken(&self) -> bool {
        !matches!(self.take_error(), Ok(None))
    }
}

#[cfg(any(test, fuzzing))]
impl Socket for tokio::io::DuplexStream {}

/// Bytes of a large request that are read, or of a large reply that are sent, before others have their
/// turn: a peer that is fast enough never has to be waited for.
pub(crate) const MOVED_AT_ONCE: usize = 1 << 20;
/// Bytes read at a time while it is not known how many will come.
const SCRATCH_LEN: usize = 16 << 10;
/// Most bytes that a buffer grows by before they have come.
const GROWTH_MAX: usize = 1 << 20;

/// Parts of a message that are given to the system at a time.
const PARTS_LEN_MAX: usize = 64;

/// A socket with the bytes that were read but not yet used. Between frames it holds no memory.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    socket: S,
    inbound: BytesMut,
    /// Whether a read had to wait since that was asked last.
    has_waited: bool,
}

impl<S: Socket> Wire<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self { socket, inbound: BytesMut::new(), has_waited: false }
    }

    pub(crate) fn socket(&self) -> &S {
        &self.socket
    }

    /// The next frame of up to `limit` bytes, or `None` at the end of the stream.
    pub(crate) async fn frame(&mut self, limit: u64) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(body) = frame::split(&mut self.inbound, limit).map_err(invalid)? {
                self.free_if_empty();
                return Ok(Some(body));
            }
            if self.read().await? == 0 {
                return Ok(None);
            }
            self.socket.acknowledge();
        }
    }

    /// The same for a frame that may be large: it takes room as it comes.
    pub(crate) async fn frame_in(
        &mut self,
        limit: u64,
        room: &mut Room,
    ) -> Result<Option<Bytes>, ConnectionError> {
        loop {
            if let Some(body) = frame::split(&mut self.inbound, limit).map_err(invalid)? {
                self.free_if_empty();
                return Ok(Some(body));
            }
            let needed = (self.inbound.len() + SCRATCH_LEN) as u64;
            if self.inbound.len() as u64 > SMALL_BYTES {
                room.grow_to(needed).await;
            }
            let read = room.unless_cut_off(self.read()).await??;
            room.moved(read);
            if read == 0 {
                return Ok(None);
            }
            self.socket.acknowledge();
        }
    }

    /// Whether a read has had to wait since this was asked last: then others had their turn.
    pub(crate) fn has_waited(&mut self) -> bool {
        std::mem::take(&mut self.has_waited)
    }

    /// Takes the next frame out of what has been read.
    pub(crate) fn next(&mut self, decoder: &mut Decoder) -> Result<Option<Frame>, FrameError> {
        Ok(self.next_with_header(decoder)?.map(|(_, frame)| frame))
    }

    /// The same with its header.
    pub(crate) fn next_with_header<H: Header>(
        &mut self,
        decoder: &mut Decoder<H>,
    ) -> Result<Option<(H, Frame)>, FrameError> {
        let frame = decoder.next_with_header(&mut self.inbound)?;
        self.free_if_empty();
        if let Some((_, Frame::Body(body))) = &frame
            && body.len() > SCRATCH_LEN
        {
            // What came behind a large request must not keep that in memory.
            self.inbound = BytesMut::from(&*self.inbound);
        }
        Ok(frame)
    }

    fn free_if_empty(&mut self) {
        if self.inbound.is_empty() {
            self.inbound = BytesMut::new();
        }
    }

    /// What has been read and belongs to no frame yet.
    pub(crate) fn inbound(&self) -> &BytesMut {
        &self.inbound
    }

    /// Puts bytes behind those that have been read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.inbound.extend_from_slice(bytes);
    }

    /// Waits for bytes and keeps them; 0 at the end of the stream. Safe to drop while it waits.
    pub(crate) fn read(&mut self) -> impl Future<Output = io::Result<usize>> + '_ {
        std::future::poll_fn(|cx| self.poll_read(cx))
    }

    /// Reads into a buffer on the stack, so that a connection that waits costs no memory.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut scratch = [const { MaybeUninit::uninit() }; SCRATCH_LEN];
        let mut scratch = ReadBuf::uninit(&mut scratch);
        let polled = Pin::new(&mut self.socket).poll_read(cx, &mut scratch);
        self.has_waited |= polled.is_pending();
        ready!(polled)?;
        if self.inbound.is_empty() {
            self.inbound = BytesMut::from(scratch.filled());
        } else {
            self.inbound.extend_from_slice(scratch.filled());
        }
        Poll::Ready(Ok(scratch.filled().len()))
    }

    /// How much the buffer grows by when `missing` bytes are known to come: memory grows as they
    /// come, whatever was announced.
    pub(crate) fn growth(&self, missing: u64) -> usize {
        let growth = self.inbound.len().clamp(SCRATCH_LEN, GROWTH_MAX);
        usize::try_from(missing).map_or(growth, |missing| missing.min(growth))
    }

    /// Like [`read`](Self::read), in place and at most `growth` bytes.
    pub(crate) async fn read_in_place(&mut self, growth: usize) -> io::Result<usize> {
        self.inbound.reserve(growth);
        let mut socket = (&mut self.socket).take(growth as u64);
        socket.read_buf(&mut self.inbound).await
    }

    /// Sends what the socket takes of `outbound` at once; says how many bytes that are, perhaps none.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, outbound: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut self.socket).poll_write(cx, outbound) {
            Poll::Ready(sent) => sent,
            Poll::Pending => Ok(0),
        }
    }

    /// Sends all of `outbound`, in one write if the socket takes it.
    pub(crate) async fn send(&mut self, outbound: &[u8]) -> io::Result<()> {
        self.socket.write_all(outbound).await
    }

    /// Sends all parts of `outbound`, as many at a time as the socket takes, and tells how many bytes
    /// have gone. What has gone holds no memory.
    pub(crate) async fn send_parts(
        &mut self,
        outbound: Outbound,
        sent: impl Fn(usize),
    ) -> io::Result<()> {
        let mut parts: VecDeque<Bytes> = outbound.into_parts().collect();
        let mut at_once = 0;
        while !parts.is_empty() {
            let mut slices = [IoSlice::new(&[]); PARTS_LEN_MAX];
            let filled = slices.iter_mut().zip(&parts);
            let len = filled.map(|(slice, part)| *slice = IoSlice::new(part)).count();
            let slices = slices.get(..len).unwrap_or_default();
            let mut gone = self.socket.write_vectored(slices).await?;
            if gone == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            sent(gone);
            at_once += gone;
            if at_once >= MOVED_AT_ONCE {
                at_once = 0;
                yield_now().await;
            }
            while let Some(first) = parts.front_mut().filter(|_| gone > 0) {
                if gone < first.len() {
                    first.advance(gone);
                    break;
                }
                gone -= first.len();
                parts.pop_front();
            }
        }
        Ok(())
    }

    /// Sends one frame.
    pub(crate) async fn send_frame(&mut self, body: &[u8]) -> io::Result<()> {
        let mut outbound = BytesMut::with_capacity(body.len() + size_of::<u32>());
        frame::push(body, &mut outbound);
        self.send(&outbound).await
    }
}

/// Bounds `io` in time. What is done at once, as most replies are, needs no timer.
pub(crate) async fn within<T>(
    limit: Duration,
    mut io: impl Future<Output = io::Result<T>> + Unpin,
) -> Result<T, ConnectionError> {
    let at_once = poll_fn(|cx| Poll::Ready(Pin::new(&mut io).poll(cx))).await;
    if let Poll::Ready(done) = at_once {
        return Ok(done?);
    }
    // In a box: sessions that wait for nothing of this kind need not have room for a timer.
    Ok(Box::pin(timeout(limit, io)).await.map_err(|_| ConnectionError::Stalled(limit))??)
}

pub(crate) fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_behind_a_large_request_does_not_keep_it_in_memory() {
        let (socket, _client) = tokio::io::duplex(1);
        let mut wire = Wire::new(socket);
        let mut message = BytesMut::new();
        frame::push(&vec![7; 1 << 20], &mut message);
        frame::push(b"next", &mut message);
        wire.push(&message);
        let mut decoder = Decoder::new(1 << 30);
        let Ok(Some(Frame::Body(large))) = wire.next(&mut decoder) else { panic!("it is whole") };
        assert!(large.is_unique(), "nothing else holds on to it");
        let Ok(Some(Frame::Body(next))) = wire.next(&mut decoder) else { panic!("it is whole") };
        assert_eq!(next, b"next"[..]);
    }
}
