//! The simulated world: an engine, the clients that call it and leave it, and a clock that stands
//! still until it is put forward. Everything that happens comes from one seed.
//!
//! The clients are unmodified Python's as a connection presents them to the engine. A server with a
//! disk has one life after the other, and what it forgets is what nobody was told of.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use manyhands::wire::pickle::{Codec, Payload};

use super::clients::Client;
use super::lives::{Due, Past};
use super::machine::{BEGIN, Machine, begin};
use super::model::{Answer, CallId, Counts, Item, Model};
use super::ours::Known;
use super::record::Recorder;
use super::setting::{Action, Setting};
use crate::journal::tests::disk::Disk;
use crate::journal::tests::random::Random;
use crate::queue::Time;

/// The queues of every world.
pub(super) const TASKS: usize = 0;
pub(super) const RESULTS: usize = 1;
pub(super) const DEAD: usize = 2;
pub(super) const NAMES: [&str; 3] = ["tasks", "results", "dead"];

/// Clients that are there at one time, at most.
const CLIENTS_MAX: usize = 6;
/// Turns of the timer at one instant; more would mean that it spins.
const TURNS_MAX: usize = 10_000;

/// What was found to be wrong, in words.
#[derive(Debug)]
pub(super) struct Wrong(pub(super) String);

pub(super) type Verdict = Result<(), Wrong>;

macro_rules! demand {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err($crate::sim::world::Wrong(format!($($why)+)));
        }
    };
}
pub(super) use demand;

pub(super) struct World {
    pub(super) random: Random,
    pub(super) disk: Disk,
    pub(super) machine: Machine,
    pub(super) model: Model,
    pub(super) setting: Setting,
    /// What the timer sleeps for.
    pub(super) armed: Option<Time>,
    pub(super) clients: Vec<Client>,
    /// What the engine answered since the model was last asked.
    pub(super) answers: Vec<(CallId, Answer)>,
    /// What the model has answered and the client not heard yet.
    pub(super) due: BTreeMap<CallId, Due>,
    /// What was told together with other answers.
    pub(super) told_beside: Vec<Due>,
    /// The last state with a lease that somebody was told of since the model was last asked.
    pub(super) told_leases: Option<usize>,
    /// Leases that somebody was told of.
    pub(super) tokens: Vec<Known>,
    pub(super) past: Past,
    /// Numbers of leases so far.
    pub(super) lease_numbers: BTreeSet<(usize, u64)>,
    pub(super) history: Recorder,
    /// Whether the clients know whose result they put, so that the history tells everything.
    pub(super) is_attributable: bool,
    pub(super) may_expire: bool,
    /// What it was by the time of day at the begin of the clock, in milliseconds.
    pub(super) unix: u64,
    pub(super) seen: BTreeMap<&'static str, u64>,
    counter: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let setting = Setting::draw(&mut random);
        Self::within(setting, random)
    }

    pub(super) fn within(setting: Setting, random: Random) -> Self {
        let disk = Disk::default();
        let machine = if setting.has_disk {
            Machine::on(&disk, &setting, begin(), BEGIN).expect("it has no fault yet")
        } else {
            Machine::in_memory(&setting)
        };
        let results = setting.tasks.results.as_ref().map(|_| RESULTS);
        let queues = vec![
            (setting.tasks.clone(), results, DEAD),
            (setting.results.clone(), None, DEAD),
            (setting.dead.clone(), None, DEAD),
        ];
        let spread = machine.engine.random();
        let model = Model::new(begin(), queues, spread);
        let mut history = Recorder::default();
        history.queues(&setting);
        Self {
            random,
            past: Past::new(&model, machine.durable()),
            model,
            armed: machine.arm(),
            machine,
            disk,
            clients: vec![],
            answers: vec![],
            due: BTreeMap::new(),
            told_beside: vec![],
            told_leases: None,
            tokens: vec![],
            unix: BEGIN,
            lease_numbers: BTreeSet::new(),
            history,
            is_attributable: true,
            may_expire: setting.tasks.expires.is_some(),
            setting,
            seen: BTreeMap::new(),
            counter: 0,
        }
    }

    /// Lives until the end of its time, and leaves everything at rest.
    pub(super) fn live(&mut self) -> Verdict {
        self.tempt_fate();
        for _ in 0..self.setting.steps {
            if self.setting.has_disk {
                // So that no two things that are due are due together.
                let passes = Duration::from_millis(1 + self.random.next() % 3);
                self.pass(passes)?;
            }
            self.act()?;
        }
        self.end()
    }

    fn act(&mut self) -> Verdict {
        self.provide_room()?;
        match self.setting.action(&mut self.random) {
            Action::Connect if self.clients.len() < CLIENTS_MAX => self.connect(),
            Action::Connect => {}
            Action::Pass => {
                let most = [1, 1000, 3000, 30_000][self.random.below(4)];
                let passes = Duration::from_millis(self.random.next() % most);
                return self.pass(passes);
            }
            Action::Write => return self.work(Machine::write),
            Action::Sync => {
                return self.sync();
            }
            Action::Checkpoint => return self.checkpoint(),
            Action::Fill => return self.fill(),
            Action::Crash => return self.crash(),
            _ if self.clients.is_empty() => self.connect(),
            action => {
                let at = self.random.below(self.clients.len());
                self.let_act(at, action)?;
            }
        }
        self.compare()
    }

    fn let_act(&mut self, at: usize, action: Action) -> Verdict {
        let waits = self.clients[at].waits();
        match action {
            Action::Kill if self.random.percent(80) => self.kill(at, false),
            Action::Kill | Action::KillUnread => self.kill(at, true),
            Action::GiveUp => self.give_up(at),
            _ if waits => {}
            Action::PutTask => return self.put(at, TASKS),
            Action::PutResult => return self.put(at, RESULTS),
            Action::GetTask => return self.get(at, TASKS),
            Action::GetResult => return self.get(at, RESULTS),
            Action::GetDead => return self.get(at, DEAD),
            Action::TaskDone => return self.task_done(at),
            Action::Join => return self.join(at),
            Action::Exit => return self.exit(at),
            Action::Reconnect => self.reconnect(at),
            action if self.clients[at].is_native() => return self.let_ours_act(at, action),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(super) fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    // ---- time

    pub(super) fn pass(&mut self, duration: Duration) -> Verdict {
        let until = self.model.now + duration;
        loop {
            self.provide_room()?;
            if until <= self.model.now && until != self.machine.engine.clock().now() {
                // The server was away longer than that.
                return Ok(());
            }
            self.turn_timer()?;
            let next = [self.model.next_time(), self.armed].into_iter().flatten().min();
            let next = next.unwrap_or(until).max(self.model.now).min(until);
            let is_over = next == until;
            self.machine.engine.clock().put_forward(next.since(self.model.now));
            for between in self.model.pass(next) {
                self.past.remember(&between, self.machine.appended());
            }
            self.history.now(next);
            self.turn_timer()?;
            self.compare()?;
            if is_over {
                return Ok(());
            }
        }
    }

    /// Does what `keep_time` does.
    pub(super) fn turn_timer(&mut self) -> Verdict {
        for _ in 0..TURNS_MAX {
            let is_notified = self.machine.timer_is_told();
            let is_due = self.armed.is_some_and(|armed| armed <= self.machine.engine.clock().now());
            if !is_notified && !is_due {
                return Ok(());
            }
            self.machine.expire();
            self.armed = self.machine.arm();
        }
        Err(Wrong("the timer spins".into()))
    }

    // ---- judgement

    /// What the engine answered and holds is what the model says.
    pub(super) fn compare(&mut self) -> Verdict {
        // What the timer goes on with is in frames of its own, which no reply waits for.
        let appended = self.machine.appended();
        self.turn_timer()?;
        self.model.end_step();
        let changed = self.past.remember(&self.model, appended);
        let at = self.past.now();
        self.strike();
        loop {
            let before = self.answers.len();
            self.poll_replies();
            self.poll()?;
            self.poll_replies();
            // Whoever goes on with a batch lets others go on.
            if self.answers.len() == before {
                break;
            }
        }
        for (call, answer) in self.model.hear() {
            self.due.insert(call, Due { answer, at, changed });
        }
        self.past.remember(&self.model, self.machine.appended());
        self.compare_pushes()?;
        for (call, answer) in std::mem::take(&mut self.answers) {
            let due = self.due.remove(&call);
            let expected = due.as_ref().map(|due| due.answer);
            demand!(Some(answer) == expected, "{call} was answered {answer:?}, not {expected:?}");
            self.promise(due)?;
        }
        for due in std::mem::take(&mut self.told_beside) {
            self.promise(Some(due))?;
        }
        if let Some(state) = self.told_leases.take().filter(|_| self.setting.has_disk) {
            self.past.promise_written(state, self.machine.written())?;
        }
        let late = &self.due;
        demand!(self.setting.has_disk || late.is_empty(), "not answered: {late:?}");
        for (queue, name) in NAMES.into_iter().enumerate() {
            let reference = self.machine.engine.open(name).unwrap();
            let counts = self.machine.engine.look(reference, |queue| Counts {
                ready: queue.len(),
                held: queue.leased(),
                delayed: queue.delayed(),
                unfinished: queue.unfinished(),
            });
            let (counts, expected) = (counts.unwrap(), self.model.counts(queue));
            demand!(counts == expected, "{name} has {counts:?}, expected {expected:?}");
        }
        Ok(())
    }

    /// A client was told.
    fn promise(&mut self, due: Option<Due>) -> Verdict {
        let Some(due) = due.filter(|_| self.setting.has_disk) else { return Ok(()) };
        // Whoever finds no room may be told with others of its batch, whose leases are only written.
        let is_refused = due.answer == Answer::Full && due.changed;
        if due.answer == Answer::Extended || is_refused {
            return self.past.promise_written(due.at, self.machine.written());
        }
        self.past.promise(&due, self.machine.durable())
    }

    /// Sometimes a client that waits dies before it hears its answer.
    fn strike(&mut self) {
        if !self.random.percent(3) {
            return;
        }
        let may_die = self.setting.happens(Action::Kill);
        let waiting = self.clients.iter().position(|client| client.waiting.is_some());
        if let Some(at) = waiting.filter(|_| may_die) {
            self.kill(at, false);
        }
    }

    pub(super) fn poll(&mut self) -> Verdict {
        let mut context = Context::from_waker(Waker::noop());
        for at in 0..self.clients.len() {
            let Some((call, queue, mut waiter)) = self.clients[at].waiting.take() else { continue };
            match Pin::new(&mut waiter).poll(&mut context) {
                Poll::Pending => self.clients[at].waiting = Some((call, queue, waiter)),
                Poll::Ready(Some(completion)) => {
                    let then = std::mem::take(&mut self.clients[at].then);
                    self.go_on(at, call, queue, completion, then)?;
                }
                Poll::Ready(None) => return Err(Wrong(format!("{call} was not answered"))),
            }
        }
        self.poll_lines()
    }

    /// Everybody leaves and everything due happens; what is left is counted.
    fn end(&mut self) -> Verdict {
        self.be_kind()?;
        while let Some(last) = self.clients.len().checked_sub(1) {
            if !self.clients[last].waits() && self.random.percent(50) {
                self.exit(last)?;
            } else {
                self.kill(last, false);
            }
            self.compare()?;
        }
        while self.model.next_time().or(self.armed).is_some() {
            self.pass(Duration::from_secs(3600))?;
        }
        // Results may have waited for those of tasks that are taken now.
        for queue in [RESULTS, DEAD, TASKS, RESULTS] {
            let name = NAMES[queue];
            let mut left = vec![];
            while let Some(payload) = self.machine.take(queue) {
                left.push(item(&payload));
            }
            let expected = self.model.drain(queue);
            demand!(left == expected, "in {name} is left {left:?}, expected {expected:?}");
            left.into_iter().for_each(|item| self.history.left(queue, item));
        }
        let memory = self.machine.engine.memory_used();
        demand!(memory == 0, "{memory} bytes are taken by nothing");
        Ok(())
    }
}

/// Longest payload beside the item's number, in bytes.
const PADDING_MAX: u32 = 600;

pub(super) fn payload(item: Item) -> Payload {
    let mut bytes = vec![b'J'];
    bytes.extend(item.to_le_bytes());
    bytes.extend((0..item * 37 % PADDING_MAX).map(|at| (item ^ at).to_le_bytes()[0]));
    Payload { codec: codec(item), prelude_len: 0, bytes: Bytes::from(bytes) }
}

fn codec(item: Item) -> Codec {
    match item % 3 {
        0 => Codec::Pickle(2),
        1 => Codec::Json,
        _ => Codec::Bytes,
    }
}

pub(super) fn item(payload: &Payload) -> Item {
    let item = Item::from_le_bytes(payload.bytes[1..5].try_into().unwrap());
    assert_eq!(payload.codec, codec(item), "item {item} is of another codec than was put");
    item
}
