//! What becomes of the task in a client's hand, however the client leaves.
//!
//! The clients are unmodified Python's as their sessions present them: references and calls.

mod crowds;
mod cut_off;
mod holders;
mod unused;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;

use super::sessions::UNDECIDED;
use crate::config::Limits;
use crate::engine::tests::*;
use crate::engine::{Called, Caller};
use crate::error::CallError;
use crate::labour;
use crate::queue::{Cause, Failed, Outcome, Queue, QueueOptions, TaskId};

#[test]
fn a_task_of_a_killed_worker_goes_back_to_its_place_with_one_more_attempt() {
    for rig in [plain(), strict()] {
        let worker = rig.client("MainProcess");
        assert_eq!(worker.get(), 1);
        worker.vanish();
        assert_eq!(rig.look("tasks", Queue::leased), 1, "nothing happens at once");
        rig.pass(A_WHILE);
        assert_eq!(rig.drain("tasks"), [(1, 2), (2, 1), (3, 1)]);
    }
}

#[test]
fn a_task_of_a_worker_that_exits_counts_as_done_unless_a_result_is_demanded() {
    let (plain, strict) = (plain(), strict());
    for rig in [&plain, &strict] {
        let worker = rig.client("MainProcess");
        worker.get();
        worker.exit();
        rig.pass(A_WHILE);
    }
    assert_eq!(plain.drain("tasks"), [(2, 1), (3, 1)]);
    assert_eq!(strict.drain("tasks"), [(1, 2), (2, 1), (3, 1)]);
}

#[test]
fn the_next_get_settles_the_task_before_unless_a_result_is_demanded() {
    let (plain, strict) = (plain(), strict());
    for rig in [&plain, &strict] {
        let worker = rig.client("MainProcess");
        assert_eq!([worker.get(), worker.get()], [1, 2]);
        worker.vanish();
        rig.pass(A_WHILE);
    }
    assert_eq!(plain.drain("tasks"), [(2, 2), (3, 1)]);
    assert_eq!(strict.drain("tasks"), [(1, 2), (2, 2), (3, 1)]);
}

#[test]
fn a_put_to_another_queue_settles_a_task_and_one_to_its_own_does_not() {
    let rig = plain();
    let worker = rig.client("MainProcess");
    worker.get();
    worker.put(&worker.tasks, 4).unwrap();
    assert_eq!(rig.look("tasks", Queue::leased), 1);
    worker.answer(10);
    assert_eq!(rig.look("tasks", Queue::leased), 0);
    worker.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(2, 1), (3, 1), (4, 1)]);
}

#[test]
fn a_result_settles_the_oldest_task_in_hand_and_knows_it() {
    let rig = strict();
    let worker = rig.client("MainProcess");
    assert_eq!([worker.get(), worker.get()], [1, 2]);
    worker.answer(10);
    let reader = rig.client("MainProcess");
    let taken = rig.classic.get(reader.presence.caller(), reader.results.reference, 5, Wait::No);
    let Called::Now(Outcome::Task(result)) = taken.called.unwrap() else { panic!("no result") };
    let origin = rig.look("results", |queue| queue.origin(result.token.task).cloned()).unwrap();
    assert_eq!((&*origin.queue, origin.task, origin.attempt), ("tasks", TaskId(0), 1));
    assert_eq!(&*origin.worker, "MainProcess at 127.0.0.1:1");
    worker.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(2, 2), (3, 1)]);
}

#[test]
fn the_place_of_a_result_is_found_while_others_may_look_at_what_they_have_in_hand() {
    let rig = strict();
    let results = rig.engine.open("results").unwrap();
    rig.make_anew("results", QueueOptions::priority());
    let worker = rig.client("MainProcess");
    worker.get();
    let (classic, found) = (rig.classic.clone(), Rc::<RefCell<Vec<bool>>>::default());
    let looked = found.clone();
    labour::watch(move || looked.borrow_mut().push(classic.is_free()));
    let text = [b"X", &(8u32 << 10).to_le_bytes()[..], &[b'x'; 8 << 10]].concat();
    let result = Payload::pickle(2, text.into());
    let put = rig.classic.put(worker.presence.caller(), results, result, Wait::No).called;
    assert!(matches!(put, Ok(Called::Now(Outcome::Accepted(_)))), "{put:?}");
    assert_eq!(*found.borrow(), [true, true], "when it is copied, and when its place is found");
    assert_eq!(rig.look("tasks", Queue::leased), 0);
}

#[test]
fn task_done_settles_the_oldest_task_in_hand_and_counts_down_once() {
    for rig in [plain(), strict()] {
        let worker = rig.client("MainProcess");
        worker.get();
        worker.task_done();
        assert_eq!(rig.look("tasks", Queue::unfinished), 2);
        worker.vanish();
        rig.pass(A_WHILE);
        assert_eq!(rig.drain("tasks"), [(2, 1), (3, 1)]);
    }
}

#[test]
fn task_done_after_the_result_only_counts_down() {
    let rig = strict();
    let worker = rig.client("MainProcess");
    assert_eq!([worker.get(), worker.get()], [1, 2]);
    worker.answer(10);
    worker.answer(20);
    worker.task_done();
    worker.task_done();
    assert_eq!(rig.look("tasks", Queue::unfinished), 1);
    assert_eq!(rig.look("tasks", Queue::leased), 0);
}

#[test]
fn with_delivery_as_in_cpython_a_task_is_settled_when_it_is_handed_out() {
    let delivery = crate::queue::Delivery::Cpython;
    let rig = rig(QueueOptions { delivery, ..at_once() });
    let worker = rig.client("MainProcess");
    worker.get();
    assert_eq!(rig.look("tasks", Queue::leased), 0);
    worker.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(2, 1), (3, 1)]);
}

#[test]
fn a_worker_killed_while_it_waits_takes_nothing() {
    let rig = plain();
    rig.drain("tasks");
    let worker = rig.client("MainProcess");
    let waiter = worker.wait();
    drop(waiter);
    worker.end(true);
    let master = rig.client("MainProcess");
    master.put(&master.tasks, 9).unwrap();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(9, 1)]);
}

#[test]
fn an_item_given_to_a_call_that_was_just_given_up_goes_back_without_an_attempt() {
    let rig = plain();
    rig.drain("tasks");
    let worker = rig.client("MainProcess");
    let waiter = worker.wait();
    let master = rig.client("MainProcess");
    master.put(&master.tasks, 9).unwrap();
    drop(waiter);
    assert_eq!(rig.drain("tasks"), [(9, 1)]);
    worker.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), []);
}

#[test]
fn an_item_whose_reply_was_not_read_goes_back_without_an_attempt() {
    let rig = plain();
    let worker = rig.client("MainProcess");
    let (session, tasks) = (worker.presence.caller(), worker.tasks.reference);
    let taken = rig.classic.get(session, tasks, 5, Wait::No).called.unwrap();
    let Called::Now(Outcome::Task(grant)) = taken else { panic!("no task") };
    worker.presence.depart(rig.engine.now(), false);
    worker.release();
    rig.classic.return_unread(session, tasks, grant.token);
    drop(worker);
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(1, 1), (2, 1), (3, 1)]);
}

#[test]
fn only_an_ident_that_was_given_out_is_known() {
    let rig = plain();
    let ident = rig.classic.refer_to("tasks").unwrap();
    assert!(rig.classic.is_own(&ident));
    let (front, seal) = ident.rsplit_once('.').unwrap();
    let other = format!("{:016x}", u64::from_str_radix(seal, 16).unwrap() ^ 1);
    let foreign = [
        String::new(),
        "..".into(),
        front.into(),
        format!("{front}."),
        format!("{front}.{other}"),
        format!("{front}.+{seal}"),
        format!("{front}.0{seal}"),
        format!("{front}.{seal}."),
        format!("{front}.{seal}.0"),
        format!("1{front}.{seal}"),
        "7fcf056506a0".into(),
    ];
    for ident in foreign {
        assert!(!rig.classic.is_own(&ident), "{ident}");
    }
}

#[test]
fn a_late_release_within_the_grace_makes_an_end_clean() {
    let rig = plain();
    let worker = rig.client("MainProcess");
    worker.get();
    let (tasks, results) = (worker.tasks.clone(), worker.results.clone());
    worker.vanish();
    rig.pass(Duration::from_millis(500));
    assert!(rig.classic.decref(&results.ident) && rig.classic.decref(&tasks.ident));
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(2, 1), (3, 1)]);
}

#[test]
fn a_task_follows_its_thread_to_a_new_session() {
    let rig = plain();
    let worker = rig.client("MainProcess");
    worker.get();
    let (tasks, results) = (worker.tasks.clone(), worker.results.clone());
    worker.vanish();
    let again = rig.thread("MainProcess", &tasks, &results);
    assert_eq!(again.get(), 2);
    rig.pass(A_WHILE);
    assert_eq!(rig.look("tasks", Queue::leased), 2, "both tasks are with the process");
    again.task_done();
    again.task_done();
    again.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(3, 1)]);
}

#[test]
fn a_killed_pool_worker_is_not_taken_for_the_one_that_replaces_it() {
    let rig = plain();
    let parent = rig.client("MainProcess");
    let child = rig.thread("ForkPoolWorker-1", &parent.tasks, &parent.results);
    assert!(rig.classic.incref(&parent.tasks.ident));
    assert_eq!(child.get(), 1);
    child.vanish();
    let replacement = rig.thread("ForkPoolWorker-2", &parent.tasks, &parent.results);
    assert_eq!(replacement.get(), 2);
    rig.pass(A_WHILE);
    replacement.task_done();
    assert_eq!(rig.drain("tasks"), [(1, 2), (3, 1)]);
}

#[test]
fn children_that_were_terminated_do_not_spoil_the_clean_exit_of_their_parent() {
    let rig = plain();
    let parent = rig.client("MainProcess");
    assert!(rig.classic.incref(&parent.tasks.ident) && rig.classic.incref(&parent.results.ident));
    assert_eq!(parent.get(), 1);
    parent.exit();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(2, 1), (3, 1)]);
}

#[test]
fn children_that_exited_do_not_hide_that_their_parent_was_killed() {
    let rig = plain();
    let parent = rig.client("MainProcess");
    assert!(rig.classic.incref(&parent.tasks.ident) && rig.classic.incref(&parent.results.ident));
    assert_eq!(parent.get(), 1);
    parent.release();
    rig.pass(A_WHILE);
    parent.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(1, 2), (2, 1), (3, 1)]);
}

#[test]
fn the_last_task_of_a_thread_that_ended_counts_as_done_while_its_process_works_on() {
    let rig = plain();
    let first = rig.client("MainProcess|Thread-1");
    let second = rig.thread("MainProcess|Thread-2", &first.tasks, &first.results);
    assert_eq!([first.get(), second.get()], [1, 2]);
    first.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.look("tasks", Queue::leased), 1);
    second.task_done();
    assert_eq!(rig.drain("tasks"), [(3, 1)]);
}

#[test]
fn the_tasks_of_all_threads_go_back_when_their_process_was_killed() {
    let rig = plain();
    let main = rig.client("MainProcess");
    let threads = ["MainProcess|Thread-1", "MainProcess|Thread-2"];
    let threads = threads.map(|name| rig.thread(name, &main.tasks, &main.results));
    assert_eq!([main.get(), threads[0].get(), threads[1].get()], [1, 2, 3]);
    threads.into_iter().for_each(Client::vanish);
    main.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(1, 2), (2, 2), (3, 2)]);
}

#[test]
fn a_thread_of_which_nothing_more_is_known_keeps_its_task_for_a_minute() {
    let rig = plain();
    let thread = rig.client("MainProcess|Thread-1");
    thread.get();
    thread.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.look("tasks", Queue::leased), 1);
    rig.pass(UNDECIDED);
    assert_eq!(rig.drain("tasks"), [(1, 2), (2, 1), (3, 1)]);
}

#[test]
fn a_thread_that_ended_is_done_when_its_process_exits() {
    let rig = plain();
    let thread = rig.client("MainProcess|Thread-1");
    thread.get();
    let (tasks, results) = (thread.tasks.clone(), thread.results.clone());
    thread.vanish();
    rig.pass(A_WHILE);
    assert!(rig.classic.decref(&tasks.ident));
    assert!(rig.classic.decref(&results.ident));
    assert_eq!(rig.drain("tasks"), [(2, 1), (3, 1)]);
}

#[test]
fn a_worker_that_hangs_loses_its_task_after_max_run_and_its_late_result_is_refused() {
    let minute = Duration::from_secs(60);
    let rig = rig(at_once().results("results").max_run(minute));
    let slow = rig.client("MainProcess");
    let quick = rig.client("MainProcess");
    assert_eq!(slow.get(), 1);
    rig.pass(minute);
    assert_eq!(quick.get(), 1);
    assert!(matches!(slow.put(&slow.results, 10), Err(CallError::Stale)));
    quick.answer(11);
    assert_eq!(rig.drain("results"), [(11, 1)]);
    assert_eq!(rig.look("tasks", Queue::tally).stale, 1);
    slow.answer(12);
    assert_eq!(rig.drain("results"), [(12, 1)], "an item without a task is just an item");
}

#[test]
fn a_hand_keeps_few_of_the_tasks_whose_time_was_up() {
    let minute = Duration::from_secs(60);
    let rig = rig(at_once().results("results").max_run(minute).attempts(0));
    let worker = rig.client("MainProcess");
    for _ in 0..100 {
        worker.get();
        rig.pass(minute);
    }
    let in_hand = rig.classic.hands().sessions.all[&worker.presence.caller()].hand.len();
    assert!(in_hand <= 20, "{in_hand}");
    assert!(matches!(worker.put(&worker.results, 10), Err(CallError::Stale)));
}

#[test]
fn who_has_only_tasks_whose_time_was_up_gets_one_while_memory_is_short() {
    // Room for three tasks and one lease.
    let limits = Limits { memory_bytes_max: 1000, ..Limits::default() };
    let minute = Duration::from_secs(60);
    let rig = rig_within(&limits, at_once().results("results").max_run(minute));
    let (late, other) = (rig.client("1"), rig.client("2"));
    late.get();
    rig.pass(minute);
    assert_eq!(other.get(), 1, "there is no memory for another lease");
    assert_eq!(late.get(), 2);
}

#[test]
fn a_late_result_is_kept_if_nobody_took_the_task_since() {
    let minute = Duration::from_secs(60);
    let rig = rig(at_once().results("results").max_run(minute));
    let slow = rig.client("MainProcess");
    assert_eq!(slow.get(), 1);
    rig.pass(minute);
    assert_eq!(rig.look("tasks", Queue::len), 3);
    slow.answer(10);
    assert_eq!(rig.look("tasks", Queue::len), 2);
    assert_eq!((rig.drain("results"), rig.drain("tasks")), (vec![(10, 1)], vec![(2, 1), (3, 1)]));
}

#[test]
fn a_result_that_waits_for_room_keeps_its_task_and_settles_it_when_it_is_in() {
    let minute = Duration::from_secs(60);
    let rig = rig(at_once().results("answers").max_run(minute));
    let state = |rig: &Rig| rig.look("tasks", |queue| (queue.len(), queue.leased()));
    let options = QueueOptions::bounded(1);
    let worker = rig.client("MainProcess");
    let answers = rig.engine.open("answers").unwrap();
    rig.make_anew("answers", options);
    let put = |number, wait| {
        rig.classic.put(worker.presence.caller(), answers, item(number), wait).called.unwrap()
    };
    assert!(matches!(put(7, Wait::No), Called::Now(Outcome::Accepted(_))));
    assert_eq!(worker.get(), 1);
    let Called::Later(waiter) = put(10, Wait::Forever) else { panic!("there is no room") };
    rig.pass(minute * 2);
    assert_eq!(state(&rig), (2, 1), "the work is done, nobody needs to do it again");
    assert_eq!(rig.drain("answers"), [(7, 1), (10, 1)]);
    assert_eq!(state(&rig), (2, 0));
    let told = pollster::block_on(waiter).map(|told| told.outcome);
    assert!(matches!(told, Some(Outcome::Accepted(_))));
    assert_eq!(worker.get(), 2);
    assert!(matches!(put(8, Wait::No), Called::Now(Outcome::Accepted(_))));
    assert_eq!(worker.get(), 3);
    let Called::Later(waiter) = put(30, Wait::Forever) else { panic!("there is no room") };
    drop(waiter);
    worker.end(true);
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("answers"), [(8, 1)], "neither the result");
    assert_eq!(rig.drain("tasks"), [(3, 2)], "nor the ack");
}

#[test]
fn a_poison_task_becomes_a_dead_letter_after_its_attempts_and_others_go_on() {
    let rig = rig(at_once().attempts(2));
    for attempt in 1..=2 {
        let worker = rig.client("MainProcess");
        assert_eq!(worker.get(), 1, "attempt {attempt}");
        worker.vanish();
        rig.pass(A_WHILE);
    }
    assert_eq!(rig.drain("tasks"), [(2, 1), (3, 1)]);
    let reader = rig.client("MainProcess");
    let dead = rig.engine.open("tasks.dead").unwrap();
    let taken = rig.classic.get(reader.presence.caller(), dead, 5, Wait::No).called.unwrap();
    let Called::Now(Outcome::Task(letter)) = taken else { panic!("no dead letter") };
    let origin = rig.look("tasks.dead", |queue| queue.origin(letter.token.task).cloned()).unwrap();
    assert_eq!((number(&letter), origin.attempt), (1, 2));
    let worker = Some("MainProcess at 127.0.0.1:1".into());
    let crashed = Failed { cause: Cause::Crashed, worker };
    assert_eq!(origin.history, [crashed.clone(), crashed]);
}

#[test]
fn a_dead_letter_counts_down_join() {
    let rig = rig(at_once().attempts(1));
    let worker = rig.client("MainProcess");
    worker.get();
    worker.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.look("tasks", Queue::unfinished), 2);
}

#[test]
fn results_in_order_wait_for_those_before_and_not_for_tasks_that_were_given_up() {
    let rig = rig(at_once().results("answers").attempts(1));
    let answers = rig.engine.open("answers").unwrap();
    rig.make_anew("answers", QueueOptions { ordered: true, ..at_once() });
    let [first, second, third] = ["1", "2", "3"].map(|name| rig.client(name));
    assert_eq!([first.get(), second.get(), third.get()], [1, 2, 3]);
    let answer = |client: &Client, number| {
        client
            .classic
            .put(client.presence.caller(), answers, item(number), Wait::No)
            .called
            .unwrap()
    };
    answer(&third, 30);
    assert_eq!(rig.drain("answers"), []);
    answer(&first, 10);
    assert_eq!(rig.drain("answers"), [(10, 1)]);
    second.vanish();
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("answers"), [(30, 1)]);
}

#[test]
fn two_hundred_clients_that_die_at_once_give_all_back_in_order() {
    let rig = plain();
    let master = rig.client("MainProcess");
    rig.drain("tasks");
    for number in 0..200 {
        master.put(&master.tasks, number).unwrap();
    }
    let workers: Vec<_> = (0..200).map(|_| rig.client("MainProcess")).collect();
    workers.iter().for_each(|worker| assert_ne!(worker.get(), 255));
    workers.into_iter().for_each(Client::vanish);
    rig.pass(A_WHILE);
    let expected: Vec<_> = (0..200).map(|number| (number, 2)).collect();
    assert_eq!(rig.drain("tasks"), expected);
}

#[test]
fn results_in_order_go_on_after_a_purge() {
    let rig = strict();
    let results = rig.engine.open("results").unwrap();
    rig.make_anew("results", QueueOptions { ordered: true, ..at_once() });
    let workers: Vec<_> = (0..3).map(|_| rig.client("MainProcess")).collect();
    workers.iter().for_each(|worker| assert_ne!(worker.get(), 255));
    workers[0].answer(10);
    // It has to wait for the second, and is dropped.
    workers[2].answer(30);
    assert_eq!(rig.engine.purge(results).called.unwrap(), 2);
    workers[1].answer(20);
    assert_eq!(rig.drain("results"), [(20, 1)]);
}
