//! `serve`: how it starts, what it refuses, how it ends.

use std::net::{Ipv6Addr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use crate::support::{Home, KEY, Process, Server, eventually, python};

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = Home::new().run(&["serve", "--listen", &address]);
    refused.failed(&format!("cannot listen on {address}: "));
}

#[test]
fn a_key_file_that_cannot_be_used_is_named() {
    let home = Home::new();
    let serve = |key: &std::path::Path| {
        let key = key.to_str().unwrap();
        home.run(&["serve", "--listen", "127.0.0.1:0", "--authkey-file", key])
    };
    serve(&home.path("missing")).failed("cannot read the authkey file");
    serve(&home.file("empty", "\n")).failed("is empty");
    #[cfg(unix)]
    {
        let shared = home.file("shared", KEY);
        crate::support::set_mode(&shared, 0o644);
        serve(&shared).failed("other users can read the authkey file");
    }
}

#[test]
fn a_weak_key_stays_on_this_machine_unless_it_is_allowed() {
    let home = Home::new();
    let weak = home.file("weak", "abc");
    let weak = ["--authkey-file", weak.to_str().unwrap()];
    let refused = home.run(&[&["serve", "--listen", "0.0.0.0:0"], &weak[..]].concat());
    refused.failed("(--allow-weak-key)");
    let number = home.file("number", "510210");
    let int = ["--authkey-int-file", number.to_str().unwrap()];
    home.run(&[&["serve", "--listen", ":0"], &int[..]].concat()).failed("(--allow-weak-key)");

    let local = Server::start_in(Home::new(), "127.0.0.1:0", &weak);
    local.run("ls", &weak).ok();
    let options = [&weak[..], &["--allow-weak-key"]].concat();
    let open = Server::start_in(Home::new(), "0.0.0.0:0", &options);
    let port = open.address.strip_prefix("0.0.0.0:").unwrap();
    let address = format!("127.0.0.1:{port}");
    home.run(&[&["ls", "--connect", &address], &weak[..]].concat()).ok();
}

#[test]
fn without_a_key_a_strong_one_is_made_and_kept() {
    let server = Server::start_in(Home::new(), "127.0.0.1:0", &[]);
    let key = std::fs::read_to_string(server.key_file()).unwrap();
    assert_eq!(key.trim_end().len(), 64);
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::MetadataExt::mode(&server.key_file().metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }
    server.run("put", &["tasks", "a"]).ok();
    let Server { home, process, .. } = server;
    drop(process);
    std::fs::remove_file(home.path("ready")).unwrap();
    let again = Server::start_in(home, "127.0.0.1:0", &[]);
    assert_eq!(std::fs::read_to_string(again.key_file()).unwrap(), key);
}

#[cfg(target_os = "linux")]
#[test]
fn the_key_is_not_to_be_seen_from_outside() {
    let server = Server::start(&[]);
    let client = Process::spawn(&mut server.command("get", &["tasks"]));
    eventually("the client waits", || server.run("ls", &[]).ok().contains("tasks").then_some(()));
    for pid in [server.process.0.id(), client.0.id()] {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&text).contains(KEY), "{file}");
        }
    }
}

#[test]
fn the_start_up_text_says_where_and_how_to_connect() {
    let home = Home::new();
    let key = home.file("key", KEY);
    let key = key.to_str().unwrap();
    let args = ["serve", "--listen", "127.0.0.1:0", "--authkey-file", key, "--queue", "jobs"];
    let mut server = Process::spawn(home.manyhands(&args).stderr(Stdio::null()));
    let mut stdout = std::io::BufReader::new(server.0.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("manyhands ls") {
        assert_ne!(std::io::BufRead::read_line(&mut stdout, &mut text).unwrap(), 0, "{text}");
    }
    let address = text.lines().find_map(|line| line.strip_prefix("  listening on ")).unwrap();
    home.run(&["put", "--connect", address, "--authkey-file", key, "jobs", "a"]).ok();
    assert!(text.contains(&format!("authkey in {key}")) && text.contains("queues jobs"), "{text}");
    assert!(!text.contains(KEY));
}

/// The commands that the start-up text names work as they stand.
#[test]
fn what_the_start_up_text_says_can_be_done() {
    let home = Home::new();
    let mut server =
        Process::spawn(home.manyhands(&["serve", "--listen", "127.0.0.1:0"]).stderr(Stdio::null()));
    let mut stdout = std::io::BufReader::new(server.0.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("manyhands ls") {
        assert_ne!(std::io::BufRead::read_line(&mut stdout, &mut text).unwrap(), 0, "{text}");
    }
    assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    let shell = text.lines().last().unwrap().trim().strip_prefix("manyhands ").unwrap();
    let words: Vec<_> = shell.split(' ').collect();
    assert_eq!(home.run(&words).ok().lines().count(), 1, "no queue yet, and nothing is taken");
    let worker = text.lines().filter_map(|line| line.strip_prefix("  "));
    let worker: Vec<_> =
        worker.filter(|it| it.starts_with("key =") || it.contains("Base")).collect();
    let program = format!(
        "from multiprocessing.managers import BaseManager\n{}\nmanager = {}\nmanager.connect()\n",
        worker[0], worker[1]
    );
    let connected = std::process::Command::new(python()).args(["-c", &program]).output().unwrap();
    assert!(connected.status.success(), "{program}{}", String::from_utf8_lossy(&connected.stderr));
}

#[test]
fn a_whole_worker_is_shown_that_works() {
    let queues = ["--queue", "jobs,results=answers"];
    let server = Server::start(&queues);
    let args = ["serve", "--show-worker", "--listen", &server.address];
    let worker = server.home.run(&[&args[..], &queues].concat()).ok();
    let _worker = Process::spawn(std::process::Command::new(python()).args(["-c", &worker]));
    server.run("put", &["jobs", "a"]).ok();
    assert_eq!(server.run("get", &["answers", "--timeout", "60"]).ok(), "('done', 'a')\n");
}

#[test]
fn options_come_from_the_configuration_where_the_command_line_is_silent() {
    let home = Home::new();
    let config = home.file(
        "server.toml",
        "[server]\nlisten = 'nowhere'\nqueues-max = 2\nframe_bytes_max = 1000\nno-md5 = true\n\
         [queue.a]\nmaxsize = 1\n",
    );
    // --listen is given by the test's own command line.
    let server =
        Server::start(&["--config", config.to_str().unwrap(), "--frame-bytes-max", "2000"]);
    server.run("put", &["a", &"x".repeat(1500)]).ok();
    server.run("put", &["a", &"x".repeat(2500)]).failed("exceeds the limit of 2000 bytes");
    let refused = |text: &str| {
        let config = home.file("wrong.toml", text);
        home.run(&["serve", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()])
    };
    refused("listen = ':5000'\n").failed("options of the server go below [server]");
    refused("[server]\nport = 5000\n")
        .failed("[server]: no option \"port\"; expected one of listen,");
    refused("[queue.a]\nmaxsize = 'ten'\n")
        .failed("[queue.a]: maxsize=\"ten\": expected a whole number, such as 100; 0 is no bound");
    refused("[queue.a]\nlease = '10m'\n")
        .failed("[queue.a]: lease=\"10m\": expected a number of seconds, such as 600");
    let seconds = refused("[server]\nframe-timeout = '10m'\n");
    assert_eq!(seconds.code, Some(2));
    assert!(seconds.stderr.contains("expected a number of seconds, such as 600"));
}

#[test]
fn a_data_directory_that_cannot_be_one_is_named() {
    let home = Home::new();
    let file = home.file("file", "");
    // Who can read it is of no interest.
    #[cfg(unix)]
    crate::support::set_mode(&file, 0o644);
    let serve = |data: &str| home.run(&["serve", "--listen", "127.0.0.1:0", "--data", data]);
    let refused = serve(file.to_str().unwrap());
    assert!(!refused.stderr.contains("chmod"), "{}", refused.stderr);
    refused.failed("file is not a directory; --data needs one, or a name for a new one");
    let below = format!("{}/below", file.display());
    serve(&below).failed(&format!("--data {below}: "));
}

#[test]
fn a_command_line_is_completed() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Home::new().run(&["completion", shell]).ok();
        assert!(script.contains("unused-timeout") && script.contains("redrive"), "{shell}");
    }
}

#[test]
fn doctor_is_in_the_help_and_says_where_it_is() {
    let home = Home::new();
    assert!(home.run(&["--help"]).ok().contains("\n  doctor "));
    assert!(home.run(&["doctor", "--help"]).ok().contains("manyhands doctor <SCRIPT>"));
    home.run(&["doctor", "script.py"]).failed("pip install manyhands");
}

#[test]
fn the_ready_file_has_the_address_and_the_process() {
    let server = Server::start(&[]);
    let line = std::fs::read_to_string(server.home.path("ready")).unwrap();
    let pid = server.process.0.id();
    let expected = format!("{{\"addresses\":[\"{}\"],\"pid\":{pid}}}\n", server.address);
    assert_eq!(line, expected);
    assert!(!server.address.ends_with(":0"), "the port is the one that was bound");
}

#[test]
fn several_addresses_lead_to_the_same_queues() {
    let server = Server::start(&["--listen", "127.0.0.1:0"]);
    let line = std::fs::read_to_string(server.home.path("ready")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let second = line["addresses"][1].as_str().unwrap();
    assert_ne!(second, server.address);
    server.run("put", &["tasks", "a"]).ok();
    assert_eq!(server.home.run(&["get", "--connect", second, "tasks"]).ok(), "a\n");
}

#[cfg(unix)]
#[test]
fn a_unix_socket_is_served() {
    let sockets = Home::new();
    let address = format!("unix:{}", sockets.path("socket").display());
    let server = Server::start_at(&address, &[]);
    assert_eq!(server.address, address);
    server.run("put", &["tasks", "a"]).ok();
    assert_eq!(server.run("get", &["tasks"]).ok(), "a\n");
}

#[test]
fn ipv6_is_served_where_there_is_any() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("this machine has no IPv6");
        return;
    }
    let server = Server::start_at("[::1]:0", &[]);
    assert!(server.address.starts_with("[::1]:"));
    server.run("put", &["tasks", "a"]).ok();
    assert_eq!(server.run("get", &["tasks"]).ok(), "a\n");
}

#[cfg(unix)]
#[test]
fn a_signal_ends_it_cleanly_while_clients_are_connected() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&[]);
        let mut waiting = Process::spawn(&mut server.command("get", &["tasks"]));
        eventually("the client waits", || {
            server.run("ls", &[]).ok().contains("tasks").then_some(())
        });
        server.process.signal(signal);
        assert_eq!(server.process.wait(), Some(0));
        assert_eq!(waiting.wait(), Some(1), "the client is told");
    }
}

#[test]
fn a_client_goes_on_with_a_server_that_was_killed_and_started_anew() {
    let mut killed = Server::start(&["--queue", "tasks"]);
    let client = manyhands::blocking::Client::connect_with(&killed.address, KEY, {
        // This machine may be slow to start a server.
        manyhands::ConnectOptions { reconnect_for: Duration::from_secs(60), ..Default::default() }
    });
    let tasks = client.unwrap().queue::<u64>("tasks").unwrap();
    tasks.put(&1).unwrap();
    killed.process.0.kill().unwrap();
    killed.process.0.wait().unwrap();
    let waiting = std::thread::spawn({
        let tasks = tasks.clone();
        move || tasks.get()
    });
    let server = Server::start_at(&killed.address, &["--queue", "tasks"]);
    server.run("put", &["tasks", "--json", "2"]).ok();
    assert_eq!(waiting.join().unwrap().unwrap(), 2);
    assert_eq!(tasks.put_many(&[3, 4]).unwrap(), 2);
    assert_eq!(tasks.lease_many(5, None).unwrap().len(), 2);
}
