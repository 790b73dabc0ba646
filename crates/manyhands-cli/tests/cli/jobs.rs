//! `map` beside GNU parallel: the same arguments and input, and the same output, log and exit code.

#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::support::Home;

/// What a run shows of itself.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    stdout: String,
    code: Option<i32>,
    /// Number, bytes of output, exit code, signal and command of each job, by number.
    log: Vec<[String; 5]>,
    /// Files and what is in them.
    results: Vec<(String, String)>,
}

/// Whether GNU parallel is there. Where nobody can overlook it, it has to be.
fn has_parallel() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let version = Command::new("parallel").arg("--version").output();
        let found = version.is_ok_and(|it| it.stdout.starts_with(b"GNU parallel"));
        let help = "GNU parallel is missing: apt-get install parallel";
        assert!(found || std::env::var_os("CI").is_none(), "{help}");
        if !found {
            eprintln!("{help}; it is not compared with");
        }
        found
    })
}

/// Runs one of the two in a directory that may have files of an earlier run.
fn shown(command: &mut Command, args: &[&str], input: &[u8], directory: &Path) -> Shown {
    let command = command.args(args).current_dir(directory);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end without reading.
    child.stdin.take().unwrap().write_all(input).ok();
    let output = child.wait_with_output().unwrap();
    let mut stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !args.contains(&"-k") && !args.contains(&"-j1") {
        let mut lines: Vec<_> = stdout.split_inclusive('\n').collect();
        lines.sort_unstable();
        stdout = lines.concat();
    }
    let results = files(directory, &directory.join("results"));
    Shown { stdout, code: output.status.code(), log: log(&directory.join("log")), results }
}

fn log(path: &Path) -> Vec<[String; 5]> {
    let Ok(text) = fs::read(path) else { return Vec::new() };
    let text = String::from_utf8_lossy(&text).into_owned();
    let (header, lines) = text.split_once('\n').unwrap();
    let header: Vec<_> = header.split('\t').collect();
    let titles = [
        "Seq",
        "Host",
        "Starttime",
        "JobRuntime",
        "Send",
        "Receive",
        "Exitval",
        "Signal",
        "Command",
    ];
    assert_eq!(header, titles);
    let mut jobs: Vec<_> = lines
        .lines()
        .map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            assert_eq!((fields.len(), fields[1], fields[4]), (9, ":", "0"), "{line}");
            assert!(fields[2].parse::<f64>().unwrap() > 1e9, "{line}");
            assert!(fields[3].trim().parse::<f64>().unwrap() >= 0.0, "{line}");
            [0, 5, 6, 7, 8].map(|field| fields[field].to_owned())
        })
        .collect();
    jobs.sort_by_key(|job| job[0].parse::<u64>().unwrap());
    jobs
}

fn files(root: &Path, directory: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory).into_iter().flatten().map(|it| it.unwrap().path());
    let mut files: Vec<_> = entries
        .flat_map(|path| {
            if path.is_dir() {
                return files(root, &path);
            }
            let name = path.strip_prefix(root).unwrap().display().to_string();
            vec![(name, fs::read_to_string(path).unwrap())]
        })
        .collect();
    files.sort();
    files
}

/// Runs the same commands, one after the other, by GNU parallel and by `manyhands map`.
#[track_caller]
fn same(runs: &[&[&str]], input: impl AsRef<[u8]>) -> Shown {
    let (home, theirs) = (Home::new(), tempfile::tempdir().unwrap());
    let mut last = None;
    for args in runs {
        let mut ours = home.manyhands(&["map"]);
        let directory = home.path("");
        let ours = shown(&mut ours, args, input.as_ref(), &directory);
        if has_parallel() {
            let mut parallel = Command::new("parallel");
            parallel.arg("--will-cite").env("PARALLEL_SHELL", "/bin/sh");
            parallel.env("PARALLEL_HOME", theirs.path());
            assert_eq!(ours, shown(&mut parallel, args, input.as_ref(), theirs.path()), "{args:?}");
        }
        last = Some(ours);
    }
    last.unwrap()
}

const PLACES: &str = "echo {} {.} {/} {//} {/.} {#}";

#[test]
fn placeholders_and_quotes_are_those_of_parallel() {
    let paths =
        ["/a/b.c/d.tar.gz", "d", "/f", "./g/", "a.b/c", "/a/.hid", "a//b", "..", "a.", "//"];
    same(&[&[&["-k", "--dry-run", PLACES, ":::"], &paths[..]].concat()], "");
    let odd =
        ["a b", "it's", "x$y", "*", "", "~", "a=b", "-", "a,b:c", "\t", "\\", "é", "`x`", "\""];
    for command in ["echo {}", "printf %s,", "cat /dev/null {}; printf '%s\\n' {}", "ls -d"] {
        same(&[&[&["-k", command, ":::"], &odd[..]].concat()], "");
        same(&[&[&["-k", "--dry-run", command, ":::"], &odd[..]].concat()], "");
    }
    same(&[&["-j1", "echo {#} {%}", ":::", "a", "b"]], "");
    same(&[&["echo", ":::", "a b"]], "");
    same(&[&["-k", "printf", "%s,", "{}", "x{/}", ":::", "a b", "c/d"]], "");
}

#[test]
fn every_byte_arrives_as_it_is() {
    let every: Vec<u8> = (1..=255).filter(|byte| *byte != b'\n').collect();
    let input = [&every[..], b"\n", &every, b"'''\n"].concat();
    for command in ["printf %s\\\\n", "/usr/bin/printf %s,", "printf '%s\\n' x{}y"] {
        same(&[&["-k", command]], &input);
    }
}

#[test]
fn arguments_come_from_everywhere() {
    same(&[&["-k", "echo"]], "a\n\nb c\nlast");
    same(&[&["-k", "-0", "printf '%s;'"]], "a\0b\nc\0d");
    same(&[&["-k"]], "echo a\nprintf b | tr b c\nfalse\n");
    same(&[&["-k", "-a", "/etc/passwd", "echo"]], "");
    same(&[&["-k", "echo", "::::", "/etc/passwd"]], "");
    same(&[&["echo"]], "");
}

#[test]
fn order_and_tags_are_kept() {
    let slow = "[ {} = 1 ] && sleep 0.3; echo {}; echo b";
    let shown = same(&[&["-k", "-j3", "--tag", slow]], "1\n2\n3\n4\n5\n");
    assert!(shown.stdout.starts_with("1\t1\n1\tb\n2\t2\n"), "{}", shown.stdout);
    same(&[&["-k", "--tag", "printf 'x\\n\\ny'", ":::", "1", "2"]], "");
    same(&[&["-j2", "--tag", "seq 1000 | sed s/^/{}/", ":::", "a", "b"]], "");
}

#[test]
fn exit_codes_count_failures() {
    for failures in [0, 1, 3, 100, 101, 150] {
        let input = "1\n".repeat(failures) + &"0\n".repeat(2);
        let shown = same(&[&["-j4", "exit"]], input);
        assert_eq!(shown.code, Some(i32::try_from(failures.min(101)).unwrap()));
    }
    same(&[&["--joblog", "log", "exit", ":::", "0", "1", "255"]], "");
    same(&[&["--joblog", "log", "kill -{} $$", ":::", "9", "15"]], "");
    same(&[&["--joblog", "log", "no-such-program", ":::", "1"]], "");
    same(&[&["--joblog", "log", "echo a\necho {}", ":::", "1"]], "");
}

#[test]
fn jobs_that_have_ended_are_not_run_again() {
    let command = "echo {}; exit {}";
    let run = |option| ["-k", "--joblog", "log", option, command];
    let first: &[&str] = &["-k", "--joblog", "log", command, ":::", "0", "1", "0", "2"];
    let again = |option| [&run(option)[..], &[":::", "0", "1", "0", "2", "3"]].concat();
    let shown = same(&[first, &again("--resume"), &again("--resume")], "");
    assert_eq!(shown.stdout, "");
    let shown = same(&[first, &again("--resume-failed"), &again("--resume-failed")], "");
    assert_eq!(shown.stdout, "1\n2\n3\n");
    assert_eq!(shown.code, Some(3));
}

#[test]
fn a_halt_ends_the_run() {
    for halt in ["soon,fail=1", "now,fail=2", "now,success=1", "soon,success=2", "now,done=3"] {
        let args = ["-j1", "--joblog", "log", "--halt", halt, "echo {}; exit {}"];
        same(&[&[&args[..], &[":::", "0", "3", "0", "4", "5", "0"]].concat()], "");
    }
    let shown = same(
        &[&[
            "-j3",
            "--joblog",
            "log",
            "--halt",
            "now,fail=1",
            "sleep {}; exit 7",
            ":::",
            "30",
            "0",
        ]],
        "",
    );
    assert_eq!((shown.code, shown.log.len()), (Some(7), 1));
    let shown = same(
        &[&["-j2", "--joblog", "log", "--halt", "soon,fail=1", "sleep 0.{}; exit {}"]],
        "1\n5\n1\n1\n",
    );
    assert_eq!((shown.code, shown.log.len()), (Some(1), 2));
    same(&[&["--halt", "now,fail=1", "-j1", "kill -9 $$", ":::", "1"]], "");
}

#[test]
fn a_job_is_tried_again_and_killed_when_its_time_is_over() {
    let count = "echo x >> tries-{}; cat tries-{}; [ $(wc -l < tries-{}) -gt 2 ]";
    same(&[&["-k", "--joblog", "log", "--retries", "5", count, ":::", "a", "b"]], "");
    same(&[&["-k", "--joblog", "log", "--retries", "2", count, ":::", "a"]], "");
    let args = ["-k", "--joblog", "log", "--timeout", "1", "sleep {} && echo {}"];
    let shown = same(&[&[&args[..], &[":::", "0", "60"]].concat()], "");
    assert_eq!((shown.code, &shown.log[1][2..4]), (Some(1), &["-1".into(), "15".into()][..]));
}

#[test]
fn output_is_kept_in_files() {
    let args = ["-k", "--results", "results", "echo {}; echo e >&2; exit 3", ":::"];
    let shown = same(&[&[&args[..], &["a", "b c", "d/e", "f\\"]].concat()], "");
    assert_eq!(shown.results.len(), 12);
}
