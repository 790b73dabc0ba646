//! The connection: how it begins, what comes on it, and what is made again when it is lost.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::calls::{Call, Id, Stage};
use super::flight::is_cancelled;
use super::pushed::Pushed;
use super::queues::Queue;
use super::{Core, NOBODY, is_lasting, translate};
use crate::Error;
use crate::answer::unknown_queue;
use crate::conversation::{Conversation, Step};
use crate::retry::{Failure, Pauses, same};
use crate::verb::Verb;
use crate::wire::frame::{Decoder, Frame, FrameError};
use crate::wire::native::{Answer, Code, Header, HelloError, Reply, SessionLimits, Welcome};
use crate::wire::pickle::Dialect;
use crate::wire::request;

/// Where the connection stands.
#[derive(Debug)]
pub(super) enum Link {
    Down { retry_at: Option<Instant> },
    Connecting { until: Instant },
    Login { conversation: Box<Conversation>, until: Instant },
    Up(Session),
}

/// A connection on which both sides speak the native protocol.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) decoder: Decoder<Header>,
    pub(super) limits: SessionLimits,
    /// When the last bytes came.
    pub(super) heard_at: Instant,
    /// Whether the server stops, so that no more is asked.
    pub(super) is_ending: bool,
    /// How many bytes were written when last no request was in flight.
    pub(super) rest_at: u64,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) since: Instant,
    /// What went wrong last.
    pub(super) error: Error,
    pub(super) is_reported: bool,
}

impl Core {
    /// Follows the conversation that opens a connection.
    pub(super) fn log_in(&mut self, now: Instant) {
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
        self.greet_callers(now);
        let error = self.server.unexpected(&"a server that speaks CPython's protocol alone");
        self.fail(&error, now);
    }

    fn greet_callers(&mut self, now: Instant) {
        for id in self.calls.ids(|call| matches!(call.verb, Verb::Connect)) {
            self.decide(id, Ok(Reply::Done), now);
        }
    }

    pub(super) fn begin(&mut self, welcome: Welcome, now: Instant) {
        let limits = welcome.limits;
        let limit = self.server.options.reply_bytes_max;
        let decoder = Decoder::new(limit);
        let (heard_at, is_ending, rest_at) = (now, false, 0);
        self.link = Link::Up(Session { decoder, limits, heard_at, is_ending, rest_at });
        (self.limits, self.pauses, self.trouble) = (Some(limits), Pauses::default(), None);
        self.greet_callers(now);
        let open = self.queues.iter().filter(|(_, queue)| queue.is_open);
        let open: Vec<_> = open.map(|(handle, it)| (handle, Arc::clone(&it.name))).collect();
        for (handle, name) in open {
            // Before the calls that wait for it.
            let id = self.add(NOBODY, handle, Verb::Open { name });
            self.detach(id);
            self.send(id, now);
        }
        self.fill(now);
    }

    pub(super) fn on_frame(&mut self, header: Header, frame: Frame, now: Instant) {
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
            Ok(reply) => self.on_reply(id, reply, now),
            // Tasks that it may have go back with the session.
            Err(error) => self.fail(&error, now),
        }
    }

    /// Notes the reply to a request.
    fn on_reply(&mut self, id: Id, reply: Reply, now: Instant) {
        let Some(call @ Call { stage: Stage::Sent { .. }, .. }) = self.calls.get(id) else {
            let is_late = matches!(reply, Reply::Done | Reply::Error { .. });
            if is_late && self.calls.is_ended_credit(id) {
                // It answers what was on its way when the server ended the credit.
                return;
            }
            let error = self.server.unexpected(&format_args!("a reply to no request: {reply:?}"));
            return self.fail(&error, now);
        };
        let (queue, is_let_go) = (call.queue, call.is_let_go);
        let is_awaited = !is_let_go && call.overdue.is_none();
        let reply = match (&call.verb, reply) {
            (Verb::Open { .. }, reply) => {
                self.opened(queue, &reply, is_let_go, now);
                Ok(reply)
            }
            (Verb::Close, _) => {
                // Whether or not the server knew it.
                self.queues.remove(queue);
                Ok(Reply::Done)
            }
            (Verb::Credit { .. }, reply) if !is_cancelled(&reply) => {
                if matches!(reply, Reply::Error { .. }) {
                    self.calls.credit_ended(id);
                }
                self.credit_ended(id);
                Ok(reply)
            }
            (_, reply) if self.is_closed && is_cancelled(&reply) => Err(self.server.closed()),
            (_, reply)
                if is_cancelled(&reply)
                    && is_awaited
                    && self.queues.get(queue).is_some_and(|queue| !queue.is_closing) =>
            {
                return self.put_off(id, &Ok(reply), now);
            }
            (_, Reply::Error { code: Code::NoSuchHandle, text }) => Err(self.missing(queue, text)),
            (_, reply) => Ok(reply),
        };
        self.replied(id, reply, now);
    }

    /// Notes whether a queue is open. A caller that opened one is told; of a queue that was open
    /// before, its next callers are.
    fn opened(&mut self, handle: u16, reply: &Reply, is_let_go: bool, now: Instant) {
        let Some(queue) = self.queues.get(handle) else { return };
        match reply {
            // Whoever opened it has left.
            Reply::Opened(_) if is_let_go && !queue.is_open => {
                self.tell(handle, Verb::Close, now);
            }
            Reply::Opened(properties) => queue.opened(properties),
            Reply::Error { text, .. } if is_let_go && queue.is_open => {
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
    pub(super) fn fail(&mut self, error: &Error, now: Instant) {
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
        self.calls.line_up();
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
            return self.decide(id, Err(overdue), now);
        }
        if self.is_closed {
            return self.decide(id, Err(same(error)), now);
        }
        if sent && is_forgotten(&call.verb) {
            return self.forget(id, now);
        }
        // The server undoes what nobody waits for, with the session; what it did not get is sent again.
        if call.is_let_go && (sent || !is_lasting(&call.verb)) {
            return self.forget(id, now);
        }
        let is_final = self.server.options.first_silence_is_final;
        if let (true, Verb::Connect, Error::TimedOut { .. }) = (is_final, &call.verb, error) {
            return self.decide(id, Err(same(error)), now);
        }
        call.stage = Stage::Waits;
        if planted!(RepeatedWithNewKey)
            && let Verb::Put { terms: Some(terms), .. } = &mut call.verb
        {
            terms.key.get_or_insert_default().push(b'+');
        }
        // A call that was not sent does not know of this connection.
        let judged = match (sent, was_up) {
            (true, _) => call.retry.judge(Failure::sent(same(error)), now),
            (false, true) => Ok(()),
            (false, false) => call.retry.judge(Failure::unsent(same(error)), now),
        };
        if let Err(error) = judged {
            self.decide(id, Err(error), now);
        }
    }
}

/// Whether a planted bug has a call forgotten that was under way.
fn is_forgotten(verb: &Verb) -> bool {
    match verb {
        Verb::Settle { .. } => planted!(SettlementForgotten),
        Verb::Credit { .. } => planted!(CreditForgotten),
        _ => false,
    }
}
