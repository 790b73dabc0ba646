//! What is known of queues, for whoever wants to look at all of them.
//!
//! A look takes the lock anew for every page, copies plain facts, and leaves it to the caller to make
//! text or a reply of them: with ten thousand queues nobody waits for more than a page. What changes
//! between two pages is seen as it is then.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::text::repr;

use super::{Engine, Hosted, QueueId, Reference, State};
use crate::queue::{Order, Tally};

/// Queues, or references to them, on a page.
pub(crate) const PAGE_LEN: usize = if cfg!(test) { 2 } else { 128 };

/// A queue that clients know by a name, at one moment.
#[derive(Debug)]
pub(crate) struct QueueStats {
    pub(crate) name: Arc<str>,
    pub(crate) order: Order,
    pub(crate) maxsize: usize,
    pub(crate) ready: usize,
    pub(crate) delayed: usize,
    pub(crate) leased: usize,
    pub(crate) unfinished: u64,
    pub(crate) is_joined: bool,
    /// It is declared, or named by a declared one.
    pub(crate) stays: bool,
    /// How long ago the oldest task was put.
    pub(crate) oldest: Option<Duration>,
    pub(crate) waiting_getters: usize,
    pub(crate) waiting_putters: usize,
    pub(crate) waiting_joiners: usize,
    pub(crate) references: usize,
    pub(crate) tally: Tally,
    pub(crate) bytes: u64,
}

/// All queues that clients know by a name, sorted by it, page by page.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    last: Option<Listed>,
}

impl Snapshot {
    /// Of those whose names come after this one.
    pub(crate) fn after(name: &str) -> Self {
        Self { last: Some((name.into(), QueueId::MAX)) }
    }
}

/// A queue in the list of all: what clients call it, and which it is.
pub(super) type Listed = (Arc<str>, QueueId);

/// What `str()` of a proxy shows.
#[derive(Debug)]
pub(crate) struct Described(Option<Facts>);

/// Name, order, `maxsize` and length of a queue.
type Facts = (Option<Arc<str>>, Order, usize, usize);

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((name, order, maxsize, len)) = &self.0 else {
            return f.write_str("<manyhands queue, gone>");
        };
        let name = name.as_deref().map_or_else(|| "without a name".into(), repr);
        write!(f, "<manyhands queue {name} {order} maxsize={maxsize} qsize={len}>")
    }
}

impl Engine {
    /// The next page of `snapshot`; an empty one at the end.
    pub(crate) fn next_queues(&self, snapshot: &mut Snapshot) -> Vec<QueueStats> {
        let mut page = Vec::new();
        for state in self.lock_each() {
            let after = snapshot.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let listed = state.directory.listed.range((after, Bound::Unbounded)).take(PAGE_LEN);
            page.extend(listed.map(|at| (at.clone(), state.stats(&at.0, at.1))));
        }
        if self.shards.are_several() {
            page.sort_by(|(one, _), (other, _)| one.cmp(other));
            page.truncate(PAGE_LEN);
        }
        let last = page.last().map(|(last, _)| last.clone());
        snapshot.last = last.or(snapshot.last.take());
        page.into_iter().filter_map(|(_, stats)| stats).collect()
    }

    /// What `str()` of a proxy shows.
    pub(crate) fn describe(&self, reference: Reference) -> String {
        let described = self.lock(reference.queue).describe(reference.queue);
        described.to_string()
    }

    /// The same of several, without the lock while it is put into words.
    pub(crate) fn describe_all(&self, references: &[Reference]) -> Vec<Described> {
        let describe = |&Reference { queue, .. }: &Reference| self.lock(queue).describe(queue);
        references.iter().map(describe).collect()
    }
}

impl State {
    fn stats(&self, name: &Arc<str>, queue: QueueId) -> Option<QueueStats> {
        let hosted = self.queues.get(&queue)?;
        let queue = &hosted.queue;
        Some(QueueStats {
            name: name.clone(),
            order: queue.options().order,
            maxsize: queue.options().maxsize,
            ready: queue.len(),
            delayed: queue.delayed(),
            leased: queue.leased(),
            unfinished: queue.unfinished(),
            is_joined: queue.is_joined(),
            stays: hosted.stays,
            oldest: queue.oldest(self.step.now),
            waiting_getters: queue.waiting_getters(),
            waiting_putters: queue.waiting_putters(),
            waiting_joiners: queue.waiting_joiners(),
            references: hosted.references,
            tally: queue.tally(),
            bytes: queue.bytes(),
        })
    }

    fn describe(&self, queue: QueueId) -> Described {
        Described(self.queues.get(&queue).map(|hosted| {
            let options = hosted.queue.options();
            (hosted.name.clone(), options.order, options.maxsize, hosted.queue.len())
        }))
    }

    /// From now on a queue is in the list of all by this name.
    pub(super) fn list(&mut self, queue: QueueId, hosted: &Hosted) {
        self.directory.listed.extend(hosted.listed(queue));
    }

    /// Clients call a queue without a name so.
    pub(super) fn label(&mut self, queue: QueueId, label: &str) {
        let Some(hosted) = self.queues.get_mut(&queue) else { return };
        if let Some(before) = hosted.listed(queue) {
            self.directory.listed.remove(&before);
        }
        hosted.label = Some(label.into());
        self.directory.listed.extend(hosted.listed(queue));
    }
}

impl Hosted {
    /// Where it is in the list of all.
    pub(super) fn listed(&self, queue: QueueId) -> Option<Listed> {
        Some((self.called()?.clone(), queue))
    }
}
