//! Looks at all queues, references and hands, page by page.

use manyhands::wire::arguments::Wait;
use manyhands::wire::tasks::{Peek, TaskState};

use super::*;
use crate::engine::stats::Snapshot;
use crate::queue::QueueOptions;

#[test]
fn queues_are_listed_by_name_whatever_comes_and_goes_between_two_pages() {
    let rig = plain();
    for name in ["e", "a", "c", "g"] {
        rig.classic.refer_to(name).unwrap();
    }
    assert_eq!(rig.names(), ["a", "c", "e", "g", "tasks"]);
    let mut snapshot = Snapshot::default();
    let mut page = || -> Vec<_> {
        let page = rig.engine.next_queues(&mut snapshot);
        page.iter().map(|queue| queue.name.to_string()).collect()
    };
    assert_eq!(page(), ["a", "c"]);
    for name in ["c", "e"] {
        rig.engine.drop_queue(name, true).unwrap();
    }
    rig.classic.refer_to("f").unwrap();
    assert_eq!(page(), ["f", "g"]);
    assert_eq!(page(), ["tasks"]);
    assert!(page().is_empty());
    assert!(page().is_empty(), "the end stays the end");
}

#[test]
fn a_queue_without_a_name_is_listed_by_what_clients_call_it_last() {
    let rig = plain();
    let pinned = rig.engine.pin_new(QueueOptions::default()).unwrap();
    assert_eq!(rig.names(), ["tasks"]);
    let ident = rig.classic.refer(pinned, Some("get_queue"));
    assert_eq!(rig.names(), ["get_queue", "tasks"]);
    let again = rig.classic.refer(pinned, Some("z"));
    assert_eq!(rig.names(), ["tasks", "z"]);
    rig.engine.unpin(pinned);
    assert!(rig.classic.decref(&ident) && rig.classic.decref(&again));
    assert_eq!(rig.names(), ["tasks"]);
}

#[test]
fn every_reference_is_told_once_in_order() {
    let rig = plain();
    let idents: Vec<_> = (0..5).map(|_| rig.classic.refer_to("tasks").unwrap()).collect();
    let mut last = 0;
    let pages = std::iter::from_fn(|| {
        Some(rig.classic.references_after(&mut last)).filter(|page| !page.is_empty())
    });
    let told: Vec<_> = pages.flatten().map(|it| it.ident).collect();
    assert_eq!(told, idents);
    let text = crate::frontend::classic::lists::debug_info(&rig.classic);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 10);
    assert_eq!(lines[1], "    <manyhands queue 'tasks' fifo maxsize=0 qsize=3>");
}

#[test]
fn who_has_many_tasks_is_told_of_each() {
    let rig = plain();
    let tasks = rig.engine.open("tasks").unwrap();
    for number in 4..=9 {
        rig.engine.put(Caller::IN_PROCESS, tasks, item(number), None, Wait::No).called.unwrap();
    }
    // Several in one hand, as batches are.
    let take = |worker: &Client, max| {
        let taking = Taking {
            protocol_max: 5,
            settled_by: SettledBy::Session,
            is_informed: false,
            max,
            bytes_max: usize::MAX,
        };
        let (shown, mut batch) = (Shown::default(), Batch::default());
        let (caller, at) = (worker.presence.caller(), worker.tasks.reference);
        rig.engine.get_many(caller, at, taking, Wait::No, &shown, &mut batch).called.unwrap();
        assert_eq!(batch.grants.len(), max);
    };
    let idle: Vec<_> = (0..7).map(|_| rig.client("idle")).collect();
    let (one, five) = (rig.client("one"), rig.client("five"));
    take(&one, 1);
    take(&five, 5);
    let peek = Peek { max: 100, state: TaskState::Leased, items: false };
    let mut looked = Looked::of(peek);
    while rig.engine.look_on(tasks, &mut looked).unwrap() {}
    let workers: Vec<_> = looked.finish().into_iter().map(|task| task.worker).collect();
    let names = ["one", "five", "five", "five", "five", "five"];
    assert_eq!(workers, names.map(|name| Some(name.to_owned())));
    drop(idle);
}
