//! The same client without `async`: each call blocks its thread.
//!
//! A server serves one call at a time on each session, so every thread that is in a call has its
//! own session; those at rest are kept for the next calls.

use std::fmt;
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::ops::Deref;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::SockRef;
#[cfg(unix)]
use socket2::{Domain, SockAddr, Socket, Type};

use crate::Error;
use crate::calls::{
    Call, References, Returning, Server, is_of_manyhands, lock, pickled, pickled_all, readable,
};
use crate::connect::{self, Address, ConnectOptions};
use crate::conversation::{Conversation, Step};
use crate::reply::{Leased, PutOptions, Taken, piece};
use crate::retry::{Failure, Repeat, Retry};
use crate::wire::auth::AuthKey;
use crate::wire::extra::{Peek, Peeked, announced};
use crate::wire::message::QueueInfo;
use crate::wire::pickle::{Dialect, Payload};
use crate::wire::request::Answer;

/// How long a queue that is dropped may take to give its reference back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a call waits before it asks whether it should go on.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Most bytes received at one time.
const CHUNK_LEN: usize = 64 << 10;

/// A server of queues. Clones are the same client.
///
/// ```no_run
/// let client = manyhands::blocking::Client::connect("10.0.0.7:5000", b"abc")?;
/// let tasks = client.queue::<u64>("get_task_queue")?;
/// tasks.put(&12)?;
/// # Ok::<(), manyhands::Error>(())
/// ```
///
/// A client takes leave of the server when its queues are dropped. One that just vanishes
/// (`std::process::exit`, a signal) looks to a manyhands server like one that crashed, and about a
/// second later what it had in hand
/// goes to somebody else, unless the queue delivers as CPython does. In hand is what was taken and
/// not yet followed on the same session by its result, by `task_done`, by a `get` from the same
/// queue or by a `put` to another; where the queue names a result queue, only the first two count.
/// Call [`close`](Self::close) before `exit`.
///
/// Any call takes any session at rest. Threads that work on items at the same time therefore need a
/// client each, by a `connect` of its own: on shared sessions the server would take the result of
/// one for that of another.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: Server,
    dialect: Dialect,
    sessions: Mutex<Sessions>,
    references: Mutex<References>,
}

#[derive(Debug, Default)]
struct Sessions {
    /// No call may begin.
    is_closed: bool,
    idle: Vec<Session>,
    /// Of all sessions, so that closing the client ends the calls under way.
    streams: Vec<Weak<Stream>>,
}

impl Sessions {
    /// Notes a session that was just opened.
    fn add(&mut self, session: &Session) {
        self.streams.retain(|stream| stream.strong_count() > 0);
        self.streams.push(Arc::downgrade(&session.stream));
    }

    /// A session at rest on which nothing has happened since.
    fn take_idle(&mut self) -> Option<Session> {
        std::iter::from_fn(|| self.idle.pop()).find(Session::is_quiet)
    }

    /// Ends all sessions and the calls on them.
    fn end(&mut self) {
        self.idle.clear();
        for stream in self.streams.drain(..).filter_map(|stream| stream.upgrade()) {
            // It fails if the connection has ended already.
            stream.socket().shutdown(Shutdown::Both).ok();
        }
    }
}

impl Client {
    /// Connects to the server at `address`: `host:port`, `[v6]:port` or `unix:/path`.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`], [`Error::Authentication`], [`Error::TimedOut`].
    pub fn connect(address: &str, authkey: impl Into<AuthKey>) -> Result<Self, Error> {
        Self::connect_with(address, authkey, ConnectOptions::default())
    }

    /// Connects with other than the default options.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`], [`Error::Authentication`], [`Error::TimedOut`].
    pub fn connect_with(
        address: &str,
        authkey: impl Into<AuthKey>,
        options: ConnectOptions,
    ) -> Result<Self, Error> {
        let server = Server { address: Arc::new(address.parse()?), key: authkey.into(), options };
        let limit = server.options.connect_timeout;
        let mut retry = Retry::first(&server);
        let answer = loop {
            match control(&server, &Call::control("dummy", None), limit) {
                Ok(answer) => break answer,
                Err(error) => sleep(retry.judge(Failure::unsent(error))?, &server, || Ok(()))?,
            }
        };
        server.result(&answer)?;
        let shared = Shared {
            server,
            dialect: answer.dialect,
            sessions: Mutex::default(),
            references: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The queue registered as `name`, holding items of type `T`.
    ///
    /// Nothing checks the type until an item is read.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownQueue`], or that the server was lost.
    pub fn queue<T>(&self, name: &str) -> Result<Queue<T>, Error> {
        let answer = self.control("create", Some(name))?;
        let ident = self.shared.server.created(name, &answer)?;
        lock(&self.shared.references).add(ident.clone());
        let ident = Mutex::new(ident.into());
        let reference = Reference { client: self.clone(), ident, name: name.to_owned() };
        self.check_open()?;
        Ok(Queue { reference: Arc::new(reference), item: PhantomData })
    }

    /// The queues of a manyhands server, whether anybody uses them or not.
    ///
    /// # Errors
    ///
    /// [`Error::NotManyhands`] from CPython's own server, or that the server was lost.
    pub fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        let server = &self.shared.server;
        match server.of_ours(&self.control("list_queues", None)?) {
            // An older one tells less.
            Err(Error::NotManyhands { .. }) => server.of_ours(&self.control("queues", None)?),
            queues => queues,
        }
    }

    /// Forgets a queue of a manyhands server, with the tasks in it, and says how many those were.
    ///
    /// A declared queue stays. One that is in use goes only if `force` says so: whoever waits for it
    /// is told that it is shut down, and its references are good no more.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] that says why the queue stays, [`Error::NotManyhands`] from CPython's own
    /// server, or that the server was lost.
    pub fn drop_queue(&self, name: &str, force: bool) -> Result<u64, Error> {
        self.check_open()?;
        let (server, call) = (&self.shared.server, Call::drop_queue(name, force));
        server.of_ours(&control(server, &call, server.options.connect_timeout)?)
    }

    /// The server's own text about its objects.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the server keeps it to itself, or that the server was lost.
    pub fn debug_info(&self) -> Result<String, Error> {
        self.shared.server.read(&self.control("debug_info", None)?)
    }

    /// How many objects clients hold references to.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the server keeps it to itself, or that the server was lost.
    pub fn number_of_objects(&self) -> Result<u64, Error> {
        self.shared.server.read(&self.control("number_of_objects", None)?)
    }

    /// Where the server is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.shared.server.address
    }

    /// Takes leave of the server: gives the references to all queues back and closes all sessions.
    ///
    /// That ends the work of all clones and queues of this client. Their calls under way return
    /// [`Error::Closed`], unless their answers come before, and so does every later call. To a
    /// manyhands server the items that they had taken count as done, but for those from a queue
    /// with a result queue, which go to somebody else.
    ///
    /// # Errors
    ///
    /// That the server was lost. The client is closed all the same; to call this again gives the
    /// references back that were not.
    pub fn close(&self) -> Result<(), Error> {
        lock(&self.shared.sessions).is_closed = true;
        let released = self.release_all();
        // Sessions that ended before would look like those of a client that crashed.
        lock(&self.shared.sessions).end();
        released
    }

    fn release_all(&self) -> Result<(), Error> {
        let next = || lock(&self.shared.references).pop();
        std::iter::from_fn(next).try_for_each(|ident| {
            self.shared.release(ident, self.shared.server.options.connect_timeout)
        })
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.is_closed() { Err(self.shared.server.closed()) } else { Ok(()) }
    }

    fn is_closed(&self) -> bool {
        lock(&self.shared.sessions).is_closed
    }

    fn control(&self, name: &str, text: Option<&str>) -> Result<Answer, Error> {
        self.check_open()?;
        let server = &self.shared.server;
        control(server, &Call::control(name, text), server.options.connect_timeout)
    }

    /// Makes one call on a session of its own.
    fn call(&self, call: Call) -> Result<Answer, Failure> {
        let server = &self.shared.server;
        let mut session = self.session().map_err(Failure::unsent)?;
        let deadline = call.time_limit(&server.options).map(Deadline::after);
        let body = session.ask(&call.request, deadline).map_err(|error| match error {
            Error::Lost { .. } if self.is_closed() => Failure::sent(server.closed()),
            error => Failure::sent(error),
        })?;
        self.keep(session);
        decode(server, &body).map_err(Failure::sent)
    }

    /// Waits before a call is made again, unless the client is closed or the program wants an end.
    fn pause(&self, pause: Duration) -> Result<(), Error> {
        sleep(pause, &self.shared.server, || self.check_open())
    }

    /// Makes a call whose outcome nobody waits for.
    fn let_go(&self, call: Call) {
        // What fails here is found by the server itself.
        self.call(call).ok();
    }

    /// One that is at rest, or a new one.
    fn session(&self) -> Result<Session, Error> {
        self.check_open()?;
        let idle = lock(&self.shared.sessions).take_idle();
        if let Some(session) = idle {
            return Ok(session);
        }
        let session = open_session(&self.shared.server)?;
        let mut sessions = lock(&self.shared.sessions);
        if sessions.is_closed {
            return Err(self.shared.server.closed());
        }
        sessions.add(&session);
        Ok(session)
    }

    fn keep(&self, session: Session) {
        let mut sessions = lock(&self.shared.sessions);
        let idle_max = self.shared.server.options.idle_sessions_max;
        if !sessions.is_closed && sessions.idle.len() < idle_max {
            sessions.idle.push(session);
        }
    }
}

impl Shared {
    /// Gives a reference back.
    fn release(&self, ident: String, limit: Duration) -> Result<(), Error> {
        let returning = Returning::new(&self.references, ident);
        let outcome = control(&self.server, &returning.call, limit);
        returning.settle(outcome)
    }
}

/// Sleeps, unless `check` or the program wants an end.
fn sleep(
    mut pause: Duration,
    server: &Server,
    check: impl Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    while !pause.is_zero() {
        check()?;
        if server.options.goes_on.is_some_and(|goes_on| !goes_on()) {
            return Err(Error::Interrupted);
        }
        let slice = pause.min(LOOK_UP);
        std::thread::sleep(slice);
        pause -= slice;
    }
    Ok(())
}

/// Makes one call of the manager on a connection of its own.
fn control(server: &Server, call: &Call, limit: Duration) -> Result<Answer, Error> {
    let deadline = Deadline::after(limit);
    let body = Session::connect(server, deadline)?.ask(&call.request, Some(deadline))?;
    decode(server, &body)
}

fn open_session(server: &Server) -> Result<Session, Error> {
    let call = Call::control("accept_connection", Some(&server.options.session_name));
    let deadline = Deadline::after(server.options.connect_timeout);
    let mut session = Session::connect(server, deadline)?;
    let body = session.ask(&call.request, Some(deadline))?;
    server.result(&decode(server, &body)?)?;
    Ok(session)
}

fn decode(server: &Server, body: &Bytes) -> Result<Answer, Error> {
    Answer::decode(body, &server.options.limits).map_err(|error| server.unexpected(&error))
}

/// When somebody gives up waiting.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    /// `None`: too far away to be told.
    at: Option<Instant>,
    limit: Duration,
}

impl Deadline {
    #[expect(
        clippy::disallowed_methods,
        reason = "a blocking client has no runtime to keep time for it"
    )]
    fn now() -> Instant {
        Instant::now()
    }

    fn after(limit: Duration) -> Self {
        Self { at: Self::now().checked_add(limit), limit }
    }

    /// The time that is left, as a socket's time-out; none left is an error.
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(at) = self.at else { return Ok(None) };
        match at.saturating_duration_since(Self::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            // Sockets count microseconds, and none of them means for ever.
            left => Ok(Some(left.max(Duration::from_millis(1)))),
        }
    }
}

/// The time that is left; `None` for ever.
fn left(deadline: Option<Deadline>) -> io::Result<Option<Duration>> {
    deadline.map_or(Ok(None), |deadline| deadline.left())
}

fn is_time_out(error: &io::Error) -> bool {
    // A socket's time-out is the one on some systems and the other on others.
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// One connection.
#[derive(Debug)]
struct Session {
    stream: Arc<Stream>,
    conversation: Conversation,
    goes_on: Option<fn() -> bool>,
}

impl Session {
    fn connect(server: &Server, deadline: Deadline) -> Result<Self, Error> {
        let address = &server.address;
        let conversation =
            Conversation::new(Arc::clone(address), server.key.clone(), &server.options)?;
        let stream = Stream::connect(address, deadline).map_err(|error| {
            if is_time_out(&error) {
                server.timed_out(deadline.limit)
            } else {
                Error::Connect { address: Arc::clone(address), error }
            }
        })?;
        let goes_on = server.options.goes_on;
        Ok(Self { stream: Arc::new(stream), conversation, goes_on })
    }

    /// Sends a request and waits for its reply.
    fn ask(&mut self, request: &[u8], deadline: Option<Deadline>) -> Result<Bytes, Error> {
        self.conversation.ask(request);
        loop {
            match self.conversation.step()? {
                Step::Send(bytes) => self
                    .stream
                    .write_all(&bytes, deadline)
                    .map_err(|error| self.failed(error, deadline))?,
                Step::Receive => match self.receive(deadline)? {
                    0 => return Err(self.conversation.closed()),
                    _ => continue,
                },
                Step::Reply(body) => return Ok(body),
            }
        }
    }

    /// Receives something, looking up now and then if the program wants that.
    fn receive(&mut self, deadline: Option<Deadline>) -> Result<usize, Error> {
        loop {
            let left = left(deadline).map_err(|error| self.failed(error, deadline))?;
            let slice = left.map_or(LOOK_UP, |left| left.min(LOOK_UP));
            let limit = if self.goes_on.is_some() { Some(slice) } else { left };
            let received = self.stream.read_into(self.conversation.inbound(), limit);
            match (received, self.goes_on) {
                (Err(error), Some(goes_on)) if is_time_out(&error) => {
                    if !goes_on() {
                        return Err(Error::Interrupted);
                    }
                }
                (received, _) => return received.map_err(|error| self.failed(error, deadline)),
            }
        }
    }

    fn failed(&self, error: io::Error, deadline: Option<Deadline>) -> Error {
        match deadline {
            Some(deadline) if is_time_out(&error) => Error::TimedOut {
                address: Arc::clone(&self.conversation.address),
                after: deadline.limit,
            },
            _ => self.conversation.lost(error),
        }
    }

    /// Whether nothing has come on this session since its last reply.
    fn is_quiet(&self) -> bool {
        let socket = self.stream.socket();
        socket.set_nonblocking(true).is_ok()
            && connect::is_quiet(self.stream.socket())
            && socket.set_nonblocking(false).is_ok()
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Stream {
    fn connect(address: &Address, deadline: Deadline) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let stream = connect_tcp(host, *port, deadline)?;
                connect::tune(SockRef::from(&stream))?;
                Ok(Self::Tcp(stream))
            }
            #[cfg(unix)]
            Address::Unix(path) => connect_unix(path, deadline).map(Self::Unix),
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn write_all(&self, bytes: &[u8], deadline: Option<Deadline>) -> io::Result<()> {
        self.socket().set_write_timeout(left(deadline)?)?;
        match self {
            Self::Tcp(stream) => (&mut &*stream).write_all(bytes),
            #[cfg(unix)]
            Self::Unix(stream) => (&mut &*stream).write_all(bytes),
        }
    }

    /// Receives what there is, at least one byte, behind what `buf` holds; 0 at the end.
    fn read_into(&self, buf: &mut bytes::BytesMut, limit: Option<Duration>) -> io::Result<usize> {
        self.socket().set_read_timeout(limit)?;
        let filled = buf.len();
        buf.resize(filled + (buf.capacity() - filled).min(CHUNK_LEN), 0);
        let room = buf.get_mut(filled..).unwrap_or_default();
        let received = loop {
            let received = match self {
                Self::Tcp(stream) => (&mut &*stream).read(room),
                #[cfg(unix)]
                Self::Unix(stream) => (&mut &*stream).read(room),
            };
            match received {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => break other,
            }
        };
        buf.truncate(filled + *received.as_ref().unwrap_or(&0));
        received
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            #[cfg(unix)]
            Self::Unix(stream) => SockRef::from(stream),
        }
    }
}

/// Tries the host's addresses one after the other.
fn connect_tcp(host: &str, port: u16, deadline: Deadline) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let attempt = match deadline.left()? {
            Some(left) => TcpStream::connect_timeout(&address, left),
            None => TcpStream::connect(address),
        };
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Linux lets a connect wait while the listener's backlog is full, as a write waits for room.
#[cfg(unix)]
fn connect_unix(path: &Path, deadline: Deadline) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(deadline.left()?)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

queues!(async: [], await: []);

#[derive(Debug)]
struct Reference {
    client: Client,
    /// Another one once the server was started anew.
    ident: Mutex<Arc<str>>,
    name: String,
}

impl Drop for Reference {
    /// Gives the reference back, if the server answers within a second. A thread that panics does
    /// not: it was perhaps in the middle of an item, which a manyhands server gives to another
    /// worker once the sessions of this client have ended.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.release(RELEASE_TIMEOUT).ok();
        }
    }
}

impl Reference {
    fn ident(&self) -> Arc<str> {
        lock(&self.ident).clone()
    }

    fn is_manyhands(&self) -> bool {
        is_of_manyhands(&lock(&self.ident))
    }

    /// Asks a server that was started anew for the queue, unless another call did.
    fn renew(&self, old: &str) -> Result<(), Error> {
        if *self.ident() != *old {
            return Ok(());
        }
        let answer = self.client.control("create", Some(&self.name))?;
        let shared = &self.client.shared;
        let new = shared.server.created(&self.name, &answer)?;
        lock(&shared.references).rename(old, &new);
        *lock(&self.ident) = new.into();
        Ok(())
    }

    /// Gives the reference back, once.
    fn release(&self, limit: Duration) -> Result<(), Error> {
        let shared = &self.client.shared;
        let ident = self.ident();
        if !lock(&shared.references).remove(&ident) {
            return Ok(());
        }
        shared.release(ident.as_ref().to_owned(), limit.min(shared.server.options.connect_timeout))
    }
}

impl<T> Queue<T> {
    /// Gives the reference to the queue back, if no clone of it is left.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub fn close(self) -> Result<(), Error> {
        match Arc::into_inner(self.reference) {
            Some(last) => last.release(last.client.shared.server.options.connect_timeout),
            None => Ok(()),
        }
    }
}
