//! The asynchronous client, for tokio.
//!
//! A server serves one call at a time on each session, so every call in flight has its own session;
//! those at rest are kept for the next calls. A call whose future is dropped takes its session with
//! it: nobody can mistake its late reply for another's, and the server sees that nobody waits.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
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
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

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
        let mut retry = Retry::first(&server);
        let answer = loop {
            match control(&server, &Call::control("dummy", None)).await {
                Ok(answer) => break answer,
                Err(error) => tokio::time::sleep(retry.judge(Failure::unsent(error))?).await,
            }
        };
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
        let ident = Mutex::new(ident.into());
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
        let server = &self.shared.server;
        match server.of_ours(&self.control("list_queues", None).await?) {
            // An older one tells less.
            Err(Error::NotManyhands { .. }) => server.of_ours(&self.control("queues", None).await?),
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
    pub async fn drop_queue(&self, name: &str, force: bool) -> Result<u64, Error> {
        self.check_open()?;
        let (server, call) = (&self.shared.server, Call::drop_queue(name, force));
        server.of_ours(&control(server, &call).await?)
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
    async fn call(&self, call: Call) -> Result<Answer, Failure> {
        self.check_open().map_err(Failure::unsent)?;
        let answer = tokio::select! {
            biased;
            answer = self.call_on_session(call) => answer,
            () = self.shared.gone() => Err(Failure::sent(self.shared.server.closed())),
        };
        match answer {
            Err(Failure { error: Error::Lost { .. }, sent }) if self.is_closed() => {
                Err(Failure { error: self.shared.server.closed(), sent })
            }
            answer => answer,
        }
    }

    /// Makes one call on a session of its own.
    async fn call_on_session(&self, call: Call) -> Result<Answer, Failure> {
        let server = &self.shared.server;
        let mut session = match self.idle_session() {
            Some(session) => session,
            None => open_session(server).await.map_err(Failure::unsent)?,
        };
        let limit = call.time_limit(&server.options);
        let body =
            within(server, limit, session.ask(&call.request)).await.map_err(Failure::sent)?;
        self.keep(session);
        decode(server, &body).map_err(Failure::sent)
    }

    /// Waits before a call is made again, unless the client is closed.
    async fn pause(&self, pause: Duration) -> Result<(), Error> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.shared.gone() => Err(self.shared.server.closed()),
        }
    }

    /// Makes a call whose outcome nobody waits for. Without a runtime it is not made: the server
    /// finds out when the session ends.
    fn let_go(&self, call: Call) {
        let client = self.clone();
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { client.call(call).await.ok() });
        }
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

queues!(async: [async], await: [.await]);

#[derive(Debug)]
struct Reference {
    client: Client,
    /// Another one once the server was started anew.
    ident: Mutex<Arc<str>>,
    name: String,
}

impl Drop for Reference {
    /// Giving the reference back takes a conversation, which nobody waits for here: the client does
    /// it at the next [`Client::queue`] or [`Client::close`].
    fn drop(&mut self) {
        let ident = self.ident();
        lock(&self.client.shared.references).defer(&ident);
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
    async fn renew(&self, old: &str) -> Result<(), Error> {
        if *self.ident() != *old {
            return Ok(());
        }
        let answer = self.client.control("create", Some(&self.name)).await?;
        let shared = &self.client.shared;
        let new = shared.server.created(&self.name, &answer)?;
        lock(&shared.references).rename(old, &new);
        *lock(&self.ident) = new.into();
        Ok(())
    }
}

impl<T> Queue<T> {
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
