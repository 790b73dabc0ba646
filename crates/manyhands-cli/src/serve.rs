//! `manyhands serve`: options, start-up text, signals.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use manyhands_server::{Address, Limits, QueueOptions, Restored, Server, Stopper};
use tracing::level_filters::LevelFilter;

use crate::key::{Key, KeyArguments};
use crate::queues;

/// File descriptors that are not connections.
const OTHER_DESCRIPTORS: u64 = 64;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Address to listen on: HOST:PORT, [IPV6]:PORT, :PORT for all of IPv4, or unix:PATH; port 0
    /// takes a free one; may be given more than once
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    listen: Vec<String>,
    #[command(flatten)]
    key: KeyArguments,
    /// Declare a queue; then no other names exist. Without any, a name becomes an unbounded FIFO
    /// queue at its first use
    #[arg(long, value_name = queues::SYNTAX, value_parser = queues::parse)]
    queue: Vec<(String, QueueOptions)>,
    /// Declare the queues of this TOML file too: a section [queue.NAME] for each, with the keys of
    /// --queue
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the queues in this directory: they are there again after a restart
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Write a JSON line with the bound addresses here as soon as connections are accepted
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Allow an authkey under 16 bytes on an address that other machines reach
    #[arg(long)]
    allow_weak_key: bool,
    /// Refuse Python 3.11 and earlier, which know only HMAC-MD5
    #[arg(long)]
    no_md5: bool,
    /// Let a client's `shutdown` stop the server
    #[arg(long)]
    allow_shutdown: bool,
    /// Largest request, in bytes; at most an eighth of --memory-bytes-max
    #[arg(long, value_name = "BYTES")]
    frame_bytes_max: Option<u64>,
    /// Bytes of all that is held for clients, near which `put` waits [default: half of the memory]
    #[arg(long, value_name = "BYTES")]
    memory_bytes_max: Option<u64>,
    /// Size of a file of the journal, in bytes; at least the largest request [default: 64 MiB]
    #[arg(long, value_name = "BYTES")]
    segment_bytes: Option<u64>,
    /// Connections at one time
    #[arg(long, value_name = "N")]
    connections_max: Option<usize>,
    /// Queues in all
    #[arg(long, value_name = "N")]
    queues_max: Option<usize>,
    /// Seconds from a connection to the end of its first request
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    handshake_timeout: Option<Duration>,
    /// Seconds from the first byte of a request to its last; one more for every MiB
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    frame_timeout: Option<Duration>,
    /// Least important messages that are logged to standard error: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: LevelFilter,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    start_log(&arguments);
    let key = arguments.key.read(true)?;
    let mut queues = arguments.queue.clone();
    if let Some(config) = &arguments.config {
        queues.extend(queues::read(config)?);
    }
    let mut builder = Server::builder()
        .authkey(key.key.clone())
        .allow_weak_key(arguments.allow_weak_key)
        .refuse_md5(arguments.no_md5)
        .accept_shutdown(arguments.allow_shutdown)
        .limits(limits(&arguments));
    if let Some(directory) = &arguments.data {
        builder = builder.data(directory);
    }
    for address in &arguments.listen {
        builder = builder.address(address);
    }
    for (name, options) in &queues {
        builder = builder.queue(name, options.clone());
    }
    let server = builder.start().map_err(explain)?;
    print(&greeting(&server, &key, &queues, arguments.data.as_deref()))?;
    if let Some(path) = &arguments.ready_file {
        write_ready_file(path, &server)
            .with_context(|| format!("cannot write the ready file {}", path.display()))?;
    }
    stop_on_signal(&server.stopper())?;
    server.stop().context("the server failed")?;
    tracing::info!("stopped");
    Ok(())
}

fn start_log(arguments: &Arguments) {
    let log = tracing_subscriber::fmt()
        .with_max_level(arguments.log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    if arguments.log_json { log.json().init() } else { log.init() }
}

fn explain(error: manyhands_server::StartError) -> anyhow::Error {
    match error {
        error @ manyhands_server::StartError::WeakKey { .. } => {
            anyhow::anyhow!("{error} (--allow-weak-key)")
        }
        error @ manyhands_server::StartError::NoData { .. } => anyhow::anyhow!("{error} (--data)"),
        error => error.into(),
    }
}

fn limits(arguments: &Arguments) -> Limits {
    let mut limits = Limits::default();
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(u64::MAX);
    let room = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(1);
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    limits.connections_max = arguments.connections_max.unwrap_or(limits.connections_max).min(room);
    limits.frame_bytes_max = arguments.frame_bytes_max.unwrap_or(limits.frame_bytes_max);
    limits.memory_bytes_max = arguments.memory_bytes_max.unwrap_or(limits.memory_bytes_max);
    limits.segment_bytes = arguments.segment_bytes.unwrap_or(limits.segment_bytes);
    limits.queues_max = arguments.queues_max.unwrap_or(limits.queues_max);
    limits.handshake_timeout = arguments.handshake_timeout.unwrap_or(limits.handshake_timeout);
    limits.frame_timeout = arguments.frame_timeout.unwrap_or(limits.frame_timeout);
    limits
}

pub(crate) fn parse_seconds(text: &str) -> Result<Duration> {
    let seconds: f64 = text.parse()?;
    Ok(Duration::try_from_secs_f64(seconds)?)
}

/// What a user needs to connect a first worker.
fn greeting(
    server: &Server,
    key: &Key,
    queues: &[(String, QueueOptions)],
    data: Option<&Path>,
) -> String {
    let mut text = format!("manyhands {}\n", env!("CARGO_PKG_VERSION"));
    for address in server.addresses() {
        writeln!(text, "  listening on {address}").ok();
    }
    let origin = match (&key.path, key.is_new) {
        (None, _) => "from standard input".into(),
        (Some(path), true) => format!("made now and kept in {}", path.display()),
        (Some(path), false) => format!("in {}", path.display()),
    };
    writeln!(text, "  authkey {origin}").ok();
    let names: Vec<_> = queues.iter().map(|(name, _)| name.as_str()).collect();
    let names = if names.is_empty() { "made at their first use".into() } else { names.join(", ") };
    writeln!(text, "  queues {names}").ok();
    if let (Some(restored), Some(data)) = (server.restored(), data) {
        writeln!(text, "  data in {}, {}", data.display(), told(restored)).ok();
    }
    if let (Some(address), Some(path)) = (server.addresses().first(), &key.path) {
        let queue = queues.first().map_or("get_task_queue", |(name, _)| name);
        text.push_str(&worker_lines(address, path, key.is_int, queue));
    }
    text
}

/// What was there after a restart.
fn told(restored: Restored) -> String {
    let Restored { queues, tasks, leases, epoch, took, .. } = restored;
    if epoch == 1 {
        return "empty so far".into();
    }
    let seconds = took.as_secs_f64();
    let count = |count, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let (queues, tasks) = (count(queues, "queue"), count(tasks, "task"));
    let leases = count(leases, "lease");
    format!("with {queues}, {tasks} and {leases}, read in {seconds:.3} s")
}

/// How a worker and a shell reach the server, from wherever they are started.
pub(crate) fn worker_lines(address: &Address, path: &Path, is_int: bool, queue: &str) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (python_address, address) = match address {
        // It means every address of this machine, and is none that a worker elsewhere could use.
        Address::Tcp { host, port } if host == "0.0.0.0" || host == "::" => {
            (format!("('NAME OF THIS MACHINE', {port})"), format!("localhost:{port}"))
        }
        Address::Tcp { host, port } => (format!("({host:?}, {port})"), address.to_string()),
        Address::Unix(socket) => (format!("{socket:?}"), address.to_string()),
    };
    let (option, python_key) = if is_int {
        ("--authkey-int-file", format!("int(open({path:?}).read())"))
    } else {
        ("--authkey-file", format!("open({path:?}, 'rb').read().rstrip(b'\\n')"))
    };
    let path = path.display();
    format!(
        "A Python worker connects with\n  \
         BaseManager(address={python_address}, authkey={python_key})\n\
         and a shell with\n  \
         manyhands get --connect {address} {option} {path} {queue}\n"
    )
}

/// Writes `text` to standard output; nobody may be reading.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A reader finds all of the line or no file.
fn write_ready_file(path: &Path, server: &Server) -> Result<()> {
    let addresses: Vec<_> = server.addresses().iter().map(ToString::to_string).collect();
    let line = serde_json::json!({ "addresses": addresses, "pid": std::process::id() });
    let draft = path.with_extension(format!("{}.draft", std::process::id()));
    std::fs::write(&draft, format!("{line}\n"))?;
    std::fs::rename(&draft, path)?;
    Ok(())
}

/// Returns when a signal or a client asks the server to stop.
fn stop_on_signal(stopper: &Stopper) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            signal = signal() => tracing::info!("{} received; stopping", signal?),
            () = stopper.stopped() => {}
        }
        Ok(())
    })
}

#[cfg(unix)]
async fn signal() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

#[cfg(not(unix))]
async fn signal() -> std::io::Result<&'static str> {
    tokio::signal::ctrl_c().await.map(|()| "Ctrl-C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_told_what_it_can_use_wherever_it_is_started() {
        let key = Path::new("/keys/key");
        let tcp = |host: &str| Address::Tcp { host: host.into(), port: 5000 };
        let lines = worker_lines(&tcp("10.0.0.7"), key, false, "tasks");
        assert!(
            lines.contains(r#"BaseManager(address=("10.0.0.7", 5000), authkey=open("/keys/key""#)
        );
        assert!(lines.ends_with("get --connect 10.0.0.7:5000 --authkey-file /keys/key tasks\n"));
        for everywhere in ["0.0.0.0", "::"] {
            let lines = worker_lines(&tcp(everywhere), key, true, "tasks");
            assert!(!lines.contains(everywhere), "{lines}");
            assert!(lines.contains("--connect localhost:5000 --authkey-int-file /keys/key tasks"));
        }
        let here = std::env::current_dir().unwrap().join("key");
        let lines = worker_lines(&tcp("10.0.0.7"), Path::new("key"), false, "tasks");
        assert!(lines.contains(here.to_str().unwrap()), "{lines}");
    }
}
