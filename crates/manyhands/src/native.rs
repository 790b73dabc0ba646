//! The client of the native protocol, sans-IO: bytes in and bytes out, calls by their ids, and a
//! clock that is passed in.
//!
//! A [`Core`] outlives its connections: it says when to [connect](Want::Connect), opens its queues
//! again on each, and makes the calls again that a lost connection left without an answer, as far as
//! [`Retry`] lets it. All callers share one connection, and their requests go out without waiting for
//! each other's replies. A driver moves the bytes: see [`line`](crate::line).
//!
//! ```text
//! Down ── want: Connect ──> Connecting ── connected ──> Login ── welcome ──> Up
//!  ^                             │                        │                   │
//!  └──────── a pause <───────────┴──── unreachable ───────┴────── broken ─────┘
//! ```

mod calls;
mod encode;
mod pushed;
mod queues;
#[cfg(test)]
mod tests;
mod translate;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

use self::calls::{Call, Calls, Stage};
pub(crate) use self::calls::{Decided, Id};
use self::pushed::Pushed;
use self::queues::{Queue, Queues};
pub(crate) use self::translate::answer;
use crate::Error;
use crate::answer::unknown_queue;
use crate::conversation::{Conversation, Step};
use crate::retry::{Failure, Pauses, Retry, same};
use crate::server::Server;
use crate::verb::Verb;
use crate::wire::frame::{Decoder, Frame, FrameError, Outbound};
use crate::wire::native::{
    Answer, Code, Fate, Header, Hello, HelloError, Reply, Request, Route, SessionLimits, Tasks,
    Welcome,
};
use crate::wire::pickle::{DataError, Dialect};
use crate::wire::request;
use crate::wire::token::LeaseToken;

/// The newest pickle protocol that this client reads.
const READER: u8 = 5;
/// Why a task comes back that came for nobody.
const LEFT: &str = "its worker had left by then";
/// Least and most that is received at one time, in bytes.
const ROOM: (usize, usize) = (64 << 10, 1 << 20);

/// What a driver has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Connect, and say how that ended.
    Connect,
    /// Write and read what there is.
    Talk,
    /// Nothing until then, or until there is a call.
    Rest(Option<Instant>),
    /// Nothing any more.
    End,
}

/// Where the connection stands.
#[derive(Debug)]
enum Link {
    Down { retry_at: Option<Instant> },
    Connecting { until: Instant },
    Login { conversation: Box<Conversation>, until: Instant },
    Up(Session),
}

/// A connection on which both sides speak the native protocol.
#[derive(Debug)]
struct Session {
    decoder: Decoder<Header>,
    limits: SessionLimits,
    /// When the last bytes came.
    heard_at: Instant,
    /// How many requests have no reply yet.
    in_flight: u32,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Core {
    server: Arc<Server>,
    link: Link,
    calls: Calls,
    queues: Queues,
    /// Tasks that were pushed, by the ids of their credit.
    pushed: HashMap<Id, Pushed>,
    /// Pushed tasks that the program has begun with, of which the server has not been told.
    started: Vec<(u16, LeaseToken)>,
    inbound: BytesMut,
    /// What is to be written: first `parts`, then `outbound`.
    outbound: Outbound,
    parts: VecDeque<Bytes>,
    parts_len: usize,
    /// Bytes of this connection that were written.
    written: u64,
    pauses: Pauses,
    /// What the server allows, or allowed before it was lost.
    limits: Option<SessionLimits>,
    /// No reply is overdue before.
    overdue_at: Option<Instant>,
    /// Which Python speaks there, if the server knows CPython's protocol alone.
    classic: Option<Dialect>,
    /// Why there is no connection, if one was lost or could not be had.
    trouble: Option<Trouble>,
    is_closed: bool,
}

/// Why there is no connection.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    /// What went wrong last.
    error: Error,
    is_reported: bool,
}

impl Core {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            link: Link::Down { retry_at: None },
            calls: Calls::default(),
            queues: Queues::default(),
            pushed: HashMap::new(),
            started: Vec::new(),
            inbound: BytesMut::new(),
            outbound: Outbound::default(),
            parts: VecDeque::new(),
            parts_len: 0,
            written: 0,
            pauses: Pauses::default(),
            limits: None,
            overdue_at: None,
            classic: None,
            trouble: None,
            is_closed: false,
        }
    }

    // ---- for callers

    /// Makes a call of the queue that is open under this handle, or of the server (0).
    pub(crate) fn ask(&mut self, queue: u16, verb: Verb, now: Instant) -> Id {
        if let Verb::Settle { settlements, .. } = &verb {
            self.forget_starts(settlements);
        }
        let id = self.add(queue, verb, false);
        if self.is_closed {
            let closed = self.server.closed();
            self.decide(id, Err(closed));
        }
        self.fill(now);
        id
    }

    /// Makes a call of which nobody wants to know what becomes of it.
    pub(crate) fn tell(&mut self, queue: u16, verb: Verb, now: Instant) {
        let id = self.ask(queue, verb, now);
        self.detach(id);
    }

    /// Opens a queue: its handle, and the call that says whether it is there. `None` if too many are
    /// open.
    pub(crate) fn open(&mut self, name: &str, now: Instant) -> Option<(u16, Id)> {
        let name: Arc<str> = name.into();
        let max = self.limits.map_or(u32::MAX, |limits| limits.queues_max);
        let handle = self.queues.add(Arc::clone(&name), max)?;
        Some((handle, self.ask(handle, Verb::Open { name }, now)))
    }

    /// What became of a call, once it is decided; it is forgotten then.
    pub(crate) fn take(&mut self, id: Id) -> Option<Decided> {
        let decided = self.calls.take(id)?;
        if let Verb::Credit { .. } = decided.verb {
            self.pushed.remove(&id);
        }
        Some(decided)
    }

    /// The next call that was decided, or for which tasks were pushed.
    pub(crate) fn next_decided(&mut self) -> Option<Id> {
        self.calls.decided.pop_front()
    }

    /// Lets a call go on of which nobody wants to know any more what becomes of it.
    pub(crate) fn detach(&mut self, id: Id) {
        if self.calls.take(id).is_none()
            && let Some(call) = self.calls.get(id)
        {
            call.is_let_go = true;
        }
    }

    /// Ends a call whose caller has left. What it takes all the same goes back.
    pub(crate) fn cancel(&mut self, id: Id, now: Instant) {
        let Some(call) = self.calls.get(id) else { return };
        let queue = call.queue;
        match call.stage {
            Stage::Waits => self.forget(id),
            Stage::Sent { .. } => {
                call.is_let_go = true;
                if call.verb.patience() != Some(Duration::ZERO) {
                    self.say(&Request::Cancel, queue, id);
                }
            }
            Stage::Decided(_) => {
                if let Some(decided) = self.calls.take(id) {
                    self.undo(queue, decided, now);
                }
            }
        }
    }

    /// Whether so many calls are under way that the next one should wait.
    pub(crate) fn is_crowded(&self, calls_max: usize, bytes_max: usize) -> bool {
        self.calls.len() > calls_max || self.unwritten_len() > bytes_max
    }

    /// From now on no call may begin. Closes all queues; the calls that say when they are.
    pub(crate) fn close(&mut self, now: Instant) -> Vec<Id> {
        self.is_closed = true;
        if !matches!(self.link, Link::Up(_)) {
            return Vec::new();
        }
        let open: Vec<_> = self.queues.iter().map(|(handle, _)| handle).collect();
        let ids = open.into_iter().map(|handle| self.add(handle, Verb::Close, false)).collect();
        self.fill(now);
        ids
    }

    /// Ends all calls, and the connection once what is to be written is written.
    pub(crate) fn end(&mut self, now: Instant) {
        self.is_closed = true;
        self.overdue_at = now.checked_add(self.server.options.call_margin);
        for id in self.calls.ids(|call| !matches!(call.stage, Stage::Decided(_))) {
            let closed = self.server.closed();
            self.decide(id, Err(closed));
        }
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.is_closed { Err(self.server.closed()) } else { Ok(()) }
    }

    /// Which Python speaks there, if the server turned out to know CPython's protocol alone.
    pub(crate) fn classic(&self) -> Option<Dialect> {
        self.classic
    }

    /// What the server allows, as far as it has said so.
    pub(crate) fn limits(&self) -> Option<SessionLimits> {
        self.limits
    }

    /// Why there is no connection and for how much longer that is tried: once, if somebody waits for it
    /// and it is time to say so.
    pub(crate) fn report(&mut self, now: Instant) -> Option<(Error, Duration)> {
        let Trouble { since, error, is_reported } = self.trouble.as_mut()?;
        if *is_reported || now.duration_since(*since) < self.server.options.report_after {
            return None;
        }
        let left = self.calls.patience(now)?;
        *is_reported = true;
        Some((same(error), left))
    }

    // ---- for drivers

    pub(crate) fn want(&self, now: Instant) -> Want {
        let is_over = self.is_closed && self.calls.is_all_decided();
        match &self.link {
            Link::Up(_) if is_over && self.unwritten_len() == 0 => Want::End,
            Link::Up(_) => Want::Talk,
            _ if is_over => Want::End,
            Link::Login { .. } | Link::Connecting { .. } => Want::Talk,
            Link::Down { .. } if !self.calls.is_waiting() => Want::Rest(None),
            Link::Down { retry_at: Some(at) } if *at > now => Want::Rest(Some(*at)),
            Link::Down { .. } => Want::Connect,
        }
    }

    /// When [`tick`](Self::tick) is to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.link {
            Link::Down { retry_at } => *retry_at,
            Link::Connecting { until } | Link::Login { until, .. } => Some(*until),
            Link::Up(_) => self.overdue_at,
        }
    }

    /// Notes that the driver begins to connect.
    pub(crate) fn connecting(&mut self, now: Instant) {
        self.link = Link::Connecting { until: now + self.server.options.connect_timeout };
    }

    /// Notes that there is a connection.
    pub(crate) fn connected(&mut self, now: Instant) {
        let Link::Connecting { until } = self.link else { return };
        match Conversation::new(&self.server) {
            Ok(mut conversation) => {
                let mut hello = BytesMut::new();
                Hello::new(READER, self.server.options.session_name.clone()).write(&mut hello);
                conversation.ask(&hello);
                self.link = Link::Login { conversation: Box::new(conversation), until };
            }
            Err(error) => self.fail(&error, now),
        }
    }

    /// Notes that there is none.
    pub(crate) fn unreachable(&mut self, error: &Error, now: Instant) {
        self.fail(error, now);
    }

    /// Whether the driver's connection is still good.
    pub(crate) fn has_link(&self) -> bool {
        matches!(self.link, Link::Login { .. } | Link::Up(_))
    }

    /// How many bytes to receive next, at most.
    pub(crate) fn room(&self) -> usize {
        match &self.link {
            Link::Login { conversation, .. } => conversation.room(),
            Link::Up(session) => {
                let missing = session.decoder.missing(&self.inbound);
                usize::try_from(missing).unwrap_or(ROOM.1).clamp(ROOM.0, ROOM.1)
            }
            _ => ROOM.0,
        }
    }

    /// How many bytes are to be written.
    pub(crate) fn unwritten_len(&self) -> usize {
        self.parts_len + self.outbound.len()
    }

    /// Where to put what is received, before [`received`](Self::received).
    pub(crate) fn inbound(&mut self) -> &mut BytesMut {
        match &mut self.link {
            Link::Login { conversation, .. } => conversation.inbound(),
            _ => &mut self.inbound,
        }
    }

    /// Reads what has come.
    pub(crate) fn received(&mut self, now: Instant) {
        if let Link::Login { .. } = self.link {
            self.log_in(now);
        }
        loop {
            let Link::Up(session) = &mut self.link else { return };
            session.heard_at = now;
            match session.decoder.next_with_header(&mut self.inbound) {
                Ok(Some((header, frame))) => self.on_frame(header, frame, now),
                Ok(None) => break,
                Err(error) => {
                    let error = self.server.unexpected(&error);
                    return self.fail(&error, now);
                }
            }
        }
        self.fill(now);
    }

    /// Notes that the server closed the connection.
    pub(crate) fn ended(&mut self, now: Instant) {
        let error = match &self.link {
            Link::Login { conversation, .. } => conversation.closed(),
            _ => {
                let how = "closed by the server";
                self.server.lost(io::Error::new(io::ErrorKind::UnexpectedEof, how))
            }
        };
        self.fail(&error, now);
    }

    /// Notes that the connection broke.
    pub(crate) fn broken(&mut self, error: io::Error, now: Instant) {
        let error = self.server.lost(error);
        self.fail(&error, now);
    }

    /// What is to be written, in order.
    pub(crate) fn unwritten(&mut self, now: Instant) -> impl Iterator<Item = &[u8]> {
        self.tell_starts(now);
        if self.parts.is_empty() && !self.outbound.is_empty() {
            self.parts_len = self.outbound.len();
            self.parts.extend(self.outbound.split_to(self.parts_len).into_parts());
        }
        self.parts.iter().map(|part| &part[..])
    }

    /// Notes that so many bytes were written.
    pub(crate) fn wrote(&mut self, len: usize, now: Instant) {
        self.written += len as u64;
        self.parts_len -= len;
        let mut left = len;
        while let Some(part) = self.parts.front_mut() {
            if left < part.len() {
                part.advance(left);
                break;
            }
            left -= part.len();
            self.parts.pop_front();
        }
        if matches!(self.link, Link::Login { .. }) && self.unwritten_len() == 0 {
            self.log_in(now);
        }
    }

    /// Looks what is overdue.
    pub(crate) fn tick(&mut self, now: Instant) {
        match &self.link {
            Link::Connecting { until } | Link::Login { until, .. } if *until <= now => {
                let error = self.server.timed_out(self.server.options.connect_timeout);
                self.fail(&error, now);
            }
            Link::Up(_) if self.overdue_at.is_some_and(|at| at <= now) => self.end_overdue(now),
            _ => {}
        }
    }

    /// Whether anything but the end of the connection may come.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(&self.link, Link::Up(session) if session.in_flight == 0)
    }

    // ---- calls

    fn add(&mut self, queue: u16, verb: Verb, is_let_go: bool) -> Id {
        let options = &self.server.options;
        let time = match verb {
            Verb::Connect => options.connect_for.unwrap_or(options.reconnect_for),
            _ => options.reconnect_for,
        };
        let retry = Retry::new(time, verb.repeat());
        self.calls.add(queue, verb, retry, is_let_go)
    }

    /// Sends what waits, as far as the server's limits let it.
    fn fill(&mut self, now: Instant) {
        let margin = self.server.options.call_margin;
        loop {
            let Link::Up(session) = &mut self.link else { return };
            if session.in_flight >= session.limits.pending_max {
                return;
            }
            let Some((id, call)) = self.calls.next() else { return };
            match &mut call.verb {
                Verb::Connect => {
                    self.decide(id, Ok(Reply::Done));
                    continue;
                }
                Verb::Credit { ahead } => {
                    *ahead = (*ahead).clamp(1, session.limits.credit_max.max(1));
                    if let Some(pushed) = self.pushed.get_mut(&id) {
                        (pushed.ahead, pushed.granted) = (*ahead, *ahead);
                    }
                }
                _ => {}
            }
            let items_len = call.verb.items_len();
            let behind = self.written + (self.parts_len + self.outbound.len()) as u64;
            let route = Route { queue: call.queue, id };
            if !encode::fits(items_len, session.limits.frame_max)
                || encode::push(&call.verb, route, &mut self.outbound).is_err()
            {
                let error = too_long(items_len, session.limits.frame_max);
                self.decide(id, Err(error));
                continue;
            }
            session.in_flight += 1;
            call.stage = Stage::Sent { behind, since: now };
            let overdue_at = call.limit(margin).and_then(|limit| now.checked_add(limit));
            self.overdue_at = self.overdue_at.into_iter().chain(overdue_at).min();
        }
    }

    /// Says something about a call that was made.
    fn say(&mut self, request: &Request, queue: u16, id: Id) {
        let said = request.push(Route { queue, id }, &mut self.outbound);
        debug_assert!(said.is_ok(), "it is short");
    }

    fn decide(&mut self, id: Id, outcome: Result<Reply, Error>) {
        let Some(call) = self.calls.get(id) else { return };
        if let (Stage::Sent { .. }, Link::Up(session)) = (&call.stage, &mut self.link) {
            session.in_flight = session.in_flight.saturating_sub(1);
        }
        self.calls.decide(id, outcome);
    }

    /// Forgets a call that the server does not know of.
    fn forget(&mut self, id: Id) {
        if let Some(Call { verb: Verb::Open { .. }, queue, .. }) = self.calls.remove(id) {
            self.queues.remove(queue);
        }
    }

    /// Undoes what a call did that nobody waits for.
    fn undo(&mut self, queue: u16, decided: Decided, now: Instant) {
        match (decided.verb, decided.outcome) {
            (Verb::Get { .. }, Ok(Reply::Tasks { tasks, .. })) => self.give_back(queue, tasks, now),
            (Verb::Open { .. }, Ok(Reply::Opened(_))) => self.tell(queue, Verb::Close, now),
            _ => {}
        }
    }

    /// Gives tasks back that came for a caller who has left: leases at once, others at the end of the
    /// queue.
    fn give_back(&mut self, queue: u16, tasks: Tasks, now: Instant) {
        let (leased, taken): (Vec<_>, Vec<_>) =
            tasks.map_while(Result::ok).partition(|task| task.token.is_some());
        let nack = Fate::Nack { delay: Some(Duration::ZERO), reason: LEFT.to_owned() };
        self.tell_fate(queue, leased, &nack, now);
        for task in taken {
            self.tell(queue, Verb::put(task.payload, None), now);
            self.tell(queue, Verb::TaskDone, now);
        }
    }

    /// Tells callers that their replies are overdue, and ends the connection if nothing has come since
    /// they asked. The id of such a call stays in use until its reply comes.
    fn end_overdue(&mut self, now: Instant) {
        let Link::Up(session) = &self.link else { return };
        if self.is_closed && self.calls.is_all_decided() {
            self.link = Link::Down { retry_at: None };
            return;
        }
        let (heard_at, margin) = (session.heard_at, self.server.options.call_margin);
        let (mut next, mut is_silent) = (None, false);
        for id in self.calls.ids(|call| matches!(call.stage, Stage::Sent { .. })) {
            let Some(call) = self.calls.get(id) else { continue };
            let Stage::Sent { since, .. } = call.stage else { continue };
            let Some(limit) = call.limit(margin) else { continue };
            match since.checked_add(limit) {
                Some(at) if at <= now => {
                    is_silent |= since >= heard_at;
                    let queue = call.queue;
                    self.calls.overdue(id, self.server.timed_out(limit));
                    self.say(&Request::Cancel, queue, id);
                }
                at => next = next.into_iter().chain(at).min(),
            }
        }
        self.overdue_at = next;
        if is_silent {
            let error = io::Error::new(io::ErrorKind::TimedOut, "the server has fallen silent");
            self.broken(error, now);
        }
    }

    // ---- the connection

    /// Follows the conversation that opens a connection.
    fn log_in(&mut self, now: Instant) {
        let Link::Login { conversation, .. } = &mut self.link else { return };
        match conversation.step() {
            Ok(Step::Receive) => {}
            Ok(Step::Send(bytes)) => self.outbound.put(&bytes),
            Ok(Step::Reply(body)) => {
                self.inbound = conversation.inbound().split();
                self.welcomed(&body, now);
            }
            Err(error) => self.fail(&error, now),
        }
    }

    /// Reads the answer to hello.
    fn welcomed(&mut self, body: &Bytes, now: Instant) {
        match Answer::decode(body) {
            Ok(Answer::Welcome(welcome)) => self.begin(welcome, now),
            Ok(Answer::Refused(reason)) => {
                let error = self.server.unexpected(&reason);
                self.fail(&error, now);
            }
            Err(HelloError::OtherProtocol) => match self.server.decode(body) {
                Ok(request::Answer { dialect, .. }) => self.turn_classic(dialect, now),
                Err(error) => self.fail(&error, now),
            },
            Err(error) => {
                let error = self.server.unexpected(&error);
                self.fail(&error, now);
            }
        }
    }

    /// The server speaks CPython's protocol alone: whoever asked for a connection is told.
    fn turn_classic(&mut self, dialect: Dialect, now: Instant) {
        self.classic = Some(dialect);
        self.greet_callers();
        let error = self.server.unexpected(&"a server that speaks CPython's protocol alone");
        self.fail(&error, now);
    }

    fn greet_callers(&mut self) {
        for id in self.calls.ids(|call| matches!(call.verb, Verb::Connect)) {
            self.decide(id, Ok(Reply::Done));
        }
    }

    fn begin(&mut self, welcome: Welcome, now: Instant) {
        let limits = welcome.limits;
        let limit = self.server.options.reply_bytes_max;
        let decoder = Decoder::new(limit);
        self.link = Link::Up(Session { decoder, limits, heard_at: now, in_flight: 0 });
        (self.limits, self.pauses, self.trouble) = (Some(limits), Pauses::default(), None);
        self.greet_callers();
        let open = self.queues.iter().filter(|(_, queue)| queue.is_open);
        let open: Vec<_> = open.map(|(handle, it)| (handle, Arc::clone(&it.name))).collect();
        for (handle, name) in open {
            self.add(handle, Verb::Open { name }, true);
        }
        // What opens a queue comes before the calls that wait for it.
        self.calls.line_up(|call| matches!(call.verb, Verb::Open { .. }));
        self.fill(now);
    }

    fn on_frame(&mut self, header: Header, frame: Frame, now: Instant) {
        let id = header.route.id;
        let reply = match frame {
            Frame::Body(body) => {
                Reply::decode(&header, body).map_err(|error| self.server.unexpected(&error))
            }
            Frame::TooLong { len, limit } => {
                Err(self.server.unexpected(&FrameError::TooLong { len, limit }))
            }
        };
        match reply {
            Ok(Reply::Recall { count }) => self.recalled(id, count, now),
            Ok(Reply::Tasks { tasks, pushed: true }) => self.pushed(id, tasks, now),
            reply => self.replied(id, reply, now),
        }
    }

    /// Notes the reply to a request.
    fn replied(&mut self, id: Id, reply: Result<Reply, Error>, now: Instant) {
        let Some(&mut Call { ref verb, queue, stage: Stage::Sent { .. }, is_let_go, .. }) =
            self.calls.get(id)
        else {
            let error = self.server.unexpected(&format_args!("a reply to no request: {reply:?}"));
            return self.fail(&error, now);
        };
        let is_credit = matches!(verb, Verb::Credit { .. });
        let reply = match (verb, reply) {
            (Verb::Open { .. }, reply) => {
                self.opened(queue, &reply, is_let_go);
                reply
            }
            (Verb::Close, reply) => {
                self.queues.remove(queue);
                reply
            }
            (_, Ok(Reply::Error { code: Code::Cancelled, .. })) if self.is_closed => {
                Err(self.server.closed())
            }
            (_, Ok(Reply::Error { code: Code::NoSuchHandle, text })) => {
                Err(self.missing(queue, text))
            }
            (_, reply) => reply,
        };
        if is_credit {
            self.credit_ended(id);
        }
        if is_let_go {
            if let Link::Up(session) = &mut self.link {
                session.in_flight = session.in_flight.saturating_sub(1);
            }
            if let Some(Call { verb, retry, .. }) = self.calls.remove(id) {
                let decided = Decided { verb, outcome: reply, is_repeated: retry.is_repeated };
                self.undo(queue, decided, now);
            }
            return;
        }
        self.decide(id, reply);
    }

    /// Notes whether a queue is open. A caller that opened one is told; of a queue that was open
    /// before, its next callers are.
    fn opened(&mut self, handle: u16, reply: &Result<Reply, Error>, is_again: bool) {
        let Some(queue) = self.queues.get(handle) else { return };
        match reply {
            Ok(Reply::Opened(_)) => {
                queue.is_open = true;
                queue.missing = None;
            }
            Ok(Reply::Error { text, .. }) if is_again && queue.is_open => {
                queue.missing = Some(text.clone());
            }
            _ => self.queues.remove(handle),
        }
    }

    /// The error of a call whose queue is not open.
    fn missing(&mut self, handle: u16, text: String) -> Error {
        match self.queues.get(handle) {
            Some(Queue { name, missing: Some(text), .. }) => {
                unknown_queue(&self.server, name, text)
            }
            _ => translate::refused(Code::NoSuchHandle, text),
        }
    }

    /// Ends the connection, if there is one, and judges which calls are made again on the next.
    fn fail(&mut self, error: &Error, now: Instant) {
        let trouble = Trouble { since: now, error: same(error), is_reported: false };
        self.trouble.get_or_insert(trouble).error = same(error);
        let was_up = matches!(self.link, Link::Up(_));
        let written = std::mem::take(&mut self.written);
        self.inbound.clear();
        self.outbound.clear();
        self.parts.clear();
        self.parts_len = 0;
        self.overdue_at = None;
        self.started.clear();
        self.link = Link::Down { retry_at: None };
        for id in self.calls.ids(|call| !matches!(call.stage, Stage::Decided(_))) {
            self.judge(id, error, (was_up, written), now);
        }
        self.calls.line_up(|_| false);
        self.pushed.values_mut().for_each(Pushed::forget);
        let left = self.calls.patience(now);
        let pause = self.pauses.next().min(left.unwrap_or_default());
        self.link = Link::Down { retry_at: Some(now + pause) };
    }

    /// Judges one call after a failure.
    fn judge(&mut self, id: Id, error: &Error, (was_up, written): (bool, u64), now: Instant) {
        let Some(call) = self.calls.get(id) else { return };
        let sent = matches!(call.stage, Stage::Sent { behind, .. } if behind < written);
        if let Some(overdue) = call.overdue.take() {
            return self.decide(id, Err(overdue));
        }
        if self.is_closed {
            return self.decide(id, Err(same(error)));
        }
        // The server undoes what nobody waits for, with the session; what it did not get is sent again.
        let is_lasting = matches!(call.verb, Verb::Put { .. } | Verb::PutMany { .. });
        if call.is_let_go && (sent || !is_lasting) {
            return self.forget(id);
        }
        call.stage = Stage::Waits;
        // A call that was not sent does not know of this connection.
        let judged = match (sent, was_up) {
            (true, _) => call.retry.judge(Failure::sent(same(error)), now),
            (false, true) => Ok(()),
            (false, false) => call.retry.judge(Failure::unsent(same(error)), now),
        };
        if let Err(error) = judged {
            self.decide(id, Err(error));
        }
    }
}

/// The error for items that no frame may hold.
fn too_long(len: usize, max: u32) -> Error {
    let what = format!("{len} bytes are more than the {max} bytes of a frame, which is the limit");
    Error::Data(DataError::Shape(what))
}
