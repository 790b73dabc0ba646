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
