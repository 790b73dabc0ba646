//! However much one client asks for, or leaves behind, others have their turn in between.

use super::*;
use manyhands::wire::native::{Fate, Settlement};

use crate::engine::BATCH_AT_ONCE;
use crate::engine::work::was_bounded;
use crate::labour;
use crate::queue::Queue;

/// Tasks of one request or one session: many times what is moved at once.
const MANY: u32 = 1000;

impl Rig {
    /// How many tasks are ready, and how many somebody has.
    fn tasks(&self) -> (usize, usize) {
        let engine = &self.shared.engine;
        let look = |queue: &Queue| (queue.len(), queue.leased());
        engine.look(engine.open("tasks").unwrap(), look).unwrap()
    }
}

/// The reply to a request, whatever has to be written before.
async fn reply_to(rig: &mut Rig, client: &mut Client, id: u32) -> Reply {
    loop {
        client.settle().await;
        if let Some((header, reply)) = client.received() {
            assert_eq!(header.route.id, id);
            return reply;
        }
        rig.write();
    }
}

async fn put_many(rig: &mut Rig, client: &mut Client) {
    let put = client.send_put(Wait::No, &vec![number(7); MANY as usize]).await;
    assert_eq!(added(reply_to(rig, client, put).await), (MANY, None));
}

async fn get_many(rig: &mut Rig, client: &mut Client, leased: bool) -> Vec<Task> {
    let get = Get { leased, ..leasing(Wait::No, MANY) };
    let get = client.request(TASKS, &Request::Get(get)).await;
    let tasks = tasks(reply_to(rig, client, get).await).unwrap();
    assert_eq!(tasks.len(), MANY as usize);
    tasks
}

#[tokio::test]
async fn no_step_moves_more_of_a_batch_or_a_session_than_may_be_moved_at_once() {
    let mut rig = Rig::on_disk(&Disk::default(), QueueOptions::default());
    rig.write();
    let mut client = rig.client_of("tasks").await;
    let largest = |what: &str| assert!(was_bounded(what) >= BATCH_AT_ONCE, "{what} is in parts");
    put_many(&mut rig, &mut client).await;
    largest("a put");
    get_many(&mut rig, &mut client, false).await;
    largest("a get for good");
    assert_eq!(rig.tasks(), (0, 0));
    put_many(&mut rig, &mut client).await;
    get_many(&mut rig, &mut client, true).await;
    largest("a get");
    assert_eq!(rig.tasks(), (0, MANY as usize));
    client.leave().await.unwrap();
    largest("the end of a session with leases");
    assert_eq!(rig.tasks().1, 0);
}

#[tokio::test]
async fn a_session_that_sends_ahead_gives_others_their_turn() {
    const AHEAD: usize = 800;
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    let mut out = Outbound::default();
    for _ in 0..AHEAD {
        let route = client.route(TASKS);
        let mut put = Request::begin_put(Wait::No, false, route, &mut out);
        put.item(&number(7), None);
        put.finish().unwrap();
    }
    let bytes: Vec<_> = out.into_parts().collect();
    client.socket.write_all(&bytes.concat()).await.unwrap();
    let (mut turns, mut served) = (0, 0);
    while served < AHEAD {
        poll_fn(|cx| Poll::Ready(client.poll(cx))).await;
        let now = rig.tasks().0;
        assert!(now - served <= 64, "{} requests in one turn", now - served);
        (turns, served) = (turns + 1, now);
    }
    assert!(turns >= AHEAD / 64);
}

/// 300 KiB.
fn large(first: u8) -> Payload {
    let mut bytes = vec![b'x'; 300 << 10];
    bytes[0] = first;
    Payload::bytes(&bytes).unwrap()
}

#[tokio::test]
async fn no_large_item_is_copied_or_placed_by_the_thread_that_serves() {
    for options in [QueueOptions::default(), QueueOptions::priority()] {
        let rig = Rig::in_memory(&[("tasks", options.results("results"))]);
        let mut client = rig.client_of("tasks").await;
        let (second, first) = (large(b'b'), large(b'a'));
        assert_eq!(client.put(Wait::No, std::slice::from_ref(&second)).await, (1, None));
        let batch = [number(b'c'), first.clone(), second];
        assert_eq!(client.put(Wait::No, &batch).await, (3, None));
        assert_eq!(labour::take(), 0, "bytes copied or read in the meantime");
        let leased = client.lease(Wait::No, 1).await.unwrap().remove(0);
        assert_eq!(leased.payload.bytes.len(), first.bytes.len(), "it comes back whole");
        let fate = Fate::Ack { result: Some(first) };
        let settlement = Settlement { token: leased.token.unwrap(), fate };
        let id = client
            .send(TASKS, |route, out| {
                let mut settle = Request::begin_settle(Wait::No, route, out);
                settle.settlement(&settlement);
                settle.finish().unwrap();
            })
            .await;
        let Reply::Settled(mut codes) = client.reply_to(id).await else { panic!("no reply") };
        assert_eq!(codes.next(), Some(None));
        assert_eq!(rig.tasks(), (3, 0));
        assert_eq!(labour::take(), 0, "bytes copied or read in the meantime");
    }
}
