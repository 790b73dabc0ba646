//! Requests that have come together share a step, and each has its own reply.

use std::collections::BTreeMap;

use manyhands::wire::native::{Fate, Settlement};
use manyhands::wire::token::LeaseToken;

use super::*;
use crate::engine::locks;

/// Requests that are sent in one write.
#[derive(Default)]
struct Together {
    out: Outbound,
    ids: Vec<u32>,
}

impl Together {
    fn route(&mut self, client: &mut Client) -> Route {
        let route = client.route(TASKS);
        self.ids.push(route.id);
        route
    }

    fn put(&mut self, client: &mut Client, wait: Wait, item: u8) -> &mut Self {
        let route = self.route(client);
        let mut put = Request::begin_put(wait, false, route, &mut self.out);
        put.item(&number(item), None);
        put.finish().unwrap();
        self
    }

    fn settle(&mut self, client: &mut Client, token: LeaseToken) -> &mut Self {
        let route = self.route(client);
        let mut settle = Request::begin_settle(Wait::No, route, &mut self.out);
        settle.settlement(&Settlement { token, fate: Fate::Ack { result: None } });
        settle.finish().unwrap();
        self
    }

    fn ask(&mut self, client: &mut Client, request: &Request) -> &mut Self {
        let route = self.route(client);
        request.push(route, &mut self.out).unwrap();
        self
    }

    /// The replies, in the order of the requests.
    async fn replies(self, client: &mut Client) -> Vec<Reply> {
        let bytes: Vec<_> = self.out.into_parts().collect();
        client.socket.write_all(&bytes.concat()).await.unwrap();
        let mut replies = BTreeMap::new();
        while replies.len() < self.ids.len() {
            let (id, reply) = client.reply().await;
            assert!(replies.insert(id, reply).is_none(), "one reply each");
        }
        let mut reply = |id| replies.remove(id).expect("a reply to this");
        self.ids.iter().map(&mut reply).collect()
    }
}

fn taking(wait: Wait) -> Request {
    Request::Get(Get { leased: false, ..leasing(wait, 1) })
}

#[tokio::test]
async fn requests_of_one_item_that_come_together_take_the_lock_once() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    let mut all = Together::default();
    for item in 0..8 {
        all.put(&mut client, Wait::Forever, item).ask(&mut client, &taking(Wait::No));
    }
    client.settle().await;
    locks::take();
    let bytes: Vec<_> = all.out.into_parts().collect();
    client.socket.write_all(&bytes.concat()).await.unwrap();
    let session = &mut client.server;
    assert!(poll_fn(|cx| Poll::Ready(session.as_mut().poll(cx))).await.is_pending());
    // Theirs, and that of the step after the replies, by which what was taken is settled.
    assert_eq!(locks::take(), 2);
    for item in 0..8 {
        let (_, put) = client.reply().await;
        assert_eq!(added(put), (1, None));
        let (_, got) = client.reply().await;
        assert_eq!(payloads(tasks(got)), [number(item)]);
    }
    assert_eq!(rig.qsize("tasks"), 0);
}

#[tokio::test]
async fn what_has_to_wait_or_is_refused_is_told_beside_what_is_not() {
    for is_on_disk in [false, true] {
        let options = QueueOptions { maxsize: 1, ..QueueOptions::default() };
        let disk = Disk::default();
        let mut rig = match is_on_disk {
            false => Rig::in_memory(&[("tasks", options)]),
            true => Rig::on_disk(&disk, options),
        };
        let mut client = rig.client_of("tasks").await;
        let mut all = Together::default();
        all.put(&mut client, Wait::No, 1)
            .put(&mut client, Wait::No, 2)
            .put(&mut client, Wait::Forever, 3)
            .ask(&mut client, &Request::Size)
            .ask(&mut client, &taking(Wait::No))
            .ask(&mut client, &taking(Wait::No))
            .ask(&mut client, &taking(Wait::No))
            .ask(&mut client, &taking(Wait::Forever))
            .put(&mut client, Wait::No, 4)
            .ask(&mut client, &Request::Get(leasing(Wait::Forever, 1)))
            .put(&mut client, Wait::No, 5)
            .settle(&mut client, LeaseToken { task: 1, attempt: 1, lease: 1, seal: 1 })
            .ask(&mut client, &Request::Size);
        let replies = async {
            let mut replies = pin!(all.replies(&mut client));
            poll_fn(|cx| {
                if is_on_disk {
                    rig.write();
                }
                cx.waker().wake_by_ref();
                replies.as_mut().poll(cx)
            })
            .await
        };
        let mut replies = replies.await.into_iter();
        let mut next = || replies.next().unwrap();
        assert_eq!(added(next()), (1, None));
        assert_eq!(added(next()), (0, Some(Code::Full)));
        assert_eq!(added(next()), (1, None), "once the first one was taken");
        assert!(matches!(next(), Reply::Size { qsize: 1, .. }));
        assert_eq!(payloads(tasks(next())), [number(1)]);
        assert_eq!(payloads(tasks(next())), [number(3)]);
        assert_eq!(tasks(next()).unwrap_err(), Code::Empty);
        assert_eq!(payloads(tasks(next())), [number(4)], "it was waited for");
        assert_eq!(added(next()), (1, None));
        assert_eq!(payloads(tasks(next())), [number(5)]);
        assert_eq!(added(next()), (1, None));
        let Reply::Settled(mut codes) = next() else { panic!("no reply") };
        assert_eq!(codes.next(), Some(Some(Code::Stale)));
        assert!(matches!(next(), Reply::Size { qsize: 0, .. }));
        assert_eq!(rig.qsize("tasks"), 0);
    }
}

#[tokio::test]
async fn a_dead_letter_is_there_for_a_request_that_came_with_the_one_that_gave_it_up() {
    let rig = Rig::in_memory(&[("tasks", QueueOptions::default())]);
    let mut client = rig.client_of("tasks").await;
    let dead = format!("tasks{}", crate::queue::DEAD_LETTERS_SUFFIX);
    client.open(2, &dead).await;
    assert_eq!(client.put(Wait::No, &[number(1)]).await, (1, None));
    let leased = client.lease(Wait::No, 1).await.unwrap();
    let token = leased[0].token.unwrap();
    let mut all = Together::default();
    let route = all.route(&mut client);
    let mut settle = Request::begin_settle(Wait::No, route, &mut all.out);
    settle.settlement(&Settlement { token, fate: Fate::GiveUp { reason: "why".into() } });
    settle.finish().unwrap();
    let route = client.route(2);
    all.ids.push(route.id);
    taking(Wait::No).push(route, &mut all.out).unwrap();
    let mut replies = all.replies(&mut client).await;
    let got = replies.pop().unwrap();
    let Some(Reply::Settled(mut codes)) = replies.pop() else { panic!("no reply") };
    assert_eq!(codes.next(), Some(None), "it is given up");
    assert_eq!(payloads(tasks(got)), [number(1)]);
}
