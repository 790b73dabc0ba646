//! Says what all queues hold, in portions between which calls go on.
//!
//! Counts are those of the mark, taken under one lock. Tasks are looked at later, each as it is
//! then; the log after the mark is replayed over that, and comes to the same. Only a task that got
//! another place meanwhile could be missed in both; such tasks are told at the end.
//! Invariant: the lock is held for a bounded number of tasks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use manyhands::wire::pickle::Codec;

use super::Stored;
use super::records::{settled, tell_task};
use crate::engine::{Engine, Hosted, QueueId, State};
use crate::journal::{
    Body, Checkpointed, Class, Durability, Journal, JournalError, Location, Lsn, Mark, Record,
    Straggler, Write,
};
use crate::queue::{Counts, Facts, KeyCursor, TaskId};

/// Tasks, or keys, that are looked at under one lock.
const PORTION: usize = if cfg!(test) { 3 } else { 1000 };

/// Spares whose space a checkpoint may get on a full disk, beside the reserve.
const SPARES_FREED_MAX: usize = 2;

/// A queue at the mark.
pub(in crate::engine) struct Head {
    id: QueueId,
    name: Arc<str>,
    settings: String,
    counts: Counts,
}

/// What became of a body that was to be copied forward.
enum Copied {
    /// It will lie there once this frame is written.
    To(Location, Lsn),
    /// Its task is gone, or elsewhere.
    Gone,
    NoRoom,
}

type Live = (TaskId, Stored, Option<Facts>);

impl Engine {
    /// Writes a checkpoint, and copies forward what keeps mostly empty segments. Blocks; for a
    /// thread of its own. `stops` ends it before its time.
    ///
    /// # Errors
    ///
    /// [`JournalError`]; the journal goes on without this checkpoint.
    pub(crate) fn checkpoint(&self, stops: &AtomicBool) -> Result<Checkpointed, JournalError> {
        let Some(journal) = self.journal() else { return Ok(Checkpointed::default()) };
        let mut done = self.try_checkpoint(stops);
        let mut freed = 0;
        // Only a checkpoint frees anything, so it must not fail for that.
        while freed < SPARES_FREED_MAX && done.as_ref().is_err_and(JournalError::is_full) {
            if !journal.free_spare() {
                break;
            }
            freed += 1;
            done = self.try_checkpoint(stops);
        }
        if freed > 0 {
            journal.make_spares_again();
        }
        done
    }

    fn try_checkpoint(&self, stops: &AtomicBool) -> Result<Checkpointed, JournalError> {
        let Some((journal, mark, heads)) = self.begin_checkpoint() else {
            return Ok(Checkpointed::default());
        };
        let done = journal.checkpoint_with(mark, |write| {
            let write: Write<'_> = &mut |record| {
                if stops.load(Ordering::Relaxed) {
                    return Err(JournalError::Poisoned("the server stops".into()));
                }
                write(record)
            };
            self.tell_all(&heads, write)
        });
        if done.is_err()
            && let Some(log) = &mut self.lock_kept().log
        {
            log.moved = None;
        }
        let done = done?;
        self.move_stragglers(&journal, &done.stragglers)?;
        Ok(done)
    }

    pub(in crate::engine) fn begin_checkpoint(&self) -> Option<(Journal, Mark, Vec<Head>)> {
        let mut state = self.lock_kept();
        state.append(&self.clock);
        let log = state.log.as_mut()?;
        log.moved = Some(Vec::new());
        let journal = log.journal.clone();
        let mark = journal.mark();
        let kept = state.queues.iter().filter(|(_, hosted)| hosted.queue_log.is_some());
        let mut heads: Vec<_> = kept.filter_map(|(&id, hosted)| Head::of(id, hosted)).collect();
        // The same queues make the same checkpoint, step by step.
        heads.sort_unstable_by_key(|head| head.id);
        Some((journal, mark, heads))
    }

    /// Tells what there is, and what moved meanwhile.
    pub(in crate::engine) fn tell_all(
        &self,
        heads: &[Head],
        write: Write<'_>,
    ) -> Result<(), JournalError> {
        for head in heads {
            head.tell(write)?;
            self.tell_tasks(head.id, head.counts.next_task, write)?;
            self.tell_keys(head.id, write)?;
            self.tell_settled(head.id, write)?;
        }
        self.tell_moved(heads, write)
    }

    fn tell_tasks(
        &self,
        queue: QueueId,
        before: TaskId,
        write: Write<'_>,
    ) -> Result<(), JournalError> {
        let mut from = TaskId(0);
        loop {
            let portion = self.lock_kept().live(queue, from, before);
            let Some((last, ..)) = portion.last() else { return Ok(()) };
            from = TaskId(last.0 + 1);
            for (task, stored, facts) in portion {
                tell_task((queue, task, stored), facts.as_ref(), &self.clock, write)?;
            }
        }
    }

    fn tell_keys(&self, queue: QueueId, write: Write<'_>) -> Result<(), JournalError> {
        if planted!(CheckpointWithoutKeys) {
            return Ok(());
        }
        let mut after: Option<KeyCursor> = None;
        loop {
            let portion = {
                let state = self.lock_kept();
                let hosted = state.queues.get(&queue);
                hosted.map(|hosted| hosted.queue.keys_after(after.take(), PORTION))
            };
            let Some((keys, next)) = portion else { return Ok(()) };
            for (key, until) in keys {
                let until = self.clock.unix_millis(until);
                write(&Record::Seen { queue, key: &key, until })?;
            }
            if next.is_none() {
                return Ok(());
            }
            after = next;
        }
    }

    /// Tells the tokens that settled their tasks a short while ago. Some may be younger than the mark,
    /// and are told again by the log.
    fn tell_settled(&self, queue: QueueId, write: Write<'_>) -> Result<(), JournalError> {
        let tokens: Vec<_> = {
            let state = self.lock_kept();
            let hosted = state.queues.get(&queue);
            hosted.into_iter().flat_map(|hosted| hosted.queue.settled()).collect()
        };
        tokens.into_iter().try_for_each(|token| write(&settled(queue, token)))
    }

    /// Tells the tasks that got another place since the mark, and the queues that were made for them;
    /// the log says what those have counted.
    fn tell_moved(&self, heads: &[Head], write: Write<'_>) -> Result<(), JournalError> {
        if planted!(MovedNotTold) {
            return Ok(());
        }
        let (made, moved) = {
            let mut state = self.lock_kept();
            let moved = state.log.as_mut().and_then(|log| log.moved.take()).unwrap_or_default();
            let live = moved.into_iter().filter_map(|(queue, task)| {
                let facts = state.queues.get(&queue)?.queue.facts(task);
                Some((queue, task, state.stored(queue, task)?, facts))
            });
            let live: Vec<_> = live.collect();
            let told: BTreeSet<_> = heads.iter().map(|head| head.id).collect();
            let queues: BTreeSet<_> = live.iter().map(|(queue, ..)| *queue).collect();
            let made = queues.difference(&told);
            let made = made.filter_map(|queue| Head::of(*queue, state.queues.get(queue)?));
            (made.collect::<Vec<_>>(), live)
        };
        for head in made {
            head.tell(write)?;
        }
        for (queue, task, stored, facts) in moved {
            tell_task((queue, task, stored), facts.as_ref(), &self.clock, write)?;
        }
        Ok(())
    }

    /// Copies bodies forward, as long as there is room that puts could use as well; on a full disk, in
    /// the reserve. Until a copy is
    /// written the body is read where it was, which no other checkpoint lets go meanwhile.
    fn move_stragglers(
        &self,
        journal: &Journal,
        stragglers: &[Straggler],
    ) -> Result<(), JournalError> {
        for portion in stragglers.chunks(PORTION) {
            let mut copies = Vec::new();
            let mut has_room = true;
            for straggler in portion {
                let bytes = match journal.bodies().read(straggler.location) {
                    Ok(bytes) => bytes,
                    Err(JournalError::Gone) => continue,
                    Err(error) => {
                        return Err(self.lock_kept().fail_body(straggler.location, &error));
                    }
                };
                let copied = self.lock_kept().copy_body(journal, straggler, &bytes);
                match copied {
                    Copied::To(location, _) if planted!(CopyReadTooSoon) => {
                        self.lock_kept().move_body(straggler, location);
                    }
                    Copied::To(location, lsn) => copies.push((straggler, location, lsn)),
                    Copied::Gone => {}
                    Copied::NoRoom => {
                        has_room = false;
                        break;
                    }
                }
            }
            if let Some((.., lsn)) = copies.last() {
                journal.durable(*lsn, Durability::Os).wait()?;
            }
            let mut state = self.lock_kept();
            copies.into_iter().for_each(|(straggler, to, _)| state.move_body(straggler, to));
            if !has_room {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl State {
    /// A portion of the live tasks from `from` to below `before`.
    fn live(&self, queue: QueueId, from: TaskId, before: TaskId) -> Vec<Live> {
        let Some(hosted) = self.queues.get(&queue) else { return Vec::new() };
        let Some(queue_log) = &hosted.queue_log else { return Vec::new() };
        let tasks =
            queue_log.ledger.from(from).take_while(|(task, _)| *task < before).take(PORTION);
        tasks.map(|(task, stored)| (task, stored, hosted.queue.facts(task))).collect()
    }

    /// Copies the body of a task forward if it is still where it was.
    fn copy_body(&self, journal: &Journal, straggler: &Straggler, bytes: &[u8]) -> Copied {
        let Some(Stored { codec, prelude_len, .. }) = self.straggling(straggler) else {
            return Copied::Gone;
        };
        let Straggler { queue, task, .. } = *straggler;
        let body = Body { codec, prelude_len, bytes };
        let record = Record::Moved { queue, task, body };
        if !journal.has_room(Class::Copy, record.bytes_max()) {
            return Copied::NoRoom;
        }
        let mut locations = Vec::new();
        let lsn = journal.append(&[record], Durability::Os, &mut locations);
        locations.pop().map_or(Copied::Gone, |location| Copied::To(location, lsn))
    }

    /// From now on the body is read where it was copied to.
    fn move_body(&mut self, straggler: &Straggler, location: Location) {
        let mut stored = self.straggling(straggler);
        if planted!(StragglerRevived) {
            stored = stored.or(Some(Stored { location, codec: Codec::Pickle(2), prelude_len: 0 }));
        }
        let Some(stored) = stored else { return };
        let hosted = self.queues.get_mut(&straggler.queue);
        if let Some(queue_log) = hosted.and_then(|hosted| hosted.queue_log.as_deref_mut()) {
            queue_log.ledger.insert(TaskId(straggler.task), Stored { location, ..stored });
        }
    }

    /// A task whose body is still where it was.
    fn straggling(&self, straggler: &Straggler) -> Option<Stored> {
        let stored = self.stored(straggler.queue, TaskId(straggler.task));
        stored.filter(|stored| stored.location == straggler.location)
    }
}

impl Head {
    /// Nothing of a queue without a name.
    fn of(id: QueueId, hosted: &Hosted) -> Option<Self> {
        let name = hosted.name.clone()?;
        let settings = hosted.queue.options().settings();
        Some(Self { id, name, settings, counts: hosted.queue.counts() })
    }

    fn tell(&self, write: Write<'_>) -> Result<(), JournalError> {
        write(&Record::Queue {
            queue: self.id,
            name: &self.name,
            settings: &self.settings,
            next_task: self.counts.next_task.0,
            unfinished: self.counts.unfinished,
        })
    }
}
