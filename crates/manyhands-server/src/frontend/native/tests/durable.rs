//! A reply leaves when what it says is durable, and no reply waits for another one's disk.

use super::*;

fn on_disk() -> (Disk, Rig) {
    let disk = Disk::default();
    let mut rig = Rig::on_disk(&disk, QueueOptions::default());
    rig.write();
    (disk, rig)
}

#[tokio::test]
pub(super) async fn a_put_is_told_once_it_is_on_the_disk_and_others_are_told_before() {
    let (_disk, mut rig) = on_disk();
    let mut client = rig.client_of("tasks").await;
    let put = client.send_put(Wait::No, &[number(1)]).await;
    let ping = client.request(0, &Request::Ping).await;
    assert!(matches!(client.reply_to(ping).await, Reply::Done));
    client.settle().await;
    assert!(client.received().is_none(), "nothing of the put is told yet");
    rig.write();
    assert_eq!(added(client.reply_to(put).await), (1, None));
}

#[tokio::test]
async fn requests_are_applied_while_the_replies_to_others_wait_for_the_disk() {
    let (_disk, mut rig) = on_disk();
    let mut client = rig.client_of("tasks").await;
    let first = client.send_put(Wait::No, &[number(1)]).await;
    client.settle().await;
    let second = client.send_put(Wait::No, &[number(2)]).await;
    client.settle().await;
    rig.write();
    assert_eq!(added(client.reply_to(first).await), (1, None));
    assert_eq!(added(client.reply_to(second).await), (1, None));
}

#[tokio::test]
async fn what_was_taken_for_good_and_not_told_of_goes_back() {
    let (_disk, mut rig) = on_disk();
    let mut client = rig.client_of("tasks").await;
    client.send_put(Wait::No, &[number(1)]).await;
    let get = Get { leased: false, ..leasing(Wait::No, 1) };
    client.request(TASKS, &Request::Get(get)).await;
    client.settle().await;
    assert!(client.received().is_none());
    drop(client.socket);
    rig.write();
    assert!(client.server.await.is_err());
    let mut other = rig.client_of("tasks").await;
    let get = other.request(TASKS, &Request::Get(leasing(Wait::No, 0))).await;
    other.settle().await;
    rig.write();
    let tasks = tasks(other.reply_to(get).await).unwrap();
    assert_eq!(tasks[0].token.unwrap().attempt, 1, "nobody has tried it");
}

#[tokio::test]
pub(super) async fn what_was_taken_for_good_and_told_of_is_gone() {
    let (_disk, mut rig) = on_disk();
    let mut client = rig.client_of("tasks").await;
    let put = client.send_put(Wait::No, &[number(1)]).await;
    client.settle().await;
    rig.write();
    assert_eq!(added(client.reply_to(put).await), (1, None));
    assert_eq!(payloads(client.take(Wait::No, 0).await), [number(1)]);
    let at = rig.shared.engine.open("tasks").unwrap();
    assert_eq!(rig.shared.engine.look(at, |queue| queue.leased()).unwrap(), 0, "it is settled");
    client.leave().await.unwrap();
    let mut other = rig.client_of("tasks").await;
    assert_eq!(other.lease(Wait::No, 0).await, Err(Code::Empty));
}

#[tokio::test]
async fn no_more_requests_are_applied_than_replies_may_wait() {
    let (_disk, mut rig) = on_disk();
    let mut client = rig.client_of("tasks").await;
    let put = |id| {
        let mut out = Outbound::default();
        let mut put = Request::begin_put(Wait::No, false, Route { queue: TASKS, id }, &mut out);
        put.item(&number(1), None);
        put.finish().unwrap();
        out.own().to_vec()
    };
    let many = 4000u32;
    let requests: Vec<_> = (0..many).flat_map(put).collect();
    assert!(requests.len() < PIPE_LEN);
    client.send_bytes(&requests).await;
    client.settle().await;
    let applied = rig.qsize("tasks");
    assert!((100..many as usize).contains(&applied), "{applied} were applied");
    let mut replies = 0;
    while replies < many {
        rig.write();
        client.settle().await;
        while client.received().is_some() {
            replies += 1;
        }
    }
    assert_eq!(rig.qsize("tasks"), many as usize);
}

#[tokio::test]
async fn bodies_on_disk_are_told_whatever_they_wait_for() {
    let (_disk, mut rig) = on_disk();
    let mut client = rig.client_of("tasks").await;
    let items: Vec<_> = (0..20u8).map(|it| Payload::bytes(&vec![it; 3 << 10]).unwrap()).collect();
    let put = client.send_put(Wait::No, &items).await;
    client.settle().await;
    rig.write();
    assert_eq!(added(client.reply_to(put).await), (20, None));
    let get = client.request(TASKS, &Request::Get(leasing(Wait::No, 0))).await;
    let mut leased = None;
    while leased.is_none() {
        client.settle().await;
        rig.write();
        leased = client.received();
    }
    let (header, reply) = leased.unwrap();
    assert_eq!(header.route.id, get);
    assert_eq!(payloads(tasks(reply)), items);
}
