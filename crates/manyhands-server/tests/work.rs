//! Workers and masters of the Rust clients, on a server in this process.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail loudly")]
#![expect(clippy::disallowed_methods, reason = "a test has tasks of its own")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use manyhands::{Client, Error, Master, Peek, TaskState, Worker, blocking};
use manyhands_server::{QueueOptions, Server};
use tokio::sync::mpsc;

type Task = manyhands::Task<u64>;

const KEY: &[u8] = b"a key of 16 bytes or more";
const LONG: Duration = Duration::from_secs(60);

fn server() -> Server {
    let tasks = QueueOptions::default().results("results").failures("results");
    let tasks = tasks.backoff(Duration::ZERO);
    Server::builder()
        .address("127.0.0.1:0")
        .authkey(KEY)
        .queue("tasks", tasks.clone().attempts(2))
        .queue("lasting", tasks.clone().max_run(Duration::from_millis(100)))
        .queue("plain", QueueOptions::default())
        .start()
        .unwrap()
}

fn address(server: &Server) -> String {
    server.addresses()[0].to_string()
}

fn connect(server: &Server) -> blocking::Client {
    blocking::Client::connect(&address(server), KEY).unwrap()
}

async fn client(server: &Server) -> Client {
    Client::connect(&address(server), KEY).await.unwrap()
}

/// Squares even numbers; odd ones fail, and 13 is bad luck.
fn square(task: &Task) -> Result<u64, String> {
    match task.item {
        13 => panic!("bad luck with {}", task.item),
        n if n % 2 == 1 => Err(format!("{n} is odd")),
        n => Ok(n * n),
    }
}

/// A thread that squares until the queue of tasks is shut down.
fn squarer(server: &Server, concurrency: usize) -> thread::JoinHandle<manyhands::Tally> {
    let client = connect(server);
    thread::spawn(move || {
        let worker = blocking::Worker::new(&client).queue("tasks").concurrency(concurrency);
        worker.run(|task: Task| square(&task)).unwrap()
    })
}

#[test]
fn threads_work_on_tasks_until_the_queue_is_shut_down() {
    let server = server();
    let worker = squarer(&server, 3);
    let client = connect(&server);
    let master = blocking::Master::new(&client).queue("tasks").results("results");
    let squares = master.map::<u64, _>((0..500).map(|n| 2 * n)).unwrap();
    let squares: Vec<_> = squares.map(Result::unwrap).collect();
    assert_eq!(squares, (0..500).map(|n| 4 * n * n).collect::<Vec<u64>>());
    client.queue::<u64>("tasks").unwrap().shutdown(false).unwrap();
    let tally = worker.join().unwrap();
    assert_eq!((tally.done, tally.failed, tally.lost), (500, 0, 0));
}

#[test]
fn an_error_and_a_panic_are_the_reasons_of_their_attempts() {
    let server = server();
    let worker = squarer(&server, 2);
    let client = connect(&server);
    let master = blocking::Master::new(&client).queue("tasks").results("results");
    let results: Vec<_> = master.map::<u64, _>([2, 3, 13, 4]).unwrap().collect();
    let reasons = |index: usize| match &results[index] {
        Err(Error::GivenUp { index: item, reasons }) if *item == index => reasons.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(results[0].as_ref().unwrap(), &4);
    assert_eq!(results[3].as_ref().unwrap(), &16);
    assert_eq!(reasons(1), ["3 is odd", "3 is odd"]);
    assert_eq!(reasons(2), ["panicked: bad luck with 13", "panicked: bad luck with 13"]);
    client.queue::<u64>("tasks").unwrap().shutdown(false).unwrap();
    assert_eq!(worker.join().unwrap().failed, 4);
}

#[test]
fn the_window_bounds_what_is_taken_from_the_iterator() {
    let server = server();
    let client = connect(&server);
    let worker = blocking::Worker::new(&client).queue("tasks").concurrency(2);
    let stopper = worker.stopper();
    let worker = thread::spawn(move || worker.run(|task: Task| square(&task)));
    let taken = Arc::new(AtomicUsize::new(0));
    let items = (0..).step_by(2).inspect({
        let taken = Arc::clone(&taken);
        move |_| {
            taken.fetch_add(1, SeqCst);
        }
    });
    let master = blocking::Master::new(&client).queue("tasks").results("results").window(10);
    let mut results = master.map::<u64, _>(items).unwrap().as_completed();
    let mut indices = BTreeSet::new();
    for returned in 1..=100 {
        let (index, result) = results.next_indexed().unwrap();
        assert_eq!(result.unwrap(), 4 * (index as u64).pow(2));
        assert!(indices.insert(index), "{index} came twice");
        assert!(taken.load(SeqCst) < returned + 10);
    }
    stopper.stop();
    worker.join().unwrap().unwrap();
}

#[test]
fn a_queue_that_is_shut_down_at_once_ends_its_workers() {
    for _ in 0..30 {
        let server = server();
        let (client, worker) = (connect(&server), squarer(&server, 2));
        let master = blocking::Master::new(&client).queue("tasks").results("results").window(10);
        let mut results = master.map::<u64, _>((0..).step_by(2)).unwrap();
        assert!(results.by_ref().take(20).all(|result| result.is_ok()));
        client.queue::<u64>("tasks").unwrap().shutdown(true).unwrap();
        worker.join().unwrap();
    }
}

#[test]
fn the_results_of_others_are_kept_as_dead_letters() {
    let server = server();
    let (client, worker) = (connect(&server), squarer(&server, 1));
    let tasks = client.queue::<u64>("tasks").unwrap();
    tasks.put(&8).unwrap();
    let master = blocking::Master::new(&client).queue("tasks").results("results");
    let results: Vec<_> = master.map::<u64, _>([2]).unwrap().map(Result::unwrap).collect();
    assert_eq!(results, [4]);
    let foreign = client.queue::<u64>("results.dead").unwrap();
    assert_eq!(foreign.get_timeout(LONG).unwrap(), 64);
    tasks.shutdown(false).unwrap();
    worker.join().unwrap();
}

#[test]
fn a_worker_of_a_queue_without_results_says_so() {
    let server = server();
    let client = connect(&server);
    let plain = client.queue::<u64>("plain").unwrap();
    plain.put(&2).unwrap();
    let worker = || blocking::Worker::new(&client).queue("plain");
    let error = worker().run(|task: Task| square(&task)).unwrap_err();
    assert!(error.to_string().contains("declares no queue of results"), "{error}");
    plain.shutdown(false).unwrap();
    let tally = worker().without_results().run(|task: Task| square(&task)).unwrap();
    assert_eq!(tally.done, 1);
}

#[tokio::test]
async fn a_worker_that_is_stopped_finishes_and_gives_the_rest_back() {
    let server = server();
    let client = client(&server).await;
    let tasks = client.queue::<u64>("tasks").await.unwrap();
    tasks.put_many(&[1, 2, 3, 4, 5]).await.unwrap();
    let (started, mut starts) = mpsc::unbounded_channel();
    let go_on = Arc::new(tokio::sync::Semaphore::new(0));
    let worker = Worker::new(&client).queue("tasks").concurrency(2);
    let stopper = worker.stopper();
    let running = tokio::spawn(worker.run({
        let go_on = Arc::clone(&go_on);
        move |task: Task| {
            let (started, go_on) = (started.clone(), Arc::clone(&go_on));
            async move {
                started.send(task.item).unwrap();
                go_on.acquire().await.unwrap().forget();
                Ok::<_, String>(task.item)
            }
        }
    }));
    assert_eq!((starts.recv().await, starts.recv().await), (Some(1), Some(2)));
    stopper.stop();
    go_on.add_permits(2);
    let tally = running.await.unwrap().unwrap();
    assert_eq!((tally.done, tally.failed), (2, 0));
    assert!(starts.recv().await.is_none(), "it has begun no other");
    let left = tasks.lease_many(5, Some(LONG)).await.unwrap();
    let left: Vec<_> = left.iter().map(|lease| (**lease, lease.attempt())).collect();
    assert_eq!(left, [(3, 1), (4, 1), (5, 1)]);
}

#[tokio::test]
async fn a_call_whose_lease_is_lost_is_dropped() {
    /// Says when it is dropped.
    struct Told(mpsc::UnboundedSender<u32>, u32);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send(self.1).ok();
        }
    }
    let server = server();
    let client = client(&server).await;
    let tasks = client.queue::<u64>("lasting").await.unwrap();
    tasks.put(&1).await.unwrap();
    let (told, mut dropped) = mpsc::unbounded_channel();
    let worker = Worker::new(&client).queue("lasting").hold(Duration::from_millis(200));
    let stopper = worker.stopper();
    let running = tokio::spawn(worker.run(move |task: Task| {
        let told = Told(told.clone(), task.attempt);
        async move {
            // The first attempt takes longer than the queue allows.
            if task.attempt == 1 {
                std::future::pending::<()>().await;
            }
            drop(told);
            Ok::<_, String>(task.item)
        }
    }));
    assert_eq!((dropped.recv().await, dropped.recv().await), (Some(1), Some(2)));
    stopper.stop();
    let tally = running.await.unwrap().unwrap();
    assert_eq!((tally.done, tally.lost), (1, 1));
}

#[tokio::test]
async fn signs_of_life_keep_a_lease() {
    let server = server();
    let client = client(&server).await;
    let tasks = client.queue::<u64>("tasks").await.unwrap();
    tasks.put(&6).await.unwrap();
    let (go_on, goes_on) = tokio::sync::watch::channel(());
    let worker = Worker::new(&client).queue("tasks").hold(Duration::from_secs(4));
    let stopper = worker.stopper();
    let running = tokio::spawn(worker.run(move |task: Task| {
        let mut goes_on = goes_on.clone();
        async move {
            goes_on.changed().await.map_err(|error| error.to_string())?;
            Ok::<_, String>(task.item)
        }
    }));
    // Each sign of life puts the end of the lease off.
    let leased = Peek { state: TaskState::Leased, ..Peek::default() };
    let mut extensions = BTreeSet::new();
    while extensions.len() < 4 {
        for task in tasks.peek(leased).await.unwrap() {
            assert_eq!(task.attempt, 1);
            extensions.extend(task.due_in.zip(task.since).map(|(due, since)| {
                // The moment at which it is due, since the lease began.
                (due + since).as_millis() / 500
            }));
        }
        tokio::task::yield_now().await;
    }
    go_on.send(()).unwrap();
    let results = client.queue::<u64>("results").await.unwrap();
    assert_eq!(results.get().await.unwrap(), 6);
    stopper.stop();
    assert_eq!(running.await.unwrap().unwrap().done, 1);
}

#[tokio::test]
async fn a_map_survives_workers_that_die() {
    let server = server();
    let client = client(&server).await;
    let master = Master::new(&client).queue("tasks").results("results").window(50);
    let mut squares = master.map::<u64, _>((0..200).map(|n| 2 * n)).await.unwrap();
    // It takes tasks and ends with its connection.
    let dies = async {
        let client = self::client(&server).await;
        let tasks = client.queue::<u64>("tasks").await.unwrap();
        tasks.lease_many(20, Some(LONG)).await.unwrap().len()
    };
    let first = async { squares.next().await };
    let (first, ()) = tokio::join!(first, async {
        assert!(dies.await > 0);
        let worker = Worker::new(&self::client(&server).await).queue("tasks").concurrency(4);
        tokio::spawn(worker.run(|task: Task| async move { square(&task) }));
    });
    assert_eq!(first.unwrap().unwrap(), 0);
    for n in 1..200 {
        assert_eq!(squares.next().await.unwrap().unwrap(), 4 * n * n);
    }
    assert!(squares.next().await.is_none());
}

#[tokio::test]
async fn a_wait_for_a_result_that_is_dropped_loses_nothing() {
    let server = server();
    let worker = squarer(&server, 2);
    let client = client(&server).await;
    // So many that puts have to wait for each other.
    let master = Master::new(&client).queue("tasks").results("results").window(6_000);
    let mut map = master.map::<u64, _>((0..6_000).map(|n| 2 * n)).await.unwrap();
    let (mut squares, mut dropped) = (Vec::new(), 0);
    loop {
        tokio::select! {
            biased;
            square = map.next() => match square {
                Some(square) => squares.push(square.unwrap()),
                None => break,
            },
            () = tokio::task::yield_now() => dropped += 1,
        }
    }
    assert!(dropped > 0);
    assert_eq!(squares, (0..6_000).map(|n| 4 * n * n).collect::<Vec<u64>>());
    client.queue::<u64>("tasks").await.unwrap().shutdown(false).await.unwrap();
    tokio::task::spawn_blocking(move || worker.join().unwrap()).await.unwrap();
}
