//! What the Python package is made of, which has queues of payloads and two drivers: threads that wait,
//! and an event loop of Python's. No part of the public interface.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Error;
pub use crate::answer::{Added, Answer, Task};
use crate::client;
use crate::connect::{Address, ConnectOptions};
use crate::line::{Subscription, instant};
use crate::native::{self, Want};
#[cfg(feature = "simulation")]
pub use crate::planted::{Bug, plant};
use crate::retry;
use crate::server;
use crate::stream::{Mode, now};
pub use crate::verb::Verb;
use crate::wire::auth::AuthKey;
pub use crate::wire::native::{Fate, Settlement};
use crate::wire::pickle::Dialect;

/// The same failure once more.
#[must_use]
pub fn same(error: &Error) -> Error {
    retry::same(error)
}

/// Where a server is, and how to talk to it. Clones are the same server.
#[derive(Debug, Clone)]
pub struct Server(Arc<server::Server>);

impl Server {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new(address: Address, key: AuthKey, options: ConnectOptions) -> Self {
        Self(Arc::new(server::Server { address: Arc::new(address), key, options }))
    }
}

/// A client whose calls block their threads. Clones are the same client.
#[derive(Debug, Clone)]
pub struct Client(client::Client);

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Those of [`Client::connect`](crate::Client::connect).
    pub fn connect(server: &Server) -> Result<Self, Error> {
        now(client::Client::of(Arc::clone(&server.0), Mode::Blocking)).map(Self)
    }

    /// A client that speaks CPython's protocol, to whichever server. It is not connected yet.
    #[must_use]
    pub fn classic(server: &Server, dialect: Dialect) -> Self {
        Self(client::Client::classic(Arc::clone(&server.0), Mode::Blocking, dialect))
    }

    /// Opens a queue.
    ///
    /// # Errors
    ///
    /// Those of [`Client::queue`](crate::Client::queue).
    pub fn queue(&self, name: &str) -> Result<Queue, Error> {
        now(self.0.queue(name)).map(Queue)
    }

    /// The queue that is called by a reference of CPython's protocol.
    #[must_use]
    pub fn queue_of(&self, name: &str, ident: String) -> Queue {
        Queue(self.0.queue_of(name, ident))
    }

    /// A new reference to what is called `name`, by CPython's protocol: its ident.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownQueue`], or that the server was lost.
    pub fn refer(&self, name: &str) -> Result<String, Error> {
        now(self.0.refer(name))
    }

    /// Asks the server.
    ///
    /// # Errors
    ///
    /// [`Error::NotManyhands`] from a server of CPython's, or that it was lost.
    pub fn ask(&self, verb: Verb) -> Result<Answer, Error> {
        now(self.0.ask(verb))
    }

    /// The server's own text about its objects.
    ///
    /// # Errors
    ///
    /// Those of [`Client::debug_info`](crate::Client::debug_info).
    pub fn debug_info(&self) -> Result<String, Error> {
        now(self.0.debug_info())
    }

    /// How many objects clients hold references to.
    ///
    /// # Errors
    ///
    /// Those of [`Client::number_of_objects`](crate::Client::number_of_objects).
    pub fn number_of_objects(&self) -> Result<u64, Error> {
        now(self.0.number_of_objects())
    }

    /// From now on a server that is away is not waited for.
    pub fn leave(&self) {
        self.0.leave();
    }

    /// Whether there is a connection, as far as it is known.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.is_connected()
    }

    /// Ends all calls, and the connection.
    ///
    /// # Errors
    ///
    /// Those of [`Client::close`](crate::Client::close).
    pub fn close(&self) -> Result<(), Error> {
        now(self.0.close())
    }

    /// Closes the sockets in a process that was forked: they are its parent's. Neither the client nor
    /// what came from it may be used there, not even be dropped.
    pub fn forget(&self) {
        self.0.forget();
    }
}

/// A queue whose calls block their threads.
#[derive(Debug, Clone)]
pub struct Queue(client::Queue<()>);

impl Queue {
    /// Whether it is on a manyhands server, and not an object of a Python program.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.0.reference().native().is_some()
    }

    /// Which Python reads there.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        if self.is_native() { Dialect::Python3 } else { self.0.reference().dialect() }
    }

    /// Makes a call.
    ///
    /// # Errors
    ///
    /// What the server says, or that it was lost.
    pub fn ask(&self, verb: Verb) -> Result<Answer, Error> {
        now(self.0.reference().ask(verb))
    }

    /// Gives the reference to the queue back. No clone of it may be used any more.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub fn close(&self) -> Result<(), Error> {
        now(self.0.reference().close())
    }

    /// Has tasks pushed, up to `ahead` before the program asks for them.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] from a server of CPython's.
    pub fn leases(&self, ahead: u32) -> Result<Leases, Error> {
        let subscription = self.0.reference().subscribe(ahead)?;
        Ok(Leases { subscription, _queue: self.clone() })
    }

    /// Makes a call, once not too many are under way, whose answer is awaited later.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`].
    pub fn ask_ahead(&self, verb: Verb) -> Result<Ahead, Error> {
        now(self.0.reference().ask_ahead(verb)).map(Ahead)
    }
}

/// Leases of tasks that the server pushes, for threads that wait for them.
#[derive(Debug)]
pub struct Leases {
    subscription: Subscription,
    /// The queue stays open as long as tasks may come.
    _queue: Queue,
}

impl Leases {
    /// Waits for the next task, which is started then; `None` if there will be no more.
    ///
    /// # Errors
    ///
    /// That the server was lost, and then there are no more; [`Error::Interrupted`].
    pub fn next(&self) -> Result<Option<Task>, Error> {
        match now(poll_fn(|context| self.subscription.poll_next(context))) {
            None | Some(Err(Error::ShutDown)) => Ok(None),
            Some(task) => task.map(|task| Some(task.into())),
        }
    }

    /// Returns the tasks that were not started. A thread that waits for the next one learns that there
    /// are no more.
    pub fn close(&self) {
        self.subscription.end();
    }
}

/// An answer that is awaited later.
#[derive(Debug)]
pub struct Ahead(client::Ahead);

impl Ahead {
    /// Waits for it.
    ///
    /// # Errors
    ///
    /// What the server says, or that it was lost.
    pub fn wait(self) -> Result<Answer, Error> {
        now(self.0)
    }
}

/// What an event loop has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Connect, and say how that ended.
    Connect,
    /// Move bytes; look again after this time at the latest.
    Talk(Option<Duration>),
    /// Look again after this time, or when there is a call.
    Rest(Option<Duration>),
    /// Close the connection.
    End,
}

/// The client of the native protocol without its socket, for an event loop that has one.
#[derive(Debug)]
pub struct Core {
    server: Arc<server::Server>,
    core: native::Core,
}

impl Core {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new(server: &Server) -> Self {
        Self { server: Arc::clone(&server.0), core: native::Core::new(Arc::clone(&server.0)) }
    }

    /// Asks for nothing but a connection: the id of the call.
    pub fn connect(&mut self) -> u32 {
        self.core.ask(0, 0, Verb::Connect, instant())
    }

    /// Opens a queue: its handle, and the id of the call.
    ///
    /// # Errors
    ///
    /// That too many are open.
    pub fn open(&mut self, name: &str) -> Result<(u16, u32), Error> {
        let what = "too many queues are open; drop those that are no longer used";
        self.core.open(name, instant()).ok_or_else(|| self.server.unexpected(&what))
    }

    /// Whether a server that came back does not know the queue that was open under this handle.
    #[must_use]
    pub fn is_missing(&mut self, queue: u16) -> bool {
        self.core.is_missing(queue)
    }

    /// Makes a call of the queue that is open under this handle: the id of the call. What a caller took
    /// by a plain `get` is settled by what it does next.
    pub fn ask(&mut self, caller: u64, queue: u16, verb: Verb) -> u32 {
        self.core.ask(caller, queue, verb, instant())
    }

    /// The next call that was decided.
    pub fn next_decided(&mut self) -> Option<u32> {
        self.core.next_decided()
    }

    /// What became of a call; `None` if that is not decided.
    pub fn answer(&mut self, id: u32) -> Option<Result<Answer, Error>> {
        let decided = self.core.take(id)?;
        let holder = decided.holder();
        let answer = native::answer(&self.server, decided);
        if let (Some((caller, queue)), Ok(answer)) = (holder, &answer) {
            self.core.hold(caller, queue, answer);
        }
        Some(answer)
    }

    /// Has tasks of a queue pushed, up to `ahead` before the program asks for them: the id of the
    /// credit, which counts as decided whenever tasks have come.
    pub fn subscribe(&mut self, queue: u16, ahead: u32) -> u32 {
        self.core.subscribe(queue, ahead.max(1), instant())
    }

    /// Starts the next task that was pushed; `None` if none has come, or the credit is over, as its
    /// [answer](Self::answer) then says.
    pub fn next_task(&mut self, id: u32) -> Option<Task> {
        self.core.next_task(id).map(Task::from)
    }

    /// Ends a credit. Tasks that were not started return.
    pub fn unsubscribe(&mut self, id: u32) {
        self.core.unsubscribe(id, instant());
    }

    /// Ends a call whose caller has left.
    pub fn cancel(&mut self, id: u32) {
        self.core.cancel(id, instant());
    }

    /// How many tasks were pushed and not started.
    #[must_use]
    pub fn unstarted(&self, id: u32) -> usize {
        self.core.unstarted(id)
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.core.has_link()
    }

    /// Whether nothing but the end of the connection may come, as no request was written that has no
    /// reply.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.core.is_idle()
    }

    /// Which Python speaks there, if the server turned out to know CPython's protocol alone.
    #[must_use]
    pub fn classic(&self) -> Option<Dialect> {
        self.core.classic()
    }

    /// From now on a server that is away is not waited for.
    pub fn leave(&mut self) {
        self.core.leave();
    }

    /// Closes all queues: the ids of the calls that say when they are.
    pub fn close(&mut self) -> Vec<u32> {
        self.core.close(instant())
    }

    /// Ends all calls.
    pub fn end(&mut self) {
        self.core.end(instant());
    }

    /// Why there is no connection and for how much longer that is tried, once.
    pub fn report(&mut self) -> Option<(Error, Duration)> {
        self.core.report(instant())
    }

    /// What is to be done next.
    #[must_use]
    pub fn next(&self) -> Next {
        let now = instant();
        let left = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(now));
        match self.core.want(now) {
            Want::Connect => Next::Connect,
            Want::Talk => Next::Talk(left(self.core.deadline())),
            Want::Rest(until) => Next::Rest(left(until)),
            Want::End => Next::End,
        }
    }

    /// Notes that connecting begins.
    pub fn connecting(&mut self) {
        self.core.connecting(instant());
    }

    /// Notes that there is a connection.
    pub fn connected(&mut self) {
        self.core.connected(instant());
    }

    /// Notes that there is none.
    pub fn unreachable(&mut self, error: io::Error) {
        let address = Arc::clone(&self.server.address);
        self.core.unreachable(&Error::Connect { address, error }, instant());
    }

    /// Reads what has come.
    pub fn received(&mut self, bytes: &[u8]) {
        self.core.inbound().extend_from_slice(bytes);
        self.core.received(instant());
    }

    /// Notes that the server closed the connection.
    pub fn ended(&mut self) {
        self.core.ended(instant());
    }

    /// Notes that the connection broke.
    pub fn broken(&mut self, error: io::Error) {
        self.core.broken(error, instant());
    }

    /// Looks what is overdue.
    pub fn tick(&mut self) {
        self.core.tick(instant());
    }

    /// Takes what is to be written, for somebody who writes all of it.
    pub fn outbound(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.core.unwritten_len());
        // What was written may have more follow: a login does.
        while self.core.unwritten_len() > 0 {
            bytes.extend(self.outbound_within(usize::MAX));
        }
        bytes
    }

    /// The same for somebody who writes so many bytes of it at most.
    pub fn outbound_within(&mut self, max: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.core.unwritten_len().min(max));
        for part in self.core.unwritten(instant()) {
            let room = max - bytes.len();
            bytes.extend(part.iter().take(room));
        }
        self.core.wrote(bytes.len(), instant());
        bytes
    }
}
