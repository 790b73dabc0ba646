//! The queues that a client has open, by their handles.

use std::sync::Arc;

use crate::wire::native::Properties;

/// A queue that is open, or being opened.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: Arc<str>,
    /// Whether the server has said so, on this connection or an earlier one.
    pub(super) is_open: bool,
    /// Whether it is being closed.
    pub(super) is_closing: bool,
    /// Why the server that came back does not have it.
    pub(super) missing: Option<String>,
    /// The queue that its results go to.
    pub(super) results: Option<String>,
    /// Whether its tasks need results.
    pub(super) is_strict: bool,
    /// Whether a `get` takes its tasks for good, as from a server of CPython's.
    taken_for_good: bool,
}

impl Queue {
    pub(super) fn opened(&mut self, properties: &Properties) {
        self.is_open = true;
        self.missing = None;
        self.results.clone_from(&properties.results);
        self.is_strict = properties.needs_results || properties.results.is_some();
        self.taken_for_good = properties.delivery_cpython;
    }
}

/// By their handles; 0 is none.
#[derive(Debug, Default)]
pub(super) struct Queues(Vec<Option<Queue>>);

impl Queues {
    /// A handle for a queue; `None` if all below `max` are in use.
    pub(super) fn add(&mut self, name: Arc<str>, max: u32) -> Option<u16> {
        let queue = Queue {
            name,
            is_open: false,
            is_closing: false,
            missing: None,
            results: None,
            is_strict: false,
            taken_for_good: false,
        };
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

    fn look(&self, handle: u16) -> Option<&Queue> {
        self.0.get(usize::from(handle).checked_sub(1)?)?.as_ref()
    }

    pub(super) fn remove(&mut self, handle: u16) {
        if let Some(place) = usize::from(handle).checked_sub(1).and_then(|it| self.0.get_mut(it)) {
            *place = None;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Queue)> {
        (1..).zip(&self.0).filter_map(|(handle, queue)| Some((handle, queue.as_ref()?)))
    }

    /// Whether two handles are of the same queue.
    pub(super) fn is_same(&self, one: u16, other: u16) -> bool {
        let name = |handle| self.look(handle).map(|queue| &*queue.name);
        one == other || (name(one).is_some() && name(one) == name(other))
    }

    /// Whether the tasks of a queue need results.
    pub(super) fn is_strict(&self, handle: u16) -> bool {
        self.look(handle).is_some_and(|queue| queue.is_strict)
    }

    /// Whether the results of a queue go to another one.
    pub(super) fn has_results_in(&self, handle: u16, to: u16) -> bool {
        match (self.look(handle), self.look(to)) {
            (Some(Queue { results: Some(results), .. }), Some(to)) => **results == *to.name,
            _ => false,
        }
    }

    /// Whether what a `get` takes is in hand until it is settled.
    pub(super) fn is_held(&self, handle: u16) -> bool {
        self.look(handle).is_some_and(|queue| !queue.taken_for_good)
    }
}
