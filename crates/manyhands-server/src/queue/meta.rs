//! What is known of a task beyond its payload, and the keys of recent puts.

use std::sync::Arc;

use super::{Failed, Queue, Step, TaskId, Terms, Time, Timer, Token};

/// Failures of one task that are remembered.
pub(super) const HISTORY_LEN_MAX: usize = 32;

/// What is known of a task beyond its payload.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    pub(super) failures: u32,
    pub(super) history: Vec<Failed>,
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
    /// Begins to keep facts of a task that is not plain.
    pub(super) fn add_metadata(
        &mut self,
        id: TaskId,
        terms: Option<Box<Terms>>,
        expires: Option<Time>,
        step: &mut Step,
    ) {
        self.timers.extend(expires.map(|expires| (expires, Timer::Expiry(id))));
        let meta = Metadata { expires, terms, ..Metadata::default() };
        self.charge(meta.bytes(), step);
        self.metadata.insert(id, meta);
    }

    /// Remembers the lease of a task that comes back, whose token may still settle it, and why it
    /// failed if it did. Says how often it has failed by now, and when it expires.
    pub(super) fn remember_return(
        &mut self,
        last: EndedLease,
        failure: Option<&Failed>,
        step: &mut Step,
    ) -> Option<(u32, Option<Time>)> {
        let task = last.token.task;
        if !self.metadata.contains_key(&task) {
            self.add_metadata(task, None, None, step);
        }
        let meta = self.metadata.get_mut(&task)?;
        meta.last = Some(last);
        let forgotten = failure.and_then(|failure| meta.fail(failure.clone()));
        let known = (meta.failures, meta.expires);
        self.charge(failure.map_or(0, Failed::bytes), step);
        self.discharge(forgotten.map_or(0, |forgotten| forgotten.bytes()), step);
        Some(known)
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

    /// The key of a task's put.
    pub fn key(&self, task: TaskId) -> Option<Arc<[u8]>> {
        self.metadata.get(&task)?.terms.as_ref()?.key.clone()
    }

    /// Whether the key of a put was used a short while ago.
    pub(super) fn knows(&mut self, terms: Option<&Terms>) -> bool {
        if planted!(NoDedup) {
            return false;
        }
        let key = terms.and_then(|terms| terms.key.as_ref());
        let known = key.is_some_and(|key| self.keys.contains_key(key));
        self.tally.known += u64::from(known);
        known
    }
}

impl Metadata {
    /// Counts one more failure; the one that is forgotten for it.
    fn fail(&mut self, failure: Failed) -> Option<Failed> {
        self.failures += 1;
        let is_full = self.history.len() == HISTORY_LEN_MAX;
        let forgotten = is_full.then(|| self.history.remove(0));
        self.history.push(failure);
        forgotten
    }

    /// What it takes in memory, in bytes, roughly.
    pub(super) fn bytes(&self) -> u64 {
        let terms =
            self.terms.as_ref().map_or_else(Terms::least_bytes, |terms| terms.metadata_bytes());
        terms + self.history.iter().map(Failed::bytes).sum::<u64>()
    }
}
