//! A task of tokio's that moves the bytes.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::{Sleep, sleep_until};

use super::{Line, State, instant};
use crate::native::Want;
use crate::server::lock;
use crate::stream::Stream;

/// A time that does not come.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

impl Line {
    /// Starts the task in this runtime, if there is none.
    pub(super) fn have_it_driven(self: &Arc<Self>, state: &mut State) {
        if !state.is_driven {
            state.is_driven = true;
            drop(Handle::current().spawn(Driver(Arc::clone(self)).drive()));
        }
    }
}

/// Marks that its line is driven.
#[derive(Debug)]
struct Driver(Arc<Line>);

impl Drop for Driver {
    /// The end of the task, which may be that of its runtime: the next caller starts another one.
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.is_driven = false;
        if state.stream.is_some() {
            state.broken(io::Error::other("the runtime of the connection has ended"), instant());
        }
        let mut woken = state.woken();
        woken.extend(state.waiting.iter_mut().filter_map(Option::take));
        woken.extend(std::mem::take(&mut state.crowd));
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Driver {
    async fn drive(self) {
        let line = &*self.0;
        let mut alarm = pin!(sleep_until(tokio::time::Instant::now() + NEVER));
        loop {
            let want = {
                let state = lock(&line.state);
                set(alarm.as_mut(), state.core.deadline());
                state.core.want(instant())
            };
            match want {
                Want::Connect => self.connect().await,
                Want::Talk => self.talk(alarm.as_mut()).await,
                Want::Rest(_) => tokio::select! {
                    () = line.bell.notified() => {}
                    () = alarm.as_mut() => {}
                },
                Want::End => return lock(&line.state).stream = None,
            }
        }
    }

    async fn connect(&self) {
        let line = &*self.0;
        lock(&line.state).core.connecting(instant());
        let connected = Stream::open(line.mode, &line.server).await;
        self.then(|state, now| state.connected(connected, now));
    }

    /// Writes what there is, waits for what comes, and reads it.
    async fn talk(&self, alarm: Pin<&mut Sleep>) {
        let line = &*self.0;
        let (stream, written) = {
            let mut state = lock(&line.state);
            let now = instant();
            let Some(stream) = state.stream.clone() else { return };
            let written = if state.is_unsure(now) { Ok(true) } else { state.write(now) };
            (stream, written)
        };
        let is_all = match written {
            Ok(is_all) => is_all,
            Err(error) => return self.then(|state, now| state.broken(error, now)),
        };
        tokio::select! {
            readable = stream.ready(true) => match readable {
                Ok(()) => self.then(|state, now| state.read(&stream, now)),
                Err(error) => self.then(|state, now| state.broken(error, now)),
            },
            // What goes wrong there is met by the next write.
            _ = stream.ready(false), if !is_all => {}
            () = line.bell.notified() => {}
            () = alarm => self.then(|state, now| state.core.tick(now)),
        }
    }

    /// Does something with the state, and wakes whom that concerns.
    fn then(&self, work: impl FnOnce(&mut State, Instant)) {
        let mut state = lock(&self.0.state);
        work(&mut state, instant());
        state.drop_stream();
        let woken = state.woken();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl State {
    /// Reads what is there, up to some bytes, so that writing has its turn.
    fn read(&mut self, stream: &Stream, now: Instant) {
        let room = self.core.room();
        let inbound = self.core.inbound();
        inbound.reserve(room);
        match stream.try_read(inbound) {
            Ok(0) => self.core.ended(now),
            Ok(_) => {
                self.moved_at = now;
                self.core.received(now);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.broken(error, now),
        }
    }
}

/// Sets an alarm: it does not ring too late, but may ring too early.
fn set(mut alarm: Pin<&mut Sleep>, at: Option<Instant>) {
    let at = at.map_or_else(|| tokio::time::Instant::now() + NEVER, tokio::time::Instant::from_std);
    if alarm.is_elapsed() || at < alarm.deadline() {
        alarm.as_mut().reset(at);
    }
}
