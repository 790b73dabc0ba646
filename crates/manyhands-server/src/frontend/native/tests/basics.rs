//! One request, one reply.

use super::*;
use manyhands::wire::native::{Fate, Settlement};

fn settle(out: &mut Outbound, route: Route, settlements: &[Settlement]) {
    let mut settle = Request::begin_settle(Wait::No, route, out);
    settlements.iter().for_each(|settlement| settle.settlement(settlement));
    settle.finish().unwrap();
}

fn ack(task: &Task) -> Settlement {
    Settlement { token: task.token.unwrap(), fate: Fate::Ack { result: None } }
}

impl Client {
    async fn settle_all(&mut self, settlements: &[Settlement]) -> Vec<Option<Code>> {
        let id = self.send(TASKS, |route, out| settle(out, route, settlements)).await;
        match self.reply_to(id).await {
            Reply::Settled(codes) => codes.collect(),
            reply => panic!("{reply:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_put_is_leased_and_settled() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    assert_eq!(client.put(Wait::No, &numbers(3)).await, (3, None));
    assert_eq!(client.qsize().await, 3);
    let leased = client.lease(Wait::No, 2).await.unwrap();
    assert_eq!(leased.iter().map(|it| it.payload.clone()).collect::<Vec<_>>(), numbers(2));
    let settled = client.settle_all(&[ack(&leased[0]), ack(&leased[1]), ack(&leased[0])]).await;
    assert_eq!(settled, [None, None, Some(Code::SettledBefore)]);
    assert_eq!(payloads(client.take(Wait::No, 0).await), [number(2)]);
    assert_eq!(client.lease(Wait::No, 1).await, Err(Code::Empty));
    assert!(matches!(client.ask(0, &Request::Ping).await, Reply::Done));
    client.leave().await.unwrap();
}

#[tokio::test]
async fn the_lease_of_a_task_that_was_revoked_is_stale() {
    let rig = Rig::in_memory(&[]);
    let (mut client, mut other) = (rig.client_of("tasks").await, rig.client_of("tasks").await);
    assert_eq!(client.put(Wait::No, &numbers(1)).await, (1, None));
    let leased = client.lease(Wait::No, 1).await.unwrap();
    let revoke = Request::Revoke { task: leased[0].token.unwrap().task };
    assert!(matches!(other.ask(TASKS, &revoke).await, Reply::Count(1)));
    assert!(matches!(other.ask(TASKS, &revoke).await, Reply::Count(0)));
    assert_eq!(client.settle_all(&[ack(&leased[0])]).await, [Some(Code::Stale)]);
}

#[tokio::test]
async fn a_get_waits_and_others_are_answered_meanwhile() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    let get = client.request(TASKS, &Request::Get(leasing(Wait::Forever, 1))).await;
    assert_eq!(client.qsize().await, 0);
    let put = client.send_put(Wait::No, &[number(7)]).await;
    let mut replies = [client.reply().await, client.reply().await];
    replies.sort_by_key(|(id, _)| *id);
    let [(first, tasks_), (second, added_)] = replies;
    assert_eq!((first, second), (get, put));
    assert_eq!(payloads(tasks(tasks_)), [number(7)]);
    assert_eq!(added(added_), (1, None));
    let wait = Wait::For(Duration::from_millis(20));
    assert_eq!(client.lease(wait, 1).await, Err(Code::Empty));
}

#[tokio::test]
async fn leases_go_back_when_their_session_ends() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    client.put(Wait::No, &numbers(3)).await;
    client.lease(Wait::No, 2).await.unwrap();
    client.leave().await.unwrap();
    let mut other = rig.client_of("tasks").await;
    assert_eq!(payloads(other.take(Wait::No, 0).await), numbers(3));
}
