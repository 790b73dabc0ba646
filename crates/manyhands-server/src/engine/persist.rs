//! The log of a step: what the queues changed, written to the journal in one append.
//!
//! A step applies itself to the queues first, in memory. Its changes are appended under the same
//! lock, so the order of the log is the order of the queues; callers wait for the [`Promise`]
//! outside of the lock, before they reply. `records` turns changes into records and back, `bodies`
//! knows where payloads lie, `fetch` reads them, `checkpoint` writes the whole state down, and
//! `recovery` makes queues of all that.
//!
//! Invariants: the records of a step are in one frame, so both or neither of a result and the
//! settlement of its task are there after a crash; no reply leaves before what it says is durable;
//! queues in memory write nothing and wait for nothing.

mod bodies;
mod checkpoint;
mod fetch;
mod promise;
mod records;
mod recovery;

use std::collections::VecDeque;

pub(super) use self::bodies::{Ledger, Stored};
pub(super) use self::fetch::OnTheWay;
pub(crate) use self::fetch::Reading;
pub(crate) use self::promise::{Promise, UntilDurable};
use self::records::RecordWriter;
pub(super) use self::records::bytes_max;
pub(crate) use self::recovery::{Recovery, RecoveryError};
pub use self::recovery::{Restored, Salvaged, salvage};
use super::{Held, QueueId, State};
use crate::clock::Clock;
use crate::journal::{Durability, Lsn, OpenFrame, Rooms};
pub(super) use crate::journal::{Journal, JournalError};
use crate::queue::{self, Change, Queue, QueueOptions, Room, TaskId};

/// Most that an attempt may still say on a full disk, in bytes: that it began, how it ended, and with
/// whom.
const ATTEMPT_BYTES: u64 = 2304;
/// What the settlement of a task frees beside its body, in bytes: a small result is always kept.
const SETTLED_BYTES: u64 = 256;
/// Payloads of one durable queue that stay in memory, in bytes. Others are read when their turn
/// comes.
const RESIDENT_BYTES: u64 = if cfg!(test) { 512 } else { 4 << 20 };

/// The journal, and what a step has to write to it.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) journal: Journal,
    /// What changed, in order.
    changes: Vec<Change>,
    /// The queues that those are of: where the changes of each end.
    ends: Vec<(QueueId, usize)>,
    /// Most that their records take.
    bytes_max: usize,
    /// The highest level of the queues that changed in this step.
    durability: Durability,
    /// What the replies to this step have to wait for.
    need: Need,
    /// What there is still room for in this step.
    room: Option<Room>,
    /// Leased tasks of durable queues: each will write at least one more record.
    leased: usize,
    /// Whether a task was not handed out for want of room.
    pub(super) lacks_leases: bool,
    /// Tasks that got another place since a checkpoint began to be written.
    pub(super) moved: Option<Vec<(QueueId, TaskId)>>,
    /// The dead letter whose body the next put takes along.
    redriven: Option<(QueueId, TaskId)>,
}

/// What the journal holds of one queue.
#[derive(Debug)]
pub(super) struct QueueLog {
    pub(super) durability: Durability,
    pub(super) ledger: Ledger,
    /// Puts that may not be durable yet: tasks from this one on are in this frame.
    fresh: VecDeque<(TaskId, Lsn)>,
    /// The last frame with a record of it.
    pub(super) last: Lsn,
}

impl QueueLog {
    /// Nothing if a queue with these options is in memory only.
    pub(super) fn of(options: &QueueOptions) -> Option<Box<Self>> {
        let durability = match options.durability {
            Some(queue::Durability::Memory) => return None,
            Some(queue::Durability::Os) => Durability::Os,
            Some(queue::Durability::Disk) | None => Durability::Disk,
        };
        Some(Box::new(Self {
            durability,
            ledger: Ledger::default(),
            fresh: VecDeque::new(),
            last: Lsn::default(),
        }))
    }

    /// A task is in the queue, by a record of this frame, and its body is there.
    fn enter(&mut self, task: TaskId, stored: Stored, frame: &OpenFrame<'_>) {
        self.ledger.insert(task, stored);
        let lsn = frame.lsn();
        self.last = lsn;
        self.forget_durable(frame.reached(self.durability));
        if self.fresh.back().is_none_or(|(_, last)| *last < lsn) {
            self.fresh.push_back((task, lsn));
        }
    }

    /// What the put of a task has to wait for, if it is not durable already.
    fn promise_of(&mut self, task: TaskId, journal: &Journal) -> Promise {
        if self.fresh.is_empty() {
            return Promise::NOTHING;
        }
        self.forget_durable(journal.reached(self.durability));
        let after = self.fresh.partition_point(|(from, _)| *from <= task);
        let put = after.checked_sub(1).and_then(|at| self.fresh.get(at));
        put.map_or(Promise::NOTHING, |(_, lsn)| Promise::of(*lsn, self.durability))
    }

    fn forget_durable(&mut self, reached: Lsn) {
        while self.fresh.front().is_some_and(|(_, lsn)| *lsn <= reached) {
            self.fresh.pop_front();
        }
    }
}

impl Log {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            changes: Vec::new(),
            ends: Vec::new(),
            bytes_max: 0,
            durability: Durability::Os,
            need: Need::Nothing,
            room: None,
            leased: 0,
            lacks_leases: false,
            moved: None,
            redriven: None,
        }
    }

    pub(super) fn record_declared(&mut self, at: (QueueId, Durability), queue: &Queue) {
        self.record(at, Change::Declared(queue.counts()));
    }

    pub(super) fn record_dropped(&mut self, queue: QueueId) {
        self.record((queue, Durability::Os), Change::Dropped);
    }

    fn record(&mut self, at: (QueueId, Durability), change: Change) {
        self.changes.push(change);
        self.account(at, self.changes.len() - 1);
    }

    /// Sees what the changes from `begin` on ask for, which are of one queue.
    fn account(&mut self, (queue, durability): (QueueId, Durability), begin: usize) {
        let changes = self.changes.get(begin..).unwrap_or_default();
        if changes.is_empty() {
            return;
        }
        for change in changes {
            self.bytes_max += bytes_max(change);
            let need = Need::of(change);
            self.need = if planted!(LastChangeDecides) { need } else { self.need.max(need) };
        }
        self.durability = self.durability.max(durability);
        self.ends.push((queue, self.changes.len()));
    }

    /// The next put is the redrive of this dead letter, whose body stays where it is.
    pub(super) fn redrive(&mut self, letter: Option<(QueueId, TaskId)>) {
        self.redriven = letter;
    }

    /// The list for the changes of a queue, behind those there are, and the room that is left in this
    /// step.
    pub(super) fn open(&mut self) -> (Vec<Change>, Room) {
        let room = *self.room.get_or_insert_with(|| {
            let Rooms { puts, results, leases } = self.journal.rooms();
            // What is leased already must be able to say how it ended.
            let more = |bytes: u64| (bytes / ATTEMPT_BYTES).saturating_sub(self.leased as u64);
            Room { puts, results, leases: leases.map_or(u64::MAX, more) }
        });
        (std::mem::take(&mut self.changes), room)
    }

    /// A queue has as many tasks with somebody as it has `now`.
    pub(super) fn count_leased(&mut self, before: usize, now: usize) {
        self.leased = (self.leased + now).saturating_sub(before);
    }

    /// Takes the list back, with the changes that a queue recorded from `begin` on, and the room that is
    /// left.
    pub(super) fn close(
        &mut self,
        at: (QueueId, Durability),
        (changes, begin): (Vec<Change>, usize),
        room: Room,
    ) {
        self.room = Some(room);
        self.lacks_leases |= room.leases == 0;
        self.changes = changes;
        let recorded = self.changes.get_mut(begin..).unwrap_or_default();
        if self.redriven.is_some() {
            for change in &mut *recorded {
                if let Change::Put { task, .. } = *change
                    && let Some(letter) = self.redriven.take()
                {
                    *change = Change::Redriven { letter, task };
                }
            }
        }
        if !recorded.iter().all(|change| is_written(change, room)) {
            let recorded = self.changes.drain(begin..);
            let written: Vec<_> = recorded.filter(|change| is_written(change, room)).collect();
            self.changes.extend(written);
        }
        self.account(at, begin);
    }
}

/// Whether a restart needs to know of a change.
fn is_written(change: &Change, room: Room) -> bool {
    match change {
        // After a restart no session has a lease, and every queue is open.
        Change::Leased { hold: None, .. } | Change::ShutDown { .. } => false,
        Change::Leased { .. } if planted!(LeaseForgotten) => false,
        Change::Extended { .. } if planted!(ExtensionForgotten) => false,
        // Somebody could go on with that for ever. After a restart it runs as long as before.
        Change::Extended { .. } if room.leases == 0 => false,
        _ => true,
    }
}

/// What the replies to a step have to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    Writing,
    All,
}

impl Need {
    fn of(change: &Change) -> Self {
        match change {
            // Nobody is told.
            Change::Declared(_) | Change::Dropped => Self::Nothing,
            // One that is lost in a power cut only makes its task ready sooner.
            Change::Leased { .. } | Change::Extended { .. } => Self::Writing,
            _ => Self::All,
        }
    }
}

impl State {
    /// Appends the changes of this step to the journal. Callers wait for the promise, outside of
    /// the lock, before they reply.
    pub(super) fn append(&mut self, clock: &Clock) -> Promise {
        let Some(log) = self.log.as_mut() else { return Promise::NOTHING };
        log.room = None;
        if log.changes.is_empty() {
            return Promise::NOTHING;
        }
        let queues = &mut self.queues;
        let durability = std::mem::replace(&mut log.durability, Durability::Os);
        let need = std::mem::replace(&mut log.need, Need::Nothing);
        // Nobody waits for the sync of anything else.
        let durability = if need == Need::All { durability } else { Durability::Os };
        let bytes_max = std::mem::take(&mut log.bytes_max);
        let Log { journal, changes, ends, moved, .. } = &mut **log;
        let lsn = journal.append_with(bytes_max, durability, |frame| {
            let now = self.step.now;
            let mut writer = RecordWriter::new(queues, clock, now, frame, moved);
            let mut begin = 0;
            let mut changes = changes.drain(..);
            for (queue, end) in ends.drain(..) {
                for change in changes.by_ref().take(end - begin) {
                    writer.write(queue, change);
                }
                writer.advance_last(queue);
                begin = end;
            }
            writer.finish();
        });
        match need {
            Need::Nothing => Promise::NOTHING,
            Need::Writing => Promise::of(lsn, Durability::Os),
            Need::All => Promise::of(lsn, durability),
        }
    }

    /// What a reply that hands out a task has to wait for: its put.
    pub(super) fn promise_of(&mut self, queue: QueueId, task: TaskId) -> Promise {
        let Some(log) = self.log.as_ref() else { return Promise::NOTHING };
        let queue_log = self.queues.get_mut(&queue).and_then(|hosted| hosted.queue_log.as_mut());
        queue_log.map_or(Promise::NOTHING, |queue_log| queue_log.promise_of(task, &log.journal))
    }

    /// What a reply about the whole queue has to wait for: its last record.
    pub(super) fn promise_of_all(&self, queue: QueueId) -> Promise {
        let queue_log = self.queues.get(&queue).and_then(|hosted| hosted.queue_log.as_ref());
        queue_log
            .map_or(Promise::NOTHING, |queue_log| Promise::of(queue_log.last, queue_log.durability))
    }

    /// Whether a queue is on disk.
    pub(super) fn is_on_disk(&self, queue: QueueId) -> bool {
        self.queues.get(&queue).is_some_and(|hosted| hosted.queue_log.is_some())
    }

    /// Whether a queue can do with payloads that are on disk.
    pub(super) fn holds_bodies(&self, queue: QueueId) -> bool {
        let hosted = self.queues.get(&queue).filter(|hosted| hosted.queue_log.is_some());
        hosted.is_some_and(|hosted| !hosted.queue.needs_bytes())
    }

    /// What is freed on the disk by the settlement of a task, in bytes.
    pub(super) fn freed_by(&self, Held { queue, token }: Held) -> u64 {
        let stored = self.stored(queue, token.task);
        stored.map_or(0, |stored| SETTLED_BYTES + u64::from(stored.len()))
    }

    /// Where the body of a task is, if it is on disk.
    pub(super) fn stored(&self, queue: QueueId, task: TaskId) -> Option<Stored> {
        self.queues.get(&queue)?.queue_log.as_ref()?.ledger.get(task)
    }
}

impl State {
    /// Payloads of a queue on disk stay in memory where those of its dead letters must be there: a
    /// task is given up in the middle of a step, which cannot wait for the disk.
    pub(super) fn keep_letters_in_memory(&mut self) {
        let ids: Vec<_> = self.queues.keys().copied().collect();
        for id in ids {
            if self.needs_letters_in_memory(id)
                && let Some(hosted) = self.queues.get_mut(&id)
            {
                hosted.queue.keep_resident(u64::MAX);
            }
        }
    }

    pub(super) fn needs_letters_in_memory(&self, queue: QueueId) -> bool {
        let hosted = self.queues.get(&queue).filter(|hosted| hosted.queue_log.is_some());
        let letters = hosted.and_then(|hosted| {
            let name = hosted.name.as_deref()?;
            self.directory.names.get(hosted.queue.options().dead_letters_of(name).as_str())
        });
        letters.is_some_and(|letters| !self.holds_bodies(*letters))
    }
}

/// Lets payloads of a queue that is kept on disk leave memory.
pub(super) fn spill(queue: &mut Queue) {
    queue.keep_resident(RESIDENT_BYTES);
}
