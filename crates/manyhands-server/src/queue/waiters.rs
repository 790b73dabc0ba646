//! Calls that wait, first come first served.
//!
//! Every operation is logarithmic in their number, so that ten thousand clients may hang up at
//! once. Invariant: the three indexes hold the same waiters, and `settling` some of them.

use std::collections::{BTreeMap, BTreeSet};

use super::Time;

/// Names a waiting call. The caller chooses it; it must not be waiting in the queue already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// Arrival order.
type Ticket = u64;

/// A line of waiting calls; each brings `T`.
#[derive(Debug)]
pub(super) struct Waiters<T> {
    line: BTreeMap<Ticket, Waiter<T>>,
    tickets: BTreeMap<WaiterId, Ticket>,
    deadlines: BTreeSet<(Time, Ticket)>,
    /// Those that settle something.
    settling: BTreeSet<Ticket>,
    next: Ticket,
}

#[derive(Debug)]
struct Waiter<T> {
    id: WaiterId,
    deadline: Option<Time>,
    call: T,
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self {
            line: BTreeMap::new(),
            tickets: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            settling: BTreeSet::new(),
            next: 0,
        }
    }
}

impl<T> Waiters<T> {
    pub(super) fn len(&self) -> usize {
        self.line.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Joins the line at its end. `id` must not be waiting already.
    pub(super) fn park(&mut self, id: WaiterId, deadline: Option<Time>, call: T) {
        let ticket = self.next;
        self.next += 1;
        let twin = self.tickets.insert(id, ticket);
        debug_assert!(twin.is_none(), "{id:?} waits twice in one queue");
        self.deadlines.extend(deadline.map(|deadline| (deadline, ticket)));
        self.line.insert(ticket, Waiter { id, deadline, call });
    }

    /// What the first in line brings.
    pub(super) fn first(&self) -> Option<&T> {
        self.line.first_key_value().map(|(_, waiter)| &waiter.call)
    }

    /// Marks a call that waits as one that settles something.
    pub(super) fn mark_settling(&mut self, id: WaiterId) {
        self.settling.extend(self.tickets.get(&id));
    }

    /// What the first in line brings that settles something.
    pub(super) fn first_settling(&self) -> Option<(WaiterId, &T)> {
        let waiter = self.line.get(self.settling.first()?)?;
        Some((waiter.id, &waiter.call))
    }

    /// Takes one out of the line.
    pub(super) fn take(&mut self, id: WaiterId) -> Option<(WaiterId, T)> {
        let ticket = *self.tickets.get(&id)?;
        self.leave(ticket)
    }

    /// Takes the first in line.
    pub(super) fn pop(&mut self) -> Option<(WaiterId, T)> {
        let ticket = *self.line.first_key_value()?.0;
        self.leave(ticket)
    }

    /// Sends one to the end of the line, if it is in it. It has no deadline.
    pub(super) fn send_back(&mut self, id: WaiterId) {
        // The last one may be the only one, which is what there is most often.
        if self.line.last_key_value().is_none_or(|(_, last)| last.id == id) {
            return;
        }
        let Some(ticket) = self.tickets.get_mut(&id) else { return };
        if let Some(waiter) = self.line.remove(ticket) {
            *ticket = self.next;
            self.next += 1;
            self.line.insert(*ticket, waiter);
        }
    }

    /// Takes one whose deadline has come, the most overdue first.
    pub(super) fn pop_expired(&mut self, now: Time) -> Option<(WaiterId, T)> {
        let &(_, ticket) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now)?;
        self.leave(ticket)
    }

    /// Takes one out of the line; false if it does not wait here.
    pub(super) fn cancel(&mut self, id: WaiterId) -> bool {
        self.take(id).is_some()
    }

    /// When the next one's patience ends.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn leave(&mut self, ticket: Ticket) -> Option<(WaiterId, T)> {
        let waiter = self.line.remove(&ticket)?;
        self.tickets.remove(&waiter.id);
        self.settling.remove(&ticket);
        if let Some(deadline) = waiter.deadline {
            self.deadlines.remove(&(deadline, ticket));
        }
        Some((waiter.id, waiter.call))
    }
}
