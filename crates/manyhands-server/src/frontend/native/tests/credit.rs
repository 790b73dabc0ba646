//! Tasks that are pushed to who gives credit.

use super::*;
use manyhands::wire::native::{Fate, Settlement};

fn credit(credit: u32, ends: bool) -> Request {
    Request::Credit { hold: None, credit, ends }
}

impl Client {
    async fn give(&mut self, id: u32, tasks: u32) {
        let route = Route { queue: TASKS, id };
        self.send(TASKS, |_, out| credit(tasks, false).push(route, out).unwrap()).await;
    }

    async fn end_credit(&mut self, id: u32) {
        let route = Route { queue: TASKS, id };
        self.send(TASKS, |_, out| credit(0, true).push(route, out).unwrap()).await;
    }

    /// What was pushed by this credit so far.
    async fn pushed(&mut self, id: u32) -> Vec<Task> {
        self.settle().await;
        let mut all = Vec::new();
        while let Some((header, reply)) = self.received() {
            assert_eq!(header.route, Route { queue: TASKS, id });
            let Reply::Tasks { pushed: true, tasks } = reply else { panic!("{reply:?}") };
            all.extend(tasks.map(Result::unwrap));
        }
        all
    }

    async fn settle_one(&mut self, task: &Task, fate: Fate) -> Option<Code> {
        let settlement = Settlement { token: task.token.unwrap(), fate };
        let id = self
            .send(TASKS, |route, out| {
                let mut settle = Request::begin_settle(Wait::No, route, out);
                settle.settlement(&settlement);
                settle.finish().unwrap();
            })
            .await;
        match self.reply_to(id).await {
            Reply::Settled(mut codes) => codes.next().unwrap(),
            reply => panic!("{reply:?}"),
        }
    }
}

fn items(tasks: Vec<Task>) -> Vec<Payload> {
    tasks.into_iter().map(|task| task.payload).collect()
}

#[tokio::test]
async fn tasks_are_pushed_as_far_as_there_is_credit() {
    let rig = Rig::in_memory(&[]);
    let (mut master, mut worker) = (rig.client_of("tasks").await, rig.client_of("tasks").await);
    master.put(Wait::No, &numbers(2)).await;
    worker.give(900, 3).await;
    assert_eq!(items(worker.pushed(900).await), numbers(2));
    master.put(Wait::No, &[number(2), number(3)]).await;
    assert_eq!(items(worker.pushed(900).await), [number(2)]);
    worker.give(900, 1).await;
    let tasks = worker.pushed(900).await;
    assert_eq!(tasks[0].payload, number(3));
    let acked = worker.settle_one(&tasks[0], Fate::Ack { result: None }).await;
    assert_eq!(acked, None);
}

#[tokio::test]
async fn tasks_go_round_among_those_that_wait() {
    let rig = Rig::in_memory(&[]);
    let mut master = rig.client_of("tasks").await;
    let (mut one, mut other) = (rig.client_of("tasks").await, rig.client_of("tasks").await);
    one.give(900, 10).await;
    other.give(901, 10).await;
    one.settle().await;
    other.settle().await;
    master.put(Wait::No, &numbers(6)).await;
    assert_eq!(one.pushed(900).await.len(), 3);
    assert_eq!(other.pushed(901).await.len(), 3);
}

#[tokio::test]
async fn who_waits_in_vain_has_tasks_recalled_from_who_did_not_start_them() {
    let rig = Rig::in_memory(&[]);
    let (mut master, mut worker) = (rig.client_of("tasks").await, rig.client_of("tasks").await);
    master.put(Wait::No, &numbers(3)).await;
    worker.give(900, 3).await;
    let tasks = worker.pushed(900).await;
    assert_eq!(worker.settle_one(&tasks[0], Fate::Start).await, None);
    let get = master.request(TASKS, &Request::Get(leasing(Wait::Forever, 1))).await;
    master.settle().await;
    worker.settle().await;
    let (header, reply) = worker.received().unwrap();
    assert_eq!(header.route, Route { queue: TASKS, id: 900 });
    assert!(matches!(reply, Reply::Recall { count: 1 }), "{reply:?}");
    assert_eq!(worker.settle_one(&tasks[0], Fate::Return).await, Some(Code::Started));
    assert_eq!(worker.settle_one(&tasks[2], Fate::Return).await, None);
    let got = super::tasks(master.reply_to(get).await).unwrap();
    assert_eq!((&got[0].payload, got[0].token.unwrap().attempt), (&number(2), 1));
}

#[tokio::test]
async fn credit_that_is_ended_is_told_after_all_that_was_pushed() {
    let rig = Rig::in_memory(&[]);
    let mut worker = rig.client_of("tasks").await;
    worker.give(900, 5).await;
    let put = worker.send_put(Wait::No, &numbers(2)).await;
    worker.end_credit(900).await;
    let (mut replies, mut tasks) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (id, reply) = worker.reply().await;
        replies.push(id);
        match reply {
            Reply::Tasks { tasks: pushed, .. } => tasks.extend(pushed.map(Result::unwrap)),
            Reply::Added(_) => assert_eq!(id, put),
            reply => assert!(matches!(reply, Reply::Done), "{reply:?}"),
        }
    }
    assert_eq!((replies[2], items(tasks)), (900, numbers(2)));
    // The id is free, and nothing is pushed any more.
    worker.put(Wait::No, &[number(7)]).await;
    assert!(worker.pushed(900).await.is_empty());
    worker.give(900, 5).await;
    assert_eq!(items(worker.pushed(900).await), [number(7)]);
}

#[tokio::test]
async fn too_much_credit_ends_it() {
    let rig = Rig::in_memory(&[]);
    let mut worker = rig.client_of("tasks").await;
    worker.give(900, connection::CREDIT_MAX).await;
    worker.give(900, 1).await;
    assert_eq!(error(worker.reply_to(900).await).0, Code::TooMuchCredit);
    worker.put(Wait::No, &[number(1)]).await;
    assert_eq!(worker.qsize().await, 1);
}

#[tokio::test]
async fn a_shutdown_and_a_closed_handle_end_credit() {
    let rig = Rig::in_memory(&[]);
    let mut worker = rig.client_of("tasks").await;
    worker.give(900, 5).await;
    let close = worker.request(TASKS, &Request::Close).await;
    assert_eq!(error(worker.reply_to(900).await).0, Code::Cancelled);
    assert!(matches!(worker.reply_to(close).await, Reply::Done));
    worker.open(TASKS, "tasks").await;
    worker.give(900, 5).await;
    let shutdown = worker.request(TASKS, &Request::Shutdown { immediate: false }).await;
    let mut replies = [worker.reply().await, worker.reply().await];
    replies.sort_by_key(|(id, _)| *id);
    let [(first, done), (second, ended)] = replies;
    assert_eq!((first, second), (shutdown, 900));
    assert!(matches!(done, Reply::Done));
    assert_eq!(error(ended).0, Code::ShutDown);
}

#[tokio::test]
async fn what_was_pushed_and_not_started_returns_without_an_attempt() {
    let rig = Rig::in_memory(&[]);
    let mut worker = rig.client_of("tasks").await;
    worker.put(Wait::No, &numbers(3)).await;
    worker.give(900, 2).await;
    let tasks = worker.pushed(900).await;
    assert_eq!(worker.settle_one(&tasks[0], Fate::Start).await, None);
    worker.leave().await.unwrap();
    let mut other = rig.client_of("tasks").await;
    let tasks = other.lease(Wait::No, 0).await.unwrap();
    let attempts: Vec<_> = tasks.iter().map(|task| task.token.unwrap().attempt).collect();
    assert_eq!(attempts.len(), 3);
    assert_eq!(attempts.iter().filter(|attempt| **attempt == 2).count(), 1);
}

#[tokio::test]
async fn who_does_not_read_gets_no_more_until_it_does() {
    let rig = Rig::in_memory(&[]);
    let mut master = rig.client_of("tasks").await;
    let mut slow = rig.client_over(1 << 10).await;
    slow.open(TASKS, "tasks").await;
    slow.give(900, 1000).await;
    slow.settle().await;
    let large = Payload::bytes(&[7; 600]).unwrap();
    let poll_without_reading = |slow: &mut Client| {
        let waker = std::task::Waker::noop();
        for _ in 0..8 {
            assert!(slow.server.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
    };
    for _ in 0..10 {
        master.put(Wait::No, std::slice::from_ref(&large)).await;
        poll_without_reading(&mut slow);
    }
    let left = master.qsize().await;
    assert!(left >= 7, "{left} of 10 tasks are left to others");
    let mut all = 0;
    while all < 10 {
        all += slow.pushed(900).await.len();
    }
    assert_eq!(master.qsize().await, 0);
}

#[tokio::test]
async fn a_session_has_one_credit_for_a_queue_whatever_its_handles() {
    const OTHER: u16 = 77;
    let rig = Rig::in_memory(&[]);
    let mut worker = rig.client_of("tasks").await;
    worker.open(OTHER, "tasks").await;
    worker.give(900, 2).await;
    let other = Route { queue: OTHER, id: 901 };
    worker.send(OTHER, |_, out| credit(2, false).push(other, out).unwrap()).await;
    let (code, text) = error(worker.reply_to(901).await);
    assert_eq!(code, Code::Refused);
    assert!(text.contains("900"), "{text}");
    worker.put(Wait::No, &numbers(1)).await;
    assert_eq!(items(worker.pushed(900).await), numbers(1));
    // Once it is over, the other handle may have one.
    worker.end_credit(900).await;
    assert!(matches!(worker.reply_to(900).await, Reply::Done));
    worker.send(OTHER, |_, out| credit(2, false).push(other, out).unwrap()).await;
    worker.put(Wait::No, &[number(2)]).await;
    assert!(matches!(worker.reply_to(901).await, Reply::Tasks { pushed: true, .. }));
}

#[tokio::test]
pub(super) async fn what_is_pushed_while_its_handle_is_closed_goes_back() {
    let rig = Rig::in_memory(&[]);
    let mut worker = rig.client_of("tasks").await;
    worker.give(900, 5).await;
    worker.settle().await;
    // Both come before anything is told of the push.
    let mut out = Outbound::default();
    let mut put = Request::begin_put(Wait::No, false, Route { queue: TASKS, id: 7 }, &mut out);
    put.item(&number(1), None);
    put.finish().unwrap();
    Request::Close.push(Route { queue: TASKS, id: 8 }, &mut out).unwrap();
    worker.send_bytes(out.own()).await;
    worker.settle().await;
    let mut other = rig.client_of("tasks").await;
    let tasks = other.lease(Wait::No, 0).await.unwrap();
    assert_eq!((tasks.len(), tasks[0].token.unwrap().attempt), (1, 1));
}

#[tokio::test]
async fn the_end_of_credit_comes_after_tasks_that_wait_for_the_disk() {
    let disk = Disk::default();
    let mut rig = Rig::on_disk(&disk, QueueOptions::default());
    rig.write();
    let mut worker = rig.client_of("tasks").await;
    worker.send_put(Wait::No, &numbers(2)).await;
    worker.give(900, 5).await;
    worker.end_credit(900).await;
    worker.settle().await;
    rig.write();
    worker.settle().await;
    let mut of_credit = Vec::new();
    while let Some((header, reply)) = worker.received() {
        if header.route.id == 900 {
            of_credit.push(reply);
        }
    }
    let [Reply::Tasks { .. }, Reply::Done] = &of_credit[..] else { panic!("{of_credit:?}") };
}

#[tokio::test]
async fn a_closed_handle_returns_what_was_pushed_and_not_started() {
    let rig = Rig::in_memory(&[]);
    let mut worker = rig.client_of("tasks").await;
    worker.put(Wait::No, &vec![number(1); 600]).await;
    worker.give(900, 600).await;
    let tasks = worker.pushed(900).await;
    assert_eq!(worker.settle_one(&tasks[0], Fate::Start).await, None);
    worker.end_credit(900).await;
    assert!(matches!(worker.reply_to(900).await, Reply::Done));
    assert!(matches!(worker.ask(TASKS, &Request::Close).await, Reply::Done));
    let mut other = rig.client_of("tasks").await;
    let tasks = other.lease(Wait::No, 0).await.unwrap();
    assert_eq!(tasks.len(), 599, "one was started");
    assert!(tasks.iter().all(|task| task.token.unwrap().attempt == 1));
}

#[tokio::test]
async fn credit_has_an_id_of_its_own_and_takes_one_place() {
    let rig = Rig::in_memory(&[]);
    let mut worker = rig.client_of("tasks").await;
    let get = worker.request(TASKS, &Request::Get(leasing(Wait::Forever, 1))).await;
    worker.give(get, 1).await;
    assert_eq!(error(worker.reply_to(get).await).0, Code::IdInUse);
    worker.give(900_000, 1).await;
    for _ in 2..connection::PENDING_MAX {
        worker.request(TASKS, &Request::Get(leasing(Wait::Forever, 1))).await;
    }
    // More of it is not refused, nor is its end.
    worker.give(900_000, 1).await;
    worker.end_credit(900_000).await;
    assert!(matches!(worker.reply_to(900_000).await, Reply::Done));
}
