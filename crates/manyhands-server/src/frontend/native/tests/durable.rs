//! A reply leaves when what it says is durable, and no reply waits for another one's disk.

use std::sync::atomic::Ordering;

use manyhands::wire::native::{Fate, Settlement};

use super::*;
use crate::engine::{Batch, Caller, Shown, Taking};
use crate::queue::SettledBy;

/// A server whose requests each make a frame of their own.
fn of_small_frames() -> Rig {
    let of_journal =
        journal::Options { segment_bytes: 64 << 10, frame_bytes_max: 1, ..Default::default() };
    let mut rig = Rig::on_disk_with(&Disk::default(), QueueOptions::default(), of_journal);
    rig.write();
    rig
}

impl Client {
    /// What was told of puts so far.
    async fn added(&mut self) -> usize {
        self.settle().await;
        let mut count = 0;
        while let Some((_, reply)) = self.received() {
            assert!(matches!(reply, Reply::Added(_)), "{reply:?}");
            count += 1;
        }
        count
    }
}

/// What a restart finds on the disk: these tasks.
async fn left_on(disk: &Disk, options: &QueueOptions, items: &[Payload]) -> Rig {
    let mut before = Rig::on_disk(disk, options.clone());
    let mut client = before.client_of("tasks").await;
    let put = client.send_put(Wait::No, items).await;
    client.settle().await;
    before.write();
    assert_eq!(added(client.reply_to(put).await).1, None);
    drop((client, before));
    let mut rig = Rig::on_disk(disk, options.clone());
    rig.write();
    rig
}

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
async fn a_session_that_is_alone_need_not_wait_for_the_writer() {
    let (_disk, mut rig) = on_disk();
    let mut client = rig.client_of("tasks").await;
    let desk = rig.share_writer();
    // The queue was opened by the first of eight requests.
    for _ in 1..7 {
        let put = client.send_put(Wait::No, &[number(1)]).await;
        client.settle().await;
        assert!(client.received().is_none(), "it is not known yet whether others come");
        desk.lock().unwrap().step().unwrap();
        assert_eq!(added(client.reply_to(put).await), (1, None));
    }
    let put = client.send_put(Wait::No, &[number(2)]).await;
    assert_eq!(added(client.reply_to(put).await), (1, None));
    let get = client.request(TASKS, &Request::Get(leasing(Wait::No, 0))).await;
    assert_eq!(tasks(client.reply_to(get).await).unwrap().len(), 7);
    let mut other = rig.client_of("tasks").await;
    let ping = other.request(0, &Request::Ping).await;
    assert!(matches!(other.reply_to(ping).await, Reply::Done));
    client.send_put(Wait::No, &[number(3)]).await;
    client.settle().await;
    assert!(client.received().is_none(), "the disk must not keep the other one");
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
async fn replies_that_become_durable_together_leave_in_one_write() {
    const MANY: usize = 16;
    let mut rig = of_small_frames();
    let mut client = rig.client_of("tasks").await;
    for _ in 0..MANY {
        client.send_put(Wait::No, &[number(7)]).await;
    }
    assert_eq!(client.added().await, 0, "nothing is durable yet");
    let before = client.writes.load(Ordering::Relaxed);
    rig.write();
    assert_eq!(client.added().await, MANY);
    assert_eq!(client.writes.load(Ordering::Relaxed), before + 1);
}

#[tokio::test]
async fn a_reply_leaves_as_soon_as_what_it_says_is_durable() {
    let mut rig = of_small_frames();
    let mut client = rig.client_of("tasks").await;
    for puts in 1..=3 {
        client.send_put(Wait::No, &[number(7)]).await;
        assert_eq!(client.added().await, 0, "it is not durable yet");
        assert_eq!(rig.qsize("tasks"), puts, "it is applied");
    }
    assert!(rig.writer.as_mut().unwrap().step().unwrap(), "the first one is durable");
    assert_eq!(client.added().await, 1);
    rig.write();
    assert_eq!(client.added().await, 2);
}

#[tokio::test]
async fn a_client_that_has_sent_its_last_request_is_still_told_once_that_is_durable() {
    let mut rig = of_small_frames();
    let mut client = rig.client_of("tasks").await;
    for _ in 0..2 {
        client.send_put(Wait::No, &[number(7)]).await;
    }
    client.socket.shutdown().await.unwrap();
    assert_eq!(client.added().await, 0, "it is not durable yet");
    rig.write();
    assert_eq!(client.added().await, 2);
    assert!(matches!(client.end, Some(Ok(()))), "{:?}", client.end);
}

#[tokio::test]
async fn a_server_that_stops_still_tells_what_becomes_durable() {
    let mut rig = of_small_frames();
    let mut client = rig.client_of("tasks").await;
    for _ in 0..2 {
        client.send_put(Wait::No, &[number(7)]).await;
    }
    assert_eq!(client.added().await, 0, "it is not durable yet");
    rig.shared.stop.cancel();
    assert_eq!(client.added().await, 0, "it is not durable yet");
    rig.write();
    assert_eq!(client.added().await, 2);
    assert!(matches!(client.end, Some(Err(ConnectionError::Stopping))), "{:?}", client.end);
}

#[tokio::test]
async fn a_slow_disk_keeps_only_those_waiting_who_want_something_from_it() {
    let disk = Disk::default();
    let mut rig = left_on(&disk, &QueueOptions::default(), &[number(7)]).await;
    let mut reader = rig.client_of("tasks").await;
    let mut get = 0;
    disk.be_slow(async {
        get = reader.request(TASKS, &Request::Get(leasing(Wait::No, 1))).await;
        assert_eq!(reader.qsize().await, 0, "the session goes on");
        assert!(reader.received().is_none(), "it has what was not read");
        assert_eq!(rig.client_of("tasks").await.qsize().await, 0, "so do others");
    })
    .await;
    rig.write();
    assert_eq!(payloads(tasks(reader.reply_to(get).await)), [number(7)]);
}

#[test]
fn who_leases_a_task_that_is_gone_before_it_was_read_gets_the_next_one() {
    const MAX_RUN: Duration = Duration::from_secs(1);
    let options = QueueOptions::default().backoff(Duration::ZERO).max_run(MAX_RUN);
    let disk = Disk::default();
    // The only thread that could read is busy until the task is gone.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let mut rig = left_on(&disk, &options, &[number(7), number(8)]).await;
        let engine = rig.shared.engine.clone();
        let at = engine.open("tasks").unwrap();
        let (free, busy) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || busy.recv());
        let mut client = rig.client_of("tasks").await;
        let mut get = 0;
        disk.be_slow(async {
            get = client.request(TASKS, &Request::Get(leasing(Wait::No, 1))).await;
            client.settle().await;
            assert!(client.received().is_none(), "it has what was not read");
            engine.clock().put_forward(MAX_RUN);
            engine.expire();
            let taking = Taking { settled_by: SettledBy::Token, ..Taking::one(5) };
            let (caller, mut batch) = (Caller::IN_PROCESS, Batch::default());
            let shown = Shown::default();
            engine.get_many(caller, at, taking, Wait::No, &shown, &mut batch).called.unwrap();
            let token = engine.signer(at).unwrap().sign(batch.grants[0].token);
            assert_eq!(token.task, 0);
            engine.ack(caller, at, token, None, Wait::No).called.unwrap();
            rig.write();
        })
        .await;
        drop(free);
        let reply = loop {
            client.settle().await;
            if let Some((header, reply)) = client.received() {
                assert_eq!(header.route.id, get);
                break reply;
            }
            rig.write();
        };
        assert_eq!(payloads(tasks(reply)), [number(8)]);
    });
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

/// What a program took by a plain `get` is in its hand: with the next one it settles the last, and
/// does not wait for that.
#[tokio::test]
pub(super) async fn what_is_settled_before_the_next_get_is_durable_once_that_is_told() {
    assert_eq!(settle_by_get(&[number(7), number(8)]).await.unwrap()[0].payload, number(8));
}

#[tokio::test]
async fn what_is_settled_before_a_get_that_finds_nothing_is_durable_once_that_is_told() {
    assert_eq!(settle_by_get(&[number(7)]).await, Err(Code::Empty));
}

/// What the second of two gets is told, once it may be.
async fn settle_by_get(items: &[Payload]) -> Result<Vec<Task>, Code> {
    let disk = Disk::default();
    let mut rig = left_on(&disk, &QueueOptions::default(), items).await;
    let mut client = rig.client_of("tasks").await;
    let get = Request::Get(Get { hold: Some(Duration::ZERO), ..leasing(Wait::No, 1) });
    let first = client.request(TASKS, &get).await;
    let first = tasks(client.reply_to(first).await).unwrap();
    let settlement =
        Settlement { token: first[0].token.unwrap(), fate: Fate::Done { result: None } };
    let settled = client
        .send(TASKS, |route, out| {
            let mut settle = Request::begin_settle(Wait::No, route, out);
            settle.settlement(&settlement);
            settle.finish().unwrap();
        })
        .await;
    let second = client.request(TASKS, &get).await;
    client.settle().await;
    assert!(client.received().is_none(), "the first one might come back");
    rig.write();
    assert!(matches!(client.reply_to(settled).await, Reply::Settled(_)));
    tasks(client.reply_to(second).await)
}
