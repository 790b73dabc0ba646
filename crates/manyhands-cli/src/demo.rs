//! `manyhands demo`: a server, a master and its workers, as in the tutorials of Python's managers.
//!
//! The server and the master are this process; each worker is a process of its own. The key goes to
//! them through a pipe. Whatever ends this process ends its server, and with it the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget};
use manyhands::{ConnectOptions, Error, blocking};
use manyhands_server::{Address, Queue, QueueOptions, Server};

use crate::hints::Place;
use crate::key::{self, KeyArguments};

const TASKS: u64 = 20;
/// How long a worker works on a task.
const WORK: Duration = Duration::from_millis(250);
/// How long the master waits for a result before it looks whether somebody still works.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client takes at most from saying that it waits to waiting.
const MOMENT: Duration = Duration::from_millis(200);

const TASK_QUEUE: &str = "get_task_queue";
const RESULT_QUEUE: &str = "get_result_queue";

/// Which worker, which task, its square.
type Outcome = (u32, u64, u64);

pub(crate) fn run() -> Result<()> {
    let key = key::random_key()?;
    let server = Server::builder()
        .address("127.0.0.1:0")
        .authkey(&key)
        .queue(TASK_QUEUE, QueueOptions::default())
        .queue(RESULT_QUEUE, QueueOptions::default())
        .start()?;
    let address = server.addresses().first().context("the server has no address")?.to_string();
    let mut demo = Demo {
        bar: ProgressBar::with_draw_target(Some(TASKS), ProgressDrawTarget::stdout()),
        tasks: server.queue(TASK_QUEUE)?,
        results: server.queue(RESULT_QUEUE)?,
        workers: Vec::new(),
        key,
        address,
    };
    demo.say(&format!("[master] serving {TASK_QUEUE} and {RESULT_QUEUE} on {}", demo.address));
    demo.lose_a_worker()?;
    demo.start_worker(1)?;
    demo.start_worker(2)?;
    demo.put_tasks()?;
    let done = demo.collect()?;
    demo.finish()?;
    let summary = summary(&done)?;
    demo.bar.finish_and_clear();
    demo.say(&summary);
    Ok(())
}

struct Demo {
    bar: ProgressBar,
    tasks: Queue<u64>,
    results: Queue<Outcome>,
    workers: Vec<Worker>,
    key: String,
    address: String,
}

impl Demo {
    /// Prints a line above the progress bar, if there is one. Nobody may be reading.
    fn say(&self, line: &str) {
        say(&self.bar, line);
    }

    /// What the original cannot do: its server would hand the first task to the dead.
    fn lose_a_worker(&self) -> Result<()> {
        let worker = self.spawn(3)?;
        ensure!(worker.lines.recv().is_ok(), "a worker ended before it began");
        thread::sleep(MOMENT);
        drop(worker);
        self.say(
            "[master] worker 3 was killed while it waited for a task; it must not get the first",
        );
        Ok(())
    }

    fn start_worker(&mut self, number: u32) -> Result<()> {
        let worker = self.spawn(number)?;
        self.workers.push(worker);
        Ok(())
    }

    fn spawn(&self, number: u32) -> Result<Worker> {
        let mut child = crate::this_program()?
            .args(["demo-worker", "--authkey-file", "-", &self.address, &number.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a worker")?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (sender, lines) = mpsc::channel();
        let worker = Worker { child, lines };
        let mut input = input.context("a worker has no standard input")?;
        input.write_all(self.key.as_bytes()).context("cannot hand a worker the key")?;
        let output = BufReader::new(output.context("a worker has no standard output")?);
        let bar = self.bar.clone();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                say(&bar, &format!("[worker {number}] {line}"));
                // Only the first is waited for.
                sender.send(()).ok();
            }
        });
        Ok(worker)
    }

    fn put_tasks(&self) -> Result<()> {
        for n in 1..=TASKS {
            self.say(&format!("[master] put task {n}"));
            self.tasks.put(&n)?;
        }
        Ok(())
    }

    /// Waits for the result of every task; tells how many each worker did and what they sum up to.
    fn collect(&mut self) -> Result<Done> {
        let mut done = Done::default();
        let mut missing: BTreeSet<_> = (1..=TASKS).collect();
        while !missing.is_empty() {
            match self.results.get_timeout(PATIENCE) {
                Ok((worker, n, square)) if missing.remove(&n) => {
                    done.sum += square;
                    *done.by_worker.entry(worker).or_default() += 1;
                    self.say(&format!("[master] result: {n} * {n} = {square}"));
                    self.bar.inc(1);
                }
                Ok(_) => {}
                Err(Error::Empty) => self.check_workers(missing.len())?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// The server gives the task of a worker that somebody killed to another one, if there is one.
    fn check_workers(&mut self, missing: usize) -> Result<()> {
        let alive = self.workers.iter_mut().any(Worker::is_alive);
        ensure!(alive, "all workers have ended; {missing} results are missing");
        Ok(())
    }

    /// Sends the workers home.
    fn finish(&mut self) -> Result<()> {
        self.tasks.shutdown(false)?;
        for worker in self.workers.drain(..) {
            while worker.lines.recv_timeout(PATIENCE).is_ok() {}
        }
        Ok(())
    }
}

fn say(bar: &ProgressBar, line: &str) {
    bar.suspend(|| writeln!(io::stdout().lock(), "{line}").ok());
}

#[derive(Debug, Default)]
struct Done {
    sum: u64,
    by_worker: BTreeMap<u32, u64>,
}

fn summary(done: &Done) -> Result<String> {
    let counts: Vec<_> = done
        .by_worker
        .iter()
        .map(|(worker, count)| format!("worker {worker} did {count}"))
        .collect();
    let address = Address::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)));
    Ok(format!(
        "\n{TASKS} tasks put, {} results, none lost: {}; the squares sum up to {}\n\n\
         Now start a server of your own with\n  manyhands serve\n{}",
        done.by_worker.values().sum::<u64>(),
        counts.join(", "),
        done.sum,
        Place { address: &address, key: &key::kept_path()?, is_int: false }.lines().trim_end()
    ))
}

/// A worker's process; killed when dropped, if it has not ended by itself.
struct Worker {
    child: Child,
    /// One signal for each line that it printed; disconnected at its end.
    lines: mpsc::Receiver<()>,
}

impl Worker {
    fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One of the demo's workers.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArguments {
    #[command(flatten)]
    key: KeyArguments,
    address: String,
    number: u32,
}

pub(crate) fn run_worker(arguments: WorkerArguments) -> Result<()> {
    let worked = work(&arguments);
    match worked.as_ref().map_err(anyhow::Error::downcast_ref) {
        // The demo has ended, and its server with it.
        Err(Some(Error::Lost { .. } | Error::Connect { .. } | Error::InDoubt { .. })) => Ok(()),
        _ => worked,
    }
}

fn work(arguments: &WorkerArguments) -> Result<()> {
    let key = arguments.key.read(false)?.key;
    // The server does not come back.
    let options = ConnectOptions { reconnect_for: Duration::ZERO, ..ConnectOptions::default() };
    let client = blocking::Client::connect_with(&arguments.address, key, options)?;
    let tasks = client.queue::<u64>(TASK_QUEUE)?;
    let results = client.queue::<Outcome>(RESULT_QUEUE)?;
    let say = |line: &str| writeln!(io::stdout().lock(), "{line}");
    say("waits for tasks")?;
    loop {
        match tasks.get() {
            Ok(n) => {
                say(&format!("run task {n} * {n}..."))?;
                thread::sleep(WORK);
                results.put(&(arguments.number, n, n * n))?;
            }
            Err(Error::ShutDown) => return Ok(say("exit")?),
            Err(error) => return Err(error.into()),
        }
    }
}
