//! The writer where others find it: whoever is alone does its work himself.
//!
//! To have a frame synced by another thread takes two hand-overs, which cost a single producer as much
//! as a quick disk does. Its thread would do nothing meanwhile but wait. So it does the writer's step
//! itself, if the writer rests, there is little to write, and the disk has been quick of late: who comes
//! meanwhile waits for as long. Invariant: it is the same step, whoever does it.

use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::time::Duration;

use super::{Journal, JournalError, Writer};
use crate::clock::Clock;

/// A step that took longer makes the disk a slow one.
const QUICK: Duration = Duration::from_millis(1);
/// Syncs in a row after which it is a quick one.
const QUICK_SYNCS: u8 = 4;

/// The writer, and how quick its disk is.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(super) writer: Writer,
    clock: Clock,
    /// Quick syncs in a row, up to [`QUICK_SYNCS`].
    quick_syncs: u8,
}

impl Desk {
    /// Does the writer's next step, and says how long it took.
    ///
    /// # Errors
    ///
    /// As [`Writer::step`].
    pub(crate) fn step(&mut self) -> Result<Duration, JournalError> {
        let begin = self.clock.now();
        let synced = self.writer.synced();
        self.writer.step()?;
        let took = self.clock.now().since(begin);
        self.note(took, synced < self.writer.synced());
        Ok(took)
    }

    /// A step took so long, and perhaps it was a sync.
    fn note(&mut self, took: Duration, is_synced: bool) {
        if took >= QUICK {
            self.quick_syncs = 0;
        } else if is_synced {
            self.quick_syncs = QUICK_SYNCS.min(self.quick_syncs + 1);
        }
    }

    /// The writer, for what has to be done however long it takes.
    #[cfg(test)]
    pub(crate) fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }
}

/// The desk, once nobody else is at it.
///
/// # Errors
///
/// If somebody panicked there: nobody knows what was written then.
pub(super) fn lock(desk: &Mutex<Desk>) -> Result<MutexGuard<'_, Desk>, JournalError> {
    desk.lock().map_err(|_| JournalError::Poisoned("its writer panicked".into()))
}

impl Journal {
    /// The writer's place, which this journal and its clones know as long as somebody has it.
    pub(crate) fn share(&self, writer: Writer, clock: Clock) -> Arc<Mutex<Desk>> {
        let desk = Arc::new(Mutex::new(Desk { writer, clock, quick_syncs: 0 }));
        // A journal has one writer.
        self.desk.set(Arc::downgrade(&desk)).ok();
        desk
    }

    /// Makes what was appended durable on this thread, if that takes hardly longer than to wake the
    /// writer. Otherwise, and after an error, that is its own thread's work as ever.
    pub fn write_here(&self) {
        if !self.shared.lock().is_little() {
            return;
        }
        let Some(desk) = self.desk.get().and_then(Weak::upgrade) else { return };
        let is_done = match desk.try_lock() {
            Ok(mut desk) if planted!(NotSyncedHere) => desk.writer.write_as_synced().is_ok(),
            // Others may have appended since.
            Ok(mut desk) if desk.quick_syncs == QUICK_SYNCS && self.shared.lock().is_little() => {
                desk.step().is_ok()
            }
            Ok(_) | Err(TryLockError::WouldBlock) => return,
            Err(TryLockError::Poisoned(_)) => false,
        };
        let state = self.shared.lock();
        if !is_done || state.is_dirty() && !state.has_timer {
            self.shared.work.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::disk::{Disk, Fault};
    use crate::journal::{Durability, Lsn, Opened, Options, Record, open};

    /// A journal without threads on a disk that takes no time.
    fn start(disk: &Disk) -> (Journal, Arc<Mutex<Desk>>) {
        let options = Options { segment_bytes: 256 << 10, ..Options::default() };
        let Opened { journal, writer, .. } =
            open(Arc::new(disk.clone()), options, 1, &mut |_| {}).unwrap();
        let desk = journal.share(writer, Clock::manual(0));
        (journal, desk)
    }

    /// The same, whose disk has shown that it is quick.
    fn quick(disk: &Disk) -> (Journal, Arc<Mutex<Desk>>) {
        let (journal, desk) = start(disk);
        for _ in 0..QUICK_SYNCS {
            assert!(!is_written_here(&journal, append(&journal, Durability::Disk)));
            desk.lock().unwrap().step().unwrap();
        }
        (journal, desk)
    }

    fn append(journal: &Journal, durability: Durability) -> Lsn {
        journal.append(&[Record::Done { queue: 1, tasks: 1 }], durability, &mut Vec::new())
    }

    fn is_written_here(journal: &Journal, lsn: Lsn) -> bool {
        journal.write_here();
        lsn <= journal.reached(Durability::Os)
    }

    #[test]
    fn one_call_is_made_durable_by_its_own_thread_once_the_disk_was_quick() {
        let (journal, _desk) = quick(&Disk::default());
        let put = append(&journal, Durability::Disk);
        assert!(is_written_here(&journal, put));
        assert_eq!(journal.reached(Durability::Disk), put);
        let lease = append(&journal, Durability::Os);
        assert!(is_written_here(&journal, lease));
        assert_eq!(journal.reached(Durability::Disk), put, "nobody waits for the sync of a lease");
    }

    #[test]
    fn a_disk_that_was_slow_once_is_left_to_the_writer_until_it_was_quick_for_a_while() {
        let (journal, desk) = quick(&Disk::default());
        let note = |took, is_synced| desk.lock().unwrap().note(took, is_synced);
        note(QUICK, false);
        for _ in 1..QUICK_SYNCS {
            note(Duration::ZERO, true);
            note(Duration::ZERO, false);
        }
        let put = append(&journal, Durability::Disk);
        assert!(!is_written_here(&journal, put));
        note(Duration::ZERO, true);
        assert!(is_written_here(&journal, put));
    }

    #[test]
    fn what_others_wait_for_too_is_left_to_the_writer() {
        let (journal, desk) = quick(&Disk::default());
        append(&journal, Durability::Disk);
        let two = append(&journal, Durability::Disk);
        assert!(!is_written_here(&journal, two));
        desk.lock().unwrap().step().unwrap();
        let busy = desk.lock().unwrap();
        let put = append(&journal, Durability::Disk);
        assert!(!is_written_here(&journal, put), "the writer is at work");
        drop(busy);
        assert!(is_written_here(&journal, put));
    }

    #[test]
    fn a_large_frame_and_one_that_begins_a_segment_are_left_to_the_writer() {
        let (journal, desk) = quick(&Disk::default());
        let name = "x".repeat(super::super::state::LITTLE_BYTES);
        let large =
            Record::Queue { queue: 1, name: &name, settings: "", next_task: 0, unfinished: 0 };
        for _ in 0..4 {
            let lsn =
                journal.append(std::slice::from_ref(&large), Durability::Disk, &mut Vec::new());
            assert!(!is_written_here(&journal, lsn));
            desk.lock().unwrap().step().unwrap();
        }
        // The rest of the segment is too short for one of these.
        let name = &name[..60 << 10];
        let large = Record::Queue { queue: 1, name, settings: "", next_task: 0, unfinished: 0 };
        let mut begun = 0;
        for _ in 0..8 {
            let lsn =
                journal.append(std::slice::from_ref(&large), Durability::Disk, &mut Vec::new());
            if !is_written_here(&journal, lsn) {
                begun += 1;
                desk.lock().unwrap().step().unwrap();
            }
        }
        assert_eq!(begun, 2, "eight of 60 KiB begin two segments of 256 KiB");
    }

    #[test]
    fn what_fails_here_fails_for_everybody_and_is_not_tried_again() {
        for call in [1, 2] {
            let disk = Disk::default();
            let (journal, desk) = quick(&disk);
            let put = append(&journal, Durability::Disk);
            let waits = journal.durable(put, Durability::Disk);
            disk.fail(call, Fault::Broken);
            journal.write_here();
            assert!(waits.wait().is_err() && journal.failure().is_some());
            let calls = disk.calls();
            let later = append(&journal, Durability::Disk);
            journal.write_here();
            assert!(journal.durable(later, Durability::Disk).wait().is_err());
            assert!(desk.lock().unwrap().step().is_err());
            assert_eq!(disk.calls(), calls);
        }
    }
}
