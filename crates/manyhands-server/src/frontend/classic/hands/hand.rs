//! What a session has in hand: tasks that it took, and that what it does next may settle.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

use crate::engine::{Demand, Held, QueueId};
use crate::queue::{TaskId, Token};

/// The tasks in one hand, in the order in which each queue handed them out. Some may have been taken
/// away. Every operation is logarithmic in their number, however many there are; the one task that
/// most clients have at a time needs no tree.
#[derive(Debug, Default)]
pub(super) struct Hand {
    /// The least of all by its key.
    first: Option<(Key, Taken)>,
    others: BTreeMap<Key, Taken>,
    /// The last that was looked at by [`look_on`](Self::look_on).
    looked: Key,
}

/// Sorts the tasks by their queues, and by when each queue handed them out.
type Key = (QueueId, LeaseNumber);

/// Number of a lease in its queue.
type LeaseNumber = u64;

#[derive(Debug)]
struct Taken {
    task: TaskId,
    attempt: u32,
    /// Rises from one task to the next, of whatever queue.
    age: u64,
    demand: Demand,
}

impl Hand {
    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Takes a task into the hand; `age` is above those of all before it.
    pub(super) fn add(&mut self, Held { queue, token }: Held, demand: Demand, age: u64) {
        let Token { task, attempt, lease } = token;
        let (key, taken) = ((queue, lease), Taken { task, attempt, age, demand });
        match &mut self.first {
            Some((first, _)) if *first < key => drop(self.others.insert(key, taken)),
            first => self.others.extend(first.replace((key, taken)).filter(|(it, _)| *it != key)),
        }
    }

    pub(super) fn remove(&mut self, Held { queue, token }: Held) {
        let key = (queue, token.lease);
        match &self.first {
            Some((first, _)) if *first == key => drop(self.pop()),
            _ => drop(self.others.remove(&key)),
        }
    }

    /// Takes all that another hand has.
    pub(super) fn take_over(&mut self, mut other: Self) {
        self.others.append(&mut other.others);
        self.others.extend(self.first.take().into_iter().chain(other.first));
        self.first = self.others.pop_first();
    }

    /// The task of this queue that has been in hand longest, and its age.
    pub(super) fn oldest_of(&self, queue: QueueId) -> Option<(u64, Held)> {
        self.of(queue).next()
    }

    /// The one that has been in hand for the shortest time.
    pub(super) fn newest_of(&self, queue: QueueId) -> Option<(u64, Held)> {
        self.of(queue).next_back()
    }

    /// The task, if it is the only one, and what is demanded for it: mostly so.
    pub(super) fn single(&self) -> Option<(Held, Demand)> {
        let (key, taken) = self.first.as_ref().filter(|_| self.others.is_empty())?;
        Some((in_hand(key, taken).1, taken.demand))
    }

    /// What their queue demands for the tasks of this one; nothing if there are none.
    pub(super) fn demand(&self, queue: QueueId) -> Option<Demand> {
        let mut tasks = self.between((queue, LeaseNumber::MIN)..=(queue, LeaseNumber::MAX));
        tasks.next().map(|(_, taken)| taken.demand)
    }

    /// Whether only a result settles the tasks of this queue that are here.
    pub(super) fn is_strict(&self, queue: QueueId) -> bool {
        matches!(self.demand(queue), Some(Demand::Result(_)))
    }

    /// The queues whose results go to another one.
    pub(super) fn sources_of(&self, results: QueueId) -> impl Iterator<Item = QueueId> {
        let wanted = Some(Demand::Result(Some(results)));
        self.queues().filter(move |queue| self.demand(*queue) == wanted)
    }

    /// Some tasks, each time the next ones: all of them have their turn.
    pub(super) fn look_on(&mut self, max: usize) -> Vec<Held> {
        let after = (Bound::Excluded(self.looked), Bound::Unbounded);
        let tasks = self.between(after).chain(self.between(..=self.looked)).take(max);
        let (keys, tasks): (Vec<Key>, Vec<Held>) =
            tasks.map(|(key, taken)| (*key, in_hand(key, taken).1)).unzip();
        self.looked = keys.last().copied().unwrap_or_default();
        tasks
    }

    /// All tasks, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = Held> {
        self.between(..).map(|(key, taken)| in_hand(key, taken).1)
    }

    /// One after the other with its age and what is demanded for it, until there is none.
    pub(super) fn pop(&mut self) -> Option<(u64, Held, Demand)> {
        let next = self.others.pop_first();
        let (key, taken) = std::mem::replace(&mut self.first, next)?;
        let (age, held) = in_hand(&key, &taken);
        Some((age, held, taken.demand))
    }

    /// The queues that they are of.
    pub(super) fn queues(&self) -> impl Iterator<Item = QueueId> {
        let after = |queue: Option<&QueueId>| {
            let from = queue.map_or(Some(QueueId::MIN), |queue| queue.checked_add(1))?;
            self.between((from, LeaseNumber::MIN)..).next().map(|((queue, _), _)| *queue)
        };
        std::iter::successors(after(None), move |queue| after(Some(queue)))
    }

    /// Its tasks of one queue, oldest first, each with its age.
    pub(super) fn of(&self, queue: QueueId) -> impl DoubleEndedIterator<Item = (u64, Held)> {
        let tasks = self.between((queue, LeaseNumber::MIN)..=(queue, LeaseNumber::MAX));
        tasks.map(|(key, taken)| in_hand(key, taken))
    }

    fn between(
        &self,
        keys: impl RangeBounds<Key>,
    ) -> impl DoubleEndedIterator<Item = (&Key, &Taken)> {
        let first = self.first.as_ref().filter(|(key, _)| keys.contains(key));
        let first = first.map(|(key, taken)| (key, taken));
        first.into_iter().chain(self.others.range(keys))
    }
}

impl FromIterator<(u64, Held, Demand)> for Hand {
    fn from_iter<I: IntoIterator<Item = (u64, Held, Demand)>>(tasks: I) -> Self {
        let mut hand = Self::default();
        tasks.into_iter().for_each(|(age, held, demand)| hand.add(held, demand, age));
        hand
    }
}

/// A task with its age.
fn in_hand(&(queue, lease): &Key, taken: &Taken) -> (u64, Held) {
    let &Taken { task, attempt, age, .. } = taken;
    (age, Held { queue, token: Token { task, attempt, lease } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(queue: QueueId, number: u64) -> Held {
        Held { queue, token: Token { task: TaskId(number), attempt: 1, lease: number } }
    }

    #[test]
    fn a_hand_knows_its_tasks_by_queue_and_by_age() {
        let mut hand = Hand::default();
        for (age, held) in [task(1, 5), task(3, 0), task(1, 7), task(9, 2)].into_iter().enumerate()
        {
            hand.add(held, Demand::Settlement, age as u64);
        }
        assert_eq!(hand.queues().collect::<Vec<_>>(), [1, 3, 9]);
        assert_eq!(hand.oldest_of(1), Some((0, task(1, 5))));
        assert_eq!(hand.newest_of(1), Some((2, task(1, 7))));
        hand.remove(task(1, 5));
        assert_eq!(hand.oldest_of(1), Some((2, task(1, 7))));
        assert_eq!(hand.oldest_of(2), None);
        let mut other = Hand::default();
        other.add(task(1, 6), Demand::Settlement, 4);
        hand.take_over(other);
        assert_eq!(hand.len(), 4);
        let all: Vec<_> = std::iter::from_fn(|| hand.pop()).map(|(_, held, _)| held).collect();
        assert_eq!(all, [task(1, 6), task(1, 7), task(3, 0), task(9, 2)]);
    }

    #[test]
    fn tasks_come_in_the_same_order_whichever_was_added_first() {
        let tasks = [task(1, 5), task(1, 7), task(3, 0)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut hand = Hand::default();
            for at in order {
                hand.add(tasks[at], Demand::Settlement, at as u64);
            }
            assert_eq!(hand.oldest_of(1), Some((0, tasks[0])), "{order:?}");
            assert_eq!(hand.newest_of(1), Some((1, tasks[1])), "{order:?}");
            for (left, at) in (0..3).rev().zip(order) {
                hand.remove(tasks[at]);
                hand.remove(tasks[at]);
                assert_eq!((hand.len(), hand.is_empty()), (left, left == 0), "{order:?}");
            }
        }
    }
}
