//! A full disk.

use super::*;

fn large() -> Payload {
    Payload::pickle(2, Bytes::from(vec![b'x'; 20_000]))
}

#[test]
fn when_the_disk_is_full_puts_wait_or_fail_and_tasks_are_settled() {
    let disk = Disk::with_capacity(6 * 65_536);
    let mut world = begin(&disk, NOW, &[("tasks", at_once())]);
    let engine = world.rig.engine.clone();
    let reference = engine.open("tasks").unwrap();
    let put = |wait| engine.put(Caller::IN_PROCESS, reference, large(), None, wait);
    let mut accepted = 0;
    let refusal = loop {
        match world.call(put(Wait::No)) {
            Outcome::Accepted(_) => accepted += 1,
            other => break other,
        }
    };
    assert_eq!(refusal, Outcome::NoRoom);
    assert!(accepted > 5, "{accepted} tasks");
    let waits = put(Wait::Forever);
    assert!(is_in_line(&waits), "{waits:?}");
    let mut waiting = redeem(&engine, Caller::IN_PROCESS, reference, waits);
    assert!(look(&mut waiting).is_pending());
    for _ in 0..accepted {
        assert_eq!(world.take("tasks").map(|grant| grant.payload), Some(large()));
    }
    assert!(look(&mut waiting).is_pending(), "what was settled is not free yet");
    let stops = std::sync::atomic::AtomicBool::new(false);
    world.sync();
    world.rig.engine.checkpoint(&stops).unwrap();
    world.sync();
    engine.let_puts_in();
    world.sync();
    assert!(matches!(look(&mut waiting), Poll::Ready(Some(Outcome::Accepted(_)))));
    drop(engine);
    let mut world = world.kill(&disk);
    assert_eq!(world.take("tasks").map(|grant| grant.payload), Some(large()));
    assert!(world.take("tasks").is_none());
}

#[test]
fn a_batch_of_small_items_goes_in_as_far_as_the_disk_has_room_for_them() {
    let disk = Disk::with_capacity(6 * 65_536);
    let mut world = begin(&disk, NOW, &[("tasks", at_once())]);
    let engine = world.rig.engine.clone();
    let tasks = engine.open("tasks").unwrap();
    let put = |item| engine.put(Caller::IN_PROCESS, tasks, item, None, Wait::No);
    while matches!(world.call(put(large())), Outcome::Accepted(_)) {}
    world.sync();
    let room = engine.journal().unwrap().rooms().puts;
    // What a record takes at most, by the little that its item does.
    let fits = room / (48 + item(1).bytes.len() as u64);
    assert!(fits > 20, "room for {fits}");
    let mut items = (0..10_000).map(|_| Prepared::new(item(1), None, Order::Fifo));
    let mut count = 0;
    let end = loop {
        let added = engine.put_many(Caller::IN_PROCESS, tasks, &mut items, Patience::Now, None);
        count += added.count as u64;
        let Ticket { called, promise } = added.end;
        if let Some(called) = called.unwrap() {
            break world.call(Ticket { called: Ok(called), promise });
        }
    };
    assert_eq!(end, Outcome::NoRoom);
    assert!(count >= fits, "{count} of {fits}");
    world.sync();
}

#[test]
fn results_pass_puts_that_wait_because_the_disk_is_full() {
    let disk = Disk::with_capacity(6 * 65_536);
    let options = at_once().results("results");
    let mut world = begin(&disk, NOW, &[("tasks", options), ("results", at_once())]);
    let engine = world.rig.engine.clone();
    let [tasks, results] = ["tasks", "results"].map(|name| engine.open(name).unwrap());
    let put = |at, wait| engine.put(Caller::IN_PROCESS, at, large(), None, wait);
    while matches!(world.call(put(tasks, Wait::No)), Outcome::Accepted(_)) {}
    world.sync();
    let waits = put(results, Wait::Forever);
    assert!(is_in_line(&waits), "{waits:?}");
    let mut plain = redeem(&engine, Caller::IN_PROCESS, results, waits);
    let worker = world.rig.client("a");
    let token = worker.lease(None);
    let session = worker.presence.caller();
    let acked = engine.ack(session, tasks, token, Some(item(7)), Wait::Forever);
    let outcome = world.call(acked);
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    assert!(look(&mut plain).is_pending());
    let taken = world.take("results").expect("the result");
    assert_eq!(number(&taken), 7);
}

#[test]
fn a_getter_that_waits_while_the_disk_is_full_is_served_when_there_is_room() {
    let disk = Disk::with_capacity(6 * 65_536);
    let mut world = begin(&disk, NOW, &[("tasks", at_once())]);
    let engine = world.rig.engine.clone();
    let (tasks, other) = (engine.open("tasks").unwrap(), engine.open("other").unwrap());
    let put = |at, wait| engine.put(Caller::IN_PROCESS, at, large(), None, wait);
    while matches!(world.call(put(tasks, Wait::No)), Outcome::Accepted(_)) {}
    let later = |ticket: Ticket| {
        assert!(is_in_line(&ticket), "{ticket:?}");
        redeem(&engine, Caller::IN_PROCESS, other, ticket)
    };
    let mut getter = later(engine.get(Caller::IN_PROCESS, other, 5, Wait::Forever));
    let mut putter = later(put(other, Wait::Forever));
    assert!(look(&mut getter).is_pending() && look(&mut putter).is_pending());
    while world.take("tasks").is_some() {}
    let stops = std::sync::atomic::AtomicBool::new(false);
    world.sync();
    world.rig.engine.checkpoint(&stops).unwrap();
    world.sync();
    engine.let_puts_in();
    world.sync();
    assert!(matches!(look(&mut putter), Poll::Ready(Some(Outcome::Accepted(_)))));
    assert!(matches!(look(&mut getter), Poll::Ready(Some(Outcome::Task(_)))));
}

#[test]
fn dead_letters_stay_where_they_are_while_the_disk_is_full() {
    let disk = Disk::with_capacity(6 * 65_536);
    let options = at_once().attempts(1);
    let mut world = begin(&disk, NOW, &[("tasks", options), ("other", at_once())]);
    let engine = world.rig.engine.clone();
    let [tasks, other] = ["tasks", "other"].map(|name| engine.open(name).unwrap());
    let put = |at| engine.put(Caller::IN_PROCESS, at, large(), None, Wait::No);
    for _ in 0..2 {
        assert!(matches!(world.call(put(tasks)), Outcome::Accepted(_)));
        let worker = world.rig.client("MainProcess");
        let got =
            world.rig.classic.get(worker.presence.caller(), worker.tasks.reference, 5, Wait::No);
        let (caller, at) = (worker.presence.caller(), worker.tasks.reference);
        assert!(matches!(world.call_of(caller, at, got), Outcome::Task(_)));
        worker.vanish();
        world.rig.pass(A_WHILE);
    }
    assert_eq!(world.rig.look("tasks.dead", Queue::len), 2);
    while matches!(world.call(put(other)), Outcome::Accepted(_)) {}
    // Letters take their bodies along, so that little is written.
    while matches!(world.put_with("other", 1, Terms::default()), Outcome::Accepted(_)) {}
    let dead = engine.open("tasks.dead").unwrap();
    let redrive = || engine.redrive(dead, Redriving::of(100)).called.unwrap();
    assert_eq!(redrive(), 0);
    world.sync();
    assert_eq!(["tasks", "tasks.dead"].map(|name| world.rig.look(name, Queue::len)), [0, 2]);
    while world.take("other").is_some() {}
    let stops = std::sync::atomic::AtomicBool::new(false);
    world.sync();
    engine.checkpoint(&stops).unwrap();
    world.sync();
    assert_eq!(redrive(), 2);
    world.sync();
    drop(engine);
    let mut world = world.kill(&disk);
    assert_eq!(world.take("tasks").map(|grant| grant.payload), Some(large()));
}
