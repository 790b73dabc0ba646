//! The queues that a session has open, by the handles that its client chose.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::connection::QUEUES_MAX;
use super::credit::Credit;
use crate::config::{REFERENCE_BYTES, SMALL_BYTES};
use crate::engine::{Reference, Signer};
use crate::memory::{Memory, Parked};
use crate::queue::Order;

/// A queue that a session has open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) reference: Reference,
    /// Signs the tokens of its leases.
    pub(super) signer: Signer,
    pub(super) order: Order,
    /// If a put waits that has further items: the puts behind it, each of which is told when it is its
    /// turn.
    pub(super) behind: Option<VecDeque<oneshot::Sender<()>>>,
    pub(super) credit: Option<Box<Credit>>,
}

/// All of them. Few sessions have many.
#[derive(Debug)]
pub(super) struct Handles {
    open: Vec<Option<Box<Open>>>,
    len: usize,
    memory: Arc<Memory>,
    /// Memory of more than a session may have without being asked.
    parked: Option<Parked>,
}

/// Why a handle was not taken.
#[derive(Debug)]
pub(super) enum NotOpen {
    InUse,
    /// Above this.
    TooHigh(u16),
    NoMemory,
}

impl Handles {
    pub(super) fn new(memory: &Arc<Memory>) -> Self {
        Self { open: Vec::new(), len: 0, memory: memory.clone(), parked: None }
    }

    pub(super) fn get(&self, handle: u16) -> Option<&Open> {
        self.open.get(usize::from(handle))?.as_deref()
    }

    pub(super) fn get_mut(&mut self, handle: u16) -> Option<&mut Open> {
        self.open.get_mut(usize::from(handle))?.as_deref_mut()
    }

    /// The queue that is open under a handle, if it still is this one.
    pub(super) fn get_open(&mut self, handle: u16, at: Reference) -> Option<&mut Open> {
        self.get_mut(handle).filter(|open| open.reference == at)
    }

    /// Whether another handle has the queue of this one open.
    pub(super) fn has_other(&self, at: Reference) -> bool {
        let mut open = self.open.iter().flatten();
        open.any(|open| open.reference.queue == at.queue && open.reference != at)
    }

    /// Whether a queue can be opened under a handle; memory is set aside for it.
    pub(super) fn reserve(&mut self, handle: u16) -> Result<(), NotOpen> {
        if handle >= QUEUES_MAX {
            return Err(NotOpen::TooHigh(QUEUES_MAX));
        }
        if self.get(handle).is_some() {
            return Err(NotOpen::InUse);
        }
        self.park(self.len + 1)
    }

    fn park(&mut self, len: usize) -> Result<(), NotOpen> {
        let bytes = len as u64 * REFERENCE_BYTES;
        self.parked = match bytes.checked_sub(SMALL_BYTES).filter(|bytes| *bytes > 0) {
            Some(bytes) => Some(self.memory.park(bytes).ok_or(NotOpen::NoMemory)?),
            None => None,
        };
        Ok(())
    }

    /// Opens a queue under a handle that is [free](Self::reserve).
    pub(super) fn insert(&mut self, handle: u16, open: Open) {
        let at = usize::from(handle);
        if self.open.len() <= at {
            self.open.resize_with(at + 1, || None);
        }
        if let Some(place) = self.open.get_mut(at) {
            *place = Some(Box::new(open));
            self.len += 1;
        }
    }

    pub(super) fn remove(&mut self, handle: u16) -> Option<Box<Open>> {
        let open = self.open.get_mut(usize::from(handle))?.take()?;
        self.len -= 1;
        // There is less of it: that is granted.
        self.park(self.len).ok();
        Some(open)
    }

    /// Takes all of them out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Box<Open>> {
        self.len = 0;
        std::mem::take(&mut self.open).into_iter().flatten()
    }
}
