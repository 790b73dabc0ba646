//! A whole session that is sent any bytes, beside one that is not: for the fuzzer, and for a test that
//! sends a few.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use manyhands::wire::arguments::Wait;
use manyhands::wire::auth::AuthKey;
use manyhands::wire::frame::{self, Decoder, Frame, Outbound};
use manyhands::wire::native::{
    Fate, Get, Header, Hello, Reply, Request, Route, Settlement, Task, Writer,
};
use manyhands::wire::pickle::{self, Payload};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::connection;
use crate::config::{Limits, Policy};
use crate::engine::Engine;
use crate::error::ConnectionError;
use crate::frontend::alone::Alone;
use crate::frontend::shared::{Idents, REDRIVES_MAX, Shared};
use crate::frontend::turns::Turns;
use crate::queue::{Queue, QueueOptions};
use crate::socket::Wire;

/// The queue that the bytes are about, and one whose name they do not have.
const TASKS: &str = "tasks";
const OTHER: &str = "a queue of somebody else";
/// The handle of either.
const HANDLE: u16 = 1;
/// Largest request, in bytes.
const FRAME_BYTES_MAX: u64 = 1 << 16;
/// Longer than any session takes to end.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A session, and the client's end of its connection.
struct Peer {
    session: Pin<Box<dyn Future<Output = Result<(), ConnectionError>>>>,
    socket: DuplexStream,
    inbound: BytesMut,
    decoder: Decoder<Header>,
    next_id: u32,
}

impl Peer {
    /// A session that has a queue open.
    async fn begin(shared: &Arc<Shared>, queue: &str) -> Self {
        let (socket, end) = tokio::io::duplex(1 << 12);
        let mut hello = BytesMut::new();
        Hello::new(5, "a client".into()).write(&mut hello);
        let shared = shared.clone();
        let session = async move {
            let peer = "127.0.0.1:1".into();
            connection::serve(Wire::new(end), hello.freeze(), &peer, &shared).await
        };
        let (inbound, decoder) = (BytesMut::new(), Decoder::new(u64::MAX));
        let mut peer = Self { session: Box::pin(session), socket, inbound, decoder, next_id: 1 };
        while frame::split(&mut peer.inbound, 1 << 10).expect("it is short").is_none() {
            peer.read().await;
        }
        let opened = peer.ask(|route, out| {
            let open = Request::Open { name: queue.into() };
            open.push(route, out).expect("it is short");
        });
        assert!(matches!(opened.await, Reply::Opened(_)));
        peer
    }

    async fn read(&mut self) {
        let Self { session, socket, inbound, .. } = self;
        tokio::select! {
            biased;
            end = session => panic!("the session ended: {end:?}"),
            read = socket.read_buf(inbound) => assert!(read.is_ok_and(|len| len > 0)),
        }
    }

    async fn ask(&mut self, write: impl FnOnce(Route, &mut Outbound)) -> Reply {
        let mut out = Outbound::default();
        self.next_id += 1;
        write(Route { queue: HANDLE, id: self.next_id }, &mut out);
        let bytes = out.into_parts().collect::<Vec<_>>().concat();
        self.socket.write_all(&bytes).await.expect("it is read");
        loop {
            let next = self.decoder.next_with_header(&mut self.inbound);
            if let Some((header, Frame::Body(body))) = next.expect("the server writes frames") {
                return Reply::decode(&header, body).expect("and replies");
            }
            self.read().await;
        }
    }

    async fn put(&mut self, items: u8) {
        let reply = self.ask(|route, out| {
            let mut put = Request::begin_put(Wait::No, false, route, out);
            (0..items).for_each(|item| put.item(&payload(item), None));
            put.finish().expect("it is short");
        });
        let Reply::Added(added) = reply.await else { panic!("it is a put") };
        assert_eq!(added.count, u32::from(items));
    }

    async fn lease(&mut self) -> Task {
        let get = Get {
            wait: Wait::No,
            leased: true,
            hold: None,
            informed: false,
            max: 1,
            bytes_max: None,
        };
        let reply = self.ask(|route, out| Request::Get(get).push(route, out).expect("it is short"));
        let Reply::Tasks { mut tasks, .. } = reply.await else { panic!("there is a task") };
        tasks.next().expect("there is one").expect("it is whole")
    }

    async fn ack(&mut self, task: &Task) {
        let token = task.token.expect("it is leased");
        let reply = self.ask(|route, out| {
            let mut settle: Writer<'_> = Request::begin_settle(Wait::No, route, out);
            settle.settlement(&Settlement { token, fate: Fate::Ack { result: None } });
            settle.finish().expect("it is short");
        });
        let Reply::Settled(mut codes) = reply.await else { panic!("it is a settlement") };
        assert_eq!(codes.next(), Some(None));
    }

    /// Sends bytes and reads whatever comes, until the session ends.
    async fn send_all(self, bytes: &[u8]) {
        let Self { session, socket, .. } = self;
        let (mut reader, mut writer) = tokio::io::split(socket);
        let write = async {
            // Whoever breaks the protocol is not listened to any more.
            if writer.write_all(bytes).await.is_ok() {
                writer.shutdown().await.ok();
            }
        };
        let read = async {
            let mut scratch = [0; 1 << 10];
            while reader.read(&mut scratch).await.is_ok_and(|len| len > 0) {}
        };
        let all = async { tokio::join!(session, write, read) };
        timeout(TIMEOUT, all).await.expect("the session ends with its client").0.ok();
    }
}

fn payload(item: u8) -> Payload {
    Payload::bytes(&[item]).expect("it is short")
}

fn shared(engine: Engine, limits: Limits) -> Arc<Shared> {
    Arc::new(Shared {
        idents: Idents::default(),
        engine: Arc::new(engine),
        key: AuthKey::new(b"a key of 16 bytes or more"),
        limits,
        pickle_limits: pickle::Limits::default(),
        policy: Policy { accept_md5: true, create_on_use: true, accept_shutdown: false },
        stop: CancellationToken::new(),
        redrives: Semaphore::new(REDRIVES_MAX),
        turns: Turns::default(),
        alone: Alone::default(),
    })
}

/// Sends bytes to a session that has a queue open, with tasks. The session ends when they do; then it
/// has nothing any more, and another one has noticed nothing.
///
/// # Panics
///
/// If that is not so.
pub(crate) fn session(bytes: &[u8]) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().expect("it needs nothing of the system");
    runtime.block_on(async {
        let limits = Limits { frame_bytes_max: FRAME_BYTES_MAX, ..Limits::default() };
        let engine = Engine::new(&limits, true, 7);
        let tasks = QueueOptions::default().maxsize(5).attempts(3);
        for (name, options) in [(TASKS, tasks), (OTHER, QueueOptions::default())] {
            engine.declare(name, options).expect("it is a queue");
        }
        engine.declare_named().expect("so are those");
        let shared = shared(engine, limits);
        let engine = &shared.engine;
        let mut other = Peer::begin(&shared, OTHER).await;
        other.put(2).await;
        let task = other.lease().await;
        let mut peer = Peer::begin(&shared, TASKS).await;
        peer.put(3).await;
        peer.send_all(bytes).await;
        if let Ok(at) = engine.open(TASKS) {
            let leased = engine.look(at, Queue::leased).expect("it was opened");
            assert_eq!(leased, 0, "tasks are with nobody");
        }
        other.ack(&task).await;
        let task = other.lease().await;
        assert_eq!(task.payload, payload(1));
        other.ack(&task).await;
        other.send_all(&[]).await;
        assert_eq!(engine.memory().moving_bytes(), 0, "nothing is on its way");
    });
}
