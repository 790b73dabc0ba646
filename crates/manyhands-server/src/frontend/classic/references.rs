//! References of stock clients to queues: which there are, how often each is counted, and how long
//! one stays that nobody uses.
//!
//! Every `create` gets an ident of its own, so that the end of a process that gave its references back
//! differs from a crash. The engine knows of references only how many there are to a queue, and which
//! calls wait on one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::hands::Hands;
use super::verbs::Classic;
use crate::config::{Limits, REFERENCE_BYTES};
use crate::engine::{Described, Engine, PAGE_LEN, QueueId, Reference};
use crate::error::{NoQueue, NoReference};
use crate::queue::{QueueOptions, Time};

/// All references that clients hold.
#[derive(Debug, Default)]
pub(super) struct References {
    counted: BTreeMap<u64, Counted>,
    max: usize,
    /// How long one stays that no session uses; for ever without it.
    unused_timeout: Option<Duration>,
    /// The last one that went because it was not used.
    last_expired: u64,
}

/// A client's reference to a queue.
#[derive(Debug)]
pub(super) struct Counted {
    queue: QueueId,
    count: u64,
    pub(super) last_decref: Option<Decref>,
    /// The process that is known to have crashed with it.
    pub(super) crashed: Option<u64>,
    /// Since when no session uses it, as far as is known.
    pub(super) unused_since: Option<Time>,
    /// When it is next looked whether it is unused.
    alarm: Option<Time>,
}

/// That a client gave one count of a reference back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decref {
    /// Its number among those of requests.
    pub(super) event: u64,
    pub(super) at: Time,
}

/// What came of giving one count back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Less {
    /// There was none.
    NotCounted,
    /// There are more.
    Counted,
    /// It was the last one. Nobody need look at the reference then, if anybody was to.
    Gone(Option<Time>),
}

impl References {
    pub(super) fn within(limits: &Limits) -> Self {
        let unused_timeout = Some(limits.unused_timeout).filter(|timeout| !timeout.is_zero());
        Self { max: limits.references_max, unused_timeout, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.counted.len()
    }

    /// What they take, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.counted.len() as u64 * REFERENCE_BYTES
    }

    /// How many clients may hold.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Whether clients hold as many as they may.
    pub(super) fn is_full(&self) -> bool {
        self.counted.len() >= self.max
    }

    pub(super) fn has(&self, serial: u64) -> bool {
        self.counted.contains_key(&serial)
    }

    pub(super) fn get(&self, serial: u64) -> Option<&Counted> {
        self.counted.get(&serial)
    }

    pub(super) fn get_mut(&mut self, serial: u64) -> Option<&mut Counted> {
        self.counted.get_mut(&serial)
    }

    /// The reference of this number, if it is held.
    pub(super) fn reference(&self, serial: u64) -> Option<Reference> {
        let queue = self.counted.get(&serial)?.queue;
        Some(Reference { queue, serial })
    }

    /// Counts one more. When it is to be looked whether it is unused, if it is new.
    pub(super) fn count_up(&mut self, reference: Reference, now: Time) -> Option<Time> {
        let Reference { queue, serial } = reference;
        if let Some(counted) = self.counted.get_mut(&serial) {
            counted.count += 1;
            return None;
        }
        let alarm = self.unused_timeout.map(|timeout| now + timeout);
        let (last_decref, crashed, unused_since) = (None, None, Some(now));
        let counted = Counted { queue, count: 1, last_decref, crashed, unused_since, alarm };
        self.counted.insert(serial, counted);
        alarm
    }

    /// Counts one fewer. A client that crashed says nothing of it.
    pub(super) fn count_down(&mut self, serial: u64, decref: Decref) -> Less {
        let Some(counted) = self.counted.get_mut(&serial) else { return Less::NotCounted };
        counted.count -= 1;
        counted.last_decref = Some(decref);
        if counted.count > 0 {
            return Less::Counted;
        }
        let alarm = counted.alarm;
        self.counted.remove(&serial);
        Less::Gone(alarm)
    }

    /// Whether a reference that is not counted may have gone because it was not used, rather than by
    /// its client: it is counted again when that comes back. The idents of named queues stay good, and
    /// a client that is killed later must not look like one that gave its references back.
    pub(super) fn may_have_expired(&self, serial: u64) -> bool {
        0 < serial && serial <= self.last_expired
    }

    /// It was to be looked whether a reference is unused. When it is to be looked again; nothing if it
    /// was unused for too long, and is gone. `keeps` says whether its queue needs it nevertheless.
    pub(super) fn look_at(
        &mut self,
        serial: u64,
        is_used: bool,
        now: Time,
        keeps: impl FnOnce(QueueId) -> bool,
    ) -> Looked {
        let Some((counted, timeout)) = self.counted.get_mut(&serial).zip(self.unused_timeout)
        else {
            return Looked::NotThere;
        };
        let queue = counted.queue;
        let since = if is_used { None } else { counted.unused_since.or(Some(now)) };
        counted.unused_since = since;
        let is_over = since.is_some_and(|since| timeout <= now.since(since));
        if is_over && !keeps(queue) {
            self.last_expired = self.last_expired.max(serial);
            self.counted.remove(&serial);
            return Looked::Gone(Reference { queue, serial });
        }
        counted.alarm = Some(now + timeout);
        Looked::Again(now + timeout)
    }

    /// Some of them after this one, with their counts.
    pub(super) fn after(&self, serial: u64, max: usize) -> Vec<(Reference, u64)> {
        let counted = self.counted.range(serial + 1..).take(max);
        let told = |(&serial, &Counted { queue, count, .. }): (&u64, &Counted)| {
            (Reference { queue, serial }, count)
        };
        counted.map(told).collect()
    }
}

/// What came of a look at a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    NotThere,
    Again(Time),
    Gone(Reference),
}

/// A reference that clients hold, at one moment.
#[derive(Debug)]
pub(crate) struct ReferenceStats {
    pub(crate) ident: String,
    pub(crate) count: u64,
    pub(crate) queue: Described,
}

impl Classic {
    /// A client's new reference to the queue called `name`, which is made now if names come into being
    /// by use: its ident.
    pub(crate) fn refer_to(&self, name: &str) -> Result<String, NoReference> {
        self.refer_by(|engine| engine.refer_to(name))
    }

    /// A client's reference to a new queue without a name: its ident.
    pub(crate) fn refer_to_new(&self, options: QueueOptions) -> Result<String, NoReference> {
        self.refer_by(|engine| engine.refer_to_new(options))
    }

    fn refer_by(
        &self,
        refer: impl FnOnce(&Engine) -> Result<Reference, NoQueue>,
    ) -> Result<String, NoReference> {
        let mut hands = self.hands();
        if hands.references().is_full() {
            return Err(NoReference::TooMany(hands.references().max()));
        }
        let reference = refer(&self.engine)?;
        self.count_up(&mut hands, reference);
        Ok(self.idents.ident(reference))
    }

    /// A client's reference to a pinned queue, and its ident. The client knows it as `label`, if it
    /// has a name for it.
    pub(crate) fn refer(&self, pinned: Reference, label: Option<&str>) -> String {
        let mut hands = self.hands();
        let reference = self.engine.refer(pinned, label);
        self.count_up(&mut hands, reference);
        self.idents.ident(reference)
    }

    fn count_up(&self, hands: &mut Hands, reference: Reference) {
        hands.refer(reference, self.engine.now());
        self.engine.memory().remember(hands.bytes());
        self.tell_timer(hands);
    }

    /// Counts one more reference; false if the ident is unknown. So is one that nobody holds any more,
    /// once as many references are held as the limit allows.
    pub(crate) fn incref(&self, ident: &str) -> bool {
        let Some(reference) = self.parse(ident) else { return false };
        let mut hands = self.hands();
        let is_there = match hands.references().has(reference.serial) {
            true => self.engine.has(reference),
            false => !hands.references().is_full() && self.engine.refer_again(reference),
        };
        if is_there {
            self.count_up(&mut hands, reference);
        }
        is_there
    }

    /// Counts one reference fewer; false if there was none. The last one takes the calls that wait on it
    /// along, and its queue if that has no name.
    pub(crate) fn decref(&self, ident: &str) -> bool {
        let Some(reference) = self.parse(ident) else { return false };
        let mut hands = self.hands();
        let less = hands.decref(reference.serial, self.engine.now());
        if let Less::Gone(_) = less {
            self.engine.release(&[reference]);
            self.engine.memory().remember(hands.bytes());
            self.tell_timer(&hands);
        }
        less != Less::NotCounted || hands.references().may_have_expired(reference.serial)
    }

    /// Whether a client still holds this reference.
    pub(crate) fn is_referenced(&self, reference: Reference) -> bool {
        self.hands().references().has(reference.serial)
    }

    /// References of clients to queues.
    pub(crate) fn number_of_references(&self) -> u64 {
        self.hands().references().len() as u64
    }

    /// The references after this number, as many as fit on a page, and the last of them; nothing at the
    /// end.
    pub(crate) fn references_after(&self, last: &mut u64) -> Vec<ReferenceStats> {
        let page = self.hands().references().after(*last, PAGE_LEN);
        *last = page.last().map_or(*last, |(reference, _)| reference.serial);
        let references: Vec<_> = page.iter().map(|(reference, _)| *reference).collect();
        let queues = self.engine.describe_all(&references);
        let stats = page.into_iter().zip(queues).map(|((reference, count), queue)| {
            ReferenceStats { ident: self.idents.ident(reference), count, queue }
        });
        stats.collect()
    }

    /// The reference that `ident` names, if its queue is there. A named queue stays reachable by
    /// its idents when their count has come to zero, because proxies travel between processes.
    pub(crate) fn resolve(&self, ident: &str) -> Option<Reference> {
        self.parse(ident).filter(|reference| self.engine.has(*reference))
    }

    /// The reference that `ident` names, whether or not its queue is still there.
    pub(crate) fn parse(&self, ident: &str) -> Option<Reference> {
        self.idents.parse(ident)
    }

    /// Whether `ident` is one of ours, of a queue that may be gone by now.
    pub(crate) fn is_own(&self, ident: &str) -> bool {
        self.parse(ident).is_some()
    }
}
