//! A real small file system that is filled to its last byte: nothing that was accepted is lost, what
//! is there can be settled, and then there is room again. The server is killed at each stage.

#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use super::*;

/// Small files, so that there are several on a small file system.
const FILES: [&str; 4] = ["--segment-bytes", "1048576", "--frame-bytes-max", "65536"];
/// Length of an item, in bytes.
const ITEM: usize = 4000;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file system of some MiB in memory, in a namespace of its own, as long as its keeper lives.
struct SmallDisk {
    keeper: Child,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    /// None where this user may not mount anything, which is said aloud.
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = format!(
            "mount -t tmpfs -o size={mib}m none '{0}' && echo ready && exec sleep 3600",
            dir.path().display()
        );
        let mut keeper = Command::new("unshare")
            .args(["-Urm", "sh", "-c", &mount])
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let mut output = std::io::BufReader::new(keeper.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let path = PathBuf::from(format!("/proc/{}/root{}", keeper.id(), dir.path().display()));
        if line != "ready\n" || path.read_dir().is_err() {
            keeper.kill().ok();
            keeper.wait().ok();
            assert!(std::env::var_os("CI").is_none(), "no small file system could be mounted");
            eprintln!("NOT RUN: this user cannot mount a small file system (unshare -Urm)");
            return None;
        }
        Some(Self { keeper, path, _dir: dir })
    }

    fn serve(&self, queues: &[&str]) -> Server {
        let data = self.path.join("data");
        let mut options = vec!["--data", data.to_str().unwrap()];
        options.extend(FILES);
        options.extend(queues.iter().flat_map(|queue| ["--queue", queue]));
        Server::at("127.0.0.1:0", Key::Bytes(KEY), &options).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Somebody else takes what is left, to the last byte.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.path.join("else"));
        let file = file.as_mut().unwrap();
        for len in [65_536, 4096, 1] {
            while file.write_all(&vec![b'x'; len]).is_ok() {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.keeper.kill().ok();
        self.keeper.wait().ok();
    }
}

fn item(number: u64) -> String {
    format!("{number:0>ITEM$}")
}

fn number(item: &str) -> u64 {
    item.trim_start_matches('0').parse().unwrap_or(0)
}

/// Puts items until there is no room for one more, and then fills the rest; says how many there are.
fn put_until_full(disk: &SmallDisk, server: &Server) -> u64 {
    let connected = client(server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    let (mut count, mut refused) = (0, 0);
    // The next segment may be on its way when a put is refused for the first time.
    while refused < 3 {
        match tasks.put_timeout(&item(count), Duration::from_millis(100)) {
            Ok(()) => (count, refused) = (count + 1, 0),
            Err(Error::Full) => {
                refused += 1;
                disk.fill();
            }
            Err(error) => panic!("after {count}: {error}"),
        }
    }
    count
}

/// Waits until a put is accepted.
fn put_again(server: &Server) {
    let connected = client(server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    for number in 0..20 {
        tasks.put_timeout(&item(number), PATIENCE).unwrap();
    }
}

fn is_alive(server: &Server) {
    let ended = server.process.lock().unwrap().child.try_wait().unwrap();
    assert!(ended.is_none(), "the server has ended: {ended:?}");
}

#[test]
fn a_full_disk_is_settled_by_acks_and_takes_puts_again() {
    let Some(disk) = SmallDisk::mount(14) else { return };
    let server = disk.serve(&["tasks"]);
    let count = put_until_full(&disk, &server);
    assert!(count > 500, "{count} items on 14 MiB");
    drop(server);
    let server = disk.serve(&["tasks"]);
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    for expected in 0..count / 2 {
        assert_eq!(number(&tasks.get_timeout(PATIENCE).unwrap()), expected);
    }
    is_alive(&server);
    drop((connected, server));
    let server = disk.serve(&["tasks"]);
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    for expected in count / 2..count {
        // The last ones may not have been seen to arrive.
        let taken = number(&tasks.get_timeout(PATIENCE).unwrap());
        // What was in hand when the client was cut off comes back first.
        assert!(taken <= expected, "{taken} instead of {expected}");
    }
    put_again(&server);
    drop((connected, server));
    let server = disk.serve(&["tasks"]);
    let infos = client(&server).queues().unwrap();
    let left = infos.iter().find(|info| info.name == "tasks").unwrap().qsize;
    // What a client that was cut off took last comes back.
    assert!((20..=23).contains(&left), "{left}");
    terminate(server);
}

#[test]
fn results_as_large_as_their_tasks_go_in_on_a_full_disk_that_others_fill() {
    let Some(disk) = SmallDisk::mount(9) else { return };
    let queues = ["tasks,results=results", "results"];
    let server = disk.serve(&queues);
    let count = put_until_full(&disk, &server);
    drop(server);
    let mut server = disk.serve(&queues);
    for part in 0..4 {
        let connected = client(&server);
        let tasks = connected.queue::<String>("tasks").unwrap();
        for _ in 0..count / 4 {
            let lease = tasks.lease(Some(PATIENCE)).unwrap();
            let result = String::clone(&lease);
            lease.ack_with(&result).unwrap();
            // Whatever is freed for a moment others take.
            disk.fill();
        }
        is_alive(&server);
        eprintln!("a quarter of {count} results is there");
        drop((connected, server));
        server = disk.serve(&queues);
        let infos = client(&server).queues().unwrap();
        let results = infos.iter().find(|info| info.name == "results").unwrap().qsize;
        assert_eq!(results, (part + 1) * (count / 4));
    }
    let connected = client(&server);
    let results = connected.queue::<String>("results").unwrap();
    for expected in 0..count / 4 * 4 {
        assert_eq!(number(&results.get_timeout(PATIENCE).unwrap()), expected);
    }
    put_again(&server);
    drop((connected, server));
    terminate(disk.serve(&queues));
}

#[test]
fn what_lies_between_tasks_that_stay_is_freed_on_a_full_disk() {
    let Some(disk) = SmallDisk::mount(14) else { return };
    let server = disk.serve(&["tasks"]);
    let count = put_until_full(&disk, &server);
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    // Every hundredth stays, so that no file is without a live task.
    let mut stay = Vec::new();
    for number in 0..count {
        let lease = tasks.lease(Some(PATIENCE)).unwrap();
        if number % 100 == 0 { stay.push(lease) } else { lease.ack().unwrap() }
    }
    put_again(&server);
    is_alive(&server);
    let left = stay.len();
    for lease in stay {
        lease.ack().unwrap();
    }
    assert!(left > 5);
    drop((connected, server));
    terminate(disk.serve(&["tasks"]));
}

/// Puts by a stock client say why they fail, at once or when their time is up.
#[test]
fn a_stock_client_is_told_that_the_disk_is_full() {
    let Some(disk) = SmallDisk::mount(9) else { return };
    let server = disk.serve(&["tasks"]);
    put_until_full(&disk, &server);
    for_each_python(pythons(), |python| {
        let mut putting = stock(python, &server, &["refused", "tasks"]);
        for how in ["at once", "in time"] {
            let line = putting.line().unwrap_or_default();
            assert!(line.contains("no room for more tasks on the disk"), "{how}: {line}");
        }
        putting.finish();
    });
    is_alive(&server);
}

#[test]
fn tasks_that_fail_for_ever_do_not_end_a_server_whose_disk_is_full() {
    let Some(disk) = SmallDisk::mount(14) else { return };
    let server = disk.serve(&["tasks,attempts=0"]);
    let count = put_until_full(&disk, &server);
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    let reason = "it failed again, as it did before and will again".repeat(4);
    // More than three times what the reserve has room for.
    for _ in 0..12_000 {
        let lease = tasks.lease(Some(PATIENCE)).unwrap();
        lease.nack(Some(Duration::ZERO), &reason).unwrap();
    }
    is_alive(&server);
    drop((connected, server));
    let server = disk.serve(&["tasks,attempts=0"]);
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    for _ in 0..count {
        tasks.lease(Some(PATIENCE)).unwrap().ack().unwrap();
    }
    put_again(&server);
    drop(connected);
    terminate(server);
}

#[test]
fn a_server_that_is_started_on_a_full_disk_names_its_directory_and_the_size_it_needs() {
    let Some(disk) = SmallDisk::mount(2) else { return };
    disk.fill();
    let data = disk.path.join("data");
    let refusal = |more: &[&str]| {
        let options = [&["--data", data.to_str().unwrap()], more].concat();
        let refused = Server::at("127.0.0.1:0", Key::Bytes(KEY), &options);
        let refusal = refused.expect_err("it must not start");
        let line = refusal.split_once("manyhands: ").unwrap_or_else(|| panic!("{refusal}")).1;
        assert!(refusal.contains("exit status: 1") && !line.contains('\n'), "{refusal}");
        assert!(line.contains(data.to_str().unwrap()), "{line}");
        line.to_owned()
    };
    let line = refusal(&[]);
    assert!(line.contains("begins with 320 MiB") && line.contains("--segment-bytes"), "{line}");
    let line = refusal(&FILES);
    assert!(line.contains("begins with 5 MiB"), "{line}");
    // Somebody makes as much room as was asked for.
    drop(disk);
    let Some(disk) = SmallDisk::mount(4) else { return };
    terminate(disk.serve(&["tasks"]));
}
