//! What a purge or a drop leaves: gone at once, and cleared away a few tasks at a time.

use manyhands::wire::arguments::Wait;

use super::*;
use crate::engine::NotDropped;
use crate::queue::{Outcome, QueueOptions, Terms};

const MANY: u8 = 200;

/// Turns of the timer until nothing is left to be done at this moment, each of a bounded number of
/// tasks.
fn turns(rig: &Rig) -> usize {
    let mut turns = 0;
    while rig.due() {
        rig.engine.expire();
        turns += 1;
    }
    turns
}

fn used(rig: &Rig) -> u64 {
    rig.engine.lock(0).step.budget.used
}

/// A queue called `full` with many tasks, and a reference to it.
fn full(options: QueueOptions) -> (Rig, Reference) {
    let limits = Limits::default();
    let rig = rig_of(Engine::simulated(&limits, Clock::manual(0)), &limits, at_once());
    rig.drain("tasks");
    rig.engine.ensure(&mut rig.engine.lock(0), "full", options).unwrap();
    let full = rig.engine.open("full").unwrap();
    for number in 0..MANY {
        put(&rig, full, number, Terms::default());
    }
    (rig, full)
}

fn put(rig: &Rig, to: Reference, number: u8, terms: Terms) {
    let terms = (terms != Terms::default()).then(|| Box::new(terms));
    let called = rig.engine.put(Caller::IN_PROCESS, to, item(number), terms, Wait::No).called;
    assert!(matches!(called, Ok(Called::Now(Outcome::Accepted(_)))), "{called:?}");
}

#[test]
fn a_purge_drops_all_that_is_there_at_once_and_gives_its_memory_back_by_and_by() {
    for options in [at_once(), QueueOptions::lifo(), QueueOptions::priority()] {
        let (rig, full) = full(options);
        let key = || Terms { key: Some(Arc::from(*b"key")), ..Terms::default() };
        let delay = Some(Duration::from_secs(9));
        put(&rig, full, 201, Terms { delay, ..key() });
        let before = used(&rig);
        assert_eq!(rig.engine.purge(full).called.unwrap(), u64::from(MANY) + 1);
        assert_eq!(rig.look("full", |queue| (queue.len(), queue.delayed(), queue.unfinished())), {
            (0, 0, 0)
        });
        assert_eq!(used(&rig), before, "the purge itself has cleared nothing");
        // What comes now stays, under the same key, too.
        put(&rig, full, 202, key());
        assert!(turns(&rig) > 3, "others have their turn");
        assert_eq!(rig.look("full", Queue::len), 1);
        rig.pass(A_WHILE);
        assert_eq!(rig.drain("full"), [(202, 1)]);
        assert_eq!(rig.engine.purge(full).called.unwrap(), 0);
        rig.pass(A_WHILE);
        assert_eq!(used(&rig), 0);
    }
}

#[test]
fn a_key_that_is_put_again_after_a_purge_is_known_for_all_of_its_window() {
    let (rig, full) = full(QueueOptions { dedup: Duration::from_secs(10), ..at_once() });
    let keyed = || Terms { key: Some(Arc::from(*b"key")), ..Terms::default() };
    put(&rig, full, 1, keyed());
    rig.engine.clock.put_forward(Duration::from_secs(5));
    rig.engine.purge(full).called.unwrap();
    put(&rig, full, 2, keyed());
    // The first window ends before anything could be cleared away.
    rig.engine.clock.put_forward(Duration::from_secs(6));
    turns(&rig);
    let again =
        rig.engine.put(Caller::IN_PROCESS, full, item(3), Some(Box::new(keyed())), Wait::No).called;
    assert!(matches!(again, Ok(Called::Now(Outcome::Known))), "{again:?}");
    rig.pass(Duration::from_secs(5));
    put(&rig, full, 4, keyed());
}

#[test]
fn a_put_that_waits_for_memory_is_let_in_as_that_is_given_back() {
    let limits = Limits { memory_bytes_max: 20_000, ..Limits::default() };
    let rig = rig_within(&limits, at_once());
    let full = rig.engine.open("full").unwrap();
    let put = |wait| rig.engine.put(Caller::IN_PROCESS, full, item(1), None, wait);
    while !matches!(put(Wait::No).called, Ok(Called::Now(Outcome::Full))) {}
    let waits = put(Wait::Forever);
    assert!(matches!(waits.called, Ok(Called::Later(_))), "there is room: {waits:?}");
    let mut waiting = restart::redeem(&rig.engine, Caller::IN_PROCESS, full, waits);
    rig.engine.purge(full).called.unwrap();
    turns(&rig);
    assert!(matches!(restart::look(&mut waiting), Poll::Ready(Some(Outcome::Accepted(_)))));
}

#[test]
fn a_purge_ends_a_join_before_it_lets_a_put_in() {
    let rig = rig(QueueOptions::bounded(3));
    let (caller, tasks) = (Caller::IN_PROCESS, rig.engine.open("tasks").unwrap());
    let put = rig.engine.put(caller, tasks, item(4), None, Wait::Forever);
    let mut put = restart::redeem(&rig.engine, caller, tasks, put);
    let join = rig.engine.join(caller, tasks);
    let mut join = restart::redeem(&rig.engine, caller, tasks, join);
    assert!(restart::look(&mut put).is_pending() && restart::look(&mut join).is_pending());
    assert_eq!(rig.engine.purge(tasks).called.unwrap(), 3);
    assert!(matches!(restart::look(&mut join), Poll::Ready(Some(Outcome::Joined))));
    assert!(matches!(restart::look(&mut put), Poll::Ready(Some(Outcome::Accepted(_)))));
    assert_eq!(rig.look("tasks", |queue| (queue.len(), queue.unfinished())), (1, 1));
}

#[test]
fn a_name_is_free_as_soon_as_its_queue_is_dropped_and_leases_go_with_it() {
    let (rig, full) = full(at_once());
    // The program has asked for it; a client would find it as it was made.
    rig.engine.lock(0).queues.get_mut(&full.queue).unwrap().stays = false;
    let worker = rig.client("a");
    let taking = Taking {
        protocol_max: 5,
        settled_by: SettledBy::Token,
        is_informed: false,
        max: 100,
        bytes_max: usize::MAX,
    };
    let (caller, mut batch) = (worker.presence.caller(), Batch::default());
    let shown = Shown::default();
    rig.engine.get_many(caller, full, taking, Wait::No, &shown, &mut batch).called.unwrap();
    assert_eq!((batch.grants.len(), rig.leases()), (100, 100));
    assert_eq!(rig.engine.drop_queue("full", true).unwrap().0, u64::from(MANY));
    assert!(matches!(rig.engine.drop_queue("full", true), Err(NotDropped::NoQueue(_))));
    let ident = rig.classic.refer_to("full").unwrap();
    let anew = rig.classic.resolve(&ident).unwrap();
    put(&rig, anew, 7, Terms::default());
    assert!(rig.leases() > 0, "the drop itself has not looked at all of them");
    assert!(turns(&rig) > 3, "others have their turn");
    assert_eq!(rig.leases(), 0);
    assert_eq!(rig.drain("full"), [(7, 1)]);
    assert_eq!(used(&rig), 0);
    drop(worker.presence);
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("full"), []);
}

#[test]
fn results_of_tasks_that_were_purged_are_not_waited_for() {
    let options = at_once().results("results");
    let rig = rig(options);
    let results = rig.engine.open("results").unwrap();
    let ordered = QueueOptions { ordered: true, ..at_once() };
    rig.engine.lock(0).on(results.queue, |queue, _| *queue = Queue::new(ordered, 0));
    let tasks = rig.engine.open("tasks").unwrap();
    for number in 4..50 {
        put(&rig, tasks, number, Terms::default());
    }
    let (first, second) = (rig.client("MainProcess"), rig.client("MainProcess"));
    assert_eq!((first.get(), second.get()), (1, 2));
    rig.engine.purge(tasks).called.unwrap();
    put(&rig, tasks, 50, Terms::default());
    let last = rig.client("MainProcess");
    assert_eq!(last.get(), 50);
    last.answer(150);
    second.answer(102);
    rig.pass(Duration::ZERO);
    assert_eq!(rig.drain("results"), []);
    first.answer(101);
    assert_eq!(rig.drain("results"), [(101, 1), (102, 1), (150, 1)]);
}

#[test]
fn queues_that_go_together_are_not_cleared_away_in_one_step() {
    const QUEUES: usize = 20;
    let limits = Limits::default();
    let rig = rig_of(Engine::simulated(&limits, Clock::manual(0)), &limits, at_once());
    rig.drain("tasks");
    let before = used(&rig);
    let queues: Vec<_> =
        (0..QUEUES).map(|_| rig.engine.refer_to_new(QueueOptions::default()).unwrap()).collect();
    for queue in &queues {
        put(&rig, *queue, 1, Terms::default());
    }
    rig.engine.release(&queues);
    assert_eq!(rig.engine.lock(0).ruins.len(), QUEUES - 1);
    assert!(turns(&rig) > 1);
    assert_eq!(used(&rig), before);
}
