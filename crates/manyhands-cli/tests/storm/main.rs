//! Storms of `kill -9` over real processes at random: the server, unmodified Python clients, and
//! native ones in Rust and Python on the same queues.
//!
//! Every client writes down what it asked and what it was answered; the judge of the simulation
//! reads it: no accepted task is lost, none has two results, and the order was kept.
//! `MANYHANDS_STORM_KILLS=n` kills more of them; the counts are printed with `--nocapture`.

#![cfg(unix)]
#![expect(clippy::indexing_slicing, reason = "a helper that panics fails its test, as it should")]
#![expect(dead_code, reason = "shares what the other behaviour tests need")]

mod faults;
#[path = "../../../manyhands-server/src/sim/history.rs"]
mod history;
mod roles;
#[path = "../it/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use manyhands::Error;
use manyhands::blocking::Client;

use crate::support::{
    KEY, Python, Running, Script, Server, announce, newest_python, pythons, wait_until,
    write_secret,
};

/// Kills unless the environment says otherwise, in all storms together.
const KILLS: u64 = 15;
/// Of these, so many are in the storm over clients that have tasks pushed to them, in percent.
const PUSHED_PERCENT: u64 = 30;
/// Of these, so many hit the server, in percent.
const SERVER_PERCENT: u64 = 40;
/// Lines that the clients write between two kills, at most.
const LINES_MAX: u64 = 400;

/// Who takes part besides the server.
const CAST: [(&str, usize); 7] = [
    ("producer", 2),
    ("worker", 3),
    ("collector", 1),
    ("master", 1),
    ("lessee", 1),
    ("getter", 1),
    ("native", 1),
];

/// The same when tasks are pushed ahead. What was pushed, and went back before the program saw it,
/// is in no client's log, so order cannot be judged.
const PUSHED_CAST: [(&str, usize); 6] =
    [("producer", 1), ("worker", 1), ("collector", 1), ("master", 1), ("lessee", 1), ("pushed", 2)];

struct Storm {
    dir: tempfile::TempDir,
    options: Vec<String>,
    server: Option<Server>,
    clients: BTreeMap<String, (&'static str, Running)>,
    pythons: Vec<Python>,
    random: u64,
    started: usize,
    /// What the storm itself writes down.
    notes: Vec<String>,
}

impl Storm {
    fn new(seed: u64, cast: &[(&'static str, usize)], rules: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        write_secret(&dir.path().join("key"), KEY);
        let path = |name: &str| dir.path().join(name).display().to_string();
        let listen = format!("unix:{}", path("socket"));
        let data = path("data");
        // What a client leased from a server that was killed, and lets be, comes back in good time.
        let tasks = "tasks,results=results,maxsize=100,dead=dead,lease=5";
        let queues = ["--queue", tasks, "--queue", "results"];
        let options = ["--listen", &listen, "--data", &data].into_iter().chain(queues);
        let options = options.map(str::to_owned).collect();
        let pythons = pythons().iter().filter(|python| !python.is_2()).cloned().collect();
        let tasks = format!("0 queue tasks results=results dead=dead {rules}");
        let notes = [tasks.as_str(), "0 queue results", "0 queue dead sorted"];
        let mut storm = Self {
            dir,
            options,
            server: None,
            clients: BTreeMap::new(),
            pythons,
            random: seed,
            started: 0,
            notes: notes.map(str::to_owned).into(),
        };
        storm.start_server();
        for (role, count) in cast {
            (0..*count).for_each(|_| storm.start(role));
        }
        storm
    }

    fn start_server(&mut self) {
        let options: Vec<_> = self.options.iter().map(String::as_str).collect();
        self.server = Some(Server::with_options(&options));
    }

    fn start(&mut self, role: &'static str) {
        let name = format!("{role}{}", self.started);
        self.started += 1;
        let program = match role {
            "producer" | "worker" | "collector" => {
                let python = &self.pythons[self.started % self.pythons.len()];
                self.script(python, "storm.py", role, &name)
            }
            "native" => self.script(newest_python(), "native.py", role, &name),
            _ => roles::program(role, self.dir.path(), &name),
        };
        self.clients.insert(name, (role, program.start()));
    }

    fn script(&self, python: &Python, file: &str, role: &str, name: &str) -> Script {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let script = python.program(&tests.join("storm/python").join(file));
        let script = script.env("MANYHANDS_TEST_PYTHON", support::python_dir());
        let script = script.env("MANYHANDS_TEST_NATIVE", tests.join("native"));
        let script = script.arg(role).arg(self.path("socket")).arg(self.path("key"));
        script.arg(self.dir.path()).arg(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % bound
    }

    /// Kills somebody, and starts another one like it.
    fn strike(&mut self) {
        if self.below(100) < SERVER_PERCENT {
            self.notes.push("0 crash".into());
            drop(self.server.take());
            return self.start_server();
        }
        let nth = usize::try_from(self.below(self.clients.len() as u64)).expect("they are few");
        let name = self.clients.keys().nth(nth).expect("it is below their number").clone();
        let (role, running) = self.clients.remove(&name).expect("it is one of them");
        running.kill();
        self.notes.push(format!("0 killed {name}"));
        self.start(role);
    }

    fn history(&self) -> String {
        let files = fs::read_dir(self.dir.path()).expect("the directory is ours").flatten();
        let logs = files.filter(|file| file.path().extension().is_some_and(|it| it == "log"));
        logs.map(|log| fs::read_to_string(log.path()).expect("the lines are text")).collect()
    }

    /// How many calls of each kind of client were answered.
    fn answered(&self, cast: &[(&'static str, usize)]) -> BTreeMap<&'static str, usize> {
        let history = self.history();
        let answered = |role: &str| {
            let call = format!(" yes {role}");
            history.lines().filter(|line| line.contains(&call)).count()
        };
        cast.iter().map(|(role, _)| (*role, answered(role))).collect()
    }

    /// Waits until every kind of client is at work: without that, a storm proves nothing of it.
    fn wait_for_all(&self, cast: &[(&'static str, usize)]) {
        let is_at_work = || self.answered(cast).values().all(|calls| *calls > 0);
        wait_until(|| is_at_work().then_some(()))
            .unwrap_or_else(|| panic!("some get nothing done: {:?}", self.answered(cast)));
    }

    /// Lets the clients get on with their work.
    fn wait_for_lines(&mut self) {
        let lines = |storm: &Self| storm.history().lines().count() as u64;
        let wanted = lines(self) + 1 + self.below(LINES_MAX);
        wait_until(|| (lines(self) >= wanted).then_some(())).expect("the clients get on");
    }

    /// Lets everything come to rest, and says what was found and what was left.
    fn end(mut self) -> Result<history::Counts, String> {
        fs::write(self.path("stop"), "").expect("the directory is ours");
        let address = format!("unix:{}", self.path("socket").display());
        let client = Client::connect(&address, KEY).expect("the server runs");
        let is_at_rest = || {
            let queues = client.queues().expect("our server tells");
            let mut queues = queues.iter().filter(|queue| queue.name != "dead");
            queues.all(|queue| queue.leased + queue.qsize + queue.delayed == 0).then_some(())
        };
        let (producers, others) = std::mem::take(&mut self.clients)
            .into_values()
            .partition::<Vec<_>, _>(|it| matches!(it.0, "producer" | "master"));
        producers.into_iter().for_each(|(_, producer)| drop(producer.finish()));
        wait_until(is_at_rest).ok_or("tasks are left that nobody works on")?;
        drop(others);
        for name in ["tasks", "results", "dead"] {
            let queue = client.queue::<String>(name).expect("it can be made");
            loop {
                match queue.try_get() {
                    Ok(item) => self.notes.push(format!("0 left {name} {item}")),
                    Err(Error::Empty) => break,
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        let history = self.history();
        let notes = self.notes.iter().map(String::as_str);
        history::judge(notes.chain(history.lines()))
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_done_twice_in_a_storm_of_kills() {
    let kills = kills();
    rage(kills - kills * PUSHED_PERCENT / 100, &CAST, "");
}

#[test]
fn nor_in_a_storm_over_clients_that_have_tasks_pushed_to_them() {
    rage(kills() * PUSHED_PERCENT / 100, &PUSHED_CAST, "sorted");
}

fn kills() -> u64 {
    let kills = std::env::var("MANYHANDS_STORM_KILLS");
    kills.map_or(KILLS, |kills| kills.parse().expect("it is a number"))
}

fn rage(kills: u64, cast: &[(&'static str, usize)], rules: &str) {
    let seed =
        std::env::var("MANYHANDS_STORM_SEED").map_or(7, |seed| seed.parse().expect("so too"));
    let mut storm = Storm::new(seed, cast, rules);
    storm.wait_for_all(cast);
    for _ in 0..kills {
        storm.wait_for_lines();
        storm.strike();
    }
    storm.wait_for_lines();
    announce(&format!("calls answered by kind of client: {:?}", storm.answered(cast)));
    match storm.end() {
        Ok(counts) => announce(&format!("storm: {counts}")),
        Err(wrong) => panic!("{wrong}"),
    }
}
