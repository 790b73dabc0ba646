//! Where the body of each live task of one queue lies in the journal.
//!
//! A backlog on disk is as long as the disk allows, so this is dense: tasks are in groups by their
//! ids, which rise, and twenty bytes say it all. Invariant: no group is empty, and each is sorted.

use std::collections::BTreeMap;

use bytes::Bytes;
use manyhands::wire::pickle::{Codec, Payload};

#[cfg(test)]
use crate::journal::{Journal, JournalError};
use crate::journal::{Location, Record, TaskOptions};
use crate::queue::TaskId;

/// Ids that may share a group: `1 << GROUP_BITS`.
const GROUP_BITS: u32 = 6;
/// Groups that one step clears away.
const CLEARED_AT_ONCE: usize = if cfg!(test) { 1 } else { 64 };

/// A body on disk, and what a reader has to know of it. Only the journal knows where that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) struct Stored {
    pub(super) location: Location,
    pub(super) codec: Codec,
    pub(super) prelude_len: u32,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    segment: u32,
    offset: u32,
    len: u32,
    prelude_len: u32,
    codec: Codec,
    /// The low bits of the id.
    low: u8,
}

/// Bodies on disk by the ids of their tasks.
#[derive(Debug, Default)]
pub(in crate::engine) struct Ledger {
    groups: BTreeMap<u64, Vec<Slot>>,
    /// Tasks in the groups.
    len: usize,
    /// Bytes of their bodies.
    body_bytes: u64,
    purged: Option<Purged>,
}

/// A purge of which not all is cleared away: nothing is known any more of tasks below `before`, but
/// of those that are kept.
#[derive(Debug)]
struct Purged {
    before: TaskId,
    /// In order.
    kept: Vec<TaskId>,
    /// Groups below this one are cleared.
    next: u64,
}

impl Purged {
    fn has_dropped(&self, task: TaskId) -> bool {
        task < self.before && self.kept.binary_search(&task).is_err()
    }
}

impl Stored {
    /// Length of the body, in bytes.
    pub(in crate::engine) fn len(&self) -> u32 {
        self.location.len
    }

    /// The payload that lies there, without its bytes.
    pub(in crate::engine) fn evicted(&self) -> Payload {
        let Self { codec, prelude_len, .. } = *self;
        Payload { codec, prelude_len, bytes: Bytes::new() }
    }

    /// The body itself.
    #[cfg(test)]
    pub(in crate::engine) fn read(&self, journal: &Journal) -> Result<Bytes, JournalError> {
        journal.bodies().read(self.location)
    }

    /// What a checkpoint says of its task.
    pub(in crate::engine) fn live_record<'a>(
        &self,
        queue: u64,
        task: TaskId,
        options: TaskOptions<'a>,
    ) -> Record<'a> {
        let Self { location, codec, prelude_len } = *self;
        Record::Live { queue, task: task.0, options, codec, prelude_len, location }
    }
}

impl Ledger {
    /// Number of tasks, with those that are not cleared away yet.
    pub(in crate::engine) fn len(&self) -> usize {
        self.len
    }

    /// Enters a task, or says anew where its body is.
    pub(in crate::engine) fn insert(&mut self, task: TaskId, stored: Stored) {
        let (group, low) = split(task);
        let Stored { location: Location { segment, offset, len }, codec, prelude_len } = stored;
        let slot = Slot { segment, offset, len, prelude_len, codec, low };
        // Most tasks are the newest of all: neither search is needed.
        let slots = match self.groups.last_entry() {
            Some(last) if *last.key() == group => last.into_mut(),
            _ => {
                // What filled the group before will mostly fill this one.
                let before = self.groups.last_key_value();
                let is_full = |slots: &Vec<Slot>| slots.len() == 1 << GROUP_BITS;
                let goes_on = before.is_some_and(|(it, slots)| it + 1 == group && is_full(slots));
                let capacity = if goes_on { 1 << GROUP_BITS } else { 0 };
                self.groups.entry(group).or_insert_with(|| Vec::with_capacity(capacity))
            }
        };
        let is_last = slots.last().is_none_or(|last| last.low < low);
        let at = if is_last { slots.len() } else { slots.partition_point(|slot| slot.low < low) };
        self.body_bytes += u64::from(len);
        match slots.get_mut(at).filter(|slot| slot.low == low) {
            Some(there) => {
                self.body_bytes -= u64::from(there.len);
                *there = slot;
            }
            None => {
                slots.insert(at, slot);
                self.len += 1;
            }
        }
    }

    pub(in crate::engine) fn get(&self, task: TaskId) -> Option<Stored> {
        if self.has_dropped(task) {
            return None;
        }
        let (group, low) = split(task);
        let slots = self.groups.get(&group)?;
        let at = slots.binary_search_by_key(&low, |slot| slot.low).ok()?;
        slots.get(at).map(Slot::stored)
    }

    pub(in crate::engine) fn remove(&mut self, task: TaskId) -> Option<Stored> {
        if self.has_dropped(task) {
            return None;
        }
        let (group, low) = split(task);
        let slots = self.groups.get_mut(&group)?;
        let at = slots.binary_search_by_key(&low, |slot| slot.low).ok()?;
        let slot = slots.remove(at);
        self.len -= 1;
        self.body_bytes -= u64::from(slot.len);
        if slots.is_empty() {
            self.groups.remove(&group);
        } else if slots.len() * 4 <= slots.capacity() {
            slots.shrink_to(slots.len() * 2);
        }
        Some(slot.stored())
    }

    /// Forgets every task below `before` for which `stays` says no.
    pub(in crate::engine) fn purge(&mut self, before: TaskId, stays: impl Fn(TaskId) -> bool) {
        let (mut gone, mut gone_bytes) = (0, 0);
        self.groups.retain(|&group, slots| {
            slots.retain(|slot| {
                let task = join(group, slot.low);
                let stays = before <= task || stays(task);
                gone += usize::from(!stays);
                gone_bytes += if stays { 0 } else { u64::from(slot.len) };
                stays
            });
            !slots.is_empty()
        });
        self.len -= gone;
        self.body_bytes -= gone_bytes;
    }

    /// The same at once, however many they are: [`clear_away`](Self::clear_away) gives back what
    /// they take. `kept` are those that stay, in order. Says how many bytes the bodies of the others
    /// have, roughly.
    pub(in crate::engine) fn purge_at_once(&mut self, before: TaskId, kept: Vec<TaskId>) -> u64 {
        let gone = self.len.saturating_sub(kept.len()) as u64;
        let gone_bytes = self.body_bytes / (self.len as u64).max(1) * gone;
        self.purged = Some(Purged { before, kept, next: 0 });
        gone_bytes
    }

    /// Whether there is something to [clear away](Self::clear_away).
    pub(in crate::engine) fn has_remains(&self) -> bool {
        self.purged.is_some()
    }

    /// Forgets some of the tasks that were purged.
    pub(in crate::engine) fn clear_away(&mut self) {
        let Some(purged) = &mut self.purged else { return };
        let mut empty = Vec::new();
        let last = split(purged.before).0;
        let mut visited = 0;
        let groups = self.groups.range_mut(purged.next..).take_while(|(group, _)| **group <= last);
        for (&group, slots) in groups.take(CLEARED_AT_ONCE) {
            slots.retain(|slot| {
                let is_gone = purged.has_dropped(join(group, slot.low));
                self.len -= usize::from(is_gone);
                self.body_bytes -= if is_gone { slot.len.into() } else { 0 };
                !is_gone
            });
            slots.shrink_to(slots.len() * 2);
            empty.extend(slots.is_empty().then_some(group));
            (visited, purged.next) = (visited + 1, group + 1);
        }
        if visited < CLEARED_AT_ONCE {
            self.purged = None;
        }
        empty.into_iter().for_each(|group| drop(self.groups.remove(&group)));
    }

    /// Forgets some of all tasks.
    pub(in crate::engine) fn tear_down(&mut self) {
        for _ in 0..CLEARED_AT_ONCE {
            self.groups.pop_first();
        }
    }

    /// Whether no task takes any memory.
    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn has_dropped(&self, task: TaskId) -> bool {
        self.purged.as_ref().is_some_and(|purged| purged.has_dropped(task))
    }

    /// Tasks from `from` on, in the order of their ids.
    pub(in crate::engine) fn from(
        &self,
        from: TaskId,
    ) -> impl Iterator<Item = (TaskId, Stored)> + '_ {
        // Of those that were purged only the few that stay are looked at.
        let purged = self.purged.as_ref();
        let start = purged.map_or(from, |purged| purged.before.max(from));
        let kept = purged.map_or(&[][..], |purged| purged.kept.as_slice());
        let kept = kept.iter().filter(move |task| (from..start).contains(*task));
        let kept = kept.filter_map(|task| Some((*task, self.get(*task)?)));
        let groups = self.groups.range(split(start).0..);
        kept.chain(groups.flat_map(stored).skip_while(move |(task, _)| *task < start))
    }

    /// All tasks, in the order of their ids.
    pub(in crate::engine) fn iter(&self) -> impl Iterator<Item = (TaskId, Stored)> + '_ {
        self.from(TaskId(0))
    }
}

impl Slot {
    fn stored(&self) -> Stored {
        let Self { segment, offset, len, prelude_len, codec, .. } = *self;
        Stored { location: Location { segment, offset, len }, codec, prelude_len }
    }
}

fn stored<'s>(
    (&group, slots): (&u64, &'s Vec<Slot>),
) -> impl Iterator<Item = (TaskId, Stored)> + use<'s> {
    slots.iter().map(move |slot| (join(group, slot.low), slot.stored()))
}

fn split(task: TaskId) -> (u64, u8) {
    let [low, ..] = task.0.to_le_bytes();
    (task.0 >> GROUP_BITS, low & ((1 << GROUP_BITS) - 1))
}

fn join(group: u64, low: u8) -> TaskId {
    TaskId((group << GROUP_BITS) | u64::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(number: u64) -> Stored {
        let number = u32::try_from(number).unwrap();
        let location = Location { segment: number, offset: number + 1, len: number + 2 };
        Stored { location, codec: Codec::Pickle(4), prelude_len: number + 3 }
    }

    #[test]
    fn what_is_entered_is_found_until_it_is_removed() {
        let mut ledger = Ledger::default();
        let ids: Vec<_> = (0..1000u64).map(|n| n * 7 % 1000).collect();
        for &id in &ids {
            ledger.insert(TaskId(id), stored(id));
            ledger.insert(TaskId(id), stored(id));
        }
        assert_eq!(ledger.len(), 1000);
        for &id in ids.iter().filter(|id| *id % 3 != 0) {
            assert_eq!(ledger.remove(TaskId(id)), Some(stored(id)));
            assert_eq!(ledger.remove(TaskId(id)), None);
        }
        assert!(ledger.iter().eq(ledger.from(TaskId(0))));
        let left: Vec<_> = ledger.from(TaskId(100)).collect();
        let expected: Vec<_> =
            (100..1000).filter(|n| n % 3 == 0).map(|n| (TaskId(n), stored(n))).collect();
        assert_eq!(left, expected);
        ledger.purge(TaskId(999), |task| task.0 == 3);
        assert_eq!(ledger.iter().map(|(task, _)| task.0).collect::<Vec<_>>(), [3, 999]);
        assert_eq!((ledger.len(), ledger.get(TaskId(3))), (2, Some(stored(3))));
    }

    #[test]
    fn what_was_purged_is_gone_at_once_and_cleared_away_group_by_group() {
        let mut ledger = Ledger::default();
        (0..1000).for_each(|id| ledger.insert(TaskId(id), stored(id)));
        let told = ledger.purge_at_once(TaskId(900), vec![TaskId(3), TaskId(500)]);
        assert!(told > 0);
        (1000..1100).for_each(|id| ledger.insert(TaskId(id), stored(id)));
        let left: Vec<_> = [3, 500].into_iter().chain(900..1100).collect();
        let mut turns = 0;
        loop {
            assert!(ledger.iter().map(|(task, _)| task.0).eq(left.iter().copied()));
            assert_eq!((ledger.get(TaskId(4)), ledger.remove(TaskId(899))), (None, None));
            assert_eq!(ledger.get(TaskId(500)), Some(stored(500)));
            if !ledger.has_remains() {
                break;
            }
            ledger.clear_away();
            turns += 1;
        }
        assert!(turns > 10, "one group at a time");
        assert_eq!(ledger.len(), left.len());
        let bytes = left.iter().map(|&id| u64::from(stored(id).location.len));
        assert_eq!(ledger.body_bytes, bytes.sum::<u64>());
    }

    #[test]
    fn a_task_of_a_long_backlog_costs_less_than_thirty_bytes() {
        let mut ledger = Ledger::default();
        for id in 0..100_000 {
            ledger.insert(TaskId(id), stored(id));
        }
        assert_eq!(size_of::<Slot>(), 20);
        assert!(ledger.heap_bytes() < 30 * 100_000, "{} bytes", ledger.heap_bytes());
    }

    #[test]
    fn a_task_that_is_alone_in_its_group_has_no_room_for_others() {
        let mut ledger = Ledger::default();
        for id in (0..100_000).step_by(1 << GROUP_BITS) {
            ledger.insert(TaskId(id), stored(id));
        }
        let bound = ledger.len() * (4 * size_of::<Slot>() + 64);
        assert!(
            ledger.heap_bytes() <= bound,
            "{} bytes of {} tasks",
            ledger.heap_bytes(),
            ledger.len()
        );
    }

    impl Ledger {
        fn heap_bytes(&self) -> usize {
            self.groups.values().map(|slots| slots.capacity() * size_of::<Slot>() + 64).sum()
        }
    }
}
