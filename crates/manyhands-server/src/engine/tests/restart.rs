//! What is there again after the server ended, however it did, and what a reply waits for.
//!
//! The disk is the simulated one of the journal's tests, and nothing happens unless it is told to.

use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

use manyhands::wire::token::LeaseToken;

use super::*;
use crate::journal::tests::beside::Beside;
use crate::journal::tests::disk::Disk;
use crate::journal::tests::random::Random;
use crate::journal::{self, Opened as Journaled, Upkeep, Writer};
use crate::queue::{Ack, Durability, Hold, Order, Retry, SETTLED_LEN_MAX};

/// A server on a disk, without its threads.
pub(super) struct World {
    pub(super) rig: Rig,
    writer: Writer,
    upkeep: Upkeep,
    restored: Restored,
}

/// 2026 in milliseconds of Unix time.
const NOW: u64 = 1_770_000_000_000;

fn options() -> journal::Options {
    journal::Options {
        segment_bytes: 64 << 10,
        frame_bytes_max: 8 << 10,
        spares_max: 3,
        checkpoint_bytes_min: 0,
        ..journal::Options::default()
    }
}

fn begin(disk: &Disk, unix_millis: u64, declared: &[(&str, QueueOptions)]) -> World {
    let mut recovery = Recovery::default();
    let storage = Arc::new(disk.clone());
    let opened = journal::open(storage, options(), 7, &mut |entry| recovery.visit(&entry));
    let Journaled { journal, writer, upkeep, .. } = opened.unwrap();
    let declared: Vec<_> =
        declared.iter().map(|(name, options)| ((*name).to_owned(), options.clone())).collect();
    let clock = Clock::manual(unix_millis);
    let recovered = Engine::recover(&Limits::default(), true, clock, &journal, recovery, &declared);
    let (engine, restored) = recovered.unwrap();
    World { rig: Rig { engine: Arc::new(engine) }, writer, upkeep, restored }
}

pub(super) fn tasks(options: QueueOptions) -> (Disk, World) {
    let disk = Disk::default();
    let world = begin(&disk, NOW, &[("tasks", options)]);
    (disk, world)
}

impl World {
    pub(super) fn sync(&mut self) {
        // It fails when the disk is full.
        while self.upkeep.step().unwrap_or(false) {}
        while self.writer.step().unwrap() {}
        self.writer.sync().unwrap();
    }

    /// The process is killed; what was written is there.
    fn kill(mut self, disk: &Disk) -> Self {
        self.sync();
        let options = self.declared();
        self.kill_with(disk, NOW, &options)
    }

    /// A checkpoint; whenever it touches the disk all bodies can be read, and then the journal goes on.
    fn checkpoint(&mut self) {
        self.sync();
        let engine = self.rig.engine.clone();
        let mut checkpoint = Beside::new(move || engine.checkpoint(&AtomicBool::new(false)));
        let done = loop {
            if let Some(done) = checkpoint.step() {
                break done;
            }
            self.read_all();
            self.sync();
        };
        done.unwrap();
    }

    fn read_all(&self) {
        let state = self.rig.engine.lock();
        let bodies = state.log.as_ref().unwrap().journal.bodies();
        for books in state.queues.values().filter_map(|hosted| hosted.books.as_ref()) {
            for (task, stored) in books.ledger.from(TaskId(0)) {
                bodies.read(stored.location).unwrap_or_else(|error| panic!("{task:?}: {error}"));
            }
        }
    }

    fn declared(&self) -> Vec<(&'static str, QueueOptions)> {
        vec![("tasks", self.rig.look("tasks", |queue| queue.options().clone()))]
    }

    fn kill_with(self, disk: &Disk, now: u64, declared: &[(&str, QueueOptions)]) -> Self {
        drop(self);
        disk.restart();
        begin(disk, now, declared)
    }

    /// What comes of a call that gives out no task.
    fn call(&mut self, ticket: Ticket) -> Outcome {
        self.call_of(Caller::IN_PROCESS, Reference { queue: 0, serial: 0 }, ticket)
    }

    fn call_of(&mut self, caller: Caller, at: Reference, ticket: Ticket) -> Outcome {
        let is_ready = match &ticket.called {
            Ok(Called::Now(Outcome::Task(grant))) => !Queue::is_away(&grant.payload),
            called => matches!(called, Ok(Called::Now(_))),
        };
        if !is_ready || !ticket.promise.is_nothing() {
            self.sync();
        }
        match look(&mut redeem(&self.rig.engine, caller, at, ticket)) {
            Poll::Ready(outcome) => outcome.expect("the journal goes on"),
            Poll::Pending => panic!("it waits for more than the disk"),
        }
    }

    fn put_with(&mut self, queue: &str, number: u8, terms: Terms) -> Outcome {
        let reference = self.rig.engine.open(queue).unwrap();
        let terms = (terms != Terms::default()).then(|| Box::new(terms));
        let put = self.rig.engine.put(Caller::IN_PROCESS, reference, item(number), terms, Wait::No);
        self.call(put)
    }

    fn put(&mut self, queue: &str, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            assert!(matches!(self.put_with(queue, number, Terms::default()), Outcome::Accepted(_)));
        }
    }

    fn get(&mut self, client: &Client) -> u8 {
        let tasks = client.tasks.reference;
        let got = self.rig.engine.get(client.presence.caller(), tasks, 5, Wait::No);
        match self.call_of(client.presence.caller(), tasks, got) {
            Outcome::Task(grant) => number(&grant),
            other => panic!("{other:?} instead of a task"),
        }
    }

    fn take(&mut self, queue: &str) -> Option<Grant> {
        let reference = self.rig.engine.open(queue).unwrap();
        let got = self.rig.engine.get(Caller::IN_PROCESS, reference, 5, Wait::No);
        match self.call_of(Caller::IN_PROCESS, reference, got) {
            Outcome::Task(grant) => Some(grant),
            _ => None,
        }
    }

    /// Takes all that is ready, with the number of the attempt.
    fn drain(&mut self, queue: &str) -> Vec<(u8, u32)> {
        std::iter::from_fn(|| self.take(queue))
            .map(|grant| (number(&grant), grant.token.attempt))
            .collect()
    }

    fn lease(&mut self, queue: &str, hold: Duration) -> Grant {
        let reference = self.rig.engine.open(queue).unwrap();
        let taker = Taker { reader: 5, hold: Hold::For(hold) };
        let presence = self.rig.engine.enter("leaser", &"127.0.0.1:1".into());
        let caller = presence.caller();
        let called = {
            let engine = &self.rig.engine;
            let mut state = engine.enter_call(caller, reference);
            let session = caller.session;
            let called = engine.take(&mut state, session, reference, taker, Wait::No, true);
            engine.commit(&mut state);
            called
        };
        self.sync();
        let ticket = Ticket { called, promise: Promise::NOTHING };
        let Outcome::Task(grant) = self.call_of(caller, reference, ticket) else {
            panic!("no task")
        };
        // It is killed with the server.
        std::mem::forget(presence);
        grant
    }

    fn ack(&mut self, queue: &str, token: Token) -> Ack {
        let id = self.rig.engine.open(queue).unwrap().queue;
        let mut state = self.rig.engine.lock();
        let ack = state.on(id, |queue, step| queue.ack(token, step)).unwrap();
        self.rig.engine.commit(&mut state);
        drop(state);
        self.sync();
        ack
    }
}

/// What comes of a call once it was its turn, all is durable, and its task was read.
pub(super) type Redeemed = Pin<Box<dyn Future<Output = Option<Outcome>>>>;

pub(super) fn redeem(
    engine: &Arc<Engine>,
    caller: Caller,
    at: Reference,
    ticket: Ticket,
) -> Redeemed {
    let engine = engine.clone();
    Box::pin(async move { engine.redeem(caller, at, ticket).await.unwrap() })
}

pub(super) fn look(redeemed: &mut Redeemed) -> Poll<Option<Outcome>> {
    redeemed.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn is_in_line(ticket: &Ticket) -> bool {
    matches!(ticket.called, Ok(Called::Later(_)))
}

fn after(seconds: u64) -> u64 {
    NOW + seconds * 1000
}

// ---- what a reply waits for

#[test]
fn a_put_is_answered_when_it_is_durable_and_not_before() {
    let (_disk, mut world) = tasks(at_once());
    world.sync();
    let reference = world.rig.engine.open("tasks").unwrap();
    let put = world.rig.engine.put(Caller::IN_PROCESS, reference, item(1), None, Wait::No);
    assert!(matches!(put.called, Ok(Called::Now(Outcome::Accepted(_)))), "it is decided: {put:?}");
    let mut waiter = redeem(&world.rig.engine, Caller::IN_PROCESS, reference, put);
    assert!(look(&mut waiter).is_pending());
    while world.writer.step().unwrap() {}
    assert!(matches!(look(&mut waiter), Poll::Ready(Some(Outcome::Accepted(_)))));
}

#[test]
fn what_the_system_has_is_enough_for_a_queue_of_durability_os() {
    let (disk, mut world) = tasks(at_once().durability(Durability::Os));
    world.sync();
    let reference = world.rig.engine.open("tasks").unwrap();
    let put = world.rig.engine.put(Caller::IN_PROCESS, reference, item(1), None, Wait::No);
    let mut waiter = redeem(&world.rig.engine, Caller::IN_PROCESS, reference, put);
    assert!(look(&mut waiter).is_pending());
    while world.writer.step().unwrap() {}
    assert!(world.writer.is_dirty(), "nobody asked for a sync");
    assert!(matches!(look(&mut waiter), Poll::Ready(Some(Outcome::Accepted(_)))));
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("tasks"), [(1, 1)]);
}

#[test]
fn a_queue_in_memory_waits_for_nothing_and_writes_nothing() {
    let (disk, mut world) = tasks(at_once().durability(Durability::Memory));
    world.sync();
    let calls = disk.calls();
    let reference = world.rig.engine.open("tasks").unwrap();
    let put = world.rig.engine.put(Caller::IN_PROCESS, reference, item(1), None, Wait::No);
    assert!(matches!(put.called, Ok(Called::Now(Outcome::Accepted(_)))), "{put:?}");
    assert!(put.promise.is_nothing());
    assert!(!world.writer.step().unwrap());
    assert_eq!(disk.calls(), calls);
    let mut world = world.kill(&disk);
    assert_eq!((world.drain("tasks"), world.restored.queues), (vec![], 0));
}

#[test]
fn a_task_is_handed_out_only_when_its_put_is_durable() {
    let (_disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let engine = world.rig.engine.clone();
    let client = world.rig.client("MainProcess");
    let reference = client.tasks.reference;
    let caller = client.presence.caller();
    let get = |wait| engine.get(caller, reference, 5, wait);
    let later = |ticket| redeem(&engine, caller, reference, ticket);
    let first = get(Wait::No);
    assert!(matches!(first.called, Ok(Called::Now(Outcome::Task(_)))), "{first:?}");
    assert!(first.promise.is_nothing(), "an old one at once");
    drop(engine.put(Caller::IN_PROCESS, reference, item(2), None, Wait::No).called.unwrap());
    let mut second = later(get(Wait::No));
    assert!(look(&mut second).is_pending());
    let mut third = later(get(Wait::Forever));
    drop(engine.put(Caller::IN_PROCESS, reference, item(3), None, Wait::No).called.unwrap());
    assert!(look(&mut third).is_pending());
    world.sync();
    for (mut waiter, expected) in [(second, 2), (third, 3)] {
        match look(&mut waiter) {
            Poll::Ready(Some(Outcome::Task(grant))) => assert_eq!(number(&grant), expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn who_hears_that_an_ack_was_kept_before_waits_until_that_is_durable() {
    let (_disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let worker = world.rig.client("manyhands/1 a");
    let token = worker.lease(None);
    world.sync();
    let engine = world.rig.engine.clone();
    let (session, tasks) = (worker.presence.caller(), worker.tasks.reference);
    let ack = || {
        let acked = engine.ack(session, tasks, token, None, Wait::No);
        let mut kept = pin!(engine.kept(acked.promise));
        let mut context = Context::from_waker(Waker::noop());
        assert!(kept.as_mut().poll(&mut context).is_pending());
        acked.called.map(drop)
    };
    assert!(matches!(ack(), Ok(())));
    assert!(matches!(ack(), Err(CallError::SettledBefore)));
}

#[test]
fn nobody_is_answered_after_a_sync_that_failed() {
    let (disk, mut world) = tasks(at_once());
    world.sync();
    let reference = world.rig.engine.open("tasks").unwrap();
    let put = world.rig.engine.put(Caller::IN_PROCESS, reference, item(1), None, Wait::No);
    let mut waiter = redeem(&world.rig.engine, Caller::IN_PROCESS, reference, put);
    assert!(look(&mut waiter).is_pending(), "it is not durable yet");
    disk.fail(2, crate::journal::tests::disk::Fault::Broken);
    world.writer.step().unwrap_err();
    assert_eq!(look(&mut waiter), Poll::Ready(None));
}

// ---- what is there again

#[test]
fn tasks_are_there_again_in_their_order() {
    for order in [Order::Fifo, Order::Lifo, Order::Priority] {
        let (disk, mut world) = tasks(QueueOptions { order, ..at_once() });
        world.put("tasks", [3, 1, 2]);
        assert!(world.take("tasks").is_some());
        let mut world = world.kill(&disk);
        assert_eq!((world.restored.queues, world.restored.tasks), (1, 2));
        world.put("tasks", [4]);
        let drained: Vec<_> = world.drain("tasks").into_iter().map(|(number, _)| number).collect();
        let expected = match order {
            Order::Fifo => [1, 2, 4],
            Order::Lifo => [4, 1, 3],
            Order::Priority => [2, 3, 4],
        };
        assert_eq!(drained, expected, "{order}");
        assert_eq!(world.rig.look("tasks", Queue::unfinished), 4);
    }
}

#[test]
fn what_a_session_had_in_hand_is_in_its_place_without_an_attempt_used_up() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1, 2]);
    let worker = world.rig.client("MainProcess");
    assert_eq!(world.get(&worker), 1);
    std::mem::forget(worker);
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("tasks"), [(1, 1), (2, 1)]);
}

#[test]
fn attempts_that_failed_and_why_are_remembered() {
    let (disk, mut world) = tasks(at_once().attempts(2));
    world.put("tasks", [1]);
    let worker = world.rig.client("MainProcess");
    assert_eq!(world.get(&worker), 1);
    worker.vanish();
    world.rig.pass(A_WHILE);
    let mut world = world.kill(&disk);
    let worker = world.rig.client("MainProcess");
    assert_eq!(world.get(&worker), 1);
    worker.vanish();
    world.rig.pass(A_WHILE);
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 0);
    for _ in 0..2 {
        world = world.kill(&disk);
        let letters = world.rig.look("tasks.dead", Queue::len);
        assert_eq!((letters, world.rig.look("tasks", Queue::len)), (1, 0));
    }
    let id = world.rig.engine.open("tasks.dead").unwrap().queue;
    let state = world.rig.engine.lock();
    let facts = state.queues[&id].queue.facts(TaskId(0)).unwrap();
    let origin = facts.origin.unwrap();
    assert_eq!((&*origin.queue, origin.task, origin.attempt), ("tasks", TaskId(0), 2));
    assert_eq!(origin.history, [Cause::Crashed, Cause::Crashed]);
    drop(state);
    assert_eq!(world.drain("tasks.dead"), [(1, 1)]);
}

#[test]
fn delayed_tasks_wait_by_the_time_of_day() {
    let (disk, mut world) = tasks(at_once());
    let delay = Some(Duration::from_secs(100));
    world.put_with("tasks", 1, Terms { delay, ..Terms::default() });
    world.put("tasks", [2]);
    let options = world.declared();
    let mut world = world.kill_with(&disk, after(60), &options);
    assert_eq!(world.drain("tasks"), [(2, 1)]);
    world.rig.pass(Duration::from_secs(39));
    assert_eq!(world.drain("tasks"), []);
    world.rig.pass(Duration::from_secs(1));
    assert_eq!(world.drain("tasks"), [(1, 1)]);
    world.put_with("tasks", 3, Terms { delay, ..Terms::default() });
    let mut world = world.kill_with(&disk, after(1000), &options);
    assert_eq!(world.drain("tasks"), [(3, 1)], "due while the server was away");
}

#[test]
fn tasks_expire_while_the_server_is_away() {
    let (disk, mut world) = tasks(at_once());
    let expires = Some(Duration::from_secs(10));
    world.put_with("tasks", 1, Terms { expires, ..Terms::default() });
    world.put("tasks", [2]);
    let options = world.declared();
    let mut world = world.kill_with(&disk, after(11), &options);
    world.rig.pass(Duration::ZERO);
    assert_eq!(world.drain("tasks"), [(2, 1)]);
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 1);
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("tasks"), []);
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 1);
}

#[test]
fn dead_letters_and_those_that_went_back_expire_after_a_restart() {
    let expires = |options: QueueOptions, seconds| QueueOptions {
        expires: Some(Duration::from_secs(seconds)),
        ..options
    };
    let declared = [
        ("tasks", expires(at_once().attempts(1), 100)),
        ("tasks.dead", expires(at_once().attempts(0), 10)),
    ];
    let disk = Disk::default();
    let mut world = begin(&disk, NOW, &declared);
    let fail = |world: &mut World| {
        let grant = world.lease("tasks", Duration::from_secs(1));
        world.rig.pass(Duration::from_secs(1));
        world.sync();
        number(&grant)
    };
    let lengths = |world: &World| {
        ["tasks", "tasks.dead"].map(|name| world.rig.look(name, |queue| queue.len()))
    };
    world.put("tasks", [1, 2]);
    assert_eq!(fail(&mut world), 1);
    let dead = world.rig.engine.open("tasks.dead").unwrap();
    assert_eq!(
        world.rig.engine.redrive(Caller::IN_PROCESS, dead, Redriving::of(100)).called.unwrap(),
        1
    );
    assert_eq!(fail(&mut world), 2);
    world.sync();
    // One is back since second 1, the other one a letter since second 2.
    for (seconds, left) in [(11, [1, 1]), (12, [1, 0]), (100, [1, 0]), (101, [0, 0])] {
        world = world.kill_with(&disk, after(seconds), &declared);
        world.rig.pass(Duration::ZERO);
        assert_eq!(lengths(&world), left, "after {seconds} s");
        world.checkpoint();
    }
}

#[test]
fn a_key_is_known_for_its_time() {
    let (disk, mut world) = tasks(at_once());
    let key = || Terms { key: Some(Arc::from(b"key".as_slice())), ..Terms::default() };
    assert!(matches!(world.put_with("tasks", 1, key()), Outcome::Accepted(_)));
    let options = world.declared();
    let mut world = world.kill_with(&disk, after(599), &options);
    assert_eq!(world.put_with("tasks", 2, key()), Outcome::Known);
    world.rig.pass(Duration::from_secs(1));
    assert!(matches!(world.put_with("tasks", 3, key()), Outcome::Accepted(_)));
    assert_eq!(world.drain("tasks"), [(1, 1), (3, 1)]);
}

#[test]
fn a_priority_that_was_given_is_kept() {
    let (disk, mut world) = tasks(QueueOptions::priority());
    for (number, priority) in [(1, 5), (2, -5), (3, 0)] {
        world.put_with("tasks", number, Terms { priority: Some(priority), ..Terms::default() });
    }
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("tasks"), [(2, 1), (3, 1), (1, 1)]);
}

#[test]
fn a_lease_by_token_runs_on_with_its_time_counted_anew() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1, 2, 3]);
    let hold = Duration::from_secs(30);
    let grants: Vec<_> = (0..3).map(|_| world.lease("tasks", hold)).collect();
    let options = world.declared();
    let mut world = world.kill_with(&disk, after(20), &options);
    assert_eq!((world.restored.leases, world.drain("tasks")), (3, vec![]));
    assert_eq!(world.ack("tasks", grants[0].token), Ack::Kept);
    world.rig.pass(Duration::from_secs(31));
    assert_eq!(world.rig.look("tasks", Queue::leased), 0);
    let mut world = world.kill(&disk);
    assert_eq!(world.ack("tasks", grants[1].token), Ack::Kept, "late, but nobody has it since");
    assert_eq!(world.ack("tasks", grants[0].token), Ack::Stale);
    assert_eq!(world.drain("tasks"), [(3, 2)]);
    assert_eq!(world.ack("tasks", grants[2].token), Ack::Stale);
}

#[test]
fn a_lease_that_was_extended_runs_as_long_after_a_restart() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let Grant { token, .. } = world.lease("tasks", Duration::from_secs(5));
    let tasks = world.rig.engine.open("tasks").unwrap();
    let on_the_wire = world.rig.engine.signer(tasks).unwrap().sign(token);
    let hour = Duration::from_secs(3600);
    world.rig.engine.extend(Caller::IN_PROCESS, tasks, on_the_wire, hour).called.unwrap();
    let mut world = world.kill(&disk);
    world.rig.pass(Duration::from_secs(60));
    assert_eq!(world.rig.look("tasks", Queue::leased), 1);
    world.rig.pass(hour);
    assert_eq!(world.drain("tasks"), [(1, 2)]);
}

#[test]
fn who_waited_for_a_lease_is_told_of_it_when_it_would_survive_a_kill() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let first = world.lease("tasks", Duration::from_secs(5));
    world.sync();
    let (engine, worker) = (world.rig.engine.clone(), world.rig.client("manyhands/1 a"));
    let taking =
        Taking { protocol_max: 5, explicit: true, settles: false, hold: Some(A_WHILE), max: 1 };
    let (session, tasks) = (worker.presence.caller(), worker.tasks.reference);
    let taken = engine.take_many(session, tasks, taking, Wait::Forever, &mut Batch::default());
    let taken = taken.map(|called| called.expect("nothing is ready"));
    let mut waiting = redeem(&engine, session, tasks, taken);
    let token = engine.signer(tasks).unwrap().sign(first.token);
    engine.nack(session, tasks, token, Retry::Backoff, "").called.unwrap();
    assert!(look(&mut waiting).is_pending(), "it is not written yet");
    world.writer.step().unwrap();
    assert!(matches!(look(&mut waiting), Poll::Ready(Some(Outcome::Task(_)))));
    std::mem::forget((engine, worker, waiting));
    let world = world.kill(&disk);
    assert_eq!(world.rig.look("tasks", Queue::leased), 1);
}

#[test]
fn no_lease_has_a_number_that_one_had_before() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let first = world.lease("tasks", Duration::from_secs(30));
    let mut world = world.kill(&disk);
    world.put("tasks", [2]);
    let second = world.lease("tasks", Duration::from_secs(30));
    assert!(first.token.epoch < second.token.epoch);
}

#[test]
fn unfinished_tasks_are_counted_on() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1, 2, 3]);
    assert_eq!(world.drain("tasks").len(), 3);
    let reference = world.rig.engine.open("tasks").unwrap();
    let done = world.rig.engine.task_done(Caller::IN_PROCESS, reference);
    assert_eq!(world.call(done), Outcome::Done);
    let world = world.kill(&disk);
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 2);
}

#[test]
fn a_task_that_our_own_client_acked_counts_as_done_once_across_restarts() {
    for (options, result) in [(at_once(), None), (at_once().results("results"), Some(item(9)))] {
        let (disk, mut world) = tasks(options);
        world.put("tasks", [1, 2, 3]);
        let worker = world.rig.client("manyhands/1 a");
        let tokens = [worker.lease(None), worker.lease(None)];
        world.sync();
        let (session, tasks) = (worker.presence.caller(), worker.tasks.reference);
        for (token, left) in [(tokens[0], 2), (tokens[1], 1)] {
            let engine = world.rig.engine.clone();
            let ack = || engine.ack(session, tasks, token, result.clone(), Wait::No).called;
            assert!(ack().is_ok());
            world.sync();
            assert!(matches!(ack(), Err(CallError::SettledBefore)));
            assert_eq!(world.rig.look("tasks", Queue::unfinished), left);
        }
        drop(worker);
        for _ in 0..2 {
            world = world.kill(&disk);
            assert_eq!(world.rig.look("tasks", Queue::unfinished), 1);
            world.checkpoint();
        }
        assert_eq!(world.drain("tasks"), [(3, 1)]);
    }
}

/// What an ack, alone or with a result, is answered.
fn ack(world: &World, token: LeaseToken, result: Option<Payload>) -> Result<(), CallError> {
    let tasks = world.rig.engine.open("tasks").unwrap();
    world.rig.engine.ack(Caller::IN_PROCESS, tasks, token, result, Wait::No).called.map(drop)
}

#[test]
fn an_ack_that_is_repeated_after_a_restart_is_told_from_one_that_is_stale() {
    let (disk, mut world) = tasks(at_once().results("results"));
    world.put("tasks", 0..4);
    let worker = world.rig.client("manyhands/1 a");
    let [first, answered, left, late] = std::array::from_fn(|_| worker.lease(None));
    world.sync();
    assert!(
        matches!(ack(&world, first, None), Err(CallError::NoResult(_))),
        "its result is missing"
    );
    assert!(ack(&world, first, Some(item(8))).is_ok());
    assert!(ack(&world, answered, Some(item(9))).is_ok());
    let nacked = worker.engine.nack(
        worker.presence.caller(),
        worker.tasks.reference,
        left,
        Retry::Backoff,
        "",
    );
    assert!(nacked.called.is_ok());
    let other = worker.lease(None);
    assert_eq!(other.task, left.task);
    world.sync();
    assert!(ack(&world, other, Some(item(7))).is_ok());
    std::mem::forget(worker);
    for lives in 0..3 {
        world = world.kill(&disk);
        for token in [first, answered, other] {
            let again = ack(&world, token, (lives == 1).then(|| item(9)));
            assert!(matches!(again, Err(CallError::SettledBefore)), "life {lives}: {again:?}");
        }
        assert!(matches!(ack(&world, left, Some(item(5))), Err(CallError::StaleToken)));
        if lives > 0 {
            world.checkpoint();
        }
    }
    assert!(
        ack(&world, late, Some(item(6))).is_ok(),
        "its answer was not lost: it was never given"
    );
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 0);
    let results = [(8, 1), (9, 1), (7, 1), (6, 1)];
    assert_eq!(world.drain("results"), results, "one result of each");
}

#[test]
fn as_many_settled_tokens_as_before_are_known_after_a_restart() {
    let (disk, mut world) = tasks(at_once());
    let settle = |world: &mut World, tasks: usize| {
        for _ in 0..tasks {
            world.put("tasks", [0]);
            let worker = world.rig.client("manyhands/1 a");
            let token = worker.lease(None);
            assert!(ack(world, token, None).is_ok());
        }
        world.sync();
    };
    let known =
        |world: &World| world.rig.look("tasks", |queue| queue.settled().collect::<Vec<_>>());
    settle(&mut world, SETTLED_LEN_MAX + 20);
    let engine = world.rig.engine.clone();
    let (journal, mark, heads) = engine.begin_checkpoint().unwrap();
    // These are in the checkpoint and in the log after it.
    settle(&mut world, 20);
    journal.checkpoint_with(mark, |write| engine.tell_all(&heads, write)).unwrap();
    settle(&mut world, 20);
    drop(engine);
    let before = known(&world);
    let mut world = world.kill(&disk);
    assert_eq!((known(&world).len(), known(&world)), (SETTLED_LEN_MAX, before));
    settle(&mut world, 1);
    assert_eq!(known(&world).len(), SETTLED_LEN_MAX);
}

#[test]
fn a_queue_that_its_first_put_makes_counts_that_put_once() {
    let (disk, mut world) = tasks(at_once());
    world.put("made by use", [1]);
    let world = world.kill(&disk);
    assert_eq!(world.rig.look("made by use", Queue::unfinished), 1);
}

#[test]
fn a_queue_that_was_shut_down_is_empty_and_open_again() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1, 2]);
    let reference = world.rig.engine.open("tasks").unwrap();
    let shut = world.rig.engine.shut_down(Caller::IN_PROCESS, reference, true);
    assert_eq!(world.call(shut), Outcome::Done);
    let mut world = world.kill(&disk);
    assert_eq!((world.restored.tasks, world.rig.look("tasks", Queue::unfinished)), (0, 0));
    world.put("tasks", [3]);
    assert_eq!(world.drain("tasks"), [(3, 1)]);
}

#[test]
fn a_result_and_the_end_of_its_task_are_there_together() {
    let options = at_once().results("results");
    let (disk, mut world) = tasks(options);
    world.put("tasks", [1, 2]);
    let worker = world.rig.client("MainProcess");
    assert_eq!(world.get(&worker), 1);
    let put = worker.ask_put(&worker.results, 11);
    assert!(matches!(world.call(put), Outcome::Accepted(_)));
    std::mem::forget(worker);
    let mut world = world.kill(&disk);
    let id = world.rig.engine.open("results").unwrap().queue;
    let state = world.rig.engine.lock();
    let origin = state.queues[&id].queue.facts(TaskId(0)).unwrap().origin.unwrap();
    assert_eq!((&*origin.queue, origin.task, origin.attempt), ("tasks", TaskId(0), 1));
    assert_eq!(&*origin.worker, "MainProcess at 127.0.0.1:1");
    drop(state);
    assert_eq!((world.drain("results"), world.drain("tasks")), (vec![(11, 1)], vec![(2, 1)]));
}

#[test]
fn results_come_in_the_order_of_their_tasks_across_restarts() {
    let declared = [
        ("tasks", at_once().results("results")),
        ("results", QueueOptions { ordered: true, ..at_once() }),
    ];
    let disk = Disk::default();
    let mut world = begin(&disk, NOW, &declared);
    world.put("tasks", 0..6);
    let workers: Vec<_> = (0..4).map(|_| world.rig.client("MainProcess")).collect();
    for (number, worker) in workers.iter().enumerate() {
        assert_eq!(usize::from(world.get(worker)), number);
    }
    for number in [0, 3, 1] {
        let worker = &workers[usize::from(number)];
        let put = worker.ask_put(&worker.results, number);
        assert!(matches!(world.call(put), Outcome::Accepted(_)));
    }
    assert_eq!(world.take("results").map(|grant| number(&grant)), Some(0));
    workers.into_iter().for_each(std::mem::forget);
    world.sync();
    let mut world = world.kill_with(&disk, NOW, &declared);
    assert_eq!(world.drain("results"), [(1, 1)]);
    assert_eq!(world.rig.look("results", Queue::delayed), 1);
    let worker = world.rig.client("MainProcess");
    for number in [2, 4] {
        assert_eq!(world.get(&worker), number);
        let put = worker.ask_put(&worker.results, number);
        assert!(matches!(world.call(put), Outcome::Accepted(_)));
    }
    assert_eq!(world.drain("results"), [(2, 1), (3, 1), (4, 1)]);
}

#[test]
fn options_of_the_command_line_win_and_tasks_stay() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [2, 3, 1]);
    world.sync();
    let mut world = world.kill_with(&disk, NOW, &[("tasks", QueueOptions::priority())]);
    assert_eq!(world.take("tasks").map(|grant| number(&grant)), Some(1));
    world.sync();
    let mut world = world.kill_with(&disk, NOW, &[]);
    assert_eq!(world.rig.look("tasks", |queue| queue.options().order), Order::Priority);
    let memory = QueueOptions::lifo().durability(Durability::Memory);
    world.sync();
    let mut world = world.kill_with(&disk, NOW, &[("tasks", memory.clone())]);
    assert_eq!(world.rig.look("tasks", Queue::len), 2);
    world.sync();
    let mut world = world.kill_with(&disk, NOW, &[("tasks", memory)]);
    assert_eq!((world.restored.queues, world.drain("tasks")), (0, vec![]));
}

#[test]
fn a_restart_that_is_killed_loses_nothing() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", 0..100);
    world.sync();
    for _ in 0..5 {
        world = world.kill_with(&disk, NOW, &[]);
    }
    let drained = world.drain("tasks");
    assert!(drained.iter().map(|(number, _)| *number).eq(0..100));
    assert_eq!(world.restored.epoch, 6);
}

// ---- a slow disk

/// Tasks that a restart has left on the disk, and who takes all of them.
fn batch(world: &mut World, max: usize) -> (Client, Batch) {
    let worker = world.rig.client("manyhands/1 a");
    let (session, at) = (worker.presence.caller(), worker.tasks.reference);
    let taking = Taking { protocol_max: 5, explicit: true, settles: false, hold: None, max };
    let mut batch = Batch::default();
    worker.engine.take_many(session, at, taking, Wait::No, &mut batch).called.unwrap();
    world.sync();
    assert_eq!(batch.grants.len(), max);
    assert!(batch.grants.iter().all(|grant| Queue::is_away(&grant.payload)));
    (worker, batch)
}

#[tokio::test]
async fn a_batch_is_read_from_a_slow_disk_in_one_go() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", 0..200);
    let mut world = world.kill(&disk);
    let (worker, mut batch) = batch(&mut world, 200);
    disk.be_slow(async {}).await;
    let to = (worker.presence.caller(), worker.tasks.reference, true);
    let mut looks = 0;
    let mut room = worker.engine.memory().room();
    let reading = worker.engine.collect(to.0, to.1, to.2, &mut batch, &mut room).unwrap();
    let reading = reading.expect("the disk is slow");
    let mut reading = Box::pin(worker.engine.arrive(to.0, to.1, to.2, &mut batch, reading));
    let read = std::future::poll_fn(|context| {
        looks += 1;
        reading.as_mut().poll(context)
    });
    read.await.unwrap();
    drop(reading);
    assert!(looks <= 2, "the batch was woken {looks} times");
    assert!(batch.grants.iter().map(number).eq(0..200));
}

#[test]
fn a_task_that_is_gone_before_it_was_read_is_left_out_of_its_batch() {
    let (disk, mut world) = tasks(at_once().max_run(A_WHILE));
    world.put("tasks", [1, 2]);
    let mut world = world.kill(&disk);
    let (worker, mut batch) = batch(&mut world, 2);
    let to = (worker.presence.caller(), worker.tasks.reference, true);
    // The only thread that could read is busy until the task is gone.
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let (free, busy) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || busy.recv());
        let mut reading = None;
        let mut room = worker.engine.memory().room();
        disk.be_slow(async {
            reading = worker.engine.collect(to.0, to.1, to.2, &mut batch, &mut room).unwrap();
            world.rig.pass(A_WHILE);
            let settled = world.rig.client("manyhands/1 b").lease(None);
            assert_eq!(settled.task, 0);
            worker.engine.ack(to.0, to.1, settled, None, Wait::No).called.unwrap();
        })
        .await;
        drop(free);
        let reading = reading.expect("the disk was slow");
        worker.engine.arrive(to.0, to.1, to.2, &mut batch, reading).await.unwrap();
    });
    assert!(batch.grants.iter().map(number).eq([2]));
}

#[tokio::test]
async fn who_leaves_while_a_slow_disk_is_read_gives_back_what_it_took() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1, 2]);
    let mut world = world.kill(&disk);
    let (worker, mut batch) = batch(&mut world, 2);
    let (session, at) = (worker.presence.caller(), worker.tasks.reference);
    let left = || world.rig.look("tasks", |queue| (queue.len(), queue.leased()));
    let mut room = worker.engine.memory().room();
    disk.be_slow(async {
        let reading = worker.engine.collect(session, at, true, &mut batch, &mut room).unwrap();
        let reading = reading.expect("the disk is slow");
        let mut reading = Box::pin(worker.engine.arrive(session, at, true, &mut batch, reading));
        let mut context = Context::from_waker(Waker::noop());
        assert!(reading.as_mut().poll(&mut context).is_pending());
        drop(reading);
        assert_eq!((left(), world.rig.leases()), ((2, 0), 0));
        let taken = worker.engine.get(session, at, 5, Wait::No);
        let mut waiter = redeem(&worker.engine, session, at, taken);
        assert!(look(&mut waiter).is_pending());
        drop(waiter);
        assert_eq!(left(), (2, 0));
    })
    .await;
}

/// Letters and what they were are moved by what is known of them, so nobody waits for the disk.
#[tokio::test]
async fn a_slow_disk_is_not_read_where_tasks_are_buried_and_letters_redriven() {
    const LETTERS: usize = 1000;
    let options = at_once().attempts(1);
    let (disk, mut world) = tasks(options);
    for _ in 0..LETTERS / 200 {
        world.put("tasks", 0..200);
    }
    let mut world = world.kill(&disk);
    let engine = world.rig.engine.clone();
    let batches: Vec<_> = (0..4).map(|_| batch(&mut world, LETTERS / 4)).collect();
    let mut moved = 0;
    disk.be_slow(async {
        for (worker, batch) in &batches {
            let (session, at) = (worker.presence.caller(), worker.tasks.reference);
            let signer = engine.signer(at).unwrap();
            for grant in &batch.grants {
                let token = signer.sign(grant.token);
                engine.nack(session, at, token, Retry::Backoff, "bad").called.unwrap();
            }
        }
        assert_eq!(world.rig.look("tasks.dead", Queue::len), LETTERS);
        let dead = engine.open("tasks.dead").unwrap();
        loop {
            match engine.redrive(Caller::IN_PROCESS, dead, Redriving::of(LETTERS)).called.unwrap() {
                0 => break,
                some => moved += some,
            }
        }
    })
    .await;
    assert_eq!(moved, LETTERS as u64);
    assert_eq!(world.rig.look("tasks", Queue::len), LETTERS);
}

// ---- checkpoints

#[test]
fn a_checkpoint_says_all_that_the_log_said() {
    let options = at_once().results("results").attempts(2);
    let (disk, mut world) = tasks(options);
    world.put("tasks", 0..10);
    let delay = Some(Duration::from_secs(100));
    let key = Some(Arc::from(b"key".as_slice()));
    world.put_with("tasks", 20, Terms { delay, key, ..Terms::default() });
    let worker = world.rig.client("MainProcess");
    assert_eq!((world.get(&worker), world.get(&worker)), (0, 1));
    let put = worker.ask_put(&worker.results, 100);
    assert!(matches!(world.call(put), Outcome::Accepted(_)));
    worker.vanish();
    world.rig.pass(A_WHILE);
    let leased = world.lease("tasks", Duration::from_secs(30));
    assert_eq!((number(&leased), leased.token.attempt), (1, 2));
    world.sync();
    let stops = std::sync::atomic::AtomicBool::new(false);
    assert!(world.rig.engine.checkpoint(&stops).unwrap().bytes > 0);
    world.put("tasks", [30]);
    let mut world = world.kill(&disk);
    assert_eq!((world.restored.tasks, world.restored.leases), (12, 1));
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 12);
    let known = Terms { key: Some(Arc::from(b"key".as_slice())), ..Terms::default() };
    assert_eq!(world.put_with("tasks", 21, known), Outcome::Known);
    let expected = (2..10).map(|number| (number, 1)).chain([(30, 1)]);
    assert!(world.drain("tasks").into_iter().eq(expected));
    assert_eq!(world.drain("results"), [(100, 1)]);
    let stops = std::sync::atomic::AtomicBool::new(false);
    world.sync();
    world.rig.engine.checkpoint(&stops).unwrap();
    let mut world = world.kill(&disk);
    assert_eq!(world.ack("tasks", leased.token), Ack::Kept);
    world.rig.pass(Duration::from_secs(100));
    assert_eq!(world.drain("tasks"), [(20, 1)]);
}

#[test]
fn segments_are_let_go_and_stragglers_moved_while_tasks_come_and_go() {
    let (disk, mut world) = tasks(at_once());
    let body = Bytes::from(vec![b'x'; 2000]);
    let payload = Payload { protocol: 2, prelude_len: 0, bytes: body };
    let put = |world: &mut World, queue: &str| {
        let reference = world.rig.engine.open(queue).unwrap();
        let put =
            world.rig.engine.put(Caller::IN_PROCESS, reference, payload.clone(), None, Wait::No);
        assert!(matches!(world.call(put), Outcome::Accepted(_)));
    };
    let mut most = 0;
    for round in 0..200 {
        if round % 40 == 0 {
            put(&mut world, "stragglers");
        }
        for _ in 0..10 {
            put(&mut world, "tasks");
            assert!(world.take("tasks").is_some());
        }
        world.sync();
        world.checkpoint();
        most = most.max(disk.files().values().map(Vec::len).sum());
    }
    assert!(most < 12 * 65_536, "{most} bytes on disk for five tasks of 2000");
    let mut world = world.kill(&disk);
    assert_eq!(world.restored.tasks, 5);
    assert!((0..5).all(|_| world.take("stragglers").is_some_and(|it| it.payload == payload)));
}

// ---- a full disk

fn large() -> Payload {
    Payload { protocol: 2, prelude_len: 0, bytes: Bytes::from(vec![b'x'; 20_000]) }
}

#[test]
fn when_the_disk_is_full_puts_wait_or_fail_and_tasks_are_settled() {
    let disk = Disk::with_capacity(6 * 65_536);
    let mut world = begin(&disk, NOW, &[("tasks", at_once())]);
    let engine = world.rig.engine.clone();
    let reference = engine.open("tasks").unwrap();
    let put = |wait| engine.put(Caller::IN_PROCESS, reference, large(), None, wait);
    let mut accepted = 0;
    let refusal = loop {
        match world.call(put(Wait::No)) {
            Outcome::Accepted(_) => accepted += 1,
            other => break other,
        }
    };
    assert_eq!(refusal, Outcome::NoRoom);
    assert!(accepted > 5, "{accepted} tasks");
    let waits = put(Wait::Forever);
    assert!(is_in_line(&waits), "{waits:?}");
    let mut waiting = redeem(&engine, Caller::IN_PROCESS, reference, waits);
    assert!(look(&mut waiting).is_pending());
    for _ in 0..accepted {
        assert_eq!(world.take("tasks").map(|grant| grant.payload), Some(large()));
    }
    assert!(look(&mut waiting).is_pending(), "what was settled is not free yet");
    let stops = std::sync::atomic::AtomicBool::new(false);
    world.sync();
    world.rig.engine.checkpoint(&stops).unwrap();
    world.sync();
    engine.let_puts_in();
    world.sync();
    assert!(matches!(look(&mut waiting), Poll::Ready(Some(Outcome::Accepted(_)))));
    drop(engine);
    let mut world = world.kill(&disk);
    assert_eq!(world.take("tasks").map(|grant| grant.payload), Some(large()));
    assert!(world.take("tasks").is_none());
}

#[test]
fn a_batch_of_small_items_goes_in_as_far_as_the_disk_has_room_for_them() {
    let disk = Disk::with_capacity(6 * 65_536);
    let mut world = begin(&disk, NOW, &[("tasks", at_once())]);
    let engine = world.rig.engine.clone();
    let tasks = engine.open("tasks").unwrap();
    let put = |item| engine.put(Caller::IN_PROCESS, tasks, item, None, Wait::No);
    while matches!(world.call(put(large())), Outcome::Accepted(_)) {}
    world.sync();
    let room = engine.journal().unwrap().rooms().puts;
    // What a record takes at most, by the little that its item does.
    let fits = room / (48 + item(1).bytes.len() as u64);
    assert!(fits > 20, "room for {fits}");
    let mut items = (0..10_000).map(|_| Prepared::new(item(1), None, Order::Fifo));
    let mut count = 0;
    let end = loop {
        let added = engine.put_many(Caller::IN_PROCESS, tasks, &mut items, Patience::Now);
        count += added.count as u64;
        let Ticket { called, promise } = added.end;
        if let Some(called) = called.unwrap() {
            break world.call(Ticket { called: Ok(called), promise });
        }
    };
    assert_eq!(end, Outcome::NoRoom);
    assert!(count >= fits, "{count} of {fits}");
    world.sync();
}

#[test]
fn results_pass_puts_that_wait_because_the_disk_is_full() {
    let disk = Disk::with_capacity(6 * 65_536);
    let options = at_once().results("results");
    let mut world = begin(&disk, NOW, &[("tasks", options), ("results", at_once())]);
    let engine = world.rig.engine.clone();
    let [tasks, results] = ["tasks", "results"].map(|name| engine.open(name).unwrap());
    let put = |at, wait| engine.put(Caller::IN_PROCESS, at, large(), None, wait);
    while matches!(world.call(put(tasks, Wait::No)), Outcome::Accepted(_)) {}
    world.sync();
    let waits = put(results, Wait::Forever);
    assert!(is_in_line(&waits), "{waits:?}");
    let mut plain = redeem(&engine, Caller::IN_PROCESS, results, waits);
    let worker = world.rig.client("manyhands/1 a");
    let token = worker.lease(None);
    let session = worker.presence.caller();
    let acked = engine.ack(session, tasks, token, Some(item(7)), Wait::Forever);
    let outcome = world.call(acked);
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    assert!(look(&mut plain).is_pending());
    let taken = world.take("results").expect("the result");
    assert_eq!(number(&taken), 7);
}

#[test]
fn a_getter_that_waits_while_the_disk_is_full_is_served_when_there_is_room() {
    let disk = Disk::with_capacity(6 * 65_536);
    let mut world = begin(&disk, NOW, &[("tasks", at_once())]);
    let engine = world.rig.engine.clone();
    let (tasks, other) = (engine.open("tasks").unwrap(), engine.open("other").unwrap());
    let put = |at, wait| engine.put(Caller::IN_PROCESS, at, large(), None, wait);
    while matches!(world.call(put(tasks, Wait::No)), Outcome::Accepted(_)) {}
    let later = |ticket: Ticket| {
        assert!(is_in_line(&ticket), "{ticket:?}");
        redeem(&engine, Caller::IN_PROCESS, other, ticket)
    };
    let mut getter = later(engine.get(Caller::IN_PROCESS, other, 5, Wait::Forever));
    let mut putter = later(put(other, Wait::Forever));
    assert!(look(&mut getter).is_pending() && look(&mut putter).is_pending());
    while world.take("tasks").is_some() {}
    let stops = std::sync::atomic::AtomicBool::new(false);
    world.sync();
    world.rig.engine.checkpoint(&stops).unwrap();
    world.sync();
    engine.let_puts_in();
    world.sync();
    assert!(matches!(look(&mut putter), Poll::Ready(Some(Outcome::Accepted(_)))));
    assert!(matches!(look(&mut getter), Poll::Ready(Some(Outcome::Task(_)))));
}

#[test]
fn dead_letters_stay_where_they_are_while_the_disk_is_full() {
    let disk = Disk::with_capacity(6 * 65_536);
    let options = at_once().attempts(1);
    let mut world = begin(&disk, NOW, &[("tasks", options), ("other", at_once())]);
    let engine = world.rig.engine.clone();
    let [tasks, other] = ["tasks", "other"].map(|name| engine.open(name).unwrap());
    let put = |at| engine.put(Caller::IN_PROCESS, at, large(), None, Wait::No);
    for _ in 0..2 {
        assert!(matches!(world.call(put(tasks)), Outcome::Accepted(_)));
        let worker = world.rig.client("MainProcess");
        let got = engine.get(worker.presence.caller(), worker.tasks.reference, 5, Wait::No);
        let (caller, at) = (worker.presence.caller(), worker.tasks.reference);
        assert!(matches!(world.call_of(caller, at, got), Outcome::Task(_)));
        worker.vanish();
        world.rig.pass(A_WHILE);
    }
    assert_eq!(world.rig.look("tasks.dead", Queue::len), 2);
    while matches!(world.call(put(other)), Outcome::Accepted(_)) {}
    // Letters take their bodies along, so that little is written.
    while matches!(world.put_with("other", 1, Terms::default()), Outcome::Accepted(_)) {}
    let dead = engine.open("tasks.dead").unwrap();
    let redrive = || engine.redrive(Caller::IN_PROCESS, dead, Redriving::of(100)).called.unwrap();
    assert_eq!(redrive(), 0);
    world.sync();
    assert_eq!(["tasks", "tasks.dead"].map(|name| world.rig.look(name, Queue::len)), [0, 2]);
    while world.take("other").is_some() {}
    let stops = std::sync::atomic::AtomicBool::new(false);
    world.sync();
    engine.checkpoint(&stops).unwrap();
    world.sync();
    assert_eq!(redrive(), 2);
    world.sync();
    drop(engine);
    let mut world = world.kill(&disk);
    assert_eq!(world.take("tasks").map(|grant| grant.payload), Some(large()));
}

// ---- checkpoints beside calls

/// What a restart must find: counts, and what is known of each task.
fn known(engine: &Engine) -> Vec<String> {
    let state = engine.lock();
    let mut known = Vec::new();
    for (name, id) in &state.names {
        let hosted = &state.queues[id];
        let (next, unfinished) = (hosted.queue.next_task(), hosted.queue.unfinished());
        known.push(format!("{name}: {next:?}, {unfinished} unfinished"));
        for (task, stored) in hosted.books.as_ref().unwrap().ledger.from(TaskId(0)) {
            let mut facts = hosted.queue.facts(task).unwrap_or_default();
            // Tokens of sessions mean nothing after a restart.
            facts.last = None;
            known.push(format!("{name} {task:?} at {:?}: {facts:?}", stored.location));
        }
    }
    known.sort();
    known
}

/// Three tasks come, three are taken; some workers answer, out of order, and some crash.
fn live_on(world: &mut World, round: u8) {
    world.put("tasks", [round, round, round]);
    let workers: Vec<_> = (0..3).map(|_| world.rig.client("MainProcess")).collect();
    let tasks: Vec<_> = workers.iter().map(|worker| world.get(worker)).collect();
    for (number, (worker, task)) in workers.into_iter().zip(tasks).enumerate().rev() {
        if (usize::from(round) + number) % 4 == 0 {
            worker.vanish();
        } else {
            let put = worker.ask_put(&worker.results, task);
            assert!(matches!(world.call(put), Outcome::Accepted(_)));
            worker.exit();
        }
    }
    world.rig.pass(A_WHILE);
    if round.is_multiple_of(3) {
        world.take("results");
    }
    world.sync();
}

#[test]
fn a_checkpoint_that_is_written_while_everything_changes_misses_nothing() {
    let declared = [
        ("tasks", at_once().results("results").attempts(2)),
        ("results", QueueOptions { ordered: true, ..at_once() }),
    ];
    let disk = Disk::default();
    let mut world = begin(&disk, NOW, &declared);
    for seed in 0..20_u64 {
        (0..20).for_each(|round| live_on(&mut world, round));
        let engine = world.rig.engine.clone();
        let (journal, mark, heads) = engine.begin_checkpoint().unwrap();
        world.sync();
        let mut random = Random::new(seed);
        let mut rounds = 20;
        let written = journal.checkpoint_with(mark, |write| {
            engine.tell_all(&heads, &mut |record| {
                if rounds < 60 && random.percent(30) {
                    live_on(&mut world, rounds);
                    rounds += 1;
                }
                write(record)
            })
        });
        written.unwrap();
        live_on(&mut world, 60);
        drop(engine);
        let before = known(&world.rig.engine);
        world = world.kill_with(&disk, NOW, &declared);
        assert_eq!(known(&world.rig.engine), before, "seed {seed}");
    }
    assert!(world.rig.look("tasks.dead", Queue::len) > 10);
}

#[test]
fn a_dead_letter_queue_that_is_made_beside_a_checkpoint_is_there_again() {
    let (disk, mut world) = tasks(at_once().attempts(1));
    world.put("tasks", 0..8);
    let engine = world.rig.engine.clone();
    let (journal, mark, heads) = engine.begin_checkpoint().unwrap();
    // Written while the journal's thread would do it.
    world.sync();
    let worker = world.rig.client("MainProcess");
    assert_eq!(world.get(&worker), 0);
    worker.vanish();
    world.rig.pass(A_WHILE);
    world.sync();
    journal.checkpoint_with(mark, |write| engine.tell_all(&heads, write)).unwrap();
    drop(engine);
    let mut world = world.kill(&disk);
    assert_eq!(world.rig.look("tasks.dead", Queue::unfinished), 1);
    assert_eq!(world.drain("tasks.dead"), [(0, 1)]);
    assert_eq!(world.drain("tasks").len(), 7);
}

#[test]
fn puts_that_a_purge_lets_in_are_counted_once() {
    let (disk, mut world) = tasks(QueueOptions::bounded(2));
    world.put("tasks", [1, 2]);
    let engine = world.rig.engine.clone();
    let reference = engine.open("tasks").unwrap();
    let put = engine.put(Caller::IN_PROCESS, reference, item(3), None, Wait::Forever);
    assert!(is_in_line(&put), "there is no room: {put:?}");
    let mut waiting = redeem(&engine, Caller::IN_PROCESS, reference, put);
    assert_eq!(engine.purge(Caller::IN_PROCESS, reference).called.unwrap(), 2);
    world.sync();
    assert!(matches!(look(&mut waiting), Poll::Ready(Some(Outcome::Accepted(_)))));
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 1);
    drop((engine, waiting));
    let mut world = world.kill(&disk);
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 1);
    assert_eq!(world.drain("tasks"), [(3, 1)]);
}

#[test]
fn a_checkpoint_knows_no_more_than_the_log() {
    let (disk, mut world) = tasks(at_once().results("results"));
    world.put("tasks", [1]);
    let worker = world.rig.client("MainProcess");
    assert_eq!(world.get(&worker), 1);
    let engine = world.rig.engine.clone();
    let (journal, mark, heads) = engine.begin_checkpoint().unwrap();
    world.sync();
    drop(worker.put(&worker.results, 11).unwrap());
    std::mem::forget(worker);
    // The process is killed before it has written the result.
    let World { writer, .. } = world;
    drop(writer);
    let told = journal.checkpoint_with(mark, |write| engine.tell_all(&heads, write));
    told.unwrap_err();
    disk.restart();
    let declared = [("tasks", at_once().results("results"))];
    let mut world = begin(&disk, NOW, &declared);
    assert_eq!((world.drain("tasks"), world.drain("results")), (vec![(1, 1)], vec![]));
}

#[test]
fn names_that_went_are_not_there_again_and_their_ids_harm_nobody() {
    let (disk, mut world) = tasks(QueueOptions::default());
    let names = |world: &World| world.rig.names();
    for name in ["unused", "dropped", "kept"] {
        let ident = world.rig.engine.refer_to(name).unwrap();
        assert!(world.rig.engine.decref(&ident));
    }
    for name in ["dropped", "kept"] {
        world.put(name, [1, 2]);
    }
    // As `put` asked for them they stay for this process, but not for the next.
    let mut world = world.kill(&disk);
    world.checkpoint();
    let (tasks, promise) = world.rig.engine.drop_queue("dropped", false).unwrap();
    assert_eq!((tasks, promise.is_nothing()), (2, false), "the answer waits for the disk");
    world.rig.pass(Duration::from_secs(3600));
    assert_eq!(names(&world), ["kept", "tasks"]);
    world.put("tasks", [7]);
    let mut world = world.kill(&disk);
    assert_eq!(names(&world), ["kept", "tasks"]);
    world.checkpoint();
    world.put("new", [9]);
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("new"), [(9, 1)]);
    assert_eq!(world.drain("kept"), [(1, 1), (2, 1)]);
    assert_eq!(world.drain("tasks"), [(7, 1)]);
}

#[test]
fn a_notice_of_a_task_that_was_given_up_is_there_after_a_restart_and_its_letter_as_it_was() {
    let options = at_once().results("results").attempts(1).failures("results");
    for letters in [Durability::Memory, Durability::Disk] {
        let declared = [
            ("tasks", options.clone()),
            ("results", at_once()),
            ("tasks.dead", at_once().attempts(0).durability(letters)),
        ];
        let disk = Disk::default();
        let mut world = begin(&disk, NOW, &declared);
        world.put("tasks", [1]);
        let worker = world.rig.client("manyhands/1 a");
        let token = worker.lease(None);
        world.sync();
        let (session, tasks) = (worker.presence.caller(), worker.tasks.reference);
        worker.engine.nack(session, tasks, token, Retry::Backoff, "no").called.unwrap();
        world.sync();
        drop(worker);
        for _ in 0..2 {
            world = world.kill_with(&disk, NOW, &declared);
            let lengths =
                ["tasks", "results", "tasks.dead"].map(|name| world.rig.look(name, Queue::len));
            assert_eq!(lengths, [0, 1, usize::from(letters == Durability::Disk)]);
            world.checkpoint();
        }
    }
}

#[test]
fn what_was_purged_does_not_come_back_if_a_checkpoint_is_written_before_it_is_cleared_away() {
    let (disk, mut world) = tasks(at_once());
    let key = || Terms { key: Some(Arc::from(*b"key")), ..Terms::default() };
    world.put("tasks", 1..=150);
    world.put_with("tasks", 200, key());
    let worker = world.rig.client("manyhands/1 a");
    let token = worker.lease(None);
    let engine = world.rig.engine.clone();
    let reference = engine.open("tasks").unwrap();
    assert_eq!(engine.purge(Caller::IN_PROCESS, reference).called.unwrap(), 150);
    world.put("tasks", [201]);
    let has_remains = |world: &World| world.rig.look("tasks", Queue::has_remains);
    engine.expire();
    assert!(has_remains(&world));
    world.checkpoint();
    assert!(has_remains(&world));
    drop((engine, worker));
    let mut world = world.kill(&disk);
    assert_eq!(world.rig.look("tasks", |queue| (queue.len(), queue.leased())), (1, 1));
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 2);
    // The key is free, and the task that was with somebody still is.
    assert!(matches!(world.put_with("tasks", 202, key()), Outcome::Accepted(_)));
    let worker = world.rig.client("manyhands/1 a");
    worker
        .engine
        .ack(worker.presence.caller(), worker.tasks.reference, token, None, Wait::No)
        .called
        .unwrap();
    assert_eq!(world.drain("tasks"), [(201, 1), (202, 1)]);
}

#[test]
fn a_queue_that_was_dropped_is_not_there_again_though_its_tasks_are_not_cleared_away() {
    let (disk, mut world) = tasks(at_once());
    world.rig.engine.refer_to("passing").unwrap();
    world.put("passing", 1..=20);
    let mut world = world.kill(&disk);
    world.rig.engine.drop_queue("passing", false).unwrap();
    world.rig.engine.refer_to("passing").unwrap();
    world.put("passing", [30]);
    assert!(!world.rig.engine.lock().ruins.is_empty());
    world.checkpoint();
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("passing"), [(30, 1)]);
}
