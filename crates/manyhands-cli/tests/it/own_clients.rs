//! What clients that are written for manyhands may ask beyond CPython's methods.
//!
//! The client is a hand-written one in Python, from the text of `docs/protocol.md` alone.

use crate::support::{Server, for_each_python, newest_python, pythons};

const QUEUES: &[&str] = &[
    "tasks",
    "small,maxsize=2",
    "limited,max_run=1,attempts=0",
    "sorted,order=priority",
    "answers",
    "answered,results=answers",
    "one,maxsize=1",
    "answered_slowly,results=one",
    "fragile,attempts=2",
    "fragile.dead",
];

/// Runs a scenario of `own_client.py` on the newest Python.
fn scenario(name: &str) {
    let server = Server::start(QUEUES);
    newest_python().script("own_client.py").server(&server).arg(name).run();
}

#[test]
fn the_same_bytes_serve_every_python() {
    let pythons: Vec<_> = pythons().iter().filter(|python| !python.is_2()).cloned().collect();
    for_each_python(&pythons, |python| {
        for name in ["batches", "leases", "results"] {
            let server = Server::start(QUEUES);
            python.script("own_client.py").server(&server).arg(name).run();
        }
    });
}

#[test]
fn a_batch_is_added_as_far_as_there_is_room() {
    scenario("batches_of_bounded_queues");
}

#[test]
fn a_batch_that_is_handed_out_is_bounded_in_bytes() {
    scenario("batches_end_in_bytes");
}

#[test]
fn a_batch_with_one_bad_item_is_refused_whole() {
    scenario("bad_batches");
}

#[test]
fn a_late_ack_is_kept_if_nobody_took_the_task_since() {
    scenario("late_acks");
}

#[test]
fn a_delayed_task_is_not_handed_out_before_its_time() {
    scenario("delays");
}

#[test]
fn no_extension_goes_beyond_max_run() {
    scenario("extensions");
}

#[test]
fn a_result_that_waits_for_room_keeps_its_task() {
    scenario("results_wait_for_room");
}

#[test]
fn dead_letters_are_looked_at_driven_again_and_purged() {
    scenario("dead_letters");
}

#[test]
fn keys_and_priorities_are_options_of_a_put() {
    scenario("keys");
}

#[test]
fn a_lease_lives_as_long_as_the_sessions_of_its_client() {
    scenario("ends_of_sessions");
}

#[test]
fn ten_thousand_requests_in_one_burst_are_answered_in_order() {
    scenario("bursts");
}

#[test]
fn a_call_that_waits_is_not_given_up_for_those_behind_it() {
    scenario("requests_ahead");
}

#[test]
fn wrong_arguments_are_refused_and_nothing_happens() {
    scenario("hostile");
}

#[test]
fn clients_that_do_not_announce_themselves_have_none_of_this() {
    scenario("unmodified");
}
