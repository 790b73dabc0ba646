//! Commands for the tasks of a queue: `work`, and `map` with a server.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;

use crate::jobs_end::{is_gone, number};
use crate::support::{Process, Server, eventually};

fn server(options: &str) -> Server {
    let tasks = format!("tasks,results=out,failures=results,backoff=0{options}");
    Server::start(&["--queue", &tasks, "--queue", "out"])
}

/// A worker in the directory of its server.
fn worker(server: &Server, args: &[&str]) -> Process {
    let mut command = server.command("work", &[&["tasks"], args].concat());
    Process::spawn(command.current_dir(server.home.path("")))
}

fn text(stream: Option<impl std::io::Read>) -> String {
    let mut text = String::new();
    stream.unwrap().read_to_string(&mut text).unwrap();
    text
}

fn map<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["--queue", "tasks", "--result-queue", "out"], args].concat()
}

#[test]
fn what_a_command_prints_is_the_result() {
    let server = server("");
    let _worker = worker(&server, &["-j2", "--exec", "printf %s {} | tr a-z A-Z"]);
    server.run("put", &["tasks", "it's $x"]).ok();
    server.run("put", &["--json", "tasks", "[1, 2]"]).ok();
    let get = || server.run("get", &["--timeout", "60", "out"]).ok();
    let mut results = [get(), get()];
    results.sort();
    assert_eq!(results, ["IT'S $X\n", "[1, 2]\n"]);
}

#[test]
fn a_task_without_a_place_is_standard_input() {
    let server = server("");
    let _worker = worker(&server, &["--exec", "rev"]);
    server.run("put", &["tasks", "abc"]).ok();
    assert_eq!(server.run("get", &["--timeout", "60", "out"]).ok().trim(), "cba");
}

#[test]
fn a_command_that_fails_is_told_everywhere() {
    let server = server("");
    let exec = "seq 30 >&2; exit $(( {} + 3 ))";
    let mut worker = worker(&server, &["--retries", "2", "--exec", exec]);
    let args = map(&["-k", "--joblog", "log", ":::", "0", "-3"]);
    let mut command = server.command("map", &args);
    let output = command.current_dir(server.home.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("30\nmanyhands: job 1 failed: exit code 3"), "{errors}");
    let log = fs::read_to_string(server.home.path("log")).unwrap();
    let codes: Vec<_> = log.lines().skip(1).map(|line| line.split('\t').nth(6).unwrap()).collect();
    assert_eq!(codes.len(), 2);
    assert!(codes.contains(&"3") && codes.contains(&"0"), "{log}");
    let letter = server.run("peek", &["tasks.dead"]).ok();
    assert!(letter.contains("exit code 3; its last lines:"), "{letter}");
    worker.signal("TERM");
    assert_eq!(worker.wait(), Some(0));
    let errors = text(worker.0.stderr.take());
    assert!(errors.contains("task 0, attempt 2, failed: exit code 3"), "{errors}");
    assert!(errors.contains("\n11\n12\n") && !errors.contains("\n10\n"), "{errors}");
    assert!(errors.contains("to run it alone:\n  seq 30 >&2; exit $(( 0 + 3 ))\n"), "{errors}");
}

#[test]
fn every_input_has_one_result_whoever_is_killed() {
    let server = server("");
    let exec = "echo $$ > pid-{}; sleep 0.2; echo {}";
    let mut first = worker(&server, &["-j4", "--exec", exec]);
    let mut command = server.command("map", &map(&["-k"]));
    let mut map = Process::spawn(command.stdin(Stdio::piped()));
    let mut input = map.0.stdin.take().unwrap();
    let lines: String = (1..=40).map(|n| format!("{n}\n")).collect();
    input.write_all(lines.as_bytes()).unwrap();
    let job = number(&server.home.path("pid-6"));
    first.signal("KILL");
    first.wait();
    eventually("its jobs end", || is_gone(job).then_some(()));
    let _second = worker(&server, &["-j8", "--exec", exec]);
    drop(input);
    let (stdout, code) = map.finish();
    assert_eq!((stdout, code), (lines, Some(0)));
}

#[test]
fn results_do_not_wait_for_input() {
    let server = server("");
    let mut command = server.command("map", &map(&["-j1", "echo", "x{}"]));
    let mut map = Process::spawn(command.stdin(Stdio::piped()));
    let mut input = map.0.stdin.take().unwrap();
    let mut stdout = map.0.stdout.take().unwrap();
    for line in ["a", "b"] {
        writeln!(input, "{line}").unwrap();
        let mut result = [0; 3];
        stdout.read_exact(&mut result).unwrap();
        assert_eq!(result, *format!("x{line}\n").as_bytes());
    }
    drop(input);
    assert_eq!(map.wait(), Some(0));
}

#[test]
fn a_job_whose_task_was_given_to_another_is_killed() {
    let server = server(",max_run=1,attempts=1");
    let _worker = worker(&server, &["--exec", "echo $$ > pid-{}; sleep 600; : {}"]);
    server.run("put", &["tasks", "1"]).ok();
    let job = number(&server.home.path("pid-1"));
    eventually("the job ends", || is_gone(job).then_some(()));
}

#[test]
fn a_worker_that_is_stopped_finishes_its_job_and_killed_by_a_second_signal() {
    let server = server("");
    let exec = "echo $$ > pid-{}; while [ ! -e go-on ]; do sleep 0.05; done; echo {}";
    let mut worker = worker(&server, &["-j1", "--exec", exec]);
    server.run("put", &["tasks", "1", "2"]).ok();
    number(&server.home.path("pid-1"));
    worker.signal("TERM");
    fs::write(server.home.path("go-on"), "").unwrap();
    assert_eq!(worker.wait(), Some(0));
    assert_eq!(server.run("get", &["--timeout", "60", "out"]).ok(), "1\n\n");
    fs::remove_file(server.home.path("go-on")).unwrap();
    let mut worker = self::worker(&server, &["-j1", "--exec", exec]);
    let job = number(&server.home.path("pid-2"));
    worker.signal("INT");
    // The second is heard once the first was.
    let errors = worker.0.stderr.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(errors));
    assert!(lines.next().unwrap().unwrap().contains("interrupted: what has begun"));
    worker.signal("INT");
    assert_eq!(worker.wait(), Some(130));
    eventually("the job ends", || is_gone(job).then_some(()));
    let left = server.run("tasks", &["tasks"]).ok();
    assert!(left.contains("ready"), "{left}");
}
