//! Names and references that nobody uses.

use manyhands::wire::arguments::Wait;

use super::*;
use crate::config::Limits;
use crate::engine::{ALARMS_MAX, Promise};
use crate::error::{NoQueue, NoReference};
use crate::queue::{Outcome, QueueOptions};

const TIMEOUT: Duration = Duration::from_secs(3600);
const ALMOST: Duration = Duration::from_secs(3599);

fn references(rig: &Rig) -> u64 {
    rig.classic.number_of_references()
}

fn names(rig: &Rig) -> Vec<String> {
    rig.names()
}

/// A server with room for two names beside the declared ones.
fn narrow() -> Rig {
    let rig = empty(&Limits { queues_max: 4, ..Limits::default() });
    rig.engine.declare("tasks", QueueOptions::default().results("results")).unwrap();
    rig.engine.declare_named().unwrap();
    rig
}

fn put(rig: &Rig, ident: &str) {
    let reference = rig.classic.resolve(ident).unwrap();
    let called = rig.engine.put(Caller::IN_PROCESS, reference, item(1), None, Wait::No).called;
    assert!(matches!(called, Ok(Called::Now(Outcome::Accepted(_)))));
}

#[test]
fn an_empty_name_that_nobody_refers_to_makes_room_for_another_after_an_hour() {
    let rig = narrow();
    let (idle, full) = (rig.classic.refer_to("idle").unwrap(), rig.classic.refer_to("full"));
    let full = full.unwrap();
    put(&rig, &full);
    assert!(rig.classic.decref(&idle) && rig.classic.decref(&full));
    assert!(matches!(
        rig.classic.refer_to("third"),
        Err(NoReference::NoQueue(NoQueue::TooMany(_)))
    ));
    rig.pass(ALMOST);
    assert_eq!(names(&rig), ["full", "idle", "results", "tasks"]);
    rig.pass(TIMEOUT - ALMOST);
    assert_eq!(names(&rig), ["full", "results", "tasks"], "what is declared or holds a task stays");
    rig.classic.refer_to("third").unwrap();
    assert_eq!(rig.drain("full"), [(1, 1)]);
}

#[test]
fn the_hour_begins_with_the_last_use() {
    let rig = narrow();
    let ident = rig.classic.refer_to("idle").unwrap();
    rig.pass(ALMOST);
    put(&rig, &ident);
    assert_eq!(
        rig.engine
            .get(Caller::IN_PROCESS, rig.classic.resolve(&ident).unwrap(), 5, Wait::No)
            .called
            .map(|called| matches!(called, Called::Now(Outcome::Task(_))))
            .ok(),
        Some(true)
    );
    rig.pass(Duration::from_secs(1));
    assert!(rig.classic.decref(&ident) || references(&rig) == 0);
    rig.pass(ALMOST);
    assert_eq!(names(&rig), ["idle", "results", "tasks"]);
    rig.pass(Duration::from_secs(2));
    assert_eq!(names(&rig), ["results", "tasks"]);
}

#[test]
fn a_reference_that_no_session_uses_goes_and_its_ident_stays_good() {
    let rig = plain();
    let ident = rig.classic.refer_to("tasks").unwrap();
    let worker = rig.client("MainProcess");
    assert_eq!(worker.get(), 1);
    assert_eq!(references(&rig), 3);
    rig.pass(TIMEOUT);
    rig.pass(TIMEOUT);
    assert_eq!(references(&rig), 1, "the one that a session uses");
    // A proxy that was made long ago is used at last, and its client is killed with a task.
    let reference = rig.classic.resolve(&ident).unwrap();
    let tasks = Opened { ident: ident.clone(), reference };
    let late = rig.thread("MainProcess", &tasks, &tasks);
    assert_eq!(late.get(), 2);
    assert_eq!(references(&rig), 2, "it is counted again");
    late.presence.depart(rig.engine.now(), false);
    drop(late);
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(2, 2), (3, 1)], "the kill is no clean exit");
}

#[test]
fn a_reference_that_went_may_be_given_back() {
    let rig = plain();
    let ident = rig.classic.refer_to("tasks").unwrap();
    rig.pass(TIMEOUT);
    assert_eq!(references(&rig), 0);
    assert!(rig.classic.decref(&ident), "its client is told nothing of it");
    assert!(rig.classic.incref(&ident) && references(&rig) == 1);
}

#[test]
fn a_queue_without_a_name_stays_while_it_holds_something() {
    let rig = plain();
    let (empty, full) = (
        rig.classic.refer_to_new(QueueOptions::default()),
        rig.classic.refer_to_new(QueueOptions::default()).unwrap(),
    );
    put(&rig, &full);
    rig.pass(TIMEOUT);
    assert_eq!(rig.classic.resolve(&empty.unwrap()), None);
    assert!(rig.classic.resolve(&full).is_some());
}

#[test]
fn without_a_time_out_everything_stays() {
    let limits = Limits { unused_timeout: Duration::ZERO, ..Limits::default() };
    let rig = empty(&limits);
    rig.classic.refer_to("idle").unwrap();
    rig.pass(TIMEOUT * 1000);
    assert_eq!((names(&rig), references(&rig)), (vec!["idle".to_owned()], 1));
}

#[test]
fn a_million_references_go_a_few_at_a_time() {
    let rig = plain();
    for _ in 0..10_000 {
        rig.classic.refer_to("tasks").unwrap();
    }
    rig.put_forward(TIMEOUT);
    rig.expire();
    assert!(references(&rig) >= 10_000 - ALARMS_MAX as u64);
    rig.pass(Duration::ZERO);
    assert_eq!(references(&rig), 0);
    assert!(rig.number_of_deadlines() <= 3);
}

#[test]
fn no_timer_is_set_for_what_may_be_unused_and_a_newcomer_does_not_find_it() {
    let rig = plain();
    let ident = rig.classic.refer_to("idle").unwrap();
    assert_eq!((rig.engine.arm(), rig.classic.arm()), (None, None));
    rig.put_forward(TIMEOUT);
    assert!(names(&rig).contains(&"idle".to_owned()), "nobody has come");
    rig.classic.look_at_unused();
    assert_eq!(references(&rig), 0);
    assert!(rig.classic.decref(&ident));
    rig.put_forward(TIMEOUT);
    rig.classic.look_at_unused();
    assert_eq!(names(&rig), ["tasks"]);
    for _ in 0..=ALARMS_MAX {
        rig.classic.refer_to("tasks").unwrap();
    }
    rig.put_forward(TIMEOUT);
    rig.classic.look_at_unused();
    assert_eq!(references(&rig), 1, "it does not find all of many");
    let armed = rig.classic.arm();
    assert!(armed.is_some_and(|at| at <= rig.engine.now()), "the timer finds the rest: {armed:?}");
}

#[test]
fn alarms_go_with_what_they_are_for() {
    let rig = plain();
    let before = rig.number_of_deadlines();
    for _ in 0..100 {
        let ident = rig.classic.refer_to("tasks").unwrap();
        assert!(rig.classic.decref(&ident));
        rig.classic.refer_to("passing").map(|ident| rig.classic.decref(&ident)).unwrap();
        rig.engine.drop_queue("passing", false).unwrap();
    }
    assert_eq!(rig.number_of_deadlines(), before);
}

#[test]
fn a_queue_is_dropped_unless_it_is_declared_or_in_use() {
    let rig = plain();
    let refused = |name, force| rig.engine.drop_queue(name, force).unwrap_err().to_string();
    assert!(refused("tasks", true).contains("is declared"));
    assert!(refused("nothing", true).contains("no queue named 'nothing'"));
    let ident = rig.classic.refer_to("typo").unwrap();
    put(&rig, &ident);
    assert!(refused("typo", false).contains("1 references of clients, 0 calls that wait, 0 tasks"));
    assert_eq!(rig.engine.drop_queue("typo", true).unwrap(), (1, Promise::NOTHING));
    assert_eq!(rig.classic.resolve(&ident), None);
    assert!(rig.classic.decref(&ident), "the reference is still given back");
    assert_eq!(names(&rig), ["tasks"]);
    let again = rig.classic.refer_to("typo").unwrap();
    assert!(rig.classic.decref(&again));
    assert_eq!(
        rig.engine.drop_queue("typo", false).unwrap(),
        (0, Promise::NOTHING),
        "nobody refers to it"
    );
}

#[test]
fn whoever_waits_for_a_queue_that_is_dropped_is_told() {
    let rig = plain();
    let client = rig.client("MainProcess");
    let other = rig.classic.refer_to("other").unwrap();
    let reference = rig.classic.resolve(&other).unwrap();
    let called =
        rig.classic.get(client.presence.caller(), reference, 5, Wait::Forever).called.unwrap();
    let Called::Later(mut waiter) = called else { panic!("{called:?}") };
    assert!(rig.engine.drop_queue("other", false).unwrap_err().to_string().contains("1 calls"));
    rig.engine.drop_queue("other", true).unwrap();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let told = std::pin::Pin::new(&mut waiter).poll(&mut context);
    let told = told.map(|told| told.map(|told| told.outcome));
    assert_eq!(told, std::task::Poll::Ready(Some(Outcome::ShutDown)));
}

#[test]
fn references_that_were_given_back_do_not_come_back_beyond_the_limit() {
    let limits = Limits { references_max: 3, ..Limits::default() };
    let rig = empty(&limits);
    let create = |()| rig.classic.refer_to("tasks").unwrap();
    let given_back = [(); 5].map(|()| {
        let ident = create(());
        assert!(rig.classic.decref(&ident));
        ident
    });
    let expired = [(); 3].map(create);
    rig.pass(TIMEOUT);
    assert_eq!(references(&rig), 0);
    let counted = given_back.iter().filter(|ident| rig.classic.incref(ident)).count();
    assert_eq!((counted, references(&rig)), (3, 3));
    assert!(rig.classic.incref(&given_back[0]), "one that is held can be counted once more");
    let presence = rig.classic.enter("MainProcess", &"127.0.0.1:1".into());
    for ident in &expired {
        let reference = rig.classic.resolve(ident).unwrap();
        rig.classic.look(presence.caller(), reference, Queue::len).unwrap();
    }
    assert_eq!(references(&rig), 3, "their calls go through, and are no references");
}

#[test]
fn a_kill_is_no_clean_exit_where_a_reference_that_went_cannot_be_counted_again() {
    let limits = Limits { references_max: 2, ..Limits::default() };
    let rig = rig_within(&limits, at_once());
    let ident = rig.classic.refer_to("tasks").unwrap();
    rig.pass(TIMEOUT);
    assert_eq!(references(&rig), 0);
    let held = [(); 2].map(|()| rig.classic.refer_to("tasks").unwrap());
    let reference = rig.classic.resolve(&ident).unwrap();
    let tasks = Opened { ident, reference };
    let late = rig.thread("MainProcess", &tasks, &tasks);
    assert_eq!(late.get(), 1);
    assert_eq!(references(&rig), held.len() as u64, "there is no room for one more");
    late.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(1, 2), (2, 1), (3, 1)]);
}

#[test]
fn no_queue_is_made_for_a_reference_that_is_refused() {
    let limits = Limits { references_max: 1, ..Limits::default() };
    let rig = empty(&limits);
    rig.classic.refer_to("tasks").unwrap();
    let refused = rig.classic.refer_to_new(QueueOptions::default());
    assert!(matches!(refused, Err(NoReference::TooMany(1))));
    assert_eq!(rig.number_of_queues(), 1, "nobody could ever reach it");
}
