//! Native sessions over pipes, of a server whose disk does only what it is told to.

mod bad;
mod basics;
mod credit;
mod durable;
mod fuzzed;
mod order;
mod planted;
mod together;
mod turns;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use manyhands::wire::arguments::Wait;
use manyhands::wire::auth::AuthKey;
use manyhands::wire::frame::{Decoder, Frame, Outbound};
use manyhands::wire::native::{Answer, Code, Get, Header, Hello, Reply, Request, Route, Task};
use manyhands::wire::pickle::{self, Payload};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::connection;
use crate::clock::Clock;
use crate::config::{Limits, Policy};
use crate::engine::{Engine, Recovery};
use crate::error::ConnectionError;
use crate::frontend::alone::Alone;
use crate::frontend::shared::{Idents, REDRIVES_MAX, Shared};
use crate::frontend::turns::Turns;
use crate::journal::tests::disk::Disk;
use crate::journal::{self, Desk, Writer};
use crate::queue::QueueOptions;
use crate::socket::{Socket, Wire};

/// More than any reply here, in bytes.
const PIPE_LEN: usize = 1 << 20;
/// The handle of the queue that most tests use.
const TASKS: u16 = 1;

/// A server without its threads.
struct Rig {
    shared: Arc<Shared>,
    /// Of its disk, if it has one.
    writer: Option<Writer>,
}

/// A session, and the client's end of its connection.
struct Client {
    server: Pin<Box<dyn Future<Output = Result<(), ConnectionError>>>>,
    end: Option<Result<(), ConnectionError>>,
    time: Pin<Box<dyn Future<Output = ()>>>,
    socket: DuplexStream,
    inbound: BytesMut,
    decoder: Decoder<Header>,
    next_id: u32,
    /// How often the server has written something.
    writes: Arc<AtomicUsize>,
}

/// The server's end, which counts what it writes.
struct Counted(DuplexStream, Arc<AtomicUsize>);

impl Socket for Counted {}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Rig {
    fn in_memory(declared: &[(&str, QueueOptions)]) -> Self {
        Self::within(declared, Limits::default())
    }

    fn within(declared: &[(&str, QueueOptions)], limits: Limits) -> Self {
        let engine = Engine::new(&limits, true, 7);
        for (name, options) in declared {
            engine.declare(name, options.clone()).unwrap();
        }
        engine.declare_named().unwrap();
        Self { shared: shared(engine, limits), writer: None }
    }

    fn on_disk(disk: &Disk, options: QueueOptions) -> Self {
        let of_journal = journal::Options { segment_bytes: 64 << 10, ..Default::default() };
        Self::on_disk_with(disk, options, of_journal)
    }

    fn on_disk_with(disk: &Disk, options: QueueOptions, of_journal: journal::Options) -> Self {
        let mut recovery = Recovery::default();
        let storage = Arc::new(disk.clone());
        let opened = journal::open(storage, of_journal, 7, &mut |it| recovery.visit(&it));
        let journal::Opened { journal, writer, .. } = opened.unwrap();
        let limits = Limits::default();
        let declared = [("tasks".to_owned(), options)];
        let recovered =
            Engine::recover(&limits, true, Clock::start(), &journal, recovery, &declared);
        Self { shared: shared(recovered.unwrap().0, limits), writer: Some(writer) }
    }

    /// Writes and syncs what the journal has.
    fn write(&mut self) {
        let writer = self.writer.as_mut().unwrap();
        while writer.step().unwrap() {}
        writer.sync().unwrap();
    }

    /// Where sessions find the writer; its disk is a quick one.
    fn share_writer(&mut self) -> Arc<Mutex<Desk>> {
        let journal = self.shared.engine.journal().unwrap();
        journal.share(self.writer.take().unwrap(), Clock::manual(0))
    }

    fn qsize(&self, name: &str) -> usize {
        let at = self.shared.engine.open(name).unwrap();
        self.shared.engine.look(at, |queue| queue.len()).unwrap()
    }

    /// A client whose session has begun.
    async fn client(&self) -> Client {
        self.client_over(PIPE_LEN).await
    }

    async fn client_over(&self, pipe_len: usize) -> Client {
        let mut hello = BytesMut::new();
        Hello::new(5, "a client".into()).write(&mut hello);
        let mut client = self.connect(pipe_len, hello);
        let Answer::Welcome(_) = client.answer().await else { panic!("it is welcome") };
        client
    }

    /// The same with a queue open.
    async fn client_of(&self, name: &str) -> Client {
        let mut client = self.client().await;
        client.open(TASKS, name).await;
        client
    }

    fn connect(&self, pipe_len: usize, hello: BytesMut) -> Client {
        let (socket, server) = tokio::io::duplex(pipe_len);
        let writes = Arc::<AtomicUsize>::default();
        let server = Counted(server, writes.clone());
        let shared = self.shared.clone();
        let engine = shared.engine.clone();
        let session = async move {
            let peer = "127.0.0.1:1".into();
            connection::serve(Wire::new(server), hello.freeze(), &peer, &shared).await
        };
        Client {
            server: Box::pin(session),
            end: None,
            time: Box::pin(async move { engine.keep_time().await }),
            socket,
            inbound: BytesMut::new(),
            decoder: Decoder::new(u64::MAX),
            next_id: 1,
            writes,
        }
    }
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

impl Client {
    /// Goes on with the session, and reads what it has sent; whether anything came.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.end.is_none() {
            if let Poll::Ready(end) = self.server.as_mut().poll(cx) {
                self.end = Some(end);
            }
            assert!(self.time.as_mut().poll(cx).is_pending());
        }
        let before = self.inbound.len();
        loop {
            let mut bytes = [0; 4096];
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.inbound.extend_from_slice(buffer.filled());
                }
                _ => return self.inbound.len() > before,
            }
        }
    }

    async fn answer(&mut self) -> Answer {
        loop {
            if let Some(body) = manyhands::wire::frame::split(&mut self.inbound, 1 << 20).unwrap() {
                return Answer::decode(&body).unwrap();
            }
            self.more().await;
        }
    }

    /// Waits until something comes, or the session ends.
    async fn more(&mut self) {
        poll_fn(|cx| {
            let came = self.poll(cx) || self.end.is_some();
            if came { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Lets the session do all that it can at once.
    async fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 8 {
            let came = poll_fn(|cx| Poll::Ready(self.poll(cx))).await;
            quiet = if came { 0 } else { quiet + 1 };
            tokio::task::yield_now().await;
        }
    }

    /// The frame that came next, if it has come.
    fn received(&mut self) -> Option<(Header, Reply)> {
        let (header, frame) = self.decoder.next_with_header(&mut self.inbound).unwrap()?;
        let Frame::Body(body) = frame else { panic!("no reply is too long") };
        Some((header, Reply::decode(&header, body).unwrap()))
    }

    async fn reply(&mut self) -> (u32, Reply) {
        loop {
            if let Some((header, reply)) = self.received() {
                return (header.route.id, reply);
            }
            assert!(self.end.is_none(), "the session ended: {:?}", self.end);
            self.more().await;
        }
    }

    async fn send_bytes(&mut self, bytes: &[u8]) {
        // More than the pipe holds goes only while the session reads.
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = poll_fn(|cx| {
                self.poll(cx);
                let writing = pin!(self.socket.write(rest));
                writing.poll(cx)
            });
            let sent = sent.await.unwrap();
            rest = &rest[sent..];
        }
    }

    fn route(&mut self, queue: u16) -> Route {
        self.next_id += 1;
        Route { queue, id: self.next_id }
    }

    /// Sends what `write` writes as a request; says its id.
    async fn send(&mut self, queue: u16, write: impl FnOnce(Route, &mut Outbound)) -> u32 {
        let route = self.route(queue);
        let mut out = Outbound::default();
        write(route, &mut out);
        let bytes: Vec<_> = out.into_parts().collect();
        self.send_bytes(&bytes.concat()).await;
        route.id
    }

    async fn request(&mut self, queue: u16, request: &Request) -> u32 {
        self.send(queue, |route, out| request.push(route, out).unwrap()).await
    }

    /// Asks, and waits for the reply, which must be the next one.
    async fn ask(&mut self, queue: u16, request: &Request) -> Reply {
        let id = self.request(queue, request).await;
        self.reply_to(id).await
    }

    async fn reply_to(&mut self, id: u32) -> Reply {
        let (of, reply) = self.reply().await;
        assert_eq!(of, id, "{reply:?}");
        reply
    }

    async fn open(&mut self, queue: u16, name: &str) {
        let opened = self.ask(queue, &Request::Open { name: name.into() }).await;
        assert!(matches!(opened, Reply::Opened(_)), "{opened:?}");
    }

    async fn send_put(&mut self, wait: Wait, items: &[Payload]) -> u32 {
        self.send(TASKS, |route, out| {
            let mut put = Request::begin_put(wait, false, route, out);
            items.iter().for_each(|item| put.item(item, None));
            put.finish().unwrap();
        })
        .await
    }

    /// Puts items; says how many were added, and why the next one was not.
    async fn put(&mut self, wait: Wait, items: &[Payload]) -> (u32, Option<Code>) {
        let id = self.send_put(wait, items).await;
        added(self.reply_to(id).await)
    }

    async fn lease(&mut self, wait: Wait, max: u32) -> Result<Vec<Task>, Code> {
        let id = self.request(TASKS, &Request::Get(leasing(wait, max))).await;
        tasks(self.reply_to(id).await)
    }

    async fn take(&mut self, wait: Wait, max: u32) -> Result<Vec<Task>, Code> {
        let get = Get { leased: false, ..leasing(wait, max) };
        let id = self.request(TASKS, &Request::Get(get)).await;
        tasks(self.reply_to(id).await)
    }

    async fn qsize(&mut self) -> u64 {
        match self.ask(TASKS, &Request::Size).await {
            Reply::Size { qsize, .. } => qsize,
            reply => panic!("{reply:?}"),
        }
    }

    /// Closes the connection, and waits for the end of the session.
    async fn leave(mut self) -> Result<(), ConnectionError> {
        self.socket.shutdown().await.unwrap();
        poll_fn(|cx| {
            self.poll(cx);
            if self.end.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.end.unwrap()
    }
}

fn leasing(wait: Wait, max: u32) -> Get {
    Get { wait, leased: true, hold: None, informed: false, max, bytes_max: None }
}

fn number(number: u8) -> Payload {
    Payload::bytes(&[number]).unwrap()
}

fn numbers(count: u8) -> Vec<Payload> {
    (0..count).map(number).collect()
}

fn added(reply: Reply) -> (u32, Option<Code>) {
    match reply {
        Reply::Added(added) => (added.count, added.refusal.map(|(code, _)| code)),
        reply => panic!("{reply:?}"),
    }
}

fn tasks(reply: Reply) -> Result<Vec<Task>, Code> {
    match reply {
        Reply::Tasks { tasks, .. } => Ok(tasks.collect::<Result<_, _>>().unwrap()),
        Reply::Error { code, .. } => Err(code),
        reply => panic!("{reply:?}"),
    }
}

fn error(reply: Reply) -> (Code, String) {
    match reply {
        Reply::Error { code, text } => (code, text),
        reply => panic!("{reply:?}"),
    }
}

fn payloads(tasks: Result<Vec<Task>, Code>) -> Vec<Payload> {
    tasks.unwrap().into_iter().map(|task| task.payload).collect()
}
