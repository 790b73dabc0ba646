//! Requests about one queue take effect in the order in which they came, also those that wait.

use super::*;
use manyhands::wire::native::{Fate, Settlement};

fn bounded() -> Rig {
    Rig::in_memory(&[("tasks", QueueOptions::bounded(1))])
}

/// The items of the queue, one after the other, each of which lets another one in.
async fn drain(client: &mut Client, count: usize) -> Vec<Payload> {
    let mut all = Vec::new();
    while all.len() < count {
        let id = client.request(TASKS, &Request::Get(taking(Wait::Forever, 1))).await;
        all.extend(payloads(tasks(client.reply_to(id).await)));
    }
    all
}

fn taking(wait: Wait, max: u32) -> Get {
    Get { leased: false, ..leasing(wait, max) }
}

#[tokio::test]
pub(super) async fn a_put_behind_one_that_waits_comes_after_all_of_its_items() {
    let rig = bounded();
    let mut client = rig.client_of("tasks").await;
    let first = client.send_put(Wait::Forever, &numbers(4)).await;
    let second = client.send_put(Wait::Forever, &[number(4), number(5)]).await;
    let third = client.send_put(Wait::No, &[number(9)]).await;
    let fourth = client.send_put(Wait::Forever, &[number(6)]).await;
    assert_eq!(added(client.reply_to(third).await), (0, Some(Code::Full)));
    let mut other = rig.client_of("tasks").await;
    let mut all = Vec::new();
    while all.len() < 7 {
        all.extend(drain(&mut other, 1).await);
        client.settle().await;
    }
    assert_eq!(all, numbers(7));
    assert_eq!(added(client.reply_to(first).await), (4, None));
    assert_eq!(added(client.reply_to(second).await), (2, None));
    assert_eq!(added(client.reply_to(fourth).await), (1, None));
}

#[tokio::test]
async fn a_put_whose_turn_does_not_come_in_time_lets_those_behind_it_go_on() {
    let rig = bounded();
    let mut client = rig.client_of("tasks").await;
    let first = client.send_put(Wait::Forever, &numbers(2)).await;
    let wait = Wait::For(Duration::from_millis(20));
    let second = client.send_put(wait, &[number(9)]).await;
    let third = client.send_put(Wait::Forever, &[number(2)]).await;
    assert_eq!(added(client.reply_to(second).await), (0, Some(Code::Full)));
    let mut other = rig.client_of("tasks").await;
    let mut all = Vec::new();
    while all.len() < 3 {
        all.extend(drain(&mut other, 1).await);
        client.settle().await;
    }
    assert_eq!(all, numbers(3));
    assert_eq!(added(client.reply_to(first).await), (2, None));
    assert_eq!(added(client.reply_to(third).await), (1, None));
}

#[tokio::test]
async fn a_put_that_is_cancelled_says_how_much_of_it_is_there() {
    let rig = bounded();
    let mut client = rig.client_of("tasks").await;
    let first = client.send_put(Wait::Forever, &numbers(3)).await;
    let second = client.send_put(Wait::Forever, &[number(9)]).await;
    let cancel = |id| {
        move |_, out: &mut Outbound| {
            Request::Cancel.push(Route { queue: 0, id }, out).unwrap();
        }
    };
    client.send(0, cancel(second)).await;
    assert_eq!(added(client.reply_to(second).await), (0, Some(Code::Cancelled)));
    client.send(0, cancel(first)).await;
    assert_eq!(added(client.reply_to(first).await), (1, Some(Code::Cancelled)));
    // Nobody is in line any more.
    assert_eq!(drain(&mut client, 1).await, [number(0)]);
    assert_eq!(client.put(Wait::Forever, &[number(7)]).await, (1, None));
    client.send(0, cancel(first)).await;
    assert_eq!(client.qsize().await, 1, "what is over cannot be cancelled");
}

#[tokio::test]
async fn a_get_that_is_cancelled_takes_nothing() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    let get = client.request(TASKS, &Request::Get(leasing(Wait::Forever, 1))).await;
    client.send(0, |_, out| Request::Cancel.push(Route { queue: 0, id: get }, out).unwrap()).await;
    assert_eq!(error(client.reply_to(get).await).0, Code::Cancelled);
    client.put(Wait::No, &[number(1)]).await;
    assert_eq!(client.qsize().await, 1);
}

#[tokio::test]
async fn requests_that_wait_on_a_handle_are_cancelled_when_it_is_closed() {
    let rig = bounded();
    let mut client = rig.client_of("tasks").await;
    let first = client.send_put(Wait::Forever, &numbers(3)).await;
    let second = client.send_put(Wait::Forever, &[number(9)]).await;
    let join = client.request(TASKS, &Request::Join).await;
    let closed = client.ask(TASKS, &Request::Close).await;
    assert!(matches!(closed, Reply::Done), "{closed:?}");
    let mut replies = Vec::new();
    for _ in 0..3 {
        replies.push(client.reply().await);
    }
    replies.sort_by_key(|(id, _)| *id);
    let mut replies = replies.into_iter();
    let (id, reply) = replies.next().unwrap();
    assert_eq!((id, added(reply)), (first, (1, Some(Code::Cancelled))));
    let (id, reply) = replies.next().unwrap();
    assert_eq!((id, added(reply)), (second, (0, Some(Code::Cancelled))));
    let (id, reply) = replies.next().unwrap();
    assert_eq!((id, error(reply).0), (join, Code::Cancelled));
    client.open(TASKS, "tasks").await;
    assert_eq!(client.qsize().await, 1);
}

#[tokio::test]
async fn a_large_put_comes_before_what_was_sent_after_it() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    let large = Payload::bytes(&vec![7; 600 << 10]).unwrap();
    let put = client.send_put(Wait::No, std::slice::from_ref(&large)).await;
    let get = client.request(TASKS, &Request::Get(taking(Wait::No, 1))).await;
    assert_eq!(added(client.reply_to(put).await), (1, None));
    assert_eq!(payloads(tasks(client.reply_to(get).await)), [large]);
}

#[tokio::test]
async fn a_batch_of_many_is_put_and_taken() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    let items: Vec<_> =
        (0..10_000u32).map(|it| Payload::bytes(&it.to_le_bytes()).unwrap()).collect();
    assert_eq!(client.put(Wait::No, &items).await, (10_000, None));
    let leased = client.lease(Wait::No, 0).await.unwrap();
    assert_eq!(
        leased.iter().map(|task| &task.payload).collect::<Vec<_>>(),
        items.iter().collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn the_turns_of_a_queue_that_was_closed_are_not_those_of_the_next_one() {
    let declared = [("tasks", QueueOptions::bounded(1)), ("other", QueueOptions::bounded(1))];
    let rig = Rig::in_memory(&declared);
    let mut client = rig.client_of("tasks").await;
    client.send_put(Wait::Forever, &numbers(3)).await;
    client.request(TASKS, &Request::Close).await;
    client.request(TASKS, &Request::Open { name: "other".into() }).await;
    client.send_put(Wait::Forever, &numbers(3)).await;
    client.send_put(Wait::Forever, &[number(3)]).await;
    client.settle().await;
    let mut other = rig.client_of("other").await;
    let mut all = Vec::new();
    while all.len() < 4 {
        all.extend(drain(&mut other, 1).await);
        client.settle().await;
    }
    assert_eq!(all, numbers(4));
}

#[tokio::test]
async fn settlements_that_wait_are_cancelled() {
    let options = QueueOptions::default().results("results");
    let rig = Rig::in_memory(&[("tasks", options), ("results", QueueOptions::bounded(1))]);
    let mut client = rig.client_of("tasks").await;
    client.put(Wait::No, &numbers(3)).await;
    let leased = client.lease(Wait::No, 0).await.unwrap();
    let settle = client
        .send(TASKS, |route, out| {
            let mut settle = Request::begin_settle(Wait::Forever, route, out);
            for task in &leased {
                let fate = Fate::Ack { result: Some(task.payload.clone()) };
                settle.settlement(&Settlement { token: task.token.unwrap(), fate });
            }
            settle.finish().unwrap();
        })
        .await;
    let cancel = Route { queue: 0, id: settle };
    client.send(0, |_, out| Request::Cancel.push(cancel, out).unwrap()).await;
    client.send(0, |_, out| Request::Cancel.push(cancel, out).unwrap()).await;
    let Reply::Settled(codes) = client.reply_to(settle).await else { panic!("it is settled") };
    let cancelled = Some(Code::Cancelled);
    assert_eq!(codes.collect::<Vec<_>>(), [None, cancelled, cancelled]);
}
