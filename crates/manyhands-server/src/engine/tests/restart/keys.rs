//! The key of a task's put goes with the task wherever it goes.

use super::*;

/// The key of the first task of a queue.
fn key(world: &World, name: &str) -> Option<Arc<[u8]>> {
    let id = world.rig.engine.open(name).unwrap().queue;
    let state = world.rig.engine.lock(0);
    let task = state.queues[&id].queue_log.as_ref().unwrap().ledger.iter().next().unwrap().0;
    state.queues[&id].queue.key(task)
}

#[test]
fn a_task_keeps_its_key_as_a_dead_letter_when_it_is_redriven_and_over_restarts() {
    let expected: Arc<[u8]> = b"seven"[..].into();
    let (disk, mut world) = tasks(at_once().attempts(1));
    world.put_with("tasks", 7, Terms { key: Some(expected.clone()), ..Terms::default() });
    for is_checkpointed in [false, true] {
        for name in ["tasks", "tasks.dead"] {
            if name == "tasks.dead" {
                let worker = world.rig.client("MainProcess");
                assert_eq!(world.get(&worker), 7);
                worker.vanish();
                world.rig.pass(A_WHILE);
            }
            for _ in 0..2 {
                assert_eq!(key(&world, name).as_ref(), Some(&expected), "{name}");
                if is_checkpointed {
                    world.checkpoint();
                }
                world = world.kill(&disk);
            }
            // Only a put keeps others away by its key.
            let is_known = world.rig.look(name, |queue| queue.keys_after(None, 9).0.len());
            assert_eq!(is_known, usize::from(name == "tasks"), "{name}");
        }
        let letters = world.rig.engine.open("tasks.dead").unwrap();
        let redriven = world.rig.engine.redrive(letters, Redriving::of(9));
        assert!(matches!(redriven.called, Ok(1)));
    }
    assert_eq!(key(&world, "tasks"), Some(expected));
}

#[test]
fn a_result_that_is_kept_back_keeps_its_key_over_restarts() {
    let expected: Arc<[u8]> = b"seven"[..].into();
    let declared = [
        ("tasks", at_once().results("results")),
        ("results", QueueOptions { ordered: true, ..at_once() }),
    ];
    for is_checkpointed in [false, true] {
        let disk = Disk::default();
        let mut world = begin(&disk, NOW, &declared);
        world.put("tasks", 0..2);
        let workers = [world.rig.client("a"), world.rig.client("b")];
        assert_eq!(world.get(&workers[0]), 0);
        let (caller, results) = (workers[1].presence.caller(), workers[1].results.reference);
        let LeaseToken { task, attempt, lease, .. } = workers[1].lease(None);
        let token = Token { task: TaskId(task), attempt, lease };
        let held = Held { queue: workers[1].tasks.reference.queue, token };
        let settles = Settles { answered: Some(held), is_by_token: true, ..Settles::default() };
        let terms = Some(Box::new(Terms { key: Some(expected.clone()), ..Terms::default() }));
        let engine = world.rig.engine.clone();
        let put = engine.put_settling(caller, results, item(7).into(), terms, Wait::No, &settles);
        assert!(matches!(world.call(put), Outcome::Accepted(_)));
        workers.into_iter().for_each(std::mem::forget);
        for _ in 0..2 {
            if is_checkpointed {
                world.checkpoint();
            }
            world.sync();
            world = world.kill_with(&disk, NOW, &declared);
            assert_eq!(world.rig.look("results", Queue::delayed), 1, "it is not its turn yet");
        }
        let worker = world.rig.client("a");
        assert_eq!(world.get(&worker), 0);
        let put = worker.ask_put(&worker.results, 6);
        assert!(matches!(world.call(put), Outcome::Accepted(_)));
        assert_eq!(world.take("results").map(|grant| number(&grant)), Some(6));
        assert_eq!(key(&world, "results").as_ref(), Some(&expected));
    }
}
