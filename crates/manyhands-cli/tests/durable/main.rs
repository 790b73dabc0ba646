//! `manyhands serve --data DIR`: what is there again after the server ended, however it did, and how
//! it fails when its disk does.
//!
//! The clients are stock CPython, the server is the program itself.

#![cfg(unix)]
#![expect(clippy::indexing_slicing, reason = "a helper that panics fails its test, as it should")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(dead_code, reason = "shares what the other behaviour tests need")]

#[cfg(target_os = "linux")]
mod backup;
mod flips;
mod full;
mod salvage;
#[path = "../it/support.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use manyhands::blocking::Client;
use manyhands::{Error, PutOptions};
use serde_json::Value;

use crate::support::{
    KEY, Key, Python, Running, Server, for_each_python, newest_python, python_dir, pythons,
};

/// Small files, so that a test does not fill the disk.
const SMALL: [&str; 4] = ["--segment-bytes", "300000", "--frame-bytes-max", "200000"];

/// A data directory, and what is served from it.
struct Home {
    dir: tempfile::TempDir,
    queues: Vec<&'static str>,
}

impl Home {
    fn new(queues: &[&'static str]) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), queues: queues.to_vec() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn serve(&self) -> Server {
        self.try_serve().unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_serve(&self) -> Result<Server, String> {
        self.try_serve_at("127.0.0.1:0")
    }

    fn try_serve_at(&self, address: &str) -> Result<Server, String> {
        let data = self.data();
        let mut options = vec!["--data", data.to_str().unwrap()];
        options.extend(SMALL);
        options.extend(self.queues.iter().flat_map(|queue| ["--queue", queue]));
        Server::at(address, Key::Bytes(KEY), &options)
    }

    /// Why the server does not start: one line.
    fn refusal(&self) -> String {
        let refusal = self.try_serve().expect_err("it must not start");
        let line = refusal.split_once("manyhands: ").unwrap_or_else(|| panic!("{refusal}")).1;
        assert!(refusal.contains("exit status: 1") && !line.contains('\n'), "{refusal}");
        line.to_owned()
    }

    fn files(&self, kind: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.data()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            paths.filter(|path| path.extension().is_some_and(|it| it == kind)).collect();
        files.sort();
        files
    }

    fn journal(&self, verb: &str, more: &[&str]) -> (bool, String) {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_manyhands"));
        let output = command.args(["journal", verb]).arg(self.data()).args(more).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }
}

fn stock(python: &Python, server: &Server, words: &[&str]) -> Running {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/durable/python/stock.py");
    let script = python.program(&script).env("MANYHANDS_TEST_PYTHON", python_dir()).server(server);
    words.iter().fold(script, |script, word| script.arg(word)).start()
}

fn said(running: &mut Running, field: &str) -> Option<u64> {
    let line = running.line()?;
    let mut line: Value = serde_json::from_str(&line).unwrap();
    Some(line[field].take().as_u64().unwrap_or_else(|| panic!("no {field} in {line}")))
}

/// Puts these numbers, each of which is answered.
fn put(python: &Python, server: &Server, queue: &str, first: u64, last: u64) {
    let mut putting = stock(python, server, &["put", queue, &first.to_string(), &last.to_string()]);
    for number in first..last {
        assert_eq!(said(&mut putting, "put"), Some(number));
    }
    putting.finish();
}

/// Takes all that is ready.
fn drain(python: &Python, server: &Server, queue: &str) -> Vec<u64> {
    let mut getting = stock(python, server, &["get", queue]);
    std::iter::from_fn(|| said(&mut getting, "got")).collect()
}

/// Asks a server to stop (SIGTERM), and waits until it has, without a complaint.
fn terminate(server: Server) {
    let process = server.process.into_inner().unwrap();
    let id = process.child.id().to_string();
    let asked = std::process::Command::new("kill").args(["-TERM", &id]).status();
    assert!(asked.unwrap().success());
    process.finish();
}

/// Waits until a server has ended by itself, in a failure, and returns what it had to say.
fn failure(server: Server) -> String {
    let mut process = server.process.into_inner().unwrap();
    while process.line().is_some() {}
    let status = process.child.wait().unwrap();
    let errors: Vec<_> = process.errors.iter().collect();
    assert_eq!(status.code(), Some(1), "{}", errors.join("\n"));
    errors.join("\n")
}

fn client(server: &Server) -> Client {
    Client::connect(&format!("127.0.0.1:{}", server.port()), KEY).unwrap()
}

#[test]
fn what_was_answered_is_there_in_its_order_after_the_server_was_killed() {
    for_each_python(pythons(), |python| {
        let home = Home::new(&["tasks", "stack,order=lifo", "heap,order=priority"]);
        let server = home.serve();
        for queue in ["tasks", "stack", "heap"] {
            put(python, &server, queue, 0, 20);
        }
        drop(server);
        let server = home.serve();
        put(python, &server, "tasks", 20, 22);
        assert_eq!(drain(python, &server, "tasks"), (0..22).collect::<Vec<_>>());
        drop(server);
        let server = home.serve();
        assert!(drain(python, &server, "tasks").is_empty(), "what was taken is gone");
        assert_eq!(drain(python, &server, "stack"), (0..20).rev().collect::<Vec<_>>());
        assert_eq!(drain(python, &server, "heap"), (0..20).collect::<Vec<_>>());
    });
}

#[test]
fn a_server_that_is_killed_while_clients_put_keeps_all_that_it_answered() {
    let python = newest_python();
    let home = Home::new(&["tasks", "quick,durability=os"]);
    for queue in ["tasks", "quick"] {
        let mut expected = 0;
        for _ in 0..3 {
            let server = home.serve();
            let mut putting = stock(python, &server, &["put", queue, "0", "1000000"]);
            let mut answered = 0;
            while answered < 50 {
                answered = said(&mut putting, "put").unwrap() + 1;
            }
            drop(server);
            while let Some(line) = putting.line() {
                answered += u64::from(line.contains("\"put\""));
            }
            let server = home.serve();
            let there = drain(python, &server, queue);
            assert!(there.len() as u64 >= answered, "{} of {answered}", there.len());
            assert!(there.iter().copied().eq(0..there.len() as u64), "{there:?}");
            expected += 1;
        }
        assert_eq!(expected, 3);
    }
}

#[test]
fn a_task_that_a_worker_had_when_the_server_was_killed_comes_back() {
    for_each_python(pythons(), |python| {
        let home = Home::new(&["tasks"]);
        let server = home.serve();
        put(python, &server, "tasks", 0, 3);
        let mut worker = stock(python, &server, &["hold", "tasks"]);
        assert_eq!(said(&mut worker, "got"), Some(0));
        drop(server);
        let server = home.serve();
        assert_eq!(drain(python, &server, "tasks"), [0, 1, 2]);
    });
}

#[test]
fn a_join_goes_on_after_a_restart() {
    let python = newest_python();
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    put(python, &server, "tasks", 0, 3);
    assert_eq!(stock(python, &server, &["done", "tasks", "2"]).finish(), "{\"done\": 2}\n");
    drop(server);
    let server = home.serve();
    let mut joining = stock(python, &server, &["join", "tasks"]);
    joining.wait_for(1, |line| line == "{\"joining\": true}");
    stock(python, &server, &["done", "tasks", "1"]).finish();
    joining.wait_for(1, |line| line == "{\"joined\": true}");
}

#[test]
fn delays_keys_and_leases_of_our_own_clients_survive() {
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    let connected = client(&server);
    let tasks = connected.queue::<u64>("tasks").unwrap();
    let keyed = PutOptions { key: Some(b"key".to_vec()), ..PutOptions::default() };
    assert!(tasks.put_with(&1, &keyed).unwrap());
    let delayed = PutOptions { delay: Some(Duration::from_secs(3600)), ..PutOptions::default() };
    assert!(tasks.put_with(&2, &delayed).unwrap());
    drop(server);
    let server = home.serve();
    let connected = client(&server);
    let tasks = connected.queue::<u64>("tasks").unwrap();
    assert!(!tasks.put_with(&1, &keyed).unwrap(), "it was put before");
    assert_eq!(tasks.get_timeout(Duration::ZERO).unwrap(), 1);
    assert!(matches!(tasks.try_get(), Err(Error::Empty)));
    let infos = connected.queues().unwrap();
    assert_eq!(infos[0].delayed, 1);
}

#[test]
fn a_server_that_is_told_to_stop_ends_its_journal_and_starts_again() {
    let python = newest_python();
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    put(python, &server, "tasks", 0, 5);
    terminate(server);
    let (intact, text) = home.journal("check", &[]);
    assert!(intact && text.contains("stopped cleanly") && !text.contains("not stopped"), "{text}");
    let server = home.serve();
    assert_eq!(drain(python, &server, "tasks"), [0, 1, 2, 3, 4]);
}

#[test]
fn a_backlog_is_read_from_disk_in_its_order() {
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    // Several times what a queue keeps in memory, and many files.
    let item = |number: u8| char::from(b' ' + number % 90).to_string().repeat(100_000);
    for number in 0..120 {
        tasks.put(&item(number)).unwrap();
    }
    for number in 0..60 {
        assert_eq!(tasks.get().unwrap(), item(number));
    }
    drop(server);
    let server = home.serve();
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    for number in 59..120 {
        // The last one of before was in hand.
        assert_eq!(tasks.get().unwrap(), item(number));
    }
    assert!(matches!(tasks.try_get(), Err(Error::Empty)));
}

#[test]
fn the_directory_stays_small_while_tasks_come_and_go() {
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    let item = "x".repeat(100_000);
    // Twenty times what is written between two checkpoints.
    for _ in 0..240 {
        tasks.put(&item).unwrap();
        assert_eq!(tasks.get().unwrap(), item);
    }
    let small = support::wait_until(|| (home.files("seg").len() <= 12).then_some(()));
    assert!(small.is_some(), "{} files", home.files("seg").len());
    drop(server);
    home.serve();
}

// ---- what is refused, and how

#[test]
fn durability_needs_a_data_directory() {
    let refused = Server::at("127.0.0.1:0", Key::Bytes(KEY), &["--queue", "tasks,durability=disk"]);
    let refusal = refused.expect_err("there is no directory");
    assert!(refusal.contains("'tasks' is declared with durability=disk"), "{refusal}");
    assert!(refusal.contains("(--data)"), "{refusal}");
    Server::with_options(&["--queue", "tasks,durability=memory"]);
}

#[test]
fn a_second_server_on_the_directory_is_refused() {
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    assert!(home.refusal().contains("another process is using the journal in"));
    put(newest_python(), &server, "tasks", 0, 1);
}

#[test]
fn a_file_in_the_place_of_the_directory_is_named() {
    let home = Home::new(&["tasks"]);
    fs::write(home.data(), "").unwrap();
    let refusal = home.refusal();
    assert!(refusal.contains(home.data().to_str().unwrap()), "{refusal}");
}

#[test]
fn a_torn_end_is_cut_off_and_the_rest_is_there() {
    let python = newest_python();
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    put(python, &server, "tasks", 0, 3);
    drop(server);
    let segment = home.files("seg").pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end - 4] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let (intact, text) = home.journal("check", &[]);
    assert!(intact && text.contains("was not written whole"), "{text}");
    let server = home.serve();
    assert_eq!(drain(python, &server, "tasks"), [0, 1]);
}

#[test]
fn damage_in_the_middle_is_refused_by_file_and_place() {
    let python = newest_python();
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    put(python, &server, "tasks", 0, 30);
    drop(server);
    let segment = home.files("seg").pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end / 2] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let refusal = home.refusal();
    let name = segment.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(refusal.contains("damaged") && refusal.contains(&format!("{name} at byte ")));
    let (intact, text) = home.journal("check", &[]);
    assert!(!intact && text.contains(&name), "{text}");
}

#[test]
fn a_server_whose_disk_gives_back_something_else_ends_and_names_the_place() {
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    // More than a queue keeps in memory.
    for _ in 0..60 {
        tasks.put(&"x".repeat(100_000)).unwrap();
    }
    let segment = home.files("seg").pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.iter().position(|byte| *byte == b'x').unwrap();
    bytes[at + 1000] = b'y';
    fs::write(&segment, bytes).unwrap();
    let taken = std::iter::from_fn(|| tasks.get().ok()).count();
    assert!((1..60).contains(&taken), "{taken}");
    let said = failure(server);
    let name = segment.file_name().unwrap().to_str().unwrap().to_owned();
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("manyhands: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains(&format!("damaged: {name} at byte ")), "{said}");
}

#[test]
fn a_missing_segment_is_refused_by_name() {
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    for _ in 0..10 {
        tasks.put(&"x".repeat(100_000)).unwrap();
    }
    drop(server);
    let segments = home.files("seg");
    assert!(segments.len() > 2, "{segments:?}");
    fs::remove_file(&segments[1]).unwrap();
    let refusal = home.refusal();
    assert!(refusal.contains("0000000002.seg is missing"), "{refusal}");
}

#[test]
fn a_directory_of_a_newer_version_is_refused() {
    let home = Home::new(&["tasks"]);
    drop(home.serve());
    let segment = home.files("seg").pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8] += 1;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(&segment, bytes).unwrap();
    let refusal = home.refusal();
    assert!(refusal.contains("update manyhands"), "{refusal}");
}

#[test]
fn a_directory_without_a_journal_is_no_healthy_one() {
    let home = Home::new(&[]);
    fs::create_dir(home.data()).unwrap();
    fs::write(home.data().join("master.py"), "").unwrap();
    for verb in ["check", "dump"] {
        let (is_healthy, text) = home.journal(verb, &[]);
        assert!(!is_healthy && text.contains("there is no journal in "), "{verb}: {text}");
    }
}

#[test]
fn the_journal_is_shown_record_by_record() {
    let home = Home::new(&["tasks"]);
    let server = home.serve();
    put(newest_python(), &server, "tasks", 0, 1);
    assert_eq!(drain(newest_python(), &server, "tasks"), [0]);
    let connected = client(&server);
    let tasks = connected.queue::<u64>("tasks").unwrap();
    tasks.put(&1).unwrap();
    tasks.lease(None).unwrap().ack().unwrap();
    drop((tasks, connected));
    terminate(server);
    let (shown, text) = home.journal("dump", &[]);
    let kinds: Vec<_> = text.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert!(shown, "{text}");
    let leased = ["put", "leased", "ack", "settled", "done", "closed"];
    assert_eq!(kinds, [["epoch", "queue", "put", "ack"].as_slice(), &leased].concat(), "{text}");
    let (_, json) = home.journal("dump", &["--json"]);
    let put: Value = serde_json::from_str(json.lines().nth(2).unwrap()).unwrap();
    assert_eq!((put["record"].as_str(), put["task"].as_u64()), (Some("put"), Some(0)));
    assert_eq!(put["codec"].as_str(), Some("pickle"));
}
