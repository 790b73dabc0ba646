//! What a client is told, and when, by a server whose disk does only what it is told to.

mod work;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use manyhands::wire::arguments::Wait;
use manyhands::wire::auth::AuthKey;
use manyhands::wire::frame;
use manyhands::wire::pickle;
use manyhands::wire::request::{Parameter, encode};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::Clock;
use crate::config::{Limits, Policy};
use crate::engine::{Batch, Caller, Engine, Recovery, Shown, Taking};
use crate::frontend::alone::Alone;
use crate::frontend::classic::verbs::Classic;
use crate::frontend::shared::{self, REDRIVES_MAX};
use crate::frontend::turns::Turns;
use crate::journal::tests::disk::Disk;
use crate::journal::{self, Writer};
use crate::queue::{Queue, QueueOptions, SettledBy};

/// More than any reply here, in bytes.
const PIPE_LEN: usize = 64 << 10;

/// A server on a disk, without its threads.
struct Rig {
    shared: Arc<Shared>,
    writer: Option<Writer>,
}

/// A session, and the client's end of its connection.
struct Talk {
    server: Pin<Box<dyn Future<Output = Result<(), ConnectionError>>>>,
    client: DuplexStream,
    ident: String,
}

fn rig(disk: &Disk, options: QueueOptions) -> Rig {
    rig_on(disk, options, journal::Options { segment_bytes: 64 << 10, ..Default::default() })
}

fn rig_on(disk: &Disk, options: QueueOptions, of_journal: journal::Options) -> Rig {
    let mut recovery = Recovery::default();
    let storage = Arc::new(disk.clone());
    let opened = journal::open(storage, of_journal, 7, &mut |it| recovery.visit(&it));
    let journal::Opened { journal, writer, .. } = opened.unwrap();
    let declared = [("tasks".to_owned(), options)];
    let limits = Limits::default();
    let recovered = Engine::recover(&limits, true, Clock::manual(0), &journal, recovery, &declared);
    let engine = Arc::new(recovered.unwrap().0);
    let classic = Classic::new(engine.clone(), &limits);
    let all = shared::Shared {
        idents: classic.idents.clone(),
        engine,
        key: AuthKey::new(b"a key of 16 bytes or more"),
        limits,
        pickle_limits: pickle::Limits::default(),
        policy: Policy { accept_md5: true, create_on_use: true, accept_shutdown: false },
        stop: CancellationToken::new(),
        redrives: Semaphore::new(REDRIVES_MAX),
        turns: Turns::default(),
        alone: Alone::default(),
    };
    let shared = Shared { all: Arc::new(all), classic, reception: None };
    Rig { shared: Arc::new(shared), writer: Some(writer) }
}

impl Rig {
    fn talk(&self, name: &str) -> Talk {
        self.talk_over(PIPE_LEN, name)
    }

    /// The same over a connection on which so many bytes may be under way.
    fn talk_over(&self, pipe_len: usize, name: &str) -> Talk {
        let (client, socket) = tokio::io::duplex(pipe_len);
        let (shared, name) = (self.shared.clone(), name.to_owned());
        let ident = shared.classic.refer_to("tasks").unwrap();
        let server = async move {
            let peer = "127.0.0.1:1".into();
            let mut wire = Wire::new(socket);
            Session::new(&mut wire, &shared, name, &peer).run().await
        };
        Talk { server: Box::pin(server), client, ident }
    }

    /// Puts a task for which `task_done` was called already.
    fn put_done(&mut self, item: pickle::Payload) {
        let engine = &self.shared.engine;
        let tasks = engine.open("tasks").unwrap();
        drop(engine.put(Caller::IN_PROCESS, tasks, item, None, Wait::No).called.unwrap());
        drop(engine.task_done(tasks).called.unwrap());
        self.write();
    }

    fn write(&mut self) {
        let writer = self.writer.as_mut().unwrap();
        while writer.step().unwrap() {}
        writer.sync().unwrap();
    }
}

impl Talk {
    async fn ask(&mut self, method: &str) {
        let mut request = BytesMut::new();
        frame::push(&encode(Some(&self.ident), method, &[]), &mut request);
        self.client.write_all(&request).await.unwrap();
    }

    /// What the client has received, after the server has done all that it can.
    async fn received(&mut self) -> Vec<u8> {
        poll_fn(|context| {
            assert!(self.server.as_mut().poll(context).is_pending(), "the session goes on");
            Poll::Ready(self.read(context))
        })
        .await
    }

    /// The same, once that is something.
    async fn receive(&mut self) -> Vec<u8> {
        poll_fn(|context| {
            assert!(self.server.as_mut().poll(context).is_pending(), "the session goes on");
            let received = self.read(context);
            if received.is_empty() { Poll::Pending } else { Poll::Ready(received) }
        })
        .await
    }

    fn read(&mut self, context: &mut Context<'_>) -> Vec<u8> {
        let mut bytes = vec![0; PIPE_LEN];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = Pin::new(&mut self.client).poll_read(context, &mut buffer);
        assert!(!matches!(read, Poll::Ready(Err(_))), "{read:?}");
        buffer.filled().to_vec()
    }
}

#[tokio::test]
async fn a_task_done_too_often_is_refused_once_the_task_that_it_settled_is_durably_gone() {
    let mut rig = rig(&Disk::default(), QueueOptions::default());
    rig.put_done(pickle::Payload::pickle(2, b"K\x07"[..].into()));
    let mut talk = rig.talk("MainProcess");
    talk.ask("get").await;
    assert!(!talk.received().await.is_empty());
    talk.ask("task_done").await;
    let early = talk.received().await;
    assert!(early.is_empty(), "it is told before its task is durably gone: {early:?}");
    rig.write();
    let reply = talk.received().await;
    let why = b"task_done() called too many times";
    assert!(memmem::find(&reply, why).is_some(), "{reply:?}");
}

#[tokio::test]
async fn a_slow_disk_keeps_only_those_waiting_who_want_something_from_it() {
    let disk = Disk::default();
    let item = pickle::Payload::pickle(2, b"K\x07."[..].into());
    rig(&disk, QueueOptions::default()).put_done(item);
    // After a restart all items are on the disk.
    let mut rig = rig(&disk, QueueOptions::default());
    rig.write();
    let (mut reader, mut other) = (rig.talk("MainProcess"), rig.talk("MainProcess"));
    disk.be_slow(async {
        reader.ask("get").await;
        assert!(reader.received().await.is_empty(), "it has what was not read");
        other.ask("qsize").await;
        assert!(!other.received().await.is_empty(), "it keeps another one waiting");
    })
    .await;
    rig.write();
    let reply = reader.receive().await;
    assert!(memmem::find(&reply, b"K\x07").is_some(), "{reply:?}");
}

/// Replies among what was received.
fn count(received: &[u8]) -> usize {
    memmem::find_iter(received, b"#RETURN").count()
}

#[tokio::test]
async fn a_session_that_is_alone_need_not_wait_for_the_writer() {
    let mut rig = rig(&Disk::default(), QueueOptions::default());
    let engine = rig.shared.engine.clone();
    let tasks = engine.open("tasks").unwrap();
    for _ in 0..8 {
        let item = pickle::Payload::pickle(2, b"K\x07"[..].into());
        drop(engine.put(Caller::IN_PROCESS, tasks, item, None, Wait::No).called.unwrap());
    }
    rig.write();
    let mut talk = rig.talk("MainProcess");
    let writer = rig.writer.take().unwrap();
    let desk = engine.journal().unwrap().share(writer, Clock::manual(0));
    for _ in 0..7 {
        talk.ask("task_done").await;
        assert!(talk.received().await.is_empty(), "it is not known yet whether others come");
        desk.lock().unwrap().step().unwrap();
        assert_eq!(count(&talk.receive().await), 1);
    }
    talk.ask("task_done").await;
    assert_eq!(count(&talk.receive().await), 1);
}

#[tokio::test]
async fn answers_are_not_shifted_when_one_is_given_up_before_it_is_durable() {
    let mut rig = rig(&Disk::default(), QueueOptions::default());
    let tasks = rig.shared.engine.open("tasks").unwrap();
    let item = pickle::Payload::pickle(2, b"K\x07"[..].into());
    drop(rig.shared.engine.put(Caller::IN_PROCESS, tasks, item, None, Wait::No).called.unwrap());
    rig.write();
    let mut talk = rig.talk("MainProcess");
    talk.ask("task_done").await;
    assert!(talk.received().await.is_empty(), "it is not durable yet");
    // Ctrl-C; the client goes on with another call.
    talk.ask("qsize").await;
    rig.write();
    let reply = talk.receive().await;
    assert!(memmem::find(&reply, b"#RETURNK\x01").is_some(), "{reply:?}");
    assert!(talk.received().await.is_empty(), "one call, one reply");
}

#[tokio::test]
async fn a_task_is_in_no_other_answer_when_its_get_was_given_up_while_it_was_read() {
    let disk = Disk::default();
    let item = pickle::Payload::pickle(2, b"K\x07"[..].into());
    rig(&disk, QueueOptions::default()).put_done(item);
    let mut rig = rig(&disk, QueueOptions::default());
    rig.write();
    let mut talk = rig.talk("MainProcess");
    disk.be_slow(async {
        talk.ask("get").await;
        assert!(talk.received().await.is_empty());
        talk.ask("qsize").await;
    })
    .await;
    rig.write();
    let reply = talk.receive().await;
    assert!(memmem::find(&reply, b"#RETURNK\x01").is_some(), "it is back: {reply:?}");
}

#[tokio::test]
async fn a_task_is_back_at_once_whose_taker_has_hung_up_before_it_is_waited_for() {
    let disk = Disk::default();
    let item = pickle::Payload::pickle(2, b"K\x07"[..].into());
    rig(&disk, QueueOptions::default()).put_done(item);
    let mut rig = rig(&disk, QueueOptions::default());
    rig.write();
    let mut talk = rig.talk("MainProcess");
    disk.be_slow(async {
        talk.ask("get").await;
        talk.client.shutdown().await.unwrap();
        assert!(matches!(talk.server.as_mut().await, Err(ConnectionError::Cut(_))));
    })
    .await;
    let engine = &rig.shared.engine;
    let tasks = engine.open("tasks").unwrap();
    let look = |queue: &Queue| (queue.len(), queue.leased());
    assert_eq!(engine.look(tasks, look).unwrap(), (1, 0), "it is back");
    let taking = Taking {
        protocol_max: 5,
        settled_by: SettledBy::Token,
        is_informed: false,
        max: 1,
        bytes_max: usize::MAX,
    };
    let (caller, mut batch) = (Caller::IN_PROCESS, Batch::default());
    engine.get_many(caller, tasks, taking, Wait::No, &Shown::default(), &mut batch).called.unwrap();
    assert_eq!(batch.grants[0].token.attempt, 1, "no attempt is used up");
}

/// What is told of a task that its taker lost to somebody else while it was read, with those behind
/// it still there.
fn told_of_a_task_that_is_gone(method: &str, tasks: &[&'static [u8]]) -> Vec<u8> {
    const MAX_RUN: Duration = Duration::from_secs(1);
    let options = || QueueOptions::default().backoff(Duration::ZERO).max_run(MAX_RUN);
    let disk = Disk::default();
    let mut before = rig(&disk, options());
    for task in tasks {
        before.put_done(pickle::Payload::pickle(2, (*task).into()));
    }
    drop(before);
    let mut rig = rig(&disk, options());
    rig.write();
    let engine = rig.shared.engine.clone();
    let at = engine.open("tasks").unwrap();
    // The only thread that could read is busy until the task is gone.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (free, busy) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || busy.recv());
        let mut talk = rig.talk("MainProcess");
        disk.be_slow(async {
            talk.ask(method).await;
            assert!(talk.received().await.is_empty(), "it has what was not read");
            engine.clock().put_forward(MAX_RUN);
            engine.expire();
            let taking = Taking {
                protocol_max: 5,
                settled_by: SettledBy::Token,
                is_informed: false,
                max: 1,
                bytes_max: usize::MAX,
            };
            let (caller, mut batch) = (Caller::IN_PROCESS, Batch::default());
            engine
                .get_many(caller, at, taking, Wait::No, &Shown::default(), &mut batch)
                .called
                .unwrap();
            let token = engine.signer(at).unwrap().sign(batch.grants[0].token);
            assert_eq!(token.task, 0);
            engine.ack(caller, at, token, None, Wait::No).called.unwrap();
            rig.write();
        })
        .await;
        drop(free);
        loop {
            let reply = talk.received().await;
            if !reply.is_empty() {
                return reply;
            }
            rig.write();
            yield_now().await;
        }
    })
}

#[test]
fn who_takes_a_task_that_is_gone_before_it_was_read_gets_the_next_one() {
    for method in ["get", "get_nowait"] {
        let reply = told_of_a_task_that_is_gone(method, &[b"K\x07", b"K\x08"]);
        assert!(memmem::find(&reply, b"K\x08").is_some(), "{method}: {reply:?}");
    }
}

#[test]
fn who_takes_a_task_that_is_gone_before_it_was_read_finds_an_empty_queue_behind_it() {
    let reply = told_of_a_task_that_is_gone("get_nowait", &[b"K\x07"]);
    assert!(memmem::find(&reply, b"Empty").is_some(), "{reply:?}");
}
