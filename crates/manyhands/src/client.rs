//! The asynchronous client, for tokio.
//!
//! A server serves one call at a time on each session, so every call in flight has its own session;
//! those at rest are kept for the next calls. A call whose future is dropped takes its session with
//! it: nobody can mistake its late reply for another's, and the server sees that nobody waits.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::Error;
use crate::calls::{Call, References, Returning, Server, lock, pickled, readable};
use crate::connect::{self, Address, ConnectOptions};
use crate::conversation::{Conversation, Step};
use crate::wire::auth::AuthKey;
use crate::wire::message::QueueInfo;
use crate::wire::pickle::{Dialect, Payload};
use crate::wire::request::Answer;

/// A server of queues. Clones are the same client.
///
/// ```no_run
/// # async fn example() -> Result<(), manyhands::Error> {
/// let client = manyhands::Client::connect("10.0.0.7:5000", b"abc").await?;
/// let tasks = client.queue::<u64>("get_task_queue").await?;
/// tasks.put(&12).await?;
/// client.close().await?;
/// # Ok(())
/// # }
/// ```
///
/// Call [`close`](Self::close) at the end: a client that just vanishes looks to a manyhands server
/// like one that crashed, and about a second later what it had in hand
/// goes to somebody else, unless the queue delivers as CPython does. In hand is what was taken and
/// not yet followed on the same session by its result, by `task_done`, by a `get` from the same
/// queue or by a `put` to another; where the queue names a result queue, only the first two count.
/// Being dropped cannot take leave, because that would have to wait.
///
/// Any call takes any session at rest. Tasks that work on items at the same time therefore need a
/// client each, by a `connect` of its own: on shared sessions the server would take the result of
/// one for that of another.
/// A call that is cancelled ends its session, and what it had in hand may go to
/// somebody else too.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: Server,
    dialect: Dialect,
    life: watch::Sender<Life>,
    idle: Mutex<Vec<Session>>,
    references: Mutex<References>,
}

/// How far a client has been closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Life {
    Open,
    /// No call may begin.
    Leaving,
    /// The calls under way end.
    Gone,
}

impl Client {
    /// Connects to the server at `address`: `host:port`, `[v6]:port` or `unix:/path`.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`], [`Error::Authentication`], [`Error::TimedOut`].
    pub async fn connect(address: &str, authkey: impl Into<AuthKey>) -> Result<Self, Error> {
        Self::connect_with(address, authkey, ConnectOptions::default()).await
    }

    /// Connects with other than the default options.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`], [`Error::Authentication`], [`Error::TimedOut`].
    pub async fn connect_with(
        address: &str,
        authkey: impl Into<AuthKey>,
        options: ConnectOptions,
    ) -> Result<Self, Error> {
        let server = Server { address: Arc::new(address.parse()?), key: authkey.into(), options };
        let answer = control(&server, &Call::control("dummy", None)).await?;
        server.result(&answer)?;
        let shared = Shared {
            server,
            dialect: answer.dialect,
            life: watch::Sender::new(Life::Open),
            idle: Mutex::default(),
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
    pub async fn queue<T>(&self, name: &str) -> Result<Queue<T>, Error> {
        let answer = self.control("create", Some(name)).await?;
        let ident = self.shared.server.created(name, &answer)?;
        lock(&self.shared.references).add(ident.clone());
        let reference = Reference { client: self.clone(), ident, name: name.to_owned() };
        let queue = Queue { reference: Arc::new(reference), item: PhantomData };
        if self.is_closed() {
            drop(queue);
            self.release_dropped().await?;
            return Err(self.shared.server.closed());
        }
        // What fails here is tried again by the next call; this one has what it wants.
        self.release_dropped().await.ok();
        Ok(queue)
    }

    /// The queues of a manyhands server, whether anybody uses them or not.
    ///
    /// # Errors
    ///
    /// [`Error::NotManyhands`] from CPython's own server, or that the server was lost.
    pub async fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        self.shared.server.queues(&self.control("queues", None).await?)
    }

    /// The server's own text about its objects.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the server keeps it to itself, or that the server was lost.
    pub async fn debug_info(&self) -> Result<String, Error> {
        self.shared.server.read(&self.control("debug_info", None).await?)
    }

    /// How many objects clients hold references to.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the server keeps it to itself, or that the server was lost.
    pub async fn number_of_objects(&self) -> Result<u64, Error> {
        self.shared.server.read(&self.control("number_of_objects", None).await?)
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
    pub async fn close(&self) -> Result<(), Error> {
        self.shared.advance(Life::Leaving);
        let released = self.release(References::pop).await;
        // Sessions that ended before would look like those of a client that crashed.
        self.shared.advance(Life::Gone);
        lock(&self.shared.idle).clear();
        released
    }

    async fn release_dropped(&self) -> Result<(), Error> {
        self.release(References::pop_dropped).await
    }

    /// Gives back the references that `next` names. Where it ends early, the rest stays.
    async fn release(&self, next: fn(&mut References) -> Option<String>) -> Result<(), Error> {
        loop {
            let Some(ident) = next(&mut lock(&self.shared.references)) else { return Ok(()) };
            let returning = Returning::new(&self.shared.references, ident);
            let outcome = control(&self.shared.server, &returning.call).await;
            returning.settle(outcome)?;
        }
    }

    fn is_closed(&self) -> bool {
        *self.shared.life.borrow() != Life::Open
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.is_closed() { Err(self.shared.server.closed()) } else { Ok(()) }
    }

    async fn control(&self, name: &str, text: Option<&str>) -> Result<Answer, Error> {
        self.check_open()?;
        control(&self.shared.server, &Call::control(name, text)).await
    }

    /// Makes one call, unless the client is closed before its answer comes.
    async fn call(&self, call: Call) -> Result<Answer, Error> {
        self.check_open()?;
        let answer = tokio::select! {
            biased;
            answer = self.call_on_session(call) => answer,
            () = self.shared.gone() => Err(self.shared.server.closed()),
        };
        match answer {
            Err(Error::Lost { .. }) if self.is_closed() => Err(self.shared.server.closed()),
            answer => answer,
        }
    }

    /// Makes one call on a session of its own.
    async fn call_on_session(&self, call: Call) -> Result<Answer, Error> {
        let server = &self.shared.server;
        let mut session = match self.idle_session() {
            Some(session) => session,
            None => open_session(server).await?,
        };
        let limit = call.time_limit(&server.options);
        let body = within(server, limit, session.ask(&call.request)).await?;
        self.keep(session);
        decode(server, &body)
    }

    /// A session at rest on which nothing has happened since.
    fn idle_session(&self) -> Option<Session> {
        let mut idle = lock(&self.shared.idle);
        std::iter::from_fn(|| idle.pop()).find(|session| connect::is_quiet(session.stream.socket()))
    }

    fn keep(&self, session: Session) {
        let mut idle = lock(&self.shared.idle);
        if !self.is_closed() && idle.len() < self.shared.server.options.idle_sessions_max {
            idle.push(session);
        }
    }
}

impl Shared {
    fn advance(&self, life: Life) {
        self.life.send_modify(|now| {
            if *now < life {
                *now = life;
            }
        });
    }

    /// Waits until the client is closed.
    async fn gone(&self) {
        let mut life = self.life.subscribe();
        // The sender lives as long as `self`.
        life.wait_for(|life| *life == Life::Gone).await.ok();
    }
}

/// Makes one call of the manager on a connection of its own.
async fn control(server: &Server, call: &Call) -> Result<Answer, Error> {
    let limit = server.options.connect_timeout;
    let body = within(server, Some(limit), async {
        Session::connect(server).await?.ask(&call.request).await
    });
    decode(server, &body.await?)
}

async fn open_session(server: &Server) -> Result<Session, Error> {
    let call = Call::control("accept_connection", Some(&server.options.session_name));
    within(server, Some(server.options.connect_timeout), async {
        let mut session = Session::connect(server).await?;
        let body = session.ask(&call.request).await?;
        server.result(&decode(server, &body)?)?;
        Ok(session)
    })
    .await
}

async fn within<T>(
    server: &Server,
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match limit {
        None => work.await,
        Some(limit) => timeout(limit, work).await.unwrap_or_else(|_| Err(server.timed_out(limit))),
    }
}

fn decode(server: &Server, body: &Bytes) -> Result<Answer, Error> {
    Answer::decode(body, &server.options.limits).map_err(|error| server.unexpected(&error))
}

/// One connection.
#[derive(Debug)]
struct Session {
    stream: Stream,
    conversation: Conversation,
}

impl Session {
    async fn connect(server: &Server) -> Result<Self, Error> {
        let address = &server.address;
        let conversation =
            Conversation::new(Arc::clone(address), server.key.clone(), &server.options)?;
        let stream = Stream::connect(address)
            .await
            .map_err(|error| Error::Connect { address: Arc::clone(address), error })?;
        Ok(Self { stream, conversation })
    }

    /// Sends a request and waits for its reply.
    async fn ask(&mut self, request: &[u8]) -> Result<Bytes, Error> {
        self.conversation.ask(request);
        loop {
            match self.conversation.step()? {
                Step::Send(bytes) => self
                    .stream
                    .write_all(&bytes)
                    .await
                    .map_err(|error| self.conversation.lost(error))?,
                Step::Receive => match self.stream.read_buf(self.conversation.inbound()).await {
                    Ok(0) => return Err(self.conversation.closed()),
                    Ok(_) => {}
                    Err(error) => return Err(self.conversation.lost(error)),
                },
                Step::Reply(body) => return Ok(body),
            }
        }
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Stream {
    async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                connect::tune(SockRef::from(&stream))?;
                Ok(Self::Tcp(stream))
            }
            #[cfg(unix)]
            Address::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes).await,
            #[cfg(unix)]
            Self::Unix(stream) => stream.write_all(bytes).await,
        }
    }

    async fn read_buf(&mut self, buf: &mut bytes::BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read_buf(buf).await,
            #[cfg(unix)]
            Self::Unix(stream) => stream.read_buf(buf).await,
        }
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            #[cfg(unix)]
            Self::Unix(stream) => SockRef::from(stream),
        }
    }
}

/// A queue on a server, holding items of type `T`. Clones are the same queue.
///
/// The verbs are those of Python's `queue.Queue`, and so is their meaning.
pub struct Queue<T> {
    reference: Arc<Reference>,
    item: PhantomData<fn(T) -> T>,
}

#[derive(Debug)]
struct Reference {
    client: Client,
    ident: String,
    name: String,
}

impl Drop for Reference {
    /// Giving the reference back takes a conversation, which nobody waits for here: the client does
    /// it at the next [`Client::queue`] or [`Client::close`].
    fn drop(&mut self) {
        lock(&self.client.shared.references).defer(&self.ident);
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { reference: Arc::clone(&self.reference), item: PhantomData }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.reference.name)
            .field("address", &self.reference.client.address())
            .finish()
    }
}

impl<T> Queue<T> {
    /// The name under which it is registered.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.reference.name
    }

    /// About how many items there are.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn qsize(&self) -> Result<u64, Error> {
        self.read(Call::prompt(self.ident(), "qsize")).await
    }

    /// Whether there was no item just now.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn is_empty(&self) -> Result<bool, Error> {
        self.read(Call::prompt(self.ident(), "empty")).await
    }

    /// Whether there was no free slot just now.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn is_full(&self) -> Result<bool, Error> {
        self.read(Call::prompt(self.ident(), "full")).await
    }

    /// Says that an item which was taken is done; one call for each `get`.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] of class `ValueError` when there were more calls than items.
    pub async fn task_done(&self) -> Result<(), Error> {
        self.read(Call::prompt(self.ident(), "task_done")).await
    }

    /// Waits until every item that was put is done.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn join(&self) -> Result<(), Error> {
        self.read(Call::join(self.ident())).await
    }

    /// Ends the queue: `put` fails from now on, and `get` as soon as the queue is empty, which
    /// `immediate` makes it at once. Python servers know this from 3.13 on.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] of class `KeyError` or `AttributeError` from an older Python.
    pub async fn shutdown(&self, immediate: bool) -> Result<(), Error> {
        self.read(Call::shutdown(self.ident(), immediate)).await
    }

    /// Puts a payload as it is, waiting for a free slot for ever or for `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`]; [`Error::Data`] if the server's Python is too old to
    /// read it.
    pub async fn put_payload(
        &self,
        item: &Payload,
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        readable(item, self.dialect())?;
        self.read(Call::put(self.ident(), item, timeout)).await
    }

    /// Takes the next item as it is, waiting for it for ever or for `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`].
    pub async fn get_payload(&self, timeout: Option<Duration>) -> Result<Payload, Error> {
        self.take(Call::get(self.ident(), timeout)).await
    }

    /// Gives the reference to the queue back, if no clone of it is left.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn close(self) -> Result<(), Error> {
        let client = self.reference.client.clone();
        drop(self);
        client.release_dropped().await
    }

    fn ident(&self) -> &str {
        &self.reference.ident
    }

    fn dialect(&self) -> Dialect {
        self.reference.client.shared.dialect
    }

    fn server(&self) -> &Server {
        &self.reference.client.shared.server
    }

    async fn take(&self, call: Call) -> Result<Payload, Error> {
        let answer = self.reference.client.call(call).await?;
        self.server().result(&answer).cloned()
    }

    async fn read<R: DeserializeOwned>(&self, call: Call) -> Result<R, Error> {
        let answer = self.reference.client.call(call).await?;
        self.server().read(&answer)
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts an item, waiting for a free slot for ever.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`], [`Error::Data`].
    pub async fn put(&self, item: &T) -> Result<(), Error> {
        let item = pickled(item, self.dialect())?;
        self.read(Call::put(self.ident(), &item, None)).await
    }

    /// Puts an item, waiting for a free slot for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
    pub async fn put_timeout(&self, item: &T, timeout: Duration) -> Result<(), Error> {
        let item = pickled(item, self.dialect())?;
        self.read(Call::put(self.ident(), &item, Some(timeout))).await
    }

    /// Puts an item if there is a free slot.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
    pub async fn try_put(&self, item: &T) -> Result<(), Error> {
        let item = pickled(item, self.dialect())?;
        self.read(Call::try_put(self.ident(), &item)).await
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the next item, waiting for it for ever.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`], [`Error::Item`].
    pub async fn get(&self) -> Result<T, Error> {
        self.item(Call::get(self.ident(), None)).await
    }

    /// Takes the next item, waiting for it for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
    pub async fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        self.item(Call::get(self.ident(), Some(timeout))).await
    }

    /// Takes the next item if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
    pub async fn try_get(&self) -> Result<T, Error> {
        self.item(Call::prompt(self.ident(), "get_nowait")).await
    }

    async fn item(&self, call: Call) -> Result<T, Error> {
        let payload = self.take(call).await?;
        self.server().item(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_and_queues_are_shared_between_tasks() {
        fn is_shared<T: Send + Sync + Clone + fmt::Debug + 'static>() {}
        fn is_send<T: Send>(_: impl FnOnce(Queue<u64>) -> T) {}
        is_shared::<Client>();
        is_shared::<Queue<std::rc::Rc<u8>>>();
        is_shared::<crate::blocking::Client>();
        is_shared::<crate::blocking::Queue<std::rc::Rc<u8>>>();
        is_send(|queue| async move { queue.put(&1).await });
        is_send(|queue| async move { queue.get().await });
    }
}
