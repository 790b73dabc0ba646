//! Results of workers that were cut off.

use super::*;
use crate::config::Limits;
use crate::engine::Engine;
use crate::frontend::classic::waiter::Waiter;
use crate::queue::{Order, Patience, Prepared, Unasked};

impl Client {
    /// Another session of the same thread.
    fn again(&self, rig: &Rig) -> Self {
        rig.thread("MainProcess", &self.tasks, &self.results)
    }

    /// Puts a first result, by which both of its references are known to be of one process.
    fn warm_up(&self) {
        self.get();
        self.answer(10);
    }
}

#[test]
fn a_result_on_a_new_session_settles_the_task_that_its_worker_was_cut_off_with() {
    let a_moment = Duration::from_millis(10);
    for (passes, attempt) in [(a_moment, 1), (A_WHILE, 1)] {
        let rig = strict();
        let worker = rig.client("MainProcess");
        worker.warm_up();
        assert_eq!(worker.get(), 2);
        let (tasks, results) = (worker.tasks.clone(), worker.results.clone());
        worker.end(true);
        rig.pass(passes);
        let again = rig.thread("MainProcess", &tasks, &results);
        again.answer(20);
        assert_eq!(rig.look("tasks", |queue| (queue.len(), queue.leased())), (1, 0));
        assert_eq!(rig.drain("tasks"), [(3, attempt)]);
        let results = rig.engine.open("results").unwrap();
        assert_eq!(rig.look("results", Queue::len), 2);
        let taken = |_| rig.engine.get(Caller::IN_PROCESS, results, 5, Wait::No).called.unwrap();
        for called in [(), ()].map(taken) {
            assert!(matches!(called, Called::Now(Outcome::Task(_))));
        }
        again.vanish();
        rig.pass(A_WHILE);
        assert_eq!(rig.look("tasks", Queue::leased), 0);
    }
}

#[test]
fn the_result_of_a_worker_that_was_cut_off_is_refused_once_somebody_else_has_its_task() {
    let rig = strict();
    let worker = rig.client("MainProcess");
    worker.warm_up();
    worker.get();
    let (tasks, results) = (worker.tasks.clone(), worker.results.clone());
    worker.end(true);
    rig.pass(A_WHILE);
    let other = rig.client("MainProcess");
    assert_eq!(other.get(), 2);
    let again = rig.thread("MainProcess", &tasks, &results);
    assert!(matches!(again.put(&again.results, 20), Err(CallError::Stale)));
    other.answer(21);
    assert_eq!(rig.drain("results"), [(10, 1), (21, 1)]);
}

#[test]
fn what_others_put_is_no_result_of_a_task_that_somebody_was_cut_off_with() {
    let rig = strict();
    let worker = rig.client("MainProcess");
    worker.warm_up();
    worker.get();
    // A child that its parent forked before, and a worker with references of its own.
    let (child, other) = (worker.again(&rig), rig.client("MainProcess"));
    // One that was there already, and one that has a task of its own.
    let (tasks, results) = (worker.tasks.clone(), worker.results.clone());
    rig.pass(Duration::from_millis(1));
    worker.end(true);
    rig.pass(Duration::from_millis(1));
    child.answer(30);
    other.answer(31);
    let busy = rig.thread("MainProcess", &tasks, &results);
    assert_eq!(busy.get(), 3);
    busy.answer(32);
    busy.answer(33);
    assert_eq!(rig.look("tasks", Queue::leased), 1, "nobody has answered it");
    assert_eq!(rig.look("results", Queue::len), 5);
}

#[test]
fn a_queue_that_refuses_what_is_unasked_takes_results_alone() {
    let limits = Limits::default();
    let engine = Engine::new(&limits, true, 7);
    let results = QueueOptions { unasked: Unasked::Refuse, ..QueueOptions::default() };
    engine.declare("results", results).unwrap();
    let rig = rig_of(engine, &limits, QueueOptions::default().results("results"));
    let worker = rig.client("MainProcess");
    let is_refused =
        |put: Result<Called<Waiter>, CallError>| matches!(put, Err(CallError::Unasked));
    assert!(is_refused(worker.put(&worker.results, 1)));
    worker.get();
    worker.answer(10);
    assert!(is_refused(worker.put(&worker.results, 11)));
    let native = rig.client("native");
    let (session, at) = (native.presence.caller(), native.results.reference);
    let mut items = vec![Prepared::new(item(12), None, Order::Fifo)].into_iter();
    let added = rig.engine.put_many(session, at, &mut items, Patience::Now, None);
    assert!(matches!(added.end.called, Err(CallError::Unasked)));
    let (token, tasks) = (native.lease(None), native.tasks.reference);
    rig.engine.ack(session, tasks, token, Some(item(13)), Wait::No).called.unwrap();
    assert_eq!(rig.drain("results"), [(10, 1), (13, 1)]);
}

#[test]
fn what_its_next_session_has_shown_to_be_through_stays_so_when_it_takes_over_the_hand() {
    let rig = plain();
    let first = rig.client("MainProcess");
    let second = rig.thread("MainProcess", &first.tasks, &first.results);
    for (client, number) in [(&first, 1), (&second, 2)] {
        assert_eq!(client.get(), number);
        let mut hands = rig.classic.hands();
        let session = hands.sessions.all.get_mut(&client.presence.caller()).unwrap();
        session.mark_through(client.tasks.reference.queue);
    }
    first.vanish();
    rig.pass(A_WHILE);
    second.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(3, 1)]);
}

#[test]
fn a_task_that_is_being_answered_on_a_new_session_stays_when_its_reply_was_not_read() {
    let rig = strict();
    let worker = rig.client("MainProcess");
    worker.warm_up();
    rig.make_anew("results", QueueOptions::bounded(1));
    let other = rig.client("MainProcess");
    other.put(&other.results, 10).unwrap();
    let tasks = worker.tasks.reference;
    let got = worker.classic.get(worker.presence.caller(), tasks, 5, Wait::No).called.unwrap();
    let Called::Now(Outcome::Task(grant)) = got else { panic!("no task") };
    worker.presence.depart(rig.engine.now(), true);
    let again = worker.again(&rig);
    let (caller, results) = (again.presence.caller(), again.results.reference);
    let put = again.classic.put(caller, results, item(20), Wait::Forever).called;
    assert!(matches!(put, Ok(Called::Later(_))), "there is a result already");
    worker.classic.return_unread(worker.presence.caller(), tasks, grant.token);
    assert_eq!(rig.look("tasks", |queue| (queue.len(), queue.leased())), (1, 1));
    drop(worker);
    let results = [rig.drain("results"), rig.drain("results")].concat();
    assert_eq!(results, [(10, 1), (20, 1)]);
    assert_eq!(rig.look("tasks", |queue| (queue.len(), queue.leased())), (1, 0));
}
