//! What queues change becomes records of the journal, one append for each step of the engine.
//!
//! A step applies itself to the queues first, in memory; what it changed is written down under the
//! same lock, so that the order of the log is the order of the queues; who is answered waits for
//! that outside of the lock, by a [`Promise`]. Invariants: the records of a step are in one frame,
//! so both or neither of a result and the settlement of its task are there after a crash; no reply
//! leaves before what it says is durable; queues in memory write nothing and wait for nothing.

mod bodies;
mod checkpoint;
mod fetch;
mod records;
mod recovery;

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use manyhands::wire::pickle::Payload;

pub(super) use self::bodies::{Ledger, Stored};
pub(super) use self::fetch::OnTheWay;
pub(crate) use self::fetch::Reading;
use self::records::{cause_text, note, priority_bytes};
pub(crate) use self::recovery::{Recovery, RecoveryError};
pub use self::recovery::{Restored, Salvaged, salvage};
use super::{Hosted, InHand, Promise, QueueId, State};
use crate::clock::Clock;
use crate::journal::{
    Body, Durability, Journal, JournalError, Lsn, OpenFrame, Record, Rooms, TaskOptions,
};
use crate::queue::{
    self, Cause, Change, Facts, Queue, QueueOptions, Room, TaskId, Terms, Time, Token,
};

/// Most that the record of a queue takes, in bytes: its name and settings are bounded.
const DECLARED_BYTES: usize = 2048;
/// Most that any other record takes beside texts and payloads, in bytes; that of a put with terms more.
const RECORD_BYTES: usize = 48;
const TERMS_BYTES: usize = 96;
/// What an attempt may still say on a full disk, in bytes: that it began, and how it ended.
const ATTEMPT_BYTES: u64 = 512;
/// What the settlement of a task frees beside its body, in bytes: a small result is always kept.
const SETTLED_BYTES: u64 = 256;
/// Payloads of one durable queue that stay in memory, in bytes. Others are read when their turn
/// comes.
const RESIDENT_BYTES: u64 = if cfg!(test) { 512 } else { 4 << 20 };

/// The journal, and what a step has to write to it.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) journal: Journal,
    noted: Vec<(QueueId, Noted)>,
    bytes_max: usize,
    /// The highest level of the queues that changed in this step.
    durability: Durability,
    /// What who is told of this step has to wait for.
    need: Need,
    /// What there is still room for in this step.
    room: Option<Room>,
    /// Tasks of queues on disk that are with somebody: each has something to say yet.
    leased: usize,
    /// Whether a task was not handed out for want of room.
    pub(super) lacks_leases: bool,
    /// Tasks that got another place since a checkpoint began to be written.
    pub(super) moved: Option<Vec<(QueueId, TaskId)>>,
    /// The dead letter whose body the next put takes along.
    redriven: Option<(QueueId, TaskId)>,
    /// An empty list, to be filled again.
    spare: Vec<Change>,
}

/// What is to be written.
#[derive(Debug)]
enum Noted {
    /// The queue is there, with these options.
    Declared(Counts),
    Changed(Change),
    /// A dead letter, of the first queue, is this task now.
    Redriven((QueueId, TaskId), TaskId),
    /// All that was not with anybody is gone; these tasks were with somebody.
    Cleared(Counts, Vec<TaskId>),
    /// The queue is not kept any more.
    Dropped,
}

/// What a queue has counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub(super) next_task: TaskId,
    pub(super) unfinished: u64,
}

impl Counts {
    pub(super) fn of(queue: &Queue) -> Self {
        Self { next_task: queue.next_task(), unfinished: queue.unfinished() }
    }
}

/// What the journal holds of one queue.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) durability: Durability,
    pub(super) ledger: Ledger,
    /// Puts that may not be durable yet: tasks from this one on are in this frame.
    fresh: VecDeque<(TaskId, Lsn)>,
    /// The last frame with a record of it.
    pub(super) last: Lsn,
}

impl Books {
    /// The books of a queue with these options; none if it is in memory only.
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
            noted: Vec::new(),
            bytes_max: 0,
            durability: Durability::Os,
            need: Need::Nothing,
            room: None,
            leased: 0,
            lacks_leases: false,
            moved: None,
            redriven: None,
            spare: Vec::new(),
        }
    }

    pub(super) fn note_declared(&mut self, at: (QueueId, Durability), queue: &Queue) {
        self.note(at, Noted::Declared(Counts::of(queue)));
    }

    pub(super) fn note_dropped(&mut self, queue: QueueId) {
        self.note((queue, Durability::Os), Noted::Dropped);
    }

    fn note(&mut self, (queue, durability): (QueueId, Durability), noted: Noted) {
        self.bytes_max += noted.bytes_max();
        self.durability = self.durability.max(durability);
        self.need = self.need.max(noted.need());
        self.noted.push((queue, noted));
    }

    /// The next put is of this dead letter, whose body stays where it is.
    pub(super) fn redrive(&mut self, letter: Option<(QueueId, TaskId)>) {
        self.redriven = letter;
    }

    /// Where the next change of a queue is to be noted, and how much room there is for puts.
    pub(super) fn open(&mut self) -> (Vec<Change>, Room) {
        let room = *self.room.get_or_insert_with(|| {
            let Rooms { puts, results, leases } = self.journal.rooms();
            // What is leased already must be able to say how it ended.
            let more = |bytes: u64| (bytes / ATTEMPT_BYTES).saturating_sub(self.leased as u64);
            Room { puts, results, leases: leases.map_or(u64::MAX, more) }
        });
        (std::mem::take(&mut self.spare), room)
    }

    /// A queue has as many tasks with somebody as it has `now`.
    pub(super) fn note_leased(&mut self, before: usize, now: usize) {
        self.leased = (self.leased + now).saturating_sub(before);
    }

    /// What the change was.
    pub(super) fn close(
        &mut self,
        at: (QueueId, Durability),
        queue: &Queue,
        mut changes: Vec<Change>,
        room: Room,
    ) {
        self.room = Some(room);
        self.lacks_leases |= room.leases == 0;
        for change in changes.drain(..) {
            match change {
                // Who holds a task by a session holds nothing after a restart, and a queue is open.
                Change::Leased { hold: None, .. } | Change::ShutDown { .. } => {}
                Change::Leased { .. } if planted!(LeaseForgotten) => {}
                Change::Extended { .. } if planted!(ExtensionForgotten) => {}
                // Somebody could go on with that for ever. After a restart it runs as long as before.
                Change::Extended { .. } if room.leases == 0 => {}
                Change::Cleared => {
                    let keeps = !planted!(PurgeForgetsLeased);
                    let kept = queue.leased_tasks().filter(|_| keeps).collect();
                    self.note(at, Noted::Cleared(Counts::of(queue), kept));
                }
                Change::Put { task, payload, terms } => {
                    let noted = match self.redriven.take() {
                        Some(letter) => Noted::Redriven(letter, task),
                        None => Noted::Changed(Change::Put { task, payload, terms }),
                    };
                    self.note(at, noted);
                }
                change => self.note(at, Noted::Changed(change)),
            }
        }
        self.spare = changes;
    }
}

/// What who is told of a record has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    Writing,
    All,
}

impl Noted {
    fn need(&self) -> Need {
        match self {
            // Nobody is told.
            Self::Declared(_) | Self::Dropped => Need::Nothing,
            // One that is lost in a power cut only makes its task ready sooner.
            Self::Changed(Change::Leased { .. } | Change::Extended { .. }) => Need::Writing,
            Self::Changed(_) | Self::Redriven(..) | Self::Cleared(..) => Need::All,
        }
    }

    fn bytes_max(&self) -> usize {
        RECORD_BYTES
            + match self {
                Self::Changed(Change::Put { payload, terms, .. }) => {
                    let terms = terms.as_deref().map_or(0, |terms| {
                        let key = terms.key.as_ref().map_or(0, |key| key.len());
                        TERMS_BYTES + key + note(terms.origin.as_deref(), &[], None).len()
                    });
                    payload.bytes.len() + terms
                }
                Self::Changed(Change::Returned { cause, .. } | Change::Dead { cause, .. }) => {
                    2 * RECORD_BYTES + cause_text(cause).len()
                }
                // Another record says how long it lasts.
                Self::Redriven(..) => RECORD_BYTES,
                Self::Changed(_) | Self::Dropped => 0,
                Self::Declared(_) => DECLARED_BYTES,
                // Each is a number of up to ten bytes.
                Self::Cleared(_, kept) => DECLARED_BYTES + 10 * kept.len(),
            }
    }
}

impl State {
    /// Writes down what this step has changed. What it comes to is to be waited for, outside of the
    /// lock, before anybody is told.
    pub(super) fn append(&mut self, clock: &Clock) -> Promise {
        let Some(log) = self.log.as_mut() else { return Promise::NOTHING };
        log.room = None;
        if log.noted.is_empty() {
            return Promise::NOTHING;
        }
        let queues = &mut self.queues;
        let durability = std::mem::replace(&mut log.durability, Durability::Os);
        let need = std::mem::replace(&mut log.need, Need::Nothing);
        let bytes_max = std::mem::take(&mut log.bytes_max);
        let Log { journal, noted, moved, .. } = &mut **log;
        let lsn = journal.append_with(bytes_max, durability, |frame| {
            let now = self.step.now;
            let mut scribe = Scribe { queues, clock, now, frame, moved, dying: Vec::new() };
            for (queue, noted) in noted.drain(..) {
                scribe.write(queue, noted);
            }
            scribe.finish();
        });
        match need {
            Need::Nothing => Promise::NOTHING,
            Need::Writing => Promise::of(lsn, Durability::Os),
            Need::All => Promise::of(lsn, durability),
        }
    }

    /// What whoever is told of a task has to wait for: its put.
    pub(super) fn promise_of(&mut self, queue: QueueId, task: TaskId) -> Promise {
        let Some(log) = self.log.as_ref() else { return Promise::NOTHING };
        let books = self.queues.get_mut(&queue).and_then(|hosted| hosted.books.as_mut());
        books.map_or(Promise::NOTHING, |books| books.promise_of(task, &log.journal))
    }

    /// What whoever is told of all that a queue has been through has to wait for.
    pub(super) fn promise_of_all(&self, queue: QueueId) -> Promise {
        let books = self.queues.get(&queue).and_then(|hosted| hosted.books.as_ref());
        books.map_or(Promise::NOTHING, |books| Promise::of(books.last, books.durability))
    }

    /// Whether a queue is on disk.
    pub(super) fn is_kept(&self, queue: QueueId) -> bool {
        self.queues.get(&queue).is_some_and(|hosted| hosted.books.is_some())
    }

    /// Whether a queue can do with payloads that are on disk.
    pub(super) fn holds_bodies(&self, queue: QueueId) -> bool {
        let hosted = self.queues.get(&queue).filter(|hosted| hosted.books.is_some());
        hosted.is_some_and(|hosted| !hosted.queue.needs_bytes())
    }

    /// What is freed on the disk by the settlement of a task, in bytes.
    pub(super) fn freed_by(&self, InHand { queue, token }: InHand) -> u64 {
        let stored = self.stored(queue, token.task);
        stored.map_or(0, |stored| SETTLED_BYTES + u64::from(stored.location.len))
    }

    /// Where the body of a task is, if it is on disk.
    pub(super) fn stored(&self, queue: QueueId, task: TaskId) -> Option<Stored> {
        self.queues.get(&queue)?.books.as_ref()?.ledger.get(task)
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
        let hosted = self.queues.get(&queue).filter(|hosted| hosted.books.is_some());
        let letters = hosted.and_then(|hosted| {
            let name = hosted.name.as_deref()?;
            self.names.get(hosted.queue.options().dead_letters_of(name).as_str())
        });
        letters.is_some_and(|letters| !self.holds_bodies(*letters))
    }
}

/// Lets payloads of a queue that is kept on disk leave memory.
pub(super) fn spill(queue: &mut Queue) {
    queue.keep_resident(RESIDENT_BYTES);
}

/// Writes the records of one step.
struct Scribe<'s, 'f> {
    queues: &'s mut HashMap<QueueId, Hosted>,
    clock: &'s Clock,
    now: Time,
    frame: &'s mut OpenFrame<'f>,
    moved: &'s mut Option<Vec<(QueueId, TaskId)>>,
    /// Tasks that were given up and are not in their dead-letter queue yet.
    dying: Vec<Dying>,
}

struct Dying {
    queue: QueueId,
    task: TaskId,
    cause: Cause,
    stored: Option<Stored>,
}

impl Scribe<'_, '_> {
    fn write(&mut self, queue: QueueId, noted: Noted) {
        match noted {
            Noted::Changed(Change::Put { task, payload, terms }) => {
                return self.put(queue, task, &payload, terms.as_deref());
            }
            Noted::Redriven(letter, task) => self.redrive(letter, queue, task),
            Noted::Declared(counts) => self.declare(queue, counts),
            Noted::Cleared(counts, kept) => self.clear(queue, counts, kept),
            Noted::Dropped => {
                self.frame.push(&Record::Removed { queue });
            }
            Noted::Changed(change) => self.change(queue, change),
        }
        self.note_last(queue);
    }

    fn note_last(&mut self, queue: QueueId) {
        let lsn = self.frame.lsn();
        if let Some(books) = self.books(queue) {
            books.last = lsn;
        }
    }

    fn books(&mut self, queue: QueueId) -> Option<&mut Books> {
        self.queues.get_mut(&queue)?.books.as_deref_mut()
    }

    fn declare(&mut self, queue: QueueId, Counts { next_task, unfinished }: Counts) {
        let Some(hosted) = self.queues.get(&queue) else { return };
        let Some(name) = hosted.name.as_deref() else { return };
        let (settings, next_task) = (hosted.queue.options().settings(), next_task.0);
        let settings = &settings;
        self.frame.push(&Record::Queue { queue, name, settings, next_task, unfinished });
    }

    fn change(&mut self, queue: QueueId, change: Change) {
        match change {
            Change::Leased { token, hold } => {
                self.frame.push(&leased(queue, token, hold.unwrap_or_default()));
            }
            Change::Extended { token, hold } => {
                self.frame.push(&leased(queue, token, hold));
            }
            Change::Acked { task, .. }
                if planted!(AckBesideCheckpointLost) && self.moved.is_some() =>
            {
                self.forget(queue, task);
            }
            Change::Acked { task, attempt } => {
                let stored = self.forget(queue, task);
                self.let_go(stored);
                self.frame.push(&Record::Ack { queue, task: task.0, attempt, result: None });
            }
            Change::Settled { token } => {
                self.frame.push(&settled(queue, token));
            }
            Change::Expired { .. } if planted!(ExpiryNotKept) => {}
            Change::Expired { task } => {
                let stored = self.forget(queue, task);
                self.let_go(stored);
                self.frame.push(&Record::Expired { queue, task: task.0 });
            }
            Change::Turned { task, turned } => self.turn(queue, task, turned),
            Change::Returned { task, failures, not_before, cause } => {
                let not_before = not_before.filter(|_| !planted!(NackDelayForgotten));
                let not_before = not_before.map(|at| self.clock.unix_millis(at));
                let (attempt, cause) = (failures + 1, cause_text(&cause));
                let task = task.0;
                self.frame.push(&Record::Returned {
                    queue,
                    task,
                    attempt,
                    not_before,
                    cause: &cause,
                });
            }
            Change::Dead { task, cause } => {
                let stored = self.forget(queue, task);
                self.dying.push(Dying { queue, task, cause, stored });
            }
            Change::Done(_) if planted!(DoneNotKept) => {}
            Change::Done(tasks) => {
                self.frame.push(&Record::Done { queue, tasks });
            }
            // Told apart before.
            Change::Put { .. } | Change::Cleared | Change::ShutDown { .. } => {}
        }
    }

    fn forget(&mut self, queue: QueueId, task: TaskId) -> Option<Stored> {
        self.books(queue)?.ledger.remove(task)
    }

    fn let_go(&mut self, stored: Option<Stored>) {
        self.frame.let_go(stored.map_or(0, |stored| stored.location.len.into()));
    }

    fn put(&mut self, queue: QueueId, task: TaskId, payload: &Payload, terms: Option<&Terms>) {
        if let Some(dying) = self.died(terms) {
            self.bury(dying, queue, task);
            return self.note_last(queue);
        }
        let Some(Hosted { queue: to, books: Some(books), .. }) = self.queues.get_mut(&queue) else {
            return;
        };
        let options = to.options();
        let from_now = |time| self.clock.unix_millis(self.now + time);
        let note = note(terms.and_then(|terms| terms.origin.as_deref()), &[], None);
        let priority = terms.and_then(|terms| terms.priority).map(priority_bytes);
        let put = Record::Put {
            queue,
            task: task.0,
            options: TaskOptions {
                priority: priority.as_ref().map(<[u8; 8]>::as_slice),
                not_before: terms.and_then(|terms| terms.delay).map(from_now),
                expires: terms.and_then(|terms| terms.expires).or(options.expires).map(from_now),
                note: &note,
                ..TaskOptions::default()
            },
            body: Body::from(payload),
        };
        if let Some(location) = self.frame.push(&put) {
            let Payload { protocol, prelude_len, .. } = *payload;
            books.enter(task, Stored { location, protocol, prelude_len }, self.frame);
        }
        if let Some(key) = terms.and_then(|terms| terms.key.as_ref()) {
            let until = from_now(options.dedup);
            if !planted!(KeyNotKept) {
                self.frame.push(&Record::Seen { queue, key, until });
            }
        }
    }

    /// The task whose dead letter this put is.
    fn died(&mut self, terms: Option<&Terms>) -> Option<Dying> {
        // A notice of it has the same origin, and no history.
        let origin = terms?.origin.as_ref().filter(|origin| !origin.history.is_empty())?;
        let at = self.dying.iter().position(|dying| {
            let name = self.queues.get(&dying.queue).and_then(|hosted| hosted.name.as_ref());
            dying.task == origin.task && name == Some(&origin.queue)
        })?;
        Some(self.dying.swap_remove(at))
    }

    fn bury(&mut self, dying: Dying, to_queue: QueueId, to_task: TaskId) {
        let cause = cause_text(&dying.cause);
        self.frame.push(&Record::Dead {
            queue: dying.queue,
            task: dying.task.0,
            to_queue,
            to_task: to_task.0,
            cause: &cause,
        });
        self.enter_moved(to_queue, to_task, dying.stored);
        self.last_anew(to_queue, to_task);
    }

    fn redrive(&mut self, (from, letter): (QueueId, TaskId), to_queue: QueueId, to_task: TaskId) {
        let stored = self.forget(from, letter);
        let (task, to) = (letter.0, to_task.0);
        self.frame.push(&Record::Redriven { queue: from, task, to_queue, to_task: to });
        self.enter_moved(to_queue, to_task, stored);
        self.last_anew(to_queue, to_task);
        self.note_last(from);
    }

    /// A task is new to this queue, and lasts as long as any other that is put there.
    fn last_anew(&mut self, queue: QueueId, task: TaskId) {
        let expires = self.queues.get(&queue).and_then(|to| to.queue.options().expires);
        if let Some(expires) = expires {
            let until = self.clock.unix_millis(self.now + expires);
            self.frame.push(&Record::Lasts { queue, task: task.0, until });
        }
    }

    fn turn(&mut self, queue: QueueId, task: TaskId, turned: TaskId) {
        let stored = self.forget(queue, task);
        self.frame.push(&Record::Turned { queue, task: task.0, turned: turned.0 });
        self.enter_moved(queue, turned, stored);
    }

    /// A task is now here, with the body where it was.
    fn enter_moved(&mut self, queue: QueueId, task: TaskId, stored: Option<Stored>) {
        let books = self.queues.get_mut(&queue).and_then(|hosted| hosted.books.as_deref_mut());
        if let Some((books, stored)) = books.zip(stored) {
            books.enter(task, stored, self.frame);
        }
        if let Some(moved) = self.moved {
            moved.push((queue, task));
        }
    }

    fn clear(&mut self, queue: QueueId, counts: Counts, kept: Vec<TaskId>) {
        let before = counts.next_task;
        let stays = kept.iter().map(|task| task.0).collect();
        self.frame.push(&Record::Purged { queue, before: before.0, kept: stays });
        if let Some(books) = self.books(queue) {
            let gone = books.ledger.purge_at_once(before, kept);
            self.frame.let_go(gone);
        }
        // How many of those that are gone were done before, only the count itself can say.
        self.declare(queue, counts);
    }

    /// Tasks whose dead letters are not kept.
    fn finish(mut self) {
        for Dying { queue, task, stored, .. } in std::mem::take(&mut self.dying) {
            self.let_go(stored);
            self.frame.push(&Record::Expired { queue, task: task.0 });
        }
    }
}

/// The record of a token that settled its task.
pub(super) fn settled(queue: QueueId, token: Token) -> Record<'static> {
    let Token { task: TaskId(task), attempt, epoch } = token;
    Record::Settled { queue, task, attempt, epoch }
}

/// Tells the records that say what is known of a live task.
pub(super) fn tell_task(
    (queue, task, stored): (QueueId, TaskId, Stored),
    facts: Option<&Facts>,
    clock: &Clock,
    write: &mut dyn FnMut(&Record<'_>) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    let Some(facts) = facts.filter(|_| !planted!(CheckpointWithoutFacts)) else {
        return write(&stored.held(queue, task, TaskOptions::default()));
    };
    let unix = |time: Option<Time>| time.map(|time| clock.unix_millis(time));
    let priority = facts.priority.map(priority_bytes);
    let options = TaskOptions {
        priority: priority.as_ref().map(<[u8; 8]>::as_slice),
        not_before: unix(facts.not_before),
        expires: unix(facts.expires),
        dedup: None,
        attempt: facts.failures,
        note: &note(facts.origin.as_deref(), &facts.history, facts.last),
    };
    write(&stored.held(queue, task, options))?;
    let Some(lease) = facts.lease else { return Ok(()) };
    write(&leased(queue, lease.token, lease.hold))
}

fn leased(queue: QueueId, token: Token, hold: Duration) -> Record<'static> {
    Record::Leased {
        queue,
        task: token.task.0,
        attempt: token.attempt,
        epoch: token.epoch,
        hold: u64::try_from(hold.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Origin;

    #[test]
    fn what_is_booked_for_a_record_grows_with_what_it_says() {
        let kept: Vec<_> = (0..1000).map(TaskId).collect();
        let counts = Counts { next_task: TaskId(u64::MAX), unfinished: u64::MAX };
        let record = Record::Purged {
            queue: u64::MAX,
            before: u64::MAX,
            kept: vec![u64::MAX; kept.len()].into(),
        };
        assert!(Noted::Cleared(counts, kept).bytes_max() >= record.bytes_max());

        let origin = Origin {
            queue: "tasks".into(),
            task: TaskId(0),
            attempt: 32,
            worker: "".into(),
            waited: Duration::ZERO,
            ran: Duration::ZERO,
            history: vec![Cause::Refused("x".repeat(1000).into()); 32],
        };
        let told = note(Some(&origin), &[], None).len();
        let terms = Terms { origin: Some(Box::new(origin)), ..Terms::default() };
        let payload = Payload { protocol: 2, prelude_len: 0, bytes: vec![0; 10].into() };
        let put = Change::Put { task: TaskId(0), payload, terms: Some(Box::new(terms)) };
        assert!(told > 32_000 && Noted::Changed(put).bytes_max() >= told + 10);
    }
}
