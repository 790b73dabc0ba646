//! The shards: which of them has a queue, and what they have in common.
//!
//! A shard is a single writer: queues that belong together, with their deadlines, leases, budget and
//! log, under one lock. One is the default. Queues that belong together are in one shard: a queue,
//! those that it names for results and failures, and its dead letters. So a step changes one shard,
//! and nobody ever has the locks of two. The number of a queue tells which shard has it.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::callers::Callers;
use super::{Engine, QueueId, State};
use crate::queue::{DEAD_LETTERS_SUFFIX, QueueOptions};

#[derive(Debug)]
pub(super) struct Shards {
    first: Mutex<State>,
    others: Box<[Mutex<State>]>,
    common: Arc<Common>,
    /// Which shard has the queues of these names, which belong to others.
    homes: HashMap<String, usize>,
    hasher: RandomState,
}

/// What all shards know.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) callers: Callers,
    /// How many queues there are.
    pub(super) queues: AtomicUsize,
    /// How many have been made without a name.
    nameless: AtomicUsize,
    /// What the tasks of each shard take, in bytes, if there are several.
    used: Box<[AtomicU64]>,
}

impl Common {
    pub(super) fn of(shards: usize) -> Arc<Self> {
        let used =
            if shards > 1 { (0..shards).map(|_| AtomicU64::new(0)).collect() } else { [].into() };
        Arc::new(Self { used, ..Self::default() })
    }

    /// What tasks take that are in other shards, in bytes.
    pub(super) fn used_by_others(&self, shard: u64) -> u64 {
        let others = self.used.iter().enumerate().filter(|(at, _)| *at as u64 != shard);
        others.map(|(_, used)| used.load(Ordering::Relaxed)).sum()
    }

    /// Says what the tasks of a shard take now. True if it is less than before and there are other
    /// shards, which may wait for that.
    pub(super) fn set_used(&self, shard: u64, bytes: u64) -> bool {
        let used = usize::try_from(shard).ok().and_then(|shard| self.used.get(shard));
        used.is_some_and(|used| used.swap(bytes, Ordering::Relaxed) > bytes)
    }
}

impl Shards {
    /// These states, the first of which is there.
    pub(super) fn new(first: State, others: impl Iterator<Item = State>) -> Self {
        let common = first.common.clone();
        Self {
            first: Mutex::new(first),
            others: others.map(Mutex::new).collect(),
            common,
            homes: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    fn len(&self) -> usize {
        1 + self.others.len()
    }

    pub(super) fn are_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// Which shard has a queue. One that never was, such as 0, would be in any.
    pub(super) fn of(&self, queue: QueueId) -> usize {
        match self.others.len() {
            0 => 0,
            others => usize::try_from(queue % (others as u64 + 1)).unwrap_or(0),
        }
    }

    /// Which shard has the queue of a name, or will have it.
    fn home(&self, mut name: &str) -> usize {
        if self.others.is_empty() {
            return 0;
        }
        loop {
            if let Some(home) = self.homes.get(name) {
                return *home;
            }
            match name.strip_suffix(DEAD_LETTERS_SUFFIX) {
                Some(queue) => name = queue,
                None => return self.spread(self.hasher.hash_one(name)),
            }
        }
    }

    fn spread(&self, number: u64) -> usize {
        usize::try_from(number % self.len() as u64).unwrap_or(0)
    }

    fn get(&self, shard: usize) -> &Mutex<State> {
        shard.checked_sub(1).and_then(|at| self.others.get(at)).unwrap_or(&self.first)
    }
}

impl Engine {
    /// Finds a shard for each group of declared queues that belong together, before they are made.
    pub(crate) fn group<'d>(
        &mut self,
        declared: impl Iterator<Item = (&'d str, &'d QueueOptions)>,
    ) {
        if !self.shards.are_several() {
            return;
        }
        let mut groups: Vec<BTreeSet<String>> = Vec::new();
        for (name, options) in declared {
            let mut group: BTreeSet<_> = options.named().map(str::to_owned).collect();
            group.insert(name.to_owned());
            let belongs = |other: &mut BTreeSet<String>| !other.is_disjoint(&group);
            let others: Vec<_> = groups.extract_if(.., belongs).collect();
            group.extend(others.into_iter().flatten());
            groups.push(group);
        }
        for (at, group) in groups.into_iter().enumerate() {
            let home = self.shards.spread(at as u64);
            self.shards.homes.extend(group.into_iter().map(|name| (name, home)));
        }
    }

    /// Takes the lock of the shard that has a queue.
    pub(super) fn lock(&self, queue: QueueId) -> MutexGuard<'_, State> {
        self.enter_shard(self.shards.get(self.shards.of(queue)))
    }

    /// Takes the lock of the shard that has the queue of this name, or will have it.
    pub(super) fn lock_home(&self, name: &str) -> MutexGuard<'_, State> {
        self.enter_shard(self.shards.get(self.shards.home(name)))
    }

    /// Takes the lock of a shard for a new queue without a name.
    pub(super) fn lock_any(&self) -> MutexGuard<'_, State> {
        let number = self.shards.common.nameless.fetch_add(1, Ordering::Relaxed);
        self.enter_shard(self.shards.get(self.shards.spread(number as u64)))
    }

    /// Takes the lock of the shard with the journal: the only one, where there is a journal.
    pub(super) fn lock_kept(&self) -> MutexGuard<'_, State> {
        self.enter_shard(&self.shards.first)
    }

    /// Takes the locks of all shards, one after the other.
    pub(super) fn lock_each(&self) -> impl Iterator<Item = MutexGuard<'_, State>> {
        let shards = std::iter::once(&self.shards.first).chain(&self.shards.others);
        shards.map(|shard| self.enter_shard(shard))
    }

    fn enter_shard<'s>(&'s self, shard: &'s Mutex<State>) -> MutexGuard<'s, State> {
        #[cfg(test)]
        {
            super::tests::locks::count();
            super::tests::work::begin();
        }
        let mut state = shard.lock().unwrap_or_else(|_| {
            // Queues that a panic left half changed must not be served on.
            tracing::error!("the queue engine failed; the process ends");
            std::process::abort()
        });
        state.step.now = self.clock.now();
        let mut max = self.memory.for_tasks(state.standing_bytes());
        if self.shards.are_several() {
            max = max.saturating_sub(self.shards.common.used_by_others(state.shard));
        }
        state.step.budget.max = max;
        state
    }
}
