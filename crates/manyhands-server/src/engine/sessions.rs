//! Who is connected, what each has in hand, and how those who left are judged.
//!
//! An unmodified client cannot say how it left; what it did before tells. A Python process that
//! ends of its own accord gives its references back (`decref`) before it closes its session. One
//! that was killed does not. `docs/delivery.md` has the rules in words.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use manyhands::wire::extra;

use crate::queue::{Time, Token};

use super::QueueId;
use super::durable::Promise;

/// How long the verdict on a session waits for what may still explain its end.
pub(super) const GRACE: Duration = Duration::from_millis(1200);
/// How long before the end of a session the `decref`s that belong to it may have come.
const CLOSING: Duration = Duration::from_secs(1);
/// How long the last task of a thread that ended stays out while nothing is known of its process,
/// unless its queue says otherwise.
pub(super) const UNDECIDED: Duration = Duration::from_secs(60);

/// Names a session. That of calls without one is [`SessionId::NOBODY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(super) u64);

impl SessionId {
    /// The program that the server runs in: it takes tasks for good.
    pub(crate) const NOBODY: Self = Self(0);
}

#[derive(Debug)]
pub(super) struct Session {
    /// Process and thread of a Python client, as it says.
    pub(super) name: Arc<str>,
    pub(super) peer: Arc<str>,
    /// Serials of the references that it used.
    pub(super) used: Vec<u64>,
    /// Tasks that it took and that are not settled, oldest first. Some may have been taken away.
    pub(super) hand: VecDeque<InHand>,
    pub(super) last_request: Time,
    pub(super) end: Option<End>,
    /// What its calls have changed, beside what their outcomes wait for.
    pub(super) promise: Option<Promise>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InHand {
    pub(super) queue: QueueId,
    pub(super) token: Token,
}

/// How a session ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) at: Time,
    /// In the middle of a message, or while a call of it waited.
    pub(super) cut: bool,
    /// It is still being found out whether the last reply was read.
    pub(super) checking: bool,
}

/// A client's reference to a queue, and who uses it.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) queue: QueueId,
    pub(super) count: u64,
    pub(super) last_decref: Option<Time>,
    pub(super) sessions: Vec<SessionId>,
    /// The process that is known to have crashed with it.
    pub(super) crashed: Option<Arc<str>>,
    /// Since when no session uses it, as far as is known.
    pub(super) unused_since: Option<Time>,
    /// When it is next looked whether it is unused.
    pub(super) alarm: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The client left of its own accord.
    Clean,
    /// The same thread of the same process has a new session.
    Moved(SessionId),
    /// The client was killed or cut off.
    Crashed,
    /// A thread ended, and it is not known whether its process goes on.
    Undecided,
}

#[derive(Debug, Default)]
pub(super) struct Sessions {
    pub(super) all: HashMap<SessionId, Session>,
    pub(super) references: HashMap<u64, Counted>,
    /// What the calls of the program that the server runs in have changed so far.
    pub(super) nobody: Option<Promise>,
}

impl Counted {
    pub(super) fn new(queue: QueueId, count: u64) -> Self {
        Self {
            queue,
            count,
            last_decref: None,
            sessions: Vec::new(),
            crashed: None,
            unused_since: None,
            alarm: None,
        }
    }
}

impl Session {
    pub(super) fn new(name: &str, peer: Arc<str>, now: Time) -> Self {
        Self {
            name: name.into(),
            peer,
            used: Vec::new(),
            hand: VecDeque::new(),
            last_request: now,
            end: None,
            promise: None,
        }
    }

    /// `MainProcess` of `MainProcess|Thread-1`.
    fn process(&self) -> &str {
        self.name.split_once('|').map_or(&self.name, |(process, _)| process)
    }

    /// Whether the client is one of ours.
    fn is_ours(&self) -> bool {
        extra::is_ours(&self.name)
    }

    fn is_main_thread(&self) -> bool {
        !self.name.contains('|')
    }

    pub(super) fn worker(&self) -> Arc<str> {
        format!("{} at {}", self.name, self.peer).into()
    }

    /// Takes the oldest task in hand that `is` what is looked for.
    pub(super) fn oldest(&self, is: impl Fn(&InHand) -> bool) -> Option<InHand> {
        self.hand.iter().copied().find(is)
    }

    pub(super) fn drop_from_hand(&mut self, queue: QueueId, token: Token) {
        self.hand.retain(|held| held.token != token || held.queue != queue);
    }
}

impl Sessions {
    /// Notes that a session uses a reference.
    pub(super) fn note_use(&mut self, id: SessionId, serial: u64, now: Time) {
        let Some(session) = self.all.get_mut(&id) else { return };
        session.last_request = now;
        if session.used.contains(&serial) {
            return;
        }
        session.used.push(serial);
        if let Some(counted) = self.references.get_mut(&serial) {
            counted.sessions.push(id);
            counted.unused_since = None;
        }
    }

    /// How a session that ended seems to have ended, seen at `now`.
    ///
    /// Before the grace period is over only [`Verdict::Clean`] means something.
    pub(super) fn verdict(&self, id: SessionId, now: Time, undecided: Duration) -> Option<Verdict> {
        let session = self.all.get(&id)?;
        let end = session.end.filter(|end| !end.checking)?;
        if self.is_released_by(id) {
            return Some(Verdict::Clean);
        }
        let mut others = self.live_relatives(session);
        let again = others.clone().find(|(other, it)| *other > id && it.name == session.name);
        Some(match again {
            Some((other, _)) => Verdict::Moved(other),
            // Ours opens and closes sessions as it needs them.
            None if session.is_ours() && others.next().is_some() => Verdict::Clean,
            None if end.cut || session.is_main_thread() => Verdict::Crashed,
            None if self.has_crashed(session) => Verdict::Crashed,
            None if others.next().is_some() => Verdict::Clean,
            None if now < end.at + undecided => Verdict::Undecided,
            None => Verdict::Crashed,
        })
    }

    /// Sessions of the same process as `session` that go on.
    fn live_relatives<'a>(
        &'a self,
        session: &'a Session,
    ) -> impl Iterator<Item = (SessionId, &'a Session)> + Clone {
        session
            .used
            .iter()
            .filter_map(|serial| self.references.get(serial))
            .flat_map(|counted| &counted.sessions)
            .filter_map(|other| Some((*other, self.all.get(other)?)))
            .filter(|(_, other)| other.end.is_none() && other.process() == session.process())
    }

    /// Who goes on with what a session of ours had leased.
    pub(super) fn heir(&self, session: &Session) -> Option<SessionId> {
        self.live_relatives(session).next().map(|(heir, _)| heir)
    }

    /// Whether the client of a session that ended has given all its references back.
    pub(super) fn is_released_by(&self, id: SessionId) -> bool {
        let Some(session) = self.all.get(&id) else { return false };
        let Some(end) = session.end else { return false };
        session.used.iter().all(|serial| self.is_released(*serial, session, end))
    }

    /// Whether the client of `session` has given this reference back. Children that it forked hold
    /// references by the same ident, and may have been killed with them; so it is enough that one
    /// was given back between the session's last request and its end.
    fn is_released(&self, serial: u64, session: &Session, end: End) -> bool {
        let Some(counted) = self.references.get(&serial) else { return true };
        counted.last_decref.is_some_and(|decref| {
            session.last_request <= decref && decref <= end.at && end.at.since(decref) <= CLOSING
        })
    }

    fn has_crashed(&self, session: &Session) -> bool {
        let mut counted = session.used.iter().filter_map(|serial| self.references.get(serial));
        counted.any(|counted| counted.crashed.as_deref() == Some(session.process()))
    }

    /// Remembers that the process of `session` crashed, if that is certain, and names the sessions
    /// of its threads that wait for a verdict.
    pub(super) fn note_crash(&mut self, session: &Session) -> Vec<SessionId> {
        let mut threads = Vec::new();
        if !session.is_main_thread() {
            return threads;
        }
        for serial in &session.used {
            let Some(counted) = self.references.get_mut(serial) else { continue };
            counted.crashed = Some(session.process().into());
            threads.extend_from_slice(&counted.sessions);
        }
        threads
    }

    /// Forgets a session.
    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.all.remove(&id)?;
        for serial in &session.used {
            if let Some(counted) = self.references.get_mut(serial) {
                counted.sessions.retain(|other| *other != id);
            }
        }
        Some(session)
    }
}
