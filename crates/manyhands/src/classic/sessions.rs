//! The sessions of a client at a server of CPython's: how its requests and their replies travel.
//!
//! Such a server serves one call at a time on each session, so every call in flight has its own;
//! those at rest are kept for the next calls.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;

use super::calls::Call;
use super::reply::result;
use crate::Error;
use crate::conversation::{Conversation, Step};
use crate::server::{Server, lock};
use crate::stream::{Deadline, Mode, Stream};
use crate::wire::request::Answer;

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

    /// Closes the sockets of sessions at rest in a process that was forked: they are its parent's.
    pub(crate) fn forget(&self) {
        if let Ok(mut state) = self.state.try_lock() {
            state.idle.clear();
        }
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
    pub(crate) async fn call(&self, server: &Server, call: &Call) -> Result<Answer, Error> {
        let mut session = self.session(server).await?;
        let deadline = Deadline::after(call.time_limit(&server.options));
        let body = session.ask(&call.request, deadline).await.map_err(|error| match error {
            Error::Lost { .. } => self.check_open(server).err().unwrap_or(error),
            error => error,
        })?;
        let mut state = lock(&self.state);
        if !state.is_closed && state.idle.len() < server.options.idle_sessions_max {
            state.idle.push(session);
        }
        drop(state);
        server.decode(&body)
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
        result(&server.decode(&begun?)?, &server.options.limits)?;
        Ok(session)
    }

    /// A session at rest on which nothing has happened since.
    fn take_idle(&self) -> Option<Session> {
        let mut state = lock(&self.state);
        std::iter::from_fn(|| state.idle.pop()).find(|session| session.stream.is_quiet())
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
