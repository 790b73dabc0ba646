//! However much one client asks for, or leaves behind, others have their turn in between.

use super::*;
use crate::engine::work::was_bounded;
use crate::labour;

/// Tasks of one call or one hand: many times what is moved at once.
const MANY: usize = 1000;
/// Rounds after which a call is lost.
const ROUNDS_MAX: usize = 10_000;
/// Longer than it takes to find a verdict.
const A_WHILE: Duration = Duration::from_secs(3);

impl Rig {
    /// A client's call and its whole reply, whatever it has to wait for.
    async fn call(
        &mut self,
        talk: &mut Talk,
        method: &str,
        parameters: &[Parameter<'_>],
    ) -> Vec<u8> {
        let mut request = BytesMut::new();
        frame::push(&encode(Some(&talk.ident), method, parameters), &mut request);
        let mut reply = Vec::new();
        for part in request.chunks(PIPE_LEN / 2) {
            talk.client.write_all(part).await.unwrap();
            reply.extend(talk.received().await);
            yield_now().await;
        }
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "{method} is answered");
            if is_whole(&reply) {
                break;
            }
            self.write();
            reply.extend(talk.received().await);
            yield_now().await;
        }
        assert_eq!(count(&reply), 1, "{method}: {:?}", String::from_utf8_lossy(&reply));
        reply
    }

    /// Puts many tasks, as somebody else.
    fn put_many(&mut self) {
        let engine = &self.shared.engine;
        let tasks = engine.open("tasks").unwrap();
        for _ in 0..MANY {
            let item = pickle::Payload::pickle(2, b"K\x07"[..].into());
            drop(engine.put(Caller::IN_PROCESS, tasks, item, None, Wait::No).called.unwrap());
        }
        self.write();
    }

    /// How many tasks are ready, and how many are in somebody's hand.
    fn tasks(&self) -> (usize, usize) {
        let tasks = self.shared.engine.open("tasks").unwrap();
        let look = |queue: &Queue| (queue.len(), queue.leased());
        self.shared.engine.look(tasks, look).unwrap()
    }

    /// The end of a client that has its last reply, and what becomes of its tasks.
    async fn leave(&mut self, mut talk: Talk) {
        talk.client.shutdown().await.unwrap();
        drop(talk.server.await);
        let (engine, classic) = (&self.shared.engine, &self.shared.classic);
        engine.clock().put_forward(A_WHILE);
        while classic.is_due() {
            classic.expire();
        }
    }
}

/// Whether it is a frame with all of its body.
fn is_whole(reply: &[u8]) -> bool {
    let header = reply.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
    header.is_some_and(|length| reply.len() >= 4 + length)
}

#[tokio::test]
async fn no_step_gives_back_more_of_a_hand_than_may_be_given_back_at_once() {
    let options = QueueOptions::default().results("results").backoff(Duration::ZERO);
    let mut rig = rig(&Disk::default(), options);
    let mut talk = rig.talk("MainProcess");
    rig.put_many();
    for _ in 0..MANY {
        rig.call(&mut talk, "get", &[]).await;
    }
    assert_eq!(rig.tasks(), (0, MANY));
    rig.call(&mut talk, "qsize", &[]).await;
    was_bounded("before");
    rig.leave(talk).await;
    assert!(was_bounded("the end of a session with a hand") >= crate::engine::BATCH_AT_ONCE);
    assert_eq!(rig.tasks(), (MANY, 0));
}

#[tokio::test]
async fn a_session_that_sends_ahead_gives_others_their_turn() {
    const AHEAD: usize = 800;
    let rig = rig(&Disk::default(), QueueOptions::default());
    let mut talk = rig.talk("MainProcess");
    for _ in 0..AHEAD {
        talk.ask("qsize").await;
    }
    let (mut turns, mut served) = (0, 0);
    while served < AHEAD {
        let now = count(&talk.received().await);
        assert!(now <= SERVED_AT_ONCE, "{now} requests in one turn");
        // A task may do only so much with a pipe until the runtime has had its turn.
        yield_now().await;
        (turns, served) = (turns + 1, served + now);
    }
    assert!(turns >= AHEAD / SERVED_AT_ONCE);
}

#[tokio::test]
async fn sessions_that_end_together_take_turns() {
    const MANY: usize = 50;
    let rig = rig(&Disk::default(), QueueOptions::default());
    let mut servers: Vec<_> = (0..MANY).map(|_| rig.talk("MainProcess").server).collect();
    // The clients' ends are gone.
    let mut rounds = 0;
    while !servers.is_empty() {
        let before = servers.len();
        poll_fn(|context| {
            servers.retain_mut(|server| server.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        assert!(before - servers.len() <= 2, "{} ended in one round", before - servers.len());
        rounds += 1;
        assert!(rounds < MANY * 10, "they end");
    }
}

/// A text of 300 KiB.
fn large(first: u8) -> pickle::Payload {
    const LEN: u32 = 300 << 10;
    let text = [b"X", &LEN.to_le_bytes()[..], &[first], &vec![b'x'; LEN as usize - 1]].concat();
    pickle::Payload::pickle(2, text.into())
}

#[tokio::test]
async fn no_large_item_is_copied_or_placed_by_the_thread_that_serves() {
    for options in [QueueOptions::default(), QueueOptions::priority()] {
        let options = options.results("results");
        let mut rig = rig_on(&Disk::default(), options, journal::Options::default());
        let mut talk = rig.talk("MainProcess");
        let (second, first) = (large(b'b'), large(b'a'));
        rig.call(&mut talk, "put", &[Parameter::Item(&second)]).await;
        rig.call(&mut talk, "put", &[Parameter::Item(&first)]).await;
        assert_eq!(rig.tasks(), (2, 0));
        assert_eq!(labour::take(), 0, "bytes copied or read in the meantime");
        let taken = rig.call(&mut talk, "get", &[]).await;
        assert!(taken.len() > 300 << 10, "it comes back whole");
        assert_eq!(rig.tasks(), (1, 1));
        assert_eq!(labour::take(), 0, "bytes copied or read in the meantime");
    }
}

#[tokio::test]
async fn a_request_that_comes_as_fast_as_it_is_read_gives_others_their_turn() {
    const LEN: usize = 8 << 20;
    let rig = rig(&Disk::default(), QueueOptions::default());
    let mut talk = rig.talk_over(LEN + 4, "MainProcess");
    let mut request = u32::try_from(LEN).unwrap().to_be_bytes().to_vec();
    request.resize(4 + LEN, b'N');
    talk.client.write_all(&request).await.unwrap();
    let (mut before, mut turns) = (0, 0);
    while before < LEN as u64 / 2 {
        assert!(talk.received().await.is_empty(), "it is not whole yet");
        let now = rig.shared.engine.memory().moving_bytes();
        assert!(now <= before + 3 * MOVED_AT_ONCE as u64, "{} at once", now - before);
        (before, turns) = (now, turns + 1);
    }
    assert!(turns > 1);
}
