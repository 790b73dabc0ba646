//! A panic under the engine's lock ends the process: nobody is served by queues that are half changed.

use std::fmt::Debug;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::process::{Command, Output};
use std::task::{Context, Waker};
use std::thread;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;
use crate::queue::{Order, Patience};

/// Tells a child that it is one.
const CHILD: &str = "MANYHANDS_PANIC_CHILD";

/// Writes what is logged to standard error.
struct Log;

struct Line;

impl Visit for Line {
    fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
        eprintln!("logged: {value:?}");
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Line);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Panics in the middle of a change, and then asks the engine once more; does nothing in the parent.
#[test]
fn child_that_panics_under_the_lock() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    tracing::subscriber::set_global_default(Log).unwrap();
    let rig = plain();
    let tasks = rig.engine.open("tasks").unwrap();
    let change = || {
        let mut state = rig.engine.lock(0);
        state.on(tasks.queue, |_, _| panic!("a defect"));
    };
    let panicked = thread::scope(|scope| scope.spawn(change).join().is_err());
    println!("panicked: {panicked}");
    println!("served: {}", rig.engine.has_queue("tasks"));
}

#[test]
fn a_panic_under_the_lock_ends_the_process_and_says_so() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["engine::tests::panics::child_that_panics_under_the_lock", "--exact"])
        .args(["--nocapture", "--test-threads=1"])
        .env(CHILD, "")
        .output();
    let Output { status, stdout, stderr } = child.unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(stdout.contains("panicked: true"), "{stdout}{stderr}");
    assert!(!stdout.contains("served"), "{stdout}");
    assert!(stderr.contains("logged: the queue engine failed; the process ends"), "{stderr}");
    #[cfg(unix)]
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(6), "SIGABRT");
    assert!(!status.success(), "{status}");
}

#[test]
fn a_step_that_a_panic_has_left_half_done_is_not_committed() {
    let rig = plain();
    let (engine, caller) = (&rig.engine, Caller::IN_PROCESS);
    let tasks = engine.open("tasks").unwrap();
    let get = || engine.get(caller, tasks, 5, Wait::Forever).called.unwrap();
    // Once nothing is there any more.
    let mut waiter = loop {
        if let Called::Later(waiter) = get() {
            break waiter;
        }
    };
    let first = std::iter::once(Put::new(item(1), None, Order::Fifo));
    let mut items = first.chain(std::iter::from_fn(|| panic!("a defect")));
    let put = || Calls::new(engine).put_many(caller, tasks, &mut items, Patience::Now, None);
    assert!(catch_unwind(AssertUnwindSafe(put)).is_err());
    let told = pin!(&mut waiter).poll(&mut Context::from_waker(Waker::noop()));
    assert!(told.is_pending(), "{told:?}");
    // Whoever asked this engine once more would end the process.
    std::mem::forget((waiter, rig));
}
