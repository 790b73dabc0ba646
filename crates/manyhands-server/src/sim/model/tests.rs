//! What the model says where two rules meet.

use super::{Answer, Asked, Model, Patience};
use crate::queue::{QueueOptions, Step, Time};

/// The queue of the model.
const TASKS: usize = 0;
const MASTER: u64 = 1;

fn model(options: QueueOptions) -> Model {
    let mut model =
        Model::new(Time::default(), vec![(options, None, TASKS)], Step::new(0, 0).random);
    model.enter(MASTER, 1);
    model
}

#[test]
fn a_purge_ends_a_join_before_it_lets_a_put_in() {
    let mut model = model(QueueOptions::bounded(1));
    let put = |model: &mut Model, call| {
        model.put(MASTER, TASKS, call, (1, Asked::default()), Patience::Forever);
    };
    put(&mut model, 1);
    put(&mut model, 2);
    model.join(MASTER, TASKS, 3);
    assert_eq!(model.hear(), [(1, Answer::Accepted)]);
    model.purge(MASTER, 4, TASKS);
    let answers = [(3, Answer::Joined), (2, Answer::Accepted), (4, Answer::Count(1))];
    assert_eq!(model.hear(), answers);
    assert_eq!(model.counts(TASKS).unfinished, 1);
}
