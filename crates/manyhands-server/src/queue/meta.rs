//! What is known of a task beyond its payload, and the keys of recent puts.

use std::sync::Arc;

use super::{Cause, Queue, Step, TaskId, Terms, Time, Timer, Token};

/// What is known of a task beyond its payload.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    pub(super) failures: u32,
    pub(super) history: Vec<Cause>,
    /// The lease before, by which it may still be settled while nobody has taken it.
    pub(super) last: Option<EndedLease>,
    pub(super) expires: Option<Time>,
    pub(super) terms: Option<Box<Terms>>,
}

/// A lease that ended without an ack.
#[derive(Debug, Clone, Copy)]
pub(super) struct EndedLease {
    pub(super) token: Token,
    pub(super) since: Time,
}

impl Queue {
    /// Opens the books on a task that is not plain.
    pub(super) fn add_metadata(
        &mut self,
        id: TaskId,
        terms: Option<Box<Terms>>,
        expires: Option<Time>,
        step: &mut Step,
    ) {
        if let Some(key) = terms.as_ref().and_then(|terms| terms.key.clone()) {
            self.remember_key(key, step.now + self.options.dedup, step);
        }
        self.timers.extend(expires.map(|expires| (expires, Timer::Expiry(id))));
        let meta = Metadata { expires, terms, ..Metadata::default() };
        self.charge(meta.bytes(), step);
        self.metadata.insert(id, meta);
    }

    pub(super) fn remember_key(&mut self, key: Arc<[u8]>, until: Time, step: &mut Step) {
        if !self.keys.contains_key(&key) {
            self.charge(Terms::key_bytes(&key), step);
            self.timers.insert((until, Timer::Window(key.clone())));
            self.keys.insert(key, until);
        }
    }

    pub(super) fn drop_metadata(&mut self, id: TaskId, step: &mut Step) {
        let Some(meta) = self.metadata.remove(&id) else { return };
        self.discharge(meta.bytes(), step);
        if let Some(expires) = meta.expires {
            self.timers.remove(&(expires, Timer::Expiry(id)));
        }
    }

    /// Whether the key of a put was used a short while ago.
    pub(super) fn knows(&mut self, terms: Option<&Terms>) -> bool {
        let key = terms.and_then(|terms| terms.key.as_ref());
        let known = key.is_some_and(|key| self.keys.contains_key(key)) && !planted!(NoDedup);
        self.tally.known += u64::from(known);
        known
    }
}

impl Metadata {
    /// What it takes in memory, in bytes, roughly.
    pub(super) fn bytes(&self) -> u64 {
        let terms =
            self.terms.as_ref().map_or_else(Terms::least_bytes, |terms| terms.metadata_bytes());
        terms + self.history.iter().map(Cause::bytes).sum::<u64>()
    }
}
