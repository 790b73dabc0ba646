//! Requests on their way, and what becomes of the calls that made them.

use std::io;
use std::time::{Duration, Instant};

use super::calls::{Call, Decided, Id, Stage};
use super::hands::{Claim, Held};
use super::link::Link;
use super::{Core, NOBODY, encode};
use crate::Error;
use crate::retry::Retry;
use crate::verb::{Repeat, Verb};
use crate::wire::frame::FrameError;
use crate::wire::native::{Code, Fate, HEADER_LEN, Reply, Request, Route, Tasks};

impl Core {
    pub(super) fn add(&mut self, caller: u64, queue: u16, verb: Verb) -> Id {
        let options = &self.server.options;
        let time = match verb {
            _ if self.is_leaving => Duration::ZERO,
            Verb::Connect => options.connect_for.unwrap_or(options.reconnect_for),
            _ => options.reconnect_for,
        };
        let retry = Retry::new(time, verb.repeat());
        self.calls.add(caller, queue, verb, retry)
    }

    /// Sends what waits, as far as the server's limits let it.
    pub(super) fn fill(&mut self, now: Instant) {
        while let Link::Up(session) = &self.link {
            if session.is_ending {
                return;
            }
            let Some(id) = self.calls.next(session.limits.pending_max) else { return };
            self.send(id, now);
        }
    }

    /// Sends the next request of a call.
    pub(super) fn send(&mut self, id: Id, now: Instant) {
        let is_first = self.calls.is_idle();
        let (Some(call), Link::Up(session)) = (self.calls.get(id), &mut self.link) else { return };
        match &mut call.verb {
            Verb::Connect => return self.decide(id, Ok(Reply::Done), now),
            Verb::Credit { ahead } => {
                *ahead = (*ahead).clamp(1, session.limits.credit_max.max(1));
                if let Some(pushed) = self.pushed.get_mut(&id) {
                    (pushed.ahead, pushed.granted) = (*ahead, *ahead);
                }
            }
            Verb::Put { .. } | Verb::PutMany { .. } => {
                call.piece = encode::piece(call, &session.limits);
                if !self.hands.is_empty() && call.claim.is_empty() {
                    let (hands, queues) = (&mut self.hands, &self.queues);
                    call.claim = hands.claim(call.caller, call.queue, call.piece, queues);
                }
                if call.is_answer() {
                    call.piece = call.claim.answered.len();
                    call.retry.repeat(Repeat::Safe);
                } else {
                    call.retry.repeat(call.verb.repeat());
                }
            }
            _ => {}
        }
        let behind = self.written + (self.parts_len + self.outbound.len()) as u64;
        let route = Route { queue: call.queue, id };
        let is_held = self.queues.is_held(call.queue);
        let mark = self.outbound.mark();
        let pushed = encode::push(call, is_held, route, &mut self.outbound);
        let len = self.outbound.len_from(&mark).saturating_sub(HEADER_LEN);
        let len = pushed.map_or_else(|error| error.len, |()| len) as u64;
        let limit = u64::from(session.limits.frame_max);
        if len > limit {
            self.outbound.truncate(&mark);
            return self.decide(id, Err(too_long(len, limit)), now);
        }
        if is_first {
            session.rest_at = self.written;
        }
        let margin = self.server.options.call_margin;
        let overdue_at = call.limit(margin).and_then(|limit| now.checked_add(limit));
        self.overdue_at = self.overdue_at.into_iter().chain(overdue_at).min();
        self.calls.sent(id, behind, now);
    }

    /// Says something about a call that was made.
    pub(super) fn say(&mut self, request: &Request, queue: u16, id: Id) {
        let said = request.push(Route { queue, id }, &mut self.outbound);
        debug_assert!(said.is_ok(), "it is short");
    }

    /// Has a call that the server has cancelled on its own account, because it stops, wait for the next
    /// connection.
    pub(super) fn put_off(&mut self, id: Id, reply: &Result<Reply, Error>, now: Instant) {
        if let Link::Up(session) = &mut self.link {
            session.is_ending = true;
            // It has to close the connection by then.
            let at = now.checked_add(self.server.options.call_margin);
            self.overdue_at = self.overdue_at.into_iter().chain(at).min();
        }
        self.go_on(id, reply, now);
    }

    /// Has a call wait until what is left of it can be sent.
    fn go_on(&mut self, id: Id, reply: &Result<Reply, Error>, now: Instant) {
        let Some(call) = self.calls.get(id) else { return };
        let accepted = accepted(reply, call.retry.is_repeated);
        call.added += accepted;
        let is_answer = call.is_answer();
        let claim = std::mem::take(&mut call.claim);
        self.calls.wait_again(id);
        self.settle_claim(claim, is_answer, reply, accepted, now);
    }

    /// Notes the reply to a request, of which a call may need several.
    pub(super) fn replied(&mut self, id: Id, reply: Result<Reply, Error>, now: Instant) {
        let Some(call) = self.calls.get(id) else { return };
        if let Verb::PutMany { items, .. } = &call.verb {
            let accepted = accepted(&reply, call.retry.is_repeated);
            if accepted == call.piece && call.added + accepted < items.len() {
                return self.go_on(id, &reply, now);
            }
        }
        self.decide(id, reply, now);
    }

    /// Notes what became of a call.
    pub(super) fn decide(&mut self, id: Id, outcome: Result<Reply, Error>, now: Instant) {
        let Some(call) = self.calls.get(id) else { return };
        let (is_answer, is_let_go) = (call.is_answer(), call.is_let_go);
        let claim = std::mem::take(&mut call.claim);
        let is_repeated = call.retry.is_repeated;
        if !claim.is_empty() {
            let accepted = accepted(&outcome, is_repeated);
            self.settle_claim(claim, is_answer, &outcome, accepted, now);
        }
        if !is_let_go {
            return self.calls.decide(id, outcome);
        }
        self.calls.landed(id);
        if let Some(Call { queue, verb, .. }) = self.calls.remove(id) {
            if let Verb::Credit { .. } = verb {
                self.release_credit(queue);
            }
            self.undo(queue, &verb, outcome, now);
        }
    }

    /// Settles the tasks that a put has claimed, so far as its items were accepted.
    fn settle_claim(
        &mut self,
        claim: Claim,
        is_answer: bool,
        outcome: &Result<Reply, Error>,
        accepted: usize,
        now: Instant,
    ) {
        let Claim { mut answered, through } = claim;
        let refused = answered.split_off(accepted.min(answered.len()));
        let done = Fate::Done { result: None };
        if !is_answer {
            self.tell_fate(&answered, &done, now);
        }
        let codes = match outcome {
            Ok(Reply::Settled(codes)) => codes.clone().skip(accepted).collect(),
            _ => Vec::new(),
        };
        let codes = codes.into_iter().chain(std::iter::repeat(Some(Code::Cancelled)));
        let refused = refused.into_iter().zip(codes);
        let stays = |(held, code): (Held, Option<Code>)| (!is_over(code)).then_some(held);
        let refused: Vec<_> = refused.filter_map(stays).collect();
        if accepted > 0 || planted!(RefusedPutSettles) {
            self.tell_fate(&through, &done, now);
        } else {
            self.hands.take_back(&through);
        }
        if !planted!(RefusedAnswerForgotten) {
            self.hands.take_back(&refused);
        }
    }

    /// Forgets a call that the server does not know of.
    pub(super) fn forget(&mut self, id: Id, now: Instant) {
        let Some(Call { verb, queue, claim, .. }) = self.calls.remove(id) else { return };
        if let Verb::Open { .. } | Verb::Close = verb {
            self.queues.remove(queue);
        }
        let lost = Err(self.server.closed());
        self.settle_claim(claim, false, &lost, 0, now);
    }

    /// Undoes what a call did that nobody waits for.
    fn undo(&mut self, queue: u16, verb: &Verb, outcome: Result<Reply, Error>, now: Instant) {
        if let (Verb::Get { .. }, Ok(Reply::Tasks { tasks, .. })) = (verb, outcome)
            && !planted!(CancelledKept)
        {
            self.give_back(queue, tasks, now);
        }
    }

    /// Undoes what a call did whose caller has left before he was told.
    pub(super) fn undo_decided(&mut self, decided: Decided, now: Instant) {
        let Decided { queue, verb, outcome, .. } = decided;
        match (&verb, &outcome) {
            (Verb::Open { .. }, Ok(_)) => self.tell(queue, Verb::Close, now),
            _ => self.undo(queue, &verb, outcome, now),
        }
    }

    /// Gives tasks back that came for a caller who has left: leases without an attempt, others at the
    /// end of the queue.
    fn give_back(&mut self, queue: u16, tasks: Tasks, now: Instant) {
        let (mut leased, mut taken) = (Vec::new(), Vec::new());
        for task in tasks.map_while(Result::ok) {
            match task.token {
                Some(token) => leased.push(Held { caller: NOBODY, queue, token }),
                None => taken.push(task.payload),
            }
        }
        self.tell_fate(&leased, &Fate::Return, now);
        for payload in taken {
            self.tell(queue, Verb::put(payload, None), now);
            self.tell(queue, Verb::TaskDone, now);
        }
    }

    /// Tells callers that their replies are overdue, and ends the connection if nothing has come since
    /// they asked. The id of such a call stays in use until its reply comes.
    pub(super) fn end_overdue(&mut self, now: Instant) {
        let Link::Up(session) = &self.link else { return };
        if self.is_closed && self.calls.is_all_decided() {
            self.link = Link::Down { retry_at: None };
            return;
        }
        if session.is_ending {
            let error = io::Error::new(io::ErrorKind::TimedOut, "the server stops");
            return self.broken(error, now);
        }
        let (heard_at, margin) = (session.heard_at, self.server.options.call_margin);
        let (mut next, mut is_silent) = (None, false);
        let is_waited_for = |call: &Call| !call.is_let_go && call.overdue.is_none();
        for id in self.calls.ids(is_waited_for) {
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
}

/// How many items of a request were added.
fn accepted(reply: &Result<Reply, Error>, is_repeated: bool) -> usize {
    match reply {
        Ok(Reply::Added(added)) => usize::try_from(added.count).unwrap_or(usize::MAX),
        Ok(Reply::Settled(codes)) => {
            let is_added = |code: &Option<Code>| match code {
                None => true,
                Some(code) => is_repeated && *code == Code::SettledBefore,
            };
            codes.clone().take_while(is_added).count()
        }
        _ => 0,
    }
}

/// Whether a reply says that a request, or what is left of a put, was cancelled.
pub(super) fn is_cancelled(reply: &Reply) -> bool {
    match reply {
        Reply::Error { code: Code::Cancelled, .. } => true,
        Reply::Added(added) => {
            added.refusal.as_ref().is_some_and(|(code, _)| *code == Code::Cancelled)
        }
        Reply::Settled(codes) => {
            let mut codes = codes.clone();
            codes.next() == Some(Some(Code::Cancelled))
                && codes.all(|code| code == Some(Code::Cancelled))
        }
        _ => false,
    }
}

/// Whether a lease is over of which a settlement says this.
fn is_over(code: Option<Code>) -> bool {
    matches!(code, None | Some(Code::Stale | Code::SettledBefore | Code::Waits))
}

/// The error for items that no frame may hold.
fn too_long(len: u64, limit: u64) -> Error {
    let error = FrameError::TooLong { len, limit };
    let message = format!("{error} (--frame-bytes-max of the server)");
    Error::Remote { class: "ValueError".to_owned(), message }
}
