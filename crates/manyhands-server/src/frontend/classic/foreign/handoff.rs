//! A session's socket in the hands of the thread that answers for its guests.
//!
//! Between two calls of guests the request need not pass through the event loop, nor the reply: the
//! thread reads and writes the socket itself. It gives the socket back with the first thing that is
//! not simply a short, whole call of a guest, the end of the stream included. Invariant: either the
//! event loop or the thread that has it reads, never both.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use manyhands::wire::frame;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::sync::oneshot;

/// Longest request that a thread reads itself, with its header, in bytes. CPython's clients send a
/// longer one in two writes, and the second waits for an acknowledgement.
const REQUEST_LEN_MAX: usize = 16 << 10;
const HEADER_LEN: usize = size_of::<u32>();

/// Reads the call of a guest; `None` for anything else.
pub(crate) type Judge<R> = Box<dyn Fn(Bytes) -> Option<R> + Send>;

/// The right to read and write a session's socket, for the calls `R` that come on it.
pub(crate) struct HandedSocket<R> {
    socket: Arc<OwnedFd>,
    judge: Judge<R>,
    send_timeout: Duration,
    back: oneshot::Sender<Bytes>,
}

/// The event loop's end of a hand-off.
#[derive(Debug)]
pub(crate) struct Handback {
    socket: Arc<OwnedFd>,
    back: oneshot::Receiver<Bytes>,
}

/// Makes both ends.
pub(crate) fn hand_off<R>(
    socket: OwnedFd,
    judge: Judge<R>,
    send_timeout: Duration,
) -> (HandedSocket<R>, Handback) {
    let socket = Arc::new(socket);
    let (sender, back) = oneshot::channel();
    let handed = HandedSocket { socket: socket.clone(), judge, send_timeout, back: sender };
    (handed, Handback { socket, back })
}

impl Handback {
    /// Waits for the socket to come back: with bytes that have been read and not used, or `None` if
    /// its holder has gone.
    pub(crate) async fn returned(&mut self) -> Option<Bytes> {
        (&mut self.back).await.ok()
    }

    /// Ends the connection, which its holder notices.
    pub(crate) fn revoke(&self) {
        // Where the peer has gone already there is nothing to end.
        shutdown(&self.socket, Shutdown::Both).ok();
    }
}

impl<R> std::fmt::Debug for HandedSocket<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandedSocket").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<R> HandedSocket<R> {
    /// Waits for the next call of a guest; anything else gives the socket back.
    pub(crate) fn next(self) -> Option<(R, Self)> {
        let read = self.read();
        match whole_body(&read).and_then(&self.judge) {
            Some(request) => Some((request, self)),
            None => {
                // If nobody waits for it, the session has ended.
                drop(self.back.send(read));
                None
            }
        }
    }

    /// What has arrived, once something has; nothing at the end of the stream.
    fn read(&self) -> Bytes {
        let mut scratch = [0; REQUEST_LEN_MAX];
        loop {
            match recv(&self.socket, &mut scratch[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    return Bytes::copy_from_slice(scratch.get(..len).unwrap_or_default());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.wait(PollFlags::IN, None).is_ok() => {}
                // The event loop will meet the same error.
                Err(_) => return Bytes::new(),
            }
        }
    }

    /// Sends a reply as one frame, unless the client has already gone on to another request: it
    /// would take this reply for that one's.
    pub(crate) fn send(&self, reply: &Bytes) -> io::Result<()> {
        if matches!(recv(&self.socket, &mut [0], RecvFlags::DONTWAIT | RecvFlags::PEEK), Ok((1, _)))
        {
            return Ok(());
        }
        let mut framed = BytesMut::with_capacity(reply.len() + HEADER_LEN);
        frame::push(reply, &mut framed);
        let mut rest = &framed[..];
        while !rest.is_empty() {
            match send(&self.socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, Some(self.send_timeout))?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait(&self, event: PollFlags, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, event)], limit.as_ref()) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The body, if `read` is one whole frame with a short header and nothing else.
fn whole_body(read: &Bytes) -> Option<Bytes> {
    let (header, body) = read.split_first_chunk::<HEADER_LEN>()?;
    let is_whole = usize::try_from(i32::from_be_bytes(*header)) == Ok(body.len());
    (is_whole && !body.is_empty()).then(|| read.slice(HEADER_LEN..))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn handed_off() -> (UnixStream, HandedSocket<Bytes>, Handback) {
        let (client, server) = UnixStream::pair().unwrap();
        let judge = Box::new(|body: Bytes| body.starts_with(b"guest").then_some(body));
        let (handed, handback) = hand_off(OwnedFd::from(server), judge, Duration::from_secs(9));
        (client, handed, handback)
    }

    fn returned(mut handback: Handback) -> Option<Bytes> {
        pollster::block_on(handback.returned())
    }

    #[test]
    fn a_call_of_a_guest_is_read_and_answered() {
        let (mut client, handed, _handback) = handed_off();
        client.write_all(b"\0\0\0\x06guest!").unwrap();
        let (request, handed) = handed.next().unwrap();
        assert_eq!(request, "guest!");
        handed.send(&Bytes::from_static(b"reply")).unwrap();
        let mut reply = [0; 9];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"\0\0\0\x05reply");
    }

    #[test]
    fn anything_else_goes_back_with_the_socket() {
        for sent in [&b"\0\0\0\x05queue"[..], b"\0\0", b"\0\0\0\x09guest", b"\xff\xff\xff\xff", b""]
        {
            let (mut client, handed, handback) = handed_off();
            client.write_all(sent).unwrap();
            drop(client);
            assert!(handed.next().is_none());
            assert_eq!(returned(handback).unwrap(), sent);
        }
    }

    #[test]
    fn a_reply_that_nobody_waits_for_any_more_is_not_sent() {
        let (mut client, handed, _handback) = handed_off();
        client.write_all(b"\0\0\0\x06guest2").unwrap();
        handed.send(&Bytes::from_static(b"reply to 1")).unwrap();
        let (request, handed) = handed.next().unwrap();
        assert_eq!(request, "guest2");
        handed.send(&Bytes::from_static(b"2")).unwrap();
        let mut reply = [0; 5];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"\0\0\0\x012");
    }

    #[test]
    fn a_hand_off_ends_with_its_holder() {
        let (_client, handed, handback) = handed_off();
        drop(handed);
        assert_eq!(returned(handback), None);
    }

    #[test]
    fn a_hand_off_that_is_revoked_ends_its_holders_wait() {
        let (_client, handed, handback) = handed_off();
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| handed.next().is_none());
            handback.revoke();
            assert!(holder.join().unwrap());
        });
    }
}
