//! What every client of the native protocol can do, and what it is told.
//!
//! Each check begins with a server of its own. It names no kind of client.

mod credit;

use serde_json::{Value, json};

pub(crate) use credit::*;

use crate::face::{
    Call, Get, Item, Settlement, World, at_once, item, items, json, lease, refused, settlement,
    take, values,
};
use crate::python::Classic;
use crate::support::{KEY, Key, Server, pythons, wait_until};

/// Calls a macro with the names of all checks.
macro_rules! each {
    ($macro:ident, $face:ident) => {
        crate::$macro! { $face,
            a_queue_says_what_it_is_when_it_is_opened,
            a_queue_that_was_closed_is_not_known_any_more,
            items_get_numbers,
            a_key_is_put_once,
            a_delayed_item_comes_later,
            the_lowest_priority_comes_first,
            an_expired_item_is_gone,
            what_is_taken_is_gone_and_what_is_leased_is_not,
            a_batch_ends_where_it_was_told_to,
            a_result_says_where_it_comes_from,
            a_dead_letter_says_why,
            a_get_waits_for_a_put_and_not_for_ever,
            a_put_waits_for_a_slot_and_not_for_ever,
            a_get_that_waits_is_cancelled,
            a_put_that_waits_is_cancelled_and_says_what_it_has_added,
            settlements_of_each_kind_do_what_they_say,
            a_task_that_is_finished_is_counted_by_task_done,
            settlements_that_have_no_effect_say_why,
            payloads_come_to_unmodified_clients_and_from_them,
            a_pickle_that_a_client_cannot_read_stays_for_others,
            a_large_payload_comes_back,
            a_thousand_requests_are_sent_at_once,
            requests_about_one_queue_take_effect_in_order,
            join_waits_for_task_done,
            a_shut_down_queue_gives_what_it_has_and_takes_no_more,
            a_purge_drops_what_nobody_has,
            a_look_takes_nothing,
            queues_are_listed,
            queues_are_declared_and_dropped,
            dead_letters_are_moved_back,
            tasks_are_pushed_on_credit,
            credit_ends_and_what_was_not_started_returns,
            a_recall_gives_idle_clients_what_others_have_not_started,
            a_token_is_good_after_a_restart,
            a_client_that_leaves_gives_its_leases_back,
        }
    };
}
pub(crate) use each;

/// The same with those that do without what only the protocol itself has: tokens as bytes, ids to
/// cancel, codecs, credit by the number.
macro_rules! each_of_programs {
    ($macro:ident, $face:ident) => {
        crate::$macro! { $face,
            items_get_numbers,
            a_key_is_put_once,
            a_delayed_item_comes_later,
            an_expired_item_is_gone,
            a_result_says_where_it_comes_from,
            a_dead_letter_says_why,
            a_get_waits_for_a_put_and_not_for_ever,
            a_put_waits_for_a_slot_and_not_for_ever,
            a_large_payload_comes_back,
            join_waits_for_task_done,
            a_shut_down_queue_gives_what_it_has_and_takes_no_more,
            a_purge_drops_what_nobody_has,
            queues_are_listed,
            dead_letters_are_moved_back,
            leases_come_ahead_and_return_if_they_are_not_started,
        }
    };
}
pub(crate) use each_of_programs;

/// What the clients of the Python package have beyond the programs in Rust.
macro_rules! each_of_package {
    ($macro:ident, $face:ident) => {
        crate::$macro! { $face,
            the_lowest_priority_comes_first,
            what_is_taken_is_gone_and_what_is_leased_is_not,
            a_look_takes_nothing,
        }
    };
}
pub(crate) use each_of_package;

/// Those whose calls one caller makes, one after the other.
macro_rules! each_of_one_caller {
    ($macro:ident, $face:ident) => {
        crate::$macro! { $face,
            a_result_that_is_put_settles_what_a_program_has_in_hand,
        }
    };
}
pub(crate) use each_of_one_caller;

/// Those whose calls have to be made by one thread, in order.
macro_rules! each_in_order {
    ($macro:ident, $face:ident) => {
        crate::$macro! { $face,
            a_thousand_requests_are_sent_at_once,
            requests_about_one_queue_take_effect_in_order,
        }
    };
}
pub(crate) use each_in_order;

/// Makes a call until its outcome is right.
fn until(mut call: impl FnMut() -> Value, is_right: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let right = wait_until(|| {
        last = call();
        is_right(&last).then(|| last.clone())
    });
    right.unwrap_or_else(|| panic!("never right: {last}"))
}

pub(crate) fn a_queue_says_what_it_is_when_it_is_opened(world: &World) {
    let server = Server::start(&[
        "plain",
        "strict,order=priority,maxsize=7,results=done,max_run=60",
        "done,ordered=true",
    ]);
    let mut client = world.client(&server);
    let plain = client.call(Call::Open { queue: "plain" });
    let expected = json!({
        "order": "fifo", "durability": "memory", "needs_results": false, "ordered": false,
        "maxsize": 0, "hold": null, "results": "",
    });
    assert_eq!(plain, expected);
    let strict = client.call(Call::Open { queue: "strict" });
    assert_eq!((&strict["order"], &strict["maxsize"]), (&"priority".into(), &7.into()));
    assert_eq!((&strict["needs_results"], &strict["results"]), (&true.into(), &"done".into()));
    assert_eq!(client.call(Call::Open { queue: "done" })["ordered"], true);
    let unknown = client.call(Call::Open { queue: "elsewhere" });
    assert_eq!(refused(&unknown), "unknown_queue");
    let text = unknown["text"].as_str().unwrap();
    assert!(["plain", "strict", "done"].iter().all(|name| text.contains(name)), "{text}");
}

pub(crate) fn a_queue_that_was_closed_is_not_known_any_more(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let waits = client.start(Call::Get(Get { wait: None, ..lease("tasks", 1) }));
    assert_eq!(client.call(Call::Close { queue: "tasks" }), Value::Null);
    assert_eq!(refused(&client.finish(waits)), "cancelled");
    assert_eq!(refused(&client.size("tasks")), "no_such_handle");
    client.open(&["tasks"]);
    client.put("tasks", json([1]));
    assert_eq!(client.size("tasks"), json!([1, 0]));
}

pub(crate) fn items_get_numbers(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    assert_eq!(client.put("tasks", json([1, 2, 3])), json!([0, 1, 2]));
    let put = Call::Put { queue: "tasks", items: json([4, 5]), wait: None, numbers: false };
    assert_eq!(client.call(put), json!({ "count": 2, "code": "ok", "numbers": [] }));
    assert_eq!(client.put("tasks", json([6])), json!([5]));
    assert_eq!(values(&client.get(take("tasks", 10))), [1, 2, 3, 4, 5, 6]);
    assert_eq!(client.put("tasks", vec![]), json!([]));
}

pub(crate) fn a_key_is_put_once(world: &World) {
    let server = Server::start(&["tasks,dedup=60"]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let keyed = |value: i32, key| Item { key: Some(key), ..json([value]).remove(0) };
    let numbers = client.put("tasks", vec![keyed(1, "a"), keyed(2, "b"), keyed(3, "a")]);
    assert_eq!(numbers, json!([0, 1, null]));
    // A put that was known says so, though nobody asked for numbers.
    let items = vec![keyed(4, "b"), json([5]).remove(0)];
    let put = Call::Put { queue: "tasks", items, wait: None, numbers: false };
    assert_eq!(client.call(put), json!({ "count": 2, "code": "ok", "numbers": [null, 2] }));
    assert_eq!(values(&client.get(take("tasks", 10))), [1, 2, 5]);
}

pub(crate) fn a_delayed_item_comes_later(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let delayed = |value: i32, delay| Item { delay: Some(delay), ..json([value]).remove(0) };
    client.put("tasks", vec![delayed(1, 3600.0), delayed(2, 0.2), json([3]).remove(0)]);
    assert_eq!(values(&client.get(at_once(take("tasks", 10)))), [3]);
    let later = client.get(take("tasks", 10));
    assert_eq!(values(&later), [2]);
    let left = client.get(at_once(take("tasks", 1)));
    assert_eq!(refused(&left), "empty");
}

pub(crate) fn the_lowest_priority_comes_first(world: &World) {
    let server = Server::start(&["sorted,order=priority", "plain"]);
    let mut client = world.client(&server);
    client.open(&["sorted", "plain"]);
    let of = |value: i32, priority| Item { priority: Some(priority), ..json([value]).remove(0) };
    client.put("sorted", vec![of(1, 5), of(2, -5), of(3, i64::MAX), of(4, -5)]);
    assert_eq!(values(&client.get(take("sorted", 10))), [2, 4, 1, 3]);
    let items = vec![json([1]).remove(0), of(2, 0), json([3]).remove(0)];
    let put = Call::Put { queue: "plain", items, wait: None, numbers: true };
    assert_eq!(client.call(put), json!({ "count": 1, "code": "no_order", "numbers": [0] }));
    assert_eq!(client.size("plain"), json!([1, 0]));
}

pub(crate) fn an_expired_item_is_gone(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let expiring = Item { expires: Some(0.1), ..json([1]).remove(0) };
    client.put("tasks", vec![expiring, json([2]).remove(0)]);
    until(|| client.size("tasks"), |size| *size == json!([1, 0]));
    assert_eq!(values(&client.get(take("tasks", 10))), [2]);
}

pub(crate) fn what_is_taken_is_gone_and_what_is_leased_is_not(world: &World) {
    let server = Server::start(&[]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["tasks"]);
    other.open(&["tasks"]);
    client.put("tasks", json([1, 2, 3]));
    let taken = client.get(take("tasks", 1));
    assert_eq!((values(&taken), &taken[0]["token"]), (vec![json!(1)], &Value::Null));
    let leased = client.get(Get { hold: Some(0.2), ..lease("tasks", 1) });
    assert_eq!((values(&leased), &leased[0]["attempt"]), (vec![json!(2)], &json!(1)));
    assert_eq!(leased[0]["task"], 1);
    // Its time runs out, and it is another's.
    let tasks = until(|| other.get(lease("tasks", 1)), |tasks| values(tasks) == [2]);
    assert_eq!(tasks[0]["attempt"], 2);
}

pub(crate) fn a_batch_ends_where_it_was_told_to(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let text = "x".repeat(1000);
    client.put("tasks", json(vec![text; 10]));
    assert_eq!(items(&client.get(take("tasks", 3))).len(), 3);
    // The last one may go beyond.
    let some = client.get(Get { max_bytes: 1500, ..take("tasks", 100) });
    assert_eq!(items(&some).len(), 2);
    let one = client.get(Get { max_bytes: 1, ..take("tasks", 100) });
    assert_eq!(items(&one).len(), 1);
    assert_eq!(items(&client.get(take("tasks", 0))).len(), 4, "as many as there are");
}

pub(crate) fn a_result_says_where_it_comes_from(world: &World) {
    let server = Server::start(&["tasks,results=done", "done"]);
    let mut client = world.named(&server, "worker 7", 5);
    client.open(&["tasks", "done"]);
    client.put("tasks", json([1]));
    let task = client.get(lease("tasks", 1))[0].clone();
    assert_eq!(refused(&client.get(at_once(lease("done", 1)))), "empty");
    let result = Some(json!({ "json": "one" }));
    let ack = Settlement { result, ..settlement("ack_with", &task) };
    assert_eq!(client.settle("tasks", vec![ack]), json!(["ok"]));
    let results = client.get(Get { informed: true, ..take("done", 1) });
    assert_eq!(values(&results), ["one"]);
    let info = &results[0]["info"];
    assert_eq!((&info["queue"], &info["task"]), (&json!("tasks"), &json!(0)));
    assert_eq!((&info["attempt"], &info["history"]), (&json!(1), &json!([])));
    assert!(info["worker"].as_str().unwrap().contains("worker 7"), "{info}");
    assert!(info["waited"].is_f64() && info["ran"].is_f64(), "{info}");
    // Nothing is known of an item that somebody has put.
    client.put("done", json(["two"]));
    let plain = client.get(Get { informed: true, ..take("done", 1) });
    assert_eq!((values(&plain), &plain[0]["info"]), (vec![json!("two")], &Value::Null));
}

pub(crate) fn a_dead_letter_says_why(world: &World) {
    let server = Server::start(&["tasks,attempts=2,dead=failed,backoff=0", "failed"]);
    let mut client = world.client(&server);
    client.open(&["tasks", "failed"]);
    client.put("tasks", json([1]));
    for (attempt, reason) in [(1, "no paper"), (2, "no ink")] {
        let tasks = client.get(lease("tasks", 1));
        assert_eq!(tasks[0]["attempt"], attempt);
        let nack = settlement("nack", &tasks[0]);
        let nack = Settlement { reason: reason.into(), after: None, ..nack };
        assert_eq!(client.settle("tasks", vec![nack]), json!(["ok"]));
    }
    let dead = client.get(Get { informed: true, ..take("failed", 1) });
    assert_eq!(values(&dead), [1]);
    let history = dead[0]["info"]["history"].as_array().unwrap();
    let has = |at: usize, reason| history[at].as_str().unwrap().contains(reason);
    assert!(has(0, "no paper") && has(1, "no ink"), "{history:?}");
}

pub(crate) fn a_get_waits_for_a_put_and_not_for_ever(world: &World) {
    let server = Server::start(&[]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["tasks"]);
    other.open(&["tasks"]);
    let timed_out = client.get(Get { wait: Some(0.05), ..lease("tasks", 1) });
    assert_eq!(refused(&timed_out), "empty");
    let waits = client.start(Call::Get(Get { wait: None, ..lease("tasks", 5) }));
    // What comes later does not wait for it.
    assert_eq!(client.call(Call::Ping), Value::Null);
    until(|| other.call(Call::List { after: "" })[0][0]["waiting_get"].clone(), |it| *it == 1);
    other.put("tasks", json([7]));
    assert_eq!(values(&client.finish(waits)), [7]);
}

pub(crate) fn a_put_waits_for_a_slot_and_not_for_ever(world: &World) {
    let server = Server::start(&["small,maxsize=2"]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["small"]);
    other.open(&["small"]);
    let put = |items, wait| Call::Put { queue: "small", items, wait, numbers: false };
    let full = client.call(put(json([1, 2, 3]), Some(0.0)));
    assert_eq!(full, json!({ "count": 2, "code": "full", "numbers": [] }));
    let full = client.call(put(json([3]), Some(0.05)));
    assert_eq!(full, json!({ "count": 0, "code": "full", "numbers": [] }));
    let waits = client.start(put(json([3, 4]), None));
    client.flush();
    assert_eq!(
        values(&until(|| other.get(take("small", 2)), |tasks| values(tasks) == [1, 2])),
        [1, 2]
    );
    assert_eq!(client.finish(waits), json!({ "count": 2, "code": "ok", "numbers": [] }));
    assert_eq!(values(&other.get(take("small", 2))), [3, 4]);
}

pub(crate) fn a_get_that_waits_is_cancelled(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let waits = client.start(Call::Get(Get { wait: None, ..lease("tasks", 1) }));
    client.start(Call::Cancel { of: waits });
    assert_eq!(refused(&client.finish(waits)), "cancelled");
    // It takes nothing, and to cancel what is decided does nothing.
    client.put("tasks", json([1]));
    assert_eq!(client.size("tasks"), json!([1, 0]));
    let decided = client.start(Call::Get(take("tasks", 1)));
    client.start(Call::Cancel { of: decided });
    assert_eq!(values(&client.finish(decided)), [1]);
}

pub(crate) fn a_put_that_waits_is_cancelled_and_says_what_it_has_added(world: &World) {
    let server = Server::start(&["small,maxsize=2"]);
    let mut client = world.client(&server);
    client.open(&["small"]);
    let put = Call::Put { queue: "small", items: json([1, 2, 3]), wait: None, numbers: true };
    let waits = client.start(put);
    client.start(Call::Cancel { of: waits });
    let added = client.finish(waits);
    assert_eq!(added, json!({ "count": 2, "code": "cancelled", "numbers": [0, 1] }));
    assert_eq!(values(&client.get(take("small", 5))), [1, 2]);
}

pub(crate) fn settlements_of_each_kind_do_what_they_say(world: &World) {
    let server = Server::start(&["tasks,dead=failed,backoff=0", "failed"]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["tasks", "failed"]);
    other.open(&["tasks"]);
    client.put("tasks", json(0..7));
    let tasks = client.get(lease("tasks", 7));
    let after = |kind, at: usize, after| Settlement { after, ..settlement(kind, &tasks[at]) };
    let settlements = vec![
        settlement("ack", &tasks[0]),
        after("nack", 1, Some(0.0)),
        after("nack", 2, None),
        after("nack", 3, Some(3600.0)),
        Settlement { reason: "broken".into(), ..settlement("give_up", &tasks[4]) },
        after("extend", 5, Some(0.1)),
        settlement("start", &tasks[6]),
    ];
    assert_eq!(client.settle("tasks", settlements), json!(vec!["ok"; 7]));
    assert_eq!(values(&client.get(take("failed", 5))), [4]);
    let again = client.get(lease("tasks", 2));
    assert_eq!(values(&again), [1, 2]);
    assert_eq!((&again[0]["attempt"], &again[1]["attempt"]), (&json!(2), &json!(2)));
    // What was extended runs out, and what was only started does not.
    assert_eq!(values(&other.get(lease("tasks", 5))), [5]);
    assert_eq!(client.settle("tasks", vec![settlement("ack", &tasks[6])]), json!(["ok"]));
}

pub(crate) fn a_task_that_is_finished_is_counted_by_task_done(world: &World) {
    let server = Server::start(&["work,results=done", "done"]);
    let mut client = world.client(&server);
    client.open(&["work", "done"]);
    client.put("work", json([1, 2, 3]));
    let work = client.get(lease("work", 3));
    let with = |kind, at: usize| {
        let result = Some(json!({ "json": at }));
        Settlement { result, ..settlement(kind, &work[at]) }
    };
    let done = vec![with("ack_with", 0), settlement("finish", &work[1]), with("finish_with", 2)];
    assert_eq!(client.settle("work", done), json!(["ok", "ok", "ok"]));
    assert_eq!(values(&client.get(take("done", 5))), [0, 2]);
    // `join` has been told of one of them.
    assert_eq!(client.call(Call::TaskDone { queue: "work", count: 2 }), Value::Null);
    assert_eq!(refused(&client.call(Call::TaskDone { queue: "work", count: 1 })), "too_many");
}

pub(crate) fn settlements_that_have_no_effect_say_why(world: &World) {
    let server = Server::start(&["tasks,backoff=0", "work,results=done", "done"]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["tasks", "work", "done"]);
    other.open(&["tasks"]);
    client.put("tasks", json(0..4));
    client.put("work", json([5]));
    let tasks = client.get(lease("tasks", 4));
    let work = client.get(lease("work", 1));
    let nack = settlement("nack", &tasks[0]);
    assert_eq!(client.settle("tasks", vec![nack]), json!(["ok"]));
    let others = other.get(lease("tasks", 1));
    let result = Some(json!({ "json": 1 }));
    let forged =
        Settlement { token: json!("AAAA".repeat(9) + "AA=="), ..settlement("ack", &tasks[1]) };
    let codes = client.settle(
        "tasks",
        vec![
            settlement("ack", &tasks[0]),
            settlement("ack", &tasks[1]),
            settlement("ack", &tasks[1]),
            Settlement { result, ..settlement("ack_with", &tasks[2]) },
            settlement("start", &tasks[2]),
            settlement("return", &tasks[2]),
            settlement("ack", &work[0]),
            forged,
            settlement("ack", &tasks[3]),
        ],
    );
    let expected = json!([
        "stale",
        "ok",
        "settled_before",
        "no_results",
        "ok",
        "started",
        "stale",
        "stale",
        "ok"
    ]);
    assert_eq!(codes, expected);
    assert_eq!(other.settle("tasks", vec![settlement("ack", &others[0])]), json!(["ok"]));
    assert_eq!(client.settle("work", vec![settlement("ack", &work[0])]), json!(["no_result"]));
}

pub(crate) fn payloads_come_to_unmodified_clients_and_from_them(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    for python in pythons() {
        // What a client has in hand comes back when it is gone.
        let queue = &format!("of_{}", python.name().replace('.', "_"));
        client.open(&[queue]);
        let mut classic = Classic::connect(&server, python);
        client.put(
            queue,
            vec![
                item(json!({ "json": { "ä": [1, null, "x"] } })),
                item(json!({ "bytes": "AP9B" })),
                // pickle.dumps((1, "two"), 2)
                item(json!({ "pickle": "gAJLAVgDAAAAdHdvcQCGcQEu" })),
            ],
        );
        let text = if python.is_2() {
            "u'{\"\\\\u00e4\": [1, null, \"x\"]}'"
        } else {
            "'{\"\\\\u00e4\": [1, null, \"x\"]}'"
        };
        classic.get(queue, text);
        classic.get(queue, "b'\\x00\\xffA'");
        classic.get(queue, "(1, u'two')");
        classic.put(queue, "[1, 2]");
        let taken = client.get(lease(queue, 1));
        // As every Python writes it, but for memo entries.
        let pickle = taken[0]["item"]["pickle"].as_str().unwrap();
        assert!(pickle.starts_with("gA"), "PROTO: {pickle}");
        let nack = settlement("nack", &taken[0]);
        assert_eq!(client.settle(queue, vec![nack]), json!(["ok"]));
        classic.get(queue, "[1, 2]");
    }
}

pub(crate) fn a_pickle_that_a_client_cannot_read_stays_for_others(world: &World) {
    let server = Server::start(&[]);
    let (mut new, mut old) = (world.client(&server), world.named(&server, "old", 2));
    new.open(&["tasks"]);
    old.open(&["tasks"]);
    // pickle.dumps(bytearray(b"x"), 5)
    let byte_array = json!({ "pickle": "gAWVCwAAAAAAAACWAQAAAAAAAAB4Lg==" });
    new.put("tasks", vec![item(byte_array.clone()), item(json!({ "bytes": "AP9B" }))]);
    assert_eq!(refused(&old.get(lease("tasks", 5))), "unreadable");
    assert_eq!(items(&new.get(take("tasks", 1))).len(), 1);
    assert_eq!(items(&old.get(take("tasks", 5))), [json!({ "bytes": "AP9B" })]);
}

pub(crate) fn a_large_payload_comes_back(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let text = "x".repeat(10 << 20);
    client.put("tasks", json([text.clone()]));
    assert_eq!(values(&client.get(lease("tasks", 1))), [text]);
}

pub(crate) fn a_thousand_requests_are_sent_at_once(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let put = |value: i32| Call::Put {
        queue: "tasks",
        items: json([value]),
        wait: Some(0.0),
        numbers: true,
    };
    let calls: Vec<_> = (0..1000).map(|value| client.start(put(value))).collect();
    client.flush();
    // The last is asked for first.
    for (value, call) in calls.into_iter().enumerate().rev() {
        assert_eq!(client.finish(call)["numbers"], json!([value]));
    }
    let numbers: Vec<_> = (0..1000).collect();
    assert_eq!(values(&client.get(take("tasks", 2000))), numbers);
}

pub(crate) fn requests_about_one_queue_take_effect_in_order(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let mut gets = Vec::new();
    for value in 0..100 {
        let (items, wait) = (json([value]), Some(0.0));
        client.start(Call::Put { queue: "tasks", items, wait, numbers: false });
        gets.push(client.start(Call::Get(at_once(take("tasks", 2)))));
        gets.push(client.start(Call::Size { queue: "tasks" }));
    }
    client.flush();
    for (value, calls) in gets.chunks(2).enumerate() {
        assert_eq!(values(&client.finish(calls[0])), [value]);
        assert_eq!(client.finish(calls[1]), json!([0, 0]));
    }
}

pub(crate) fn join_waits_for_task_done(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    client.put("tasks", json([1, 2, 3]));
    let join = client.start(Call::Join { queue: "tasks" });
    client.get(take("tasks", 2));
    let tasks = client.get(lease("tasks", 1));
    assert_eq!(client.call(Call::TaskDone { queue: "tasks", count: 2 }), Value::Null);
    until(|| client.call(Call::List { after: "" })[0][0]["waiting_join"].clone(), |it| *it == 1);
    assert_eq!(client.settle("tasks", vec![settlement("ack", &tasks[0])]), json!(["ok"]));
    assert_eq!(client.finish(join), Value::Null);
    assert_eq!(refused(&client.call(Call::TaskDone { queue: "tasks", count: 1 })), "too_many");
    assert_eq!(client.call(Call::Join { queue: "tasks" }), Value::Null);
}

pub(crate) fn a_shut_down_queue_gives_what_it_has_and_takes_no_more(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks", "others"]);
    client.put("tasks", json([1]));
    client.put("others", json([1]));
    assert_eq!(client.call(Call::Shutdown { queue: "tasks", immediate: false }), Value::Null);
    let put = Call::Put { queue: "tasks", items: json([2]), wait: None, numbers: true };
    assert_eq!(client.call(put), json!({ "count": 0, "code": "shut_down", "numbers": [] }));
    assert_eq!(values(&client.get(take("tasks", 5))), [1]);
    assert_eq!(refused(&client.get(take("tasks", 5))), "shut_down");
    let waits = client.start(Call::Join { queue: "others" });
    assert_eq!(client.call(Call::Shutdown { queue: "others", immediate: true }), Value::Null);
    assert_eq!(client.finish(waits), Value::Null);
    assert_eq!(refused(&client.get(take("others", 5))), "shut_down");
}

pub(crate) fn a_purge_drops_what_nobody_has(world: &World) {
    let server = Server::start(&[]);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    let delayed = Item { delay: Some(3600.0), ..json([4]).remove(0) };
    client.put("tasks", [json([1, 2, 3]), vec![delayed]].concat());
    let tasks = client.get(lease("tasks", 1));
    assert_eq!(client.call(Call::Purge { queue: "tasks" }), json!(3));
    assert_eq!(client.settle("tasks", vec![settlement("ack", &tasks[0])]), json!(["ok"]));
    assert_eq!(client.call(Call::Purge { queue: "tasks" }), json!(0));
}

pub(crate) fn a_look_takes_nothing(world: &World) {
    let server = Server::start(&["tasks,backoff=0"]);
    let mut client = world.named(&server, "worker 7", 5);
    client.open(&["tasks"]);
    let keyed = Item { key: Some("k"), ..json(["a"]).remove(0) };
    client.put("tasks", vec![keyed, item(json!({ "bytes": "AP9B" }))]);
    let tasks = client.get(lease("tasks", 1));
    let peek = |state| Call::Peek { queue: "tasks", max: 10, state };
    let ready = client.call(peek("ready"));
    assert_eq!(
        (items(&ready), &ready[0]["state"]),
        (vec![json!({ "bytes": "AP9B" })], &json!("ready"))
    );
    let leased = client.call(peek("leased"));
    assert_eq!((values(&leased), &leased[0]["task"]), (vec![json!("a")], &json!(0)));
    assert_eq!((&leased[0]["key"], &leased[0]["attempt"]), (&json!("6b"), &json!(1)));
    assert!(leased[0]["worker"].as_str().unwrap().contains("worker 7"), "{leased}");
    assert!(leased[0]["since"].is_number() && leased[0]["peer"].is_string(), "{leased}");
    let nack = settlement("nack", &tasks[0]);
    let nack = Settlement { reason: "no ink".into(), after: Some(3600.0), ..nack };
    assert_eq!(client.settle("tasks", vec![nack]), json!(["ok"]));
    let delayed = client.call(peek("delayed"));
    assert_eq!(delayed[0]["failures"][0]["reason"], "no ink");
    assert!(delayed[0]["due_in"].as_f64().unwrap() > 3000.0, "{delayed}");
}

pub(crate) fn queues_are_listed(world: &World) {
    let server = Server::start(&["b,maxsize=3", "a", "c,order=lifo"]);
    let mut client = world.client(&server);
    client.open(&["b"]);
    client.put("b", json([1]));
    let list = client.call(Call::List { after: "" });
    let names: Vec<_> = list[0].as_array().unwrap().iter().map(|queue| &queue["name"]).collect();
    assert_eq!((json!(names), &list[1]), (json!(["a", "b", "c"]), &json!(false)));
    let queue = &list[0][1];
    assert_eq!(
        (&queue["qsize"], &queue["maxsize"], &queue["order"]),
        (&json!(1), &json!(3), &json!("fifo"))
    );
    let rest = client.call(Call::List { after: "b" });
    assert_eq!((rest[0].as_array().unwrap().len(), &rest[0][0]["name"]), (1, &json!("c")));
}

pub(crate) fn queues_are_declared_and_dropped(world: &World) {
    let server = Server::start(&[]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    let configure = |options| Call::Configure { name: "tasks", options };
    assert_eq!(client.call(configure("maxsize=3,order=lifo")), Value::Null);
    assert_eq!(client.call(configure("order=lifo,maxsize=3")), Value::Null, "it is the same");
    assert_eq!(refused(&client.call(configure("maxsize=4"))), "differs");
    let unknown = client.call(configure("colour=red"));
    assert_eq!(refused(&unknown), "bad_options");
    assert!(unknown["text"].as_str().unwrap().contains("colour"), "{unknown}");
    let opened = other.call(Call::Open { queue: "tasks" });
    assert_eq!((&opened["order"], &opened["maxsize"]), (&json!("lifo"), &json!(3)));
    other.put("tasks", json([1, 2]));
    let drop = |forced| Call::Drop { name: "tasks", forced };
    assert_eq!(refused(&client.call(drop(false))), "in_use");
    assert_eq!(client.call(drop(true)), json!(2));
    assert_eq!(refused(&client.call(drop(true))), "unknown_queue");
}

pub(crate) fn dead_letters_are_moved_back(world: &World) {
    let server = Server::start(&["tasks,dead=failed", "failed"]);
    let mut client = world.client(&server);
    client.open(&["tasks", "failed"]);
    client.put("tasks", json([1, 2, 3]));
    let tasks = client.get(lease("tasks", 3));
    let give_up = tasks.as_array().unwrap().iter().map(|task| settlement("give_up", task));
    assert_eq!(client.settle("tasks", give_up.collect()), json!(["ok", "ok", "ok"]));
    let redrive = |max, task| Call::Redrive { queue: "failed", max, task };
    let second = client.call(Call::Peek { queue: "failed", max: 10, state: "ready" });
    let number = second[1]["task"].as_u64();
    assert_eq!(client.call(redrive(10, number)), json!(1));
    assert_eq!(values(&client.get(lease("tasks", 5))), [2]);
    assert_eq!(client.call(redrive(1, None)), json!(1));
    assert_eq!(client.call(redrive(10, None)), json!(1));
    assert_eq!(values(&client.get(lease("tasks", 5))), [1, 3]);
}

pub(crate) fn a_token_is_good_after_a_restart(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let options =
        ["--data", data.to_str().unwrap(), "--queue", "tasks,results=done", "--queue", "done"];
    let server = Server::with_options(&options);
    let mut client = world.client(&server);
    client.open(&["tasks"]);
    client.put("tasks", json([1, 2]));
    let tasks = client.get(Get { hold: Some(3600.0), ..lease("tasks", 1) });
    // By SIGKILL.
    drop(server);
    drop(client);
    let server = Server::at("127.0.0.1:0", Key::Bytes(KEY), &options).unwrap();
    let mut client = world.client(&server);
    let opened = client.call(Call::Open { queue: "tasks" });
    assert_eq!(opened["durability"], "disk");
    client.open(&["done"]);
    assert_eq!(values(&client.get(lease("tasks", 5))), [2]);
    let result = Some(json!({ "json": "one" }));
    let ack = Settlement { result, ..settlement("ack_with", &tasks[0]) };
    assert_eq!(client.settle("tasks", vec![ack.clone(), ack]), json!(["ok", "settled_before"]));
    let results = client.get(Get { informed: true, ..take("done", 5) });
    assert_eq!((values(&results), &results[0]["info"]["task"]), (vec![json!("one")], &json!(0)));
}

pub(crate) fn a_client_that_leaves_gives_its_leases_back(world: &World) {
    let server = Server::start(&["tasks,backoff=0"]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["tasks"]);
    other.open(&["tasks"]);
    client.put("tasks", json([1, 2]));
    assert_eq!(values(&client.get(lease("tasks", 1))), [1]);
    assert_eq!(values(&client.get(take("tasks", 1))), [2]);
    drop(client);
    let back = other.get(lease("tasks", 5));
    assert_eq!((values(&back), &back[0]["attempt"]), (vec![json!(1)], &json!(2)));
    assert_eq!(refused(&other.get(at_once(lease("tasks", 5)))), "empty", "the other was taken");
}

pub(crate) fn a_result_that_is_put_settles_what_a_program_has_in_hand(world: &World) {
    let server = Server::start(&["tasks,results=done,backoff=0", "done"]);
    let (mut program, mut other) = (world.client(&server), world.client(&server));
    program.open(&["tasks", "done"]);
    other.open(&["tasks", "done"]);
    program.put("tasks", json([1, 2]));
    assert_eq!(values(&program.get(take("tasks", 1))), [1]);
    let (items, wait) = (json(["one"]), None);
    program.call(Call::Put { queue: "done", items, wait, numbers: false });
    let results = other.get(Get { informed: true, ..take("done", 1) });
    assert_eq!((values(&results), &results[0]["info"]["task"]), (vec![json!("one")], &json!(0)));
    drop(program);
    assert_eq!(values(&other.get(lease("tasks", 5))), [2]);
    assert_eq!(refused(&other.get(at_once(lease("tasks", 5)))), "empty");
}
