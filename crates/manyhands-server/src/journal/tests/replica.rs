//! What records come to: the least engine there can be, which judges the journal.

use std::collections::BTreeMap;

use bytes::Bytes;
use manyhands::wire::pickle::Codec;

use crate::journal::{Bodies, Body, Entry, Location, Record, TaskOptions};

/// Queue and task.
pub(super) type Key = (u64, u64);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Replica {
    pub(super) tasks: BTreeMap<Key, Kept>,
    next_tasks: BTreeMap<u64, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) attempt: u32,
    pub(super) codec: Codec,
    pub(super) body: Bytes,
    pub(super) location: Location,
}

pub(super) fn body(bytes: &[u8]) -> Body<'_> {
    Body { codec: Codec::Pickle(4), prelude_len: 0, bytes }
}

impl Replica {
    pub(super) fn next_task(&self, queue: u64) -> u64 {
        self.next_tasks.get(&queue).copied().unwrap_or_default()
    }

    pub(super) fn apply(&mut self, record: &Record<'_>, location: Option<Location>) {
        match record {
            Record::Epoch { .. }
            | Record::Closed
            | Record::Seen { .. }
            | Record::Leased { .. }
            | Record::Lasts { .. }
            | Record::Settled { .. }
            | Record::Done { .. } => {}
            Record::Turned { queue, task, turned } => {
                let kept = self.tasks.remove(&(*queue, *task)).unwrap();
                self.next_tasks.insert(*queue, turned + 1);
                self.tasks.insert((*queue, *turned), kept);
            }
            Record::Expired { queue, task } => drop(self.tasks.remove(&(*queue, *task)).unwrap()),
            Record::Queue { queue, next_task, .. } => {
                self.next_tasks.insert(*queue, *next_task);
            }
            Record::Removed { queue } => {
                self.next_tasks.remove(queue);
                self.tasks.retain(|(owner, _), _| owner != queue);
            }
            Record::Put { queue, task, options, body } => {
                self.keep((*queue, *task), options, body, location.unwrap());
            }
            Record::Ack { queue, task, result, .. } => {
                self.tasks.remove(&(*queue, *task)).expect("an ack is of a task that is there");
                if let Some(result) = result {
                    let key = (result.queue, result.task);
                    self.keep(key, &result.options, &result.body, location.unwrap());
                }
            }
            Record::Returned { queue, task, attempt, .. } => {
                self.tasks.get_mut(&(*queue, *task)).unwrap().attempt = *attempt;
            }
            Record::Dead { queue, task, to_queue, to_task, .. }
            | Record::Redriven { queue, task, to_queue, to_task } => {
                let kept = self.tasks.remove(&(*queue, *task)).unwrap();
                self.next_tasks.insert(*to_queue, to_task + 1);
                self.tasks.insert((*to_queue, *to_task), kept);
            }
            Record::Purged { queue, before, kept } => self
                .tasks
                .retain(|(owner, task), _| owner != queue || task >= before || kept.contains(task)),
            Record::Moved { queue, task, body } => {
                let kept = self.tasks.get_mut(&(*queue, *task)).unwrap();
                assert_eq!((kept.codec, &kept.body[..]), (body.codec, body.bytes));
                kept.location = location.unwrap();
            }
            Record::Live { queue, task, options, codec, location, .. } => {
                let (codec, body, location) = (*codec, Bytes::new(), *location);
                let kept = Kept { attempt: options.attempt, codec, body, location };
                self.tasks.insert((*queue, *task), kept);
            }
        }
    }

    /// As [`Self::apply`]; bodies of a checkpoint are read when all is there.
    pub(super) fn replay(&mut self, entry: &Entry<'_>) {
        if let Record::Moved { queue, task, body } = &entry.record {
            self.tasks.get_mut(&(*queue, *task)).unwrap().body = Bytes::copy_from_slice(body.bytes);
        }
        self.apply(&entry.record, entry.location);
    }

    /// Reads every body where it is said to lie.
    pub(super) fn read(&mut self, bodies: &Bodies) {
        for (key, kept) in &mut self.tasks {
            let body =
                bodies.read(kept.location).unwrap_or_else(|error| panic!("{key:?}: {error}"));
            assert!(kept.body.is_empty() || kept.body == body, "another body of {key:?}");
            kept.body = body;
        }
    }

    /// What a client could see of it.
    pub(super) fn facts(&self) -> Vec<(Key, u32, Codec, Bytes)> {
        let fact = |(key, kept): (&Key, &Kept)| (*key, kept.attempt, kept.codec, kept.body.clone());
        self.tasks.iter().map(fact).collect()
    }

    pub(super) fn checkpoint(&self) -> impl Iterator<Item = Record<'_>> {
        let queues = self.next_tasks.iter().map(|(&queue, &next_task)| Record::Queue {
            queue,
            name: "q",
            settings: "",
            next_task,
            unfinished: 0,
        });
        let tasks = self.tasks.iter().map(|(&(queue, task), kept)| Record::Live {
            queue,
            task,
            options: TaskOptions { attempt: kept.attempt, ..TaskOptions::default() },
            codec: kept.codec,
            prelude_len: 0,
            location: kept.location,
        });
        queues.chain(tasks)
    }

    fn keep(&mut self, key: Key, options: &TaskOptions<'_>, body: &Body<'_>, location: Location) {
        let (queue, task) = key;
        assert_eq!(self.next_task(queue), task, "no task is put twice");
        self.next_tasks.insert(queue, task + 1);
        let (attempt, codec) = (options.attempt, body.codec);
        let body = Bytes::copy_from_slice(body.bytes);
        self.tasks.insert(key, Kept { attempt, codec, body, location });
    }
}
