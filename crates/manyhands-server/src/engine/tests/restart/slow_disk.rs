//! Bodies that a slow disk brings late.

use super::*;

/// Tasks that a restart has left on the disk, and who takes all of them.
fn batch(world: &mut World, max: usize) -> (Client, Batch) {
    let worker = world.rig.client("a");
    let (session, at) = (worker.presence.caller(), worker.tasks.reference);
    let taking = Taking {
        protocol_max: 5,
        settled_by: SettledBy::Token,
        is_informed: false,
        max,
        bytes_max: usize::MAX,
    };
    let (shown, mut batch) = (Shown::default(), Batch::default());
    let engine = &worker.engine;
    engine.get_many(session, at, taking, Wait::No, &shown, &mut batch).called.unwrap();
    world.sync();
    assert_eq!(batch.grants.len(), max);
    assert!(batch.grants.iter().all(|grant| Queue::is_evicted(&grant.payload)));
    (worker, batch)
}

#[tokio::test]
async fn a_batch_is_read_from_a_slow_disk_in_one_go() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", 0..200);
    let mut world = world.kill(&disk);
    let (worker, mut batch) = batch(&mut world, 200);
    disk.be_slow(async {}).await;
    let to = (worker.presence.caller(), worker.tasks.reference);
    let mut looks = 0;
    let mut room = worker.engine.memory().room();
    let reading = worker.engine.collect(to.0, to.1, &mut batch, &mut room).unwrap();
    let reading = reading.expect("the disk is slow");
    let mut reading = Box::pin(worker.engine.arrive(to.0, to.1, batch, reading));
    let read = std::future::poll_fn(|context| {
        looks += 1;
        reading.as_mut().poll(context)
    });
    let (batch, _) = read.await.unwrap();
    assert!(looks <= 2, "the batch was woken {looks} times");
    assert!(batch.grants.iter().map(number).eq(0..200));
}

#[test]
fn a_task_that_is_gone_before_it_was_read_is_left_out_of_its_batch() {
    let (disk, mut world) = tasks(at_once().max_run(A_WHILE));
    world.put("tasks", [1, 2]);
    let mut world = world.kill(&disk);
    let (worker, mut batch) = batch(&mut world, 2);
    let to = (worker.presence.caller(), worker.tasks.reference);
    // The only thread that could read is busy until the task is gone.
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let (free, busy) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || busy.recv());
        let mut reading = None;
        let mut room = worker.engine.memory().room();
        disk.be_slow(async {
            reading = worker.engine.collect(to.0, to.1, &mut batch, &mut room).unwrap();
            world.rig.pass(A_WHILE);
            let settled = world.rig.client("b").lease(None);
            assert_eq!(settled.task, 0);
            worker.engine.ack(to.0, to.1, settled, None, Wait::No).called.unwrap();
        })
        .await;
        drop(free);
        let reading = reading.expect("the disk was slow");
        let (batch, _) = worker.engine.arrive(to.0, to.1, batch, reading).await.unwrap();
        assert!(batch.grants.iter().map(number).eq([2]));
    });
}

#[tokio::test]
async fn who_leaves_while_a_slow_disk_is_read_gives_back_what_it_took() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1, 2]);
    let mut world = world.kill(&disk);
    let (worker, mut batch) = batch(&mut world, 2);
    let (session, at) = (worker.presence.caller(), worker.tasks.reference);
    let left = || world.rig.look("tasks", |queue| (queue.len(), queue.leased()));
    let mut room = worker.engine.memory().room();
    disk.be_slow(async {
        let reading = worker.engine.collect(session, at, &mut batch, &mut room).unwrap();
        let reading = reading.expect("the disk is slow");
        let mut reading = Box::pin(worker.engine.arrive(session, at, batch, reading));
        let mut context = Context::from_waker(Waker::noop());
        assert!(reading.as_mut().poll(&mut context).is_pending());
        drop(reading);
        assert_eq!((left(), world.rig.leases()), ((2, 0), 0));
        let taken = worker.classic.get(session, at, 5, Wait::No);
        let mut waiter = redeem(&worker.engine, session, at, taken);
        assert!(look(&mut waiter).is_pending());
        drop(waiter);
        assert_eq!(left(), (2, 0));
    })
    .await;
}

/// Letters and what they were are moved by what is known of them, so nobody waits for the disk.
#[tokio::test]
async fn a_slow_disk_is_not_read_where_tasks_are_buried_and_letters_redriven() {
    const LETTERS: usize = 1000;
    let options = at_once().attempts(1);
    let (disk, mut world) = tasks(options);
    for _ in 0..LETTERS / 200 {
        world.put("tasks", 0..200);
    }
    let mut world = world.kill(&disk);
    let engine = world.rig.engine.clone();
    let batches: Vec<_> = (0..4).map(|_| batch(&mut world, LETTERS / 4)).collect();
    let mut moved = 0;
    disk.be_slow(async {
        for (worker, batch) in &batches {
            let (session, at) = (worker.presence.caller(), worker.tasks.reference);
            let signer = engine.signer(at).unwrap();
            for grant in &batch.grants {
                let token = signer.sign(grant.token);
                engine.nack(session, at, token, Retry::Backoff, "bad").called.unwrap();
            }
        }
        assert_eq!(world.rig.look("tasks.dead", Queue::len), LETTERS);
        let dead = engine.open("tasks.dead").unwrap();
        loop {
            match engine.redrive(dead, Redriving::of(LETTERS)).called.unwrap() {
                0 => break,
                some => moved += some,
            }
        }
    })
    .await;
    assert_eq!(moved, LETTERS as u64);
    assert_eq!(world.rig.look("tasks", Queue::len), LETTERS);
}
