//! A reply leaves when what it says is durable, and no reply waits for another one's disk.

use super::*;

fn on_disk() -> (Disk, Rig) {
    let disk = Disk::default();
    let mut rig = Rig::on_disk(&disk, QueueOptions::default());
    rig.write();
    (disk, rig)
}

#[tokio::test]
async fn a_put_is_told_once_it_is_on_the_disk_and_others_are_told_before() {
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
async fn what_was_taken_for_good_and_told_of_is_gone() {
    let (_disk, mut rig) = on_disk();
    let mut client = rig.client_of("tasks").await;
    let put = client.send_put(Wait::No, &[number(1)]).await;
    client.settle().await;
    rig.write();
    assert_eq!(added(client.reply_to(put).await), (1, None));
    assert_eq!(payloads(client.take(Wait::No, 0).await), [number(1)]);
    client.leave().await.unwrap();
    let mut other = rig.client_of("tasks").await;
    assert_eq!(other.lease(Wait::No, 0).await, Err(Code::Empty));
}
