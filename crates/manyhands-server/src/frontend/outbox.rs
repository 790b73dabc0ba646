//! Replies of one session on their way out.

use std::collections::VecDeque;

use manyhands::wire::frame::Outbound;

use crate::engine::Promise;

/// Replies that are not sent yet, in the order of their requests. Each waits for what it says to be
/// durable, and for those before it; those that are durable go out together.
#[derive(Debug, Default)]
pub(in crate::frontend) struct Outbox {
    replies: Outbound,
    /// Where older ones end that wait for less than those behind them, and what they wait for.
    ends: VecDeque<(usize, Promise)>,
    /// What the last one waits for.
    promise: Promise,
}

impl Outbox {
    /// Memory that it takes, in bytes.
    pub(in crate::frontend) fn bytes(&self) -> u64 {
        (self.replies.len() + self.ends.len() * size_of::<(usize, Promise)>()) as u64
    }

    pub(in crate::frontend) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Where a reply is written that waits for a promise.
    pub(in crate::frontend) fn behind(&mut self, promise: Promise) -> &mut Outbound {
        if !self.promise.covers(promise) {
            let end = self.replies.len();
            if self.ends.back().map_or(0, |(end, _)| *end) < end {
                self.ends.push_back((end, self.promise));
            }
            self.promise = self.promise.and(promise);
        }
        &mut self.replies
    }

    /// What the last one waits for.
    pub(in crate::frontend) fn last_promise(&self) -> Promise {
        self.promise
    }

    /// What the first reply waits for, if there is one.
    pub(in crate::frontend) fn promise(&self) -> Option<Promise> {
        let first = self.ends.front().map_or(self.promise, |(_, promise)| *promise);
        (!self.is_empty()).then_some(first)
    }

    /// Takes out those that may be sent when all that `durable` covers is.
    pub(in crate::frontend) fn take(&mut self, durable: Promise) -> Outbound {
        if durable.covers(self.promise) {
            return std::mem::take(self).replies;
        }
        if self.ends.front().is_none_or(|(_, promise)| !durable.covers(*promise)) {
            return Outbound::default();
        }
        let count = self.ends.partition_point(|(_, promise)| durable.covers(*promise));
        let end = self.ends.drain(..count).next_back().map_or(0, |(end, _)| end);
        self.ends.iter_mut().for_each(|(later, _)| *later -= end);
        self.replies.split_to(end)
    }
}
