//! Results in the order in which their tasks were put.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::TaskId;
use super::ready::Candidate;

/// Results that came before their turn, for each queue of tasks.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    sources: BTreeMap<Arc<str>, Source>,
    len: usize,
}

/// Invariant: neither `early` nor `skipped` holds `next` or anything before it.
#[derive(Debug, Default)]
struct Source {
    next: TaskId,
    early: BTreeMap<TaskId, Candidate>,
    /// Tasks that will never have a result.
    skipped: BTreeSet<TaskId>,
}

impl Sequence {
    /// Results that wait for their turn.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes a result in.
    pub(super) fn add(&mut self, queue: &Arc<str>, task: TaskId, result: Candidate) {
        self.len += 1;
        self.sources.entry(queue.clone()).or_default().early.insert(task, result);
    }

    /// Does not wait for the result of this task any more.
    pub(super) fn skip(&mut self, queue: &Arc<str>, task: TaskId) {
        let source = self.sources.entry(queue.clone()).or_default();
        if source.next <= task {
            source.skipped.insert(task);
        }
    }

    /// The next result whose turn has come.
    pub(super) fn pop(&mut self, queue: &Arc<str>) -> Option<Candidate> {
        let source = self.sources.get_mut(queue)?;
        while source.skipped.remove(&source.next) {
            source.next = TaskId(source.next.0 + 1);
        }
        // A result that was skipped and came all the same is not kept back for ever.
        let first = *source.early.first_key_value()?.0;
        if source.next < first && !planted!(ResultsOutOfOrder) {
            return None;
        }
        source.next = source.next.max(TaskId(first.0 + 1));
        self.len -= 1;
        source.early.pop_first().map(|(_, result)| result)
    }

    /// Forgets everything; says how many results that were.
    pub(super) fn clear(&mut self) -> usize {
        self.sources.clear();
        std::mem::take(&mut self.len)
    }
}
