//! Who may use what space is left.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use super::disk::Disk;
use super::replica::{Replica, body};
use crate::journal::{
    Class, Durability, Journal, JournalError, Opened, Options, Record, TaskOptions, Upkeep, Writer,
    open,
};

const OPTIONS: Options = Options {
    segment_bytes: 4096,
    frame_bytes_max: 2048,
    spares_max: 2,
    checkpoint_bytes_min: 4096,
    checkpoint_chunk_bytes: 1 << 20,
    sparse_percent: 25,
    sync_interval: Duration::ZERO,
};

/// A disk of so many segments, the head, and the least reserve, in bytes.
fn room_for(segments: usize) -> usize {
    segments * 4096 + 24 + 1024
}

struct Server {
    journal: Journal,
    writer: Writer,
    upkeep: Upkeep,
    state: Replica,
}

impl Server {
    fn start(disk: &Disk) -> Self {
        let mut state = Replica::default();
        let visit = &mut |entry: crate::journal::Entry<'_>| state.replay(&entry);
        let Opened { journal, writer, upkeep, .. } =
            open(Arc::new(disk.clone()), OPTIONS, 1, visit).unwrap();
        state.read(&journal.bodies());
        Self { journal, writer, upkeep, state }
    }

    /// False if there is no room.
    fn append(&mut self, class: Class, record: &Record<'_>) -> bool {
        self.upkeep.step().ok();
        if !self.journal.has_room(class, record.bytes_max()) {
            return false;
        }
        let mut locations = Vec::new();
        self.journal.append(std::slice::from_ref(record), Durability::Disk, &mut locations);
        self.state.apply(record, locations.first().copied());
        while self.writer.step().unwrap() {}
        true
    }

    fn put(&mut self) -> bool {
        let (task, options) = (self.state.next_task(1), TaskOptions::default());
        self.append(Class::Admit, &Record::Put { queue: 1, task, options, body: body(&[7; 200]) })
    }

    fn settle(&mut self) -> bool {
        let Some(&(queue, task)) = self.state.tasks.keys().next() else { return false };
        self.append(Class::Settle, &Record::Ack { queue, task, attempt: 0, result: None })
    }

    fn checkpoint(&mut self) -> Result<usize, JournalError> {
        let mark = self.journal.mark();
        let done = self.journal.checkpoint(mark, self.state.checkpoint());
        done.map(|done| done.freed)
    }
}

#[test]
fn a_full_disk_refuses_puts_and_lets_every_task_be_settled_and_then_takes_puts_again() {
    let disk = Disk::with_capacity(room_for(6));
    let mut server = Server::start(&disk);
    let mut puts = 0;
    while server.put() {
        puts += 1;
    }
    assert!(puts > 30, "{puts}");
    assert!(disk.files().keys().any(|name| name.ends_with(".spare")), "the reserve is kept");
    while !server.state.tasks.is_empty() {
        assert!(server.settle());
    }
    assert!(server.journal.checkpoint_is_due());
    disk.set_capacity(room_for(6) + 300);
    assert!(server.checkpoint().unwrap() > 2);
    assert!(!server.journal.checkpoint_is_due());
    assert!(server.put());
}

#[test]
fn a_checkpoint_of_many_tasks_takes_much_work_to_be_due_again_however_small_it_was() {
    let mut server = Server::start(&Disk::default());
    for _ in 0..200 {
        assert!(server.put());
    }
    let mark = server.journal.mark();
    let done = server.journal.checkpoint(mark, server.state.checkpoint()).unwrap();
    assert!(done.records > 200 && done.bytes < 1024, "{done:?}");
    let mut appended = 0;
    while !server.journal.checkpoint_is_due() {
        assert!(server.put());
        appended += 200;
    }
    assert!(appended > 4 * 10 * 200, "{appended} bytes");
}

#[test]
fn a_checkpoint_that_finds_the_disk_full_leaves_the_journal_as_it_was() {
    let disk = Disk::with_capacity(room_for(4));
    let mut server = Server::start(&disk);
    while server.put() {}
    let before = disk.files();
    // The reserve has no room for so many keys.
    let keys = (0..30).map(|until| Record::Seen { queue: 1, key: &[7; 200], until });
    let mark = server.journal.mark();
    let failed = server.journal.checkpoint(mark, server.state.checkpoint().chain(keys));
    assert!(failed.unwrap_err().is_full());
    assert_eq!(disk.files(), before);
    assert!(server.journal.checkpoint_is_due(), "as much as before");
    assert!(server.settle());
}

#[test]
fn who_waits_for_room_is_told_when_there_is_more() {
    let disk = Disk::with_capacity(room_for(4));
    let mut server = Server::start(&disk);
    while server.put() {}
    let journal = server.journal.clone();
    let mut context = Context::from_waker(Waker::noop());
    let mut more = pin!(journal.more_room());
    assert!(!server.put());
    assert!(more.as_mut().poll(&mut context).is_pending());
    disk.set_capacity(room_for(5));
    assert!(server.upkeep.step().unwrap());
    assert!(more.as_mut().poll(&mut context).is_ready());
    assert!(server.put());
}

#[test]
fn a_full_disk_stays_full_over_a_restart() {
    let disk = Disk::with_capacity(room_for(4));
    let mut server = Server::start(&disk);
    while server.put() {}
    let tasks = server.state.facts();
    drop(server);
    let mut server = Server::start(&disk);
    assert_eq!(server.state.facts(), tasks);
    assert!(!server.put());
    assert!(server.settle());
}

#[test]
fn what_can_never_fit_is_refused() {
    let server = Server::start(&Disk::default());
    assert!(server.journal.has_room(Class::Settle, 4096 - 64 - 48));
    assert!(!server.journal.has_room(Class::Settle, 4096 - 64 - 48 + 1));
    assert!(!server.journal.has_room(Class::Settle, usize::MAX / 2));
}

#[test]
fn a_disk_under_steady_work_is_bounded_and_its_segments_are_used_again() {
    let disk = Disk::default();
    let mut server = Server::start(&disk);
    // One task stays for ever, and must not hold its segment.
    assert!(server.put());
    let mut largest = 0;
    for _ in 0..2000 {
        assert!(server.put());
        let (&(queue, task), _) = server.state.tasks.iter().nth(1).unwrap();
        let ack = Record::Ack { queue, task, attempt: 0, result: None };
        assert!(server.append(Class::Settle, &ack));
        if server.journal.checkpoint_is_due() {
            let mark = server.journal.mark();
            let done = server.journal.checkpoint(mark, server.state.checkpoint()).unwrap();
            for straggler in done.stragglers {
                let bytes = server.journal.bodies().read(straggler.location).unwrap();
                let (queue, task) = (straggler.queue, straggler.task);
                server.append(Class::Admit, &Record::Moved { queue, task, body: body(&bytes) });
            }
        }
        largest = largest.max(disk.files().values().map(Vec::len).sum());
    }
    // Eight segments and spares, a checkpoint in a file as long as one, and the space of the next.
    assert!(largest < 10 * 4096, "{largest} bytes on the disk");
    assert!(!disk.files().contains_key("0000000001.seg"), "the task that stays was moved");
}

#[test]
fn the_writer_is_told_when_all_are_there_that_it_waits_for() {
    let server = Server::start(&Disk::with_capacity(room_for(6)));
    let expected = || server.writer.shared().lock().expected;
    let append = |durability| {
        server.journal.append(&[Record::Done { queue: 1, tasks: 1 }], durability, &mut Vec::new());
    };
    server.writer.shared().lock().expected = Some(2);
    append(Durability::Disk);
    // Nobody waits for this one.
    append(Durability::Os);
    assert_eq!(expected(), Some(2));
    append(Durability::Disk);
    assert_eq!(expected(), None);
}
