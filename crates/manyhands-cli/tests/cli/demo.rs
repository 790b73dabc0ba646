//! `demo`: what it shows, and that it leaves nothing behind.

use std::collections::BTreeSet;
use std::process::Stdio;

use crate::support::{Home, Process};

fn start(home: &Home) -> Process {
    Process::spawn(home.manyhands(&["demo"]).stderr(Stdio::inherit()))
}

#[test]
fn it_ends_by_itself_with_every_result() {
    let home = Home::new();
    let (text, code) = start(&home).finish();
    assert_eq!(code, Some(0), "{text}");
    let results: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("[master] result: ")).collect();
    let expected: Vec<_> = (1..=20).map(|n| format!("{n} * {n} = {}", n * n)).collect();
    assert_eq!(results, expected.iter().map(String::as_str).collect());
    assert!(text.contains("20 tasks put, 20 results, none lost"), "{text}");
    assert!(text.contains("the squares sum up to 2870"), "{text}");
    for line in ["[worker 1] run task", "[worker 2] run task", "worker 3 was killed"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!home.path("manyhands").exists(), "it keeps no key");
}

#[cfg(target_os = "linux")]
mod on_linux {
    use std::io::{BufRead, BufReader, Lines};
    use std::process::ChildStdout;

    use super::*;
    use crate::support::{eventually, kill};

    fn lines(demo: &mut Process) -> Lines<BufReader<ChildStdout>> {
        BufReader::new(demo.0.stdout.take().unwrap()).lines()
    }

    fn wait_for(lines: &mut Lines<BufReader<ChildStdout>>, expected: &str) {
        let found = lines.map(Result::unwrap).find(|line| line.contains(expected));
        assert!(found.is_some(), "no {expected}");
    }

    /// The demo's workers and their command lines.
    fn workers(demo: &Process) -> Vec<(u32, String)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", demo.0.id())).unwrap();
        let children = tasks.map(|task| task.unwrap().path().join("children"));
        let pids: Vec<u32> = children
            .flat_map(|file| {
                std::fs::read_to_string(file)
                    .unwrap_or_default()
                    .split(' ')
                    .filter_map(|pid| pid.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        let command = |pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        pids.into_iter()
            .map(|pid| (pid, String::from_utf8(command(pid)).unwrap().replace('\0', " ")))
            .collect()
    }

    /// A process that nobody has waited for yet has ended all the same.
    fn has_ended(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .map_or(true, |stat| stat.contains(") Z "))
    }

    #[test]
    fn a_worker_killed_in_the_middle_of_a_task_does_not_stop_it() {
        let mut demo = start(&Home::new());
        let mut lines = lines(&mut demo);
        wait_for(&mut lines, "[worker 1] run task");
        let workers = workers(&demo);
        let (pid, _) = workers.iter().find(|(_, command)| command.ends_with(" 1 ")).unwrap();
        kill("KILL", *pid);
        wait_for(&mut lines, "20 tasks put, 20 results, none lost");
        lines.for_each(drop);
        assert_eq!(demo.wait(), Some(0));
    }

    #[test]
    fn it_says_so_when_nobody_is_left_to_work() {
        let mut demo = Process::spawn(Home::new().manyhands(&["demo"]).stderr(Stdio::piped()));
        let mut lines = lines(&mut demo);
        wait_for(&mut lines, "[worker 1] run task");
        wait_for(&mut lines, "[worker 2] run task");
        workers(&demo).iter().for_each(|(pid, _)| kill("KILL", *pid));
        lines.for_each(drop);
        assert_eq!(demo.wait(), Some(1));
        let mut error = String::new();
        std::io::Read::read_to_string(&mut demo.0.stderr.take().unwrap(), &mut error).unwrap();
        assert!(error.starts_with("manyhands: all workers have ended; "), "{error}");
    }

    #[test]
    fn an_interrupt_ends_the_workers_too() {
        for signal in ["INT", "KILL"] {
            let mut demo = start(&Home::new());
            let mut lines = lines(&mut demo);
            wait_for(&mut lines, "[worker 1] run task");
            let workers = workers(&demo);
            assert_eq!(workers.len(), 2);
            demo.signal(signal);
            demo.wait();
            for (pid, _) in workers {
                eventually("a worker ends", || has_ended(pid).then_some(()));
            }
        }
    }

    #[test]
    fn the_workers_key_is_not_to_be_seen_from_outside() {
        let mut demo = start(&Home::new());
        wait_for(&mut lines(&mut demo), "[worker 1] run task");
        let environ = |pid| std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        for (pid, command) in workers(&demo) {
            let words: Vec<_> = command.split(' ').skip(1).collect();
            let ["demo-worker", "--authkey-file", "-", _address, _number, ""] = words[..] else {
                panic!("{command}")
            };
            assert_eq!(environ(pid), environ(demo.0.id()));
        }
    }
}
