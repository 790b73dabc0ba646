//! Tasks that come without being asked for one by one.

use serde_json::{Value, json};

use crate::face::{Call, Client, World, json, lease, settlement, values};
use crate::support::Server;

pub(crate) fn tasks_are_pushed_on_credit(world: &World) {
    let server = Server::start(&["tasks,backoff=0"]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["tasks"]);
    other.open(&["tasks"]);
    other.put("tasks", json([1]));
    let credit = Call::Credit { queue: "tasks", credit: 2, hold: None, ends: false, of: None };
    let credit = client.start(credit);
    let mut pushed = pushes(&mut client, credit, 1);
    assert_eq!((pushed[0]["item"]["json"].as_u64(), &pushed[0]["attempt"]), (Some(1), &json!(1)));
    other.put("tasks", json([2, 3]));
    pushed.extend(pushes(&mut client, credit, 1));
    assert_eq!(client.size("tasks"), json!([1, 0]), "there was credit for two");
    let more =
        Call::Credit { queue: "tasks", credit: 1, hold: None, ends: false, of: Some(credit) };
    client.start(more);
    pushed.extend(pushes(&mut client, credit, 1));
    let numbers: Vec<_> = pushed.iter().map(|task| task["item"]["json"].clone()).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let settlements = vec![
        settlement("ack", &pushed[0]),
        settlement("start", &pushed[1]),
        settlement("return", &pushed[2]),
    ];
    assert_eq!(client.settle("tasks", settlements), json!(["ok", "ok", "ok"]));
    let again = other.get(lease("tasks", 5));
    assert_eq!((values(&again), &again[0]["attempt"]), (vec![json!(3)], &json!(1)));
    let started = vec![settlement("return", &pushed[1]), settlement("ack", &pushed[1])];
    assert_eq!(client.settle("tasks", started), json!(["started", "ok"]));
}

/// So many tasks that a credit brings, in however many frames.
fn pushes(client: &mut Client, credit: u64, count: usize) -> Vec<Value> {
    let mut pushed = Vec::new();
    while pushed.len() < count {
        let tasks = client.finish(credit);
        pushed.extend(tasks.as_array().unwrap_or_else(|| panic!("no push: {tasks}")).clone());
    }
    assert_eq!(pushed.len(), count);
    pushed
}

pub(crate) fn credit_ends_and_what_was_not_started_returns(world: &World) {
    let server = Server::start(&[]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["tasks"]);
    other.open(&["tasks"]);
    let credit = Call::Credit { queue: "tasks", credit: 9, hold: None, ends: false, of: None };
    let credit = client.start(credit);
    other.put("tasks", json([1, 2]));
    let pushed = pushes(&mut client, credit, 2);
    assert_eq!(client.settle("tasks", vec![settlement("start", &pushed[0])]), json!(["ok"]));
    let end = Call::Credit { queue: "tasks", credit: 0, hold: None, ends: true, of: Some(credit) };
    client.start(end);
    assert_eq!(client.finish(credit), Value::Null, "done");
    other.put("tasks", json([3]));
    assert_eq!(values(&other.get(lease("tasks", 5))), [3]);
    drop(client);
    // The started one has used up an attempt, the other one has not.
    let mut back = Vec::new();
    while back.len() < 2 {
        back.extend(other.get(lease("tasks", 5)).as_array().unwrap().clone());
    }
    let mut attempts: Vec<_> =
        back.iter().map(|task| (task["item"]["json"].as_u64(), task["attempt"].as_u64())).collect();
    attempts.sort_unstable();
    assert_eq!(attempts, [(Some(1), Some(2)), (Some(2), Some(1))]);
}

pub(crate) fn a_recall_gives_idle_clients_what_others_have_not_started(world: &World) {
    let server = Server::start(&[]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["tasks"]);
    other.open(&["tasks"]);
    let credit = Call::Credit { queue: "tasks", credit: 9, hold: None, ends: false, of: None };
    let credit = client.start(credit);
    other.put("tasks", json([1, 2, 3]));
    let pushed = pushes(&mut client, credit, 3);
    assert_eq!(client.settle("tasks", vec![settlement("start", &pushed[0])]), json!(["ok"]));
    let waits = other.start(Call::Get(lease("tasks", 1)));
    other.flush();
    assert_eq!(client.finish(credit), json!({ "recall": 1 }));
    assert_eq!(client.settle("tasks", vec![settlement("return", &pushed[2])]), json!(["ok"]));
    let found = other.finish(waits);
    assert_eq!((values(&found), &found[0]["attempt"]), (vec![json!(3)], &json!(1)));
}

pub(crate) fn leases_come_ahead_and_return_if_they_are_not_started(world: &World) {
    let server = Server::start(&["tasks,backoff=0"]);
    let (mut client, mut other) = (world.client(&server), world.client(&server));
    client.open(&["tasks"]);
    other.open(&["tasks"]);
    other.put("tasks", json([1, 2, 3]));
    let (leases, next) = (Call::Leases { queue: "tasks", ahead: 3 }, Call::Next { queue: "tasks" });
    assert_eq!(client.call(leases.clone()), Value::Null);
    let started = client.call(next.clone());
    assert_eq!((values(&started), &started[0]["attempt"]), (vec![json!(1)], &json!(1)));
    assert_eq!(client.call(Call::Leave { queue: "tasks" }), Value::Null);
    let mut back = Vec::new();
    while back.len() < 2 {
        back.extend(other.get(lease("tasks", 5)).as_array().unwrap().clone());
    }
    assert!(back.iter().all(|task| task["attempt"] == 1), "{back:?}");
    let acks = back.iter().map(|task| settlement("ack", task)).collect();
    assert_eq!(other.settle("tasks", acks), json!(["ok", "ok"]));
    let nack = settlement("nack", &started[0]);
    assert_eq!(client.settle("tasks", vec![nack]), json!(["ok"]));
    // They may be taken again, until the queue is shut down and has no more.
    assert_eq!(client.call(leases), Value::Null);
    let again = client.call(next.clone());
    assert_eq!((values(&again), &again[0]["attempt"]), (vec![json!(1)], &json!(2)));
    let ended = client.start(next);
    assert_eq!(other.call(Call::Shutdown { queue: "tasks", immediate: false }), Value::Null);
    assert_eq!(client.finish(ended), Value::Null);
}
