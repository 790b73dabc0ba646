//! The asynchronous client, for tokio; the [`blocking`](crate::blocking) one is made of it.
//!
//! All clones of a client share one connection, and their calls go out without waiting for each
//! other's answers. A call whose future is dropped is cancelled: what it takes all the same goes back.
//!
//! A server of CPython's serves one call at a time on each session, so there every call in flight has
//! its own, and a call whose future is dropped takes its session with it.

mod lease;
mod leases;
mod master;
mod put;
mod queue;
mod worker;

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::task::{Context, Poll};

pub use self::lease::Lease;
pub use self::leases::Leases;
pub use self::master::{Items, Map, Master};
pub use self::put::Put;
pub use self::queue::Queue;
pub use self::worker::{Failed, Stopper, Tally, Task, Worker};
use crate::Error;
use crate::answer::Answer;
use crate::classic::Classic;
use crate::connect::{Address, ConnectOptions};
use crate::line::{Asked, Line, Subscription};
use crate::server::Server;
use crate::stream::Mode;
use crate::verb::Verb;
use crate::wire::auth::AuthKey;
use crate::wire::pickle::{Dialect, Payload, to_payload};
use crate::wire::reply::QueueInfo;

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
/// All its clones, queues and tasks of the runtime share one connection. Call
/// [`close`](Self::close) at the end: then what was said last is sure to have arrived, and what was
/// taken [counts as done](Queue::get). A client that just vanishes looks like one that crashed, and
/// what it had in hand goes to somebody else. Being dropped cannot take leave, because that would have
/// to wait.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: Arc<Server>,
    /// The connection to a server of ours, which ends with the client.
    line: Option<OwnLine>,
    classic: Classic,
}

impl Shared {
    /// Opens the queue called `name`.
    async fn open(&self, name: &str) -> Result<Place, Error> {
        let Some(line) = &self.line else {
            return self.classic.open(name).await.map(Place::Classic);
        };
        match line.open(name).await {
            // The program that embeds the server may know the name.
            Err(Error::UnknownQueue { declared, .. }) => {
                self.open_guest(line, name, declared).await
            }
            opened => opened.map(Place::Native),
        }
    }

    /// Opens what is called `name` in the program that embeds the server: a queue that the server has, or
    /// an object that stays in the program.
    async fn open_guest(
        &self,
        line: &Arc<Line>,
        name: &str,
        declared: Option<String>,
    ) -> Result<Place, Error> {
        let ident = self.classic.open(name).await.map_err(|error| match error {
            Error::UnknownQueue { name, address, declared: others } => {
                Error::UnknownQueue { name, address, declared: declared.or(others) }
            }
            error => error,
        })?;
        match line.open(&ident).await {
            Err(Error::UnknownQueue { .. }) => Ok(Place::Classic(ident)),
            opened => {
                self.classic.close_queue(&ident).await?;
                opened.map(|handle| Place::Guest(handle.into()))
            }
        }
    }
}

/// A connection that ends when this is dropped.
#[derive(Debug)]
struct OwnLine(Arc<Line>);

impl Deref for OwnLine {
    type Target = Arc<Line>;

    fn deref(&self) -> &Arc<Line> {
        &self.0
    }
}

impl Drop for OwnLine {
    fn drop(&mut self) {
        self.0.end();
    }
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
        Self::start(address, authkey.into(), options, Mode::Async).await
    }

    pub(crate) async fn start(
        address: &str,
        key: AuthKey,
        options: ConnectOptions,
        mode: Mode,
    ) -> Result<Self, Error> {
        Self::of(Arc::new(Server::new(address, key, options)?), mode).await
    }

    pub(crate) async fn of(server: Arc<Server>, mode: Mode) -> Result<Self, Error> {
        let line = OwnLine(Line::new(Arc::clone(&server), mode));
        let dialect = line.connect().await?;
        let line = dialect.is_none().then_some(line);
        let dialect = dialect.unwrap_or(Dialect::Python3);
        let classic = Classic::new(Arc::clone(&server), mode, dialect);
        Ok(Self { shared: Arc::new(Shared { server, line, classic }) })
    }

    /// The queue registered as `name`, holding items of type `T`.
    ///
    /// Nothing checks the type until an item is read.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownQueue`], or that the server was lost.
    pub async fn queue<T>(&self, name: &str) -> Result<Queue<T>, Error> {
        let place = self.shared.open(name).await?;
        let (client, name) = (self.clone(), name.to_owned());
        Ok(Queue::new(Arc::new(Reference {
            client,
            name,
            place,
            is_closed: AtomicBool::new(false),
        })))
    }

    /// The queues of a manyhands server, whether anybody uses them or not.
    ///
    /// # Errors
    ///
    /// [`Error::NotManyhands`] from CPython's own server, or that the server was lost.
    pub async fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        let mut all: Vec<QueueInfo> = Vec::new();
        loop {
            let after = all.last().map(|queue| queue.name.clone()).unwrap_or_default();
            let (queues, more) = self.ask(Verb::List { after }).await?.queues()?;
            let is_last = queues.is_empty() || !more;
            all.extend(queues);
            if is_last {
                return Ok(all);
            }
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
        self.ask(Verb::Drop { name: name.to_owned(), force }).await?.count()
    }

    /// Asks a manyhands server.
    pub(crate) async fn ask(&self, verb: Verb) -> Result<Answer, Error> {
        self.native()?.call(0, verb).await
    }

    /// The server's own text about its objects.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the server keeps it to itself, or that the server was lost.
    pub async fn debug_info(&self) -> Result<String, Error> {
        self.shared.classic.tell("debug_info").await
    }

    /// How many objects clients hold references to.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the server keeps it to itself, or that the server was lost.
    pub async fn number_of_objects(&self) -> Result<u64, Error> {
        self.shared.classic.tell("number_of_objects").await
    }

    /// Where the server is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.shared.server.address
    }

    /// Takes leave of the server: closes all queues and the connection.
    ///
    /// That ends the work of all clones and queues of this client. Their calls under way return
    /// [`Error::Closed`], unless their answers come before, and so does every later call. Tasks that
    /// it has leased and not settled go to somebody else.
    ///
    /// # Errors
    ///
    /// That the server was lost. The client is closed all the same; to call this again gives the
    /// references to queues of CPython's servers back that were not.
    pub async fn close(&self) -> Result<(), Error> {
        let left = match &self.shared.line {
            Some(line) => line.close().await,
            None => Ok(()),
        };
        left.and(self.shared.classic.close().await)
    }

    /// A client of a server that knows CPython's protocol alone, or that is asked by it alone. It is not
    /// connected yet.
    pub(crate) fn classic(server: Arc<Server>, mode: Mode, dialect: Dialect) -> Self {
        let classic = Classic::new(Arc::clone(&server), mode, dialect);
        Self { shared: Arc::new(Shared { server, line: None, classic }) }
    }

    /// The queue that a reference is for, by CPython's protocol.
    pub(crate) fn queue_of<T>(&self, name: &str, ident: String) -> Queue<T> {
        let (client, name) = (self.clone(), name.to_owned());
        Queue::new(Arc::new(Reference {
            client,
            name,
            place: Place::Classic(ident),
            is_closed: AtomicBool::new(false),
        }))
    }

    /// A new reference to what is called `name`, by CPython's protocol: its ident.
    pub(crate) async fn refer(&self, name: &str) -> Result<String, Error> {
        self.shared.classic.open(name).await
    }

    /// A client of the same server, with a connection of its own, for a runtime of tokio's.
    pub(crate) async fn connect_again(&self) -> Result<Self, Error> {
        Self::of(Arc::clone(&self.shared.server), Mode::Async).await
    }

    /// Closes the sockets in a process that was forked: they are its parent's. The client must not be
    /// used there, not even be dropped.
    pub(crate) fn forget(&self) {
        if let Some(line) = &self.shared.line {
            line.forget();
        }
        self.shared.classic.forget();
    }

    /// From now on a server that is away is not waited for.
    pub(crate) fn leave(&self) {
        self.shared.line.iter().for_each(|line| line.leave());
    }

    /// Whether there is a connection, as far as it is known.
    pub(crate) fn is_connected(&self) -> bool {
        self.shared.line.as_ref().is_none_or(|line| line.is_connected())
    }

    /// The connection, if the server is a manyhands one.
    fn native(&self) -> Result<&Arc<Line>, Error> {
        let address = &self.shared.server.address;
        (self.shared.line.as_deref())
            .ok_or_else(|| Error::NotManyhands { address: Arc::clone(address) })
    }
}

/// A queue that this client has open.
#[derive(Debug)]
pub(crate) struct Reference {
    client: Client,
    name: String,
    place: Place,
    /// Whether it was closed, or is being closed.
    is_closed: AtomicBool,
}

/// What the server knows a queue by.
#[derive(Debug)]
enum Place {
    /// The handle that this client has given it.
    Native(u16),
    /// The handle of a queue that the server knows by a reference of its program's. That ends with the
    /// program, and then another one gets a handle.
    Guest(AtomicU16),
    /// The ident of a reference, which the server counts.
    Classic(String),
}

impl Reference {
    fn server(&self) -> &Server {
        &self.client.shared.server
    }

    /// An item as the Python there reads it.
    fn pickled<T: serde::Serialize + ?Sized>(&self, item: &T) -> Result<Payload, Error> {
        Ok(to_payload(item, self.client.shared.classic.dialect)?)
    }

    /// Asks the queue, again if need be and if that does no harm.
    pub(crate) async fn ask(&self, verb: Verb) -> Result<Answer, Error> {
        match (self.native(), &self.place) {
            (Some((line, handle)), Place::Guest(place)) => {
                match line.call(handle, verb.clone()).await {
                    // The program was started anew, and gives the queue another reference.
                    Err(Error::UnknownQueue { .. }) => {
                        line.tell(handle, Verb::Close);
                        self.open_guest_again(line, place).await?;
                        line.call(place.load(Ordering::Relaxed), verb).await
                    }
                    answer => answer,
                }
            }
            (Some((line, handle)), _) => line.call(handle, verb).await,
            (None, Place::Classic(ident)) => self.client.shared.classic.ask(ident, verb).await,
            (None, _) => Err(self.server().closed()),
        }
    }

    async fn open_guest_again(&self, line: &Arc<Line>, place: &AtomicU16) -> Result<(), Error> {
        match self.client.shared.open_guest(line, &self.name, None).await? {
            Place::Guest(opened) => {
                place.store(opened.into_inner(), Ordering::Relaxed);
                Ok(())
            }
            _ => {
                let what = "a queue became an object of the program that embeds the server";
                Err(self.server().unexpected(&what))
            }
        }
    }

    /// Asks once not too many calls are ahead of their answers; this one's is awaited later.
    pub(crate) async fn ask_ahead(&self, verb: Verb) -> Result<Ahead, Error> {
        Ok(match self.native() {
            Some((line, handle)) => Ahead::Asked(line.ask_ahead(handle, verb).await?),
            None => Ahead::Answered(Some(self.ask(verb).await)),
        })
    }

    /// Says something without waiting for what becomes of it.
    fn tell(&self, verb: Verb) {
        if let Some((line, handle)) = self.native() {
            line.tell(handle, verb);
        }
    }

    pub(crate) fn native(&self) -> Option<(&Arc<Line>, u16)> {
        match (&self.client.shared.line, &self.place) {
            (Some(line), Place::Native(handle)) => Some((line, *handle)),
            (Some(line), Place::Guest(handle)) => Some((line, handle.load(Ordering::Relaxed))),
            _ => None,
        }
    }

    /// Makes a call that ends if nobody waits for its answer any more.
    fn ask_once(&self, method: &'static str, verb: Verb) -> Result<Asked, Error> {
        let (line, handle) = self.native_for(method)?;
        Ok(line.ask(handle, verb))
    }

    /// Has tasks pushed, up to `ahead` before the program asks for them.
    pub(crate) fn subscribe(&self, ahead: u32) -> Result<Subscription, Error> {
        let (line, handle) = self.native_for("lease")?;
        Ok(line.subscribe(handle, ahead.max(1)))
    }

    /// The connection, for what only a manyhands server has.
    fn native_for(&self, method: &'static str) -> Result<(&Arc<Line>, u16), Error> {
        let address = &self.server().address;
        self.native().ok_or_else(|| Error::Unsupported { address: Arc::clone(address), method })
    }

    /// Which Python reads there.
    pub(crate) fn dialect(&self) -> Dialect {
        self.client.shared.classic.dialect
    }

    /// Most items of a batch.
    fn batch_max(&self) -> usize {
        self.native().map_or(usize::MAX, |(line, _)| line.batch_max())
    }

    pub(crate) async fn close(&self) -> Result<(), Error> {
        if self.is_closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        match &self.place {
            Place::Native(_) | Place::Guest(_) => self.ask(Verb::Close).await?.done(),
            Place::Classic(ident) => self.client.shared.classic.close_queue(ident).await,
        }
    }
}

impl Drop for Reference {
    /// Closes the queue. A server of CPython's is given its reference back, if it answers within a
    /// second, or at the next [`Client::queue`] or [`Client::close`] where that would have to be
    /// awaited.
    fn drop(&mut self) {
        if *self.is_closed.get_mut() || std::thread::panicking() {
            return;
        }
        match &self.place {
            Place::Native(_) | Place::Guest(_) => {
                if let Some((line, handle)) = self.native() {
                    line.drop_queue(handle);
                }
            }
            Place::Classic(ident) => self.client.shared.classic.drop_queue(ident),
        }
    }
}

/// An answer that is awaited later.
#[derive(Debug)]
pub(crate) enum Ahead {
    Asked(Asked),
    Answered(Option<Result<Answer, Error>>),
}

impl Future for Ahead {
    type Output = Result<Answer, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Asked(asked) => Pin::new(asked).poll(context),
            Self::Answered(answer) => {
                Poll::Ready(answer.take().expect("polled again after its answer"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

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
        is_send(|queue| async move { queue.put_ahead(&1).await });
    }
}
