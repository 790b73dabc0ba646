//! The sessions of a client: how its requests and their replies travel, and how it waits.
//!
//! All of it is written once, as `async` functions. Only a [`Stream`] knows two kinds of waiting:
//! one of tokio's suspends its task, a blocking one blocks its thread. On blocking streams no
//! function is ever suspended, so that [`now`] runs it to its end without a runtime.

mod stream;

use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use self::stream::{Deadline, Stream};
use crate::Error;
use crate::calls::Call;
use crate::conversation::{Conversation, Step};
use crate::retry::Failure;
use crate::server::{Server, lock};
use crate::wire::request::Answer;

/// How long a client waits before it asks whether it should go on.
const LOOK_UP: Duration = Duration::from_millis(50);

/// How a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// With `.await`, in a runtime of tokio's.
    Async,
    /// Its thread is blocked.
    Blocking,
}

/// Runs what waits in [`Mode::Blocking`] alone.
pub(crate) fn now<R>(future: impl Future<Output = R>) -> R {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("a blocking stream blocks instead of suspending"),
    }
}

/// The sessions of one client.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) mode: Mode,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// No call may begin.
    is_closed: bool,
    idle: Vec<Session>,
    /// Of all sessions, so that closing the client ends the calls under way.
    streams: Vec<Weak<Stream>>,
}

impl State {
    fn add(&mut self, stream: &Arc<Stream>) {
        self.streams.retain(|stream| stream.strong_count() > 0);
        self.streams.push(Arc::downgrade(stream));
    }
}

impl Sessions {
    pub(crate) fn new(mode: Mode) -> Self {
        Self { mode, state: Mutex::default() }
    }

    pub(crate) fn check_open(&self, server: &Server) -> Result<(), Error> {
        if lock(&self.state).is_closed { Err(server.closed()) } else { Ok(()) }
    }

    /// From now on no call may begin.
    pub(crate) fn close(&self) {
        lock(&self.state).is_closed = true;
    }

    /// Ends all sessions and the calls on them.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        state.idle.clear();
        state.streams.drain(..).filter_map(|stream| stream.upgrade()).for_each(|it| it.end());
    }

    /// Makes one call of the manager on a connection of its own.
    pub(crate) async fn control(
        &self,
        server: &Server,
        call: &Call,
        limit: Duration,
    ) -> Result<Answer, Error> {
        let deadline = Deadline::after(Some(limit));
        let mut session = Session::connect(self.mode, server, deadline).await?;
        server.decode(&session.ask(&call.request, deadline).await?)
    }

    /// Makes one call on a session that no other call is on.
    pub(crate) async fn call(&self, server: &Server, call: &Call) -> Result<Answer, Failure> {
        let mut session = self.session(server).await.map_err(Failure::unsent)?;
        let deadline = Deadline::after(call.time_limit(&server.options));
        let body = session.ask(&call.request, deadline).await.map_err(|error| match error {
            Error::Lost { .. } => Failure::sent(self.check_open(server).err().unwrap_or(error)),
            error => Failure::sent(error),
        })?;
        let mut state = lock(&self.state);
        if !state.is_closed && state.idle.len() < server.options.idle_sessions_max {
            state.idle.push(session);
        }
        drop(state);
        server.decode(&body).map_err(Failure::sent)
    }

    /// A session at rest, or a new one.
    async fn session(&self, server: &Server) -> Result<Session, Error> {
        self.check_open(server)?;
        if let Some(session) = self.take_idle() {
            return Ok(session);
        }
        let deadline = Deadline::after(Some(server.options.connect_timeout));
        let mut session = Session::connect(self.mode, server, deadline).await?;
        lock(&self.state).add(&session.stream);
        let begin = Call::named("accept_connection", &server.options.session_name);
        let begun = session.ask(&begin.request, deadline).await;
        self.check_open(server)?;
        server.reply(server.decode(&begun?)?).result()?;
        Ok(session)
    }

    /// A session at rest on which nothing has happened since.
    fn take_idle(&self) -> Option<Session> {
        let mut state = lock(&self.state);
        std::iter::from_fn(|| state.idle.pop()).find(|session| session.stream.is_quiet())
    }

    /// Waits before a call is made again, unless the client is closed or the program wants an end.
    pub(crate) async fn pause(&self, server: &Server, mut pause: Duration) -> Result<(), Error> {
        while !pause.is_zero() {
            self.check_open(server)?;
            let slice = pause.min(LOOK_UP);
            match (self.mode, server.options.goes_on) {
                (Mode::Async, _) => tokio::time::sleep(slice).await,
                (_, Some(goes_on)) if !goes_on() => return Err(Error::Interrupted),
                _ => std::thread::sleep(slice),
            }
            pause -= slice;
        }
        Ok(())
    }
}

/// One connection.
#[derive(Debug)]
struct Session {
    stream: Arc<Stream>,
    conversation: Conversation,
    /// Where bytes are received: cleared once, and not for every reply.
    scratch: Vec<u8>,
}

impl Session {
    async fn connect(mode: Mode, server: &Server, deadline: Deadline) -> Result<Self, Error> {
        let conversation = Conversation::new(server)?;
        let address = Arc::clone(&server.address);
        let stream = Stream::connect(mode, server, deadline).await.map_err(|error| {
            deadline.passed(&error, &server.address).unwrap_or(Error::Connect { address, error })
        })?;
        Ok(Self { stream: Arc::new(stream), conversation, scratch: Vec::new() })
    }

    /// Sends a request and waits for its reply.
    async fn ask(&mut self, request: &[u8], deadline: Deadline) -> Result<Bytes, Error> {
        let Self { stream, conversation, scratch } = self;
        conversation.ask(request);
        loop {
            let moved = match conversation.step()? {
                Step::Reply(body) => return Ok(body),
                Step::Send(bytes) => stream.send_all(bytes, deadline).await,
                Step::Receive => {
                    scratch.resize(scratch.len().max(conversation.room()), 0);
                    match stream.receive(scratch, deadline).await {
                        Ok(0) => return Err(conversation.closed()),
                        received => received.map(|len| {
                            let received = scratch.get(..len).unwrap_or_default();
                            conversation.inbound().extend_from_slice(received);
                        }),
                    }
                }
            };
            moved.map_err(|error| {
                deadline
                    .passed(&error, &conversation.address)
                    .unwrap_or_else(|| conversation.lost(error))
            })?;
        }
    }
}
