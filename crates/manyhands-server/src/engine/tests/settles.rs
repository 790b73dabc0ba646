//! Batches whose items each say something of their own: many settlements, puts with terms.

use manyhands::wire::token::LeaseToken;

use super::*;
use crate::queue::{Order, Patience, Prepared, Terms};

/// What is done with many tasks at a time.
pub(super) fn lease_all(client: &Client, max: usize) -> Vec<LeaseToken> {
    let taking = Taking { settled_by: SettledBy::Token, max, ..Taking::one(5) };
    let (caller, tasks) = (client.presence.caller(), client.tasks.reference);
    let mut batch = Batch::default();
    let shown = &Shown::default();
    let ticket = client.engine.get_many(caller, tasks, taking, Wait::No, shown, &mut batch);
    assert!(matches!(ticket.called, Ok(None)), "{ticket:?}");
    while client.engine.take_more(caller, tasks, taking, &mut batch) {}
    let signer = client.engine.signer(tasks).unwrap();
    batch.grants.iter().map(|grant| signer.sign(grant.token)).collect()
}

pub(super) fn settle(
    client: &Client,
    settlements: impl IntoIterator<Item = (LeaseToken, Settlement)>,
    patience: Patience,
) -> Settled {
    let (caller, tasks) = (client.presence.caller(), client.tasks.reference);
    let (mut settlements, mut settled) = (settlements.into_iter(), Settled::default());
    while client.engine.settle_many(caller, tasks, &mut settlements, patience, &mut settled) {}
    settled
}

fn nack(retry: Retry) -> Settlement {
    Settlement::Nack(retry, "broken".into())
}

/// What was refused, and where.
fn refused(settled: &Settled) -> Vec<(usize, String)> {
    let text = |called: &Result<Called, CallError>| match called {
        Ok(Called::Now(outcome)) => format!("{outcome:?}"),
        Ok(Called::Later(_)) => "waits".to_owned(),
        Err(error) => error.to_string().split(':').next().unwrap().to_owned(),
    };
    settled.others.iter().map(|(at, called)| (*at, text(called))).collect()
}

fn put(
    rig: &Rig,
    puts: Vec<(u8, Terms)>,
    order: Order,
) -> (Vec<Option<TaskId>>, crate::engine::verbs::Added) {
    let tasks = rig.engine.open("tasks").unwrap();
    let puts = puts.into_iter().map(|(number, terms)| {
        let terms = (terms != Terms::default()).then(|| Box::new(terms));
        Put::new(item(number), terms, order)
    });
    let mut numbers = Vec::new();
    let caller = Caller::IN_PROCESS;
    let added =
        rig.engine.put_many(caller, tasks, &mut { puts }, Patience::Now, Some(&mut numbers));
    (numbers, added)
}

#[test]
fn settlements_of_a_batch_take_effect_each_for_itself() {
    let rig = rig(at_once().results("results").attempts(9));
    put(&rig, vec![(4, Terms::default())], Order::Fifo);
    let worker = rig.client("native");
    let tokens = lease_all(&worker, 9);
    let [first, second, third, fourth] = tokens[..] else { panic!("{tokens:?}") };
    let forged = LeaseToken { seal: !first.seal, ..first };
    let settled = settle(
        &worker,
        [
            (first, Settlement::Ack),
            (forged, Settlement::Ack),
            (first, Settlement::Answer(item(11).into())),
            (first, nack(Retry::Backoff)),
            (second, nack(Retry::Backoff)),
            (third, Settlement::Extend(A_WHILE)),
            (third, Settlement::Start),
            (third, Settlement::Return),
            (fourth, nack(Retry::Never)),
        ],
        Patience::Now,
    );
    assert_eq!(settled.count, 9);
    let expected = [(0, "no result"), (1, "stale"), (3, "duplicate"), (7, "started")]
        .map(|(at, why)| (at, why.to_owned()));
    assert_eq!(refused(&settled), expected);
    assert_eq!(rig.drain("results"), [(11, 1)]);
    assert_eq!(rig.drain("tasks.dead"), [(4, 1)]);
    assert_eq!(rig.drain("tasks"), [(2, 2)]);
    rig.pass(A_WHILE);
    assert_eq!(rig.drain("tasks"), [(3, 2)]);
}

#[test]
fn a_result_that_waits_for_room_keeps_no_other_settlement_waiting() {
    let rig = strict();
    rig.make_anew("results", QueueOptions::bounded(1));
    let worker = rig.client("native");
    let tokens = lease_all(&worker, 3);
    let [first, second, third] = tokens[..] else { panic!("{tokens:?}") };
    let answer = |number| Settlement::Answer(item(number).into());
    let mut settled = settle(
        &worker,
        [
            (first, answer(11)),
            (second, answer(12)),
            (second, Settlement::Ack),
            (third, nack(Retry::Backoff)),
        ],
        Patience::Forever,
    );
    let expected = [(1, "waits"), (2, "stale")].map(|(at, why)| (at, why.to_owned()));
    assert_eq!(refused(&settled), expected);
    assert_eq!(rig.drain("tasks"), [(3, 2)]);
    let Ok(Called::Later(waiter)) = settled.others.swap_remove(0).1 else { panic!() };
    assert_eq!(rig.drain("results"), [(11, 1), (12, 1)]);
    let told = pollster::block_on(waiter).unwrap();
    assert!(matches!(told.outcome, Outcome::Accepted(_)), "{told:?}");
    assert_eq!(rig.leases(), 0);
    let again = settle(&worker, [(second, Settlement::Ack)], Patience::Now);
    assert_eq!(refused(&again), [(0, "duplicate".to_owned())]);
}

#[test]
fn what_is_done_in_hand_needs_no_result_and_is_counted_by_task_done_alone() {
    let rig = strict();
    let worker = rig.client("native");
    let tokens = lease_all(&worker, 3);
    let settlements = [
        (tokens[0], Settlement::Done(None)),
        (tokens[1], Settlement::Done(Some(item(12).into()))),
        (tokens[2], Settlement::Answer(item(13).into())),
        (tokens[0], Settlement::Done(None)),
    ];
    let settled = settle(&worker, settlements, Patience::Now);
    assert_eq!(refused(&settled), [(3, "stale".to_owned())]);
    assert_eq!(rig.drain("results"), [(12, 1), (13, 1)]);
    assert_eq!(rig.look("tasks", |queue| (queue.unfinished(), queue.leased())), (2, 0));
    assert_eq!(rig.leases(), 0);
    for _ in 0..2 {
        worker.task_done();
    }
    assert_eq!(rig.look("tasks", Queue::unfinished), 0);
}

#[test]
fn a_batch_of_settlements_goes_on_in_further_steps() {
    let rig = plain();
    let (tasks, many) = (rig.engine.open("tasks").unwrap(), 2 * BATCH_AT_ONCE + 1 - 3);
    let mut items = (0..many).map(|_| Prepared::from(item(7))).collect::<Vec<_>>().into_iter();
    while items.len() > 0 {
        let (caller, patience) = (Caller::IN_PROCESS, Patience::Now);
        rig.engine.put_many(caller, tasks, &mut items, patience, None).end.called.unwrap();
    }
    let worker = rig.client("native");
    let tokens = lease_all(&worker, many + 3);
    let (caller, mut settled) = (worker.presence.caller(), Settled::default());
    let mut acks = tokens.into_iter().map(|token| (token, Settlement::Ack));
    let steps = std::iter::repeat_with(|| {
        rig.engine.settle_many(caller, tasks, &mut acks, Patience::Now, &mut settled)
    });
    assert_eq!(steps.take_while(|is_more| *is_more).count(), 2);
    assert_eq!((settled.count, settled.others.len()), (2 * BATCH_AT_ONCE + 1, 0));
    assert_eq!(rig.look("tasks", |queue| (queue.unfinished(), queue.leased())), (0, 0));
    assert_eq!(rig.leases(), 0);
}

#[test]
fn each_item_of_a_batch_has_terms_of_its_own() {
    let rig = plain();
    let key = |key: u8| Terms { key: Some([key].as_slice().into()), ..Terms::default() };
    let delayed = Terms { delay: Some(A_WHILE), ..Terms::default() };
    let puts = vec![(4, key(1)), (5, Terms::default()), (6, key(1)), (7, delayed), (8, key(2))];
    let (numbers, added) = put(&rig, puts, Order::Fifo);
    assert!(matches!(added.end.called, Ok(None)), "{added:?}");
    assert_eq!(added.count, 5);
    let expected = [Some(3), Some(4), None, Some(5), Some(6)].map(|number| number.map(TaskId));
    assert_eq!(numbers, expected);
    let drained = |rig: &Rig| rig.drain("tasks").into_iter().map(|(it, _)| it).collect::<Vec<_>>();
    assert_eq!(drained(&rig), [1, 2, 3, 4, 5, 8]);
    rig.pass(A_WHILE);
    assert_eq!(drained(&rig), [7]);

    let urgent = Terms { priority: Some(-1), ..Terms::default() };
    let (numbers, added) = put(&rig, vec![(1, key(3)), (2, urgent.clone())], Order::Fifo);
    assert!(matches!(added.end.called, Err(CallError::NoOrder(Order::Fifo))), "{added:?}");
    assert_eq!((added.count, numbers.len()), (1, 1));
    assert_eq!(drained(&rig), [1]);

    let sorted = self::rig(QueueOptions { order: Order::Priority, ..at_once() });
    put(&sorted, vec![(9, Terms::default()), (8, urgent)], Order::Priority);
    assert_eq!(drained(&sorted), [8, 1, 2, 3, 9]);
}

#[test]
fn who_hears_that_a_key_of_a_batch_was_known_waits_until_its_task_is_durable() {
    let (_disk, world) = restart::tasks(at_once());
    let key = || Terms { key: Some([1].as_slice().into()), ..Terms::default() };
    let (_, first) = put(&world.rig, vec![(1, key())], Order::Fifo);
    let (numbers, second) = put(&world.rig, vec![(2, key())], Order::Fifo);
    assert_eq!(numbers, [None]);
    assert!(second.end.promise.covers(first.end.promise) && !first.end.promise.is_nothing());
}

#[test]
fn a_batch_ends_at_the_first_item_that_finds_no_room() {
    let rig = rig(at_once().maxsize(5));
    let (numbers, added) =
        put(&rig, (4..8).map(|number| (number, Terms::default())).collect(), Order::Fifo);
    assert!(matches!(added.end.called, Ok(Some(Called::Now(Outcome::Full)))), "{added:?}");
    assert_eq!((added.count, numbers), (2, vec![Some(TaskId(3)), Some(TaskId(4))]));
}

#[test]
fn a_batch_that_is_taken_ends_after_so_many_bytes() {
    let rig = plain();
    let worker = rig.client("native");
    let (caller, tasks) = (worker.presence.caller(), worker.tasks.reference);
    let taken = |bytes_max| {
        let taking = Taking { settled_by: SettledBy::Token, max: 9, bytes_max, ..Taking::one(5) };
        let mut batch = Batch::default();
        let shown = &Shown::default();
        rig.engine.get_many(caller, tasks, taking, Wait::No, shown, &mut batch).called.unwrap();
        batch.grants.len()
    };
    let one = item(1).bytes.len();
    assert_eq!(taken(1), 1);
    assert_eq!(taken(one + 1), 2);
}
