//! The queues that a client has open, by their handles.

use std::sync::Arc;

/// A queue that is open, or being opened.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: Arc<str>,
    /// Whether the server has said so, on this connection or an earlier one.
    pub(super) is_open: bool,
    /// Why the server that came back does not have it.
    pub(super) missing: Option<String>,
}

/// By their handles; 0 is none.
#[derive(Debug, Default)]
pub(super) struct Queues(Vec<Option<Queue>>);

impl Queues {
    /// A handle for a queue; `None` if all below `max` are in use.
    pub(super) fn add(&mut self, name: Arc<str>, max: u32) -> Option<u16> {
        let queue = Queue { name, is_open: false, missing: None };
        let free = self.0.iter().position(Option::is_none);
        let place = free.unwrap_or(self.0.len());
        let handle = u16::try_from(place + 1).ok().filter(|handle| u32::from(*handle) < max)?;
        if place == self.0.len() {
            self.0.push(None);
        }
        *self.0.get_mut(place)? = Some(queue);
        Some(handle)
    }

    pub(super) fn get(&mut self, handle: u16) -> Option<&mut Queue> {
        self.0.get_mut(usize::from(handle).checked_sub(1)?)?.as_mut()
    }

    pub(super) fn remove(&mut self, handle: u16) {
        if let Some(place) = usize::from(handle).checked_sub(1).and_then(|it| self.0.get_mut(it)) {
            *place = None;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Queue)> {
        (1..).zip(&self.0).filter_map(|(handle, queue)| Some((handle, queue.as_ref()?)))
    }
}
