//! The listeners and the life of a server. The only place that spawns.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
#[cfg(unix)]
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use manyhands::Address;
use manyhands::wire::auth::AuthKey;
use manyhands::wire::message::repr;
use manyhands::wire::pickle;
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, Socket as RawSocket, Type};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Limits, Policy};
use crate::connection::{self, Shared, Turns};
use crate::data::{self, Data};
use crate::engine::{Engine, NoQueue, Restored};
use crate::guests::{self, Guests, Reception};
use crate::held::HeldQueue;
use crate::journal::{JournalError, Running};
use crate::lobby::{Lobby, Origin};
use crate::local::{AsyncQueue, Queue};
use crate::queue::{Durability, QueueOptions};
use crate::refusals::Refusals;
use crate::socket::Socket;

/// Connections that the kernel holds until we accept them: a fleet of workers starts at once.
const BACKLOG: i32 = 1024;
/// Only the owner may connect to a Unix socket.
#[cfg(unix)]
const SOCKET_MODE: u32 = 0o600;
/// How long a stopping server lets replies under way go out.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at one time that have not authenticated themselves yet. A flood of 24,000 a second from
/// the address of an honest client leaves that 170 ms for its first answer.
const GUESTS_MAX: usize = 4096;
/// Connections that are accepted before others have their turn.
const ACCEPTED_AT_ONCE: usize = 4;
/// A pause after a failed accept, which mostly means that file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Shortest key that is fit for an open network, in bytes.
const STRONG_KEY_LEN: usize = 16;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Nobody set a key. Without one, anybody on the machine could connect.
    #[error("a server needs an authkey")]
    NoKey,
    /// The address is open to other machines and the key is too easy to guess.
    #[error(
        "other machines can reach {address}, and the authkey has {len} bytes where 16 are needed; \
         use a longer key, or allow a weak one"
    )]
    WeakKey {
        /// The address.
        address: Address,
        /// Length of the key, in bytes; 0 for one that is all NUL bytes.
        len: usize,
    },
    /// An address that is no address, or cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// As it was given.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// A queue that cannot be declared.
    #[error(transparent)]
    Queue(#[from] NoQueue),
    /// The data directory cannot be used: in use, read-only, of a newer version, or damaged.
    #[error(transparent)]
    Journal(JournalError),
    /// A queue is to be kept, but there is nowhere to keep it.
    #[error(
        "the queue {} is declared with durability={durability}, but the server has no data directory",
        repr(.queue)
    )]
    NoData {
        /// Its name.
        queue: String,
        /// What was asked for.
        durability: Durability,
    },
    /// The largest request must fit into a file of the journal, which is smaller than 1 GiB.
    #[error(
        "a file of the journal would need {0} bytes for the largest request; the limit is 1 GiB"
    )]
    SegmentBytes(u64),
    /// No thread, event loop or random numbers to be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Collects what a [`Server`] needs. Only the key must be given.
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    addresses: Vec<String>,
    key: Option<AuthKey>,
    queues: Vec<(String, QueueOptions)>,
    data: Option<PathBuf>,
    limits: Limits,
    refuse_md5: bool,
    accept_shutdown: bool,
    allow_weak_key: bool,
}

impl Builder {
    /// Also listens on `address`: see [`Address`] for the forms. 127.0.0.1:5000 if none is given.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// The secret that clients must know.
    pub fn authkey(mut self, key: impl Into<AuthKey>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Declares a queue. Once one is declared, no other names exist; without any, a name becomes
    /// an unbounded FIFO queue when it is first used.
    pub fn queue(mut self, name: impl Into<String>, options: QueueOptions) -> Self {
        self.queues.push((name.into(), options));
        self
    }

    /// Keeps the queues that have a name in this directory, which is made if need be: they are there
    /// again after a restart, and a reply says that what it answers is
    /// [kept](QueueOptions::durability). Without it, all is in memory.
    pub fn data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data = Some(directory.into());
        self
    }

    /// Replaces the bounds.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Refuses clients that can prove themselves only by HMAC-MD5: Python 3.11 and earlier.
    pub fn refuse_md5(mut self, refuse: bool) -> Self {
        self.refuse_md5 = refuse;
        self
    }

    /// Lets every client stop the server, as CPython's does.
    pub fn accept_shutdown(mut self, accept: bool) -> Self {
        self.accept_shutdown = accept;
        self
    }

    /// Allows a key under 16 bytes on an address that other machines reach.
    pub fn allow_weak_key(mut self, allow: bool) -> Self {
        self.allow_weak_key = allow;
        self
    }

    /// Binds the addresses and serves them on threads of its own.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left behind then.
    pub fn start(self) -> Result<Server, StartError> {
        self.launch(None)
    }

    /// Like [`start`](Self::start), for a program that serves more than queues: whatever is no call
    /// of a queue it answers itself. No name becomes a queue when it is used; what clients may know
    /// are the queues of [`Server::hold`].
    ///
    /// # Errors
    ///
    /// As said.
    pub fn start_with_guests(self) -> Result<(Server, Guests), StartError> {
        let (reception, guests) = guests::reception();
        Ok((self.launch(Some(reception))?, guests))
    }

    fn launch(mut self, reception: Option<Reception>) -> Result<Server, StartError> {
        self.limits = self.limits.within_memory();
        let key = self.key.take().ok_or(StartError::NoKey)?;
        if self.addresses.is_empty() {
            self.addresses.push("127.0.0.1:5000".into());
        }
        let mut listeners = self.reserve(&key)?;
        let addresses = listeners.iter().map(|listener| listener.address.clone()).collect();
        #[cfg(unix)]
        let listening = listeners.iter().map(|listener| listener.socket.as_raw_fd()).collect();
        let Opened { shared, running, restored } = self.open(key, reception)?;
        // Whoever can connect can count on the data directory.
        listeners.iter_mut().try_for_each(Listener::listen)?;
        let data = running.map(|running| Data::new(running, &shared.engine)).transpose()?;
        let shared = Arc::new(shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("manyhands-server".into()).spawn({
            let shared = shared.clone();
            move || {
                let _ending = Ending(&shared);
                let served = runtime.block_on(run(listeners, &shared, data.as_ref()));
                // What sessions that are left have to say comes before the end of the journal.
                drop(runtime);
                served?;
                data.map_or(Ok(()), Data::close).map_err(io::Error::other)
            }
        })?;
        Ok(Server {
            shared,
            restored,
            addresses,
            #[cfg(unix)]
            listening,
            thread: Some(thread),
        })
    }

    fn reserve(&self, key: &AuthKey) -> Result<Vec<Listener>, StartError> {
        self.addresses
            .iter()
            .map(|text| {
                let listen = |error| StartError::Listen { address: text.clone(), error };
                let address = parsed(text).and_then(resolved).map_err(listen)?;
                let weak = key.strength() < STRONG_KEY_LEN;
                if weak && !address.is_local() && !self.allow_weak_key {
                    return Err(StartError::WeakKey { address, len: key.strength() });
                }
                Listener::reserve(address).map_err(listen)
            })
            .collect()
    }

    fn open(mut self, key: AuthKey, reception: Option<Reception>) -> Result<Opened, StartError> {
        if reception.is_some() {
            // The program decides what there is, as long as its clients may come back to it.
            self.limits.unused_timeout = Duration::ZERO;
        }
        let policy = Policy {
            accept_md5: !self.refuse_md5,
            accept_shutdown: self.accept_shutdown,
            create_on_use: self.queues.is_empty() && reception.is_none(),
        };
        let (engine, running, restored) = match &self.data {
            Some(directory) => {
                let opened =
                    data::open(directory, &self.limits, policy.create_on_use, &self.queues)?;
                let (running, engine, restored) = opened;
                (engine, Some(running), Some(restored))
            }
            None => (self.in_memory(&policy)?, None, None),
        };
        let shared = Shared {
            engine: Arc::new(engine),
            key,
            limits: self.limits,
            pickle_limits: pickle::Limits::default(),
            policy,
            reception,
            stop: CancellationToken::new(),
            turns: Turns::default(),
        };
        Ok(Opened { shared, running, restored })
    }

    /// An engine that keeps nothing.
    fn in_memory(&self, policy: &Policy) -> Result<Engine, StartError> {
        data::check_without(&self.queues)?;
        let mut boot = [0; 4];
        getrandom::fill(&mut boot).map_err(io::Error::other)?;
        let engine = Engine::new(&self.limits, policy.create_on_use, u32::from_ne_bytes(boot));
        for (name, options) in &self.queues {
            engine.declare(name, options.clone())?;
        }
        engine.declare_named()?;
        Ok(engine)
    }
}

/// What a server begins with.
struct Opened {
    shared: Shared,
    running: Option<Running>,
    restored: Option<Restored>,
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    restored: Option<Restored>,
    addresses: Vec<Address>,
    #[cfg(unix)]
    listening: Vec<RawFd>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Server {
    /// Starts to describe a server.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it listens, with the ports that were actually bound.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// What its data directory held, if it has one.
    #[must_use]
    pub fn restored(&self) -> Option<Restored> {
        self.restored
    }

    /// The descriptors of the listening sockets, for a program that forks: its child should close
    /// them, because the port stays taken as long as one of the two processes has them.
    #[cfg(unix)]
    #[must_use]
    pub fn listening(&self) -> &[RawFd] {
        &self.listening
    }

    /// What stops the server from elsewhere, a signal handler for example.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.shared.stop.clone())
    }

    /// Waits until the server has stopped.
    ///
    /// # Errors
    ///
    /// What made it fail, if nobody asked it to stop.
    pub fn wait(mut self) -> io::Result<()> {
        self.join()
    }

    /// Stops the server: no new connections, no new requests; replies under way go out.
    ///
    /// # Errors
    ///
    /// What had made it fail before.
    pub fn stop(mut self) -> io::Result<()> {
        self.shared.stop.cancel();
        self.join()
    }

    /// Makes a queue that has no name and belongs to this program.
    ///
    /// # Errors
    ///
    /// [`NoQueue::TooMany`].
    pub fn hold(&self, options: QueueOptions) -> Result<HeldQueue, NoQueue> {
        let engine = &self.shared.engine;
        Ok(HeldQueue::new(engine.clone(), engine.hold(options)?))
    }

    /// The queue that a client knows as `ident`, if it is there.
    #[must_use]
    pub fn held(&self, ident: &str) -> Option<HeldQueue> {
        let engine = &self.shared.engine;
        Some(HeldQueue::new(engine.clone(), engine.hold_again(ident)?))
    }

    /// Queues that clients refer to, however often.
    #[must_use]
    pub fn number_of_queues(&self) -> usize {
        self.shared.engine.number_of_queues()
    }

    /// A text about every reference of a client to a queue, in the form of CPython's server.
    #[must_use]
    pub fn debug_info(&self) -> String {
        connection::lists::debug_info(&self.shared.engine)
    }

    /// A queue of this server for a program in the same process, made now if it may be.
    ///
    /// # Errors
    ///
    /// [`NoQueue`] if only other names were declared.
    pub fn queue<T: Serialize + DeserializeOwned>(&self, name: &str) -> Result<Queue<T>, NoQueue> {
        let engine = &self.shared.engine;
        Ok(Queue::new(engine.clone(), engine.open(name)?))
    }

    /// Like [`queue`](Self::queue), for `async` code.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn async_queue<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<AsyncQueue<T>, NoQueue> {
        let engine = &self.shared.engine;
        Ok(AsyncQueue::new(engine.clone(), engine.open(name)?))
    }

    fn join(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the server's thread panicked")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.shared.stop.cancel();
            if let Err(error) = self.join() {
                tracing::error!("the server failed: {error}");
            }
        }
    }
}

/// Stops a [`Server`] from elsewhere.
#[derive(Debug, Clone)]
pub struct Stopper(CancellationToken);

impl Stopper {
    /// Asks the server to stop; returns at once.
    pub fn stop(&self) {
        self.0.cancel();
    }

    /// Completes when the server was asked to stop, by whomever.
    pub async fn stopped(&self) {
        self.0.cancelled().await;
    }
}

/// Tells everybody when the server's thread ends, however it does.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.stop.cancel();
        self.0.engine.stop();
        if let Some(reception) = &self.0.reception {
            reception.close();
        }
    }
}

/// Serves until told to stop, then lets replies under way go out.
///
/// # Errors
///
/// If nothing can be kept any more: then no reply may leave, and none does.
async fn run(
    listeners: Vec<Listener>,
    shared: &Arc<Shared>,
    data: Option<&Data>,
) -> io::Result<()> {
    let tasks = TaskTracker::new();
    let connections_max = shared.limits.connections_max;
    let accepting = Accepting {
        shared: shared.clone(),
        lobby: Lobby::new(GUESTS_MAX.min(connections_max.div_ceil(2)), connections_max),
        refusals: Arc::default(),
        tasks: tasks.clone(),
    };
    for listener in listeners {
        tasks.spawn(listener.accept(accepting.clone())?);
    }
    let refusals = accepting.refusals.clone();
    // Ends with this function; who is left then is told by the journal itself.
    let mut heralds = JoinSet::new();
    if let Some(journal) = data.and_then(Data::journal) {
        heralds.spawn(async move { journal.herald().await });
    }
    let failed = async {
        match data {
            Some(data) => data.failed().await,
            None => std::future::pending().await,
        }
    };
    let mut failed = pin!(failed);
    tokio::select! {
        () = shared.engine.keep_time() => {}
        () = shared.engine.keep_room() => {}
        () = refusals.keep_telling() => {}
        () = shared.stop.cancelled() => {}
        error = &mut failed => return Err(io::Error::other(error)),
    }
    tasks.close();
    refusals.tell();
    shared.engine.stop();
    tokio::select! {
        error = failed => return Err(io::Error::other(error)),
        drained = tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()) => if drained.is_err() {
            tracing::warn!(connections = tasks.len(), "stopping without waiting for slow clients");
        },
    }
    Ok(())
}

fn parsed(text: &str) -> io::Result<Address> {
    text.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The address with a number for the host's name.
fn resolved(address: Address) -> io::Result<Address> {
    match address {
        Address::Tcp { host, port } => socket_address(&host, port).map(Address::from),
        Address::Unix(_) => Ok(address),
    }
}

fn socket_address(host: &str, port: u16) -> io::Result<SocketAddr> {
    let first = (host, port).to_socket_addrs()?.next();
    first.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))
}

/// An address of the server. Until it listens, nobody can connect.
#[derive(Debug)]
struct Listener {
    address: Address,
    socket: RawSocket,
    /// Of a Unix socket that listens.
    #[cfg(unix)]
    file: Option<SocketFile>,
}

impl Listener {
    /// Takes a port, so that no other server can have it. A Unix socket has no name before it listens:
    /// it would look like the socket of a server that is dead.
    fn reserve(address: Address) -> io::Result<Self> {
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

    /// Lets clients connect.
    fn listen(&mut self) -> Result<(), StartError> {
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
    fn accept(self, accepting: Accepting) -> io::Result<impl Future<Output = ()> + Send> {
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

#[derive(Debug, Clone)]
struct Accepting {
    shared: Arc<Shared>,
    lobby: Lobby,
    refusals: Arc<Refusals>,
    tasks: TaskTracker,
}

impl Accepting {
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

    /// Serves a newcomer, if there is a place for it. One that is turned away sees the connection
    /// close: nothing can be said in the protocol before the challenge.
    fn enter(&self, socket: impl Socket + 'static, origin: Origin, peer: impl FnOnce() -> String) {
        let Some(guest) = self.lobby.enter(origin) else {
            self.refusals.turned_away(self.shared.limits.connections_max);
            return;
        };
        let (shared, refusals) = (self.shared.clone(), self.refusals.clone());
        let peer: Arc<str> = peer().into();
        self.tasks.spawn(async move {
            match connection::serve(socket, &peer, &shared, guest).await {
                Ok(()) => tracing::trace!(peer = &*peer, "closed"),
                Err(connection::ConnectionError::Auth(error)) => {
                    refusals.login_failed(origin, &peer, error);
                }
                Err(error @ connection::ConnectionError::CutOff(_)) => {
                    tracing::info!(peer = &*peer, "{error}");
                }
                Err(error) => tracing::debug!(peer = &*peer, "{error}"),
            }
        });
    }
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
