//! What the Rust clients can do beyond Python's methods, on a server in this process.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail loudly")]

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use manyhands::wire::pickle::{Limits, from_payload};
use manyhands::{
    Client, ConnectOptions, Error, Peek, Peeked, PutOptions, TaskState, Value, blocking,
};
use manyhands_server::{QueueOptions, Server};

const KEY: &[u8] = b"a key of 16 bytes or more";
const SHORT: Duration = Duration::from_millis(20);
/// Longer than anything here takes; a test that reaches it has failed.
const LONG: Duration = Duration::from_secs(60);

fn start_at(address: &str) -> Result<Server, manyhands_server::StartError> {
    Server::builder()
        .address(address)
        .authkey(KEY)
        .queue("tasks", QueueOptions::default().results("results"))
        .queue("small", QueueOptions::bounded(2))
        .queue("fragile", QueueOptions::default().attempts(2))
        .start()
}

fn server() -> Server {
    start_at("127.0.0.1:0").unwrap()
}

fn connect(server: &Server) -> blocking::Client {
    blocking::Client::connect(&server.addresses()[0].to_string(), KEY).unwrap()
}

#[test]
fn many_items_travel_in_one_call() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<u64>("tasks").unwrap();
    assert_eq!(tasks.put_many(&[]).unwrap(), 0);
    let items: Vec<_> = (0..40_000).collect();
    assert_eq!(tasks.put_many(&items).unwrap(), items.len());
    let mut taken = Vec::new();
    while taken.len() < items.len() {
        taken.extend(tasks.get_many(20_000, Some(LONG)).unwrap());
    }
    assert_eq!(taken, items);
    assert!(tasks.get_many(5, Some(SHORT)).unwrap_err().is_empty());
    let small = client.queue::<u64>("small").unwrap();
    assert_eq!(small.put_many_timeout(&[1, 2, 3], SHORT).unwrap(), 2);
    assert!(small.put_many_timeout(&[3], SHORT).unwrap_err().is_full());
}

#[test]
fn a_lease_is_settled_as_its_holder_says() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<String>("tasks").unwrap();
    tasks.put_many(&["a".into(), "b".into()]).unwrap();
    let lease = tasks.lease(None).unwrap();
    assert_eq!((lease.as_str(), lease.task(), lease.attempt()), ("a", 0, 1));
    lease.extend(LONG).unwrap();
    lease.nack(Some(Duration::ZERO), "not today").unwrap();
    let lease = tasks.lease(None).unwrap();
    assert_eq!((lease.as_str(), lease.attempt()), ("a", 2));
    lease.ack_with(&7).unwrap();
    let results = client.queue::<u64>("results").unwrap();
    let taken = results.take_with_info(Some(LONG)).unwrap();
    let info = taken.info.unwrap();
    assert_eq!(taken.item, 7);
    assert_eq!((info.queue.as_str(), info.task, info.attempt), ("tasks", 0, 2));
    assert!(info.worker.contains("rust/"), "{info:?}");
    let refused = tasks.lease(None).unwrap().ack().unwrap_err().to_string();
    assert!(refused.contains("ack_with(&result)"), "{refused}");
    let again = tasks.lease(Some(LONG)).unwrap();
    assert_eq!((again.as_str(), again.attempt()), ("b", 2), "it went back");
    again.ack_with(&8).unwrap();
    assert_eq!(results.get().unwrap(), 8);
    assert!(tasks.lease(Some(SHORT)).unwrap_err().is_empty());
    let dead = client.queue::<String>("results").unwrap();
    dead.put(&"no dead letter".into()).unwrap();
    assert_eq!(dead.take_with_info(None).unwrap().info, None);
}

#[test]
fn a_join_ends_when_all_leases_are_acked() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<u64>("tasks").unwrap();
    let unfinished = || {
        let mut infos = client.queues().unwrap().into_iter();
        infos.find(|info| info.name == "tasks").unwrap().unfinished
    };
    tasks.put_many(&[1, 2, 3]).unwrap();
    tasks.lease(None).unwrap().ack_with(&()).unwrap();
    tasks.lease(None).unwrap().ack_with(&7).unwrap();
    assert_eq!(unfinished(), 1);
    server.queue::<u64>("tasks").unwrap().lease(None).unwrap().ack_with(&8).unwrap();
    assert_eq!(unfinished(), 0);
    tasks.join().unwrap();
    assert!(tasks.task_done().is_err(), "all three are counted");
}

#[test]
fn a_lease_that_is_dropped_goes_back_at_once() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<u64>("tasks").unwrap();
    tasks.put(&7).unwrap();
    drop(tasks.lease(None).unwrap());
    assert_eq!(tasks.qsize().unwrap(), 1);
    let panicked = thread::scope(|scope| {
        let tasks = &tasks;
        let worker = scope.spawn(move || {
            let lease = tasks.lease(None).unwrap();
            assert_ne!(*lease, 7, "the worker fails");
        });
        worker.join().is_err()
    });
    assert!(panicked);
    assert_eq!(tasks.lease(Some(LONG)).unwrap().attempt(), 3);
}

#[tokio::test]
async fn async_leases_are_the_same() {
    let server = server();
    let client = Client::connect(&server.addresses()[0].to_string(), KEY).await.unwrap();
    let tasks = client.queue::<u64>("tasks").await.unwrap();
    assert_eq!(tasks.put_many(&[1, 2, 3]).await.unwrap(), 3);
    drop(tasks.lease(None).await.unwrap());
    let again = loop {
        let lease = tasks.lease(Some(LONG)).await.unwrap();
        if lease.attempt() == 2 {
            break lease;
        }
        lease.ack_with(&0).await.unwrap();
    };
    again.ack_with(&1).await.unwrap();
    let results = client.queue::<u64>("results").await.unwrap();
    let attempt = loop {
        let taken = results.take_with_info(None).await.unwrap();
        if taken.item == 1 {
            break taken.info.unwrap().attempt;
        }
    };
    assert_eq!(attempt, 2);
    client.close().await.unwrap();
}

#[test]
fn a_stale_lease_is_told_so() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<u64>("small").unwrap();
    tasks.put(&7).unwrap();
    let lease = tasks.lease(None).unwrap();
    lease.extend(Duration::ZERO).unwrap();
    let other = connect(&server).queue::<u64>("small").unwrap().lease(Some(LONG)).unwrap();
    assert!(matches!(lease.extend(LONG), Err(Error::Stale { .. })));
    assert!(matches!(lease.ack(), Err(Error::Stale { .. })));
    other.ack().unwrap();
}

#[test]
fn a_result_without_a_queue_for_it_is_refused() {
    let server = server();
    let tasks = connect(&server).queue::<u64>("small").unwrap();
    tasks.put(&7).unwrap();
    let error = tasks.lease(None).unwrap().ack_with(&8).unwrap_err().to_string();
    assert!(error.contains("no results: "), "{error}");
}

#[test]
fn a_task_without_the_result_that_its_queue_declares_is_not_done() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<u64>("tasks").unwrap();
    tasks.put(&7).unwrap();
    let error = tasks.lease(None).unwrap().ack().unwrap_err();
    assert!(matches!(&error, Error::Remote { class, .. } if class == "ValueError"), "{error}");
    assert!(error.to_string().contains("no result: results of this queue go to "), "{error}");
    // It went back with its lease, and a worker that knows better has it.
    tasks.lease(Some(LONG)).unwrap().ack_with(&49).unwrap();
    assert_eq!(client.queue::<u64>("results").unwrap().get().unwrap(), 49);
}

#[test]
fn an_item_of_another_type_is_a_dead_letter_at_once() {
    let server = server();
    let client = connect(&server);
    let fragile = client.queue::<Value>("fragile").unwrap();
    fragile.put(&Value::Str("no number".into())).unwrap();
    let numbers = client.queue::<u64>("fragile").unwrap();
    let error = numbers.lease(Some(LONG)).unwrap_err();
    assert!(matches!(error, Error::Item { .. }));
    let text = error.to_string();
    assert!(text.starts_with("queue 'fragile': an item of another type: 'no number': "), "{text}");
    fragile.put_many(&[Value::Str("nor this".into()), Value::Int(7)]).unwrap();
    let leases = numbers.lease_many(10, Some(LONG)).unwrap();
    assert_eq!(leases.iter().map(|lease| **lease).collect::<Vec<_>>(), [7], "it goes on");
    let dead = client.queue::<Value>("fragile.dead").unwrap();
    let letter = dead.take_with_info(Some(LONG)).unwrap();
    let history = letter.info.unwrap().history;
    assert!(history.len() == 1 && history[0].contains("another type"), "{history:?}");
}

/// The worker of the README.
fn work(client: &blocking::Client) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let tasks = client.queue::<u64>("tasks")?;
    loop {
        match tasks.lease(None).map(|task| (*task, task)) {
            Ok((n, task)) => task.ack_with(&(n, n * n))?,
            Err(manyhands::Error::Item { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn the_worker_of_the_readme_goes_on_after_an_item_of_another_type() {
    let readme = include_str!("../../../README.md").split("\n```").find_map(|block| {
        // The first line connects it to another address.
        block.strip_prefix("rust\nlet client = ")?.split_once('\n')
    });
    let lines = readme.unwrap().1.lines().map(|line| line.split("//").next().unwrap().trim());
    let missing: Vec<_> = lines.filter(|line| !include_str!("verbs.rs").contains(line)).collect();
    assert!(missing.is_empty(), "{missing:?}");

    let server = server();
    let client = connect(&server);
    client.queue("tasks").unwrap().put(&Value::Str("no number".into())).unwrap();
    client.queue("tasks").unwrap().put(&7_u64).unwrap();
    let worker = connect(&server);
    let working = thread::spawn({
        let worker = worker.clone();
        move || work(&worker).unwrap_err().to_string()
    });
    let results = client.queue::<(u64, u64)>("results").unwrap();
    assert_eq!(results.get_timeout(LONG).unwrap(), (7, 49));
    assert_eq!(client.queue::<Value>("tasks.dead").unwrap().qsize().unwrap(), 1);
    worker.close().unwrap();
    assert!(working.join().unwrap().ends_with("the client was closed"));
}

#[test]
fn dead_letters_are_driven_again() {
    let server = server();
    let client = connect(&server);
    let fragile = client.queue::<u64>("fragile").unwrap();
    fragile.put(&7).unwrap();
    for _ in 0..2 {
        fragile.lease(Some(LONG)).unwrap().nack(Some(Duration::ZERO), "no").unwrap();
    }
    let dead = client.queue::<u64>("fragile.dead").unwrap();
    assert_eq!(dead.redrive(100).unwrap(), 1);
    assert_eq!(fragile.lease(None).unwrap().attempt(), 1);
    assert_eq!(fragile.purge().unwrap(), 1);
    assert!(fragile.is_empty().unwrap());
}

#[test]
fn a_put_has_options() {
    let server = server();
    let tasks = connect(&server).queue::<u64>("tasks").unwrap();
    let keyed = PutOptions { key: Some(b"k".to_vec()), ..PutOptions::default() };
    assert!(tasks.put_with(&1, &keyed).unwrap());
    assert!(!tasks.put_with(&2, &keyed).unwrap());
    let delayed = PutOptions { delay: Some(LONG * 60), ..PutOptions::default() };
    assert!(tasks.put_with(&3, &delayed).unwrap());
    assert!(tasks.put_with(&4, &PutOptions::default()).unwrap());
    assert_eq!(tasks.get_many(10, None).unwrap(), [1, 4]);
}

/// A port that a server can be started on again.
fn restarted(first: Server) -> Server {
    let address: SocketAddr = first.addresses()[0].to_string().parse().unwrap();
    drop(first);
    loop {
        // The old one's connections may still be ending.
        if let Ok(server) = start_at(&address.to_string()) {
            return server;
        }
    }
}

#[test]
fn a_client_finds_a_server_again_that_was_started_anew() {
    let first = server();
    let client = connect(&first);
    let tasks = client.queue::<u64>("tasks").unwrap();
    tasks.put(&1).unwrap();
    let waiting = thread::spawn({
        let tasks = connect(&first).queue::<u64>("small").unwrap();
        move || tasks.get()
    });
    let second = restarted(first);
    assert_eq!(tasks.qsize().unwrap(), 0, "it is another server");
    tasks.put(&2).unwrap();
    assert_eq!(tasks.get().unwrap(), 2);
    second.queue::<u64>("small").unwrap().put(&3).unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), 3, "a get that waited waits on");
    client.close().unwrap();
}

#[test]
fn a_put_whose_answer_was_lost_is_in_doubt() {
    let server = server();
    let client = connect(&server);
    let small = client.queue::<u64>("small").unwrap();
    small.put_many(&[1, 2]).unwrap();
    let (entered, enter) = std::sync::mpsc::channel();
    let put = thread::spawn(move || {
        entered.send(()).unwrap();
        small.put(&3)
    });
    enter.recv_timeout(LONG).unwrap();
    // The put waits for room, or has not been sent yet: then it is not in doubt.
    let watcher = connect(&server);
    while watcher.queues().unwrap().iter().all(|queue| queue.qsize < 2) {}
    drop(server);
    let error = put.join().unwrap().unwrap_err();
    let is_told =
        matches!(error, Error::InDoubt { .. } | Error::Connect { .. } | Error::Lost { .. });
    assert!(is_told, "{error}");
}

#[test]
fn the_queues_of_the_program_itself_have_the_same_verbs() {
    let server = server();
    let tasks = server.queue::<u64>("tasks").unwrap();
    let results = server.queue::<String>("results").unwrap();
    assert_eq!(tasks.put_many(&[1, 2, 3], None).unwrap(), 3);
    assert_eq!(tasks.get_many(2, None).unwrap(), [1, 2]);
    let lease = tasks.lease(Some(LONG)).unwrap();
    assert_eq!((*lease, lease.task(), lease.attempt()), (3, 2, 1));
    lease.extend(LONG).unwrap();
    drop(lease);
    let lease = tasks.lease(None).unwrap();
    assert_eq!(lease.attempt(), 2);
    lease.ack_with(&"done").unwrap();
    let taken = results.take_with_info(None).unwrap();
    assert_eq!((taken.item.as_str(), taken.info.unwrap().attempt), ("done", 2));
    assert!(tasks.lease(Some(SHORT)).unwrap_err().is_empty());
    let keyed = PutOptions { key: Some(b"k".to_vec()), ..PutOptions::default() };
    assert!(tasks.put_with(&1, &keyed).unwrap());
    assert!(!tasks.put_with(&1, &keyed).unwrap());
    assert_eq!(tasks.purge().unwrap(), 1);
    let small = server.queue::<u64>("small").unwrap();
    assert_eq!(small.put_many(&[1, 2, 3], Some(SHORT)).unwrap(), 2);
    assert!(small.put_many(&[3], Some(SHORT)).unwrap_err().is_full());
    small.lease(None).unwrap().nack(Some(Duration::ZERO), "no").unwrap();
    assert!(
        small.lease(None).unwrap().ack_with(&1).unwrap_err().to_string().contains("no results")
    );
}

#[tokio::test]
async fn the_async_queues_of_the_program_itself_have_them_too() {
    let server = server();
    let small = server.async_queue::<u64>("small").unwrap();
    let items: Vec<_> = (0..10).collect();
    let (added, taken) = tokio::join!(small.put_many(&items, None), async {
        let mut taken = Vec::new();
        while taken.len() < items.len() {
            taken.extend(small.get_many(3, Some(LONG)).await.unwrap());
        }
        taken
    });
    assert_eq!((added.unwrap(), taken), (items.len(), items));
    let (lease, put) = tokio::join!(small.lease(Some(LONG)), small.put(&7));
    put.unwrap();
    assert_eq!(*lease.unwrap(), 7);
}

#[test]
fn a_client_that_takes_leave_gives_its_leases_back() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<u64>("tasks").unwrap();
    tasks.put(&7).unwrap();
    let lease = tasks.lease(None).unwrap();
    client.close().unwrap();
    assert!(matches!(lease.extend(LONG), Err(Error::Closed { .. })));
    let again = connect(&server).queue::<u64>("tasks").unwrap().lease(Some(LONG)).unwrap();
    assert_eq!((*again, again.attempt()), (7, 2));
}

#[test]
fn a_look_says_what_each_task_is_and_takes_nothing() {
    let server = server();
    let client = connect(&server);
    let fragile = client.queue::<String>("fragile").unwrap();
    let options = PutOptions { key: Some(b"k".to_vec()), ..PutOptions::default() };
    assert_eq!(fragile.put_task(&"a".into(), &options).unwrap(), Some(0));
    assert_eq!(fragile.put_task(&"a".into(), &options).unwrap(), None, "its key is known");
    let later = PutOptions { delay: Some(LONG), ..PutOptions::default() };
    assert_eq!(fragile.put_task(&"b".into(), &later).unwrap(), Some(1));
    fragile.put(&"c".into()).unwrap();
    let item = |task: &Peeked| -> String {
        from_payload(task.item.as_ref().unwrap(), &Limits::default()).unwrap()
    };
    let look = |state| fragile.peek(Peek { state, ..Peek::default() }).unwrap();

    for _ in 0..2 {
        let ready = look(TaskState::Ready);
        assert_eq!(ready.iter().map(|it| it.task).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((item(&ready[0]), item(&ready[1])), ("a".to_owned(), "c".to_owned()));
        assert_eq!((ready[0].key.as_deref(), ready[0].attempt), (Some(&b"k"[..]), 1));
        assert!(ready[1].age.is_some_and(|age| age < LONG) && ready[1].worker.is_none());
    }
    let delayed = look(TaskState::Delayed);
    assert_eq!((delayed.len(), delayed[0].task, &*item(&delayed[0])), (1, 1, "b"));
    assert!(delayed[0].due_in.is_some_and(|due| due > LONG / 2));

    let lease = fragile.lease(None).unwrap();
    let leased = look(TaskState::Leased);
    assert_eq!((leased.len(), leased[0].task), (1, 0));
    let name = leased[0].worker.as_deref().unwrap();
    assert!(name.contains(&format!("pid={}", std::process::id())), "{name}");
    assert!(leased[0].peer.is_some() && leased[0].since.is_some());
    lease.nack(Some(Duration::ZERO), "no such page").unwrap();
    let [failure] = &look(TaskState::Ready)[0].failures[..] else { panic!("one failure") };
    assert_eq!((failure.attempt, failure.reason.as_str()), (1, "no such page"));

    fragile.lease(None).unwrap().give_up("it is no page").unwrap();
    let dead = client.queue::<String>("fragile.dead").unwrap();
    let [letter] = &dead.peek(Peek::default()).unwrap()[..] else { panic!("one letter") };
    assert_eq!(letter.origin, Some(("fragile".to_owned(), 0)));
    let reasons: Vec<_> = letter.failures.iter().map(|it| (it.attempt, &*it.reason)).collect();
    assert_eq!(
        (letter.attempt, &reasons[..]),
        (2, &[(1, "no such page"), (2, "it is no page")][..])
    );
    let local = server.queue::<String>("fragile.dead").unwrap().peek(Peek::default()).unwrap();
    assert_eq!((local.len(), &local[0].failures), (1, &letter.failures));
    let bare = fragile.peek(Peek { items: false, ..Peek::default() }).unwrap();
    assert_eq!((bare.len(), &bare[0].item), (1, &None));
    assert_eq!(fragile.qsize().unwrap(), 1);
}

#[test]
fn a_task_that_nobody_can_do_is_a_dead_letter_at_once() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<u64>("tasks").unwrap();
    tasks.put(&7).unwrap();
    tasks.lease(None).unwrap().give_up("seven never works").unwrap();
    let dead = client.queue::<u64>("tasks.dead").unwrap();
    let taken = dead.take_with_info(Some(LONG)).unwrap();
    let info = taken.info.unwrap();
    assert_eq!(
        (taken.item, info.attempt, &info.history[..]),
        (7, 1, &["seven never works".to_owned()][..])
    );
    server.queue("tasks").unwrap().put(&8_u64).unwrap();
    server.queue::<u64>("tasks").unwrap().lease(None).unwrap().give_up("nor does eight").unwrap();
    assert_eq!(dead.get_timeout(LONG).unwrap(), 8);
}

#[test]
fn a_client_may_be_there_before_its_server() {
    let server = server();
    let address = server.addresses()[0].to_string();
    server.stop().unwrap();
    let late = thread::spawn({
        let address = address.clone();
        move || {
            thread::sleep(SHORT);
            start_at(&address).unwrap()
        }
    });
    let client = blocking::Client::connect(&address, KEY).unwrap();
    let server = late.join().unwrap();
    client.queue::<u64>("tasks").unwrap().put(&1).unwrap();
    server.stop().unwrap();
    let at_once = ConnectOptions { reconnect_for: Duration::ZERO, ..ConnectOptions::default() };
    let refused = blocking::Client::connect_with(&address, KEY, at_once);
    assert!(matches!(refused, Err(Error::Connect { .. })));
}

#[test]
fn errors_say_what_there_is_and_what_to_do() {
    let server = server();
    let client = connect(&server);
    let unknown = client.queue::<u64>("task").unwrap_err().to_string();
    assert!(unknown.contains("no queue is called 'task'; there are: 'tasks', "), "{unknown}");
    let tasks = client.queue::<u64>("tasks").unwrap();
    let options = PutOptions { priority: Some(1), ..PutOptions::default() };
    let refused = tasks.put_with(&1, &options).unwrap_err().to_string();
    assert!(refused.contains("'priority' needs a queue that has an order"), "{refused}");
    assert!(refused.ends_with("this one is fifo"), "{refused}");
    assert!(tasks.is_empty().unwrap());
    for key in [PutOptions::keyed("k"), PutOptions::keyed(b"k"), PutOptions::keyed(vec![b'k'])] {
        assert_eq!(key.key.as_deref(), Some(&b"k"[..]));
    }
}

#[test]
fn a_master_is_told_of_a_task_that_was_given_up_where_results_go() {
    let options = QueueOptions::default().results("done").attempts(1).failures("results");
    let server = Server::builder()
        .address("127.0.0.1:0")
        .authkey(KEY)
        .queue("jobs", options)
        .start()
        .unwrap();
    let client = connect(&server);
    let jobs = client.queue::<u64>("jobs").unwrap();
    let first = jobs.put_task(&7, &PutOptions::keyed("seven")).unwrap();
    let second = jobs.put_task(&8, &PutOptions::default()).unwrap();
    jobs.lease(None).unwrap().nack(None, "no such page").unwrap();
    jobs.lease(None).unwrap().ack_with(&64).unwrap();
    let done = client.queue::<Value>("done").unwrap();
    let notice = done.take_with_info(Some(LONG)).unwrap();
    let expected = "{'given_up': True, 'queue': 'jobs', 'task': 0, 'key': 'seven', 'attempts': 1, \
                    'reasons': ['no such page']}";
    assert_eq!(notice.item.to_string(), expected);
    assert_eq!(notice.info.map(|info| info.task), first);
    let result = done.take_with_info(Some(LONG)).unwrap();
    assert_eq!((result.item, result.info.map(|info| info.task)), (Value::Int(64), second));
    assert_eq!(done.redrive(10).unwrap(), 0);
    assert_eq!(client.queue::<u64>("jobs.dead").unwrap().get_timeout(LONG).unwrap(), 7);

    let nowhere = QueueOptions::default().failures("results");
    let refused =
        Server::builder().address("127.0.0.1:0").authkey(KEY).queue("jobs", nowhere).start();
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("names no queue of results"), "{refused}");
}

#[test]
fn puts_ahead_of_their_answers_arrive_in_order() {
    let server = server();
    let tasks = connect(&server).queue::<u64>("tasks").unwrap();
    let puts: Vec<_> = (0..2000).map(|item| tasks.put_ahead(&item).unwrap()).collect();
    puts.into_iter().for_each(|put| put.wait().unwrap());
    assert_eq!(tasks.get_many(2000, None).unwrap(), (0..2000).collect::<Vec<_>>());
    // One whose answer is not awaited arrives as well.
    drop(tasks.put_ahead(&7));
    assert_eq!(tasks.get_timeout(LONG).unwrap(), 7);
    let small = connect(&server).queue::<u64>("small").unwrap();
    let puts: Vec<_> = (0..3).map(|item| small.put_ahead(&item).unwrap()).collect();
    let taken: Vec<_> = (0..3).map(|_| small.get_timeout(LONG).unwrap()).collect();
    assert_eq!(taken, [0, 1, 2], "the third one waited for room");
    puts.into_iter().for_each(|put| put.wait().unwrap());
}

#[test]
fn many_leases_are_acked_in_one_call() {
    let server = server();
    let client = connect(&server);
    let small = client.queue::<u64>("small").unwrap();
    small.put_many(&[1, 2]).unwrap();
    let mut leases = small.lease_many(2, None).unwrap();
    leases[0].extend(Duration::ZERO).unwrap();
    leases.push(connect(&server).queue::<u64>("small").unwrap().lease(Some(LONG)).unwrap());
    let [stale, acked, again] = &small.ack_many(leases).unwrap()[..] else { panic!("three") };
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    assert!(acked.is_ok() && again.is_ok());
    let tasks = client.queue::<u64>("tasks").unwrap();
    tasks.put_many(&[3, 4]).unwrap();
    let done = tasks.lease_many(2, None).unwrap().into_iter().map(|lease| {
        let result = *lease * *lease;
        (lease, result)
    });
    assert!(tasks.ack_many_with(done).unwrap().into_iter().all(|acked| acked.is_ok()));
    assert_eq!(client.queue::<u64>("results").unwrap().get_many(2, None).unwrap(), [9, 16]);
}

#[test]
fn leases_come_by_themselves_and_those_that_were_not_started_go_back() {
    let server = server();
    let client = connect(&server);
    let small = client.queue::<u64>("fragile").unwrap();
    small.put_many(&(0..20).collect::<Vec<_>>()).unwrap();
    let mut leases = small.leases(8).unwrap();
    for n in 0..5 {
        let lease = leases.next().unwrap().unwrap();
        assert_eq!((*lease, lease.attempt()), (n, 1));
        lease.ack().unwrap();
    }
    let started = leases.next().unwrap().unwrap();
    drop(leases);
    let left = small.lease_many(20, Some(LONG)).unwrap();
    let first = (*left[0], left[0].attempt());
    assert_eq!(first, (6, 1), "a task that was not started has used up no attempt");
    started.ack().unwrap();
}

#[test]
fn a_worker_with_nothing_to_do_gets_what_another_one_has_not_started() {
    let server = server();
    let (busy, idle) = (connect(&server), connect(&server));
    let tasks = busy.queue::<u64>("fragile").unwrap();
    tasks.put_many(&[1, 2, 3]).unwrap();
    let mut leases = tasks.leases(8).unwrap();
    let first = leases.next().unwrap().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let lease = idle.queue::<u64>("fragile").unwrap().lease(Some(LONG)).unwrap();
            let got = (*lease, lease.attempt());
            lease.ack().unwrap();
            got
        });
        // Somebody has to read what the server asks for.
        while !waiting.is_finished() {
            tasks.qsize().unwrap();
        }
        assert_eq!(waiting.join().unwrap(), (3, 1));
    });
    first.ack().unwrap();
    assert_eq!(*leases.next().unwrap().unwrap(), 2);
}

#[test]
fn leases_end_with_their_queue() {
    let server = server();
    let client = connect(&server);
    let tasks = client.queue::<u64>("fragile").unwrap();
    tasks.put(&7).unwrap();
    let mut leases = tasks.leases(2).unwrap();
    let last = leases.next().unwrap().unwrap();
    tasks.shutdown(false).unwrap();
    assert!(leases.next().is_none());
    last.ack().unwrap();
}

#[tokio::test]
async fn async_leases_come_by_themselves_too() {
    let server = server();
    let client = Client::connect(&server.addresses()[0].to_string(), KEY).await.unwrap();
    let tasks = client.queue::<u64>("fragile").await.unwrap();
    let mut leases = tasks.leases(4).unwrap();
    let items: Vec<_> = (0..50).collect();
    let (taken, added) = tokio::join!(
        async {
            let mut taken = Vec::new();
            while taken.len() < items.len() {
                let lease = leases.next().await.unwrap().unwrap();
                taken.push(*lease);
                lease.ack().await.unwrap();
            }
            taken
        },
        tasks.put_many(&items)
    );
    assert_eq!((taken, added.unwrap()), (items.clone(), items.len()));
    let mut puts = Vec::new();
    for item in &items {
        puts.push(tasks.put_ahead(item).await.unwrap());
    }
    for put in puts {
        put.await.unwrap();
    }
    drop(leases);
    let again = tasks.lease_many(50, Some(LONG)).await.unwrap();
    assert!(tasks.ack_many(again).await.unwrap().into_iter().all(|acked| acked.is_ok()));
    client.close().await.unwrap();
}

#[tokio::test]
async fn a_lease_that_comes_for_a_caller_who_has_left_goes_back() {
    let server = server();
    let client = Client::connect(&server.addresses()[0].to_string(), KEY).await.unwrap();
    let tasks = client.queue::<u64>("fragile").await.unwrap();
    for n in 0..50 {
        let (left, put) = tokio::join!(
            tokio::time::timeout(Duration::from_micros(n * 20), tasks.lease(None)),
            tasks.put(&n)
        );
        put.unwrap();
        drop(left);
        let lease = tasks.lease(Some(LONG)).await.unwrap();
        assert_eq!(*lease, n);
        lease.ack().await.unwrap();
    }
}

#[tokio::test]
async fn what_a_worker_took_and_has_no_result_of_goes_to_others_if_it_vanishes() {
    let server = server();
    let address = server.addresses()[0].to_string();
    let master = Client::connect(&address, KEY).await.unwrap();
    let tasks = master.queue::<u64>("tasks").await.unwrap();
    let results = master.queue::<u64>("results").await.unwrap();
    tasks.put_many(&[1, 2]).await.unwrap();
    let worker = Client::connect(&address, KEY).await.unwrap();
    let from = worker.queue::<u64>("tasks").await.unwrap();
    let to = worker.queue::<u64>("results").await.unwrap();
    assert_eq!(from.get().await.unwrap(), 1);
    assert_eq!(from.get().await.unwrap(), 2);
    to.put(&1).await.unwrap();
    let first = results.take_with_info(Some(LONG)).await.unwrap();
    assert_eq!((first.item, first.info.map(|info| info.task)), (1, Some(0)), "it is a result");
    drop((from, to, worker));
    let again = tasks.lease(Some(LONG)).await.unwrap();
    assert_eq!((*again, again.attempt()), (2, 2));
    again.ack_with(&4).await.unwrap();
    assert_eq!(results.get_timeout(LONG).await.unwrap(), 4);
}
