//! Who is connected, what each has in hand, and how those who left are judged.
//!
//! An unmodified client cannot say how it left; what it did before tells. A Python process that
//! ends of its own accord gives its references back (`decref`) before it closes its session. One
//! that was killed does not. `docs/delivery.md` has the rules in words.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hashbrown::HashMap;

use super::hand::Hand;
use crate::engine::{Caller, Demand, Held, QueueId};
use crate::frontend::classic::references::{Decref, References};
use crate::queue::Time;

/// How long the verdict on a session waits for what may still explain its end.
pub(super) const GRACE: Duration = Duration::from_millis(1200);
/// How long before the end of a session the `decref`s that belong to it may have come.
const CLOSING: Duration = Duration::from_secs(1);
/// How long the last task of a thread that ended stays out while nothing is known of its process,
/// unless its queue says otherwise.
pub(super) const UNDECIDED: Duration = Duration::from_secs(60);
/// References that a session is remembered to use: a verdict looks at each of them.
const USED_MAX: usize = 1000;
/// The same where sessions use very many in all.
const USED_AT_LEAST: usize = 16;
/// What it takes to remember that a session uses a reference, in bytes.
const USE_BYTES: u64 = 100;
/// How long it is remembered whose task was given back, for a result that comes after all.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Sessions that are remembered for that, and most references of each.
const DEPARTED_MAX: usize = 1000;
const DEPARTED_USED_MAX: usize = 16;
/// Tasks of each that are remembered.
const LEFT_MAX: usize = 16;
/// Earlier sessions of a thread that are looked at for the task of a result, the newest first.
const PREDECESSORS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Session {
    /// Process and thread of a Python client, as it says.
    pub(super) name: Arc<str>,
    pub(super) peer: Arc<str>,
    kin: Kin,
    /// Serials of the references that it used, sorted: mostly one or two.
    pub(super) used: Vec<u64>,
    /// Whether one of these had gone because nobody used it, and could not be counted again: that it
    /// is not counted does not say that the client has given it back.
    has_uncounted: bool,
    /// Tasks that it took and that are not settled.
    pub(super) hand: Hand,
    /// Whether it has taken anything, so that what it puts is no result of an earlier session's task.
    pub(super) has_taken: bool,
    /// Tasks that were given back for want of a result, with their ages.
    left: Vec<(u64, Held, Demand)>,
    /// Tasks in hand up to this lease of a queue are through, and are being settled, some at a time.
    pub(super) through: BTreeMap<QueueId, u64>,
    /// Whether there are any.
    pub(super) is_behind: Arc<AtomicBool>,
    began: Time,
    /// Number of its last request among all events.
    last_request: u64,
    pub(super) end: Option<End>,
    /// Found, and being carried out: what it had is given back, or settled, some of it at a time.
    pub(super) verdict: Option<Verdict>,
    /// What another session has taken over, and the engine is yet to be told of.
    pub(super) moved: Vec<Held>,
}

/// Whose session it is, as hashes, by which others of the same are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kin {
    /// Name of the process, and its machine.
    process: u64,
    /// Name of the thread; 0 of the main thread.
    thread: u64,
}

impl Kin {
    const FIRST: Self = Self { process: 0, thread: 0 };
    const LAST: Self = Self { process: u64::MAX, thread: u64::MAX };
    /// Of a thread that is not the main one.
    const FIRST_THREAD: u64 = 1;

    fn in_thread(self, thread: u64) -> Self {
        Self { thread, ..self }
    }
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

/// That a session uses a reference. Sorted so that the sessions of a reference are together, among
/// them those that go on, and among these those of a process, and of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    serial: u64,
    standing: Standing,
    kin: Kin,
    session: Caller,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Live,
    /// Its verdict is not found yet, or is being carried out.
    Ended,
    /// Only remembered for what it left.
    Departed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The client left of its own accord.
    Clean,
    /// The same thread of the same process has a new session.
    Moved(Caller),
    /// The client was killed or cut off.
    Crashed,
    /// A thread ended, and it is not known whether its process goes on.
    Undecided,
}

#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// Each in a box: a table has room for more than it holds.
    pub(super) all: HashMap<Caller, Box<Session>>,
    pub(super) references: References,
    /// Number of the last request, or `decref`.
    events: u64,
    /// So many sessions have ended and are not forgotten yet.
    ended: usize,
    uses: BTreeSet<Use>,
    /// So many of these that sessions use more than a few.
    uses_max: usize,
    /// Sessions that were forgotten but for the tasks that they left, oldest first.
    departed: HashMap<Caller, Box<Session>>,
    departures: VecDeque<(Time, Caller)>,
    hasher: RandomState,
}

impl Session {
    /// `MainProcess` of `MainProcess|Thread-1`.
    fn process(&self) -> &str {
        self.name.split_once('|').map_or(&self.name, |(process, _)| process)
    }

    fn is_main_thread(&self) -> bool {
        !self.name.contains('|')
    }

    /// The machine that it is on, as far as its address tells.
    fn host(&self) -> &str {
        self.peer.rsplit_once(':').map_or(&self.peer, |(host, _)| host)
    }

    fn standing(&self) -> Standing {
        if self.end.is_none() { Standing::Live } else { Standing::Ended }
    }

    /// Remembers a task that was given back for want of a result.
    pub(super) fn leave(&mut self, held: Held, demand: Demand, age: u64) {
        if self.left.len() < LEFT_MAX {
            self.left.push((age, held, demand));
        }
    }

    /// Whether another session is one of the same process.
    fn is_of_process_of(&self, other: &Self) -> bool {
        self.process() == other.process() && self.host() == other.host()
    }
}

impl Sessions {
    /// None so far, where all together may take so many bytes.
    pub(super) fn within(memory_bytes_max: u64, references: References) -> Self {
        let uses_max = usize::try_from(memory_bytes_max / 16 / USE_BYTES).unwrap_or(usize::MAX);
        Self { references, uses_max, ..Self::default() }
    }

    /// What it takes to remember who uses which reference, in bytes.
    pub(super) fn use_bytes(&self) -> u64 {
        self.uses.len() as u64 * USE_BYTES
    }

    /// Takes a session in.
    pub(super) fn enter(
        &mut self,
        id: Caller,
        name: Arc<str>,
        peer: Arc<str>,
        now: Time,
    ) -> Arc<AtomicBool> {
        let mut session = Box::new(Session {
            name,
            peer,
            kin: Kin::FIRST,
            used: Vec::new(),
            has_uncounted: false,
            hand: Hand::default(),
            has_taken: false,
            left: Vec::new(),
            through: BTreeMap::new(),
            is_behind: Arc::default(),
            began: now,
            last_request: self.events,
            end: None,
            verdict: None,
            moved: Vec::new(),
        });
        let thread = match session.is_main_thread() {
            true => Kin::FIRST.thread,
            false => self.hasher.hash_one(&*session.name).max(Kin::FIRST_THREAD),
        };
        let process = self.hasher.hash_one((session.process(), session.host()));
        session.kin = Kin { process, thread };
        let is_behind = session.is_behind.clone();
        self.all.insert(id, session);
        is_behind
    }

    /// A session uses a reference.
    pub(super) fn use_reference(&mut self, id: Caller, serial: u64) {
        self.events += 1;
        let Some(session) = self.all.get_mut(&id) else { return };
        session.last_request = self.events;
        let most = if self.uses.len() < self.uses_max { USED_MAX } else { USED_AT_LEAST };
        if let Err(at) = session.used.binary_search(&serial)
            && session.used.len() < most
        {
            session.used.insert(at, serial);
            let standing = session.standing();
            self.uses.insert(Use { serial, standing, kin: session.kin, session: id });
            match self.references.get_mut(serial) {
                Some(counted) => counted.unused_since = None,
                None => session.has_uncounted |= self.references.may_have_expired(serial),
            }
        }
    }

    /// A client gives one count of a reference back, at `now`.
    pub(super) fn decref_at(&mut self, now: Time) -> Decref {
        self.events += 1;
        Decref { event: self.events, at: now }
    }

    /// Marks a session as ended; the first time counts.
    pub(super) fn end(&mut self, id: Caller, end: End) -> Option<&mut End> {
        let session = self.all.get_mut(&id)?;
        if session.end.is_none() {
            for &serial in &session.used {
                let used = Use { serial, standing: Standing::Live, kin: session.kin, session: id };
                if self.uses.remove(&used) {
                    self.uses.insert(Use { standing: Standing::Ended, ..used });
                }
            }
            self.ended += 1;
        }
        Some(session.end.get_or_insert(end))
    }

    /// Sessions of one standing that use a reference, from one kin to another.
    fn users(
        &self,
        serial: u64,
        standing: Standing,
        (from, to): (Kin, Kin),
        after: Caller,
    ) -> impl DoubleEndedIterator<Item = Caller> {
        let least = Use { serial, standing, kin: from, session: Caller(after.0 + 1) };
        let most = Use { serial, standing, kin: to, session: Caller(u64::MAX) };
        self.uses.range(least..=most).map(|used| used.session)
    }

    /// Sessions that have ended, and for whose verdict it may matter that this reference is gone.
    pub(super) fn ended_users(&self, serial: u64) -> Vec<Caller> {
        self.users(serial, Standing::Ended, (Kin::FIRST, Kin::LAST), Caller::IN_PROCESS).collect()
    }

    /// How a session seems to have ended that has not given its references back, when the grace period
    /// is over.
    pub(super) fn verdict(&self, id: Caller) -> Option<Verdict> {
        let session = self.all.get(&id)?;
        let end = session.end?;
        Some(match self.successor(id, session) {
            Some(other) => Verdict::Moved(other),
            None if end.cut || session.is_main_thread() => Verdict::Crashed,
            None if self.has_crashed(session) => Verdict::Crashed,
            None if self.goes_on(session) => Verdict::Clean,
            None => Verdict::Undecided,
        })
    }

    /// Whether the process of `session` has another one that goes on.
    fn goes_on(&self, session: &Session) -> bool {
        let all = (session.kin.in_thread(Kin::FIRST.thread), session.kin.in_thread(u64::MAX));
        let is_relative = |other: Caller| {
            self.all.get(&other).is_some_and(|other| other.is_of_process_of(session))
        };
        let mut known = session.used.iter().filter(|serial| self.references.has(**serial));
        known.any(|serial| {
            self.users(*serial, Standing::Live, all, Caller::IN_PROCESS).any(is_relative)
        })
    }

    /// A later session of the same thread that goes on.
    fn successor(&self, id: Caller, session: &Session) -> Option<Caller> {
        let is_same_thread = |other: &Caller| {
            let other = self.all.get(other);
            other.is_some_and(|it| it.name == session.name && it.is_of_process_of(session))
        };
        let mut known = session.used.iter().filter(|serial| self.references.has(**serial));
        known.find_map(|serial| {
            self.users(*serial, Standing::Live, (session.kin, session.kin), id).find(is_same_thread)
        })
    }

    /// Whether the client of a session that ended has given all its references back.
    pub(super) fn is_released_by(&self, id: Caller) -> bool {
        let Some(session) = self.all.get(&id) else { return false };
        let Some(end) = session.end else { return false };
        !session.has_uncounted
            && session.used.iter().all(|serial| self.is_released(*serial, session, end))
    }

    /// Whether the client of `session` has given this reference back. Children that it forked hold
    /// references by the same ident, and may have been killed with them; so it is enough that one
    /// was given back between the session's last request and its end.
    fn is_released(&self, serial: u64, session: &Session, end: End) -> bool {
        let Some(counted) = self.references.get(serial) else { return true };
        counted.last_decref.is_some_and(|Decref { event, at }| {
            session.last_request < event && at <= end.at && end.at.since(at) <= CLOSING
        })
    }

    fn has_crashed(&self, session: &Session) -> bool {
        let mut counted = session.used.iter().filter_map(|serial| self.references.get(*serial));
        counted.any(|counted| counted.crashed == Some(session.kin.process))
    }

    /// Remembers that the process of `session` crashed, if that is certain, and names the sessions
    /// of its threads that wait for a verdict.
    pub(super) fn mark_crashed(&mut self, id: Caller) -> Vec<Caller> {
        let mut threads = Vec::new();
        let Some(session) = self.all.get(&id).filter(|it| it.is_main_thread()) else {
            return threads;
        };
        let kin = session.kin;
        let kins = (kin.in_thread(Kin::FIRST_THREAD), kin.in_thread(u64::MAX));
        for &serial in &session.used {
            let Some(counted) = self.references.get_mut(serial) else { continue };
            // Threads that end after this see it by themselves.
            if counted.crashed.replace(kin.process) != Some(kin.process) {
                threads.extend(self.users(serial, Standing::Ended, kins, Caller::IN_PROCESS));
            }
        }
        threads
    }

    /// Whether sessions use a reference, or did and wait for their verdict.
    pub(super) fn are_using(&self, serial: u64) -> bool {
        [Standing::Live, Standing::Ended].into_iter().any(|standing| {
            let all = (Kin::FIRST, Kin::LAST);
            self.users(serial, standing, all, Caller::IN_PROCESS).next().is_some()
        })
    }

    /// Forgets a session.
    pub(super) fn remove(&mut self, id: Caller) -> Option<Box<Session>> {
        let session = self.all.remove(&id)?;
        self.forget_uses(id, &session, session.standing());
        self.ended -= usize::from(session.end.is_some());
        Some(session)
    }

    fn forget_uses(&mut self, id: Caller, session: &Session, standing: Standing) {
        for &serial in &session.used {
            self.uses.remove(&Use { serial, standing, kin: session.kin, session: id });
        }
    }

    // ---- what those left who were cut off

    /// Remembers what a session left that was removed: its client may yet come with the results.
    pub(super) fn remember(&mut self, id: Caller, mut session: Box<Session>, now: Time) {
        while let Some(&(time, first)) = self.departures.front()
            && (self.departures.len() >= DEPARTED_MAX || time + REMEMBERED <= now)
        {
            self.departures.pop_front();
            if let Some(first_session) = self.departed.remove(&first) {
                self.forget_uses(first, &first_session, Standing::Departed);
            }
        }
        session.hand = std::mem::take(&mut session.left).into_iter().collect();
        if session.hand.is_empty() || session.used.len() > DEPARTED_USED_MAX {
            return;
        }
        let (standing, kin) = (Standing::Departed, session.kin);
        let uses = session.used.iter().map(|&serial| Use { serial, standing, kin, session: id });
        self.uses.extend(uses);
        self.departures.push_back((now, id));
        self.departed.insert(id, session);
    }

    /// Whether anybody has left tasks that a later session of the same thread may have the results of.
    pub(super) fn have_ended(&self) -> bool {
        self.ended > 0 || !self.departed.is_empty()
    }

    /// Takes the oldest task whose results go to this queue that an earlier session of the same thread
    /// had in hand when it was cut off, and its age. Nothing if this session has taken tasks itself:
    /// what it puts is about them.
    pub(super) fn inherit(
        &mut self,
        id: Caller,
        results: QueueId,
        now: Time,
    ) -> Option<(u64, Held)> {
        let heir = self.all.get(&id).filter(|it| !it.has_taken)?;
        let kins = (heir.kin, heir.kin);
        let gone = [Standing::Ended, Standing::Departed];
        let pairs = heir.used.iter().flat_map(|serial| gone.map(|standing| (*serial, standing)));
        let others = pairs.flat_map(|(serial, standing)| {
            self.users(serial, standing, kins, Caller::IN_PROCESS).rev()
        });
        let (age, held, other) = others
            .take(PREDECESSORS_MAX)
            .filter_map(|other| {
                let it = self.all.get(&other).or_else(|| self.departed.get(&other))?;
                it.end.filter(|end| end.at <= heir.began && now < end.at + GRACE + REMEMBERED)?;
                let is_same = it.name == heir.name && it.is_of_process_of(heir);
                let sources = it.hand.sources_of(results);
                let oldest = sources.filter_map(|queue| it.hand.oldest_of(queue));
                let (age, held) = oldest.min_by_key(|(age, _)| *age).filter(|_| is_same)?;
                Some((age, held, other))
            })
            .min_by_key(|(age, ..)| *age)?;
        let other = match self.all.get_mut(&other) {
            Some(other) => other,
            None => self.departed.get_mut(&other)?,
        };
        other.hand.remove(held);
        Some((age, held))
    }
}
