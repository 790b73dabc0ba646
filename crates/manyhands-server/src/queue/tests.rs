//! The rules of a queue, one by one, and against a naive model.

mod credit;
mod leases;
mod look;
mod model;

use std::time::Duration;

use bytes::Bytes;
use manyhands::wire::pickle::Codec;

use super::*;

/// A queue with its surroundings; every call has a waiter of its own, counted from 0.
struct Rig {
    queue: Queue,
    step: Step,
    settled_by: SettledBy,
    calls: u64,
}

const READER: u8 = 5;

fn rig(options: QueueOptions) -> Rig {
    Rig {
        queue: Queue::new(options, 0),
        step: Step::new(u64::MAX, 0),
        settled_by: SettledBy::Session,
        calls: 0,
    }
}

fn fifo() -> Rig {
    rig(QueueOptions::default())
}

impl Rig {
    fn put(&mut self, payload: Payload, patience: Patience) -> Option<Outcome> {
        let waiter = self.call();
        let prepared = Prepared::new(payload, None, self.queue.options().order);
        self.queue
            .put(prepared, None, patience, waiter, &mut self.step)
            .expect("the payload has a place")
    }

    fn get_by(&mut self, reader: u8, patience: Patience) -> Option<Outcome> {
        let waiter = self.call();
        self.queue.get(
            Taker { settled_by: self.settled_by, ..Taker::leasing(reader) },
            patience,
            waiter,
            &mut self.step,
        )
    }

    /// A `put` that must be accepted at once.
    fn add(&mut self, name: &str) {
        assert!(matches!(self.put(text(name), Patience::Now), Some(Outcome::Accepted(_))));
    }

    fn add_all<const N: usize>(&mut self, names: [&str; N]) {
        for name in names {
            self.add(name);
        }
    }

    /// A `get` that must give a task at once.
    fn take(&mut self) -> Grant {
        match self.get_by(READER, Patience::Now) {
            Some(Outcome::Task(task)) => task,
            other => panic!("{other:?} instead of a task"),
        }
    }

    fn take_all(&mut self) -> Vec<String> {
        (0..self.queue.len()).map(|_| name(&self.take())).collect()
    }

    fn wait_get(&mut self) -> WaiterId {
        assert_eq!(self.get_by(READER, Patience::Forever), None);
        WaiterId(self.calls - 1)
    }

    fn wait_put(&mut self, name: &str) -> WaiterId {
        assert_eq!(self.put(text(name), Patience::Forever), None);
        WaiterId(self.calls - 1)
    }

    fn wait_join(&mut self) -> WaiterId {
        let waiter = self.call();
        assert_eq!(self.queue.join(waiter), None);
        waiter
    }

    fn cancel(&mut self, waiter: WaiterId) -> bool {
        self.queue.cancel(waiter, &mut self.step)
    }

    fn expire(&mut self, now: Time) {
        self.step.now = now;
        self.queue.expire(&mut self.step);
    }

    /// Gives a task back that its worker never saw.
    fn restore(&mut self, grant: Grant) {
        assert!(self.queue.give_back(grant.token, Cause::Unread, Retry::Backoff, &mut self.step));
    }

    fn shutdown(&mut self, immediate: bool) {
        self.queue.shutdown(immediate, &mut self.step);
    }

    fn done(&mut self) -> Result<(), TooManyTaskDone> {
        self.queue.task_done(&mut self.step)
    }

    /// Who was woken since the last look, and how; tasks by name.
    fn woken(&mut self) -> Vec<(WaiterId, String)> {
        let told = |outcome| match outcome {
            Outcome::Task(task) => name(&task),
            Outcome::Accepted(_) => "Accepted".to_owned(),
            other => format!("{other:?}"),
        };
        self.step.wakes.drain(..).map(|(waiter, outcome)| (waiter, told(outcome))).collect()
    }

    fn call(&mut self) -> WaiterId {
        self.calls += 1;
        WaiterId(self.calls - 1)
    }
}

/// A pickled `str`.
fn text(name: &str) -> Payload {
    payload(&[b"X", u32::try_from(name.len()).unwrap().to_le_bytes().as_slice(), name.as_bytes()])
}

/// A pickled `(priority, dict)`.
fn prioritised(priority: u8, name: &str) -> Payload {
    payload(&[b"K", &[priority], b"}", &text(name).bytes, b"Ns", b"\x86"])
}

fn payload(parts: &[&[u8]]) -> Payload {
    Payload::pickle(2, Bytes::from(parts.concat()))
}

fn name(task: &Grant) -> String {
    String::from_utf8(task.payload.bytes[5..].to_vec()).unwrap()
}

fn at(seconds: u64) -> Time {
    Time::default() + Duration::from_secs(seconds)
}

fn woke(waiter: WaiterId, outcome: &str) -> (WaiterId, String) {
    (waiter, outcome.to_owned())
}

#[test]
fn tasks_leave_a_fifo_in_the_order_of_their_puts() {
    let mut rig = fifo();
    rig.add_all(["a", "b", "c"]);
    assert_eq!(rig.take_all(), ["a", "b", "c"]);
}

#[test]
fn tasks_leave_a_lifo_newest_first() {
    let mut rig = rig(QueueOptions::lifo());
    rig.add_all(["a", "b", "c"]);
    assert_eq!(name(&rig.take()), "c");
    rig.add("d");
    assert_eq!(rig.take_all(), ["d", "b", "a"]);
}

#[test]
fn tasks_leave_a_priority_queue_least_first_and_equals_in_the_order_of_their_puts() {
    let mut rig = rig(QueueOptions::priority());
    rig.add_all(["b", "c", "a", "b"]);
    let order: Vec<_> =
        (0..4).map(|_| rig.take()).map(|task| (name(&task), task.token.task.0)).collect();
    let expected = [("a", 2), ("b", 0), ("b", 3), ("c", 1)];
    assert_eq!(order, expected.map(|(name, id)| (name.to_owned(), id)));
}

#[test]
fn a_payload_comes_out_as_it_went_in() {
    for order in [Order::Fifo, Order::Lifo, Order::Priority] {
        for len in [0, 1, 100, 5_000, 300_000] {
            let mut rig = rig(QueueOptions { order, ..QueueOptions::default() });
            let payload = Payload {
                codec: Codec::Pickle(4),
                prelude_len: len / 2,
                bytes: Bytes::from(vec![b'N'; len as usize]),
            };
            rig.put(payload.clone(), Patience::Now);
            assert_eq!(rig.take().payload, payload);
        }
    }
}

#[test]
fn a_get_from_an_empty_queue_is_empty_or_waits() {
    let mut rig = fifo();
    assert_eq!(rig.get_by(READER, Patience::Now), Some(Outcome::Empty));
    let waiter = rig.wait_get();
    rig.add("a");
    assert_eq!(rig.woken(), [woke(waiter, "a")]);
    assert!(rig.queue.is_empty());
}

#[test]
fn a_put_to_a_full_queue_is_full_or_waits() {
    let mut rig = rig(QueueOptions::bounded(1));
    rig.add("a");
    assert!(rig.queue.is_full());
    assert_eq!(rig.put(text("b"), Patience::Now), Some(Outcome::Full));
    let waiter = rig.wait_put("c");
    assert_eq!(name(&rig.take()), "a");
    assert_eq!(rig.woken(), [woke(waiter, "Accepted")]);
    assert_eq!(rig.take_all(), ["c"]);
}

#[test]
fn getters_are_served_in_the_order_in_which_they_came() {
    let mut rig = fifo();
    let waiters = [rig.wait_get(), rig.wait_get(), rig.wait_get()];
    rig.add_all(["a", "b", "c"]);
    assert_eq!(rig.woken(), [woke(waiters[0], "a"), woke(waiters[1], "b"), woke(waiters[2], "c")]);
}

#[test]
fn putters_enter_in_the_order_in_which_they_came_and_nobody_overtakes_them() {
    let mut rig = rig(QueueOptions::bounded(1));
    rig.add("a");
    let waiters = [rig.wait_put("b"), rig.wait_put("c")];
    rig.take();
    assert_eq!(rig.put(text("d"), Patience::Now), Some(Outcome::Full));
    assert_eq!(rig.take_all(), ["b"]);
    assert_eq!(rig.woken(), waiters.map(|waiter| woke(waiter, "Accepted")));
}

#[test]
fn a_waiting_put_stands_where_it_entered_not_where_it_began_to_wait() {
    let mut rig = rig(QueueOptions::bounded(1));
    rig.add("a");
    rig.wait_put("b");
    assert_eq!([rig.take(), rig.take()].map(|grant| grant.token.task), [TaskId(0), TaskId(1)]);
}

#[test]
fn a_waiter_that_hung_up_receives_nothing() {
    let mut rig = fifo();
    let (gone, stays) = (rig.wait_get(), rig.wait_get());
    assert!(rig.cancel(gone));
    assert!(!rig.cancel(gone));
    rig.add("a");
    assert_eq!(rig.woken(), [woke(stays, "a")]);
    assert!(!rig.queue.has_waiters());
}

#[test]
fn a_putter_that_hung_up_leaves_no_task() {
    let mut rig = rig(QueueOptions::bounded(1));
    rig.add("a");
    let (gone, stays) = (rig.wait_put("b"), rig.wait_put("c"));
    assert!(rig.cancel(gone));
    rig.take();
    assert_eq!(rig.woken(), [woke(stays, "Accepted")]);
    assert_eq!(rig.take_all(), ["c"]);
    assert_eq!(rig.queue.unfinished(), 2);
}

#[test]
fn ten_thousand_waiters_can_leave_in_any_order() {
    let mut rig = fifo();
    let waiters: Vec<_> = (0..10_000).map(|_| rig.wait_get()).collect();
    for &waiter in waiters.iter().rev().skip(1) {
        assert!(rig.cancel(waiter));
    }
    rig.add("a");
    assert_eq!(rig.woken(), [woke(waiters[9_999], "a")]);
}

#[test]
fn patience_ends_at_its_deadline_and_not_before() {
    let mut rig = rig(QueueOptions::bounded(1));
    assert_eq!(rig.queue.next_deadline(), None);
    rig.get_by(READER, Patience::Until(at(3)));
    rig.get_by(READER, Patience::Until(at(2)));
    assert_eq!(rig.queue.next_deadline(), Some(at(2)));
    rig.expire(Time::from_nanos(1_999_999_999));
    assert_eq!(rig.woken(), []);
    rig.expire(at(2));
    assert_eq!(rig.woken(), [woke(WaiterId(1), "Empty")]);
    rig.add("a");
    assert_eq!(rig.woken(), [woke(WaiterId(0), "a")]);
    assert_eq!(rig.queue.next_deadline(), None);
    rig.add("b");
    rig.put(text("c"), Patience::Until(at(4)));
    rig.expire(at(5));
    assert_eq!(rig.woken(), [woke(WaiterId(4), "Full")]);
    assert_eq!(rig.take_all(), ["b"]);
}

#[test]
fn a_task_given_back_to_a_fifo_is_next() {
    let mut rig = fifo();
    rig.add_all(["a", "b", "c"]);
    let (a, b) = (rig.take(), rig.take());
    rig.restore(b);
    rig.restore(a);
    assert_eq!(rig.take_all(), ["a", "b", "c"]);
}

#[test]
fn a_task_given_back_to_a_lifo_stands_between_older_and_newer_ones() {
    let mut rig = rig(QueueOptions::lifo());
    rig.add_all(["a", "b"]);
    let b = rig.take();
    rig.add("c");
    rig.restore(b);
    assert_eq!(rig.take_all(), ["c", "b", "a"]);
}

#[test]
fn a_task_given_back_to_a_priority_queue_stands_before_its_later_equals() {
    let mut rig = rig(QueueOptions::priority());
    rig.add_all(["a", "a"]);
    let first = rig.take();
    rig.restore(first.clone());
    assert_eq!(rig.take().token.task, first.token.task);
}

#[test]
fn a_task_given_back_exceeds_the_bounds_and_is_as_unfinished_as_before() {
    let mut rig = rig(QueueOptions::bounded(1));
    rig.step.budget.max = LEASE_BYTES + 30;
    rig.add("a");
    let a = rig.take();
    rig.add("b");
    rig.restore(a);
    assert_eq!((rig.queue.len(), rig.queue.unfinished()), (2, 2));
    assert!(rig.queue.is_full() && rig.step.budget.used > rig.step.budget.max);
    rig.settled_by = SettledBy::Delivery;
    let waiter = rig.wait_put("c");
    rig.take();
    assert_eq!(rig.woken(), [], "one task too many left, so there is still no room");
    rig.take();
    assert_eq!(rig.woken(), [woke(waiter, "Accepted")]);
}

#[test]
fn a_task_given_back_goes_to_a_waiting_getter() {
    let mut rig = fifo();
    rig.add("a");
    let a = rig.take();
    let waiter = rig.wait_get();
    rig.restore(a);
    assert_eq!(rig.woken(), [woke(waiter, "a")]);
    assert_eq!(rig.queue.unfinished(), 1);
}

#[test]
fn a_reader_of_old_pickles_is_told_of_a_newer_one_and_leaves_it() {
    let mut rig = fifo();
    let newer = Payload { codec: Codec::Pickle(4), ..text("a") };
    rig.put(newer, Patience::Now);
    assert_eq!(rig.get_by(2, Patience::Forever), Some(Outcome::Unreadable { protocol: 4 }));
    assert_eq!(rig.take_all(), ["a"]);
}

#[test]
fn a_waiting_reader_of_old_pickles_is_told_and_the_next_one_is_tried() {
    let mut rig = fifo();
    rig.get_by(2, Patience::Forever);
    rig.get_by(4, Patience::Forever);
    rig.put(Payload { codec: Codec::Pickle(4), ..text("a") }, Patience::Now);
    let told = woke(WaiterId(0), "Unreadable { protocol: 4 }");
    assert_eq!(rig.woken(), [told, woke(WaiterId(1), "a")]);
    rig.get_by(2, Patience::Forever);
    rig.put(Payload { codec: Codec::Pickle(3), ..text("b") }, Patience::Now);
    assert_eq!(rig.woken(), [woke(WaiterId(3), "Unreadable { protocol: 3 }")]);
    assert_eq!(rig.take_all(), ["b"]);
}

#[test]
fn join_ends_when_the_last_task_is_done() {
    let mut rig = fifo();
    assert_eq!(rig.queue.join(WaiterId(99)), Some(Outcome::Joined));
    rig.add_all(["a", "b"]);
    let waiters = [rig.wait_join(), rig.wait_join()];
    rig.take_all();
    assert_eq!(rig.done(), Ok(()));
    assert_eq!(rig.woken(), []);
    assert_eq!(rig.done(), Ok(()));
    assert_eq!(rig.woken(), waiters.map(|waiter| woke(waiter, "Joined")));
    assert_eq!(rig.done(), Err(TooManyTaskDone));
}

#[test]
fn a_task_handed_to_a_waiting_getter_is_unfinished_too() {
    let mut rig = fifo();
    rig.wait_get();
    rig.add("a");
    assert_eq!(rig.queue.unfinished(), 1);
}

#[test]
fn a_queue_that_is_shut_down_takes_nothing_and_gives_what_it_has() {
    let mut rig = rig(QueueOptions::bounded(1));
    rig.add("a");
    let putter = rig.wait_put("b");
    rig.shutdown(false);
    assert_eq!(rig.woken(), [woke(putter, "ShutDown")]);
    assert_eq!(rig.put(text("c"), Patience::Forever), Some(Outcome::ShutDown));
    assert_eq!(rig.take_all(), ["a"]);
    assert_eq!(rig.get_by(READER, Patience::Forever), Some(Outcome::ShutDown));
    let joiner = rig.wait_join();
    assert_eq!(rig.done(), Ok(()));
    assert_eq!(rig.woken(), [woke(joiner, "Joined")]);
}

#[test]
fn a_shutdown_ends_the_waiting_of_getters() {
    let mut rig = fifo();
    let waiters = [rig.wait_get(), rig.wait_get()];
    rig.shutdown(false);
    assert_eq!(rig.woken(), waiters.map(|waiter| woke(waiter, "ShutDown")));
}

#[test]
fn a_shutdown_at_once_drops_what_is_ready_and_counts_it_as_done() {
    let mut rig = fifo();
    rig.add_all(["a", "b"]);
    let joiner = rig.wait_join();
    rig.take();
    rig.shutdown(true);
    assert_eq!(rig.get_by(READER, Patience::Now), Some(Outcome::ShutDown));
    assert_eq!((rig.queue.unfinished(), rig.queue.len(), rig.queue.leased()), (1, 0, 1));
    assert_eq!(rig.woken(), [], "the task in hand is still to be done");
    assert_eq!(rig.done(), Ok(()));
    assert_eq!(rig.woken(), [woke(joiner, "Joined")]);
}

#[test]
fn a_shutdown_at_once_may_follow_a_gentle_one_but_not_be_undone_by_it() {
    let mut rig = fifo();
    rig.add("a");
    rig.shutdown(false);
    rig.shutdown(true);
    rig.shutdown(false);
    assert_eq!(rig.get_by(READER, Patience::Now), Some(Outcome::ShutDown));
}

#[test]
fn a_task_given_back_after_a_gentle_shutdown_is_ready_and_after_one_at_once_is_dropped() {
    let mut rig = fifo();
    rig.add_all(["a", "b"]);
    let (a, b) = (rig.take(), rig.take());
    rig.shutdown(false);
    rig.restore(a);
    assert_eq!(rig.take_all(), ["a"]);
    rig.done().unwrap();
    let joiner = rig.wait_join();
    rig.shutdown(true);
    rig.restore(b);
    assert_eq!(rig.woken(), [woke(joiner, "Joined")]);
    assert!(rig.queue.is_empty());
}

#[test]
fn memory_that_another_queue_freed_lets_waiting_putters_in() {
    let mut rig = fifo();
    rig.settled_by = SettledBy::Delivery;
    rig.step.budget = Budget { used: 90, max: 100, over: u64::MAX };
    let waiters = [rig.wait_put("a"), rig.wait_put("b")];
    assert!(!rig.queue.is_full(), "full is about maxsize only");
    rig.step.budget.used = 80;
    rig.queue.admit(&mut rig.step);
    assert_eq!(rig.woken(), [woke(waiters[0], "Accepted")]);
    rig.take();
    assert_eq!(rig.woken(), [woke(waiters[1], "Accepted")]);
    rig.take();
    assert_eq!(rig.step.budget.used, 80);
}

#[test]
fn a_small_put_does_not_overtake_a_large_one_until_that_gives_up() {
    let mut rig = fifo();
    rig.step.budget = Budget { used: 0, max: 50, over: u64::MAX };
    let large = rig.wait_put(&"a".repeat(100));
    let small = rig.wait_put("b");
    assert!(rig.cancel(large));
    assert_eq!(rig.woken(), [woke(small, "Accepted")]);
}

#[test]
fn a_getter_is_served_although_memory_is_full() {
    let mut rig = fifo();
    rig.settled_by = SettledBy::Delivery;
    rig.step.budget = Budget { used: 100, max: 100, over: u64::MAX };
    let getter = rig.wait_get();
    rig.add("a");
    assert_eq!(rig.woken(), [woke(getter, "a")]);
    let putter = rig.wait_put("b");
    assert_eq!(name(&rig.take()), "b");
    assert_eq!(rig.woken(), [woke(putter, "Accepted")]);
    assert_eq!((rig.queue.unfinished(), rig.step.budget.used), (2, 100));
}

#[test]
fn a_put_waits_beside_a_getter_while_nothing_more_may_be_handed_out() {
    let mut rig = fifo();
    rig.step.budget = Budget { used: 100, max: 100, over: LEASE_BYTES };
    let getter = rig.wait_get();
    let putter = rig.wait_put("a");
    assert_eq!(rig.woken(), []);
    rig.step.budget.used = 0;
    rig.queue.admit(&mut rig.step);
    assert_eq!(rig.woken(), [woke(getter, "a"), woke(putter, "Accepted")]);
    rig.step.budget.used = 100 + LEASE_BYTES;
    let putter = rig.wait_put("b");
    let getter = rig.wait_get();
    assert_eq!(rig.woken(), [], "nor is what a waiting put brings");
    rig.step.budget.used = 0;
    rig.queue.admit(&mut rig.step);
    assert_eq!(rig.woken(), [woke(getter, "b"), woke(putter, "Accepted")]);
}

#[test]
fn what_has_no_place_in_the_order_is_refused_before_it_is_queued() {
    let mut rig = rig(QueueOptions::priority());
    rig.put(prioritised(1, "a"), Patience::Now);
    rig.put(prioritised(2, "b"), Patience::Now);
    let (forever, waiter) = (Patience::Forever, WaiterId(9));
    let late = Prepared::new(prioritised(2, "c"), None, Order::Priority);
    let refused = rig.queue.put(late, None, forever, waiter, &mut rig.step);
    let error = refused.unwrap_err();
    assert_eq!((error.new.as_str(), error.queued.as_str()), ("dict", "dict"));
    assert_eq!((rig.queue.len(), rig.queue.unfinished()), (2, 2));
    assert!(!rig.queue.has_waiters());
}

#[test]
fn a_waiting_put_is_refused_if_its_place_was_lost_meanwhile() {
    let mut rig = rig(QueueOptions::priority().maxsize(1));
    rig.put(prioritised(1, "a"), Patience::Now);
    assert_eq!(rig.put(prioritised(2, "b"), Patience::Forever), None);
    assert_eq!(rig.put(prioritised(2, "c"), Patience::Forever), None);
    let a = rig.take();
    rig.restore(a);
    assert_eq!(rig.woken(), [woke(WaiterId(1), "Accepted")]);
    rig.queue.options.maxsize = 3;
    rig.queue.admit(&mut rig.step);
    let [(WaiterId(2), Outcome::Unorderable(_))] = rig.step.wakes.as_slice() else {
        panic!("{:?}", rig.step.wakes)
    };
}

#[test]
fn keys_count_as_memory() {
    let mut rig = rig(QueueOptions::priority());
    rig.settled_by = SettledBy::Delivery;
    rig.add(&"a".repeat(1000));
    assert!(rig.step.budget.used > 2000);
    rig.take();
    assert_eq!((rig.step.budget.used, rig.queue.bytes()), (0, 0));
}

#[test]
fn a_task_does_not_keep_the_message_that_brought_it() {
    for order in [Order::Fifo, Order::Lifo, Order::Priority] {
        let mut rig = rig(QueueOptions { order, ..QueueOptions::default().maxsize(1) });
        let message = Bytes::from(b"K\x01 and much more".to_vec());
        let item = || Payload::pickle(4, message.slice(..2));
        rig.get_by(READER, Patience::Forever);
        assert!(
            matches!(rig.put(item(), Patience::Now), Some(Outcome::Accepted(_))),
            "to a getter"
        );
        assert!(
            matches!(rig.put(item(), Patience::Now), Some(Outcome::Accepted(_))),
            "to its place"
        );
        assert_eq!(rig.put(item(), Patience::Forever), None, "to the line of those that wait");
        assert!(message.is_unique());
    }
}

#[test]
fn a_payload_prepared_for_another_order_finds_its_place() {
    for (order, other) in [(Order::Priority, Order::Fifo), (Order::Fifo, Order::Priority)] {
        let mut rig = rig(QueueOptions { order, ..QueueOptions::default() });
        for priority in [1, 2] {
            let waiter = rig.call();
            let prepared = Prepared::new(prioritised(priority, "a"), None, other);
            let put = rig.queue.put(prepared, None, Patience::Now, waiter, &mut rig.step);
            assert!(matches!(put, Ok(Some(Outcome::Accepted(_)))));
        }
        assert_eq!(rig.take().payload, prioritised(1, "a"));
        assert_eq!(rig.take().payload, prioritised(2, "a"));
    }
}

#[test]
fn a_priority_that_was_asked_for_holds_whatever_order_the_item_was_prepared_for() {
    for prepared_for in [Order::Fifo, Order::Priority] {
        let mut rig = rig(QueueOptions::priority());
        for (priority, name) in [(3, "low"), (1, "high"), (2, "middle")] {
            let terms = Terms { priority: Some(priority), ..Terms::default() };
            let item = Prepared::new(text(name), Some(&terms), prepared_for);
            let (at, id) = (Patience::Now, WaiterId(0));
            rig.queue.put(item, Some(Box::new(terms)), at, id, &mut rig.step).unwrap();
        }
        assert_eq!([(); 3].map(|()| name(&rig.take())), ["high", "middle", "low"]);
    }
}

#[test]
fn a_put_has_its_turn_when_the_one_before_it_brings_nothing() {
    let mut rig = rig(QueueOptions { dedup: Duration::from_secs(60), ..QueueOptions::default() });
    (rig.step.budget.max, rig.step.budget.over) = (1000, 1 << 20);
    let large = "x".repeat(2000);
    for _ in 0..2 {
        let terms = Terms { key: Some(b"key"[..].into()), ..Terms::default() };
        let prepared = Prepared::new(text(&large), Some(&terms), Order::Fifo);
        let waiter = rig.call();
        let terms = Some(Box::new(terms));
        let put = rig.queue.put(prepared, terms, Patience::Forever, waiter, &mut rig.step);
        assert_eq!(put, Ok(None), "it is too large");
    }
    let small = Payload { codec: Codec::Pickle(5), ..text("small") };
    assert_eq!(rig.put(small, Patience::Forever), None, "others are before it");
    let Some(Outcome::Task(first)) = rig.get_by(2, Patience::Now) else { panic!("no task") };
    rig.queue.ack(first.token, &mut rig.step);
    assert_eq!(rig.woken(), [(WaiterId(0), "Accepted".to_owned())]);
    let got = rig.get_by(2, Patience::Now);
    assert_eq!(got, Some(Outcome::Unreadable { protocol: 5 }));
    let told = [(WaiterId(1), "Known".to_owned()), (WaiterId(2), "Accepted".to_owned())];
    assert_eq!(rig.woken(), told);
}
