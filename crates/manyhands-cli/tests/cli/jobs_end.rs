//! What becomes of jobs that end badly, or whose `map` does: nothing of them is left.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Home, Process, eventually, kill};

/// A process that has ended, or that nobody has waited for yet.
pub(crate) fn is_gone(pid: u32) -> bool {
    let stat = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
    stat.stdout.is_empty() || stat.stdout.starts_with(b"Z")
}

/// The number that a job has written into a file.
pub(crate) fn number(path: &Path) -> u32 {
    eventually("a job has begun", || fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// A job that starts a child that is deaf to SIGTERM, and says which processes there are.
const DEAF: &str = "trap '' TERM; sh -c 'trap \"\" TERM; while :; do sleep 1; done' & \
                    echo $! > child; echo $$ > parent; while :; do sleep 1; done; : {}";

fn deaf(home: &Home, options: &[&str]) -> (Process, [u32; 2]) {
    let mut command = home.manyhands(&["map"]);
    command.args(options).args([DEAF, ":::", "1"]).current_dir(home.path(""));
    let process = Process::spawn(&mut command);
    let children = ["parent", "child"].map(|name| number(&home.path(name)));
    (process, children)
}

#[test]
fn a_job_is_killed_with_its_children() {
    let home = Home::new();
    let (mut map, children) = deaf(&home, &["--timeout", "1"]);
    assert_eq!(map.wait(), Some(1));
    for child in children {
        eventually("a child ends", || is_gone(child).then_some(()));
    }
}

#[test]
fn whatever_ends_a_map_ends_its_jobs() {
    for (signal, code) in
        [("INT", Some(130)), ("TERM", Some(143)), ("HUP", Some(129)), ("KILL", None)]
    {
        let home = Home::new();
        let (mut map, children) = deaf(&home, &[]);
        // The process alone: its group is that of its guardian's no more than of its jobs.
        map.signal(signal);
        assert_eq!(map.wait(), code);
        for child in children {
            eventually("a child ends", || is_gone(child).then_some(()));
        }
        if signal != "KILL" {
            let mut text = String::new();
            map.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.contains("0 jobs have ended, 1 are killed"), "{text}");
        }
    }
}

#[test]
fn a_map_that_is_killed_at_any_moment_leaves_nothing() {
    let home = Home::new();
    let mark = home.path("").display().to_string();
    for _ in 0..5 {
        let mut command = home.manyhands(&["map", "-j4"]);
        command.args([format!("sleep 600 {mark}/$$ 2> {mark}/e || sleep 600; : {{}}")]);
        let mut map = Process::spawn(command.stdin(Stdio::piped()));
        map.0.stdin.take().unwrap().write_all(b"1\n2\n3\n4\n").unwrap();
        eventually("a job has begun", || home.path("e").exists().then_some(()));
        kill("KILL", map.0.id());
        map.wait();
        fs::remove_file(home.path("e")).ok();
        eventually("all jobs end", || {
            let all = Command::new("ps").args(["-eo", "stat,args"]).output().unwrap();
            let all = String::from_utf8_lossy(&all.stdout).into_owned();
            let left = all.lines().filter(|line| !line.starts_with('Z') && line.contains(&mark));
            (left.count() == 0).then_some(())
        });
    }
}

#[test]
fn what_has_ended_is_logged_before_an_interrupt() {
    let home = Home::new();
    let mut command = home.manyhands(&["map", "-k", "-j2", "--joblog", "log"]);
    command.args(["echo {}; touch begun-{}; sleep {}", ":::", "600", "0", "0"]);
    let mut map = Process::spawn(command.current_dir(home.path("")));
    let log = || fs::read_to_string(home.path("log")).unwrap_or_default();
    eventually("two jobs have ended", || (log().lines().count() == 3).then_some(()));
    map.signal("INT");
    assert_eq!(map.wait(), Some(130));
    assert_eq!(log().lines().count(), 3, "{}", log());
    let mut text = String::new();
    map.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "0\n0\n", "what has ended is shown");
}

#[test]
fn a_job_that_fails_is_named() {
    let home = Home::new();
    let finished = home.run(&["map", "echo out; echo why >&2; exit 3", ":::", "it's"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), "out\n"));
    let line = "echo out; echo why >&2; exit 3 'it'\"'\"'s'";
    let expected =
        format!("why\nmanyhands: job 1 failed: exit code 3; to run it alone:\n  {line}\n");
    assert_eq!(finished.stderr, expected);
    // What was kept in files is not shown, but for the last lines of what went wrong.
    let results = home.path("results").display().to_string();
    let finished = home.run(&["map", "--results", &results, "seq {} >&2; false", ":::", "25"]);
    assert!(finished.stderr.starts_with("6\n7\n") && finished.stdout.is_empty(), "{finished:?}");
}

#[test]
fn endless_input_and_large_outputs_take_little_memory() {
    let home = Home::new();
    let mut command = home.manyhands(&["map", "-k", "-j2", "head -c 100000000 /dev/zero; : "]);
    let mut map = Process::spawn(command.stdin(Stdio::piped()));
    let mut input = map.0.stdin.take().unwrap();
    let writer = std::thread::spawn(move || while input.write_all(b"1\n").is_ok() {});
    let mut stdout = BufReader::with_capacity(1 << 20, map.0.stdout.take().unwrap());
    let mut left = 300_000_000_usize;
    while left > 0 {
        let len = stdout.fill_buf().unwrap().len();
        assert!(len > 0, "it has ended");
        stdout.consume(len);
        left = left.saturating_sub(len);
    }
    let rss = Command::new("ps").args(["-o", "rss=", "-p", &map.0.id().to_string()]).output();
    let rss: u64 = String::from_utf8(rss.unwrap().stdout).unwrap().trim().parse().unwrap();
    assert!(rss < 50_000, "{rss} KiB");
    map.signal("INT");
    drop(stdout);
    map.wait();
    writer.join().unwrap();
}

#[test]
fn what_cannot_be_done_ends_everything_with_255() {
    let home = Home::new();
    for (args, expected) in [
        (&["-a", "/no/such/file", "echo"][..], "/no/such/file"),
        (&["echo", ":::", "a", ":::", "b"], "only one"),
        (&["--joblog", "/etc/passwd", "--resume", "echo", ":::", "a"], "no log of jobs"),
    ] {
        let finished = home.run(&[&["map"], args].concat());
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(255), ""), "{args:?}");
        assert!(finished.stderr.contains(expected), "{}", finished.stderr);
    }
}
