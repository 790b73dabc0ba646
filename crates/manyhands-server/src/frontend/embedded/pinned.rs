//! Queues that the embedding program has pinned, most of them without a name: it decides what clients may
//! know of them by handing out references.
//!
//! Items are payloads as they travel. A call that waits looks up every now and then, so that the
//! program can end it.

use std::future::Future;
use std::pin::pin;
use std::process;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use manyhands::Error;
use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;
use pollster::block_on;

use super::core::Core;
use crate::engine::Reference;
use crate::frontend::classic::verbs::Classic;
use crate::queue::Queue;

/// How long a call waits before it asks whether it should go on.
const LOOK_UP: Duration = Duration::from_millis(50);

/// A queue of the server in this process. It lives until it is dropped and no client refers to it.
#[derive(Debug)]
pub struct PinnedQueue {
    core: Core,
    /// Whose clients it may be referred to.
    classic: Arc<Classic>,
    /// A forked child must not touch the engine: its lock may be held by a thread that is not there.
    pid: u32,
}

impl PinnedQueue {
    pub(crate) fn new(classic: Arc<Classic>, reference: Reference) -> Self {
        let core = Core { engine: classic.engine.clone(), reference };
        Self { core, classic, pid: process::id() }
    }

    /// A new reference for a client, and its ident.
    #[must_use]
    pub fn refer(&self) -> String {
        self.classic.refer(self.core.reference, None)
    }

    /// The same for a client that asked for the queue by this name, under which it is listed.
    #[must_use]
    pub fn refer_as(&self, name: &str) -> String {
        self.classic.refer(self.core.reference, Some(name))
    }

    /// Counts `tasks` that were taken from the queue before it came here as unfinished.
    pub fn add_unfinished(&self, tasks: u64) {
        self.core.engine.add_unfinished(self.core.reference, tasks);
    }

    /// Adds an item, waiting as long as `wait` says and `goes_on` agrees.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], also if `goes_on` ended the wait; [`Error::ShutDown`]; a `TypeError` for an
    /// item that has no place in a priority queue, a `ValueError` for a negative wait.
    pub fn put(
        &self,
        item: Payload,
        wait: Wait,
        goes_on: impl FnMut() -> bool,
    ) -> Result<(), Error> {
        block(self.core.put(item, None, wait), goes_on, Err(Error::Full)).map(drop)
    }

    /// Takes the next item, waiting as long as `wait` says and `goes_on` agrees.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], also if `goes_on` ended the wait; [`Error::ShutDown`]; a `ValueError` for a
    /// negative wait.
    pub fn get(&self, wait: Wait, goes_on: impl FnMut() -> bool) -> Result<Payload, Error> {
        block(self.core.get(wait), goes_on, Err(Error::Empty))
    }

    /// Waits until every item is done, or until `goes_on` says no.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`] if the server stops first.
    pub fn join(&self, goes_on: impl FnMut() -> bool) -> Result<(), Error> {
        block(self.core.join(), goes_on, Ok(()))
    }

    /// Counts one item as done.
    ///
    /// # Errors
    ///
    /// A `ValueError` if that was called for every item that was put.
    pub fn task_done(&self) -> Result<(), Error> {
        block_on(self.core.task_done())
    }

    /// Ends the queue: no more puts, and gets until it is empty; none if `immediate`.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn shutdown(&self, immediate: bool) -> Result<(), Error> {
        block_on(self.core.shut_down(immediate))
    }

    /// Items that are ready.
    #[must_use]
    pub fn qsize(&self) -> usize {
        self.core.look(Queue::len)
    }

    /// Whether `maxsize` items are ready.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.core.look(Queue::is_full)
    }

    /// Whether it was shut down.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.core.look(Queue::is_shut_down)
    }

    /// Items put for which `task_done` was not called.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        self.core.look(Queue::unfinished)
    }
}

/// Waits for what a call comes to, on this thread; to `otherwise` if `goes_on` ends the wait.
fn block<R>(
    call: impl Future<Output = Result<R, Error>>,
    mut goes_on: impl FnMut() -> bool,
    otherwise: Result<R, Error>,
) -> Result<R, Error> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut call = pin!(call);
    loop {
        if let Poll::Ready(result) = call.as_mut().poll(&mut Context::from_waker(&waker)) {
            return result;
        }
        if !goes_on() {
            return otherwise;
        }
        thread::park_timeout(LOOK_UP);
    }
}

impl Drop for PinnedQueue {
    fn drop(&mut self) {
        if self.pid == process::id() {
            self.core.engine.unpin(self.core.reference);
        }
    }
}

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use manyhands::wire::pickle::Limits;

    use super::*;
    use crate::config;
    use crate::engine::Engine;
    use crate::queue::QueueOptions;

    fn classic() -> Arc<Classic> {
        let limits = config::Limits::default();
        Classic::new(Arc::new(Engine::new(&limits, false, 0)), &limits)
    }

    fn pinned(classic: &Arc<Classic>, maxsize: usize) -> PinnedQueue {
        let reference = classic.engine.pin_new(QueueOptions::bounded(maxsize)).unwrap();
        PinnedQueue::new(classic.clone(), reference)
    }

    fn item() -> Payload {
        Payload::from_standalone(Bytes::from_static(b"\x80\x02K\x01."), &Limits::default()).unwrap()
    }

    #[test]
    fn a_wait_ends_when_the_program_says_so() {
        let queue = pinned(&classic(), 1);
        let mut looks = 0;
        let ended = queue.get(Wait::Forever, || {
            looks += 1;
            looks < 2
        });
        assert!(matches!(ended, Err(Error::Empty)), "{ended:?}");
        queue.put(item(), Wait::No, || true).unwrap();
        assert!(matches!(queue.put(item(), Wait::Forever, || false), Err(Error::Full)));
        assert_eq!(queue.qsize(), 1, "a put that was ended leaves nothing");
    }

    #[test]
    fn a_wait_ends_when_another_thread_brings_the_item() {
        let queue = pinned(&classic(), 0);
        let taken = thread::scope(|scope| {
            let getter = scope.spawn(|| queue.get(Wait::Forever, || true));
            queue.put(item(), Wait::No, || true).unwrap();
            getter.join().unwrap()
        });
        assert_eq!(taken.unwrap(), item());
    }

    #[test]
    fn a_queue_lives_while_it_is_held_or_referenced() {
        let classic = classic();
        let queue = pinned(&classic, 0);
        let ident = queue.refer();
        assert!(classic.decref(&ident));
        assert!(classic.resolve(&ident).is_some(), "it is still pinned");
        let ident = queue.refer();
        drop(queue);
        assert!(classic.resolve(&ident).is_some(), "it is still referenced");
        assert_eq!(classic.engine.number_of_queues(), 1);
        assert!(classic.decref(&ident));
        assert!(classic.resolve(&ident).is_none());
        assert_eq!(classic.engine.number_of_queues(), 0);
    }

    #[test]
    fn items_given_out_by_an_earlier_owner_are_unfinished() {
        let queue = pinned(&classic(), 0);
        queue.add_unfinished(2);
        assert_eq!(queue.unfinished(), 2);
        queue.task_done().unwrap();
        queue.task_done().unwrap();
        queue.join(|| false).unwrap();
        assert!(queue.task_done().is_err());
    }
}
