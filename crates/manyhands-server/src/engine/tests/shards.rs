//! Two shards: which has what, and what is the same as with one.

use super::restart::{look, redeem};
use super::*;
use crate::engine::shards::Common;
use crate::queue::Terms;

const SHARDS: u64 = 2;

/// Two groups of queues, in a shard each: what goes in at `tasks` comes out as `results`, and `other`
/// has dead letters of its own.
fn rig() -> Rig {
    within(&Limits::default())
}

fn within(limits: &Limits) -> Rig {
    let declared = [
        ("tasks", at_once().results("results").attempts(1)),
        ("other", at_once().attempts(1)),
        ("more", at_once()),
    ];
    let mut engine = Engine::of_shards(SHARDS, limits, Clock::manual(0));
    engine.group(declared.iter().map(|(name, options)| (*name, options)));
    for (name, options) in declared {
        engine.declare(name, options).unwrap();
    }
    engine.declare_named().unwrap();
    Rig::new(engine, limits)
}

fn shard(rig: &Rig, queue: &str) -> u64 {
    let queue = rig.engine.open(queue).unwrap().queue;
    let state = rig.engine.lock(queue);
    assert!(state.queues.contains_key(&queue));
    state.shard
}

fn put(rig: &Rig, queue: &str, number: u8, terms: Option<Box<Terms>>) {
    let queue = rig.engine.open(queue).unwrap();
    let put = rig.engine.put(Caller::IN_PROCESS, queue, item(number), terms, Wait::No).called;
    assert!(matches!(put, Ok(Called::Now(Outcome::Accepted(_)))), "{put:?}");
}

fn worker(rig: &Rig, name: &str) -> Client {
    rig.client(name)
}

fn get(worker: &Client, queue: &Opened) -> u8 {
    let called = worker.classic.get(worker.presence.caller(), queue.reference, 5, Wait::No).called;
    match called.unwrap() {
        Called::Now(Outcome::Task(grant)) => number(&grant),
        other => panic!("{other:?} instead of a task"),
    }
}

fn opened(rig: &Rig, queue: &str) -> Opened {
    let ident = rig.classic.refer_to(queue).unwrap();
    let reference = rig.classic.resolve(&ident).unwrap();
    Opened { ident, reference }
}

#[test]
fn queues_that_belong_together_are_in_one_shard() {
    let rig = rig();
    assert_eq!(shard(&rig, "tasks"), shard(&rig, "results"));
    assert_eq!(shard(&rig, "tasks"), shard(&rig, "tasks.dead"), "which is made here");
    assert_ne!(shard(&rig, "tasks"), shard(&rig, "other"));
    assert_eq!(shard(&rig, "tasks"), shard(&rig, "more"), "in turn");
    let names = ["more", "other", "results", "tasks", "tasks.dead"];
    assert_eq!(rig.names(), names, "one list, whoever has them");
    assert_eq!(rig.engine.number_of_listed(), names.len());
    let refused = Engine {
        create_on_use: false,
        ..Engine::of_shards(SHARDS, &Limits::default(), Clock::manual(0))
    };
    refused.declare("one", at_once()).unwrap();
    refused.declare("two", at_once()).unwrap();
    let error = refused.open("three").unwrap_err().to_string();
    assert!(error.contains("one") && error.contains("two"), "{error}");
}

#[test]
fn declared_queues_that_name_each_other_by_others_are_together_too() {
    let limits = Limits::default();
    let declared = [
        ("a", at_once().results("r")),
        ("b", at_once().results("s")),
        ("c", QueueOptions { dead: Some("s".into()), ..at_once().results("r") }),
        ("d", at_once()),
    ];
    let mut engine = Engine::of_shards(SHARDS, &limits, Clock::manual(0));
    engine.group(declared.iter().map(|(name, options)| (*name, options)));
    for (name, options) in declared {
        engine.declare(name, options).unwrap();
    }
    engine.declare_named().unwrap();
    let rig = Rig::new(engine, &limits);
    let first = shard(&rig, "a");
    assert!(["b", "c", "r", "s"].iter().all(|name| shard(&rig, name) == first));
    assert_ne!(shard(&rig, "d"), first);
}

#[test]
fn a_put_to_one_shard_settles_the_task_in_hand_from_another() {
    let rig = rig();
    let other = opened(&rig, "other");
    let unfinished = || rig.look("other", |queue| (queue.leased(), queue.tally().done));
    // At once, and by a put that has to wait.
    for number in 1..=2 {
        put(&rig, "other", number, None);
    }
    let worker = worker(&rig, "MainProcess");
    let caller = worker.presence.caller();
    let more = opened(&rig, "more");
    assert_eq!(get(&worker, &other), 1);
    assert!(matches!(worker.put(&more, 1), Ok(Called::Now(Outcome::Accepted(_)))));
    assert_eq!(unfinished(), (0, 1));

    rig.make_anew("more", QueueOptions::bounded(1));
    put(&rig, "more", 4, None);
    assert_eq!(get(&worker, &other), 2);
    let waiting = rig.classic.put(caller, more.reference, item(5), Wait::Forever).called;
    let Ok(Called::Later(waiter)) = waiting else { panic!("it does not wait: {waiting:?}") };
    assert_eq!(unfinished(), (1, 1), "it may still be refused");
    assert_eq!(rig.drain("more"), [(4, 1), (5, 1)]);
    let told = pin!(waiter).poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(told, Poll::Ready(Some(Completion { outcome: Outcome::Accepted(_), .. }))));
    assert_eq!(unfinished(), (0, 2));
}

#[test]
fn who_gives_up_a_put_that_was_let_in_has_settled_the_task_of_another_shard() {
    let rig = rig();
    let (other, more) = (opened(&rig, "other"), opened(&rig, "more"));
    rig.make_anew("more", QueueOptions::bounded(1));
    put(&rig, "more", 1, None);
    put(&rig, "other", 2, None);
    let worker = worker(&rig, "MainProcess");
    assert_eq!(get(&worker, &other), 2);
    let put = rig.classic.put(worker.presence.caller(), more.reference, item(3), Wait::Forever);
    assert!(matches!(put.called, Ok(Called::Later(_))));
    assert_eq!(rig.drain("more"), [(1, 1), (3, 1)]);
    drop(put);
    assert_eq!(rig.look("other", |queue| (queue.leased(), queue.tally().done)), (0, 1));
}

#[test]
fn a_killed_worker_gives_back_what_it_had_in_every_shard() {
    let rig = rig();
    let other = opened(&rig, "other");
    for queue in ["tasks", "other", "more"] {
        rig.make_anew(queue, at_once());
        put(&rig, queue, 1, None);
    }
    let worker = worker(&rig, "MainProcess");
    let more = opened(&rig, "more");
    assert_eq!((get(&worker, &other), get(&worker, &more)), (1, 1));
    let token = worker.lease(None);
    worker.vanish();
    rig.pass(A_WHILE);
    for queue in ["tasks", "other", "more"] {
        assert_eq!(rig.drain(queue), [(1, 2)], "{queue}");
    }
    let caller = Caller::IN_PROCESS;
    let tasks = rig.engine.open("tasks").unwrap();
    let late = rig.engine.ack(caller, tasks, token, None, Wait::No).called;
    assert!(matches!(late, Err(CallError::StaleToken)), "{late:?}");
}

#[test]
fn results_and_dead_letters_are_made_in_the_shard_of_their_task() {
    let rig = rig();
    put(&rig, "tasks", 1, None);
    put(&rig, "tasks", 2, None);
    let worker = worker(&rig, "MainProcess");
    assert_eq!(worker.get(), 1);
    worker.answer(7);
    assert_eq!(worker.get(), 2);
    worker.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("results"), [(7, 1)]);
    assert_eq!(rig.drain("tasks.dead").len(), 1);
    assert_eq!(shard(&rig, "tasks.dead"), shard(&rig, "tasks"));
}

#[test]
fn the_timer_serves_all_shards_and_their_end_ends_all_calls() {
    let rig = rig();
    let delay = |seconds| {
        Some(Box::new(Terms { delay: Some(Duration::from_secs(seconds)), ..Terms::default() }))
    };
    put(&rig, "more", 1, delay(5));
    put(&rig, "other", 2, delay(9));
    let now = rig.engine.now();
    assert_eq!(rig.engine.arm(), Some(now + Duration::from_secs(5)));
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.engine.arm(), Some(now + Duration::from_secs(9)));
    rig.pass(Duration::from_secs(5));
    assert_eq!((rig.drain("more"), rig.drain("other")), (vec![(1, 1)], vec![(2, 1)]));
    let mut waits = ["more", "other"].map(|name| {
        let queue = rig.engine.open(name).unwrap();
        let get = rig.engine.get(Caller::IN_PROCESS, queue, 5, Wait::Forever);
        redeem(&rig.engine, Caller::IN_PROCESS, queue, get)
    });
    assert!(waits.iter_mut().all(|wait| look(wait).is_pending()));
    rig.engine.stop();
    assert!(waits.iter_mut().all(|wait| matches!(look(wait), Poll::Ready(None))));
}

#[test]
fn shards_share_the_memory_and_one_waits_for_what_another_gives_back() {
    let limits = Limits { memory_bytes_max: 4 << 20, ..Limits::default() };
    let rig = within(&limits);
    let large = || Payload::pickle(2, Bytes::from(vec![0; 256 << 10]));
    let (tasks, other) = (rig.engine.open("more").unwrap(), rig.engine.open("other").unwrap());
    let caller = Caller::IN_PROCESS;
    let mut count = 0;
    while let Ok(Called::Now(Outcome::Accepted(_))) =
        rig.engine.put(caller, tasks, large(), None, Wait::No).called
    {
        count += 1;
        assert!(count < 16, "nothing bounds it");
    }
    let put = rig.engine.put(caller, other, large(), None, Wait::No).called;
    assert!(!matches!(put, Ok(Called::Now(Outcome::Accepted(_)))), "the other shard is full, too");
    let put = rig.engine.put(caller, other, large(), None, Wait::Forever);
    let mut put = redeem(&rig.engine, caller, other, put);
    assert!(look(&mut put).is_pending());
    for _ in 0..2 {
        assert!(matches!(
            rig.engine.get(caller, tasks, 5, Wait::No).called,
            Ok(Called::Now(Outcome::Task(_)))
        ));
    }
    assert!(
        pin!(rig.engine.timer.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready(),
        "the timer is told"
    );
    rig.expire();
    assert!(matches!(look(&mut put), Poll::Ready(Some(Outcome::Accepted(_)))));
    let used = rig.engine.shards.common().used_by_others(SHARDS);
    let sum: u64 = rig.engine.lock_each().map(|state| state.step.budget.used).sum();
    assert_eq!(used, sum);
    assert_eq!(Common::of(1).used_by_others(0), 0);
}
