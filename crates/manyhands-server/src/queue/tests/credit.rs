//! Tasks that are handed out as they come, and asked for again.

use super::*;

/// Who takes by credit.
const A: Holder = Holder(1);
const B: Holder = Holder(2);
const C: Holder = Holder(3);

impl Rig {
    fn taker(holder: Holder) -> Taker {
        Taker { settled_by: SettledBy::Token, holder, ..Taker::leasing(READER) }
    }

    /// Who is told is named as the holder is.
    fn credit(&mut self, holder: Holder, more: u32) {
        let waiter = WaiterId(1000 + holder.0);
        self.queue.credit(Self::taker(holder), more, waiter, &mut self.step);
    }

    /// What came by credit since the last look, and to whom.
    fn pushed(&mut self) -> Vec<(u64, String)> {
        let woken = self.woken().into_iter();
        woken.filter(|(waiter, _)| waiter.0 >= 1000).map(|(it, told)| (it.0 - 1000, told)).collect()
    }

    /// The tasks that came by credit since the last look.
    fn grants(&mut self) -> Vec<Grant> {
        let grant = |(_, outcome)| match outcome {
            Outcome::Task(grant) => Some(grant),
            _ => None,
        };
        self.step.wakes.drain(..).filter_map(grant).collect()
    }

    fn give_back(&mut self, grant: &Grant, cause: Cause) {
        assert!(self.queue.give_back(grant.token, cause, Retry::Backoff, &mut self.step));
    }

    fn recalled(&mut self) -> Option<(u64, u32)> {
        self.queue.recall().map(|(waiter, tasks)| (waiter.0 - 1000, tasks))
    }
}

fn pushed<const N: usize>(all: [(u64, &str); N]) -> Vec<(u64, String)> {
    all.map(|(holder, name)| (holder, name.to_owned())).into()
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{number:04}")).collect()
}

#[test]
fn tasks_go_round_among_all_who_wait_until_their_credit_is_used_up() {
    let mut rig = fifo();
    rig.credit(A, 3);
    let single = rig.wait_get();
    rig.credit(B, 1);
    rig.add_all(["a", "b", "c", "d", "e", "f"]);
    let woken = rig.woken();
    let expected = [(1001, "a"), (single.0, "b"), (1002, "c"), (1001, "d"), (1001, "e")];
    assert_eq!(woken, expected.map(|(waiter, name)| (WaiterId(waiter), name.to_owned())));
    assert_eq!((rig.queue.len(), rig.queue.waiting_getters()), (1, 0));
}

#[test]
fn credit_that_is_given_again_adds_and_keeps_its_place() {
    let mut rig = fifo();
    rig.credit(A, 1);
    rig.credit(B, 1);
    rig.credit(A, 1);
    rig.add_all(["a", "b", "c", "d"]);
    assert_eq!(rig.pushed(), pushed([(1, "a"), (2, "b"), (1, "c")]));
    rig.credit(B, 5);
    assert_eq!(rig.pushed(), pushed([(2, "d")]));
}

#[test]
fn what_is_there_is_taken_in_portions_and_by_all_in_turn() {
    let mut rig = fifo();
    let count = 2 * SERVED_AT_ONCE;
    for name in numbered(count) {
        rig.add(&name);
    }
    rig.credit(A, u32::MAX);
    assert_eq!((rig.woken().len(), rig.queue.is_cut()), (SERVED_AT_ONCE, true));
    // A task that comes now has its place behind those that are there.
    rig.add("last");
    assert_eq!(rig.woken(), []);
    rig.credit(B, 10);
    let second = rig.pushed();
    assert_eq!(second.len(), SERVED_AT_ONCE);
    assert_eq!(second.iter().filter(|(holder, _)| *holder == 2).count(), 10);
    assert_eq!(second[0].1, numbered(count)[SERVED_AT_ONCE]);
    rig.expire(Time::default());
    assert_eq!((rig.pushed(), rig.queue.is_cut()), (pushed([(1, "last")]), false));
}

#[test]
fn credit_that_was_withdrawn_takes_nothing_until_it_is_given_again() {
    let mut rig = fifo();
    rig.credit(A, 2);
    rig.add("a");
    assert_eq!(rig.queue.withdraw_credit(A), 1);
    rig.add("b");
    assert_eq!((rig.pushed(), rig.queue.waiting_getters()), (pushed([(1, "a")]), 0));
    assert_eq!(rig.queue.withdraw_credit(A), 0);
    rig.credit(A, 1);
    assert_eq!(rig.pushed(), pushed([(1, "b")]));
    rig.credit(A, 1);
    rig.queue.end_credit(A);
    rig.add("c");
    assert_eq!((rig.pushed(), rig.queue.len(), rig.queue.leased()), (vec![], 1, 2));
}

#[test]
fn a_task_that_was_not_started_comes_back_without_an_attempt() {
    let mut rig = fifo();
    rig.credit(A, 5);
    rig.add_all(["a", "b", "c", "d", "e"]);
    let grants = rig.grants();
    let [a, b, c, d, e] = &grants[..] else { panic!() };
    assert!(rig.queue.start(b.token));
    rig.give_back(a, Cause::Crashed);
    rig.give_back(b, Cause::Crashed);
    rig.give_back(c, Cause::Unanswered);
    rig.give_back(d, Cause::Refused("no".into()));
    rig.give_back(e, Cause::Overdue);
    rig.expire(Time::default() + Duration::from_secs(60));
    let again: Vec<_> =
        (0..5).map(|_| rig.take()).map(|it| (name(&it), it.token.attempt)).collect();
    let expected = [("a", 1), ("b", 2), ("c", 1), ("d", 2), ("e", 2)];
    assert_eq!(again, expected.map(|(name, attempt)| (name.to_owned(), attempt)));
}

#[test]
fn who_has_most_is_asked_for_half_where_somebody_has_nothing_to_do() {
    let mut rig = fifo();
    rig.credit(A, 3);
    rig.credit(B, 2);
    rig.add_all(["a", "b", "c", "d", "e"]);
    let grants = rig.grants();
    assert_eq!(rig.recalled(), None, "nobody waits");
    // Whoever has something to do and would take more is nobody who waits for work.
    rig.credit(A, 9);
    assert_eq!(rig.recalled(), None);
    let single = rig.wait_get();
    assert_eq!(rig.recalled(), Some((1, 1)));
    assert_eq!(rig.recalled(), None, "it was asked");
    rig.credit(C, 100);
    assert_eq!(rig.recalled(), Some((2, 1)), "the other one was asked");
    rig.wait_get();
    assert_eq!(rig.recalled(), None, "both were asked");
    // What it returns goes to those that waited before it was asked.
    rig.give_back(&grants[4], Cause::Unread);
    let [(waiter, told)] = &rig.woken()[..] else { panic!() };
    assert_eq!((*waiter, told.as_str()), (single, "e"));
    assert_eq!(rig.recalled(), Some((1, 1)), "somebody waits still");
}

#[test]
fn what_comes_to_somebody_with_work_is_asked_for_where_another_has_nothing_to_do() {
    let mut rig = fifo();
    rig.credit(A, 3);
    rig.add("a");
    let a = rig.grants().remove(0);
    assert!(rig.queue.start(a.token));
    rig.credit(B, 3);
    assert_eq!(rig.recalled(), None, "there is nothing to ask for");
    rig.add("b");
    let b = rig.grants().remove(0);
    assert_eq!(rig.recalled(), Some((1, 1)));
    rig.give_back(&b, Cause::Unread);
    assert_eq!((rig.pushed(), rig.recalled()), (pushed([(2, "b")]), None));
    // Both have something to do: what comes stays with whose turn it was.
    rig.add("c");
    assert_eq!((rig.pushed(), rig.recalled()), (pushed([(1, "c")]), None));
}

#[test]
fn the_only_task_of_one_is_asked_for_by_who_waits_for_it_and_not_for_another_credit() {
    let mut rig = fifo();
    rig.credit(A, 2);
    rig.credit(B, 2);
    rig.add("a");
    let a = rig.grants().remove(0);
    assert_eq!(rig.recalled(), None, "each would have it in turn");
    let single = rig.wait_get();
    rig.credit(B, 1);
    assert_eq!(rig.recalled(), Some((1, 1)));
    rig.give_back(&a, Cause::Unread);
    let b = rig.grants().remove(0);
    assert_eq!(rig.recalled(), Some((2, 1)), "it came to one that waited longer");
    rig.give_back(&b, Cause::Unread);
    assert_eq!(rig.woken(), [(single, "a".to_owned())]);
}

#[test]
fn who_has_done_all_it_had_gets_what_lies_with_another() {
    let mut rig = fifo();
    rig.credit(A, 3);
    rig.credit(B, 3);
    rig.add_all(["a", "b", "c"]);
    let grants = rig.grants();
    assert!(rig.queue.start(grants[0].token) && rig.queue.start(grants[1].token));
    assert_eq!(rig.recalled(), None, "all have something to do");
    assert_eq!(rig.ack(&grants[1]), Ack::Accepted);
    assert_eq!(rig.recalled(), Some((1, 1)));
}

#[test]
fn a_credit_that_is_given_anew_knows_what_its_holder_works_on() {
    let mut rig = fifo();
    rig.credit(A, 1);
    rig.add("a");
    let a = rig.grants().remove(0);
    assert!(rig.queue.start(a.token));
    rig.queue.end_credit(A);
    rig.credit(A, 1);
    rig.credit(B, 1);
    rig.add("b");
    assert_eq!(rig.pushed(), pushed([(1, "b")]));
    assert_eq!(rig.recalled(), Some((1, 1)));
}

#[test]
fn a_task_that_was_started_is_not_asked_for() {
    let mut rig = fifo();
    rig.credit(A, 3);
    rig.add_all(["a", "b", "c"]);
    let grants = rig.grants();
    assert!(rig.queue.start(grants[0].token) && rig.queue.start(grants[0].token));
    let waiting: Vec<_> = (0..3).map(|_| rig.wait_get()).collect();
    assert_eq!(rig.recalled(), Some((1, 1)));
    assert_eq!(rig.ack(&grants[1]), Ack::Accepted);
    assert_eq!(rig.recalled(), Some((1, 1)));
    assert!(rig.queue.start(grants[2].token));
    assert_eq!(rig.recalled(), None, "it has none that is not started");
    assert_eq!(rig.queue.waiting_getters(), waiting.len());
}

#[test]
fn a_credit_that_is_over_is_not_asked_for_anything() {
    let mut rig = fifo();
    rig.credit(A, 1);
    rig.add("a");
    rig.queue.end_credit(A);
    rig.wait_get();
    assert_eq!(rig.recalled(), None);
}

#[test]
fn a_shutdown_ends_all_credit_once_what_is_there_was_taken() {
    let mut rig = fifo();
    rig.credit(A, 1);
    rig.add("a");
    let count = SERVED_AT_ONCE + 1;
    for name in numbered(count) {
        rig.add(&name);
    }
    rig.credit(B, u32::MAX);
    assert!(rig.queue.is_cut());
    rig.shutdown(false);
    let told = rig.pushed();
    assert_eq!(told.len(), 1 + count + 2);
    let ended = [(1, "ShutDown"), (2, "ShutDown")];
    let mut last = told[1 + count..].to_vec();
    last.sort();
    assert_eq!(last, pushed(ended));
    rig.credit(A, 1);
    assert_eq!(rig.pushed(), pushed([(1, "ShutDown")]));
}

#[test]
fn a_pickle_that_cannot_be_read_ends_the_credit_and_stays() {
    let mut rig = fifo();
    let taker = Taker { reader: 1, ..Rig::taker(A) };
    rig.queue.credit(taker, 3, WaiterId(1001), &mut rig.step);
    rig.put(Payload::pickle(2, Bytes::from_static(b"N")), Patience::Now);
    assert_eq!(rig.pushed(), pushed([(1, "Unreadable { protocol: 2 }")]));
    assert_eq!((rig.queue.len(), rig.queue.withdraw_credit(A)), (1, 0));
}

#[test]
fn credit_waits_for_the_memory_of_a_lease_and_gets_do_not() {
    let mut rig = fifo();
    rig.step.budget = Budget { used: 0, max: 4000, over: 0 };
    for name in numbered(100) {
        rig.add(&name);
    }
    let free = rig.step.budget.max - rig.step.budget.used;
    rig.credit(A, 100);
    let taken = rig.grants();
    assert!(!taken.is_empty() && taken.len() as u64 <= free / 430 + 1, "{}", taken.len());
    assert!(rig.queue.is_hungry() && !rig.queue.is_cut());
    rig.take();
    for grant in &taken {
        assert_eq!(rig.ack(grant), Ack::Accepted);
    }
    rig.queue.serve(&mut rig.step);
    assert!(!rig.grants().is_empty());
}
