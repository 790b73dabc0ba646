//! What the engine is told of who has a task, and what the front end knows of what has ended meanwhile.

use manyhands::wire::tasks::{Peek, Peeked, TaskState};

use super::*;
use crate::engine::Looked;

fn leased(rig: &Rig) -> Vec<Peeked> {
    let tasks = rig.engine.open("tasks").unwrap();
    let mut looked = Looked::of(Peek { max: 100, state: TaskState::Leased, items: false });
    while rig.engine.look_on(tasks, &mut looked).unwrap() {}
    looked.finish()
}

#[test]
fn a_look_tells_the_session_that_has_taken_a_task_over() {
    let rig = strict();
    let worker = rig.client("MainProcess");
    assert_eq!([worker.get(), worker.get()], [1, 2]);
    let tasks = worker.tasks.clone();
    worker.vanish();
    let again = rig.classic.enter("MainProcess", &"127.0.0.1:2".into());
    rig.classic.look(again.caller(), tasks.reference, Queue::len).unwrap();
    let peers = |rig: &Rig| leased(rig).into_iter().map(|it| it.peer).collect::<Vec<_>>();
    let both = |port: u16| vec![Some(format!("127.0.0.1:{port}")); 2];
    assert_eq!(peers(&rig), both(1));
    rig.pass(A_WHILE);
    assert_eq!(peers(&rig), both(2));
    drop(again);
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(1, 2), (2, 2), (3, 1)]);
}

#[test]
fn a_result_that_was_let_in_as_its_worker_left_has_settled_its_task() {
    let rig = rig(at_once().results("answers"));
    let answers = rig.engine.open("answers").unwrap();
    rig.make_anew("answers", QueueOptions::bounded(1));
    let worker = rig.client("MainProcess");
    let put = |number, wait| {
        rig.classic.put(worker.presence.caller(), answers, item(number), wait).called.unwrap()
    };
    assert!(matches!(put(7, Wait::No), Called::Now(Outcome::Accepted(_))));
    assert_eq!(worker.get(), 1);
    let Called::Later(waiter) = put(10, Wait::Forever) else { panic!("there is no room") };
    assert_eq!(rig.drain("answers"), [(7, 1), (10, 1)]);
    drop(waiter);
    worker.end(true);
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(2, 1), (3, 1)]);
    assert_eq!(rig.look("tasks", Queue::tally).stale, 0, "nobody tries to settle it once more");
}

#[test]
fn a_worker_that_loses_its_task_after_max_run_is_known_by_name() {
    let minute = Duration::from_secs(60);
    let rig = rig(at_once().max_run(minute).attempts(1));
    let slow = rig.client("MainProcess");
    assert_eq!(slow.get(), 1);
    rig.pass(minute);
    let letters = rig.look("tasks.dead", |queue| queue.look_at(TaskState::Ready, None, 1, false).0);
    let (_, failed) = &letters[0].failures[0];
    assert_eq!(failed.worker.as_deref(), Some("MainProcess at 127.0.0.1:1"));
}

#[test]
fn what_is_remembered_of_references_leaves_less_memory_for_tasks() {
    let rig = plain();
    let before = rig.engine.memory().for_tasks(0);
    let idents: Vec<_> = (0..10_000).map(|_| rig.classic.refer_to("tasks").unwrap()).collect();
    assert!(rig.engine.memory().for_tasks(0) + (1 << 20) < before);
    idents.iter().for_each(|ident| assert!(rig.classic.decref(ident)));
    assert_eq!(rig.engine.memory().for_tasks(0), before);
}
