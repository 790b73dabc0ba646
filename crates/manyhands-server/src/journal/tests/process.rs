//! Real files, threads and processes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Waker};
use std::thread;

use super::replica::{Replica, body};
use crate::journal::{
    Class, Durability, JournalError, Options, Record, Running, TaskOptions, check,
};

const OPTIONS: Options = Options {
    segment_bytes: 64 << 10,
    frame_bytes_max: 4 << 20,
    spares_max: 4,
    checkpoint_bytes_min: 256 << 10,
    checkpoint_chunk_bytes: 1 << 20,
    sparse_percent: 25,
    sync_interval: std::time::Duration::from_millis(50),
};
/// Names the directory to a child.
const CHILD: &str = "MANYHANDS_JOURNAL_CHILD";

fn start(directory: &Path) -> (Running, Replica) {
    let mut found = Replica::default();
    let running = Running::start(directory, OPTIONS, &mut |entry| found.replay(&entry)).unwrap();
    found.read(&running.journal().bodies());
    (running, found)
}

fn put(queue: u64, task: u64, bytes: &[u8]) -> Record<'_> {
    Record::Put { queue, task, options: TaskOptions::default(), body: body(bytes) }
}

/// Puts numbered tasks, and says the number of each once it is durable; does nothing in the parent.
#[test]
fn child_that_puts_until_it_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let (running, mut state) = start(Path::new(&directory));
    let journal = running.journal();
    // A parent that died kills nobody.
    for task in state.next_task(1)..state.next_task(1) + 1_000_000 {
        let text = task.to_string();
        let record = put(1, task, text.as_bytes());
        assert!(journal.has_room(Class::Admit, record.bytes_max()));
        let mut locations = Vec::new();
        let durability = if task % 2 == 0 { Durability::Disk } else { Durability::Os };
        let lsn = journal.append(std::slice::from_ref(&record), durability, &mut locations);
        state.apply(&record, locations.first().copied());
        journal.durable(lsn, durability).wait().unwrap();
        println!("\n{task}");
        if task % 100 == 99 {
            journal.checkpoint(journal.mark(), state.checkpoint()).unwrap();
        }
    }
}

fn child(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["journal::tests::process::child_that_puts_until_it_is_killed", "--exact"])
        .args(["--nocapture", "--test-threads=1"])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn every_task_that_a_killed_process_said_was_durable_is_there() {
    let directory = tempfile::tempdir().unwrap();
    for kills in 1..=4 {
        let mut child = child(directory.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let numbers = lines.map_while(Result::ok).filter_map(|line| line.parse::<u64>().ok());
        let said = numbers.take(37 * kills).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (running, found) = start(directory.path());
        let tasks: Vec<_> = found.facts();
        assert!(tasks.len() as u64 > said, "{} of {said} and more", tasks.len());
        for (number, (key, _, _, body)) in tasks.iter().enumerate() {
            assert_eq!((*key, body.as_ref()), ((1, number as u64), number.to_string().as_bytes()));
        }
        running.close().unwrap();
        let report = check(directory.path()).unwrap();
        assert!(report.is_closed && report.torn.is_none());
        assert_eq!(report.epoch, 2 * kills as u64);
    }
}

#[test]
fn frames_of_many_threads_are_durable_in_the_order_of_their_appends() {
    let directory = tempfile::tempdir().unwrap();
    let (running, _) = start(directory.path());
    thread::scope(|scope| {
        for queue in 0..8 {
            let journal = running.journal();
            scope.spawn(move || {
                for task in 0..100 {
                    let bytes = [u8::try_from(queue).unwrap(); 300];
                    let mut locations = Vec::new();
                    let record = put(queue, task, &bytes);
                    let lsn = journal.append(&[record], Durability::Disk, &mut locations);
                    pollster::block_on(journal.durable(lsn, Durability::Disk)).unwrap();
                    assert_eq!(journal.bodies().read(locations[0]).unwrap(), bytes.as_slice());
                }
            });
        }
    });
    running.close().unwrap();
    let (_running, found) = start(directory.path());
    assert_eq!(found.tasks.len(), 800);
}

#[test]
fn what_is_only_written_is_synced_in_the_background() {
    let directory = tempfile::tempdir().unwrap();
    let (running, _) = start(directory.path());
    let journal = running.journal();
    let lsn = journal.append(&[put(1, 0, b"x")], Durability::Os, &mut Vec::new());
    journal.durable(lsn, Durability::Os).wait().unwrap();
    journal.durable(lsn, Durability::Disk).wait().unwrap();
}

#[test]
fn who_waits_on_an_event_loop_is_told_by_its_herald() {
    let directory = tempfile::tempdir().unwrap();
    let (running, _) = start(directory.path());
    let journal = running.journal();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let told = async {
            for task in 0..100 {
                let durability = if task % 2 == 0 { Durability::Disk } else { Durability::Os };
                let lsn = journal.append(&[put(1, task, b"x")], durability, &mut Vec::new());
                journal.durable(lsn, durability).await.unwrap();
            }
        };
        tokio::select! {
            () = told => {}
            () = journal.relay() => unreachable!("it goes on for ever"),
        }
    });
}

#[test]
fn a_herald_that_ends_leaves_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let (running, _) = start(directory.path());
    let journal = running.journal();
    for task in 0..100 {
        let mut relay = Box::pin(journal.relay());
        let mut context = Context::from_waker(Waker::noop());
        assert!(relay.as_mut().poll(&mut context).is_pending());
        let lsn = journal.append(&[put(1, task, b"x")], Durability::Disk, &mut Vec::new());
        let durable = journal.durable(lsn, Durability::Disk);
        drop(relay);
        durable.wait().unwrap();
    }
}

#[test]
fn a_second_server_on_the_directory_is_refused_and_harms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (running, _) = start(directory.path());
    let second = Running::start(directory.path(), OPTIONS, &mut |_| panic!("it must not look"));
    let error = second.unwrap_err();
    assert!(matches!(error, JournalError::InUse(_)), "{error}");
    running.close().unwrap();
    let (running, _) = start(directory.path());
    assert_eq!(running.recovered().epoch, 2);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("read-only");
    std::fs::create_dir(&path).unwrap();
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&path, permissions).unwrap();
    // Nothing is read-only to root.
    let is_root = std::fs::write(path.join("try"), "").is_ok();
    let started = Running::start(&path, OPTIONS, &mut |_| {});
    assert!(is_root || matches!(started, Err(JournalError::ReadOnly(_))), "{started:?}");
}

#[test]
fn a_closed_journal_accepts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (running, _) = start(directory.path());
    let journal = running.journal().clone();
    running.close().unwrap();
    assert!(!journal.has_room(Class::Settle, 1));
    let lsn = journal.append(&[Record::Removed { queue: 1 }], Durability::Os, &mut Vec::new());
    assert!(journal.durable(lsn, Durability::Os).wait().is_err());
}
