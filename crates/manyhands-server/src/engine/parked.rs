//! Calls that wait, found by their number and by the reference that they were made on.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use tokio::sync::oneshot;

use super::{Caller, Completion, Reference, Settles};
use crate::queue::WaiterId;

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) reference: Reference,
    pub(super) caller: Caller,
    /// What this put settles once it is accepted.
    pub(super) settles: Option<Box<Settles>>,
    /// Whether what this call takes is leased by token.
    pub(super) is_by_token: bool,
    /// Whether what it takes counts as received by that, if its caller takes it for good.
    pub(super) receives: bool,
    pub(super) outcome: Option<oneshot::Sender<Completion>>,
}

impl Waiting {
    pub(super) fn new(reference: Reference, caller: Caller) -> Self {
        let (is_by_token, receives) = (false, false);
        Self { reference, caller, settles: None, is_by_token, receives, outcome: None }
    }
}

/// Invariant: the index has the calls on references that can be released, and no others.
#[derive(Debug, Default)]
pub(super) struct Parked {
    calls: HashMap<WaiterId, Waiting>,
    by_reference: BTreeSet<(u64, WaiterId)>,
}

impl Parked {
    pub(super) fn insert(&mut self, id: WaiterId, waiting: Waiting) {
        let serial = waiting.reference.serial;
        if serial != 0 {
            self.by_reference.insert((serial, id));
        }
        self.calls.insert(id, waiting);
    }

    pub(super) fn remove(&mut self, id: WaiterId) -> Option<Waiting> {
        let waiting = self.calls.remove(&id)?;
        self.by_reference.remove(&(waiting.reference.serial, id));
        Some(waiting)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Those on one reference.
    pub(super) fn on(&self, serial: u64) -> Vec<WaiterId> {
        let all = (serial, WaiterId(0))..=(serial, WaiterId(u64::MAX));
        self.by_reference.range(all).map(|(_, id)| *id).collect()
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<WaiterId> {
        let mut all: Vec<_> = self.calls.keys().copied().collect();
        all.sort_unstable();
        all
    }
}
