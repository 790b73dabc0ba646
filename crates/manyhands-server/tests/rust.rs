//! Rust programs and a server: in its process, and over a connection.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail loudly")]

use std::thread;
use std::time::Duration;

use manyhands::{Client, blocking};
use manyhands_server::{Limits, QueueOptions, Server, StartError};

const KEY: &[u8] = b"a key of 16 bytes or more";
const SHORT: Duration = Duration::from_millis(20);
/// Longer than anything here takes; a test that reaches it has failed.
const LONG: Duration = Duration::from_secs(30);

fn start(queues: &[(&str, QueueOptions)], limits: Limits) -> Server {
    let mut builder = Server::builder().address("127.0.0.1:0").authkey(KEY).limits(limits);
    for (name, options) in queues {
        builder = builder.queue(*name, options.clone());
    }
    builder.start().unwrap()
}

fn server() -> Server {
    start(&[], Limits::default())
}

fn connect(server: &Server) -> blocking::Client {
    blocking::Client::connect(&server.addresses()[0].to_string(), KEY).unwrap()
}

#[test]
fn a_master_in_the_servers_process_is_served_by_a_worker_elsewhere() {
    let server = server();
    let (tasks, results) =
        (server.queue::<u64>("tasks").unwrap(), server.queue::<(u64, u64)>("results").unwrap());
    let client = connect(&server);
    let worker = thread::spawn(move || {
        let (tasks, results) = (client.queue::<u64>("tasks")?, client.queue("results")?);
        while let Ok(n) = tasks.get() {
            results.put(&(n, n * n))?;
            tasks.task_done()?;
        }
        Ok::<_, manyhands::Error>(())
    });
    for n in 0..100 {
        tasks.put(&n).unwrap();
    }
    tasks.join().unwrap();
    tasks.shutdown(false).unwrap();
    worker.join().unwrap().unwrap();
    let collected: Vec<_> = (0..100).map(|_| results.try_get().unwrap()).collect();
    assert_eq!(collected, (0..100).map(|n| (n, n * n)).collect::<Vec<_>>());
    assert!(results.is_empty());
}

#[tokio::test]
async fn async_calls_are_the_same() {
    let server = start(&[("one", QueueOptions::bounded(1))], Limits::default());
    let local = server.async_queue::<String>("one").unwrap();
    let client = Client::connect(&server.addresses()[0].to_string(), KEY).await.unwrap();
    let remote = client.queue::<String>("one").await.unwrap();
    remote.put(&"first".into()).await.unwrap();
    assert!(local.is_full());
    assert!(local.try_put(&"second".into()).unwrap_err().is_full());
    assert!(remote.put_timeout(&"second".into(), SHORT).await.unwrap_err().is_full());
    let second = "second".to_owned();
    let (put, got) = tokio::join!(local.put(&second), remote.get());
    put.unwrap();
    assert_eq!(got.unwrap(), "first");
    assert_eq!(remote.get_timeout(LONG).await.unwrap(), "second");
    assert!(local.get_timeout(SHORT).await.unwrap_err().is_empty());
    drop(remote);
    client.close().await.unwrap();
}

#[test]
fn closing_a_client_ends_the_calls_of_its_clones() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<u64>("tasks").unwrap();
    let (ended, end) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| ended.send(tasks.get()).unwrap());
        client.close().unwrap();
        let error = end.recv_timeout(LONG).unwrap().unwrap_err();
        assert!(matches!(error, manyhands::Error::Closed { .. }), "{error}");
    });
}

#[tokio::test]
async fn what_a_client_has_in_hand_is_done_if_it_takes_leave_and_goes_to_others_if_not() {
    let server = server();
    let local = server.async_queue::<u64>("tasks").unwrap();
    let watcher = Client::connect(&server.addresses()[0].to_string(), KEY).await.unwrap();
    for is_closed in [true, false] {
        local.put(&7).await.unwrap();
        let client = Client::connect(&server.addresses()[0].to_string(), KEY).await.unwrap();
        let remote = client.queue::<u64>("tasks").await.unwrap();
        assert_eq!(remote.get().await.unwrap(), 7);
        if is_closed {
            client.close().await.unwrap();
            while watcher.queues().await.unwrap()[0].leased > 0 {}
            assert!(local.is_empty());
        } else {
            drop((remote, client));
            assert_eq!(local.get_timeout(LONG).await.unwrap(), 7);
        }
    }
}

#[tokio::test]
async fn a_get_that_is_dropped_takes_nothing() {
    let server = server();
    let local = server.async_queue::<u64>("tasks").unwrap();
    let client = Client::connect(&server.addresses()[0].to_string(), KEY).await.unwrap();
    let remote = client.queue::<u64>("tasks").await.unwrap();
    assert!(tokio::time::timeout(SHORT, remote.get()).await.is_err());
    assert!(tokio::time::timeout(SHORT, local.get()).await.is_err());
    local.put(&7).await.unwrap();
    // Whether or not the server knew by then that the remote caller had left.
    assert_eq!(local.get_timeout(LONG).await.unwrap(), 7);
}

#[test]
fn puts_wait_while_the_memory_is_used_up() {
    let mut limits = Limits::default();
    limits.memory_bytes_max = 12_000;
    let server = start(&[], limits);
    let (large, other) =
        (server.queue::<String>("large").unwrap(), server.queue::<String>("other").unwrap());
    let item = "x".repeat(3_000);
    let fitting = (0..10).take_while(|_| large.try_put(&item).is_ok()).count();
    assert_eq!(fitting, 3);
    assert!(other.try_put(&item).unwrap_err().is_full(), "the limit is one for all queues");
    let waiting = thread::spawn({
        let other = other.clone();
        let item = item.clone();
        move || other.put_timeout(&item, LONG)
    });
    large.get().unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!((large.qsize(), other.qsize()), (2, 1));
}

#[test]
fn only_declared_names_exist_once_there_are_any() {
    let server = start(&[("jobs", QueueOptions::default())], Limits::default());
    let error = server.queue::<u64>("job").unwrap_err().to_string();
    assert_eq!(error, "there is no queue named 'job'; declared are: 'jobs'");
    let error = connect(&server).queue::<u64>("job").unwrap_err().to_string();
    assert!(error.contains("no queue is called 'job'"), "{error}");
}

#[test]
fn names_by_use_are_bounded() {
    let mut limits = Limits::default();
    limits.queues_max = 3;
    let server = start(&[], limits);
    for name in ["a", "b", "c", "a"] {
        server.queue::<u64>(name).unwrap();
    }
    let error = server.queue::<u64>("d").unwrap_err().to_string();
    let limit = "no further queue: there are 3 already, which is the limit; ";
    assert!(error.starts_with(limit) && error.contains("manyhands drop QUEUE"), "{error}");
    for name in ["", "line\nbreak", &"x".repeat(256)] {
        let error = server.queue::<u64>(name).unwrap_err().to_string();
        assert!(error.contains("cannot name a queue"), "{error}");
    }
}

#[test]
fn a_weak_key_is_kept_off_the_network() {
    let start = |address, key: &[u8], allow| {
        Server::builder().address(address).authkey(key).allow_weak_key(allow).start()
    };
    let refused = start("0.0.0.0:0", b"abc", false);
    assert!(matches!(refused, Err(StartError::WeakKey { len: 3, .. })), "{refused:?}");
    let zeros = start("0.0.0.0:0", &[0; 100], false);
    assert!(matches!(zeros, Err(StartError::WeakKey { len: 0, .. })), "{zeros:?}");
    start("0.0.0.0:0", b"abc", true).unwrap();
    start("0.0.0.0:0", KEY, false).unwrap();
    start("127.0.0.1:0", b"abc", false).unwrap();
}

#[test]
fn calls_that_wait_end_when_the_server_stops() {
    let server = server();
    let tasks = server.queue::<u64>("tasks").unwrap();
    let remote = connect(&server).queue::<u64>("tasks").unwrap();
    let waiting = thread::spawn(move || remote.get());
    let local = thread::spawn(move || tasks.get());
    server.stop().unwrap();
    assert!(local.join().unwrap().unwrap_err().is_shut_down());
    let error = waiting.join().unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[test]
fn a_port_in_use_is_named() {
    let first = server();
    let address = first.addresses()[0].to_string();
    let error = Server::builder().address(&address).authkey(KEY).start().unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");
}

#[test]
fn a_call_that_waits_ends_when_its_client_is_closed() {
    let server = server();
    let client = connect(&server);
    let remote = client.queue::<u64>("tasks").unwrap();
    let waiting = thread::spawn({
        let remote = remote.clone();
        move || remote.get()
    });
    let tasks = server.queue::<u64>("tasks").unwrap();
    client.close().unwrap();
    // Whether the call came before or after the close: it ends, and takes nothing.
    match waiting.join().unwrap() {
        Err(error) => assert!(matches!(error, manyhands::Error::Closed { .. }), "{error}"),
        Ok(item) => panic!("took {item} from an empty queue"),
    }
    tasks.put(&7).unwrap();
    assert_eq!(tasks.get_timeout(LONG).unwrap(), 7);
}

#[test]
fn what_is_put_after_the_end_stays_for_who_gets_it() {
    let server = server();
    let tasks = server.queue::<u64>("tasks").unwrap();
    let waiting = thread::spawn({
        let tasks = tasks.clone();
        move || tasks.get()
    });
    server.stop().unwrap();
    assert!(waiting.join().unwrap().unwrap_err().is_shut_down());
    for n in 1..=3 {
        tasks.put(&n).unwrap();
    }
    let left: Vec<_> = (0..3).map(|_| tasks.try_get().unwrap()).collect();
    assert_eq!(left, [1, 2, 3]);
}

#[test]
fn a_silent_stranger_does_not_delay_the_end() {
    let server = server();
    let address = server.addresses()[0].to_string();
    let mut stranger = std::net::TcpStream::connect(address).unwrap();
    std::io::Read::read_exact(&mut stranger, &mut [0; 4]).unwrap();
    server.stop().unwrap();
    // The server is gone, so the stranger's connection must be at its end.
    stranger.set_read_timeout(Some(LONG)).unwrap();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut stranger, &mut rest).unwrap();
}
