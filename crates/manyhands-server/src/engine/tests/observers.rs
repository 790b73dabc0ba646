//! Whoever looks sees every change of every queue in order, and costs nothing if it looks away.

use super::*;
use crate::engine::observers::{News, Observed, Observer};
use crate::queue::{Change, Terms};

const PLENTY: usize = 1 << 20;

/// The same in memory and on disk, with an empty queue.
fn on_both(test: impl Fn(&Rig)) {
    let options = at_once().attempts(2);
    let rig = empty(&Limits::default());
    rig.engine.declare("tasks", options.clone()).unwrap();
    test(&rig);
    let (_disk, world) = restart::tasks(options);
    test(&world.rig);
}

/// All that can happen to a task.
fn use_queues(rig: &Rig) {
    let worker = rig.client("a");
    let (engine, caller, tasks) = (&rig.engine, worker.presence.caller(), worker.tasks.reference);
    let put = |number, terms| {
        engine.put(caller, tasks, item(number), terms, Wait::No).called.unwrap();
    };
    for number in [1, 2, 3] {
        put(number, None);
    }
    for retry in [Retry::After(Duration::ZERO), Retry::Never] {
        engine.nack(caller, tasks, worker.lease(None), retry, "broken").called.unwrap();
    }
    engine.ack(caller, tasks, worker.lease(None), None, Wait::No).called.unwrap();
    let expires = Some(Duration::from_secs(1));
    put(4, Some(Box::new(Terms { expires, ..Terms::default() })));
    rig.pass(A_WHILE);
    engine.purge(tasks).called.unwrap();
    engine.drop_queue("tasks.dead", true).unwrap();
}

fn words(Observed { name, change, .. }: &Observed) -> String {
    let change = match change {
        Change::Put { task, .. } => format!("put {}", task.0),
        Change::Leased { token, .. } => {
            format!("leased {}, attempt {}", token.task.0, token.attempt)
        }
        Change::Returned { task, attempt, .. } => format!("returned {}: {}", task.0, attempt.cause),
        Change::Dead { task, attempt } => format!("dead {}: {}", task.0, attempt.cause),
        Change::Acked { task, .. } => format!("acked {}", task.0),
        Change::Expired { task } => format!("expired {}", task.0),
        other => format!("{other:?}").chars().take_while(|char| char.is_alphanumeric()).collect(),
    };
    format!("{}: {change}", name.as_deref().unwrap_or("no name"))
}

fn seen(observer: &Observer) -> Vec<String> {
    let News { changes, missed } = observer.take();
    assert_eq!(missed, 0);
    changes.iter().map(words).collect()
}

#[test]
fn every_change_of_every_queue_is_seen_in_order_in_memory_and_on_disk() {
    on_both(|rig| {
        let observers = [rig.engine.observe(PLENTY, PLENTY), rig.engine.observe(PLENTY, PLENTY)];
        use_queues(rig);
        let expected = [
            "results: Declared",
            "tasks: put 0",
            "tasks: put 1",
            "tasks: put 2",
            "tasks: leased 0, attempt 1",
            "tasks: returned 0: broken",
            "tasks: leased 0, attempt 2",
            "tasks: dead 0: broken",
            "tasks.dead: Declared",
            "tasks.dead: put 0",
            "tasks: leased 1, attempt 1",
            "tasks: acked 1",
            "tasks: Settled",
            "tasks: Done",
            "tasks: put 3",
            "tasks: expired 3",
            "tasks: Cleared",
            "tasks.dead: ShutDown",
            "tasks.dead: Cleared",
            "tasks.dead: Dropped",
        ];
        for observer in observers {
            assert_eq!(seen(&observer), expected);
            assert_eq!(observer.take().changes, [], "all was taken");
        }
    });
}

#[test]
fn what_is_observed_says_when_and_how_long_the_item_was_but_does_not_keep_it() {
    on_both(|rig| {
        let observer = rig.engine.observe(PLENTY, PLENTY);
        rig.pass(A_WHILE);
        let before = rig.engine.now();
        let tasks = rig.engine.open("tasks").unwrap();
        rig.engine.put(Caller::IN_PROCESS, tasks, item(1), None, Wait::No).called.unwrap();
        let News { changes, .. } = observer.take();
        let [Observed { at, queue, change, item_len, .. }] = &changes[..] else {
            panic!("{changes:?}");
        };
        assert!(before <= *at && *at <= rig.engine.now());
        assert_eq!((*queue, *item_len), (tasks.queue, item(1).bytes.len()));
        let Change::Put { payload, .. } = change else { panic!("{change:?}") };
        assert_eq!(payload, &Payload { bytes: Bytes::new(), ..item(1) });
    });
}

#[test]
fn what_finds_no_room_is_dropped_and_counted() {
    let room_of_two = 2 * size_of::<Observed>() + 200;
    for (len_max, bytes_max) in [(2, PLENTY), (PLENTY, room_of_two)] {
        on_both(|rig| {
            let (behind, other) =
                (rig.engine.observe(len_max, bytes_max), rig.engine.observe(PLENTY, PLENTY));
            let tasks = rig.engine.open("tasks").unwrap();
            let put = |number| {
                rig.engine
                    .put(Caller::IN_PROCESS, tasks, item(number), None, Wait::No)
                    .called
                    .unwrap();
            };
            (1..=5).for_each(put);
            let News { changes, missed } = behind.take();
            assert_eq!((changes.len(), missed), (2, 3));
            assert_eq!(changes, other.take().changes[..2]);
            put(6);
            assert_eq!(seen(&behind), ["tasks: put 5"], "it goes on after the gap");
        });
    }
}

#[test]
fn an_observer_that_is_dropped_is_told_no_more() {
    on_both(|rig| {
        let observer = rig.engine.observe(PLENTY, PLENTY);
        assert!(!rig.engine.lock(0).observers.is_empty());
        drop(observer);
        rig.engine.refer_to("another").unwrap();
        assert!(rig.engine.lock(0).observers.is_empty());
    });
}

#[test]
fn the_log_is_the_same_whether_or_not_anybody_looks() {
    let files = [false, true].map(|is_observed| {
        let (disk, mut world) = restart::tasks(at_once().attempts(2));
        let observer = is_observed.then(|| world.rig.engine.observe(PLENTY, PLENTY));
        use_queues(&world.rig);
        world.sync();
        assert_eq!(observer.map(|it| it.take().changes.is_empty()), is_observed.then_some(false));
        disk.files()
    });
    assert!(files[0] == files[1]);
}
