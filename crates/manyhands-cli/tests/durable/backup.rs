//! A back-up as `docs/operating.md` has it: the directory of a server that a signal holds still for
//! a moment is copied, under load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::*;

const COPIES: usize = 5;
/// Length of what comes and goes meanwhile, in bytes: a segment holds a few of them, so that segments
/// are filled, used again and freed, and checkpoints written, while the copies are made.
const LARGE: usize = 50_000;

/// Clients that go on until they are told that it is over.
struct Load<'a> {
    server: &'a Server,
    /// Numbers from 0 up to this one were put and answered.
    answered: AtomicU64,
    is_over: AtomicBool,
}

impl Load<'_> {
    fn put(&self) {
        let connected = client(self.server);
        let numbers = connected.queue::<u64>("numbers").unwrap();
        while !self.is_over.load(Ordering::SeqCst) {
            numbers.put(&self.answered.load(Ordering::SeqCst)).unwrap();
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn churn(&self) {
        let connected = client(self.server);
        let large = connected.queue::<String>("large").unwrap();
        while !self.is_over.load(Ordering::SeqCst) {
            large.put(&"x".repeat(LARGE)).unwrap();
            large.lease(None).unwrap().ack().unwrap();
        }
    }

    /// Waits until so many numbers more are answered.
    fn advance(&self, count: u64) {
        let goal = self.answered.load(Ordering::SeqCst) + count;
        let reached = || (self.answered.load(Ordering::SeqCst) >= goal).then_some(());
        support::wait_until(reached).expect("the server answers");
    }
}

/// Ends the load, also of a test that fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Sends the server a signal.
fn signal(pid: u32, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Whether every thread of a process stands still.
fn is_still(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).unwrap())
        .all(|stat| stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T')))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_copy_that_is_made_while_the_server_stands_still_has_all_that_was_answered() {
    let home = Home::new(&["numbers", "large"]);
    let server = home.serve();
    let pid = server.process.lock().unwrap().child.id();
    let load = Load { server: &server, answered: AtomicU64::new(0), is_over: false.into() };
    let mut copies = Vec::new();
    thread::scope(|threads| {
        threads.spawn(|| load.put());
        threads.spawn(|| load.churn());
        let _end = End(&load.is_over);
        let first = home.data().join("0000000001.seg");
        support::wait_until(|| (!first.exists()).then_some(())).expect("segments are freed");
        for _ in 0..COPIES {
            load.advance(50);
            let answered = load.answered.load(Ordering::SeqCst);
            signal(pid, "-STOP");
            support::wait_until(|| is_still(pid).then_some(())).expect("it stands still");
            let copied = Home::new(&["numbers", "large"]);
            copy(&home.data(), &copied.data());
            signal(pid, "-CONT");
            copies.push((answered, copied));
        }
    });
    for (answered, copied) in copies {
        let (is_intact, text) = copied.journal("check", &[]);
        assert!(is_intact, "{text}");
        let server = copied.serve();
        let connected = client(&server);
        let numbers = connected.queue::<u64>("numbers").unwrap();
        let there: Vec<_> = std::iter::from_fn(|| numbers.try_get().ok()).collect();
        assert!(there.len() as u64 >= answered, "{} of {answered}", there.len());
        assert!(there.iter().copied().eq(0..there.len() as u64), "{there:?}");
    }
}
