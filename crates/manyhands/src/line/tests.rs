//! Both drivers against a small server of one queue in this process.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;

use super::*;
use crate::connect::ConnectOptions;
use crate::wire::auth::{self, AuthKey, Handshake, NONCE_LEN};
use crate::wire::frame::{self, Decoder, Frame, Outbound};
use crate::wire::native::{
    self, Bounds, Code, Header, Hello, Properties, QueueDurability, QueueOrder, Request, Route,
    SessionLimits, Welcome, reply,
};
use crate::wire::pickle::{Limits, Payload};
use crate::wire::token::LeaseToken;
use crate::{Client, blocking};

const KEY: &[u8] = b"key";
/// Longer than anything here takes; a test that reaches it has failed.
const LONG: Duration = Duration::from_secs(60);

/// A server of one queue, which it loses with each connection.
#[derive(Debug)]
struct Fake {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    streams: Mutex<Vec<TcpStream>>,
    items: Mutex<VecDeque<Payload>>,
    reads: AtomicUsize,
    /// Where to tell what becomes of pushed tasks.
    told: Mutex<Option<mpsc::Sender<(u64, native::Fate)>>>,
}

impl Fake {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared::default());
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming().map(Result::unwrap) {
                    stream.set_nodelay(true).unwrap();
                    shared.streams.lock().unwrap().push(stream.try_clone().unwrap());
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || Session::begin(stream, shared).map(Session::serve));
                }
            }
        });
        Self { address, shared }
    }

    fn blocking(&self) -> blocking::Client {
        blocking::Client::connect(&self.address, KEY).unwrap()
    }

    /// Ends all connections.
    fn hang_up(&self) {
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

/// The server's side of a connection.
struct Session {
    stream: TcpStream,
    shared: Arc<Shared>,
    inbound: BytesMut,
    getting: VecDeque<Route>,
    /// Where tasks are pushed, and how many more.
    credit: Option<(Route, u32)>,
    tasks: u64,
}

impl Session {
    fn begin(stream: TcpStream, shared: Arc<Shared>) -> Option<Self> {
        let (inbound, getting) = (BytesMut::new(), VecDeque::new());
        let mut session = Self { stream, shared, inbound, getting, credit: None, tasks: 0 };
        let (mut handshake, greeting) = Handshake::server(AuthKey::new(KEY), true, [7; NONCE_LEN]);
        session.say(&greeting)?;
        while let auth::Step::Send(answer) = handshake.receive(&session.message()?).ok()? {
            session.say(&answer)?;
        }
        Hello::decode(&session.message()?).unwrap();
        let limits = SessionLimits {
            frame_max: 1 << 24,
            batch_max: 1000,
            pending_max: 100,
            queues_max: 100,
            credit_max: 100,
        };
        let server = "fake".to_owned();
        let welcome = Welcome { version: 1, is_durable: false, creates: true, limits, server };
        let mut answer = BytesMut::new();
        native::Answer::Welcome(welcome).write(&mut answer);
        session.say(&answer)?;
        Some(session)
    }

    fn say(&mut self, message: &[u8]) -> Option<()> {
        let mut out = BytesMut::new();
        frame::push(message, &mut out);
        self.stream.write_all(&out).ok()
    }

    fn message(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = frame::split(&mut self.inbound, 1000).unwrap() {
                return Some(message);
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> Option<()> {
        let mut room = [0; 64 << 10];
        let len = self.stream.read(&mut room).ok().filter(|len| *len > 0)?;
        self.shared.reads.fetch_add(1, Ordering::Relaxed);
        self.inbound.extend_from_slice(&room[..len]);
        Some(())
    }

    fn serve(mut self) {
        let bounds = Bounds { batch_max: 1000, pickle: Limits::default() };
        let mut decoder: Decoder<Header> = Decoder::new(1 << 24);
        loop {
            let mut out = Outbound::default();
            while let Some((header, frame)) = decoder.next_with_header(&mut self.inbound).unwrap() {
                let Frame::Body(body) = frame else { panic!("too long") };
                let request = Request::decode(&header, body, &bounds).unwrap();
                self.answer(header.route, request, &mut out);
            }
            for part in out.into_parts() {
                if self.stream.write_all(&part).is_err() {
                    return;
                }
            }
            if self.read().is_none() {
                return;
            }
        }
    }

    fn answer(&mut self, route: Route, request: Request, out: &mut Outbound) {
        match request {
            Request::Open { .. } => {
                let properties = Properties {
                    order: QueueOrder::Fifo,
                    durability: QueueDurability::Memory,
                    needs_results: false,
                    is_ordered: false,
                    maxsize: 0,
                    hold: None,
                    delivery_cpython: false,
                    results: None,
                };
                reply::push_opened(&properties, route, out);
            }
            Request::Put(put) => {
                let items = put.items.map(|item| item.unwrap().payload);
                let mut items: Vec<_> = items.collect();
                reply::push_added(items.len().try_into().unwrap(), None, [], route, out);
                self.shared.items.lock().unwrap().extend(items.drain(..));
                self.hand_out(out);
            }
            Request::Get(_) => {
                self.getting.push_back(route);
                self.hand_out(out);
            }
            Request::Credit { credit, ends, .. } => {
                let given = self.credit.map_or(0, |(_, given)| given);
                self.credit = Some((route, given + credit));
                if ends {
                    self.credit = None;
                    reply::push_done(route, out);
                }
                self.hand_out(out);
            }
            Request::Settle { settlements, .. } => {
                for settlement in settlements.map(Result::unwrap) {
                    if let Some(told) = &*self.shared.told.lock().unwrap() {
                        told.send((settlement.token.task, settlement.fate)).ok();
                    }
                }
                reply::push_settled([None], route, out);
            }
            Request::Cancel => {
                let waits = self.getting.iter().position(|it| it.id == route.id);
                if let Some(waits) = waits {
                    self.getting.remove(waits);
                    reply::push_error(Code::Cancelled, "", route, out);
                }
            }
            Request::Size => {
                let len = self.shared.items.lock().unwrap().len() as u64;
                reply::push_size(len, 0, route, out);
            }
            _ => reply::push_done(route, out),
        }
    }

    fn hand_out(&mut self, out: &mut Outbound) {
        let mut items = self.shared.items.lock().unwrap();
        while !items.is_empty() {
            let (route, pushed) = match (self.getting.pop_front(), &mut self.credit) {
                (Some(route), _) => (route, false),
                (None, Some((route, credit))) if *credit > 0 => {
                    *credit -= 1;
                    (*route, true)
                }
                _ => return,
            };
            let Some(item) = items.pop_front() else { return };
            let token = LeaseToken { task: self.tasks, attempt: 1, lease: 0, seal: 0 };
            self.tasks += 1;
            let mut tasks = reply::begin_tasks(pushed, route, out);
            tasks.task(&item, pushed.then_some(&token), None);
            tasks.finish().unwrap();
        }
    }
}

#[test]
fn threads_share_a_connection_without_losing_an_item() {
    const ITEMS: u64 = 3000;
    let fake = Fake::start();
    let client = fake.blocking();
    let tasks = client.queue::<u64>("tasks").unwrap();
    let mut taken: Vec<u64> = thread::scope(|scope| {
        let takers: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| (0..ITEMS / 6).map(|_| tasks.get().unwrap()).collect::<Vec<_>>())
            })
            .collect();
        for item in 0..ITEMS {
            tasks.put(&item).unwrap();
        }
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
    });
    taken.sort_unstable();
    assert_eq!(taken, (0..ITEMS).collect::<Vec<_>>());
    assert_eq!(fake.shared.streams.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_share_a_connection_and_their_requests_a_write() {
    const ITEMS: u64 = 3000;
    let fake = Fake::start();
    let client = Client::connect(&fake.address, KEY).await.unwrap();
    let tasks = client.queue::<u64>("tasks").await.unwrap();
    let mut calls = JoinSet::new();
    for item in 0..ITEMS {
        let tasks = tasks.clone();
        calls.spawn(async move {
            tasks.put(&item).await.unwrap();
            tasks.get().await.unwrap()
        });
    }
    let mut taken = calls.join_all().await;
    taken.sort_unstable();
    assert_eq!(taken, (0..ITEMS).collect::<Vec<_>>());
    let reads = fake.shared.reads.load(Ordering::Relaxed);
    assert!(reads < 3000, "{reads} reads for 6000 requests");
    client.close().await.unwrap();
}

#[test]
fn puts_ahead_share_a_write() {
    let fake = Fake::start();
    let tasks = fake.blocking().queue::<u64>("tasks").unwrap();
    let puts: Vec<_> = (0..20_000).map(|item| tasks.put_ahead(&item).unwrap()).collect();
    puts.into_iter().for_each(|put| put.wait().unwrap());
    assert_eq!(tasks.qsize().unwrap(), 20_000);
    let reads = fake.shared.reads.load(Ordering::Relaxed);
    assert!(reads < 5000, "{reads} reads for 20000 requests");
}

#[tokio::test]
async fn a_call_that_is_dropped_is_cancelled() {
    let fake = Fake::start();
    let client = Client::connect(&fake.address, KEY).await.unwrap();
    let tasks = client.queue::<u64>("tasks").await.unwrap();
    tokio::select! {
        biased;
        item = tasks.get() => panic!("{item:?} out of nothing"),
        () = std::future::ready(()) => {}
    }
    tasks.put(&7).await.unwrap();
    assert_eq!(tasks.get().await.unwrap(), 7, "the first get takes it no more");
}

#[test]
fn a_client_connects_again() {
    let fake = Fake::start();
    let tasks = fake.blocking().queue::<u64>("tasks").unwrap();
    let (entered, enter) = mpsc::channel();
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            entered.send(()).unwrap();
            tasks.get()
        });
        enter.recv_timeout(LONG).unwrap();
        fake.hang_up();
        assert_eq!(tasks.qsize().unwrap(), 0);
        tasks.put(&7).unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), 7, "a get that waited waits on");
    });
}

#[tokio::test]
async fn an_async_client_connects_again() {
    let fake = Fake::start();
    let client = Client::connect(&fake.address, KEY).await.unwrap();
    let tasks = client.queue::<u64>("tasks").await.unwrap();
    let mut waits = JoinSet::new();
    waits.spawn({
        let tasks = tasks.clone();
        async move { tasks.get().await.unwrap() }
    });
    tasks.qsize().await.unwrap();
    fake.hang_up();
    assert_eq!(tasks.qsize().await.unwrap(), 0);
    tasks.put(&7).await.unwrap();
    assert_eq!(waits.join_all().await, [7]);
}

#[test]
fn leases_come_by_themselves_and_go_back_if_they_are_not_started() {
    let fake = Fake::start();
    let (told, back) = mpsc::channel();
    *fake.shared.told.lock().unwrap() = Some(told);
    let tasks = fake.blocking().queue::<u64>("tasks").unwrap();
    tasks.put_many(&(0..100).collect::<Vec<_>>()).unwrap();
    let leases = tasks.leases(8).unwrap().take(50).map(Result::unwrap);
    let taken: Vec<_> = leases
        .map(|lease| {
            let item = *lease;
            lease.ack().unwrap();
            item
        })
        .collect();
    assert_eq!(taken, (0..50).collect::<Vec<_>>());
    // Those that were ahead when the iterator was dropped.
    let returned = |(task, fate)| (fate == native::Fate::Return).then_some(task);
    assert_eq!(back.iter().find_map(returned), Some(50));
}

#[test]
fn a_task_is_started_before_the_program_has_it() {
    let fake = Fake::start();
    let (told, fates) = mpsc::channel();
    *fake.shared.told.lock().unwrap() = Some(told);
    let tasks = fake.blocking().queue::<u64>("tasks").unwrap();
    tasks.put(&7).unwrap();
    let lease = tasks.leases(2).unwrap().next().unwrap().unwrap();
    // The program works on it, and says nothing.
    assert_eq!(fates.recv_timeout(LONG).unwrap(), (0, native::Fate::Start));
    lease.ack().unwrap();
}

#[tokio::test]
async fn a_task_is_started_before_an_async_program_has_it() {
    let fake = Fake::start();
    let (told, fates) = mpsc::channel();
    *fake.shared.told.lock().unwrap() = Some(told);
    let client = Client::connect(&fake.address, KEY).await.unwrap();
    let tasks = client.queue::<u64>("tasks").await.unwrap();
    tasks.put(&7).await.unwrap();
    let lease = tasks.leases(2).unwrap().next().await.unwrap().unwrap();
    // Nobody else has a turn on this thread.
    assert_eq!(fates.recv_timeout(LONG).unwrap(), (0, native::Fate::Start));
    lease.ack().await.unwrap();
}

#[test]
fn who_waits_for_room_is_told_that_the_client_is_closed() {
    let fake = Fake::start();
    let client = fake.blocking();
    let tasks = client.queue::<u64>("tasks").unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| tasks.get());
        let puts: Vec<_> = (0..40).map(|item| tasks.put_ahead(&item).unwrap()).collect();
        waits.join().unwrap().unwrap();
        client.close().unwrap();
        puts.into_iter().for_each(|put| put.wait().unwrap());
    });
    assert!(matches!(tasks.put_ahead(&7).unwrap().wait(), Err(Error::Closed { .. })));
}

#[test]
fn a_client_outlives_its_runtime() {
    let fake = Fake::start();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let client = first.block_on(Client::connect(&fake.address, KEY)).unwrap();
    let tasks = first.block_on(client.queue::<u64>("tasks")).unwrap();
    drop(first);
    second.block_on(tasks.put(&7)).unwrap();
    assert_eq!(second.block_on(tasks.get()).unwrap(), 7);
}

#[test]
fn a_call_that_waits_ends_when_the_program_wants_an_end() {
    fn goes_on() -> bool {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        ASKED.fetch_add(1, Ordering::Relaxed) < 5
    }
    let fake = Fake::start();
    let options = ConnectOptions { goes_on: Some(goes_on), ..ConnectOptions::default() };
    let client = blocking::Client::connect_with(&fake.address, KEY, options).unwrap();
    let tasks = client.queue::<u64>("tasks").unwrap();
    assert!(matches!(tasks.get(), Err(Error::Interrupted)));
}
