//! Tasks that are pushed to whoever has given credit for them.

use manyhands::wire::token::LeaseToken;

use super::settles::{lease_all, settle};
use super::*;
use crate::queue::{Cause, Patience, SERVED_AT_ONCE};

/// A session of a client that gives credit.
struct Consumer {
    client: Client,
    pushes: Arc<Pushes>,
}

impl Consumer {
    fn new(rig: &Rig) -> Self {
        Self { client: rig.client("native"), pushes: Arc::default() }
    }

    fn caller(&self) -> Caller {
        self.client.presence.caller()
    }

    fn at(&self) -> Reference {
        self.client.tasks.reference
    }

    fn credit(&self, more: u32) {
        let (engine, pushes) = (&self.client.engine, &self.pushes);
        engine.credit(self.caller(), self.at(), 5, SettledBy::Token, more, pushes).unwrap();
    }

    fn arrived(&self) -> Vec<Push> {
        let mut arrived = Vec::new();
        self.pushes.take(&mut arrived);
        assert!(arrived.iter().all(|push| push.reference == self.at()));
        arrived
    }

    /// What has arrived as text: tasks by number and attempt.
    fn told(&self) -> Vec<String> {
        let told = |push: Push| match push.pushed {
            Pushed::Task(grant) => format!("{}.{}", number(&grant), grant.token.attempt),
            other => format!("{other:?}"),
        };
        self.arrived().into_iter().map(told).collect()
    }

    fn tokens(&self) -> Vec<LeaseToken> {
        let signer = self.client.engine.signer(self.at()).unwrap();
        let token = |push: Push| match push.pushed {
            Pushed::Task(grant) => signer.sign(grant.token),
            other => panic!("{other:?} instead of a task"),
        };
        self.arrived().into_iter().map(token).collect()
    }

    fn is_told(&self) -> bool {
        pin!(self.pushes.arrived()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// The session ends; what it has is given back so many at a time.
    fn leave(&self) {
        while self.client.engine.end_leases(self.caller(), &Cause::Crashed, 2) {}
    }
}

fn texts<const N: usize>(texts: [&str; N]) -> [String; N] {
    texts.map(str::to_owned)
}

fn put(rig: &Rig, numbers: impl IntoIterator<Item = u8>) {
    let tasks = rig.engine.open("tasks").unwrap();
    let mut items: Vec<_> =
        numbers.into_iter().map(|it| crate::queue::Prepared::from(item(it))).collect();
    let added =
        rig.engine.put_many(Caller::IN_PROCESS, tasks, &mut items.drain(..), Patience::Now, None);
    assert!(matches!(added.end.called, Ok(None)), "{added:?}");
}

#[test]
fn tasks_are_pushed_as_they_come_with_one_wake_up_for_all_of_a_step() {
    let rig = plain();
    let (one, other) = (Consumer::new(&rig), Consumer::new(&rig));
    one.credit(5);
    assert!(one.is_told() && !one.is_told());
    assert_eq!(one.told(), texts(["1.1", "2.1", "3.1"]));
    other.credit(5);
    put(&rig, 4..=9);
    assert!(one.is_told() && !one.is_told());
    put(&rig, [10]);
    assert!(!one.is_told(), "what is there was not taken yet");
    assert_eq!(one.told(), texts(["Recall(1)", "4.1", "6.1"]));
    assert_eq!(other.told(), texts(["5.1", "7.1", "8.1", "9.1", "10.1"]));
    assert!(other.is_told() && !other.is_told());
    put(&rig, [11]);
    assert_eq!((one.told(), other.told()), (vec![], vec![]));
    assert_eq!((rig.drain("tasks"), rig.leases()), (vec![(11, 1)], 10));
}

#[test]
fn what_was_not_started_goes_back_without_an_attempt_when_its_session_ends() {
    let rig = plain();
    let (gone, other) = (Consumer::new(&rig), Consumer::new(&rig));
    gone.credit(9);
    let tokens = gone.tokens();
    settle(&gone.client, [(tokens[1], Settlement::Start)], Patience::Now);
    // This one it never sees.
    put(&rig, [4]);
    gone.leave();
    assert_eq!(rig.leases(), 0);
    rig.pass(A_WHILE);
    put(&rig, [5]);
    other.credit(9);
    assert_eq!(other.told(), texts(["1.1", "2.2", "3.1", "4.1", "5.1"]));
    assert_eq!(gone.told(), ["4.1"], "it came before the session ended");
}

#[test]
fn a_consumer_returns_what_it_has_not_started_to_its_place() {
    let rig = plain();
    let consumer = Consumer::new(&rig);
    consumer.credit(3);
    let tokens = consumer.tokens();
    let all = [
        (tokens[0], Settlement::Start),
        (tokens[0], Settlement::Return),
        (tokens[1], Settlement::Return),
        (tokens[1], Settlement::Return),
    ];
    let settled = settle(&consumer.client, all, Patience::Now);
    let [(1, Err(CallError::Started)), (3, Err(CallError::StaleToken))] = &settled.others[..]
    else {
        panic!("{settled:?}")
    };
    assert_eq!(rig.drain("tasks"), [(2, 1)]);
    let caller = consumer.caller();
    rig.engine.extend(caller, consumer.at(), tokens[2], A_WHILE).called.unwrap();
    let settled = settle(&consumer.client, [(tokens[2], Settlement::Return)], Patience::Now);
    assert_eq!(settled.others.len(), 0, "a lease that lasts longer is not started by that");
    assert_eq!(rig.drain("tasks"), [(3, 1)]);
}

#[test]
fn what_came_by_get_is_returned_as_long_as_nothing_was_said_of_it() {
    let rig = plain();
    let client = rig.client("native");
    let tokens = lease_all(&client, 3);
    settle(&client, [(tokens[1], Settlement::Start)], Patience::Now);
    settle(&client, [(tokens[2], Settlement::Extend(A_WHILE))], Patience::Now);
    let returned = tokens.iter().map(|token| (*token, Settlement::Return));
    let settled = settle(&client, returned, Patience::Now);
    let [(1, Err(CallError::Started)), (2, Err(CallError::Started))] = &settled.others[..] else {
        panic!("{settled:?}")
    };
    assert_eq!(rig.drain("tasks"), [(1, 1)], "no attempt is used up");
}

#[test]
fn who_waits_without_work_gets_what_lies_with_another() {
    let rig = plain();
    let (one, other) = (Consumer::new(&rig), Consumer::new(&rig));
    one.credit(9);
    let tokens = one.tokens();
    other.credit(9);
    assert_eq!(one.told(), ["Recall(1)"]);
    let waiting = rig.client("MainProcess").wait();
    assert_eq!(one.told(), Vec::<String>::new(), "it was asked a moment ago");
    let returned = [(tokens[2], Settlement::Return), (tokens[1], Settlement::Return)];
    settle(&one.client, returned, Patience::Now);
    assert_eq!(other.told(), ["3.1"]);
    let mut waiting = pin!(waiting);
    let told = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(told)) = told else { panic!("{told:?}") };
    assert!(matches!(told.outcome, Outcome::Task(grant) if number(&grant) == 2));
    assert_eq!(one.told(), Vec::<String>::new(), "nobody waits without work");
}

#[test]
fn credit_that_is_over_or_withdrawn_keeps_nobody_else_waiting() {
    let rig = plain();
    let (slow, other) = (Consumer::new(&rig), Consumer::new(&rig));
    slow.credit(5);
    other.credit(5);
    assert_eq!(rig.engine.withdraw_credit(slow.caller(), slow.at()), 2);
    put(&rig, [4, 5]);
    let told = (slow.told(), other.told());
    assert_eq!(
        told,
        (texts(["1.1", "2.1", "3.1", "Recall(1)"]).into(), texts(["4.1", "5.1"]).into())
    );
    slow.credit(2);
    put(&rig, [6, 7]);
    assert_eq!((slow.told(), other.told()), (texts(["7.1"]).into(), texts(["6.1"]).into()));
    rig.engine.end_credit(slow.caller(), slow.at());
    put(&rig, [8, 9, 10]);
    assert_eq!((slow.told(), other.told()), (vec![], texts(["8.1", "9.1"]).into()));
}

#[test]
fn a_queue_that_is_shut_down_or_gone_ends_the_credit() {
    let rig = plain();
    let consumer = Consumer::new(&rig);
    consumer.credit(9);
    consumer.arrived();
    rig.engine.shut_down(consumer.at(), false).called.unwrap();
    assert_eq!(consumer.told(), ["Ended(ShutDown)"]);
    consumer.credit(1);
    assert_eq!(consumer.told(), ["Ended(ShutDown)"]);
    let gone = Reference { queue: u64::MAX, serial: 1 };
    let credit =
        rig.engine.credit(consumer.caller(), gone, 5, SettledBy::Token, 1, &consumer.pushes);
    assert!(matches!(credit, Err(CallError::NoQueue)));
}

#[test]
fn what_one_step_cannot_push_comes_in_the_next_turns_of_the_timer() {
    let rig = plain();
    let many = 3 * SERVED_AT_ONCE;
    for _ in 0..many / 64 {
        put(&rig, [7; 64]);
    }
    let consumer = Consumer::new(&rig);
    consumer.credit(u32::MAX);
    assert_eq!(consumer.arrived().len(), SERVED_AT_ONCE);
    assert!(rig.due());
    rig.pass(Duration::ZERO);
    assert_eq!(consumer.arrived().len(), many + 3 - SERVED_AT_ONCE);
    assert!(!rig.due());
}

#[test]
fn credit_that_waits_for_memory_goes_on_when_other_queues_free_some() {
    let limits = Limits { memory_bytes_max: 20_000, ..Limits::default() };
    let rig = rig_within(&limits, at_once());
    let consumer = Consumer::new(&rig);
    for _ in 0..5 {
        put(&rig, [7; 64]);
    }
    consumer.credit(u32::MAX);
    let first = consumer.tokens();
    assert!(first.len() < 100, "{}", first.len());
    assert!(!rig.due(), "nothing can be done about it");
    settle(&consumer.client, first.iter().map(|it| (*it, Settlement::Ack)), Patience::Now);
    assert!(!consumer.arrived().is_empty());
}

#[test]
fn a_task_of_a_queue_on_disk_is_pushed_with_what_must_be_durable() {
    let (_disk, mut world) = restart::tasks(at_once());
    let consumer = Consumer::new(&world.rig);
    consumer.credit(2);
    put(&world.rig, [1]);
    let [Push { promise, .. }] = consumer.arrived()[..] else { panic!() };
    let engine = world.rig.engine.clone();
    let mut durable = pin!(engine.until_durable(promise));
    let mut context = Context::from_waker(Waker::noop());
    assert!(durable.as_mut().poll(&mut context).is_pending());
    world.sync();
    assert!(durable.as_mut().poll(&mut context).is_ready());
}
