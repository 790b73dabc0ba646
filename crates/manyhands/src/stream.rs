//! Sockets, those of tokio's and blocking ones: the one place where the two differ.

use std::io::{self, Read};
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::{LOOK_UP, Mode};
use crate::Error;
use crate::connect::{self, Address};
use crate::server::Server;

/// `MSG_NOSIGNAL`: a connection that broke is an error and not a signal, which may end the program.
const NO_SIGNAL: i32 = if cfg!(target_os = "linux") { 0x4000 } else { 0 };

/// When somebody gives up waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    /// `None`: never, or too far away to be told.
    at: Option<Instant>,
    limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Option<Duration>) -> Self {
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
    pub(super) fn passed(self, error: &io::Error, address: &Arc<Address>) -> Option<Error> {
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
pub(super) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    /// Of either kind.
    Blocking(Socket, Option<fn() -> bool>),
}

impl Stream {
    pub(super) async fn connect(
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
                Self::Blocking(connect_tcp(host, *port, deadline)?, goes_on)
            }
            (_, Address::Unix(path)) => Self::Blocking(connect_unix(path, deadline)?, goes_on),
        };
        if let Address::Tcp { .. } = *server.address {
            connect::tune(stream.socket())?;
        }
        Ok(stream)
    }

    pub(super) async fn send_all(&self, mut bytes: Bytes, deadline: Deadline) -> io::Result<()> {
        while !bytes.is_empty() {
            let send = |socket: &Socket| socket.send_with_flags(&bytes, NO_SIGNAL);
            let sent = self.wait(Interest::WRITABLE, deadline, send).await?;
            bytes.advance(sent);
        }
        Ok(())
    }

    /// Receives at least one byte; 0 at the end.
    pub(super) async fn receive(&self, room: &mut [u8], deadline: Deadline) -> io::Result<usize> {
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
            Self::Blocking(socket, goes_on) => block(socket, *goes_on, interest, deadline, work),
        }
    }

    /// Whether nothing has come since the last reply.
    pub(super) fn is_quiet(&self) -> bool {
        let Self::Blocking(socket, _) = self else { return connect::is_quiet(self.socket()) };
        socket.set_nonblocking(true).is_ok()
            && connect::is_quiet(self.socket())
            && socket.set_nonblocking(false).is_ok()
    }

    /// Ends the connection, and the call on it.
    pub(super) fn end(&self) {
        // It fails if the connection has ended already.
        self.socket().shutdown(std::net::Shutdown::Both).ok();
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            #[cfg(unix)]
            Self::Unix(stream) => SockRef::from(stream),
            Self::Blocking(socket, _) => SockRef::from(socket),
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
