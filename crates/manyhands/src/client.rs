//! The asynchronous client, for tokio; the [`blocking`](crate::blocking) one is made of it.
//!
//! A server serves one call at a time on each session, so every call in flight has its own session;
//! those at rest are kept for the next calls. A call whose future is dropped takes its session with
//! it: nobody can mistake its late reply for another's, and the server sees that nobody waits.

mod lease;
mod queue;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;

pub use self::lease::Lease;
pub use self::queue::Queue;
use crate::Error;
use crate::calls::Call;
use crate::connect::{Address, ConnectOptions};
use crate::reply::{Reply, is_forgotten};
use crate::retry::{Failure, Retry};
use crate::server::{References, Returning, Server, lock};
use crate::transport::{Mode, Sessions, now};
use crate::verb::Verb;
use crate::wire::auth::AuthKey;
use crate::wire::pickle::{DataError, Dialect, Payload};
use crate::wire::reply::QueueInfo;

/// How long a queue that is dropped may block its thread to give its reference back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

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
    sessions: Sessions,
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
        let mut server = Server::new(address, key, options)?;
        let (sessions, limit) = (Sessions::new(mode), server.options.connect_timeout);
        let mut retry = Retry::first(&server);
        let answer = loop {
            match sessions.control(&server, &Call::manager("dummy", &[]), limit).await {
                Ok(answer) => break answer,
                Err(error) => {
                    sessions.pause(&server, retry.judge(Failure::unsent(error))?).await?;
                }
            }
        };
        server.dialect = answer.dialect;
        server.reply(answer).result()?;
        Ok(Self { shared: Arc::new(Shared { server, sessions }) })
    }

    /// The queue registered as `name`, holding items of type `T`.
    ///
    /// Nothing checks the type until an item is read.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownQueue`], or that the server was lost.
    pub async fn queue<T>(&self, name: &str) -> Result<Queue<T>, Error> {
        let ident = self.control(&Call::named("create", name)).await?.created(name)?;
        lock(&self.shared.server.references).add(ident.clone());
        let (client, ident) = (self.clone(), Mutex::new(ident.into()));
        let reference = Arc::new(Reference { client, name: name.to_owned(), ident });
        if let Err(closed) = self.check_open() {
            drop(reference);
            self.release(References::pop_dropped).await?;
            return Err(closed);
        }
        // What fails here is tried again by the next call; this one has what it wants.
        self.release(References::pop_dropped).await.ok();
        Ok(Queue::new(reference))
    }

    /// The queues of a manyhands server, whether anybody uses them or not.
    ///
    /// # Errors
    ///
    /// [`Error::NotManyhands`] from CPython's own server, or that the server was lost.
    pub async fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        match self.control(&Call::manager("list_queues", &[])).await?.of_ours() {
            // An older one tells less.
            Err(Error::NotManyhands { .. }) => {
                self.control(&Call::manager("queues", &[])).await?.of_ours()
            }
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
        self.control(&Call::drop_queue(name, force)).await?.of_ours()
    }

    /// The server's own text about its objects.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the server keeps it to itself, or that the server was lost.
    pub async fn debug_info(&self) -> Result<String, Error> {
        self.control(&Call::manager("debug_info", &[])).await?.read()
    }

    /// How many objects clients hold references to.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the server keeps it to itself, or that the server was lost.
    pub async fn number_of_objects(&self) -> Result<u64, Error> {
        self.control(&Call::manager("number_of_objects", &[])).await?.read()
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
        self.shared.sessions.close();
        let released = self.release(References::pop).await;
        // Sessions that ended before would look like those of a client that crashed.
        self.shared.sessions.end();
        released
    }

    /// Gives back the references that `next` names. Where it ends early, the rest stays.
    async fn release(&self, next: fn(&mut References) -> Option<String>) -> Result<(), Error> {
        let server = &self.shared.server;
        loop {
            let Some(ident) = next(&mut lock(&server.references)) else { return Ok(()) };
            self.give_back(ident, server.options.connect_timeout).await?;
        }
    }

    async fn give_back(&self, ident: String, limit: Duration) -> Result<(), Error> {
        let Shared { server, sessions } = &*self.shared;
        let returning = Returning::new(&server.references, ident);
        let outcome = sessions.control(server, &returning.call, limit).await;
        returning.settle(outcome)
    }

    fn check_open(&self) -> Result<(), Error> {
        self.shared.sessions.check_open(&self.shared.server)
    }

    /// Makes a call of the manager.
    async fn control(&self, call: &Call) -> Result<Reply<'_>, Error> {
        self.check_open()?;
        let Shared { server, sessions } = &*self.shared;
        let answer = sessions.control(server, call, server.options.connect_timeout).await?;
        Ok(server.reply(answer))
    }
}

/// A reference to a queue, which the server counts.
#[derive(Debug)]
struct Reference {
    client: Client,
    name: String,
    /// Another one once the server was started anew.
    ident: Mutex<Arc<str>>,
}

impl Reference {
    fn server(&self) -> &Server {
        &self.client.shared.server
    }

    /// Asks the queue, again if need be and if that does no harm.
    async fn ask<'a>(&'a self, verb: Verb<'a>) -> Result<Reply<'a>, Error> {
        let Shared { server, sessions } = &*self.client.shared;
        let is_manyhands = self.is_manyhands();
        let has_extras = is_manyhands && server.announces;
        check(&verb, server, has_extras)?;
        let mut retry = Retry::new(server, verb.repeat(), is_manyhands);
        loop {
            let ident = self.ident();
            let call = Call::queue(&ident, &verb, has_extras);
            let failure = match sessions.call(server, &call).await {
                Ok(answer) if retry.is_renewable(is_forgotten(&answer, &server.options.limits)) => {
                    match self.renew(&ident).await {
                        Ok(()) => continue,
                        Err(error) => Failure::unsent(error),
                    }
                }
                Ok(answer) => {
                    let is_repeated = retry.is_repeated;
                    return Ok(Reply { server, answer, is_repeated, has_extras });
                }
                Err(failure) => failure,
            };
            sessions.pause(server, retry.judge(failure)?).await?;
        }
    }

    /// Asks without waiting for the outcome, if there is a runtime, or else a thread, that can. The
    /// server finds out about what fails here when the session ends.
    fn let_go(&self, verb: &Verb<'_>) {
        let call = Call::queue(&self.ident(), verb, true);
        let shared = Arc::clone(&self.client.shared);
        let mode = shared.sessions.mode;
        let made = async move { shared.sessions.call(&shared.server, &call).await.ok() };
        match (mode, Handle::try_current()) {
            (Mode::Blocking, _) => drop(now(made)),
            (Mode::Async, Ok(runtime)) => drop(runtime.spawn(made)),
            (Mode::Async, Err(_)) => {}
        }
    }

    fn ident(&self) -> Arc<str> {
        lock(&self.ident).clone()
    }

    /// Whether the ident was made by a manyhands server: Python's are numbers.
    fn is_manyhands(&self) -> bool {
        lock(&self.ident).split('.').count() == 3
    }

    /// Whether the server has more than CPython's methods, and this client has said that it knows
    /// them.
    fn has_extras(&self) -> bool {
        self.client.shared.server.announces && self.is_manyhands()
    }

    /// Asks a server that was started anew for the queue, unless another call did.
    async fn renew(&self, old: &str) -> Result<(), Error> {
        if *self.ident() != *old {
            return Ok(());
        }
        let reply = self.client.control(&Call::named("create", &self.name)).await?;
        let new = reply.created(&self.name)?;
        lock(&self.client.shared.server.references).rename(old, &new);
        *lock(&self.ident) = new.into();
        Ok(())
    }
}

impl Drop for Reference {
    /// Gives the reference back, if the server answers within a second: at the next [`Client::queue`]
    /// or [`Client::close`] where that would have to be awaited. A thread that panics does
    /// not: it was perhaps in the middle of an item, which a manyhands server gives to another
    /// worker once the sessions of this client have ended.
    fn drop(&mut self) {
        let Shared { server, sessions } = &*self.client.shared;
        let ident = self.ident();
        match sessions.mode {
            Mode::Async => lock(&server.references).defer(&ident),
            Mode::Blocking if std::thread::panicking() => {}
            Mode::Blocking => {
                if lock(&server.references).remove(&ident) {
                    let limit = RELEASE_TIMEOUT.min(server.options.connect_timeout);
                    now(self.client.give_back(ident.as_ref().to_owned(), limit)).ok();
                }
            }
        }
    }
}

/// Refuses what the server, or its Python, would not understand.
fn check(verb: &Verb<'_>, server: &Server, has_extras: bool) -> Result<(), Error> {
    match (verb, verb.beyond_cpython()) {
        (_, Some(method)) if !has_extras => {
            Err(Error::Unsupported { address: Arc::clone(&server.address), method })
        }
        (Verb::Put { item, .. }, _) => readable(item, server.dialect),
        _ => Ok(()),
    }
}

fn readable(item: &Payload, dialect: Dialect) -> Result<(), Error> {
    if dialect == Dialect::Python2 && item.written_in() > 2 {
        return Err(Error::Data(DataError::Shape(format!(
            "it is a pickle of protocol {}, and Python 2 reads up to 2",
            item.written_in()
        ))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;
    use crate::PutOptions;
    use crate::server::tests::server;
    use crate::wire::pickle::{Value, to_payload};

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
    #[test]
    fn what_python_2_cannot_read_is_not_sent_there() {
        let bytes = |dialect| to_payload(&Value::Bytes(vec![0xff]), dialect).unwrap();
        assert!(readable(&bytes(Dialect::Python2), Dialect::Python2).is_ok());
        let error = readable(&bytes(Dialect::Python3), Dialect::Python2).unwrap_err();
        let expected =
            "the item cannot be sent: it is a pickle of protocol 3, and Python 2 reads up to 2";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_server_of_cpythons_is_asked_for_its_own_methods_alone() {
        let server = server(b"key");
        let item = &server.pickled(&1).unwrap();
        let (plain, keyed) = (&PutOptions::default(), &PutOptions::keyed("a"));
        let refused = |verb| match check(&verb, &server, false).unwrap_err() {
            Error::Unsupported { method, .. } => method,
            other => panic!("{other}"),
        };
        assert_eq!(refused(Verb::put_with(item, keyed)), "put with options");
        assert_eq!(refused(Verb::PutTask { item, options: plain }), "put with id=True");
        assert_eq!(refused(Verb::LeaseMany { max: 1, timeout: None }), "lease");
        assert_eq!(refused(Verb::Purge), "purge");
        let request = |verb| {
            check(&verb, &server, false).unwrap();
            Call::queue("q", &verb, false).request
        };
        let put = request(Verb::Put { item, timeout: None });
        assert_eq!(request(Verb::put_with(item, plain)), put);
        assert_eq!(request(Verb::Take { timeout: None }), request(Verb::Get { timeout: None }));
    }
}
