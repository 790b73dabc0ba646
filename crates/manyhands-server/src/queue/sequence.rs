//! Results in the order in which their tasks were put.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::ready::Candidate;
use super::{Change, Queue, Step, TaskId};

/// Results that came before their turn, for each queue of tasks.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    sources: BTreeMap<Arc<str>, Source>,
    /// Whose result each of them is.
    origins: BTreeMap<TaskId, (Arc<str>, TaskId)>,
    /// The same of results that were dropped and still take memory.
    dropped: VecDeque<BTreeMap<TaskId, (Arc<str>, TaskId)>>,
}

/// Invariant: neither `early` nor `skipped` holds `next` or anything before it.
#[derive(Debug, Default)]
struct Source {
    next: TaskId,
    early: Early,
    /// Tasks that will never have a result.
    skipped: BTreeSet<TaskId>,
    /// Results that were dropped: as good as skipped.
    dropped: Vec<Early>,
}

/// Results by the tasks that they are of, with their own ids.
type Early = BTreeMap<TaskId, (TaskId, Candidate)>;

impl Queue {
    /// A task of `queue` ended without a result: those after it need not wait for it.
    pub fn skip(&mut self, queue: &Arc<str>, task: TaskId, step: &mut Step) {
        if self.options.ordered {
            self.sequence.skip(queue, task);
            self.release_in_turn(queue, step);
        }
    }

    pub(super) fn release_in_turn(&mut self, queue: &Arc<str>, step: &mut Step) {
        while let Some((task, candidate)) = self.sequence.pop(queue) {
            self.discharge(early_bytes(&candidate), step);
            let mut turned = task;
            if self.next_id.0 != task.0 + 1 {
                turned = self.new_id();
                step.record(|| Change::Turned { task, turned });
            }
            self.place(turned, candidate, step);
        }
    }
}

impl Sequence {
    /// Results that wait for their turn.
    pub(super) fn len(&self) -> usize {
        self.origins.len()
    }

    /// The result that came first.
    pub(super) fn oldest(&self) -> Option<TaskId> {
        self.origins.first_key_value().map(|(id, _)| *id)
    }

    /// Takes a result in, which has this id until its turn comes.
    pub(super) fn add(&mut self, id: TaskId, queue: &Arc<str>, task: TaskId, result: Candidate) {
        self.origins.insert(id, (queue.clone(), task));
        let early = &mut self.sources.entry(queue.clone()).or_default().early;
        if let Some((twin, _)) = early.insert(task, (id, result)) {
            self.origins.remove(&twin);
        }
    }

    /// A result that is kept back.
    pub(super) fn get(&self, id: TaskId) -> Option<&Candidate> {
        let (queue, task) = self.origins.get(&id)?;
        self.sources.get(queue)?.early.get(task).map(|(_, result)| result)
    }

    /// Results that are kept back, in the order of their numbers.
    pub(super) fn after(
        &self,
        bounds: (Bound<TaskId>, Bound<TaskId>),
    ) -> impl Iterator<Item = (TaskId, &Candidate)> {
        let ids = self.origins.range(bounds).map(|(id, _)| *id);
        ids.filter_map(|id| Some((id, self.get(id)?)))
    }

    /// Begins with the result of `next`.
    pub(super) fn begin(&mut self, queue: Arc<str>, next: TaskId, skipped: BTreeSet<TaskId>) {
        self.sources.insert(queue, Source { next, skipped, ..Source::default() });
    }

    /// Does not wait for the result of this task any more.
    pub(super) fn skip(&mut self, queue: &Arc<str>, task: TaskId) {
        let source = self.sources.entry(queue.clone()).or_default();
        if source.next <= task {
            source.skipped.insert(task);
        }
    }

    /// The next result whose turn has come.
    pub(super) fn pop(&mut self, queue: &Arc<str>) -> Option<(TaskId, Candidate)> {
        let source = self.sources.get_mut(queue)?;
        while source.skipped.remove(&source.next) || source.has_dropped(source.next) {
            source.next = TaskId(source.next.0 + 1);
        }
        // A result that was skipped and came all the same is not kept back for ever.
        let first = *source.early.first_key_value()?.0;
        let is_early = if planted!(ResultsOutOfOrder) { false } else { source.next < first };
        if is_early {
            return None;
        }
        source.next = source.next.max(TaskId(first.0 + 1));
        let (_, (id, result)) = source.early.pop_first()?;
        self.origins.remove(&id);
        Some((id, result))
    }

    /// Drops all results, which nobody waits for any more; says how many that were.
    pub(super) fn clear(&mut self) -> usize {
        if planted!(TurnsBeginAnew) {
            self.sources.clear();
        }
        for source in self.sources.values_mut() {
            let early = std::mem::take(&mut source.early);
            source.dropped.extend(Some(early).filter(|early| !early.is_empty()));
        }
        let origins = std::mem::take(&mut self.origins);
        let dropped = origins.len();
        self.dropped.extend(Some(origins).filter(|origins| !origins.is_empty()));
        dropped
    }

    /// Whether results that were dropped still take memory.
    pub(super) fn has_dropped(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// Lets go of a result that was dropped.
    pub(super) fn clear_one(&mut self) -> Option<Candidate> {
        while let Some(origins) = self.dropped.front_mut() {
            let Some((_, (queue, task))) = origins.pop_first() else {
                self.dropped.pop_front();
                continue;
            };
            let source = self.sources.get_mut(&queue);
            if let Some(result) = source.and_then(|source| source.clear(task)) {
                return Some(result);
            }
        }
        None
    }
}

impl Source {
    fn has_dropped(&self, task: TaskId) -> bool {
        self.dropped.iter().any(|dropped| dropped.contains_key(&task))
    }

    fn clear(&mut self, task: TaskId) -> Option<Candidate> {
        let (_, result) = self.dropped.iter_mut().find_map(|dropped| dropped.remove(&task))?;
        self.dropped.retain(|dropped| !dropped.is_empty());
        if self.next <= task {
            self.skipped.insert(task);
        }
        Some(result)
    }
}

/// What a result takes whose turn has not come.
pub(super) fn early_bytes(candidate: &Candidate) -> u64 {
    candidate.cost + candidate.terms.as_ref().map_or(0, |terms| terms.metadata_bytes())
}
