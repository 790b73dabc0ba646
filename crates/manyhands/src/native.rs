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
mod driving;
mod encode;
mod flight;
mod hands;
mod link;
mod pushed;
mod queues;
#[cfg(test)]
mod tests;
mod translate;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use self::calls::{Calls, Stage};
pub(crate) use self::calls::{Decided, Id};
pub(crate) use self::driving::Want;
use self::hands::{Hands, Held};
use self::link::{Link, Trouble};
use self::pushed::Pushed;
use self::queues::Queues;
pub(crate) use self::translate::answer;
use crate::Error;
use crate::answer::Answer;
use crate::retry::{Pauses, same};
use crate::server::Server;
use crate::verb::Verb;
use crate::wire::frame::Outbound;
use crate::wire::native::{Fate, Request, SessionLimits, Settlement};
use crate::wire::pickle::Dialect;

/// Who has nothing in hand.
const NOBODY: u64 = 0;
/// Why a task comes back whose queue was closed before there was a result.
const CLOSED: &str = "its worker closed the queue";

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
    started: Vec<Held>,
    /// Tasks that the program took by `get`, and has not settled.
    hands: Hands,
    /// Queues that were dropped where closing them would have to be awaited.
    dropped: Vec<u16>,
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

impl Core {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            link: Link::Down { retry_at: None },
            calls: Calls::default(),
            queues: Queues::default(),
            pushed: HashMap::new(),
            started: Vec::new(),
            hands: Hands::default(),
            dropped: Vec::new(),
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

    /// Makes a call of the queue that is open under this handle, or of the server (0). The caller is
    /// a number, of a thread for example, by which tasks that it takes and settles are its own.
    pub(crate) fn ask(&mut self, caller: u64, queue: u16, verb: Verb, now: Instant) -> Id {
        if self.is_closed {
            let id = self.add(caller, queue, verb);
            let closed = self.server.closed();
            self.decide(id, Err(closed), now);
            return id;
        }
        self.settle_before(caller, queue, &verb, now);
        let id = self.add(caller, queue, verb);
        self.fill(now);
        id
    }

    /// Makes a call of which nobody wants to know what becomes of it. Without a connection only what
    /// adds items is kept for the next one: the end of a session closes its queues, and undoes its leases.
    pub(crate) fn tell(&mut self, queue: u16, verb: Verb, now: Instant) {
        if !matches!(self.link, Link::Up(_)) && !is_lasting(&verb) {
            self.settle_before(NOBODY, queue, &verb, now);
            if let Verb::Close = verb {
                self.queues.remove(queue);
            }
            return;
        }
        let id = self.ask(NOBODY, queue, verb, now);
        self.detach(id);
    }

    /// Settles what a call shows to be done, in the same write and before it.
    fn settle_before(&mut self, caller: u64, queue: u16, verb: &Verb, now: Instant) {
        if let (Verb::Close, Some(queue)) = (verb, self.queues.get(queue)) {
            queue.is_closing = true;
        }
        let through = match verb {
            Verb::Settle { settlements, .. } => return self.forget_starts(settlements),
            _ if self.hands.is_empty() => return,
            Verb::Get { leased: false, .. } => {
                self.hands.through_by_get(caller, queue, &self.queues)
            }
            Verb::TaskDone => self.hands.through_by_task_done(caller, queue, &self.queues),
            Verb::Close => {
                let held = self.hands.let_go(queue);
                let (delay, reason) = (Some(Duration::ZERO), CLOSED.to_owned());
                return match self.queues.is_strict(queue) {
                    true => self.tell_fate(&held, &Fate::Nack { delay, reason }, now),
                    false => self.tell_fate(&held, &Fate::Done { result: None }, now),
                };
            }
            _ => return,
        };
        self.tell_fate(&through, &Fate::Done { result: None }, now);
    }

    /// Takes in hand what a plain `get` has brought.
    pub(crate) fn hold(&mut self, caller: u64, queue: u16, answer: &Answer) {
        let Answer::Tasks(tasks) = answer else { return };
        for token in tasks.iter().filter_map(|task| task.token) {
            self.hands.take(Held { caller, queue, token });
        }
    }

    /// Says the same of several leases.
    fn tell_fate(&mut self, held: &[Held], fate: &Fate, now: Instant) {
        for group in held.chunk_by(|one, other| one.queue == other.queue) {
            let Some(Held { queue, .. }) = group.first().copied() else { continue };
            let settlement = |held: &Held| Settlement { token: held.token, fate: fate.clone() };
            let settlements = group.iter().map(settlement).collect();
            self.tell(queue, Verb::settle(settlements), now);
        }
    }

    /// Has a queue closed with the next one that is opened or closed.
    pub(crate) fn close_later(&mut self, queue: u16) {
        self.dropped.push(queue);
    }

    /// Closes the queues that were dropped.
    pub(crate) fn close_dropped(&mut self, now: Instant) {
        for queue in std::mem::take(&mut self.dropped) {
            self.tell(queue, Verb::Close, now);
        }
    }

    /// Opens a queue: its handle, and the call that says whether it is there. `None` if too many are
    /// open.
    pub(crate) fn open(&mut self, name: &str, now: Instant) -> Option<(u16, Id)> {
        self.close_dropped(now);
        let name: Arc<str> = name.into();
        let max = self.limits.map_or(u32::MAX, |limits| limits.queues_max);
        let handle = self.queues.add(Arc::clone(&name), max)?;
        Some((handle, self.ask(NOBODY, handle, Verb::Open { name }, now)))
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
            Stage::Waits => self.forget(id, now),
            Stage::Sent { .. } => {
                call.is_let_go = true;
                if call.verb.patience() != Some(Duration::ZERO) {
                    self.say(&Request::Cancel, queue, id);
                }
            }
            Stage::Decided(_) => {
                if let Some(decided) = self.calls.take(id) {
                    self.undo_decided(decided, now);
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
        let open = self.queues.iter().filter(|(_, queue)| !queue.is_closing);
        let open: Vec<_> = open.map(|(handle, _)| handle).collect();
        for queue in &open {
            if self.queues.is_strict(*queue) {
                // Its tasks need results: they go back with the session.
                continue;
            }
            let held = self.hands.let_go(*queue);
            self.tell_fate(&held, &Fate::Done { result: None }, now);
        }
        self.is_closed = true;
        if !matches!(self.link, Link::Up(_)) {
            return Vec::new();
        }
        let ids = open.into_iter().map(|handle| self.add(NOBODY, handle, Verb::Close)).collect();
        self.fill(now);
        ids
    }

    /// Ends all calls, and the connection once what is to be written is written.
    pub(crate) fn end(&mut self, now: Instant) {
        self.is_closed = true;
        self.overdue_at = now.checked_add(self.server.options.call_margin);
        for id in self.calls.ids(|call| !matches!(call.stage, Stage::Decided(_))) {
            let closed = self.server.closed();
            self.decide(id, Err(closed), now);
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
}

/// Whether a call that nobody waits for is made on the next connection if it was not on this one.
fn is_lasting(verb: &Verb) -> bool {
    matches!(verb, Verb::Put { .. } | Verb::PutMany { .. })
}
