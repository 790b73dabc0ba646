//! What is there again after the server ended, however it did, and what a reply waits for.
//!
//! The disk is the simulated one of the journal's tests, and nothing happens unless it is told to.

mod checkpoints;
mod full_disk;
mod keys;
mod replies;
mod slow_disk;

use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;
use manyhands::wire::token::LeaseToken;

use super::*;
use crate::journal::tests::beside::Beside;
use crate::journal::tests::disk::Disk;
use crate::journal::tests::random::Random;
use crate::journal::{self, Opened as Journaled, Upkeep, Writer};
use crate::queue::{
    Ack, Cause, Durability, Failed, Order, Outcome, Patience, Prepared, QueueOptions, Retry,
    SETTLED_LEN_MAX, SettledBy, TaskId, Terms, Token,
};

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
    World { rig: Rig::new(engine, &Limits::default()), writer, upkeep, restored }
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
        let state = self.rig.engine.lock(0);
        let journal = &state.log.as_ref().unwrap().journal;
        for queue_log in state.queues.values().filter_map(|hosted| hosted.queue_log.as_ref()) {
            for (task, stored) in queue_log.ledger.from(TaskId(0)) {
                stored.read(journal).unwrap_or_else(|error| panic!("{task:?}: {error}"));
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
    fn call<W>(&mut self, ticket: Ticket<Called<W>>) -> Outcome
    where
        W: Future<Output = Option<Completion>> + 'static,
    {
        self.call_of(Caller::IN_PROCESS, Reference { queue: 0, serial: 0 }, ticket)
    }

    fn call_of<W>(&mut self, caller: Caller, at: Reference, ticket: Ticket<Called<W>>) -> Outcome
    where
        W: Future<Output = Option<Completion>> + 'static,
    {
        let is_ready = match &ticket.called {
            Ok(Called::Now(Outcome::Task(grant))) => !Queue::is_evicted(&grant.payload),
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
        let got = self.rig.classic.get(client.presence.caller(), tasks, 5, Wait::No);
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
        let taking = Taking { settled_by: SettledBy::TokenWithin(hold), ..Taking::one(5) };
        let presence = self.rig.classic.enter("leaser", &"127.0.0.1:1".into());
        let caller = presence.caller();
        let called = {
            let engine = &self.rig.engine;
            let mut state = engine.lock(0);
            let called = engine.take(&mut state, caller, reference, taking, Wait::No, false);
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
        let mut state = self.rig.engine.lock(0);
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
    ticket: Ticket<Called<impl Future<Output = Option<Completion>> + 'static>>,
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
    let state = world.rig.engine.lock(0);
    let facts = state.queues[&id].queue.facts(TaskId(0)).unwrap();
    let origin = facts.origin.unwrap();
    assert_eq!((&*origin.queue, origin.task, origin.attempt), ("tasks", TaskId(0), 2));
    let worker = Some("MainProcess at 127.0.0.1:1".into());
    let crashed = Failed { cause: Cause::Crashed, worker };
    assert_eq!(origin.history, [crashed.clone(), crashed]);
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
fn a_task_that_was_revoked_does_not_come_back_after_a_restart() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1]);
    let grant = world.lease("tasks", Duration::from_secs(1));
    assert_eq!(number(&grant), 1);
    world.put_with("tasks", 2, Terms { key: Some(b"a key"[..].into()), ..Terms::default() });
    world.put("tasks", [3]);
    let tasks = world.rig.engine.open("tasks").unwrap();
    for task in [0, 1] {
        assert!(world.rig.engine.revoke(tasks, TaskId(task)).called.unwrap());
    }
    let has_leases = |caller| world.rig.engine.has_leases(Caller(caller));
    assert!(!(0..100).any(has_leases), "its holder has nothing any more");
    world.sync();
    let mut world = world.kill(&disk);
    assert_eq!(world.drain("tasks"), [(3, 1)]);
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 1);
}

#[test]
fn what_a_client_has_declared_can_be_dropped_after_a_restart() {
    let (disk, mut world) = tasks(at_once().results("kept"));
    world.rig.engine.configure("calls", QueueOptions::default().results("answers")).unwrap();
    world.sync();
    let world = world.kill(&disk);
    let engine = &world.rig.engine;
    for name in ["calls", "answers"] {
        assert_eq!(engine.drop_queue(name, true).unwrap().0, 0);
    }
    for name in ["tasks", "kept"] {
        assert!(engine.drop_queue(name, true).is_err(), "{name} is declared by the server");
    }
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
    assert_eq!(world.rig.engine.redrive(dead, Redriving::of(100)).called.unwrap(), 1);
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
    assert_eq!(world.ack("tasks", grants[0].token), Ack::Accepted);
    world.rig.pass(Duration::from_secs(31));
    assert_eq!(world.rig.look("tasks", Queue::leased), 0);
    let mut world = world.kill(&disk);
    assert_eq!(world.ack("tasks", grants[1].token), Ack::Accepted, "late, but nobody has it since");
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
    let (engine, worker) = (world.rig.engine.clone(), world.rig.client("a"));
    let taking = Taking {
        protocol_max: 5,
        settled_by: SettledBy::TokenWithin(A_WHILE),
        is_informed: false,
        max: 1,
        bytes_max: usize::MAX,
    };
    let (session, tasks) = (worker.presence.caller(), worker.tasks.reference);
    let (shown, batch) = (Shown::default(), &mut Batch::default());
    let taken = engine.get_many(session, tasks, taking, Wait::Forever, &shown, batch);
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
    assert!(first.token.lease < second.token.lease);
}

#[test]
fn unfinished_tasks_are_counted_on() {
    let (disk, mut world) = tasks(at_once());
    world.put("tasks", [1, 2, 3]);
    assert_eq!(world.drain("tasks").len(), 3);
    let reference = world.rig.engine.open("tasks").unwrap();
    let done = world.rig.engine.task_done(reference);
    assert_eq!(world.call(done), Outcome::Done);
    let world = world.kill(&disk);
    assert_eq!(world.rig.look("tasks", Queue::unfinished), 2);
}

#[test]
fn a_task_that_our_own_client_acked_counts_as_done_once_across_restarts() {
    for (options, result) in [(at_once(), None), (at_once().results("results"), Some(item(9)))] {
        let (disk, mut world) = tasks(options);
        world.put("tasks", [1, 2, 3]);
        let worker = world.rig.client("a");
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
    let worker = world.rig.client("a");
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
            let worker = world.rig.client("a");
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
    let shut = world.rig.engine.shut_down(reference, true);
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
    let state = world.rig.engine.lock(0);
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
