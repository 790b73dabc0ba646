//! What a reply waits for.

use super::*;

#[test]
fn a_put_is_answered_when_it_is_durable_and_not_before() {
    let (_disk, mut world) = tasks(at_once());
    world.sync();
    let reference = world.rig.engine.open("tasks").unwrap();
    let put = world.rig.engine.put(Caller::IN_PROCESS, reference, item(1), None, Wait::No);
    assert!(matches!(put.called, Ok(Called::Now(Outcome::Accepted(_)))), "it is decided: {put:?}");
    let mut waiter = redeem(&world.rig.engine, Caller::IN_PROCESS, reference, put);
    assert!(look(&mut waiter).is_pending());
    while world.writer.step().unwrap() {}
    assert!(matches!(look(&mut waiter), Poll::Ready(Some(Outcome::Accepted(_)))));
}

#[test]
fn what_the_system_has_is_enough_for_a_queue_of_durability_os() {
    let (disk, mut world) = tasks(at_once().durability(Durability::Os));
    world.sync();
    let reference = world.rig.engine.open("tasks").unwrap();
    let put = world.rig.engine.put(Caller::IN_PROCESS, reference, item(1), None, Wait::No);
    let mut waiter = redeem(&world.rig.engine, Caller::IN_PROCESS, reference, put);
    assert!(look(&mut waiter).is_pending());
    while world.writer.step().unwrap() {}
    assert!(world.writer.is_dirty(), "nobody asked for a sync");
    assert!(matches!(look(&mut waiter), Poll::Ready(Some(Outcome::Accepted(_)))));
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("tasks"), [(1, 1)]);
}

#[test]
fn a_lease_asks_for_no_sync_and_its_ack_for_one() {
    let (_disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let worker = world.rig.client("a");
    let (engine, caller, tasks) =
        (world.rig.engine.clone(), worker.presence.caller(), worker.tasks.reference);
    let mut write = || {
        while world.writer.step().unwrap() {}
        world.writer.is_dirty()
    };
    let token = worker.lease(None);
    assert!(write(), "nobody asked for a sync");
    engine.extend(caller, tasks, token, A_WHILE).called.unwrap();
    assert!(write(), "nobody asked for a sync");
    drop(engine.ack(caller, tasks, token, None, Wait::No).called.unwrap());
    assert!(!write(), "it is synced with what was written before");
}

#[test]
fn a_power_cut_may_take_a_lease_and_its_task_is_ready_then_and_its_token_stale() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let worker = world.rig.client("a");
    let token = worker.lease(None);
    assert!(world.writer.step().unwrap());
    std::mem::forget(worker);
    drop(world);
    let keeps_nothing = |random: &Random| random.clone().below(4) == 0;
    disk.lose_power(&mut (0..).map(Random::new).find(keeps_nothing).unwrap());
    let mut world = begin(&disk, NOW, &[("tasks", at_once())]);
    assert_eq!(world.rig.look("tasks", Queue::leased), 0);
    assert!(matches!(ack(&world, token, None), Err(CallError::StaleToken)));
    let again = world.lease("tasks", A_WHILE);
    assert_eq!((number(&again), again.token.attempt), (1, 1));
    assert!(token.lease < again.token.lease, "no number is given out twice");
}

#[test]
fn a_queue_in_memory_waits_for_nothing_and_writes_nothing() {
    let (disk, mut world) = tasks(at_once().durability(Durability::Memory));
    world.sync();
    let calls = disk.calls();
    let reference = world.rig.engine.open("tasks").unwrap();
    let put = world.rig.engine.put(Caller::IN_PROCESS, reference, item(1), None, Wait::No);
    assert!(matches!(put.called, Ok(Called::Now(Outcome::Accepted(_)))), "{put:?}");
    assert!(put.promise.is_nothing());
    assert!(!world.writer.step().unwrap());
    assert_eq!(disk.calls(), calls);
    let mut world = world.kill(&disk);
    assert_eq!((world.drain("tasks"), world.restored.queues), (vec![], 0));
}

#[test]
fn a_task_is_handed_out_only_when_its_put_is_durable() {
    let (_disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let engine = world.rig.engine.clone();
    let client = world.rig.client("MainProcess");
    let reference = client.tasks.reference;
    let caller = client.presence.caller();
    let classic = world.rig.classic.clone();
    let get = |wait| classic.get(caller, reference, 5, wait);
    let later = |ticket| redeem(&engine, caller, reference, ticket);
    let first = get(Wait::No);
    assert!(matches!(first.called, Ok(Called::Now(Outcome::Task(_)))), "{first:?}");
    assert!(first.promise.is_nothing(), "an old one at once");
    drop(engine.put(Caller::IN_PROCESS, reference, item(2), None, Wait::No).called.unwrap());
    let mut second = later(get(Wait::No));
    assert!(look(&mut second).is_pending());
    let mut third = later(get(Wait::Forever));
    drop(engine.put(Caller::IN_PROCESS, reference, item(3), None, Wait::No).called.unwrap());
    assert!(look(&mut third).is_pending());
    world.sync();
    for (mut waiter, expected) in [(second, 2), (third, 3)] {
        match look(&mut waiter) {
            Poll::Ready(Some(Outcome::Task(grant))) => assert_eq!(number(&grant), expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn who_hears_that_an_ack_was_kept_before_waits_until_that_is_durable() {
    let (_disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let worker = world.rig.client("a");
    let token = worker.lease(None);
    world.sync();
    let engine = world.rig.engine.clone();
    let (session, tasks) = (worker.presence.caller(), worker.tasks.reference);
    let ack = || {
        let acked = engine.ack(session, tasks, token, None, Wait::No);
        let mut kept = pin!(engine.until_durable(acked.promise));
        let mut context = Context::from_waker(Waker::noop());
        assert!(kept.as_mut().poll(&mut context).is_pending());
        acked.called.map(drop)
    };
    assert!(matches!(ack(), Ok(())));
    assert!(matches!(ack(), Err(CallError::SettledBefore)));
}

#[test]
fn nobody_is_answered_after_a_sync_that_failed() {
    let (disk, mut world) = tasks(at_once());
    world.sync();
    let reference = world.rig.engine.open("tasks").unwrap();
    let put = world.rig.engine.put(Caller::IN_PROCESS, reference, item(1), None, Wait::No);
    let mut waiter = redeem(&world.rig.engine, Caller::IN_PROCESS, reference, put);
    assert!(look(&mut waiter).is_pending(), "it is not durable yet");
    disk.fail(2, crate::journal::tests::disk::Fault::Broken);
    world.writer.step().unwrap_err();
    assert_eq!(look(&mut waiter), Poll::Ready(None));
}
