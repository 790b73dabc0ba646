//! Sockets, those of tokio's and blocking ones.
//!
//! One of tokio's suspends its task, a blocking one blocks its thread. A function that waits for
//! nothing but blocking streams is never suspended, so that [`now`] runs it to its end without a
//! runtime.

use std::io::{self, IoSlice, Read};
use std::net::ToSocketAddrs;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::Error;
use crate::connect::{self, Address};
use crate::server::Server;

/// How long a client waits before it asks whether it should go on.
pub(crate) const LOOK_UP: Duration = Duration::from_millis(50);

/// How a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// With `.await`, in a runtime of tokio's.
    Async,
    /// Its thread is blocked.
    Blocking,
}

/// Runs what waits in [`Mode::Blocking`] alone.
pub(crate) fn now<R>(future: impl Future<Output = R>) -> R {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("a blocking stream blocks instead of suspending"),
    }
}

/// `MSG_NOSIGNAL`: a connection that broke is an error and not a signal, which may end the program.
const NO_SIGNAL: i32 = if cfg!(target_os = "linux") { 0x4000 } else { 0 };

/// `MSG_DONTWAIT`; 0 where there is none.
const NO_WAIT: i32 = if cfg!(target_os = "linux") {
    0x40
} else if cfg!(unix) {
    0x80
} else {
    0
};

/// When somebody gives up waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// `None`: never, or too far away to be told.
    at: Option<Instant>,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Option<Duration>) -> Self {
        let at = limit.and_then(|limit| Instant::now().checked_add(limit));
        Self { at, limit: limit.unwrap_or(Duration::MAX) }
    }

    /// The time that is left, as a socket's time-out; `None` for ever. None left is an error.
    fn left(self) -> io::Result<Option<Duration>> {
        let Some(at) = self.at else { return Ok(None) };
        match at.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            // Sockets count microseconds, and none of them means for ever.
            left => Ok(Some(left.max(Duration::from_millis(1)))),
        }
    }

    /// The error, if it says that the time is up, or that the program wants an end.
    pub(crate) fn passed(self, error: &io::Error, address: &Arc<Address>) -> Option<Error> {
        let timed_out = || Error::TimedOut { address: Arc::clone(address), after: self.limit };
        match error.kind() {
            io::ErrorKind::Interrupted => Some(Error::Interrupted),
            _ => (self.at.is_some() && is_time_out(error)).then(timed_out),
        }
    }

    async fn limit<R>(self, work: impl Future<Output = io::Result<R>>) -> io::Result<R> {
        match self.at {
            Some(at) => timeout_at(at, work).await?,
            None => work.await,
        }
    }
}

fn is_time_out(error: &io::Error) -> bool {
    // A socket's time-out is the one on some systems and the other on others. Where it is the first,
    // the second comes from the system only if the peer has vanished.
    match error.kind() {
        io::ErrorKind::WouldBlock => true,
        io::ErrorKind::TimedOut => cfg!(not(unix)) || error.raw_os_error().is_none(),
        _ => false,
    }
}

/// A socket that is connected.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    /// Of either kind.
    Blocking(Socket, Option<fn() -> bool>, ReadTimeout),
}

/// How long a blocking socket waits when it receives, in microseconds, so that the system is told
/// only of changes; 0 is what it was made with.
#[derive(Debug, Default)]
pub(crate) struct ReadTimeout(AtomicU64);

impl ReadTimeout {
    fn set(&self, socket: &Socket, limit: Duration) -> io::Result<()> {
        let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        if self.0.load(Ordering::Relaxed) != micros {
            socket.set_read_timeout(Some(limit))?;
            self.0.store(micros, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Stream {
    fn blocking(socket: Socket, goes_on: Option<fn() -> bool>) -> Self {
        Self::Blocking(socket, goes_on, ReadTimeout::default())
    }

    /// Connects within the time that the options give.
    pub(crate) async fn open(mode: Mode, server: &Server) -> Result<Self, Error> {
        let deadline = Deadline::after(Some(server.options.connect_timeout));
        Self::connect(mode, server, deadline).await.map_err(|error| {
            let address = Arc::clone(&server.address);
            deadline.passed(&error, &server.address).unwrap_or(Error::Connect { address, error })
        })
    }

    pub(crate) async fn connect(
        mode: Mode,
        server: &Server,
        deadline: Deadline,
    ) -> io::Result<Self> {
        let goes_on = server.options.goes_on;
        let stream = match (mode, &*server.address) {
            (Mode::Async, Address::Tcp { host, port }) => {
                let connecting = TcpStream::connect((host.as_str(), *port));
                Self::Tcp(deadline.limit(connecting).await?)
            }
            #[cfg(unix)]
            (Mode::Async, Address::Unix(path)) => {
                Self::Unix(deadline.limit(UnixStream::connect(path)).await?)
            }
            (Mode::Blocking, Address::Tcp { host, port }) => {
                Self::blocking(connect_tcp(host, *port, deadline)?, goes_on)
            }
            (_, Address::Unix(path)) => Self::blocking(connect_unix(path, deadline)?, goes_on),
        };
        if let Address::Tcp { .. } = *server.address {
            connect::tune(stream.socket())?;
        }
        Ok(stream)
    }

    pub(crate) async fn send_all(&self, mut bytes: Bytes, deadline: Deadline) -> io::Result<()> {
        while !bytes.is_empty() {
            let send = |socket: &Socket| socket.send_with_flags(&bytes, NO_SIGNAL);
            let sent = self.wait(Interest::WRITABLE, deadline, send).await?;
            bytes.advance(sent);
        }
        Ok(())
    }

    /// Receives at least one byte; 0 at the end.
    pub(crate) async fn receive(&self, room: &mut [u8], deadline: Deadline) -> io::Result<usize> {
        self.wait(Interest::READABLE, deadline, |mut socket: &Socket| socket.read(room)).await
    }

    /// Does something as soon as the socket lets it.
    async fn wait<R>(
        &self,
        interest: Interest,
        deadline: Deadline,
        mut work: impl FnMut(&Socket) -> io::Result<R>,
    ) -> io::Result<R> {
        let work = || work(&self.socket());
        match self {
            Self::Tcp(stream) => deadline.limit(stream.async_io(interest, work)).await,
            #[cfg(unix)]
            Self::Unix(stream) => deadline.limit(stream.async_io(interest, work)).await,
            Self::Blocking(socket, goes_on, _) => block(socket, *goes_on, interest, deadline, work),
        }
    }

    /// Writes what the socket takes without blocking.
    pub(crate) fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let write = |flags| self.socket().send_vectored_with_flags(parts, NO_SIGNAL | flags);
        match self {
            Self::Tcp(stream) => stream.try_io(Interest::WRITABLE, || write(0)),
            #[cfg(unix)]
            Self::Unix(stream) => stream.try_io(Interest::WRITABLE, || write(0)),
            Self::Blocking(..) => write(NO_WAIT),
        }
    }

    /// Reads what is there into the room at the end of `inbound`, on one of tokio's; 0 at the end.
    pub(crate) fn try_read(&self, inbound: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(inbound),
            #[cfg(unix)]
            Self::Unix(stream) => stream.try_read_buf(inbound),
            Self::Blocking(..) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Waits until one of tokio's can be read, or written.
    pub(crate) async fn ready(&self, to_read: bool) -> io::Result<()> {
        match (self, to_read) {
            (Self::Tcp(stream), true) => stream.readable().await,
            (Self::Tcp(stream), false) => stream.writable().await,
            #[cfg(unix)]
            (Self::Unix(stream), true) => stream.readable().await,
            #[cfg(unix)]
            (Self::Unix(stream), false) => stream.writable().await,
            (Self::Blocking(..), _) => Ok(()),
        }
    }

    /// Receives at least one byte on a blocking one, within some time; 0 at the end.
    pub(crate) fn receive_within(&self, room: &mut [u8], limit: Duration) -> io::Result<usize> {
        let Self::Blocking(socket, _, timeout) = self else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        timeout.set(socket, limit)?;
        let mut socket = socket;
        socket.read(room)
    }

    /// Whether nothing has come since the last reply.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Self::Blocking(socket, ..) if NO_WAIT == 0 => {
                socket.set_nonblocking(true).is_ok()
                    && connect::is_quiet(self.socket(), NO_WAIT)
                    && socket.set_nonblocking(false).is_ok()
            }
            _ => connect::is_quiet(self.socket(), NO_WAIT),
        }
    }

    /// Ends the connection, and the call on it.
    pub(crate) fn end(&self) {
        // It fails if the connection has ended already.
        self.socket().shutdown(std::net::Shutdown::Both).ok();
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            #[cfg(unix)]
            Self::Unix(stream) => SockRef::from(stream),
            Self::Blocking(socket, ..) => SockRef::from(socket),
        }
    }
}

/// Blocks the thread, looking up now and then if the program wants that.
fn block<R>(
    socket: &Socket,
    goes_on: Option<fn() -> bool>,
    interest: Interest,
    deadline: Deadline,
    mut work: impl FnMut() -> io::Result<R>,
) -> io::Result<R> {
    loop {
        let left = deadline.left()?;
        let look_up = goes_on.map(|_| left.map_or(LOOK_UP, |left| left.min(LOOK_UP)));
        if interest.is_readable() {
            socket.set_read_timeout(look_up.or(left))?;
        } else {
            socket.set_write_timeout(look_up.or(left))?;
        }
        match (work(), goes_on) {
            (Err(error), _) if error.kind() == io::ErrorKind::Interrupted => {}
            (Err(error), Some(goes_on)) if is_time_out(&error) => {
                if !goes_on() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
            (done, _) => return done,
        }
    }
}

/// Tries the host's addresses one after the other.
fn connect_tcp(host: &str, port: u16, deadline: Deadline) -> io::Result<Socket> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        let attempt = match deadline.left()? {
            Some(left) => socket.connect_timeout(&address.into(), left),
            None => socket.connect(&address.into()),
        };
        match attempt {
            Ok(()) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Linux lets a connect wait while the listener's backlog is full, as a write waits for room.
fn connect_unix(path: &Path, deadline: Deadline) -> io::Result<Socket> {
    if cfg!(not(unix)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(deadline.left()?)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}
