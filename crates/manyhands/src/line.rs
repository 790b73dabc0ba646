//! Moves the bytes of a [`Core`]: the connection that all callers of a client share.
//!
//! In a runtime of tokio's, a task of its own does it. Without one, whoever waits does it: of the
//! threads that wait, one *leads*, which means that it reads for all; the others are woken when their
//! calls are decided, and one of them leads when the first has what it waited for. Writing does not
//! block, so any thread may do it.

mod task;
#[cfg(test)]
mod tests;
mod threads;

use std::future::poll_fn;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::Error;
use crate::answer::Answer;
use crate::native::{Core, Decided, Id, answer};
use crate::server::{Server, lock};
use crate::stream::{Mode, Stream};
use crate::verb::Verb;
use crate::wire::native::Task;
use crate::wire::pickle::Dialect;

/// Most parts that are written by one call of the system.
const PARTS_MAX: usize = 64;
/// A connection that was at rest for so long may have ended, which is looked after before a request
/// is sent that must not be sent twice.
const REST: Duration = Duration::from_millis(1);
/// Calls and bytes ahead of their answers, above which a caller waits for room.
const AHEAD_CALLS_MAX: usize = 16_384;
const AHEAD_BYTES_MAX: usize = 4 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) server: Arc<Server>,
    mode: Mode,
    state: Mutex<State>,
    /// Wakes the task that moves the bytes.
    bell: tokio::sync::Notify,
}

#[derive(Debug)]
struct State {
    core: Core,
    stream: Option<Arc<Stream>>,
    /// Who waits for which call.
    waiting: Vec<Option<Waker>>,
    /// Who waits until fewer calls are under way.
    crowd: Vec<Waker>,
    /// Whether a task, or a thread, moves the bytes.
    is_driven: bool,
    /// Where threads receive bytes: cleared once, and not each time.
    scratch: Vec<u8>,
    /// When bytes were moved last.
    moved_at: Instant,
}

/// Tasks that were pushed, or that there are no more.
type Pushed = Option<Result<Task, Error>>;

impl Line {
    pub(crate) fn new(server: Arc<Server>, mode: Mode) -> Arc<Self> {
        let state = State {
            core: Core::new(Arc::clone(&server)),
            stream: None,
            waiting: Vec::new(),
            crowd: Vec::new(),
            is_driven: false,
            scratch: Vec::new(),
            moved_at: instant(),
        };
        Arc::new(Self { server, mode, state: Mutex::new(state), bell: tokio::sync::Notify::new() })
    }

    /// Connects: which Python speaks there, if the server knows CPython's protocol alone.
    pub(crate) async fn connect(self: &Arc<Self>) -> Result<Option<Dialect>, Error> {
        self.call(0, Verb::Connect).await?;
        Ok(lock(&self.state).core.classic())
    }

    /// Makes a call of the queue that is open under this handle, or of the server (0).
    pub(crate) async fn call(self: &Arc<Self>, queue: u16, verb: Verb) -> Result<Answer, Error> {
        self.ask(queue, verb).await
    }

    /// The same, with the answer to be awaited later. A call whose answer is not is ended.
    pub(crate) fn ask(self: &Arc<Self>, queue: u16, verb: Verb) -> Asked {
        let id = lock(&self.state).core.ask(self.caller(), queue, verb, instant());
        self.bell.notify_one();
        Asked { line: Arc::clone(self), id, is_taken: false, lasts: false }
    }

    /// The same, once not too many calls are under way. The call goes on if its answer is not awaited.
    pub(crate) async fn ask_ahead(
        self: &Arc<Self>,
        queue: u16,
        verb: Verb,
    ) -> Result<Asked, Error> {
        let has_room = |state: &State| !state.is_crowded(1) || state.core.check_open().is_err();
        poll_fn(|context| self.poll_until(context, has_room)).await?;
        let id = lock(&self.state).core.ask_ahead(self.caller(), queue, verb, instant());
        self.bell.notify_one();
        let asked = Asked { line: Arc::clone(self), id, is_taken: false, lasts: true };
        if self.mode == Mode::Blocking {
            self.write_when_due();
        }
        Ok(asked)
    }

    /// Makes a call of which nobody wants to know what becomes of it.
    pub(crate) fn tell(self: &Arc<Self>, queue: u16, verb: Verb) {
        let mut state = lock(&self.state);
        if state.core.check_open().is_ok() {
            state.core.tell(queue, verb, instant());
        }
        self.after_telling(state);
    }

    /// Opens a queue: its handle.
    pub(crate) async fn open(self: &Arc<Self>, name: &str) -> Result<u16, Error> {
        let opened = lock(&self.state).core.open(name, instant());
        let Some((handle, id)) = opened else {
            let what = "too many queues are open; drop those that are no longer used";
            return Err(self.server.unexpected(&what));
        };
        self.bell.notify_one();
        Asked { line: Arc::clone(self), id, is_taken: false, lasts: false }.await?;
        Ok(handle)
    }

    /// Closes a queue that was dropped, or does so later where that would have to be awaited.
    pub(crate) fn drop_queue(self: &Arc<Self>, handle: u16) {
        match self.mode {
            Mode::Async => lock(&self.state).core.close_later(handle),
            Mode::Blocking => self.tell(handle, Verb::Close),
        }
    }

    /// Has tasks pushed.
    pub(crate) fn subscribe(self: &Arc<Self>, queue: u16, ahead: u32) -> Subscription {
        let id = lock(&self.state).core.subscribe(queue, ahead, instant());
        self.bell.notify_one();
        Subscription { line: Arc::clone(self), id, is_over: AtomicBool::new(false) }
    }

    /// Most items of a batch.
    pub(crate) fn batch_max(&self) -> usize {
        let limits = lock(&self.state).core.limits();
        limits.map_or(1, |limits| usize::try_from(limits.batch_max).unwrap_or(usize::MAX))
    }

    /// From now on a server that is away is not waited for.
    pub(crate) fn leave(&self) {
        lock(&self.state).core.leave();
    }

    /// Waits until what was put ahead has arrived, closes all queues, and ends the connection.
    pub(crate) async fn close(self: &Arc<Self>) -> Result<(), Error> {
        let until = instant() + self.server.options.connect_timeout;
        // What still waits for room then does not arrive.
        self.flushed(until).await.ok();
        let ids = lock(&self.state).core.close(instant());
        self.bell.notify_one();
        let asked = |id| Asked { line: Arc::clone(self), id, is_taken: false, lasts: true };
        let mut closed = Ok(());
        for asked in ids.into_iter().map(asked).collect::<Vec<_>>() {
            closed = closed.and(asked.await.map(drop));
        }
        self.end();
        closed
    }

    /// Closes the socket in a process that was forked: it is its parent's, and nothing is said on it. The
    /// line must not be used there, not even be dropped: its lock may be a thread's of the parent.
    pub(crate) fn forget(&self) {
        if let Ok(mut state) = self.state.try_lock() {
            state.stream = None;
        }
    }

    /// Whether there is a connection, as far as it is known.
    pub(crate) fn is_connected(&self) -> bool {
        lock(&self.state).core.has_link()
    }

    /// Ends all calls and the connection.
    pub(crate) fn end(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        state.core.end(instant());
        let woken = state.woken();
        self.after_telling(state);
        if self.mode == Mode::Blocking
            && let Some(stream) = lock(&self.state).stream.take()
        {
            // Whoever reads from it is woken by that.
            stream.end();
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Sees to it that what was said without waiting for an answer goes out.
    fn after_telling(self: &Arc<Self>, state: MutexGuard<'_, State>) {
        match self.mode {
            Mode::Async => drop(state),
            Mode::Blocking => self.write_now(state),
        }
        self.bell.notify_one();
    }

    /// What became of a call, once it is decided.
    fn poll_decided(
        self: &Arc<Self>,
        id: Id,
        context: &Context<'_>,
    ) -> Poll<Result<Decided, Error>> {
        self.poll(id, context, |core| core.take(id))
    }

    /// Reads what became of a call, without keeping others from the state meanwhile.
    fn read(&self, decided: Decided) -> Result<Answer, Error> {
        let holder = decided.holder();
        let answer = answer(&self.server, decided).inspect_err(|error| {
            if let Error::Protocol { .. } = error {
                // Tasks that it may have go back with the session.
                lock(&self.state).core.breached(error, instant());
                self.bell.notify_one();
            }
        })?;
        if let Some((caller, queue)) = holder {
            lock(&self.state).core.hold(caller, queue, &answer);
        }
        Ok(answer)
    }

    /// Whose hand a call has to do with: the thread's, or the task's of tokio's.
    fn caller(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self.mode {
            Mode::Async => tokio::task::try_id().hash(&mut hasher),
            Mode::Blocking => std::thread::current().id().hash(&mut hasher),
        }
        hasher.finish()
    }

    /// The next task that was pushed; none if there will be no more.
    fn poll_task(
        self: &Arc<Self>,
        id: Id,
        is_over: &AtomicBool,
        context: &Context<'_>,
    ) -> Poll<Result<Pushed, Error>> {
        let polled = self.poll(id, context, |core| {
            // The id may be another call's then.
            if is_over.load(Ordering::Relaxed) {
                return Some(None);
            }
            if let Some(task) = core.next_task(id) {
                return Some(Some(Ok(task)));
            }
            let decided = core.take(id)?;
            is_over.store(true, Ordering::Relaxed);
            Some(answer(&self.server, decided).err().map(Err))
        });
        if let Poll::Ready(Ok(Some(Ok(_)))) = polled {
            // A task that kills its worker must have been started.
            self.write_now(lock(&self.state));
        }
        polled
    }

    /// Waits for something that has to do with a call.
    fn poll<R>(
        self: &Arc<Self>,
        id: Id,
        context: &Context<'_>,
        mut take: impl FnMut(&mut Core) -> Option<R>,
    ) -> Poll<Result<R, Error>> {
        if self.mode == Mode::Blocking {
            return Poll::Ready(self.block(Some(id), |state| take(&mut state.core)));
        }
        let mut state = lock(&self.state);
        if let Some(taken) = take(&mut state.core) {
            drop(state);
            // What was taken may have given further credit.
            self.bell.notify_one();
            return Poll::Ready(Ok(taken));
        }
        state.wait_for(id, context.waker());
        self.have_it_driven(&mut state);
        Poll::Pending
    }

    /// Waits until no call is ahead of its caller, but not for longer than this.
    async fn flushed(self: &Arc<Self>, until: Instant) -> Result<(), Error> {
        let is_flushed = |state: &State| state.core.is_flushed() || until <= instant();
        let flushed = poll_fn(|context| self.poll_until(context, is_flushed));
        match self.mode {
            Mode::Async => {
                let flushed = tokio::time::timeout_at(until.into(), flushed).await;
                flushed.unwrap_or(Ok(()))
            }
            Mode::Blocking => flushed.await,
        }
    }

    /// Waits for something that has to do with how many calls are under way.
    fn poll_until(
        self: &Arc<Self>,
        context: &Context<'_>,
        is_so: impl Fn(&State) -> bool,
    ) -> Poll<Result<(), Error>> {
        if self.mode == Mode::Blocking {
            return Poll::Ready(self.block(None, |state| is_so(state).then_some(())));
        }
        let mut state = lock(&self.state);
        if is_so(&state) {
            return Poll::Ready(Ok(()));
        }
        state.crowd.push(context.waker().clone());
        self.have_it_driven(&mut state);
        Poll::Pending
    }
}

impl State {
    /// Notes who waits for a call.
    fn wait_for(&mut self, id: Id, waker: &Waker) {
        let place = id as usize;
        if self.waiting.len() <= place {
            self.waiting.resize(place + 1, None);
        }
        if let Some(waiting) = self.waiting.get_mut(place) {
            match waiting {
                Some(known) if known.will_wake(waker) => {}
                _ => *waiting = Some(waker.clone()),
            }
        }
    }

    fn wait_no_more(&mut self, id: Id) {
        if let Some(waiting) = self.waiting.get_mut(id as usize) {
            *waiting = None;
        }
    }

    /// Who is to be woken now.
    fn woken(&mut self) -> SmallVec<[Waker; 8]> {
        let mut woken = SmallVec::new();
        while let Some(id) = self.core.next_decided() {
            woken.extend(self.waiting.get_mut(id as usize).and_then(Option::take));
        }
        let is_over = self.core.check_open().is_err();
        if !self.crowd.is_empty() && (is_over || !self.is_crowded(2) || self.core.is_flushed()) {
            woken.extend(self.crowd.drain(..));
        }
        woken
    }

    /// Whether more is under way than a part of what may be.
    fn is_crowded(&self, part: usize) -> bool {
        self.core.is_crowded(AHEAD_CALLS_MAX / part, AHEAD_BYTES_MAX / part)
    }

    /// Writes what the socket takes without blocking. Tells whether that is all.
    fn write(&mut self, now: Instant) -> io::Result<bool> {
        let Some(stream) = self.stream.clone() else { return Ok(true) };
        loop {
            let parts: SmallVec<[IoSlice<'_>; PARTS_MAX]> =
                self.core.unwritten(now).take(PARTS_MAX).map(IoSlice::new).collect();
            if parts.is_empty() {
                return Ok(true);
            }
            let written = stream.try_write(&parts);
            drop(parts);
            match written {
                Ok(len) => self.core.wrote(len, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            self.moved_at = now;
        }
    }

    /// Whether something may have come on a connection at rest, such as its end, that nobody has read.
    fn is_unsure(&self, now: Instant) -> bool {
        let is_at_rest = self.core.is_idle() && now.duration_since(self.moved_at) > REST;
        is_at_rest && self.stream.as_ref().is_some_and(|stream| !stream.is_quiet())
    }

    /// Writes at once what nobody waits for the answer of, as far as the socket takes it.
    fn write_now(&mut self, now: Instant) {
        if self.is_unsure(now) {
            return;
        }
        if let Err(error) = self.write(now) {
            self.broken(error, now);
        }
    }

    /// Notes that the connection broke.
    fn broken(&mut self, error: io::Error, now: Instant) {
        self.stream = None;
        self.core.broken(error, now);
    }

    /// Takes a connection that was opened.
    fn connected(&mut self, connected: Result<Stream, Error>, now: Instant) {
        match connected {
            Ok(stream) => {
                (self.stream, self.moved_at) = (Some(Arc::new(stream)), now);
                self.core.connected(now);
            }
            Err(error) => self.core.unreachable(&error, now),
        }
    }

    /// Forgets a connection that the core has given up.
    fn drop_stream(&mut self) {
        if !self.core.has_link() {
            self.stream = None;
        }
    }
}

/// A call that was made: a future of its answer.
#[derive(Debug)]
pub(crate) struct Asked {
    line: Arc<Line>,
    id: Id,
    is_taken: bool,
    /// Whether it goes on if its answer is not awaited.
    lasts: bool,
}

impl Future for Asked {
    type Output = Result<Answer, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.line.poll_decided(self.id, context);
        let Poll::Ready(decided) = polled else { return Poll::Pending };
        self.is_taken = decided.is_ok();
        Poll::Ready(decided.and_then(|decided| self.line.read(decided)))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.is_taken {
            return;
        }
        let mut state = lock(&self.line.state);
        state.wait_no_more(self.id);
        if self.lasts {
            state.core.detach(self.id);
        } else {
            state.core.cancel(self.id, instant());
            self.line.after_telling(state);
        }
    }
}

/// Tasks that are pushed until it is ended or dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    line: Arc<Line>,
    id: Id,
    /// Whether the id is no longer this credit's; changes under the lock of the line's state.
    is_over: AtomicBool,
}

impl Subscription {
    /// The next task; `None` if there will be no more.
    pub(crate) fn poll_next(&self, context: &Context<'_>) -> Poll<Pushed> {
        let polled = self.line.poll_task(self.id, &self.is_over, context);
        polled.map(|next| next.unwrap_or_else(|interrupted| Some(Err(interrupted))))
    }

    /// Returns the tasks that were not started. Whoever waits for the next one learns that there is none.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.line.state);
        if self.is_over.swap(true, Ordering::Relaxed) {
            return;
        }
        let waiting = state.waiting.get_mut(self.id as usize).and_then(Option::take);
        state.core.unsubscribe(self.id, instant());
        self.line.after_telling(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.end();
    }
}

/// The clock that a core is told of.
pub(crate) fn instant() -> Instant {
    tokio::time::Instant::now().into_std()
}
