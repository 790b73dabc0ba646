//! Tasks that the program took by a plain `get`, which knows nothing of leases.
//!
//! Nothing that a `get` took may be lost with its program, so it is a lease whose token is *in hand*
//! here, and is settled by what the program does next, as the server does it for unmodified workers
//! (`docs/delivery.md` has the rules in words):
//!
//! - a `get` from the same queue shows that the tasks before are done, unless the queue declares where
//!   results go;
//! - a put to the queue of results of the oldest such task is its result, in one step;
//! - a put to any other queue, once it was accepted, shows that the tasks of queues without results are
//!   done;
//! - `task_done` shows it of the oldest one;
//! - closing the queue or the client does, too. Tasks that still need their result go back.
//!
//! Each caller, such as a thread, has a hand of its own. If the program dies, the connection ends and the server gives to others what is in hand. After a
//! lost connection the tokens are good as long as nobody else has had their tasks.

use std::collections::VecDeque;

use super::queues::Queues;
use crate::wire::token::LeaseToken;

/// A task that somebody has: the handle of its queue, and the token of its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// Whose hand it is in.
    pub(super) caller: u64,
    pub(super) queue: u16,
    pub(super) token: LeaseToken,
}

/// The tasks that a put settles if it is accepted. They are in hand no more; those that it does not
/// settle [come back](Hands::take_back).
#[derive(Debug, Default)]
pub(super) struct Claim {
    /// Tasks of one queue, oldest first, of which the items are the results.
    pub(super) answered: Vec<Held>,
    /// Tasks that are done.
    pub(super) through: Vec<Held>,
}

impl Claim {
    pub(super) fn is_empty(&self) -> bool {
        self.answered.is_empty() && self.through.is_empty()
    }
}

/// All that is in hand, oldest first.
#[derive(Debug, Default)]
pub(super) struct Hands(VecDeque<Held>);

impl Hands {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a task in hand.
    pub(super) fn take(&mut self, held: Held) {
        self.0.push_back(held);
    }

    /// Takes back what was not settled, in its old place.
    pub(super) fn take_back(&mut self, held: &[Held]) {
        for held in held.iter().rev() {
            self.0.push_front(*held);
        }
    }

    /// The tasks that the next `get` from a queue shows to be done.
    pub(super) fn through_by_get(&mut self, by: u64, queue: u16, queues: &Queues) -> Vec<Held> {
        if queues.is_strict(queue) {
            return Vec::new();
        }
        self.remove(usize::MAX, |held| held.caller == by && queues.is_same(held.queue, queue))
    }

    /// What a put of so many items to a queue settles.
    pub(super) fn claim(&mut self, by: u64, to: u16, items: usize, queues: &Queues) -> Claim {
        let mut own = self.0.iter().filter(|held| held.caller == by);
        let oldest = own.find(|held| queues.has_results_in(held.queue, to));
        let answered = match oldest.map(|held| held.queue) {
            Some(source) => self.remove(items, |held| held.caller == by && held.queue == source),
            None => Vec::new(),
        };
        let is_through = |held: &Held| {
            let is_elsewhere = !queues.is_strict(held.queue) && !queues.is_same(held.queue, to);
            held.caller == by && is_elsewhere
        };
        Claim { answered, through: self.remove(usize::MAX, is_through) }
    }

    /// The task that `task_done` settles.
    pub(super) fn through_by_task_done(
        &mut self,
        by: u64,
        queue: u16,
        queues: &Queues,
    ) -> Vec<Held> {
        self.remove(1, |held| held.caller == by && queues.is_same(held.queue, queue))
    }

    /// What is in hand of a queue that is closed.
    pub(super) fn let_go(&mut self, queue: u16) -> Vec<Held> {
        self.remove(usize::MAX, |held| held.queue == queue)
    }

    /// Removes up to `max` tasks, oldest first.
    fn remove(&mut self, max: usize, is_wanted: impl Fn(&Held) -> bool) -> Vec<Held> {
        let mut removed = Vec::new();
        if self.0.iter().any(&is_wanted) {
            self.0.retain(|held| {
                let goes = removed.len() < max && is_wanted(held);
                removed.extend(goes.then_some(*held));
                !goes
            });
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Handles of `tasks`, whose results go to `results`, and of two other queues.
    const TASKS: u16 = 1;
    const RESULTS: u16 = 2;
    const PLAIN: u16 = 3;
    const OTHER: u16 = 4;

    const ME: u64 = 7;

    fn queues() -> Queues {
        let mut queues = Queues::default();
        for name in ["tasks", "results", "plain", "other", "plain"] {
            queues.add(name.into(), 100).unwrap();
        }
        queues.get(TASKS).unwrap().results = Some("results".into());
        queues.get(TASKS).unwrap().is_strict = true;
        queues
    }

    fn held(queue: u16, task: u64) -> Held {
        Held { caller: ME, queue, token: LeaseToken { task, attempt: 1, lease: 0, seal: 0 } }
    }

    fn hands(tasks: &[(u16, u64)]) -> Hands {
        Hands(tasks.iter().map(|(queue, task)| held(*queue, *task)).collect())
    }

    fn tasks(held: &[Held]) -> Vec<u64> {
        held.iter().map(|held| held.token.task).collect()
    }

    #[test]
    fn the_next_get_shows_that_the_tasks_before_are_done_unless_they_need_results() {
        let (queues, mut hands) = (queues(), hands(&[(PLAIN, 1), (TASKS, 2), (OTHER, 3)]));
        assert!(hands.through_by_get(ME, TASKS, &queues).is_empty());
        // The same queue, opened once more.
        assert_eq!(tasks(&hands.through_by_get(ME, 5, &queues)), [1]);
        assert_eq!(tasks(&Vec::from(hands.0)), [2, 3]);
    }

    #[test]
    fn a_put_is_the_result_of_the_oldest_task_whose_results_go_there() {
        let (queues, mut hands) = (queues(), hands(&[(TASKS, 1), (PLAIN, 2), (TASKS, 3)]));
        let claim = hands.claim(ME, RESULTS, 1, &queues);
        assert_eq!((tasks(&claim.answered), tasks(&claim.through)), (vec![1], vec![2]));
        let claim = hands.claim(ME, RESULTS, 9, &queues);
        assert_eq!((tasks(&claim.answered), tasks(&claim.through)), (vec![3], vec![]));
        assert!(hands.is_empty());
        hands.take_back(&claim.answered);
        assert_eq!(tasks(&hands.claim(ME, RESULTS, 9, &queues).answered), [3]);
    }

    #[test]
    fn a_put_elsewhere_shows_that_tasks_without_results_are_done() {
        let (queues, mut hands) = (queues(), hands(&[(TASKS, 1), (PLAIN, 2), (OTHER, 3)]));
        let claim = hands.claim(ME, OTHER, 1, &queues);
        assert_eq!((tasks(&claim.answered), tasks(&claim.through)), (vec![], vec![2]));
        assert_eq!(tasks(&Vec::from(hands.0)), [1, 3]);
    }

    #[test]
    fn everybody_has_a_hand_of_his_own() {
        let (queues, mut hands) = (queues(), hands(&[(PLAIN, 1), (TASKS, 2)]));
        let other = ME + 1;
        hands.take(Held { caller: other, ..held(PLAIN, 3) });
        assert!(hands.claim(other, RESULTS, 9, &queues).answered.is_empty());
        hands.take_back(&[Held { caller: other, ..held(PLAIN, 3) }]);
        assert_eq!(tasks(&hands.through_by_get(other, PLAIN, &queues)), [3]);
        assert!(hands.through_by_task_done(other, TASKS, &queues).is_empty());
        assert_eq!(tasks(&Vec::from(hands.0)), [1, 2]);
    }

    #[test]
    fn task_done_settles_the_oldest_and_a_queue_that_is_closed_all_of_its_own() {
        let (queues, mut hands) = (queues(), hands(&[(PLAIN, 1), (TASKS, 2), (PLAIN, 3)]));
        assert_eq!(tasks(&hands.through_by_task_done(ME, PLAIN, &queues)), [1]);
        assert_eq!(tasks(&hands.through_by_task_done(ME, TASKS, &queues)), [2]);
        assert_eq!(tasks(&hands.let_go(PLAIN)), [3]);
        assert!(hands.is_empty());
    }
}
