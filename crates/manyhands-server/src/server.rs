//! The life of a server: started from its parts, run on a thread of its own, stopped.

use std::io;
#[cfg(unix)]
use std::os::fd::RawFd;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use manyhands::Address;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::builder::{Builder, Parts};
use crate::data_dir::Data;
use crate::engine::Restored;
use crate::error::{NoQueue, StartError};
use crate::frontend::classic::foreign::{self, Guests};
use crate::frontend::classic::lists;
use crate::frontend::classic::shared::Shared;
use crate::frontend::embedded::{AsyncQueue, PinnedQueue, Queue};
use crate::listener::{Accepting, Listener};
use crate::queue::QueueOptions;

/// How long a stopping server lets replies under way go out.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

impl Builder {
    /// Binds the addresses and serves them on threads of its own.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left behind then.
    pub fn start(self) -> Result<Server, StartError> {
        Server::launch(self.parts(None)?)
    }

    /// Like [`start`](Self::start), for a program that serves more than queues: whatever is no call
    /// of a queue it answers itself. No name becomes a queue when it is used; what clients may know
    /// are the queues of [`Server::pin_new`].
    ///
    /// # Errors
    ///
    /// Same as [`start`](Self::start).
    pub fn start_with_guests(self) -> Result<(Server, Guests), StartError> {
        let (reception, guests) = foreign::reception();
        Ok((Server::launch(self.parts(Some(reception))?)?, guests))
    }
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

    fn launch(parts: Parts) -> Result<Self, StartError> {
        let Parts { mut listeners, shared, running, restored } = parts;
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        #[cfg(unix)]
        let listening = listeners.iter().map(Listener::descriptor).collect();
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
        Ok(Self {
            shared,
            restored,
            addresses,
            #[cfg(unix)]
            listening,
            thread: Some(thread),
        })
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

    /// Makes a queue without a name, which stays as long as this program has it.
    ///
    /// # Errors
    ///
    /// [`NoQueue::TooMany`].
    pub fn pin_new(&self, options: QueueOptions) -> Result<PinnedQueue, NoQueue> {
        let classic = self.shared.classic.clone();
        let queue = classic.engine.pin_new(options)?;
        Ok(PinnedQueue::new(classic, queue))
    }

    /// The queue that a client knows as `ident`, if it is there. It stays as long as this program
    /// has it.
    #[must_use]
    pub fn pin(&self, ident: &str) -> Option<PinnedQueue> {
        let classic = self.shared.classic.clone();
        let queue = classic.engine.pin(classic.parse(ident)?)?;
        Some(PinnedQueue::new(classic, queue))
    }

    /// Queues that clients refer to, however often.
    #[must_use]
    pub fn number_of_queues(&self) -> usize {
        self.shared.engine.number_of_queues()
    }

    /// A text about every reference of a client to a queue, in the form of CPython's server.
    #[must_use]
    pub fn debug_info(&self) -> String {
        lists::debug_info(&self.shared.classic)
    }

    /// A queue of this server for a program in the same process, made now if it may be.
    ///
    /// # Errors
    ///
    /// [`NoQueue`] if only other names were declared.
    pub fn queue<T: Serialize + DeserializeOwned>(&self, name: &str) -> Result<Queue<T>, NoQueue> {
        self.async_queue(name).map(AsyncQueue::blocking)
    }

    /// Like [`queue`](Self::queue), for `async` code.
    ///
    /// # Errors
    ///
    /// Same as [`queue`](Self::queue).
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
    let accepting = Accepting::new(shared, &tasks);
    for listener in listeners {
        tasks.spawn(listener.accept(accepting.clone())?);
    }
    let refusals = accepting.refusals().clone();
    // Ends with this function; who is left then is told by the journal itself.
    let mut relays = JoinSet::new();
    if let Some(journal) = data.and_then(Data::journal) {
        relays.spawn(async move { journal.relay().await });
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
        () = shared.classic.keep_time() => {}
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
