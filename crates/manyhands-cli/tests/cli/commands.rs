//! `put`, `get`, `ls`, `redrive`, `purge` and `drop`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{Finished, Home, KEY, Process, Server, eventually, python, script};

fn client(server: &Server, args: &[&str]) -> String {
    let key_file = server.key_file();
    let mut command = script("client.py", [&server.address, key_file.to_str().unwrap()]);
    let output = command.args(args).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn text_comes_out_as_it_went_in() {
    let server = Server::start(&[]);
    server.run("put", &["tasks", "a", "b c", "42", "ä\t'", "-5", ""]).ok();
    assert_eq!(server.run("get", &["tasks", "--count", "6"]).ok(), "a\nb c\n42\nä\t'\n-5\n\n");
}

#[test]
fn without_values_each_line_of_the_input_is_one() {
    let server = Server::start(&[]);
    server.feed("put", &["tasks"], "one\n\nthree").ok();
    assert_eq!(server.run("get", &["tasks", "--count", "3"]).ok(), "one\n\nthree\n");
    server.feed("put", &["tasks", "--json"], "1\n[2]\n").ok();
    assert_eq!(server.run("get", &["tasks", "--count", "2"]).ok(), "1\n[2]\n");
    let refused = server.feed("put", &["tasks", "--json"], "1\nno\n");
    refused.failed("line 2: not JSON: no");
    assert_eq!(server.run("get", &["tasks"]).ok(), "1\n", "the line before was put");
}

#[test]
fn json_comes_out_as_it_went_in() {
    let server = Server::start(&[]);
    let values = ["1", "-2.5", "\"a\"", "null", "[true,[]]", "{\"b\":1,\"a\":{}}"];
    server.run("put", &[&["tasks", "--json"], &values[..]].concat()).ok();
    let printed = server.run("get", &["tasks", "--count", "6", "--json"]).ok();
    assert_eq!(printed.lines().collect::<Vec<_>>(), values);
    server.run("put", &[&["tasks", "--json"], &values[..]].concat()).ok();
    let printed = server.run("get", &["tasks", "--count", "6"]).ok();
    assert_eq!(printed, "1\n-2.5\na\nNone\n[True, []]\n{'b': 1, 'a': {}}\n");
}

#[test]
fn no_value_is_put_if_one_is_not_json() {
    let server = Server::start(&[]);
    server.run("put", &["tasks", "--json", "1", "{"]).failed("not JSON: {");
    server.run("put", &["tasks", "--json", "18446744073709551616"]).failed("does not fit 64 bits");
    assert_eq!(server.run("ls", &["--json"]).ok(), "[]\n");
}

#[test]
fn a_python_client_reads_what_was_put() {
    let server = Server::start(&[]);
    server.run("put", &["tasks", "7", "ä"]).ok();
    server.run("put", &["tasks", "--json", "7", "{\"a\": [1.5, null, false]}"]).ok();
    let expected = "'7'\n'ä'\n7\n{'a': [1.5, None, False]}\n";
    assert_eq!(client(&server, &["tasks", "get", "4"]), expected);
}

#[test]
fn what_a_python_client_put_is_printed_in_its_notation() {
    let server = Server::start(&[]);
    let put = ["tasks", "put", "'text'", "(1, 'a', None)", "b'\\x00'", "{1: [2.0]}", "{3}"];
    client(&server, &put);
    let printed = server.run("get", &["tasks", "--count", "5"]).ok();
    assert_eq!(printed, "text\n(1, 'a', None)\nb'\\x00'\n{1: [2.0]}\n{3}\n");
}

#[test]
fn what_json_has_no_form_for_is_printed_as_its_pickle() {
    let server = Server::start(&[]);
    client(
        &server,
        &["tasks", "put", "(1, {2: True})", "[b'\\x00', 633825300114114700748351602688]"],
    );
    assert_eq!(server.run("get", &["tasks", "--json"]).ok(), "[1,{\"2\":true}]\n");
    let Finished { code, stdout, stderr } = server.run("get", &["tasks", "--json"]);
    assert_eq!(code, Some(0));
    assert_eq!(
        stderr,
        "manyhands: an item has no JSON form (bytes); it is printed as its pickle\n"
    );
    let load = "import json, pickle, sys; \
                print(pickle.loads(bytes.fromhex(json.loads(sys.argv[1])['pickle'])))";
    let loaded = Command::new(python()).args(["-c", load, &stdout]).output().unwrap();
    let expected = "[b'\\x00', 633825300114114700748351602688]\n";
    assert_eq!(String::from_utf8(loaded.stdout).unwrap(), expected);
}

#[test]
fn an_empty_queue_is_an_answer_in_one_line() {
    let server = Server::start(&[]);
    for timeout in ["0", "0.01"] {
        let finished = server.run("get", &["tasks", "--timeout", timeout]);
        assert_eq!(finished.stderr, "manyhands: the queue is empty\n");
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""));
    }
    server.run("put", &["tasks", "a"]).ok();
    let finished = server.run("get", &["tasks", "--timeout", "0", "--count", "2"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), "a\n"));
}

#[test]
fn get_waits_for_an_item() {
    let server = Server::start(&[]);
    let waiting = Process::spawn(&mut server.command("get", &["tasks"]));
    eventually("it has asked for the queue", || {
        server.run("ls", &[]).ok().contains("tasks").then_some(())
    });
    server.run("put", &["tasks", "at last"]).ok();
    assert_eq!(waiting.finish(), ("at last\n".to_owned(), Some(0)));
}

#[cfg(unix)]
#[test]
fn an_interrupted_get_has_taken_nothing() {
    let server = Server::start(&[]);
    let mut following = Process::spawn(&mut server.command("get", &["tasks", "--follow"]));
    let mut lines = BufReader::new(following.0.stdout.take().unwrap()).lines();
    for item in ["a", "b"] {
        server.run("put", &["tasks", item]).ok();
        assert_eq!(lines.next().unwrap().unwrap(), item);
    }
    following.signal("INT");
    assert_eq!(following.wait(), Some(130));
    server.run("put", &["tasks", "c"]).ok();
    assert_eq!(server.run("get", &["tasks", "--timeout", "0"]).ok(), "c\n");
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_get_whose_server_does_not_answer() {
    let server = Server::start(&[]);
    let waiting = Process::spawn(&mut server.command("get", &["tasks"]));
    let waits = || server.run("ls", &[]).ok().lines().nth(1)?.contains("  1  ").then_some(());
    eventually("it waits", waits);
    server.process.signal("STOP");
    waiting.signal("INT");
    let mut waiting = waiting;
    assert_eq!(waiting.wait(), Some(130));
    assert_eq!(text(waiting.0.stderr.take()), "");
    server.process.signal("CONT");
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_every_command_that_waits() {
    let server = Server::start(&["--queue", "full,maxsize=1"]);
    server.run("put", &["full", "a"]).ok();
    let mut for_room = Process::spawn(&mut server.command("put", &["full", "b"]));
    let mut for_input = Process::spawn(server.command("put", &["full"]).stdin(Stdio::piped()));
    let mut for_time = Process::spawn(&mut server.command("ls", &["--watch=3600"]));
    let looked = BufReader::new(for_time.0.stdout.take().unwrap()).lines().next();
    assert!(looked.unwrap().unwrap().ends_with("PUT/S  DONE/S"));
    let queue = || -> serde_json::Value {
        serde_json::from_str(&server.run("ls", &["--json"]).ok()).unwrap()
    };
    eventually("the put waits, and both refer to the queue", || {
        let queue = queue();
        (queue[0]["waiting_put"] == 1 && queue[0]["references"] == 2).then_some(())
    });
    for process in [&mut for_room, &mut for_input, &mut for_time] {
        process.signal("INT");
        // The signal itself ends it, so that a shell's loop around it ends too.
        assert_eq!(process.wait(), None);
        assert_eq!(text(process.0.stderr.take()), "");
    }
}

#[cfg(unix)]
fn text(pipe: Option<std::process::ChildStderr>) -> String {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut pipe.unwrap(), &mut text).unwrap();
    text
}

#[test]
fn follow_with_a_time_out_empties_the_queue() {
    let server = Server::start(&[]);
    server.run("put", &["tasks", "a", "b"]).ok();
    assert_eq!(server.run("get", &["tasks", "--follow", "--timeout", "0"]).ok(), "a\nb\n");
}

#[test]
fn an_item_that_cannot_be_printed_goes_back() {
    let server = Server::start(&[]);
    let mut deaf = Process::spawn(&mut server.command("get", &["tasks"]));
    drop(deaf.0.stdout.take());
    server.run("put", &["tasks", "a"]).ok();
    assert_eq!(deaf.wait(), Some(1));
    assert_eq!(server.run("get", &["tasks", "--timeout", "0"]).ok(), "a\n");
}

#[test]
fn a_full_queue_refuses_when_the_time_is_over() {
    let server = Server::start(&["--queue", "tasks,maxsize=1"]);
    let refused = server.run("put", &["tasks", "a", "b", "--timeout", "0.01"]);
    refused.failed("item 2 of 2: the queue is full");
    assert_eq!(server.run("get", &["tasks"]).ok(), "a\n");
}

#[test]
fn an_item_with_a_key_is_put_once() {
    let server = Server::start(&["--queue", "links,dedup=600"]);
    let put = |key, value| server.run("put", &["links", "--key", key, value]);
    assert_eq!(put("a", "first").ok(), "");
    let known = put("a", "second");
    let note = "manyhands: this key was used a short while ago, and nothing was added\n";
    assert_eq!((known.code, known.stderr.as_str()), (Some(0), note));
    put("b", "third").ok();
    assert_eq!(server.run("get", &["links", "--count", "2"]).ok(), "first\nthird\n");
    put("c", "fourth").ok();
    let keyless = server.run("put", &["links", "--key", "d", "one", "two"]);
    keyless.failed("--key is for one item, and not for 2");
    assert_eq!(server.run("get", &["links", "--timeout", "0"]).ok(), "fourth\n");
}

#[test]
fn what_was_given_up_is_driven_again_or_purged() {
    let server = Server::start(&["--queue", "tasks,attempts=1"]);
    server.run("put", &["tasks", "a", "b", "c"]).ok();
    let client = manyhands::blocking::Client::connect(&server.address, KEY).unwrap();
    let tasks = client.queue::<String>("tasks").unwrap();
    for lease in tasks.lease_many(3, None).unwrap() {
        lease.nack(None, "no").unwrap();
    }
    assert_eq!(server.run("redrive", &["tasks.dead", "--count", "2"]).ok(), "2\n");
    assert_eq!(server.run("get", &["tasks"]).ok(), "a\n");
    assert_eq!(server.run("redrive", &["tasks"]).ok(), "0\n", "these are no dead letters");
    assert_eq!(server.run("purge", &["tasks.dead"]).ok(), "1\n");
    assert_eq!(server.run("redrive", &["tasks.dead"]).ok(), "0\n");
    assert_eq!(server.run("purge", &["tasks"]).ok(), "1\n");
}

#[test]
fn one_dead_letter_is_driven_again_by_the_number_that_peek_shows() {
    let dir = tempfile::tempdir().unwrap();
    let data = ["--data", dir.path().to_str().unwrap()];
    let queue = ["--queue", "tasks,attempts=1", "--queue", "tasks.dead"];
    let start = || Server::start(&[&data[..], &queue[..]].concat());
    let server = start();
    server.run("put", &["tasks", "a", "b", "c"]).ok();
    let client = manyhands::blocking::Client::connect(&server.address, KEY).unwrap();
    for lease in client.queue::<String>("tasks").unwrap().lease_many(3, None).unwrap() {
        lease.nack(None, "no").unwrap();
    }
    client.close().unwrap();
    let redrive =
        |server: &Server, task: &str| server.run("redrive", &["tasks.dead", "--task", task]);
    let letters = server.run("peek", &["tasks.dead", "--json"]).ok();
    let letters: Vec<serde_json::Value> =
        letters.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let number = |item: &str| {
        let letter = letters.iter().find(|letter| letter["item"] == item).unwrap();
        letter["task"].to_string()
    };
    assert_eq!(redrive(&server, &number("b")).ok(), "1\n");
    assert_eq!(server.run("get", &["tasks"]).ok(), "b\n");
    let again = redrive(&server, &number("b"));
    again.failed("task 1 of tasks.dead is no dead letter that can be moved");
    drop(server);

    let server = start();
    let both = ["tasks.dead", "--task", &number("c"), "--task", &number("a")];
    assert_eq!(server.run("redrive", &both).ok(), "2\n", "after a restart as before");
    assert_eq!(server.run("get", &["tasks", "--count", "2"]).ok(), "c\na\n");
}

#[test]
fn a_task_that_fails_again_is_driven_once() {
    const COUNT: u32 = 1000;
    let server = Server::start(&["--queue", "tasks,attempts=1,dead=letters"]);
    let client = manyhands::blocking::Client::connect(&server.address, KEY).unwrap();
    let tasks = client.queue::<u32>("tasks").unwrap();
    let letters = client.queue::<u32>("letters").unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            // An end for a test that fails.
            for _ in 0..100_000 {
                match tasks.lease(Some(Duration::from_millis(10))) {
                    Ok(lease) => lease.nack(None, "again").unwrap(),
                    Err(_) if is_over.load(Ordering::SeqCst) => return,
                    Err(_) => {}
                }
            }
        });
        tasks.put_many(&(0..COUNT).collect::<Vec<_>>()).unwrap();
        eventually("all are given up", || {
            (letters.qsize().unwrap() == u64::from(COUNT)).then_some(())
        });
        let moved = server.run("redrive", &["letters"]);
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(moved.ok(), format!("{COUNT}\n"));
    });
}

#[test]
fn ls_shows_every_queue() {
    let server = Server::start(&["--queue", "b,order=priority", "--queue", "a,maxsize=10"]);
    server.run("put", &["a", "x", "y"]).ok();
    server.run("get", &["a"]).ok();
    let shown = server.run("ls", &[]).ok();
    let shown: Vec<Vec<_>> = shown.lines().map(|it| it.split_whitespace().collect()).collect();
    let header = "NAME ORDER MAXSIZE QSIZE LEASED DELAYED DEAD WAITING OLDEST";
    assert_eq!(shown[0].join(" "), header, "nobody counts unfinished tasks");
    assert_eq!(shown[1][..8].join(" "), "a fifo 10 1 0 0 0 0");
    assert!(shown[1][8].ends_with('s'), "the age of its task: {shown:?}");
    assert_eq!(shown[2].join(" "), "b priority - 0 0 0 0 0 -");
    let mut queues: serde_json::Value =
        serde_json::from_str(&server.run("ls", &["--json"]).ok()).unwrap();
    let a = queues[0].as_object_mut().unwrap();
    assert!(a.remove("oldest").unwrap().as_f64().unwrap() > 0.0);
    assert!(a.remove("bytes").unwrap().as_u64().unwrap() > 0);
    let expected = serde_json::json!([
        { "name": "a", "order": "fifo", "maxsize": 10, "qsize": 1, "unfinished": 2, "leased": 0,
          "delayed": 0, "dead": 0, "declared": true, "is_joined": false, "waiting_get": 0,
          "waiting_put": 0, "waiting_join": 0, "references": 0, "put": 2, "taken": 1, "done": 1 },
        { "name": "b", "order": "priority", "maxsize": 0, "qsize": 0, "unfinished": 0, "leased": 0,
          "delayed": 0, "dead": 0, "declared": true, "is_joined": false, "oldest": null,
          "waiting_get": 0, "waiting_put": 0, "waiting_join": 0, "references": 0, "put": 0,
          "taken": 0, "done": 0, "bytes": 0 },
    ]);
    assert_eq!(queues, expected);
}

#[test]
fn ls_shows_unfinished_tasks_once_somebody_counts_them() {
    let server = Server::start(&["--queue", "tasks,attempts=1"]);
    let client = manyhands::blocking::Client::connect(&server.address, KEY).unwrap();
    let tasks = client.queue::<String>("tasks").unwrap();
    tasks.put(&"a".to_owned()).unwrap();
    assert!(!server.run("ls", &[]).ok().contains("UNFINISHED"));
    tasks.lease(None).unwrap().nack(None, "no").unwrap();
    assert_eq!(server.run("redrive", &["tasks.dead"]).ok(), "1\n");
    assert!(!server.run("ls", &[]).ok().contains("UNFINISHED"), "redrive is not somebody's count");
    tasks.task_done().unwrap();
    assert!(server.run("ls", &[]).ok().contains("UNFINISHED"));
}

#[test]
fn ls_watch_shows_rates() {
    let server = Server::start(&["--queue", "a"]);
    let mut watching = Process::spawn(&mut server.command("ls", &["--watch=0.05"]));
    let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first: Vec<_> = lines.by_ref().take(2).collect();
    assert!(first[0].ends_with("PUT/S  DONE/S") && first[1].ends_with(" -       -"), "{first:?}");
    server.run("put", &["a", "x", "y"]).ok();
    let shows_rate = |line: String| {
        let rate = line.split_whitespace().rev().nth(1).and_then(|rate| rate.parse::<f64>().ok());
        rate.is_some_and(|rate| rate > 0.0)
    };
    assert!(lines.any(shows_rate));
}

#[test]
fn a_queue_that_was_made_by_a_typo_is_dropped() {
    let server = Server::start(&[]);
    server.run("put", &["tsaks", "a", "b"]).ok();
    assert_eq!(server.run("drop", &["tsaks"]).ok(), "2\n");
    assert_eq!(server.run("ls", &["--json"]).ok(), "[]\n");
    let missing = "there is no queue named 'tsaks'";
    server.run("drop", &["tsaks"]).failed(&format!("{missing}; there are: none so far"));
    let client = manyhands::blocking::Client::connect(&server.address, KEY).unwrap();
    let tasks = client.queue::<String>("tasks").unwrap();
    tasks.put(&"a".to_owned()).unwrap();
    let refused = server.run("drop", &["tasks"]);
    refused
        .failed("is in use: 1 references of clients, 0 calls that wait, 0 tasks in hand; --force");
    assert_eq!(server.run("drop", &["tasks", "--force"]).ok(), "1\n");
    let declared = Server::start(&["--queue", "tasks"]);
    declared.run("drop", &["tasks", "--force"]).failed("is declared, or named by a declared one");
}

#[test]
fn a_dead_letter_is_looked_at_and_stays() {
    let server = Server::start(&["--queue", "tasks,attempts=2,backoff=0"]);
    server.run("put", &["tasks", "--json", "[\"bad\", 18446744073709551615]"]).ok();
    let client = manyhands::blocking::Client::connect(&server.address, KEY).unwrap();
    let tasks = client.queue::<manyhands::Value>("tasks").unwrap();
    for reason in ["no\u{1b}[2J luck", "still none"] {
        tasks.lease(None).unwrap().nack(None, reason).unwrap();
    }
    for _ in 0..2 {
        let shown = server.run("peek", &["tasks.dead"]).ok();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0], "['bad', 0xffffffffffffffff]");
        assert!(lines[1].starts_with("  task 0, ready, attempt 2, put "), "{shown}");
        assert_eq!(lines[2], "  was task 0 of tasks");
        assert!(
            lines[3].starts_with("  attempt 1 failed") && lines[3].ends_with("luck"),
            "{shown}"
        );
        assert!(lines[4].starts_with("  attempt 2 failed") && lines[4].ends_with(": still none"));
        let worker = format!("pid={} at 127.0.0.1:", std::process::id());
        assert!(lines[3].contains(&worker) && lines[4].contains(&worker), "who had it: {shown}");
    }
    let shown = server.run("peek", &["tasks.dead", "--json", "--count", "5"]).ok();
    assert_eq!(shown.lines().count(), 1);
    assert!(shown.ends_with("\"item\":[\"bad\",18446744073709551615]}\n"), "{shown}");
    let task: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&task["queue"], &task["origin"]), (&"tasks".into(), &0.into()));
    assert_eq!((&task["state"], &task["attempt"]), (&"ready".into(), &2.into()));
    assert_eq!(task["failures"][1]["reason"], "still none");
    let taken = server.run("get", &["tasks.dead", "--info", "--json"]).ok();
    let taken: serde_json::Value = serde_json::from_str(&taken).unwrap();
    assert_eq!((&taken["item"][0], &taken["info"]["queue"]), (&"bad".into(), &"tasks".into()));
    assert_eq!(taken["info"]["history"].as_array().unwrap().len(), 2);
    server.run("put", &["tasks", "plain"]).ok();
    let taken = server.run("get", &["tasks", "--info", "--json"]).ok();
    assert_eq!(taken, "{\"info\":null,\"item\":\"plain\"}\n");
    server.run("put", &["tasks", "one", "two", "three"]).ok();
    let shown = server.run("peek", &["tasks", "--count", "1"]).ok();
    assert!(shown.ends_with("\nand 2 more; --count N shows as many\n"), "{shown}");
    let names = "no queue is called 'typo'; there are: 'tasks', 'tasks.dead'";
    server.run("peek", &["typo"]).failed(names);
    assert_eq!(server.run("peek", &["tasks.dead"]).ok(), "", "it was taken");
}

#[test]
fn a_queue_that_is_not_there_is_told_with_the_nearest_names_first() {
    let server = Server::start(&["--queue", "answers", "--queue", "tasks,attempts=1"]);
    for command in ["peek", "tasks", "drop"] {
        server.run(command, &["task"]).failed("'task'; there are: 'tasks', 'answers'");
        let none = server.run(command, &["tasks.dead"]);
        none.failed("'tasks.dead': no task of 'tasks' was given up so far");
        server.run(command, &["typo.dead"]).failed("'typo.dead'; there are: 'tasks', 'answers'");
    }
    server.run("put", &["tasks", "a"]).ok();
    let client = manyhands::blocking::Client::connect(&server.address, KEY).unwrap();
    client.queue::<String>("tasks").unwrap().lease(None).unwrap().nack(None, "no").unwrap();
    assert_eq!(server.run("peek", &["tasks.dead"]).ok().lines().next(), Some("a"));
}

#[test]
fn a_letter_that_is_taken_says_why_it_failed() {
    let server = Server::start(&["--queue", "tasks,attempts=1"]);
    server.run("put", &["tasks", "bad"]).ok();
    let client = manyhands::blocking::Client::connect(&server.address, KEY).unwrap();
    let tasks = client.queue::<String>("tasks").unwrap();
    tasks.lease(None).unwrap().nack(None, "no luck").unwrap();
    let taken = server.run("get", &["tasks.dead", "--info"]).ok();
    let lines: Vec<_> = taken.lines().collect();
    assert_eq!(lines[0], "bad");
    assert!(lines[1].starts_with("  was task 0 of tasks, attempt 1"), "{taken}");
    assert!(lines[2].starts_with("  failed: ") && lines[2].contains("no luck"), "{taken}");
}

#[test]
fn it_is_seen_who_has_which_task() {
    let server = Server::start(&["--queue", "tasks"]);
    server.run("put", &["tasks", "a", "b", "c"]).ok();
    let client = manyhands::blocking::Client::connect(&server.address, KEY).unwrap();
    let tasks = client.queue::<String>("tasks").unwrap();
    let _first = tasks.lease(None).unwrap();
    tasks.lease(None).unwrap().nack(Some(Duration::from_secs(600)), "later").unwrap();
    let shown = server.run("tasks", &["tasks"]).ok();
    let rows: Vec<Vec<_>> = shown.lines().map(|it| it.split("  ").collect()).collect();
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(rows[1][0] == "leased" && shown.contains(&format!("pid={}", std::process::id())));
    assert!(shown.lines().nth(1).unwrap().contains("127.0.0.1:"), "{shown}");
    assert!(shown.lines().nth(2).unwrap().starts_with("delayed "), "{shown}");
    assert!(shown.lines().nth(3).unwrap().starts_with("ready "), "{shown}");
    for (option, task) in [("--leased", 0), ("--delayed", 1), ("--ready", 2)] {
        let shown = server.run("tasks", &["tasks", option, "--json"]).ok();
        let found: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(found["task"], task, "{shown}");
        assert!(found.get("item").is_none());
    }
    assert_eq!(server.run("tasks", &["tasks", "--count", "2"]).ok().lines().count(), 3);
}

#[cfg(unix)]
#[test]
fn drop_asks_at_a_terminal() {
    let server = Server::start(&[]);
    for (answer, expected) in [("n", "nothing was dropped"), ("y", "2\r\n")] {
        server.run("purge", &["typo"]).ok();
        server.run("put", &["typo", "a", "b"]).ok();
        let drop = server.command("drop", &["typo"]);
        let spawn = "import os, pty, sys\n\
                     pid, terminal = pty.fork()\n\
                     if pid == 0: os.execv(sys.argv[2], sys.argv[2:])\n\
                     shown = b''\n\
                     while b'[y/N]' not in shown: shown += os.read(terminal, 1000)\n\
                     os.write(terminal, sys.argv[1].encode() + b'\\n')\n\
                     try:\n    while True: shown += os.read(terminal, 1000)\n\
                     except OSError: pass\n\
                     sys.stdout.buffer.write(shown)\n";
        let mut terminal = Command::new(python());
        terminal.args(["-c", spawn, answer]).arg(drop.get_program()).args(drop.get_args());
        let variables = drop.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let output = terminal.envs(variables).output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(shown.contains("drop the queue typo and the 2 tasks in it? [y/N]"), "{shown:?}");
        assert!(shown.contains(expected), "{shown:?}");
    }
}

#[test]
fn a_queue_that_was_not_declared_is_named() {
    let server = Server::start(&["--queue", "tasks"]);
    for verb in ["put", "get"] {
        let args: &[&str] = if verb == "put" { &["other", "a"] } else { &["other"] };
        server.run(verb, args).failed("no queue is called 'other'");
    }
}

#[test]
fn who_cannot_connect_is_told_why() {
    let server = Server::start(&[]);
    let wrong = server.home.file("wrong", "another key of more than sixteen bytes");
    let wrong = server.run("ls", &["--authkey-file", wrong.to_str().unwrap()]);
    wrong.failed(": the server has another one");
    let newline = server.home.file("newline", format!("{KEY}\n\n"));
    let newline = server.run("ls", &["--authkey-file", newline.to_str().unwrap()]);
    newline.failed("newline, which ends in a newline, beside the one that is taken off");
    let number = server.home.file("number", "510210\n");
    let number = server.run("ls", &["--authkey-file", number.to_str().unwrap()]);
    number.failed("which holds a number: for a script whose authkey is an int, name it by");
    let missing = server.run("ls", &["--authkey-file", "/nonexistent/key"]);
    missing.failed("cannot read the authkey file /nonexistent/key");
    let keyless = Home::new();
    keyless.run(&["ls", "--connect", &server.address]).failed("name its file with --authkey-file");
    let Server { process, home, address } = server;
    drop(process);
    let nobody = home.run(&["ls", "--connect", &address]);
    nobody.failed(
        "nothing listens there; `manyhands serve` starts a server, --connect names another",
    );
    let nobody = home.run(&["get", "tasks", "--connect", &address]);
    nobody.failed(&format!("cannot connect to {address}"));
    home.run(&["ls", "--connect", "nowhere"]).failed("'nowhere' is no address");
}

#[test]
fn a_port_of_somebody_else_is_asked_about() {
    let server = Server::start(&[]);
    for greeting in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH_9.6\r\n", ""] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // It closes each connection, also those by which the client tries again.
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                std::io::Write::write_all(&mut socket.unwrap(), greeting.as_bytes()).ok();
            }
        });
        let refused = server.home.run(&["ls", "--connect", &address]);
        refused.failed("; is it a manyhands server?");
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let refused = server.home.run(&["ls", "--connect", &address]);
    refused.failed(&format!("{address}: no answer within 10s; is it a manyhands server?"));
}

#[test]
fn a_key_may_come_through_standard_input() {
    let server = Server::start(&[]);
    server.feed("put", &["tasks", "a", "--authkey-file", "-"], KEY).ok();
    let both = server.feed("put", &["tasks", "--authkey-file", "-"], KEY);
    both.failed("standard input cannot hold both");
}

#[test]
fn cpythons_own_server_is_served_as_well() {
    let home = Home::new();
    let key = home.file("key", KEY);
    let key = key.to_str().unwrap();
    let mut master = Process::spawn(&mut script("master.py", ["images", key, "127.0.0.1:0"]));
    let mut lines = BufReader::new(master.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    let address = first.rsplit(' ').next().unwrap();
    assert_eq!(lines.next().unwrap(), "try get result...");
    let run = |verb: &str, args: &[&str]| {
        home.run(&[&[verb, "--connect", address, "--authkey-file", key], args].concat())
    };
    run("ls", &[]).failed("this is not a manyhands server");
    run("get", &["get_nothing"]).failed("no queue is called 'get_nothing'");
    let taken = run("get", &["get_task_queue", "--count", "10", "--timeout", "60"]).ok();
    assert_eq!(taken.lines().last(), Some("ImageUrl_9"));
    run("get", &["get_task_queue", "--timeout", "0"]).failed("the queue is empty");
    run("put", &["get_task_queue", "--json", "[1, null]"]).ok();
    assert_eq!(run("get", &["get_task_queue", "--json"]).ok(), "[1,null]\n");
}

#[test]
fn a_command_that_cannot_be_understood_has_its_own_exit_code() {
    let home = Home::new();
    let commands: [&[&str]; 9] = [
        &[],
        &["put"],
        &["get", "tasks", "--count", "2", "--follow"],
        &["get", "tasks", "--timeout", "-1"],
        &["ls", "--authkey", "secret"],
        &["serve", "--queue", "jobs,order=random"],
        &["serve", "--frame-timeout", "10m"],
        &["completion"],
        &["doctor"],
    ];
    for args in commands {
        let finished = home.run(args);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{args:?}");
    }
    assert!(!Path::new(&home.path("manyhands")).exists(), "and nothing was made");
}

#[cfg(unix)]
#[test]
fn an_item_cannot_command_a_terminal() {
    let server = Server::start(&[]);
    server.run("put", &["tasks", "\u{1b}[31mred\u{9b}", "a\tb"]).ok();
    let get = server.command("get", &["tasks", "--count", "2"]);
    let spawn = "import pty, sys; pty.spawn(sys.argv[1:])";
    let mut terminal = Command::new(python());
    terminal.args(["-c", spawn]).arg(get.get_program()).args(get.get_args());
    let variables = get.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let output = terminal.envs(variables).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("\\u001b[31mred\\u009b\r\na"), "{shown:?}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}
