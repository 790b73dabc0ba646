//! Many tasks at one moment.
//!
//! `MANYHANDS_SIM_DUE=1000000`, with `--release`, for a million of them.

use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::arguments::Wait;

use super::setting;
use super::world::{item, payload};
use crate::clock::Clock;
use crate::config::Limits;
use crate::engine::{Called, Caller, Engine, Reference};
use crate::queue::{Outcome, Queue, Terms, Time};

#[test]
fn delayed_tasks_that_are_all_due_at_once_let_calls_come_in_between() {
    let count = u32::try_from(setting("MANYHANDS_SIM_DUE", 30_000)).unwrap();
    let engine = Arc::new(Engine::simulated(&Limits::default(), Clock::manual(0)));
    let [tasks, other] = ["tasks", "other"].map(|name| engine.open(name).unwrap());
    let delay = Duration::from_secs(60);
    for number in 0..count {
        let terms = Some(Box::new(Terms { delay: Some(delay), ..Terms::default() }));
        engine.put(Caller::IN_PROCESS, tasks, payload(number), terms, Wait::No).called.unwrap();
    }
    engine.clock().put_forward(delay);
    let (mut turns, mut most) = (0, 0);
    while engine.arm().is_some_and(|armed| armed <= Time::default() + delay) {
        let before = ready(&engine, tasks);
        engine.expire();
        most = most.max(ready(&engine, tasks) - before);
        turns += 1;
        let put = engine.put(Caller::IN_PROCESS, other, payload(turns), None, Wait::No).called;
        assert!(matches!(put, Ok(Called::Now(Outcome::Accepted(_)))));
    }
    assert_eq!(ready(&engine, tasks), count as usize);
    assert!(most < 20_000, "{most} tasks in one turn of the timer");
    for number in 0..count {
        match engine.get(Caller::IN_PROCESS, tasks, 5, Wait::No).called {
            Ok(Called::Now(Outcome::Task(grant))) => assert_eq!(item(&grant.payload), number),
            other => panic!("{other:?} instead of task {number}"),
        }
    }
}

fn ready(engine: &Engine, queue: Reference) -> usize {
    engine.look(queue, Queue::len).unwrap()
}
