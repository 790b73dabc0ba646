//! A look at tasks.

use manyhands::wire::tasks::TaskState;

use super::*;

/// Every task in a state, looked at in pages.
fn look(queue: &Queue, state: TaskState, page: usize) -> Vec<Seen> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let (seen, next) = queue.look_at(state, cursor, page, true);
        all.extend(seen);
        let Some(next) = next else { return all };
        cursor = Some(next);
    }
}

fn names(seen: &[Seen]) -> Vec<String> {
    let bytes = |seen: &Seen| seen.payload.as_ref().unwrap().bytes[5..].to_vec();
    seen.iter().map(|seen| String::from_utf8(bytes(seen)).unwrap()).collect()
}

#[test]
fn ready_tasks_are_seen_in_the_order_in_which_they_are_taken() {
    for options in [QueueOptions::default(), QueueOptions::lifo(), QueueOptions::priority()] {
        let mut rig = rig(QueueOptions { backoff: Duration::ZERO, ..options });
        for number in 0..700 {
            // Some stand alone, and most share a chunk.
            let len = if number % 100 == 7 { 5000 } else { 1 + number % 40 };
            rig.add(&format!("{:04}{}", number * 7 % 700, "x".repeat(len)));
        }
        let taken: Vec<_> = (0..40).map(|_| rig.take()).collect();
        for grant in taken.iter().step_by(3) {
            rig.fail(grant);
        }
        let pages =
            [1, 7, 256, 10_000].map(|page| names(&look(&rig.queue, TaskState::Ready, page)));
        let leased = look(&rig.queue, TaskState::Leased, 5);
        assert_eq!((leased.len(), rig.queue.leased()), (26, 26));
        assert!(leased.is_sorted_by_key(|seen| seen.task));
        let order = rig.take_all();
        assert_eq!(order.len(), 674);
        for page in pages {
            assert!(page == order, "{:?}", rig.queue.options().order);
        }
    }
}

#[test]
fn what_is_known_of_a_task_is_seen() {
    let mut rig = rig(QueueOptions { backoff: Duration::ZERO, ..QueueOptions::default() });
    rig.step.now = at(1);
    let key: Arc<[u8]> = Arc::from(&b"k"[..]);
    rig.put_with("a", Terms { key: Some(key.clone()), ..Terms::default() });
    rig.put_with("b", Terms { delay: Some(Duration::from_secs(5)), ..Terms::default() });
    rig.step.now = at(2);
    let grant = rig.take();
    rig.fail(&grant);
    let [ready] = &look(&rig.queue, TaskState::Ready, 10)[..] else { panic!("one") };
    assert_eq!((ready.attempt, ready.put, &ready.key), (2, Some(at(1)), &Some(key)));
    assert_eq!(ready.failures, [(1, Cause::Crashed.into())]);
    let [delayed] = &look(&rig.queue, TaskState::Delayed, 10)[..] else { panic!("one") };
    assert_eq!((delayed.task, delayed.due), (TaskId(1), Some(at(6))));
    let (bare, _) = rig.queue.look_at(TaskState::Ready, None, 10, false);
    assert_eq!((bare.len(), &bare[0].payload), (1, &None));
}

#[test]
fn results_before_their_turn_are_seen_as_delayed() {
    let mut rig = rig(QueueOptions { ordered: true, ..QueueOptions::default() });
    for task in [3, 1] {
        let origin = Origin {
            queue: "tasks".into(),
            task: TaskId(task),
            attempt: 1,
            worker: "".into(),
            waited: Duration::ZERO,
            ran: Duration::ZERO,
            history: Vec::new(),
        };
        let terms = Terms { origin: Some(Box::new(origin)), ..Terms::default() };
        rig.put_with(&task.to_string(), terms);
    }
    let early = look(&rig.queue, TaskState::Delayed, 1);
    assert_eq!(names(&early), ["3", "1"]);
    assert_eq!(early[0].origin, Some(("tasks".into(), TaskId(3))));
}
