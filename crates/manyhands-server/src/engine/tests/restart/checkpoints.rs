//! Checkpoints, alone and beside calls.

use super::*;

#[test]
fn a_checkpoint_says_all_that_the_log_said() {
    let options = at_once().results("results").attempts(2);
    let (disk, mut world) = tasks(options);
    world.put("tasks", 0..10);
    let delay = Some(Duration::from_secs(100));
    let key = Some(Arc::from(b"key".as_slice()));
    world.put_with("tasks", 20, Terms { delay, key, ..Terms::default() });
    let worker = world.rig.client("MainProcess");
    assert_eq!((world.get(&worker), world.get(&worker)), (0, 1));
    let put = worker.ask_put(&worker.results, 100);
    assert!(matches!(world.call(put), Outcome::Accepted(_)));
    worker.vanish();
    world.rig.pass(A_WHILE);
    let leased = world.lease("tasks", Duration::from_secs(30));
    assert_eq!((number(&leased), leased.token.attempt), (1, 2));
    world.sync();
    let stops = std::sync::atomic::AtomicBool::new(false);
    assert!(world.rig.engine.checkpoint(&stops).unwrap().bytes > 0);
    world.put("tasks", [30]);
    let mut world = world.kill(&disk);
    assert_eq!((world.restored.tasks, world.restored.leases), (12, 1));
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 12);
    let known = Terms { key: Some(Arc::from(b"key".as_slice())), ..Terms::default() };
    assert_eq!(world.put_with("tasks", 21, known), Outcome::Known);
    let expected = (2..10).map(|number| (number, 1)).chain([(30, 1)]);
    assert!(world.drain("tasks").into_iter().eq(expected));
    assert_eq!(world.drain("results"), [(100, 1)]);
    let stops = std::sync::atomic::AtomicBool::new(false);
    world.sync();
    world.rig.engine.checkpoint(&stops).unwrap();
    let mut world = world.kill(&disk);
    assert_eq!(world.ack("tasks", leased.token), Ack::Accepted);
    world.rig.pass(Duration::from_secs(100));
    assert_eq!(world.drain("tasks"), [(20, 1)]);
}

#[test]
fn segments_are_let_go_and_stragglers_moved_while_tasks_come_and_go() {
    let (disk, mut world) = tasks(at_once());
    let body = Bytes::from(vec![b'x'; 2000]);
    let payload = Payload::pickle(2, body);
    let put = |world: &mut World, queue: &str| {
        let reference = world.rig.engine.open(queue).unwrap();
        let put =
            world.rig.engine.put(Caller::IN_PROCESS, reference, payload.clone(), None, Wait::No);
        assert!(matches!(world.call(put), Outcome::Accepted(_)));
    };
    let mut most = 0;
    for round in 0..200 {
        if round % 40 == 0 {
            put(&mut world, "stragglers");
        }
        for _ in 0..10 {
            put(&mut world, "tasks");
            assert!(world.take("tasks").is_some());
        }
        world.sync();
        world.checkpoint();
        most = most.max(disk.files().values().map(Vec::len).sum());
    }
    assert!(most < 12 * 65_536, "{most} bytes on disk for five tasks of 2000");
    let mut world = world.kill(&disk);
    assert_eq!(world.restored.tasks, 5);
    assert!((0..5).all(|_| world.take("stragglers").is_some_and(|it| it.payload == payload)));
}

/// What a restart must find: counts, and what is known of each task.
fn known(engine: &Engine) -> Vec<String> {
    let state = engine.lock(0);
    let mut known = Vec::new();
    for (name, id) in &state.directory.names {
        let hosted = &state.queues[id];
        let (next, unfinished) = (hosted.queue.next_task(), hosted.queue.unfinished());
        known.push(format!("{name}: {next:?}, {unfinished} unfinished"));
        for (task, stored) in hosted.queue_log.as_ref().unwrap().ledger.from(TaskId(0)) {
            let mut facts = hosted.queue.facts(task).unwrap_or_default();
            // Tokens of sessions mean nothing after a restart.
            facts.last = None;
            known.push(format!("{name} {task:?} in {stored:?}: {facts:?}"));
        }
    }
    known.sort();
    known
}

/// Three tasks come, three are taken; some workers answer, out of order, and some crash.
fn live_on(world: &mut World, round: u8) {
    world.put("tasks", [round, round, round]);
    let workers: Vec<_> = (0..3).map(|_| world.rig.client("MainProcess")).collect();
    let tasks: Vec<_> = workers.iter().map(|worker| world.get(worker)).collect();
    for (number, (worker, task)) in workers.into_iter().zip(tasks).enumerate().rev() {
        if (usize::from(round) + number) % 4 == 0 {
            worker.vanish();
        } else {
            let put = worker.ask_put(&worker.results, task);
            assert!(matches!(world.call(put), Outcome::Accepted(_)));
            worker.exit();
        }
    }
    world.rig.pass(A_WHILE);
    if round.is_multiple_of(3) {
        world.take("results");
    }
    world.sync();
}

#[test]
fn a_checkpoint_that_is_written_while_everything_changes_misses_nothing() {
    let declared = [
        ("tasks", at_once().results("results").attempts(2)),
        ("results", QueueOptions { ordered: true, ..at_once() }),
    ];
    let disk = Disk::default();
    let mut world = begin(&disk, NOW, &declared);
    for seed in 0..20_u64 {
        (0..20).for_each(|round| live_on(&mut world, round));
        let engine = world.rig.engine.clone();
        let (journal, mark, heads) = engine.begin_checkpoint().unwrap();
        world.sync();
        let mut random = Random::new(seed);
        let mut rounds = 20;
        let written = journal.checkpoint_with(mark, |write| {
            engine.tell_all(&heads, &mut |record| {
                if rounds < 60 && random.percent(30) {
                    live_on(&mut world, rounds);
                    rounds += 1;
                }
                write(record)
            })
        });
        written.unwrap();
        live_on(&mut world, 60);
        drop(engine);
        let before = known(&world.rig.engine);
        world = world.kill_with(&disk, NOW, &declared);
        assert_eq!(known(&world.rig.engine), before, "seed {seed}");
    }
    assert!(world.rig.look("tasks.dead", Queue::len) > 10);
}

#[test]
fn a_dead_letter_queue_that_is_made_beside_a_checkpoint_is_there_again() {
    let (disk, mut world) = tasks(at_once().attempts(1));
    world.put("tasks", 0..8);
    let engine = world.rig.engine.clone();
    let (journal, mark, heads) = engine.begin_checkpoint().unwrap();
    // Written while the journal's thread would do it.
    world.sync();
    let worker = world.rig.client("MainProcess");
    assert_eq!(world.get(&worker), 0);
    worker.vanish();
    world.rig.pass(A_WHILE);
    world.sync();
    journal.checkpoint_with(mark, |write| engine.tell_all(&heads, write)).unwrap();
    drop(engine);
    let mut world = world.kill(&disk);
    assert_eq!(world.rig.look("tasks.dead", Queue::unfinished), 1);
    assert_eq!(world.drain("tasks.dead"), [(0, 1)]);
    assert_eq!(world.drain("tasks").len(), 7);
}

#[test]
fn puts_that_a_purge_lets_in_are_counted_once() {
    let (disk, mut world) = tasks(QueueOptions::bounded(2));
    world.put("tasks", [1, 2]);
    let engine = world.rig.engine.clone();
    let reference = engine.open("tasks").unwrap();
    let put = engine.put(Caller::IN_PROCESS, reference, item(3), None, Wait::Forever);
    assert!(is_in_line(&put), "there is no room: {put:?}");
    let mut waiting = redeem(&engine, Caller::IN_PROCESS, reference, put);
    assert_eq!(engine.purge(reference).called.unwrap(), 2);
    world.sync();
    assert!(matches!(look(&mut waiting), Poll::Ready(Some(Outcome::Accepted(_)))));
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 1);
    drop((engine, waiting));
    let mut world = world.kill(&disk);
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 1);
    assert_eq!(world.drain("tasks"), [(3, 1)]);
}

#[test]
fn a_checkpoint_knows_no_more_than_the_log() {
    let (disk, mut world) = tasks(at_once().results("results"));
    world.put("tasks", [1]);
    let worker = world.rig.client("MainProcess");
    assert_eq!(world.get(&worker), 1);
    let engine = world.rig.engine.clone();
    let (journal, mark, heads) = engine.begin_checkpoint().unwrap();
    world.sync();
    drop(worker.put(&worker.results, 11).unwrap());
    std::mem::forget(worker);
    // The process is killed before it has written the result.
    let World { writer, .. } = world;
    drop(writer);
    let told = journal.checkpoint_with(mark, |write| engine.tell_all(&heads, write));
    told.unwrap_err();
    disk.restart();
    let declared = [("tasks", at_once().results("results"))];
    let mut world = begin(&disk, NOW, &declared);
    assert_eq!((world.drain("tasks"), world.drain("results")), (vec![(1, 1)], vec![]));
}

#[test]
fn names_that_went_are_not_there_again_and_their_ids_harm_nobody() {
    let (disk, mut world) = tasks(QueueOptions::default());
    let names = |world: &World| world.rig.names();
    for name in ["unused", "dropped", "kept"] {
        let ident = world.rig.classic.refer_to(name).unwrap();
        assert!(world.rig.classic.decref(&ident));
    }
    for name in ["dropped", "kept"] {
        world.put(name, [1, 2]);
    }
    // As `put` asked for them they stay for this process, but not for the next.
    let mut world = world.kill(&disk);
    world.checkpoint();
    let (tasks, promise) = world.rig.engine.drop_queue("dropped", false).unwrap();
    assert_eq!((tasks, promise.is_nothing()), (2, false), "the answer waits for the disk");
    world.rig.pass(Duration::from_secs(3600));
    assert_eq!(names(&world), ["kept", "tasks"]);
    world.put("tasks", [7]);
    let mut world = world.kill(&disk);
    assert_eq!(names(&world), ["kept", "tasks"]);
    world.checkpoint();
    world.put("new", [9]);
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("new"), [(9, 1)]);
    assert_eq!(world.drain("kept"), [(1, 1), (2, 1)]);
    assert_eq!(world.drain("tasks"), [(7, 1)]);
}

#[test]
fn a_notice_of_a_task_that_was_given_up_is_there_after_a_restart_and_its_letter_as_it_was() {
    let options = at_once().results("results").attempts(1).failures("results");
    for letters in [Durability::Memory, Durability::Disk] {
        let declared = [
            ("tasks", options.clone()),
            ("results", at_once()),
            ("tasks.dead", at_once().attempts(0).durability(letters)),
        ];
        let disk = Disk::default();
        let mut world = begin(&disk, NOW, &declared);
        world.put("tasks", [1]);
        let worker = world.rig.client("a");
        let token = worker.lease(None);
        world.sync();
        let (session, tasks) = (worker.presence.caller(), worker.tasks.reference);
        worker.engine.nack(session, tasks, token, Retry::Backoff, "no").called.unwrap();
        world.sync();
        drop(worker);
        for _ in 0..2 {
            world = world.kill_with(&disk, NOW, &declared);
            let lengths =
                ["tasks", "results", "tasks.dead"].map(|name| world.rig.look(name, Queue::len));
            assert_eq!(lengths, [0, 1, usize::from(letters == Durability::Disk)]);
            world.checkpoint();
        }
    }
}

#[test]
fn what_was_purged_does_not_come_back_if_a_checkpoint_is_written_before_it_is_cleared_away() {
    let (disk, mut world) = tasks(at_once());
    let key = || Terms { key: Some(Arc::from(*b"key")), ..Terms::default() };
    world.put("tasks", 1..=150);
    world.put_with("tasks", 200, key());
    let worker = world.rig.client("a");
    let token = worker.lease(None);
    let engine = world.rig.engine.clone();
    let reference = engine.open("tasks").unwrap();
    assert_eq!(engine.purge(reference).called.unwrap(), 150);
    world.put("tasks", [201]);
    let has_remains = |world: &World| world.rig.look("tasks", Queue::has_remains);
    engine.expire();
    assert!(has_remains(&world));
    world.checkpoint();
    assert!(has_remains(&world));
    drop((engine, worker));
    let mut world = world.kill(&disk);
    assert_eq!(world.rig.look("tasks", |queue| (queue.len(), queue.leased())), (1, 1));
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 2);
    // The key is free, and the task that was with somebody still is.
    assert!(matches!(world.put_with("tasks", 202, key()), Outcome::Accepted(_)));
    let worker = world.rig.client("a");
    worker
        .engine
        .ack(worker.presence.caller(), worker.tasks.reference, token, None, Wait::No)
        .called
        .unwrap();
    assert_eq!(world.drain("tasks"), [(201, 1), (202, 1)]);
}

#[test]
fn a_queue_that_was_dropped_is_not_there_again_though_its_tasks_are_not_cleared_away() {
    let (disk, mut world) = tasks(at_once());
    world.rig.classic.refer_to("passing").unwrap();
    world.put("passing", 1..=20);
    let mut world = world.kill(&disk);
    world.rig.engine.drop_queue("passing", false).unwrap();
    world.rig.classic.refer_to("passing").unwrap();
    world.put("passing", [30]);
    assert!(!world.rig.engine.lock(0).ruins.is_empty());
    world.checkpoint();
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("passing"), [(30, 1)]);
}
