//! Copies all that is whole of a damaged data directory into a new one.
//!
//! The directory is read as at a start, with guesses where records are missing; what that comes to is
//! written to a new journal as if it were put there now. Invariant: what is left out is named.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Found, Known, Recovery, queues_of};
use crate::clock::Clock;
use crate::engine::persist::Stored;
use crate::engine::persist::records::{settled, tell_task};
use crate::engine::{NoQueue, QueueId, check};
use crate::journal::{
    Body, Durability, Entry, JournalError, Location, NameOfQueue, OpenSegment, Opened, Record,
    Wreck,
};
use crate::queue::{QueueOptions, TaskId};

/// How much is gathered before it is written, in bytes.
const PORTION_BYTES: usize = 1 << 20;

/// What was copied, and what was not.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Salvaged {
    /// Queues that were copied.
    pub queues: usize,
    /// Tasks in them.
    pub tasks: usize,
    /// Parts of the log and of checkpoints that are damaged.
    pub damages: Vec<JournalError>,
    /// Tasks that were left out because their bodies are damaged.
    pub bodies: Vec<JournalError>,
    /// Queues whose names and settings may be wrong.
    pub nameless: Vec<String>,
}

/// What must be guessed where records are missing.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Queues whose names and settings are lost.
    nameless: BTreeSet<QueueId>,
    /// Records that make no sense.
    pub(super) damages: Vec<JournalError>,
}

/// Copies all that is whole of the journal in `directory`, which no server uses, to a new one in `to`,
/// which must not have one. `directory` is not changed.
///
/// # Errors
///
/// [`JournalError`]: nothing of it can be read, a newer version wrote it, or `to` cannot be written.
/// What is in `to` is of no use then.
pub fn salvage(directory: &Path, to: &Path) -> Result<Salvaged, JournalError> {
    let mut wreck = Wreck::open(directory)?;
    let mut recovery = Recovery { gaps: wreck.has_gaps.then(Gaps::default), ..Recovery::default() };
    wreck.visit(&mut |entry: Entry<'_>| recovery.visit(&entry))?;
    if let Some(error) = recovery.error {
        return Err(error);
    }
    let gaps = recovery.complete(&wreck.names);
    let mut copy = Copy {
        wreck: &wreck,
        open: None,
        to: wreck.successor(to)?,
        clock: Clock::start(),
        gathered: 0,
        done: Salvaged::default(),
    };
    for (id, found) in recovery.queues {
        if gaps.nameless.contains(&id) {
            copy.done.nameless.push(found.name.clone());
        }
        copy.queue(id, found)?;
    }
    let Copy { mut to, mut done, .. } = copy;
    to.writer.close()?;
    done.damages = wreck.damages.into_iter().chain(gaps.damages).collect();
    Ok(done)
}

impl Salvaged {
    /// Whether nothing was left out, and nothing guessed.
    pub fn is_whole(&self) -> bool {
        self.damages.is_empty() && self.bodies.is_empty() && self.nameless.is_empty()
    }
}

impl Recovery {
    /// Makes sense of a record although some before it may be missing.
    pub(super) fn bridge(&mut self, record: &Record<'_>) {
        for queue in queues_of(record).into_iter().flatten() {
            self.last_queue = self.last_queue.max(queue);
            self.queues.entry(queue).or_insert_with(|| {
                self.gaps.get_or_insert_default().nameless.insert(queue);
                Found { name: format!("salvaged.{queue}"), ..Found::default() }
            });
        }
        match *record {
            Record::Queue { queue, name, .. } => {
                self.gaps.get_or_insert_default().nameless.remove(&queue);
                // One that had the name before was removed.
                self.queues.retain(|id, found| *id == queue || found.name != name);
            }
            // Only a live task is copied forward.
            Record::Moved { queue, task, ref body } => {
                if let Some(found) = self.queues.get_mut(&queue)
                    && found.ledger.get(TaskId(task)).is_none()
                {
                    found.ledger.insert(TaskId(task), placeholder(body));
                }
            }
            _ => {}
        }
    }

    /// Fills the gaps as well as it can be done.
    fn complete(&mut self, names: &[NameOfQueue]) -> Gaps {
        let mut gaps = self.gaps.take().unwrap_or_default();
        // Queues of which nothing is left but that they were.
        self.queues.retain(|id, found| !found.ledger.is_empty() || !gaps.nameless.contains(id));
        gaps.nameless.retain(|id| self.queues.contains_key(id));
        for NameOfQueue { queue, name, settings } in names {
            let Ok(options) = QueueOptions::from_settings(settings) else { continue };
            let is_taken = self.queues.values().any(|found| found.name == *name);
            let is_good = !is_taken && is_name(name, &options) && gaps.nameless.contains(queue);
            if let Some(found) = self.queues.get_mut(queue).filter(|_| is_good) {
                (found.name, found.options) = (name.clone(), options);
            }
        }
        for (id, found) in &mut self.queues {
            if gaps.nameless.contains(id) {
                found.unfinished = found.ledger.len() as u64;
            }
            let last = found.ledger.iter().last();
            found.next_task = last.map_or(0, |(task, _)| task.0 + 1).max(found.next_task);
        }
        gaps
    }
}

fn is_name(name: &str, options: &QueueOptions) -> bool {
    let checked: Result<(), NoQueue> = check(name, options);
    checked.is_ok()
}

/// Whatever the record says of the body's place, it is told together with the record.
fn placeholder(body: &Body<'_>) -> Stored {
    let location = Location { segment: 0, offset: 0, len: 0 };
    super::stored(body, location)
}

/// Writes to the new directory.
struct Copy<'a> {
    wreck: &'a Wreck,
    /// The segment of the last body.
    open: Option<OpenSegment>,
    to: Opened,
    clock: Clock,
    /// Bytes appended and not yet written.
    gathered: usize,
    done: Salvaged,
}

impl Copy<'_> {
    fn queue(&mut self, id: QueueId, mut found: Found) -> Result<(), JournalError> {
        self.head(id, &found)?;
        for (task, stored) in found.ledger.iter() {
            let body = match self.wreck.body(stored.location, &mut self.open) {
                Ok(body) => body,
                Err(error) => {
                    let error = error.of_body(stored.location, &found.name, task.0);
                    self.done.bodies.push(error);
                    found.unfinished = found.unfinished.saturating_sub(1);
                    continue;
                }
            };
            let facts = found.known.remove(&task).map(|known| {
                let Known { mut facts, not_before, expires } = known;
                facts.not_before = not_before.map(|unix| self.clock.time_of(unix));
                facts.expires = expires.map(|unix| self.clock.time_of(unix));
                facts
            });
            let Self { to, gathered, clock, .. } = self;
            tell_task((id, task, stored), facts.as_ref(), clock, &mut |record| {
                append(to, gathered, &put(record, &body));
                Ok(())
            })?;
            self.write_some()?;
            self.done.tasks += 1;
        }
        for (key, until) in &found.keys {
            self.append(&Record::Seen { queue: id, key, until: *until })?;
        }
        for token in &found.settled {
            self.append(&settled(id, *token))?;
        }
        // What was counted with every put is not what was counted then.
        self.head(id, &found)?;
        self.done.queues += 1;
        Ok(())
    }

    fn head(&mut self, queue: QueueId, found: &Found) -> Result<(), JournalError> {
        self.append(&Record::Queue {
            queue,
            name: &found.name,
            settings: &found.options.settings(),
            next_task: found.next_task,
            unfinished: found.unfinished,
        })
    }

    fn append(&mut self, record: &Record<'_>) -> Result<(), JournalError> {
        append(&self.to, &mut self.gathered, record);
        self.write_some()
    }

    fn write_some(&mut self) -> Result<(), JournalError> {
        if self.gathered >= PORTION_BYTES {
            self.gathered = 0;
            while self.to.writer.step()? {}
        }
        Ok(())
    }
}

fn append(to: &Opened, gathered: &mut usize, record: &Record<'_>) {
    *gathered += record.bytes_max();
    to.journal.append(std::slice::from_ref(record), Durability::Os, &mut Vec::new());
}

/// What a checkpoint says of a task, said as if it were put now.
fn put<'a>(record: &Record<'a>, bytes: &'a [u8]) -> Record<'a> {
    match *record {
        Record::Live { queue, task, options, codec, prelude_len, .. } => {
            let body = Body { codec, prelude_len, bytes };
            Record::Put { queue, task, options, body }
        }
        ref record => record.clone(),
    }
}
