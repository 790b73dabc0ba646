//! What a session has in hand: tasks that it took, and that what it does next may settle.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::QueueId;
use crate::queue::{TaskId, Token};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InHand {
    pub(super) queue: QueueId,
    pub(super) token: Token,
}

/// The tasks in one hand, in the order in which each queue handed them out. Some may have been taken
/// away. Every operation is logarithmic in their number, however many there are.
#[derive(Debug, Default)]
pub(super) struct Hand {
    tasks: BTreeMap<(QueueId, Epoch), Taken>,
}

/// Number of a lease in its queue.
type Epoch = u64;

#[derive(Debug)]
struct Taken {
    task: TaskId,
    attempt: u32,
    /// Rises from one task to the next, of whatever queue.
    age: u64,
}

impl Hand {
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Takes a task into the hand; `age` is above those of all before it.
    pub(super) fn add(&mut self, InHand { queue, token }: InHand, age: u64) {
        let Token { task, attempt, epoch } = token;
        self.tasks.insert((queue, epoch), Taken { task, attempt, age });
    }

    pub(super) fn remove(&mut self, InHand { queue, token }: InHand) {
        self.tasks.remove(&(queue, token.epoch));
    }

    /// Takes all that another hand has.
    pub(super) fn take_over(&mut self, mut other: Self) {
        self.tasks.append(&mut other.tasks);
    }

    /// The task of this queue that has been in hand longest, and its age.
    pub(super) fn oldest_of(&self, queue: QueueId) -> Option<(u64, InHand)> {
        let (key, taken) = self.tasks.range((queue, Epoch::MIN)..=(queue, Epoch::MAX)).next()?;
        Some((taken.age, in_hand(key, taken)))
    }

    /// Its tasks of one queue after this lease, each with the number of its own.
    pub(super) fn tasks_after(
        &self,
        queue: QueueId,
        lease: Option<Epoch>,
    ) -> impl Iterator<Item = (Epoch, TaskId)> {
        let after = lease
            .map_or(Bound::Included((queue, Epoch::MIN)), |lease| Bound::Excluded((queue, lease)));
        let tasks = self.tasks.range((after, Bound::Included((queue, Epoch::MAX))));
        tasks.map(|((_, lease), taken)| (*lease, taken.task))
    }

    /// The one that has been in hand for the shortest time.
    pub(super) fn newest_of(&self, queue: QueueId) -> Option<(u64, InHand)> {
        let (key, taken) =
            self.tasks.range((queue, Epoch::MIN)..=(queue, Epoch::MAX)).next_back()?;
        Some((taken.age, in_hand(key, taken)))
    }

    /// One after the other with its age, until there is none.
    pub(super) fn pop(&mut self) -> Option<(u64, InHand)> {
        self.tasks.pop_first().map(|(key, taken)| (taken.age, in_hand(&key, &taken)))
    }

    /// The queues that they are of.
    pub(super) fn queues(&self) -> impl Iterator<Item = QueueId> {
        let after = |queue: Option<&QueueId>| {
            let from = queue.map_or(Some(QueueId::MIN), |queue| queue.checked_add(1))?;
            self.tasks.range((from, Epoch::MIN)..).next().map(|((queue, _), _)| *queue)
        };
        std::iter::successors(after(None), move |queue| after(Some(queue)))
    }
}

fn in_hand(&(queue, epoch): &(QueueId, Epoch), taken: &Taken) -> InHand {
    InHand { queue, token: Token { task: taken.task, attempt: taken.attempt, epoch } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(queue: QueueId, number: u64) -> InHand {
        InHand { queue, token: Token { task: TaskId(number), attempt: 1, epoch: number } }
    }

    #[test]
    fn a_hand_knows_its_tasks_by_queue_and_by_age() {
        let mut hand = Hand::default();
        for (age, held) in [task(1, 5), task(3, 0), task(1, 7), task(9, 2)].into_iter().enumerate()
        {
            hand.add(held, age as u64);
        }
        assert_eq!(hand.queues().collect::<Vec<_>>(), [1, 3, 9]);
        assert_eq!(hand.oldest_of(1), Some((0, task(1, 5))));
        assert_eq!(hand.newest_of(1), Some((2, task(1, 7))));
        hand.remove(task(1, 5));
        assert_eq!(hand.oldest_of(1), Some((2, task(1, 7))));
        assert_eq!(hand.oldest_of(2), None);
        let mut other = Hand::default();
        other.add(task(1, 6), 4);
        hand.take_over(other);
        assert_eq!(hand.len(), 4);
        let all: Vec<_> = std::iter::from_fn(|| hand.pop()).map(|(_, held)| held).collect();
        assert_eq!(all, [task(1, 6), task(1, 7), task(3, 0), task(9, 2)]);
    }
}
