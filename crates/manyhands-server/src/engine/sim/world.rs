//! The simulated world: an engine, the clients that call it and leave it, and a clock that stands
//! still until it is put forward. Everything that happens comes from one seed.
//!
//! The clients are unmodified Python's as a connection presents them to the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use manyhands::wire::message::Wait;
use manyhands::wire::pickle::Payload;

use super::super::*;
use super::model::{Answer, Asked, CallId, Counts, Item, Model, Patience, Process, SessionNumber};
use super::record::Recorder;
use crate::journal::tests::random::Random;
use crate::queue::{Delivery, Grant};

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

type Verdict = Result<(), Wrong>;

macro_rules! demand {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(Wrong(format!($($why)+)));
        }
    };
}

/// What a seed decides before anything happens.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    tasks: QueueOptions,
    results: QueueOptions,
    steps: usize,
    /// Odds of each action, against each other.
    odds: Vec<(Action, usize)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Connect,
    PutTask,
    PutResult,
    GetTask,
    GetResult,
    GetDead,
    TaskDone,
    Join,
    GiveUp,
    Exit,
    Kill,
    KillUnread,
    Reconnect,
    Pass,
}

pub(super) struct World {
    pub(super) random: Random,
    engine: Arc<Engine>,
    model: Model,
    setting: Setting,
    /// What the timer sleeps for.
    armed: Option<Time>,
    clients: Vec<Client>,
    /// What the engine answered since the model was last asked.
    answers: Vec<(CallId, Answer)>,
    epochs: BTreeSet<(usize, u64)>,
    pub(super) history: Recorder,
    /// Whether the clients know whose result they put, so that the history tells everything.
    pub(super) is_attributable: bool,
    may_expire: bool,
    pub(super) seen: BTreeMap<&'static str, u64>,
    counter: u64,
}

/// A process with a session.
struct Client {
    process: Process,
    session: SessionNumber,
    presence: Presence,
    /// Its references, one to each queue.
    references: Vec<(String, Reference)>,
    waiting: Option<(CallId, usize, Waiter)>,
    /// The task that its put under way is the result of.
    answering: Option<Item>,
    /// What its last call gave it.
    unread: Option<(usize, Grant)>,
    /// What it took and has not answered, as it sees it.
    todo: Vec<Item>,
}

impl Client {
    /// It goes on with the task whose result was not accepted.
    fn resume(&mut self) {
        if let Some(task) = self.answering.take() {
            self.todo.insert(0, task);
        }
    }
}

impl Setting {
    pub(super) fn draw(random: &mut Random) -> Self {
        let seconds = Duration::from_secs;
        let mut tasks = QueueOptions::default();
        let mut results = QueueOptions::default();
        if random.percent(60) {
            tasks.results = Some(NAMES[RESULTS].into());
            results.ordered = random.percent(30);
        }
        tasks.dead = Some(NAMES[DEAD].into());
        tasks.attempts = [1, 2, 3, 10, 0][random.below(5)];
        tasks.maxsize = [0, 0, 1, 3][random.below(4)];
        results.maxsize = [0, 0, 0, 2][random.below(4)];
        results.attempts = 0;
        tasks.max_run = [None, None, Some(seconds(4))][random.below(3)];
        tasks.expires = [None, None, None, Some(seconds(20))][random.below(4)];
        tasks.dedup = seconds(10);
        tasks.backoff = [seconds(0), seconds(0), seconds(2)][random.below(3)];
        if random.percent(5) {
            tasks.delivery = Delivery::Cpython;
        }
        let odds = [
            (Action::Connect, 8),
            (Action::PutTask, 16),
            (Action::PutResult, 14),
            (Action::GetTask, 20),
            (Action::GetResult, 6),
            (Action::GetDead, 2),
            (Action::TaskDone, 4),
            (Action::Join, 1),
            (Action::GiveUp, 3),
            (Action::Exit, 3),
            (Action::Kill, 3),
            (Action::KillUnread, 2),
            (Action::Reconnect, 2),
            (Action::Pass, 14),
        ];
        // Each seed has its own weather: some things never happen in it, some often.
        let weather = [0, 1, 1, 1, 4];
        let odds = odds.map(|(action, odds)| (action, odds * weather[random.below(5)]));
        Self { tasks, results, steps: 20 + random.below(100), odds: odds.into() }
    }

    fn action(&self, random: &mut Random) -> Action {
        let whole: usize = self.odds.iter().map(|(_, odds)| odds).sum();
        let mut at = random.below(whole.max(1));
        for (action, odds) in &self.odds {
            if at < *odds {
                return *action;
            }
            at -= odds;
        }
        Action::Pass
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let setting = Setting::draw(&mut random);
        let engine = engine(&setting);
        let dead = QueueOptions::default().attempts(0);
        let results = setting.tasks.results.as_ref().map(|_| RESULTS);
        let queues = vec![
            (setting.tasks.clone(), results, DEAD),
            (setting.results.clone(), None, DEAD),
            (dead, None, DEAD),
        ];
        let spread = engine.lock().step.random;
        let mut history = Recorder::default();
        history.queues(&setting.tasks, &setting.results);
        Self {
            random,
            model: Model::new(queues, spread),
            armed: engine.arm(),
            engine,
            clients: vec![],
            answers: vec![],
            epochs: BTreeSet::new(),
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
        for _ in 0..self.setting.steps {
            self.act()?;
        }
        self.end()
    }

    fn act(&mut self) -> Verdict {
        let action = self.setting.action(&mut self.random);
        match action {
            Action::Connect if self.clients.len() < CLIENTS_MAX => self.connect(),
            Action::Connect => {}
            Action::Pass => {
                let most = [1, 1000, 3000, 30_000][self.random.below(4)] * 1_000_000;
                let passes = Duration::from_nanos(self.random.next() % most);
                return self.pass(passes);
            }
            _ if self.clients.is_empty() => self.connect(),
            _ => {
                let at = self.random.below(self.clients.len());
                self.let_act(at, action);
            }
        }
        self.compare()
    }

    fn let_act(&mut self, at: usize, action: Action) {
        let waits = self.clients[at].waiting.is_some();
        match action {
            Action::Kill if self.random.percent(80) => self.kill(at, false),
            Action::Kill | Action::KillUnread => self.kill(at, true),
            Action::GiveUp => self.give_up(at),
            _ if waits => {}
            Action::PutTask => self.put(at, TASKS),
            Action::PutResult => self.put(at, RESULTS),
            Action::GetTask => self.get(at, TASKS),
            Action::GetResult => self.get(at, RESULTS),
            Action::GetDead => self.get(at, DEAD),
            Action::TaskDone => self.task_done(at),
            Action::Join => self.join(at),
            Action::Exit => self.exit(at),
            Action::Reconnect => self.reconnect(at),
            Action::Connect | Action::Pass => {}
        }
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    // ---- clients

    fn connect(&mut self) {
        let references = NAMES.map(|name| {
            let ident = self.engine.create(name, &[]).unwrap();
            let reference = self.engine.resolve(&ident).unwrap();
            (ident, reference)
        });
        let process = self.next();
        self.begin_session(process, references.into());
    }

    fn begin_session(&mut self, process: Process, references: Vec<(String, Reference)>) {
        let session = self.next();
        let presence = self.engine.enter("MainProcess", &"127.0.0.1:1".into());
        for (_, reference) in &references {
            self.engine.look(presence.id(), *reference, Queue::len).unwrap();
        }
        self.model.enter(session, process);
        self.history.enter(process, session);
        self.clients.push(Client {
            process,
            session,
            presence,
            references,
            waiting: None,
            answering: None,
            unread: None,
            todo: vec![],
        });
    }

    /// The process says nothing any more; perhaps it has not read its last reply.
    fn kill(&mut self, at: usize, unread: bool) {
        let Client { session, presence, waiting, unread: last, process, .. } =
            self.clients.remove(at);
        self.history.killed(process);
        let cut = waiting.is_some();
        if let Some((call, _, waiter)) = waiting {
            drop(waiter);
            self.model.give_up(session, call);
            self.see("killed while it waited");
        }
        self.vanish(session, presence, cut, last.filter(|_| unread && !cut));
    }

    fn vanish(
        &mut self,
        session: SessionNumber,
        presence: Presence,
        cut: bool,
        unread: Option<(usize, Grant)>,
    ) {
        presence.depart(cut);
        if let Some((queue, grant)) = unread {
            let reference = self.engine.open(NAMES[queue]).unwrap();
            self.engine.take_back(presence.id(), reference, grant.token);
            self.model.unread(session);
            self.see("a reply was not read");
        }
        drop(presence);
        self.model.vanish(session);
    }

    fn exit(&mut self, at: usize) {
        let Client { session, presence, references, process, .. } = self.clients.remove(at);
        for (ident, _) in &references {
            self.engine.decref(ident);
        }
        presence.depart(false);
        drop(presence);
        self.model.exit(session);
        self.history.exited(process);
    }

    /// The process closes its session and goes on with another one.
    fn reconnect(&mut self, at: usize) {
        let client = self.clients.remove(at);
        self.vanish(client.session, client.presence, false, None);
        self.begin_session(client.process, client.references);
        // Until the verdict it is not known whose result it brings.
        self.is_attributable &= client.todo.is_empty();
        self.clients.last_mut().unwrap().todo = client.todo;
        self.see("moved to another session");
    }

    /// As Ctrl-C does.
    fn give_up(&mut self, at: usize) {
        let Some((call, _, waiter)) = self.clients[at].waiting.take() else { return };
        drop(waiter);
        let client = &mut self.clients[at];
        client.resume();
        self.model.give_up(client.session, call);
        self.see("gave up");
    }

    // ---- calls

    fn put(&mut self, at: usize, queue: usize) {
        let item = Item::try_from(self.next()).unwrap();
        let mut asked = Asked::default();
        if queue == TASKS {
            asked.key = self.random.percent(20).then(|| [0, 1, 2, 3][self.random.below(4)]);
            let later = |random: &mut Random| {
                random.percent(15).then(|| Duration::from_nanos(1 + random.next() % 10_000_000_000))
            };
            (asked.delay, asked.expires) = (later(&mut self.random), later(&mut self.random));
        }
        let (wait, patience) = self.patience();
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread = None;
        if queue == RESULTS && self.setting.tasks.results.is_some() && !client.todo.is_empty() {
            client.answering = Some(client.todo.remove(0));
        }
        let is_special = asked != Asked::default() || queue == TASKS && self.may_expire;
        self.history.put(client.session, call, queue, item, client.answering, is_special);
        let terms = (asked != Asked::default()).then(|| Box::new(terms(asked)));
        let reference = client.references[queue].1;
        self.model.put(client.session, queue, call, (item, asked), patience);
        let called = self.engine.put(client.presence.id(), reference, payload(item), terms, wait);
        self.called(at, call, queue, called);
    }

    fn get(&mut self, at: usize, queue: usize) {
        let (wait, patience) = self.patience();
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread = None;
        self.history.get(client.session, call, queue);
        self.model.get(client.session, queue, call, patience);
        let reference = client.references[queue].1;
        let called = self.engine.get(client.presence.id(), reference, 5, wait);
        self.called(at, call, queue, called);
    }

    fn join(&mut self, at: usize) {
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread = None;
        self.history.join(client.session, call, TASKS);
        self.model.join(client.session, TASKS, call);
        let reference = client.references[TASKS].1;
        let called = self.engine.join(client.presence.id(), reference);
        self.called(at, call, TASKS, called);
    }

    fn task_done(&mut self, at: usize) {
        let call = self.next();
        let client = &mut self.clients[at];
        client.unread = None;
        if !client.todo.is_empty() {
            client.todo.remove(0);
        }
        self.history.task_done(client.session, call, TASKS);
        self.model.task_done(client.session, TASKS, call);
        let reference = client.references[TASKS].1;
        let answer = match self.engine.task_done(client.presence.id(), reference) {
            Ok(_) => Answer::Done,
            Err(_) => Answer::TooManyDone,
        };
        self.hear(call, answer);
    }

    fn patience(&mut self) -> (Wait, Patience) {
        match self.random.below(3) {
            0 => (Wait::No, Patience::No),
            1 => (Wait::Forever, Patience::Forever),
            _ => {
                let wait = Duration::from_nanos(1 + self.random.next() % 5_000_000_000);
                (Wait::For(wait), Patience::Until(self.model.now + wait))
            }
        }
    }

    fn called(&mut self, at: usize, call: CallId, queue: usize, called: Result<Called, CallError>) {
        match called {
            Ok(Called::Now(outcome)) => self.answered(at, call, queue, outcome),
            Ok(Called::Later(waiter)) => self.clients[at].waiting = Some((call, queue, waiter)),
            Err(CallError::Stale) => {
                self.clients[at].answering = None;
                self.see("a result came too late");
                self.hear(call, Answer::Stale);
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn answered(&mut self, at: usize, call: CallId, queue: usize, outcome: Outcome) {
        let answer = match outcome {
            Outcome::Accepted => {
                self.clients[at].answering = None;
                Answer::Accepted
            }
            Outcome::Known => Answer::Known,
            Outcome::Full => {
                self.clients[at].resume();
                Answer::Full
            }
            Outcome::Empty => Answer::Empty,
            Outcome::Joined => Answer::Joined,
            Outcome::Task(grant) => {
                let item = item(&grant.payload);
                if queue == TASKS && self.setting.tasks.delivery == Delivery::Leased {
                    self.clients[at].todo.push(item);
                }
                let answer = Answer::Item(item, grant.token.attempt);
                let is_new = self.epochs.insert((queue, grant.token.epoch));
                assert!(is_new, "lease {} of {} again", grant.token.epoch, NAMES[queue]);
                self.clients[at].unread = Some((queue, grant));
                answer
            }
            other => panic!("{other:?}"),
        };
        self.hear(call, answer);
    }

    fn hear(&mut self, call: CallId, answer: Answer) {
        self.history.answer(call, answer);
        self.answers.push((call, answer));
    }

    // ---- time

    fn pass(&mut self, duration: Duration) -> Verdict {
        let until = self.model.now + duration;
        loop {
            self.turn_timer()?;
            let next = [self.model.next_time(), self.armed].into_iter().flatten().min();
            let next = next.unwrap_or(until).max(self.model.now).min(until);
            let is_over = next == until;
            self.engine.clock.put_forward(next.since(self.model.now));
            self.model.pass(next);
            self.history.now(next);
            self.turn_timer()?;
            self.compare()?;
            if is_over {
                return Ok(());
            }
        }
    }

    /// Does what `keep_time` does.
    fn turn_timer(&mut self) -> Verdict {
        for _ in 0..TURNS_MAX {
            let mut context = Context::from_waker(Waker::noop());
            let is_notified = pin!(self.engine.timer.notified()).poll(&mut context).is_ready();
            let is_due = self.armed.is_some_and(|armed| armed <= self.engine.clock.now());
            if !is_notified && !is_due {
                return Ok(());
            }
            self.engine.expire();
            self.armed = self.engine.arm();
        }
        Err(Wrong("the timer spins".into()))
    }

    // ---- judgement

    /// What the engine answered and holds is what the model says.
    fn compare(&mut self) -> Verdict {
        self.turn_timer()?;
        self.model.follow_up();
        self.strike();
        self.poll();
        let mut expected = self.model.hear();
        let mut answers = std::mem::take(&mut self.answers);
        expected.sort();
        answers.sort();
        demand!(answers == expected, "answered {answers:?}, expected {expected:?}");
        for (queue, name) in NAMES.into_iter().enumerate() {
            let reference = self.engine.open(name).unwrap();
            let counts = self.engine.look(SessionId::NOBODY, reference, |queue| Counts {
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

    /// Sometimes a client that waits dies before it hears its answer.
    fn strike(&mut self) {
        if !self.random.percent(3) {
            return;
        }
        let odds = self.setting.odds.iter();
        let may_die = odds.into_iter().any(|(action, odds)| *action == Action::Kill && *odds > 0);
        let waiting = self.clients.iter().position(|client| client.waiting.is_some());
        if let Some(at) = waiting.filter(|_| may_die) {
            self.kill(at, false);
        }
    }

    fn poll(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for at in 0..self.clients.len() {
            let Some((call, queue, mut waiter)) = self.clients[at].waiting.take() else { continue };
            match Pin::new(&mut waiter).poll(&mut context) {
                Poll::Pending => self.clients[at].waiting = Some((call, queue, waiter)),
                Poll::Ready(outcome) => self.answered(at, call, queue, outcome.unwrap()),
            }
        }
    }

    /// Everybody leaves and everything due happens; what is left is counted.
    fn end(&mut self) -> Verdict {
        while let Some(last) = self.clients.len().checked_sub(1) {
            if self.clients[last].waiting.is_none() && self.random.percent(50) {
                self.exit(last);
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
            let reference = self.engine.open(name).unwrap();
            let mut left = vec![];
            while let Ok(Called::Now(Outcome::Task(grant))) =
                self.engine.get(SessionId::NOBODY, reference, 5, Wait::No)
            {
                left.push(item(&grant.payload));
            }
            let expected = self.model.drain(queue);
            demand!(left == expected, "in {name} is left {left:?}, expected {expected:?}");
            left.into_iter().for_each(|item| self.history.left(queue, item));
        }
        let memory = self.engine.lock().step.budget.used;
        demand!(memory == 0, "{memory} bytes are taken by nothing");
        Ok(())
    }
}

fn engine(setting: &Setting) -> Arc<Engine> {
    let mut engine = Engine::new(&Limits::default(), true, 7);
    engine.clock = Clock::manual(1_700_000_000_000);
    engine.declare(NAMES[TASKS], setting.tasks.clone()).unwrap();
    engine.declare(NAMES[RESULTS], setting.results.clone()).unwrap();
    engine.declare(NAMES[DEAD], QueueOptions::default().attempts(0)).unwrap();
    Arc::new(engine)
}

fn terms(Asked { key, delay, expires }: Asked) -> Terms {
    Terms { key: key.map(|key| vec![key].into()), delay, expires, ..Terms::default() }
}

pub(super) fn payload(item: Item) -> Payload {
    let mut bytes = vec![b'J'];
    bytes.extend(item.to_le_bytes());
    Payload { protocol: 2, prelude_len: 0, bytes: Bytes::from(bytes) }
}

pub(super) fn item(payload: &Payload) -> Item {
    Item::from_le_bytes(payload.bytes[1..5].try_into().unwrap())
}
