//! A directory of which one bit is another than was written is copied by `manyhands journal salvage`:
//! a server on the copy has everything else, and what is left out is named.

use manyhands::blocking::{Lease, Queue};
use manyhands::{ConnectOptions, Peek};

use super::flips::{FILE_HEADER, FRAME_HEADER, Killed, LARGE, large};
use super::*;

const QUEUES: [&str; 5] =
    ["work,results=results,attempts=2,lease=3600", "results", "work.dead", "tasks", "small"];

/// A client of a server that is gone, and the task that it has in hand.
struct Worker {
    connected: Client,
    lease: Lease<String>,
    address: String,
}

/// One task has a result, one is a dead letter, one failed once and is in somebody's hand, and two
/// wait.
fn work(server: &Server) -> Worker {
    let address = format!("127.0.0.1:{}", server.port());
    let reconnect_for = Duration::from_secs(60);
    let options = ConnectOptions { reconnect_for, ..ConnectOptions::default() };
    let connected = Client::connect_with(&address, KEY, options).unwrap();
    let work: Queue<String> = connected.queue("work").unwrap();
    for number in ["done", "dead", "in hand", "first", "second"] {
        work.put(&number.to_owned()).unwrap();
    }
    let lease = |item: &str| {
        let lease = work.lease(None).unwrap();
        assert_eq!(*lease, item);
        lease
    };
    lease("done").ack_with(&"result").unwrap();
    lease("dead").nack(Some(Duration::ZERO), "it failed").unwrap();
    lease("dead").nack(Some(Duration::ZERO), "it failed again").unwrap();
    lease("in hand").nack(Some(Duration::ZERO), "not yet").unwrap();
    let lease = lease("in hand");
    Worker { connected, lease, address }
}

/// All of that is there, and the worker goes on where it was.
fn is_there(salvaged: &Home, worker: Worker) -> Server {
    let server = salvaged.try_serve_at(&worker.address).unwrap_or_else(|why| panic!("{why}"));
    let infos = worker.connected.queues().unwrap();
    let of = |name: &str| infos.iter().find(|info| info.name == name).unwrap();
    assert_eq!((of("work").qsize, of("work").leased, of("work").unfinished), (2, 1, 3));
    let letters: Queue<String> = worker.connected.queue("work.dead").unwrap();
    let letters = letters.peek(Peek::default()).unwrap();
    assert_eq!(letters.len(), 1);
    let told = format!("{:?}", letters[0]);
    assert!(told.contains("it failed") && told.contains("it failed again"), "{told}");
    assert_eq!(worker.lease.attempt(), 2);
    worker.lease.ack_with(&"late").unwrap();
    let results: Queue<String> = worker.connected.queue("results").unwrap();
    assert_eq!([results.get().unwrap(), results.get().unwrap()], ["result", "late"]);
    let work: Queue<String> = worker.connected.queue("work").unwrap();
    assert_eq!([work.get().unwrap(), work.get().unwrap()], ["first", "second"]);
    server
}

/// What a command says, and whether all was whole.
fn salvage(killed: &Home) -> (Home, bool, String) {
    let salvaged = Home::new(&QUEUES);
    let (is_whole, text) = killed.journal("salvage", &[salvaged.data().to_str().unwrap()]);
    let (is_intact, checked) = salvaged.journal("check", &[]);
    assert!(is_intact, "{text}{checked}");
    (salvaged, is_whole, text)
}

fn all<T: serde::de::DeserializeOwned>(server: &Server, queue: &str) -> Vec<T> {
    let connected = client(server);
    let queue: Queue<T> = connected.queue(queue).unwrap();
    std::iter::from_fn(|| queue.try_get().ok()).collect()
}

fn is_large(items: &[String], numbers: impl Iterator<Item = u8>) -> bool {
    items.iter().cloned().eq(numbers.map(large))
}

#[test]
fn a_damaged_body_ends_the_server_with_the_remedy_and_salvage_has_all_the_others() {
    let (killed, worker) = Killed::after(&QUEUES, work);
    let (damaged, name, at) = killed.behind_checkpoint();
    killed.flip(name, at + LARGE / 2);
    let server = killed.home.serve();
    let connected = client(&server);
    let tasks: Queue<String> = connected.queue("tasks").unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| tasks.get().ok()).collect();
    assert!(is_large(&taken, killed.first..damaged), "{}", taken.len());
    let said = failure(server);
    let line = said.lines().find(|line| line.starts_with("manyhands: ")).unwrap();
    let data = killed.home.data();
    for part in [
        format!("{name} at byte "),
        format!("task {damaged} of the queue \"tasks\""),
        format!("manyhands journal salvage {} TO", data.display()),
    ] {
        assert!(line.contains(&part), "{line}");
    }
    let before = killed.read();
    let (salvaged, is_whole, text) = salvage(&killed.home);
    assert!(before == killed.read(), "the directory was changed");
    let place = line.split("at byte ").nth(1).and_then(|it| it.split(':').next()).unwrap();
    let named = format!("queue tasks: task {damaged}: its body at {name}:{place} is damaged\n");
    assert!(!is_whole && text.contains(&named), "{text}");
    assert_eq!(text.matches("damaged").count(), 1, "{text}");
    let server = is_there(&salvaged, worker);
    let rest: Vec<String> = all(&server, "tasks");
    // What was in the hand of the one who met the damage comes back.
    let in_hand = usize::from(rest.first() == Some(&large(damaged - 1)));
    assert!(is_large(&rest[in_hand..], damaged + 1..90), "{}", rest.len());
    assert!(all::<u64>(&server, "small").into_iter().eq(0..killed.small));
    terminate(server);
}

#[test]
fn what_is_whole_is_copied_whole_and_nothing_is_overwritten() {
    let (killed, worker) = Killed::after(&QUEUES, work);
    let server = killed.home.serve();
    let used = killed.home.dir.path().join("used");
    let (done, text) = killed.home.journal("salvage", &[used.to_str().unwrap()]);
    assert!(!done && text.contains("another process is using the journal"), "{text}");
    assert!(!used.exists() && !used.with_extension("part").exists());
    drop(server);
    let (salvaged, is_whole, text) = salvage(&killed.home);
    assert!(is_whole && !text.contains("damaged"), "{text}");
    let (done, text) = killed.home.journal("salvage", &[salvaged.data().to_str().unwrap()]);
    assert!(!done && text.contains("is there already"), "{text}");
    let server = is_there(&salvaged, worker);
    assert!(is_large(&all::<String>(&server, "tasks"), killed.first..90));
    assert!(all::<u64>(&server, "small").into_iter().eq(0..killed.small));
    terminate(server);
}

#[test]
fn a_damaged_frame_costs_what_it_said_and_a_damaged_body_in_it_one_task() {
    let (killed, worker) = Killed::after(&QUEUES, work);
    let (log, _) = killed.segments();
    let last = *log.last().unwrap();
    let frames = super::flips::frames(&killed.files[last]);
    let frame = frames[frames.len() - 20].clone();
    let mut lost = Vec::new();
    // In its header, and in the item that its only record brings.
    for (at, what) in
        [(frame.start + FRAME_HEADER - 16, " is lost"), (frame.end - 1, "queue small: task ")]
    {
        killed.flip(last, at);
        assert!(killed.home.refusal().contains("manyhands journal salvage "));
        let (salvaged, is_whole, text) = salvage(&killed.home);
        assert!(!is_whole && text.contains(what) && text.contains(last), "{text}");
        let server = salvaged.serve();
        assert!(is_large(&all::<String>(&server, "tasks"), killed.first..90));
        let small: Vec<u64> = all(&server, "small");
        lost.extend((0..killed.small).filter(|number| !small.contains(number)));
        assert!(small.is_sorted() && small.len() as u64 == killed.small - 1, "{small:?}");
    }
    assert!(lost.len() == 2 && lost[0] == lost[1], "{lost:?}");
    killed.flip(last, frame.start);
    let (salvaged, ..) = salvage(&killed.home);
    terminate(is_there(&salvaged, worker));
}

#[test]
fn behind_a_damaged_checkpoint_every_task_is_there() {
    let (killed, worker) = Killed::after(&QUEUES, work);
    drop(worker);
    let checkpoint = killed.checkpoint();
    let len = killed.checkpoint_len();
    for at in [0, FILE_HEADER, len - 40, len - 1] {
        killed.flip(checkpoint, at);
        assert!(killed.home.refusal().contains("manyhands journal salvage "));
        let (salvaged, is_whole, text) = salvage(&killed.home);
        assert!(!is_whole && text.contains(checkpoint), "{text}");
        assert!(text.contains("tasks that were settled may come back"), "{text}");
        let server = salvaged.serve();
        let tasks: Vec<String> = all(&server, "tasks");
        let there = tasks.iter().position(|item| *item == large(killed.first)).unwrap();
        assert!(is_large(&tasks[there..], killed.first..90), "{at}: {text}");
        assert!(all::<u64>(&server, "small").into_iter().eq(0..killed.small), "{at}");
        let work: Vec<String> = all(&server, "work");
        assert!(work.iter().any(|item| item == "first"), "{at}: {work:?}");
    }
}
