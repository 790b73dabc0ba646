//! A call takes the lock once, and nobody waits for the disk under it.

use std::cell::Cell;

use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;

use super::restart::World;
use super::*;
use crate::queue::{Order, Outcome, Patience, Terms};

std::thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// The engine's lock is taken on this thread.
pub(in super::super) fn count() {
    TAKEN.set(TAKEN.get() + 1);
}

/// How often it was taken on this thread since this was asked last.
pub(crate) fn take() -> usize {
    TAKEN.take()
}

/// What a call comes to once what it promises is durable, and how often it has taken the lock.
fn locks<T: std::fmt::Debug>(world: &mut World, call: impl FnOnce() -> Ticket<T>) -> (T, usize) {
    let engine = world.rig.engine.clone();
    TAKEN.set(0);
    let Ticket { called, promise } = call();
    let mut taken = TAKEN.get();
    world.sync();
    TAKEN.set(0);
    pollster::block_on(engine.until_durable(promise)).unwrap();
    taken += TAKEN.get();
    (called.unwrap(), taken)
}

#[test]
fn a_call_of_a_queue_on_disk_takes_the_lock_once() {
    let (_disk, mut world) = restart::tasks(at_once().results("results"));
    let worker = world.rig.client("a");
    let (classic, caller) = (world.rig.classic.clone(), worker.presence.caller());
    let engine = world.rig.engine.clone();
    let (tasks, results) = (worker.tasks.reference, worker.results.reference);
    let large = Payload::pickle(2, vec![b'x'; 8 << 10].into());
    for item in [item(1), large.clone()] {
        let put = locks(&mut world, || classic.put(caller, tasks, item, Wait::No));
        assert!(matches!(put, (Called::Now(Outcome::Accepted(_)), 1)), "{put:?}");
    }
    for result in [item(2), large] {
        let token = worker.lease(None);
        let ack = || engine.ack(caller, tasks, token, Some(result), Wait::No);
        let acked = locks(&mut world, ack);
        assert!(matches!(acked, (Called::Now(Outcome::Accepted(_)), 1)), "{acked:?}");
    }
    let got = locks(&mut world, || classic.get(caller, results, 5, Wait::No));
    assert!(matches!(got, (Called::Now(Outcome::Task(_)), 1)), "{got:?}");
    let done = locks(&mut world, || classic.task_done(caller, results));
    assert!(matches!(done, (Called::Now(Outcome::Done), 1)), "{done:?}");
    assert!(matches!(locks(&mut world, || engine.purge(results)), (_, 1)));
}

#[test]
fn a_batch_for_a_queue_on_disk_takes_the_lock_once() {
    let (_disk, mut world) = restart::tasks(at_once().results("results"));
    let worker = world.rig.client("native");
    let (engine, caller) = (world.rig.engine.clone(), worker.presence.caller());
    let (tasks, mut settled) = (worker.tasks.reference, Settled::default());
    let terms = |delay| Some(Box::new(Terms { delay, ..Terms::default() }));
    let puts = [None, terms(None), terms(Some(A_WHILE)), None];
    let mut puts = puts.map(|terms| Put::new(item(1), terms, Order::Fifo)).into_iter();
    let put = || engine.put_many(caller, tasks, &mut puts, Patience::Now, None).end;
    assert!(matches!(locks(&mut world, put), (None, 1)));
    let tokens = settles::lease_all(&worker, 3);
    let [first, second, third] = tokens[..] else { panic!("{tokens:?}") };
    let mut settlements = [
        (first, Settlement::Answer(item(2).into())),
        (second, Settlement::Nack(Retry::Backoff, "no".into())),
        (third, Settlement::Extend(A_WHILE)),
        (third, Settlement::Ack),
    ]
    .into_iter();
    let settle = || {
        let patience = Patience::Forever;
        let is_more = engine.settle_many(caller, tasks, &mut settlements, patience, &mut settled);
        Ticket { called: Ok(is_more), promise: settled.promise }
    };
    assert_eq!(locks(&mut world, settle), (false, 1));
    assert_eq!((settled.count, settled.others.len()), (4, 1), "an ack without a result");
}
