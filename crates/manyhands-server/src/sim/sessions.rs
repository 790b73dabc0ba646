//! Simulated worlds of whole sessions: what the server reads and writes, and the client of the native
//! protocol on the other side.
//!
//! Both are the product's own code: [`frontend::serve`] from the handshake on, over a
//! [connection](link) whose bytes the world moves, holds back and loses, and the client's core, which
//! connects again and makes calls again. [Programs](clients) ask for this and that, and write down
//! what they are told; the [history](super::history) is judged as that of every other world. Once in
//! a while everybody is connected and all bytes have come: then nobody may wait for what is there.
//!
//! One thread polls everything, in an order that the seed decides, by a clock that stands still.

mod clients;
mod link;
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use manyhands::wire::auth::AuthKey;
use manyhands::wire::pickle;
use tokio::sync::Semaphore;
use tokio::task::{unconstrained, yield_now};
use tokio::time::advance;
use tokio_util::sync::CancellationToken;

use self::clients::Client;
use self::link::Link;
use super::Ended;
use super::machine::{BEGIN, Machine, begin};
use super::model::Item;
use super::record::Recorder;
use super::setting::Setting;
use super::world::{NAMES, RESULTS, TASKS, Verdict, Wrong, demand};
use crate::config::{Limits, Policy};
use crate::error::ConnectionError;
use crate::frontend;
use crate::frontend::alone::Alone;
use crate::frontend::classic::shared::Shared;
use crate::frontend::shared::{self, REDRIVES_MAX};
use crate::frontend::turns::Turns;
use crate::journal::tests::disk::Disk;
use crate::journal::tests::random::Random;
use crate::queue::{Delivery, Time};
use crate::slots::{Origin, Slots};

const KEY: &[u8] = b"a key of 16 bytes or more";
/// Programs that run at one time, at most.
const CLIENTS_MAX: usize = 4;
/// Rounds after which everything has come to rest; more would mean that something spins.
const ROUNDS_MAX: usize = 2000;
/// Rounds in which one thing after the other comes to rest that takes some time.
const HEALS_MAX: usize = 40;

/// Whether a session is to be polled.
#[derive(Debug)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The server's side of a connection.
struct Serving {
    session: Pin<Box<dyn Future<Output = Result<(), ConnectionError>>>>,
    flag: Arc<Flag>,
}

struct Sessions {
    random: Random,
    setting: Setting,
    disk: Disk,
    machine: Machine,
    shared: Arc<Shared>,
    slots: Slots,
    /// What the timer sleeps for.
    armed: Option<Time>,
    serving: Vec<Serving>,
    clients: Vec<Client>,
    /// Connections that their clients have left.
    orphans: Vec<Link>,
    history: Recorder,
    /// How many programs make plain calls, in percent.
    plain_percent: usize,
    /// How often the disk is synced and the server ends, of the times that they could.
    sync_percent: usize,
    crash_percent: usize,
    has_credit: bool,
    has_crashed: bool,
    /// How many bytes a client has not read before its session waits for it.
    capacity: usize,
    items: Item,
    unix: u64,
    counter: u64,
    seen: BTreeMap<&'static str, u64>,
}

fn shared(machine: &Machine) -> Arc<Shared> {
    machine.engine.keep_resident();
    let all = shared::Shared {
        idents: machine.classic.idents.clone(),
        engine: machine.engine.clone(),
        key: AuthKey::new(KEY),
        limits: Limits::default(),
        pickle_limits: pickle::Limits::default(),
        policy: Policy { accept_md5: true, create_on_use: true, accept_shutdown: false },
        stop: CancellationToken::new(),
        redrives: Semaphore::new(REDRIVES_MAX),
        turns: Turns::default(),
        alone: Alone::default(),
    };
    let classic = machine.classic.clone();
    Arc::new(Shared { all: Arc::new(all), classic, reception: None })
}

impl Sessions {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut setting = Setting::draw(&mut random);
        setting.tasks.expires = None;
        setting.dead.expires = None;
        // What is on its way when a connection is lost is lost with it, if it was taken for good.
        setting.tasks.delivery = Delivery::default();
        setting.tasks.dedup = Duration::from_secs(24 * 3600);
        setting.results.ordered = false;
        setting.results.maxsize = [0, 1, 1, 3][random.below(4)];
        let disk = Disk::default();
        let machine = match setting.has_disk {
            true => Machine::on(&disk, &setting, begin(), BEGIN).expect("it has no fault yet"),
            false => Machine::in_memory(&setting),
        };
        let mut history = Recorder::default();
        history.queues(&setting);
        Self {
            plain_percent: [0, 50, 100, 100][random.below(4)],
            sync_percent: [10, 100][random.below(2)],
            crash_percent: if setting.has_disk { [0, 15, 60][random.below(3)] } else { 0 },
            has_credit: random.percent(50),
            has_crashed: false,
            capacity: [300, 2000, 1 << 20][random.below(3)],
            shared: shared(&machine),
            slots: Slots::new(100, 1000),
            armed: machine.arm(),
            random,
            setting,
            disk,
            machine,
            serving: vec![],
            clients: vec![],
            orphans: vec![],
            history,
            items: 0,
            unix: BEGIN,
            counter: 0,
            seen: BTreeMap::new(),
        }
    }

    /// Lives until the end of its time, and leaves everything at rest.
    async fn live(&mut self) -> Verdict {
        for _ in 0..40 + self.random.below(160) {
            self.step().await?;
        }
        self.end().await
    }

    async fn step(&mut self) -> Verdict {
        self.provide_room();
        let at = self.random.below(CLIENTS_MAX);
        match self.random.below(100) {
            _ if at >= self.clients.len() => self.start(),
            0..50 => self.act(at),
            50..60 => self.connect(at).await?,
            60..62 => self.lose(at),
            62 => self.kill(at),
            63 if self.random.percent(50) => self.exit(at).await?,
            64..67 => self.clients[at].is_stalled ^= true,
            67..77 => assert!(self.machine.write(), "the disk is good"),
            77..83 if self.random.percent(self.sync_percent) => self.sync(),
            83..88 => {
                let most = [1, 100, 3000][self.random.below(3)];
                let passes = Duration::from_millis(self.random.next() % most);
                self.pass(passes).await?;
            }
            88..92 if self.random.percent(self.crash_percent) => self.crash().await?,
            92 if self.random.percent(50) => self.heal().await?,
            _ => {}
        }
        let most = [0, 1, 20, 300, usize::MAX][self.random.below(5)];
        self.pump(most).await.map(drop)
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Whether the tasks of a queue need results.
    fn is_strict(&self, queue: usize) -> bool {
        queue == TASKS && self.setting.tasks.results.is_some()
    }

    // ---- time and disk

    async fn pass(&mut self, duration: Duration) -> Verdict {
        let until = self.machine.engine.now() + duration;
        loop {
            self.turn_timer()?;
            let now = self.machine.engine.now();
            let next = self.armed.unwrap_or(until).max(now).min(until);
            self.machine.engine.clock().put_forward(next.since(now));
            advance(next.since(now)).await;
            self.history.now(next);
            self.turn_timer()?;
            if next == until {
                return Ok(());
            }
        }
    }

    /// Does what `keep_time` does.
    fn turn_timer(&mut self) -> Verdict {
        for _ in 0..ROUNDS_MAX {
            let is_due = self.armed.is_some_and(|armed| armed <= self.machine.engine.now());
            if !self.machine.timer_is_told() && !is_due {
                return Ok(());
            }
            self.machine.expire();
            self.armed = self.machine.arm();
        }
        Err(Wrong("the timer spins".into()))
    }

    fn sync(&mut self) {
        self.provide_room();
        assert!(self.machine.sync(), "the disk is good");
    }

    /// Does what `keep_room` does.
    fn provide_room(&mut self) {
        assert!(self.machine.keep_room(), "the disk is large");
        self.machine.engine.let_puts_in();
    }

    // ---- connections

    /// The server accepts a connection.
    fn serve_new(&mut self) -> Link {
        let (link, socket) = Link::new(self.capacity);
        let (shared, slot) = (self.shared.clone(), self.slots.enter(Origin::Local));
        let session = async move {
            let slot = slot.expect("there are few");
            frontend::serve(socket, &"a program".into(), &shared, slot).await
        };
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        self.serving.push(Serving { session: Box::pin(session), flag });
        link
    }

    /// The network loses a connection.
    fn lose(&mut self, at: usize) {
        if let Some(link) = &self.clients[at].link {
            link.tear(&mut self.random);
        }
    }

    /// Moves bytes, up to so many for each client, and lets sessions go on; all that is to be done if
    /// there is no bound. Tells whether anything moved.
    async fn pump(&mut self, max: usize) -> Result<bool, Wrong> {
        let (mut quiet, mut is_any) = (0, false);
        for _ in 0..ROUNDS_MAX {
            let mut is_moved = false;
            let first = self.random.below(CLIENTS_MAX);
            for at in 0..self.clients.len() {
                let at = (at + first) % self.clients.len();
                is_moved |= self.move_bytes(at, max)?;
            }
            self.orphans.retain(|orphan| !orphan.is_abandoned());
            for orphan in &self.orphans {
                is_moved |= orphan.move_up(max);
            }
            is_moved |= self.serve().await?;
            self.turn_timer()?;
            is_any |= is_moved;
            quiet = if is_moved { 0 } else { quiet + 1 };
            if max != usize::MAX || quiet == 2 {
                return Ok(is_any);
            }
        }
        Err(Wrong("the bytes never come to rest".into()))
    }

    /// Polls the sessions that are to be polled, in any order. Tells whether there were any.
    async fn serve(&mut self) -> Result<bool, Wrong> {
        for round in 0..ROUNDS_MAX {
            // Those that let others have their turn go on then.
            yield_now().await;
            let mut is_any = false;
            let first = self.random.below(self.serving.len().max(1));
            self.serving.rotate_left(first);
            self.serving.retain_mut(|Serving { session, flag }| {
                if !flag.0.swap(false, Ordering::Relaxed) {
                    return true;
                }
                is_any = true;
                let waker = Waker::from(flag.clone());
                session.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
            });
            if !is_any {
                return Ok(round > 0);
            }
        }
        Err(Wrong("a session spins".into()))
    }

    /// The server is killed, or stops, or the power fails; then it is started again.
    async fn crash(&mut self) -> Verdict {
        self.has_crashed = true;
        if self.random.percent(30) {
            self.see("the server stopped");
            self.shared.stop.cancel();
            self.machine.engine.stop();
            let most = [20, 300, usize::MAX][self.random.below(3)];
            self.pump(most).await?;
            if self.random.percent(80) {
                self.sync();
                self.pump(usize::MAX).await?;
            }
        } else {
            self.see("the server was killed");
        }
        (0..self.clients.len()).for_each(|at| self.renew(at));
        self.history.crash();
        (0..self.clients.len()).for_each(|at| self.renew(at));
        self.machine.end();
        let links = self.clients.iter().filter_map(|client| client.link.as_ref());
        links.for_each(|link| link.end_server(&mut self.random));
        self.serving.clear();
        self.orphans.clear();
        match self.random.percent(50) {
            true => self.disk.lose_power(&mut self.random),
            false => self.disk.restart(),
        }
        let now = self.machine.engine.now();
        let machine = Machine::on(&self.disk, &self.setting, now, self.unix);
        self.machine = machine.expect("it has no fault");
        self.shared = shared(&self.machine);
        self.armed = self.machine.arm();
        Ok(())
    }

    // ---- judgement

    /// Everybody is connected and reads, and all that was asked is done as far as it can be.
    async fn heal(&mut self) -> Verdict {
        for _ in 0..HEALS_MAX {
            for at in 0..self.clients.len() {
                self.clients[at].is_stalled = false;
                self.connect(at).await?;
            }
            self.pump(usize::MAX).await?;
            self.sync();
            // What is durable now may have more follow.
            let is_moved = self.pump(usize::MAX).await?;
            if !is_moved && self.clients.iter().all(Client::is_content) {
                self.see("all was well");
                return self.compare();
            }
        }
        Err(Wrong("the clients do not come to rest".into()))
    }

    /// Nobody waits for what is there, and nothing is out that nobody has.
    fn compare(&self) -> Verdict {
        let connected = self.clients.iter().filter(|client| client.link.is_some()).count();
        let going_on = self.serving.len();
        demand!(going_on == connected, "{going_on} sessions go on, of {connected} clients");
        let look = |queue: usize| {
            self.machine.engine.inspect(NAMES[queue], |it| (it.len(), it.leased(), it.is_full()))
        };
        for queue in [TASKS, RESULTS] {
            let (ready, leased, is_full) = look(queue);
            let name = NAMES[queue];
            let known: usize = self.clients.iter().map(|client| client.tasks_of(queue)).sum();
            // A lease outlives the server, whether or not anybody was told of it.
            let is_known = leased <= known || self.has_crashed;
            demand!(is_known, "{leased} tasks of {name} are out, and {known} are known");
            let waiting = self.clients.iter().flat_map(Client::waits_for);
            let waiting = waiting.filter(|of| *of == queue).count();
            demand!(ready == 0 || waiting == 0, "{waiting} wait while {name} has {ready} tasks");
            for other in self.clients.iter().flat_map(Client::other_waits) {
                demand!(other.is_some(), "a queue is never opened or closed");
                let waits = other == Some(queue);
                demand!(!waits || is_full, "somebody waits for room in {name}, which has it");
            }
        }
        let (ready, leased, _) = look(TASKS);
        let waits = self.clients.iter().flat_map(Client::waits_for).any(|queue| queue == TASKS);
        // Whoever was the first in line may be about to start its only one.
        let unstarted = self.clients.iter().map(Client::unstarted).max().unwrap_or_default();
        demand!(!waits || unstarted <= 1, "somebody waits while {unstarted} tasks are not started");
        let unstarted: usize = self.clients.iter().map(Client::unstarted).sum();
        let is_leased = unstarted <= leased || self.setting.tasks.max_run.is_some();
        demand!(is_leased, "{unstarted} tasks are not started, and {leased} are out");
        let idle = |client: &&Client| client.credit.is_some() && client.unstarted() == 0;
        let idle = self.clients.iter().filter(idle).count();
        demand!(ready == 0 || idle == 0, "{idle} have credit and nothing to do, not so {ready}");
        Ok(())
    }

    /// Everybody leaves and everything due happens; what is left is counted.
    async fn end(&mut self) -> Verdict {
        self.heal().await?;
        while let Some(last) = self.clients.len().checked_sub(1) {
            if self.random.percent(50) {
                self.exit(last).await?;
            } else {
                self.kill(last);
            }
        }
        for _ in 0..HEALS_MAX {
            self.pump(usize::MAX).await?;
            self.sync();
            self.pass(Duration::from_secs(3600)).await?;
        }
        demand!(self.serving.is_empty(), "{} sessions go on", self.serving.len());
        let moving = self.machine.engine.memory().moving_bytes();
        demand!(moving == 0, "{moving} bytes are on the way to nobody");
        for (queue, name) in NAMES.into_iter().enumerate() {
            let leased = self.machine.engine.inspect(name, |it| it.leased() + it.delayed());
            demand!(leased == 0, "{leased} tasks of {name} are with nobody");
            for item in self.drain(queue) {
                self.history.left(queue, item);
            }
        }
        let memory = self.machine.engine.memory_used();
        demand!(memory == 0, "{memory} bytes are taken by nothing");
        Ok(())
    }

    /// Takes what is left in a queue.
    fn drain(&mut self, queue: usize) -> Vec<Item> {
        let mut left = vec![];
        while let Some(payload) = self.machine.take(queue) {
            left.push(clients::item(&payload));
        }
        left
    }
}

/// Runs a future on this thread, by a clock that stands still until it is put forward.
fn run_paused<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(unconstrained(future))
}

fn run(seed: u64) -> Ended {
    let mut world = Sessions::new(seed);
    let lived = super::catch(|| run_paused(world.live()));
    let mut wrong = lived.err();
    let trace = world.history.lines().to_vec();
    let mut counts = super::history::Counts::default();
    if wrong.is_none() {
        match super::history::judge(trace.iter().map(String::as_str)) {
            Ok(counted) => counts = counted,
            Err(why) => wrong = Some(why),
        }
    }
    Ended { wrong, trace, seen: std::mem::take(&mut world.seen), counts }
}
