//! Replies of one session on their way out.

use std::collections::VecDeque;

use manyhands::wire::frame::Outbound;

use crate::engine::Promise;

/// Replies that are not sent yet, in the order of their requests. Each waits for what it says to be
/// durable, and for those before it; those that wait for the same go out together.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Older ones. Each of these waits for less than the next one.
    held: VecDeque<(Outbound, Promise)>,
    last: Outbound,
    promise: Promise,
}

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.held.iter().map(|(outbound, _)| outbound.len()).sum::<usize>() + self.last.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last.is_empty() && self.held.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Where a reply is written that waits for a promise.
    pub(super) fn behind(&mut self, promise: Promise) -> &mut Outbound {
        if !self.promise.covers(promise) {
            if !self.last.is_empty() {
                self.held.push_back((std::mem::take(&mut self.last), self.promise));
            }
            self.promise = self.promise.and(promise);
        }
        &mut self.last
    }

    /// The last reply waits for this, too.
    pub(super) fn hold_back(&mut self, promise: Promise) {
        self.promise = self.promise.and(promise);
    }

    /// The next ones that go out together, and what they wait for.
    pub(super) fn next(&mut self) -> Option<(Outbound, Promise)> {
        if let Some(next) = self.held.pop_front() {
            return Some(next);
        }
        let promise = std::mem::take(&mut self.promise);
        (!self.last.is_empty()).then(|| (std::mem::take(&mut self.last), promise))
    }
}
