//! The addresses of a server: bound, listening, and accepting connections within the limits that hold
//! before a login.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
#[cfg(unix)]
use std::os::fd::{AsRawFd, RawFd};
#[cfg(unix)]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use manyhands::Address;
use manyhands::wire::{auth, frame};
use socket2::{Domain, Socket as RawSocket, Type};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::error::{ConnectionError, StartError};
use crate::frontend;
use crate::frontend::classic::shared::Shared;
use crate::refusals::Refusals;
use crate::slots::{Origin, Slots};
use crate::socket::Socket;

/// Connections that the kernel holds until we accept them: a fleet of workers starts at once.
const BACKLOG: i32 = 1024;
/// Only the owner may connect to a Unix socket.
#[cfg(unix)]
const SOCKET_MODE: u32 = 0o600;
/// Connections at one time that have not authenticated themselves yet. A flood of 24,000 a second from
/// the address of an honest client leaves that 170 ms for its first answer.
const STRANGERS_MAX: usize = 4096;
/// Connections that are accepted before others have their turn.
const ACCEPTED_AT_ONCE: usize = 4;
/// A pause after a failed accept, which mostly means that file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The address that `text` names, with a number for the host's name.
pub(crate) fn resolve(text: &str) -> io::Result<Address> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    match text.parse().map_err(invalid)? {
        Address::Tcp { host, port } => socket_address(&host, port).map(Address::from),
        address @ Address::Unix(_) => Ok(address),
    }
}

fn socket_address(host: &str, port: u16) -> io::Result<SocketAddr> {
    let first = (host, port).to_socket_addrs()?.next();
    first.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))
}

/// An address of the server. Until it listens, nobody can connect.
#[derive(Debug)]
pub(crate) struct Listener {
    address: Address,
    socket: RawSocket,
    /// Of a Unix socket that listens.
    #[cfg(unix)]
    file: Option<SocketFile>,
}

impl Listener {
    /// Takes a port, so that no other server can have it. A Unix socket has no name before it listens:
    /// it would look like the socket of a server that is dead.
    pub(crate) fn reserve(address: Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let address = socket_address(&host, port)?;
                let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, None)?;
                // On Windows this option would let a second server take the port away.
                #[cfg(unix)]
                socket.set_reuse_address(true)?;
                socket.bind(&address.into())?;
                let bound = socket.local_addr()?.as_socket().unwrap_or(address);
                Ok(Self {
                    address: bound.into(),
                    socket,
                    #[cfg(unix)]
                    file: None,
                })
            }
            #[cfg(unix)]
            Address::Unix(_) => {
                let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
                Ok(Self { address, socket, file: None })
            }
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Where it is, with the port that was actually bound.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The descriptor of its socket.
    #[cfg(unix)]
    pub(crate) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Lets clients connect.
    pub(crate) fn listen(&mut self) -> Result<(), StartError> {
        let listening = self
            .name()
            .and_then(|()| self.socket.listen(BACKLOG))
            .and_then(|()| self.socket.set_nonblocking(true));
        let address = || self.address.to_string();
        listening.map_err(|error| StartError::Listen { address: address(), error })
    }

    /// Gives a Unix socket its name. Nobody can connect before it listens, so there is no moment at
    /// which others could.
    #[cfg(unix)]
    fn name(&mut self) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let Address::Unix(path) = &self.address else { return Ok(()) };
        let name = socket2::SockAddr::unix(path)?;
        remove_dead_socket(path, &name);
        self.socket.bind(&name)?;
        self.file = Some(SocketFile(path.clone()));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
    }

    #[cfg(not(unix))]
    fn name(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// A future that accepts connections until the server stops.
    pub(crate) fn accept(
        self,
        accepting: Accepting,
    ) -> io::Result<impl Future<Output = ()> + Send> {
        #[cfg(unix)]
        let file = self.file;
        let listening = match self.address {
            Address::Tcp { .. } => Listening::Tcp(TcpListener::from_std(self.socket.into())?),
            #[cfg(unix)]
            Address::Unix(_) => {
                Listening::Unix(tokio::net::UnixListener::from_std(self.socket.into())?)
            }
            #[cfg(not(unix))]
            Address::Unix(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(async move {
            let stop = accepting.shared.stop.clone();
            tokio::select! {
                () = accepting.run(&listening) => {}
                () = stop.cancelled() => {}
            }
            #[cfg(unix)]
            drop(file);
        })
    }
}

/// The name of a Unix socket, until it is dropped.
#[cfg(unix)]
#[derive(Debug)]
struct SocketFile(PathBuf);

#[cfg(unix)]
impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nobody can do anything about a failure here; the next server clears it away.
        drop(std::fs::remove_file(&self.0));
    }
}

/// Clears away the socket of a server that was killed. One that is alive answers and stays.
#[cfg(unix)]
fn remove_dead_socket(path: &std::path::Path, name: &socket2::SockAddr) {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    let refuses = || {
        let probe = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
        probe.connect(name)
    };
    if is_socket && refuses().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        // If it cannot be removed, binding says why.
        drop(std::fs::remove_file(path));
    }
}

#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

/// What every listener needs to serve those that come.
#[derive(Debug, Clone)]
pub(crate) struct Accepting {
    shared: Arc<Shared>,
    slots: Slots,
    refusals: Arc<Refusals>,
    tasks: TaskTracker,
}

impl Accepting {
    /// The connections that come of this are among `tasks`.
    pub(crate) fn new(shared: &Arc<Shared>, tasks: &TaskTracker) -> Self {
        let connections_max = shared.limits.connections_max;
        Self {
            shared: shared.clone(),
            slots: Slots::new(STRANGERS_MAX.min(connections_max.div_ceil(2)), connections_max),
            refusals: Arc::default(),
            tasks: tasks.clone(),
        }
    }

    /// What the log says of those that are refused.
    pub(crate) fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// Accepts connections as they come, for ever. Each batch is served before the next is accepted, so
    /// that a flood of connections leaves the thread to those that are there.
    async fn run(&self, listening: &Listening) {
        loop {
            for _ in 0..ACCEPTED_AT_ONCE {
                if let Err(error) = self.accept(listening).await {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn accept(&self, listening: &Listening) -> io::Result<()> {
        match listening {
            Listening::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                self.enter(socket, peer.ip().into(), || peer.to_string());
            }
            #[cfg(unix)]
            Listening::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                self.enter(socket, Origin::Local, || Origin::Local.to_string());
            }
        }
        Ok(())
    }

    /// Serves a newcomer, if there is a place for it. One that is turned away is told so, where its
    /// challenge would be.
    fn enter(&self, socket: impl Socket + 'static, origin: Origin, peer: impl FnOnce() -> String) {
        let Some(slot) = self.slots.enter(origin) else {
            let connections_max = self.shared.limits.connections_max;
            self.refusals.turned_away(connections_max);
            socket.send_at_once(&farewell(connections_max));
            return;
        };
        let (shared, refusals) = (self.shared.clone(), self.refusals.clone());
        let peer: Arc<str> = peer().into();
        self.tasks.spawn(async move {
            match frontend::serve(socket, &peer, &shared, slot).await {
                Ok(()) => tracing::trace!(peer = &*peer, "closed"),
                Err(ConnectionError::Auth(error)) => {
                    refusals.login_failed(origin, &peer, error);
                }
                Err(error @ ConnectionError::CutOff(_)) => {
                    tracing::info!(peer = &*peer, "{error}");
                }
                Err(error) => tracing::debug!(peer = &*peer, "{error}"),
            }
        });
    }
}

/// What newcomers are told that find no place.
fn farewell(connections_max: usize) -> BytesMut {
    let reason =
        format!("all {connections_max} connections of this server are in use (--connections-max)");
    let mut outbound = BytesMut::new();
    frame::push(&auth::turned_away(&reason), &mut outbound);
    outbound
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_port_that_is_taken_answers_only_when_it_listens() {
        let mut listener = Listener::reserve("127.0.0.1:0".parse().unwrap()).unwrap();
        let Address::Tcp { host, port } = listener.address.clone() else { panic!("it is TCP") };
        let connect = || TcpStream::connect((host.as_str(), port));
        assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        listener.listen().unwrap();
        connect().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_use_a_unix_socket_and_it_goes_with_its_listener() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut listener = Listener::reserve(Address::Unix(path.clone())).unwrap();
        assert!(!path.exists());
        listener.listen().unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }
}
