//! Leases, retries and what a put may say beside its item.

use super::*;

impl Rig {
    pub(super) fn put_with(&mut self, item: &str, terms: Terms) -> Option<Outcome> {
        let (waiter, terms) = (self.call(), Some(Box::new(terms)));
        let item = Prepared::new(text(item), terms.as_deref(), self.queue.options().order);
        let put = self.queue.put(item, terms, Patience::Now, waiter, &mut self.step);
        put.expect("the payload has a place")
    }

    pub(super) fn fail(&mut self, grant: &Grant) {
        assert!(self.queue.give_back(grant.token, Cause::Crashed, Retry::Backoff, &mut self.step));
    }

    fn refuse(&mut self, grant: &Grant) {
        let cause = Cause::Refused("no".into());
        assert!(self.queue.give_back(grant.token, cause, Retry::Backoff, &mut self.step));
    }

    pub(super) fn ack(&mut self, grant: &Grant) -> Ack {
        self.queue.ack(grant.token, &mut self.step)
    }

    /// Lets time pass until nothing more is due by then.
    fn pass_until(&mut self, now: Time) {
        while self.queue.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.expire(now);
        }
        self.expire(now);
    }
}

fn terms() -> Terms {
    Terms::default()
}

#[test]
fn a_late_ack_is_kept_if_nobody_took_the_task_since_and_refused_otherwise() {
    let mut rig = fifo();
    rig.add_all(["a", "b"]);
    let (a, b) = (rig.take(), rig.take());
    rig.fail(&a);
    rig.fail(&b);
    assert_eq!((rig.ack(&a), rig.queue.len()), (Ack::Accepted, 1));
    let again = rig.take();
    assert_eq!((name(&again), again.token.attempt), ("b".to_owned(), 2));
    assert_eq!(rig.ack(&b), Ack::Stale);
    assert_eq!((rig.ack(&again), rig.ack(&a), rig.queue.leased()), (Ack::Accepted, Ack::Stale, 0));
    assert_eq!(rig.queue.tally().stale, 2);
}

#[test]
fn an_ack_that_is_repeated_is_told_from_one_that_is_stale() {
    let mut rig = fifo();
    rig.add("a");
    let a = rig.take();
    assert_eq!(rig.ack(&a), Ack::Accepted);
    rig.queue.conclude(a.token, &mut rig.step);
    assert_eq!(rig.ack(&a), Ack::AcceptedBefore);
}

#[test]
fn a_task_that_its_holder_settled_counts_as_done() {
    let mut rig = fifo();
    rig.add_all(["a", "b"]);
    let (a, b) = (rig.take(), rig.take());
    let joiner = rig.call();
    assert_eq!(rig.queue.join(joiner), None);
    for grant in [&a, &b] {
        assert_eq!(rig.ack(grant), Ack::Accepted);
        rig.queue.conclude(grant.token, &mut rig.step);
    }
    assert_eq!(rig.step.wakes, [(joiner, Outcome::Joined)]);
    assert_eq!((rig.queue.unfinished(), rig.done()), (0, Err(TooManyTaskDone)));
}

#[test]
fn a_lease_of_an_earlier_run_is_never_taken_for_one_of_this_run() {
    let mut rig = fifo();
    rig.add("a");
    let mut later = Rig { queue: Queue::new(QueueOptions::default(), 1 << 32), ..fifo() };
    later.add("a");
    let (early, late) = (rig.take(), later.take());
    assert_eq!(later.ack(&early), Ack::Stale);
    assert_eq!(later.ack(&late), Ack::Accepted);
}

#[test]
fn a_task_is_given_up_after_its_attempts_with_the_reason_for_each() {
    let mut rig = rig(QueueOptions::default().attempts(2));
    rig.add("a");
    let joiner = rig.wait_join();
    for cause in [Cause::Crashed, Cause::Unread, Cause::Refused("no".into())] {
        let grant = rig.take();
        assert!(rig.queue.give_back(grant.token, cause, Retry::Backoff, &mut rig.step));
    }
    let [letter] = rig.step.dead.as_slice() else { panic!("{:?}", rig.step.dead) };
    assert_eq!((letter.attempts, letter.payload.clone()), (2, text("a")));
    let causes: Vec<_> = letter.history.iter().map(|attempt| attempt.cause.clone()).collect();
    assert_eq!(causes, [Cause::Crashed, Cause::Refused("no".into())]);
    assert_eq!(rig.woken(), [woke(joiner, "Joined")]);
    assert_eq!(rig.step.budget.used, 0);
}

#[test]
fn a_task_that_failed_waits_twice_as_long_each_time_and_some_of_it_by_chance() {
    let backoff = Duration::from_secs(8);
    let mut rig = rig(QueueOptions { backoff, ..QueueOptions::default() });
    rig.add("a");
    for seconds in [8, 16, 32] {
        let (grant, start) = (rig.take(), rig.step.now);
        rig.refuse(&grant);
        let pause = rig.queue.next_deadline().expect("it is delayed").since(start);
        let whole = Duration::from_secs(seconds);
        assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
        rig.pass_until(start + whole);
    }
}

#[test]
fn a_worker_that_dies_gives_its_task_to_the_next_at_once_and_a_second_one_does_not() {
    let mut rig = fifo();
    rig.add("a");
    let first = rig.take();
    rig.fail(&first);
    let second = rig.take();
    assert_eq!(second.token.attempt, 2);
    for seconds in [1, 2, 4] {
        let start = rig.step.now;
        let grant = rig.queue.token(rig.queue.leased.first().unwrap()).unwrap();
        assert!(rig.queue.give_back(grant, Cause::Crashed, Retry::Backoff, &mut rig.step));
        let pause = rig.queue.next_deadline().expect("it is delayed").since(start);
        let whole = Duration::from_secs(seconds);
        assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
        rig.pass_until(start + whole);
        rig.take();
    }
}

#[test]
fn a_delayed_task_is_not_seen_before_its_time_and_then_stands_where_it_was_put() {
    let mut rig = fifo();
    let delay = Some(Duration::from_secs(5));
    rig.put_with("later", Terms { delay, ..terms() });
    rig.add("now");
    assert_eq!((rig.queue.len(), rig.queue.delayed(), rig.queue.unfinished()), (1, 1, 2));
    rig.pass_until(at(5));
    assert_eq!(rig.take_all(), ["later", "now"]);
}

#[test]
fn a_task_that_nobody_takes_in_time_is_dropped_and_counts_as_done() {
    let mut rig = fifo();
    let expires = Some(Duration::from_secs(5));
    rig.put_with("a", Terms { expires, ..terms() });
    rig.put_with("b", Terms { expires, ..terms() });
    let a = rig.take();
    rig.pass_until(at(5));
    assert_eq!((rig.queue.len(), rig.queue.unfinished()), (0, 1));
    rig.fail(&a);
    assert_eq!((rig.queue.len(), rig.queue.unfinished()), (0, 0), "it expires as it comes back");
    assert_eq!((rig.queue.tally().expired, rig.step.budget.used), (2, 0));
}

#[test]
fn a_key_is_put_once_within_its_window_even_if_its_task_is_done() {
    let mut rig = fifo();
    let keyed = || Terms { key: Some(b"k".as_slice().into()), ..terms() };
    assert!(matches!(rig.put_with("a", keyed()), Some(Outcome::Accepted(_))));
    let a = rig.take();
    rig.ack(&a);
    assert_eq!(rig.put_with("a", keyed()), Some(Outcome::Known));
    assert_eq!((rig.queue.len(), rig.queue.tally().known), (0, 1));
    rig.pass_until(at(600));
    assert!(matches!(rig.put_with("a", keyed()), Some(Outcome::Accepted(_))));
}

#[test]
fn a_priority_that_the_put_names_holds_when_the_task_comes_back() {
    let mut rig = rig(QueueOptions::priority());
    let priority = |priority| Terms { priority: Some(priority), ..terms() };
    rig.put_with("second", priority(2));
    rig.put_with("first", priority(1));
    let first = rig.take();
    rig.fail(&first);
    assert_eq!(rig.take_all(), ["first", "second"]);
}

#[test]
fn a_lease_can_be_extended_up_to_the_longest_run_and_not_when_it_is_over() {
    let mut rig =
        rig(QueueOptions::default().max_run(Duration::from_secs(60)).backoff(Duration::ZERO));
    rig.settled_by = SettledBy::TokenWithin(Duration::from_secs(10));
    rig.add("a");
    let a = rig.take();
    rig.expire(at(9));
    assert!(rig.queue.extend(a.token, Duration::from_secs(10), &mut rig.step));
    assert_eq!(rig.queue.next_deadline(), Some(at(19)));
    assert!(rig.queue.extend(a.token, Duration::from_secs(100), &mut rig.step));
    assert_eq!(rig.queue.next_deadline(), Some(at(60)));
    rig.pass_until(at(60));
    assert_eq!((rig.queue.len(), rig.queue.leased()), (1, 0));
    assert!(!rig.queue.extend(a.token, Duration::from_secs(10), &mut rig.step));
}

#[test]
fn a_lease_whose_result_was_not_put_runs_out_as_before() {
    let mut rig = fifo();
    rig.settled_by = SettledBy::TokenWithin(Duration::from_secs(5));
    rig.add("a");
    let a = rig.take();
    assert!(rig.queue.claim(a.token, Holder(7), &mut rig.step).is_some());
    assert_eq!(rig.queue.next_deadline(), None);
    rig.queue.unclaim(a.token, &mut rig.step);
    assert_eq!(rig.queue.next_deadline(), Some(rig.step.now + Duration::from_secs(5)));
}

#[test]
fn a_result_that_was_not_put_changes_nothing_of_a_later_lease() {
    let mut rig = fifo();
    rig.add("a");
    let first = rig.take();
    assert!(rig.queue.claim(first.token, Holder(7), &mut rig.step).is_some());
    let token = first.token;
    rig.restore(first);
    let second = rig.take();
    assert!(rig.queue.claim(second.token, Holder(8), &mut rig.step).is_some());
    rig.queue.unclaim(token, &mut rig.step);
    assert!(rig.queue.is_claimed(second.token));
}

#[test]
fn many_tasks_that_are_due_at_once_are_worked_off_a_bounded_number_at_a_time() {
    let mut rig = fifo();
    for _ in 0..10_000 {
        rig.put_with("a", Terms { delay: Some(Duration::from_secs(1)), ..terms() });
    }
    rig.expire(at(1));
    assert_eq!(rig.queue.len(), timers::EXPIRED_MAX);
    assert_eq!(rig.queue.next_deadline(), Some(at(1)), "the rest is still due");
    rig.pass_until(at(1));
    assert_eq!((rig.queue.len(), rig.queue.delayed()), (10_000, 0));
}

#[test]
fn a_task_that_was_in_hand_during_a_purge_still_expires() {
    let mut rig = fifo();
    rig.put_with("a", Terms { expires: Some(Duration::from_secs(5)), ..terms() });
    let a = rig.take();
    rig.queue.purge(false, &mut rig.step);
    rig.fail(&a);
    assert_eq!(rig.queue.len(), 1);
    rig.pass_until(Time::default() + Duration::from_secs(6));
    assert_eq!((rig.queue.len(), rig.queue.tally().expired), (0, 1));
}

/// Takes what is there, together.
fn take_more(rig: &mut Rig, max: usize, bytes_max: usize) -> Vec<Grant> {
    let taker = Taker { settled_by: rig.settled_by, ..Taker::leasing(READER) };
    let mut grants = Vec::new();
    rig.queue.get_more(taker, (max, bytes_max), &mut grants, &mut rig.step);
    grants
}

#[test]
fn of_tasks_that_are_taken_together_each_can_come_back_and_all_others_be_settled() {
    let mut rig = fifo();
    rig.add_all(["a", "b", "c", "d", "e"]);
    let grants = take_more(&mut rig, 9, usize::MAX);
    assert_eq!(grants.iter().map(name).collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
    rig.restore(grants[2].clone());
    assert_eq!((rig.queue.len(), rig.queue.leased()), (1, 4));
    for tokens in TokenRun::of(grants.iter().map(|grant| grant.token)) {
        rig.queue.receive(tokens, &mut rig.step);
    }
    assert_eq!((rig.queue.leased(), rig.queue.tally().done), (0, 4));
    assert_eq!(rig.take_all(), ["c"]);
}

#[test]
fn tasks_that_came_back_are_taken_at_their_places_also_among_many() {
    let mut rig = fifo();
    rig.add_all(["a", "b", "c", "d", "e", "f"]);
    let early = take_more(&mut rig, 4, usize::MAX);
    rig.restore(early[1].clone());
    rig.restore(early[3].clone());
    rig.add("g");
    let grants = take_more(&mut rig, 9, usize::MAX);
    assert_eq!(grants.iter().map(name).collect::<Vec<_>>(), ["b", "d", "e", "f", "g"]);
}

#[test]
fn tasks_are_taken_together_until_they_have_so_many_bytes_or_memory_is_short() {
    let mut rig = fifo();
    rig.add_all(["a", "b", "c", "d", "e", "f"]);
    let len = text("a").bytes.len();
    assert_eq!(take_more(&mut rig, 9, len + 1).len(), 2, "the second one has the last byte");
    rig.step.budget.max = rig.step.budget.used + LEASE_BYTES;
    rig.step.budget.over = 0;
    assert_eq!(take_more(&mut rig, 9, usize::MAX).len(), 1);
    assert_eq!(take_more(&mut rig, 9, usize::MAX).len(), 0);
}

#[test]
fn a_task_that_is_revoked_is_done_wherever_it_is() {
    let mut rig = fifo();
    rig.settled_by = SettledBy::Token;
    rig.add("leased");
    let held = rig.take();
    rig.put_with("ready", Terms { key: Some(b"a key"[..].into()), ..terms() });
    rig.put_with("delayed", Terms { delay: Some(Duration::from_secs(9)), ..terms() });
    assert_eq!((rig.queue.len(), rig.queue.delayed(), rig.queue.unfinished()), (1, 1, 3));
    for task in 0..3 {
        assert!(rig.queue.revoke(TaskId(task), &mut rig.step));
        assert!(!rig.queue.revoke(TaskId(task), &mut rig.step), "it is gone");
    }
    assert_eq!((rig.queue.len(), rig.queue.delayed(), rig.queue.unfinished()), (0, 0, 0));
    assert_eq!(rig.queue.leased(), 0);
    assert_eq!(rig.queue.next_deadline(), Some(at(600)), "only the key is still known");
    assert_eq!(rig.ack(&held), Ack::Stale);
    assert!(!rig.queue.extend(held.token, Duration::from_secs(1), &mut rig.step));
    assert!(!rig.queue.give_back(held.token, Cause::Crashed, Retry::Backoff, &mut rig.step));
}

#[test]
fn a_task_whose_holder_counts_it_as_done_itself_is_not_revoked() {
    let mut rig = fifo();
    for settled_by in [SettledBy::Session, SettledBy::TokenOfSession] {
        rig.settled_by = settled_by;
        rig.add("a");
        let held = rig.take();
        assert!(!rig.queue.revoke(held.token.task, &mut rig.step));
        assert_eq!(rig.ack(&held), Ack::Accepted);
    }
    assert_eq!(rig.queue.unfinished(), 2, "until it says so");
}

#[test]
fn a_task_whose_result_waits_for_room_is_not_revoked() {
    let mut rig = fifo();
    rig.settled_by = SettledBy::Token;
    rig.add("a");
    let held = rig.take();
    assert!(rig.queue.claim(held.token, Holder(7), &mut rig.step).is_some());
    assert!(!rig.queue.revoke(TaskId(0), &mut rig.step));
    assert_eq!(rig.ack(&held), Ack::Accepted);
}
