//! Threads that move the bytes while they wait.

use std::cell::OnceCell;
use std::io;
use std::sync::{Arc, MutexGuard};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use super::{Line, State, instant};
use crate::Error;
use crate::native::{Id, Want};
use crate::server::lock;
use crate::stream::{LOOK_UP, Mode, Stream, now};

/// What was said without waiting for an answer goes out when it is so much, or so long after the last.
const LINGER_BYTES: usize = 64 << 10;
const LINGER: Duration = Duration::from_millis(1);
/// How long to wait for something to read while the socket takes no more.
const STALLED: Duration = Duration::from_millis(1);
/// Bytes that are received at one time.
const ROOM: usize = 64 << 10;

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    static WAKER: OnceCell<Waker> = const { OnceCell::new() };
}

/// What wakes this thread.
fn waker() -> Waker {
    let new = || Waker::from(Arc::new(Unpark(thread::current())));
    // A thread that ends waits for nothing.
    WAKER.try_with(|waker| waker.get_or_init(new).clone()).unwrap_or_else(|_| new())
}

impl Line {
    /// Waits until something is there, which has to do with a call or with how many there are.
    pub(super) fn block<R>(
        &self,
        id: Option<Id>,
        mut take: impl FnMut(&mut State) -> Option<R>,
    ) -> Result<R, Error> {
        let mut state = lock(&self.state);
        let mut look_up_at = instant() + LOOK_UP;
        loop {
            if let Some(taken) = take(&mut state) {
                id.into_iter().for_each(|id| state.wait_no_more(id));
                self.hand_over(state);
                return Ok(taken);
            }
            let now = instant();
            if let Some((error, left)) = state.core.report(now) {
                // Neither of the two is called with the lock held: they may call this client.
                drop(state);
                self.server.options.report.into_iter().for_each(|report| report(&error, left));
                state = lock(&self.state);
                continue;
            }
            if let Some(goes_on) = self.server.options.goes_on.filter(|_| look_up_at <= now) {
                drop(state);
                let goes_on = goes_on();
                state = lock(&self.state);
                look_up_at = instant() + LOOK_UP;
                if !goes_on {
                    id.into_iter().for_each(|id| state.wait_no_more(id));
                    self.hand_over(state);
                    return Err(Error::Interrupted);
                }
                continue;
            }
            match id {
                Some(id) => state.wait_for(id, &waker()),
                None => state.crowd.push(waker()),
            }
            state = if state.is_driven {
                self.follow(state)
            } else {
                state.is_driven = true;
                let mut state = self.lead(state);
                state.is_driven = false;
                state
            };
        }
    }

    /// Another thread reads; this one sees to it that its own request goes out.
    fn follow<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let is_all = self.write(&mut state);
        let is_asked = self.server.options.goes_on.is_some();
        drop(state);
        match (is_all, is_asked) {
            (false, _) => thread::park_timeout(STALLED),
            (true, true) => thread::park_timeout(LOOK_UP),
            (true, false) => thread::park(),
        }
        lock(&self.state)
    }

    /// Does the next thing that is to be done, for all.
    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let started = instant();
        match state.core.want(started) {
            Want::Connect => {
                state.core.connecting(started);
                drop(state);
                let connected = now(Stream::open(Mode::Blocking, &self.server));
                state = lock(&self.state);
                state.connected(connected, instant());
            }
            Want::Talk => state = self.talk(state),
            Want::Rest(until) => {
                drop(state);
                let until = until.map_or(LOOK_UP, |until| until.saturating_duration_since(started));
                thread::park_timeout(until.min(LOOK_UP));
                state = lock(&self.state);
            }
            // All calls are decided then.
            Want::End => state.stream = None,
        }
        state.drop_stream();
        state.woken().into_iter().for_each(Waker::wake);
        state
    }

    /// Writes what there is, waits for what comes, and reads it.
    fn talk<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let is_all = state.is_unsure(instant()) || self.write(&mut state);
        let Some(stream) = state.stream.clone() else { return state };
        let limit = if is_all { self.time_to_read(&state) } else { STALLED };
        let mut scratch = std::mem::take(&mut state.scratch);
        drop(state);
        scratch.resize(ROOM, 0);
        let received = stream.receive_within(&mut scratch, limit);
        state = lock(&self.state);
        let now = instant();
        match received {
            Ok(0) => state.core.ended(now),
            Ok(len) => {
                state.moved_at = now;
                let received = scratch.get(..len).unwrap_or_default();
                state.core.inbound().extend_from_slice(received);
                state.core.received(now);
            }
            Err(error) if is_time_out(&error) => state.core.tick(now),
            Err(error) => state.broken(error, now),
        }
        state.scratch = scratch;
        state
    }

    /// How long to wait for bytes at most. Few different times, as the system has to be told of each.
    fn time_to_read(&self, state: &State) -> Duration {
        let deadline = state.core.deadline();
        let left = deadline.map(|at| at.saturating_duration_since(instant()));
        let is_asked = self.server.options.goes_on.is_some();
        let steps = [Duration::from_secs(1), LOOK_UP, STALLED];
        let is_short = |step: &Duration| left.is_none_or(|left| *step <= left);
        let steps = steps.into_iter().skip(usize::from(is_asked));
        steps.clone().find(is_short).or(steps.last()).unwrap_or(STALLED)
    }

    /// Writes what the socket takes; tells whether that is all.
    fn write(&self, state: &mut State) -> bool {
        let now = instant();
        match state.write(now) {
            Ok(is_all) => is_all,
            Err(error) => {
                state.broken(error, now);
                state.woken().into_iter().for_each(Waker::wake);
                true
            }
        }
    }

    /// Writes at once what nobody waits for the answer of.
    pub(super) fn write_now(&self, mut state: MutexGuard<'_, State>) {
        state.write_now(instant());
        state.woken().into_iter().for_each(Waker::wake);
    }

    /// Writes what is ahead of its answers, if it is much or has waited for long.
    pub(super) fn write_when_due(&self) {
        let state = lock(&self.state);
        let is_due = instant().duration_since(state.moved_at) > LINGER;
        if is_due || state.core.unwritten_len() > LINGER_BYTES {
            self.write_now(state);
        }
    }

    /// Has another thread lead that waits, if none does.
    fn hand_over(&self, mut state: MutexGuard<'_, State>) {
        if state.is_driven {
            return;
        }
        let next = state.waiting.iter().flatten().next().cloned();
        // Some of them may have left; one that has not leads, or waits again.
        let crowd = std::mem::take(&mut state.crowd);
        drop(state);
        next.into_iter().chain(crowd).for_each(Waker::wake);
    }
}

fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        || error.kind() == io::ErrorKind::Interrupted
}
