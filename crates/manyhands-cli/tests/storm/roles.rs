//! Clients of a storm that are programs of the Rust client: this test binary, started again.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, thread};

use manyhands::blocking::{Client, Lease};
use manyhands::{ConnectOptions, Error, PutOptions};

use crate::support::{KEY, Script};

/// The variable that says the role, the directory of the storm and the name, one a line.
const PART: &str = "MANYHANDS_STORM_PART";

/// Tasks that a worker has pushed to it ahead.
const AHEAD: u32 = 4;

/// This binary as a client of the storm.
pub(crate) fn program(role: &str, dir: &Path, name: &str) -> Script {
    let mut command = Command::new(env::current_exe().expect("it runs"));
    command.args(["--exact", "roles::a_client_of_a_storm", "--ignored", "--nocapture"]);
    command.env(PART, format!("{role}\n{}\n{name}", dir.display()));
    Script::of(command, name)
}

#[test]
#[ignore = "a storm starts it"]
fn a_client_of_a_storm() {
    let Ok(part) = env::var(PART) else { return };
    let [role, dir, name] = part.lines().collect::<Vec<_>>()[..] else { panic!("{part}") };
    let dir = PathBuf::from(dir);
    let work = match role {
        "master" => put_keyed,
        "lessee" => lease,
        "pushed" => lease_ahead,
        "getter" => get,
        _ => panic!("there is no role '{role}'"),
    };
    // A put with a key is made again by the client, however long the server is away. Takes are not:
    // the answer to the second would hide from the judge that the first may have had a task too.
    let patience = if role == "master" { Duration::from_secs(60) } else { Duration::ZERO };
    let log = OpenOptions::new().create(true).append(true).open(dir.join(format!("{name}.log")));
    let mut session = Session {
        dir,
        log: log.expect("the directory is ours"),
        process: name.to_owned(),
        name: String::new(),
        calls: 0,
    };
    for number in 1.. {
        session.name = format!("{name}.{number}");
        let options = ConnectOptions { reconnect_for: patience, ..ConnectOptions::default() };
        let address = format!("unix:{}", session.path("socket").display());
        match Client::connect_with(&address, KEY, options).and_then(|it| work(&mut session, &it)) {
            Ok(()) => return,
            Err(Error::InDoubt { .. }) => {}
            Err(error) if error.is_retryable() => {}
            Err(error) => session.note(&format!("wrong {error}")),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Calls with a line before and after each.
struct Session {
    dir: PathBuf,
    log: File,
    process: String,
    name: String,
    calls: u64,
}

impl Session {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A whole line at once: we may be killed at any moment.
    fn note(&mut self, words: &str) {
        let line = format!("{} {words}\n", now().as_nanos());
        self.log.write_all(line.as_bytes()).expect("the log can be written");
    }

    fn begin(&mut self) {
        self.note(&format!("session {} {}", self.process, self.name));
    }

    fn ask(&mut self, verb: &str, words: &str) -> String {
        self.calls += 1;
        let call = format!("{}.{}", self.name, self.calls);
        self.note(&format!("{verb} {} {call} {words}", self.name));
        call
    }

    /// Notes how a call ended that was answered.
    fn answer(&mut self, call: &str, answer: Result<(), Error>) -> Result<(), Error> {
        match answer {
            Ok(()) => self.note(&format!("yes {call}")),
            Err(Error::Stale { .. }) => self.note(&format!("no {call} Stale")),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn settle(&mut self, call: &str, lease: Lease<String>) -> Result<(), Error> {
        let (task, attempt) = ((*lease).clone(), lease.attempt());
        let token = format!("{}.{attempt}", lease.task());
        self.note(&format!("yes {call} {task} {attempt} {token}"));
        let result = format!("{task}#{}.{}", self.name, self.calls);
        let ack = self.ask("ack", &format!("tasks {task} {token} results {result}"));
        let answer = lease.ack_with(&result);
        self.answer(&ack, answer)
    }
}

/// Puts tasks, each with a key, until it is told to stop.
fn put_keyed(session: &mut Session, client: &Client) -> Result<(), Error> {
    let tasks = client.queue::<String>("tasks")?;
    session.begin();
    while !session.path("stop").exists() {
        let task = format!("{}-{}", session.name, session.calls);
        let call = session.ask("put", &format!("tasks {task}"));
        // Nobody else has this key: if it is there, it came by this call.
        let answer = tasks.put_with(&task, &PutOptions::keyed(&task)).map(drop);
        session.answer(&call, answer)?;
    }
    Ok(())
}

/// Answers tasks, one lease at a time.
fn lease(session: &mut Session, client: &Client) -> Result<(), Error> {
    let tasks = client.queue::<String>("tasks")?;
    session.begin();
    loop {
        let call = session.ask("lease", "tasks");
        let lease = tasks.lease(None)?;
        session.settle(&call, lease)?;
    }
}

/// Answers tasks that were pushed to it ahead.
fn lease_ahead(session: &mut Session, client: &Client) -> Result<(), Error> {
    let tasks = client.queue::<String>("tasks")?;
    session.begin();
    // A task that comes next may have been asked for by the first credit.
    let mut asked: VecDeque<_> = (0..=AHEAD).map(|_| session.ask("lease", "tasks")).collect();
    for lease in tasks.leases(AHEAD)? {
        let lease = lease?;
        let next = session.ask("lease", "tasks");
        asked.push_back(next);
        let call = asked.pop_front().expect("one was just asked for");
        session.settle(&call, lease)?;
    }
    Ok(())
}

/// Answers tasks as unmodified clients do.
fn get(session: &mut Session, client: &Client) -> Result<(), Error> {
    let tasks = client.queue::<String>("tasks")?;
    let results = client.queue::<String>("results")?;
    session.begin();
    loop {
        let call = session.ask("get", "tasks");
        let task = tasks.get()?;
        session.note(&format!("yes {call} {task}"));
        let result = format!("{task}#{}.{}", session.name, session.calls);
        let call = session.ask("put", &format!("results {result} of={task}"));
        let answer = results.put(&result);
        session.answer(&call, answer)?;
    }
}

/// The clock that the scripts in Python read too.
#[expect(clippy::disallowed_methods, reason = "real processes are compared by a real clock")]
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set")
}
