//! `manyhands serve`: options, start-up text, signals.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use manyhands::text::printable;
use manyhands_server::journal::JournalError;
use manyhands_server::{Limits, QueueOptions, Restored, Server, StartError, Stopper};
use tracing::level_filters::LevelFilter;

use crate::config::{self, Config};
use crate::hints::Place;
use crate::key::{self, Key, KeyArguments};
use crate::log::{self, Log};
use crate::queues;

/// Files of its journal that a server makes as it begins, where the disk has room for them, and how
/// many it needs.
const FIRST_SEGMENTS: u64 = 5;
const FIRST_SEGMENTS_MIN: u64 = 2;
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
    /// Read this TOML file: a section [queue.NAME] declares a queue, with the keys of --queue; the
    /// section [server] has the options of this command by their long names, such as
    /// listen = ":5000", where the command line does not have them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the queues in this directory: they are there again after a restart [default: all is in
    /// memory]
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
    /// Largest request, in bytes; at most an eighth of --memory-bytes-max [default: 67108864, 64 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    frame_bytes_max: Option<u64>,
    /// Bytes of all that is held for clients, near which `put` waits [default: half of the memory]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory_bytes_max: Option<u64>,
    /// Size of a file of the journal, in bytes; at least the largest request [default: 67108864,
    /// 64 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    segment_bytes: Option<u64>,
    /// Connections at one time [default: 20000, or what the system allows]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    connections_max: Option<usize>,
    /// Queues in all [default: 10000]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    queues_max: Option<usize>,
    /// Seconds after which a queue goes that was not declared, is empty and that nobody refers to,
    /// and a reference that no session uses; 0 is never [default: 3600, an hour]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    unused_timeout: Option<Duration>,
    /// Seconds from a connection to the end of its first request [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    handshake_timeout: Option<Duration>,
    /// Seconds from the first byte of a request to its last; one more for every MiB [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    frame_timeout: Option<Duration>,
    /// Seconds of silence after which a session that holds nothing is closed; 0 is never
    /// [default: 0]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    idle_timeout: Option<Duration>,
    /// Least important messages that are logged to standard error: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: LevelFilter,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
    /// Print a whole Python worker for such a server, and start none
    #[arg(long)]
    show_worker: bool,
}

impl Arguments {
    /// The configuration that the command line names.
    pub(crate) fn config(&self) -> Result<Option<Config>> {
        self.config.as_deref().map(config::read).transpose()
    }
}

/// The command line of `serve`.
pub(crate) fn command() -> clap::Command {
    <Arguments as clap::Args>::augment_args(clap::Command::new("serve"))
}

pub(crate) fn run(arguments: Arguments, config: Option<Config>) -> Result<()> {
    let mut queues = arguments.queue.clone();
    queues.extend(config.unwrap_or_default().queues);
    if arguments.show_worker {
        return show_worker(&arguments, &queues);
    }
    let log = start_log(&arguments)?;
    let served = serve(&arguments, &queues);
    log.finish();
    served
}

fn serve(arguments: &Arguments, queues: &[(String, QueueOptions)]) -> Result<()> {
    let key = arguments.key.read(true)?;
    if let Some((path, oddity)) = key.path.as_deref().and_then(|it| Some((it, key::oddity(it)?)))
        && !key.is_int
    {
        tracing::warn!("the authkey in {} {oddity}; is that meant?", path.display());
    }
    let mut builder = Server::builder()
        .authkey(key.key.clone())
        .allow_weak_key(arguments.allow_weak_key)
        .refuse_md5(arguments.no_md5)
        .accept_shutdown(arguments.allow_shutdown)
        .limits(limits(arguments));
    if let Some(directory) = &arguments.data {
        builder = builder.data(directory);
    }
    for address in &arguments.listen {
        builder = builder.address(address);
    }
    for (name, options) in queues {
        builder = builder.queue(name, options.clone());
    }
    let server = builder.start().map_err(|error| explain(error, arguments))?;
    let greeting = greeting(&server, &key, queues, arguments.data.as_deref());
    let greeting = printable(&greeting, |char| char == '\n').into_owned();
    stop_on_signal(&server.stopper(), || {
        log::write_with_patience(move || print(&greeting)).transpose()?;
        arguments.ready_file.as_ref().map_or(Ok(()), |path| {
            write_ready_file(path, &server)
                .with_context(|| format!("cannot write the ready file {}", path.display()))
        })
    })?;
    server.stop().map_err(|error| explain_end(error, arguments))?;
    tracing::info!("stopped");
    Ok(())
}

fn start_log(arguments: &Arguments) -> Result<Log> {
    let has_colours = io::stderr().is_terminal() && !arguments.log_json;
    let log = Log::start(io::stderr(), has_colours)?;
    let lines = tracing_subscriber::fmt()
        .with_max_level(arguments.log)
        .with_writer(log.clone())
        .with_ansi(has_colours)
        .with_target(false);
    if arguments.log_json {
        lines.json().init()
    } else {
        lines.init()
    }
    // What Rust does by itself could wait for ever.
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string().replace('\n', " ");
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
        tracing::error!(backtrace = backtrace.map(tracing::field::display), "{text}");
    }));
    Ok(log)
}

/// Why the server did not start, and by which option that is mended.
fn explain(error: StartError, arguments: &Arguments) -> anyhow::Error {
    let option = match &error {
        StartError::WeakKey { .. } => "--allow-weak-key",
        StartError::NoData { .. } => "--data",
        StartError::SegmentBytes(_) => "--frame-bytes-max",
        StartError::Journal(cause) => return explain_journal(cause, arguments),
        _ => return error.into(),
    };
    anyhow!("{error} ({option})")
}

fn explain_journal(error: &JournalError, arguments: &Arguments) -> anyhow::Error {
    let directory = arguments.data.as_deref().unwrap_or(Path::new(""));
    let name = directory.display();
    if directory.exists() && !directory.is_dir() {
        return anyhow!("{name} is not a directory; --data needs one, or a name for a new one");
    }
    if !error.is_full() {
        return anyhow!("--data {name}: {error}{}", remedy(error, directory, arguments));
    }
    let segment = segment_bytes(arguments);
    let mebibytes = |segments: u64| (segments * segment) >> 20;
    let (most, least) = (mebibytes(FIRST_SEGMENTS), mebibytes(FIRST_SEGMENTS_MIN));
    anyhow!(
        "--data {name}: {error}; a server begins with {most} MiB there, {least} MiB at least, and \
         with less by smaller --segment-bytes and --frame-bytes-max"
    )
}

/// Why the server has ended, and what to do about it.
fn explain_end(error: io::Error, arguments: &Arguments) -> anyhow::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<JournalError>());
    match (cause, &arguments.data) {
        (Some(cause), Some(directory)) => {
            let remedy = remedy(cause.cause(), directory, arguments);
            anyhow!("the server failed: --data {}: {cause}{remedy}", directory.display())
        }
        _ => anyhow::Error::new(error).context("the server failed"),
    }
}

/// What to do about a journal that is damaged, or has no room.
fn remedy(error: &JournalError, directory: &Path, arguments: &Arguments) -> String {
    let name = directory.display();
    if error.is_damage() {
        return format!(
            "; restore the directory from a copy, or copy all that is whole of it to a new one: \
             manyhands journal salvage {name} TO"
        );
    }
    match error {
        // It says so itself.
        JournalError::DiskFull { .. } => String::new(),
        error if error.is_full() => {
            format!("; free at least {} bytes on the disk of {name}", segment_bytes(arguments))
        }
        _ => String::new(),
    }
}

/// Size of a file of the journal, in bytes.
fn segment_bytes(arguments: &Arguments) -> u64 {
    let limits = limits(arguments);
    limits.segment_bytes.max(limits.frame_bytes_max)
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
    limits.unused_timeout = arguments.unused_timeout.unwrap_or(limits.unused_timeout);
    limits.handshake_timeout = arguments.handshake_timeout.unwrap_or(limits.handshake_timeout);
    limits.frame_timeout = arguments.frame_timeout.unwrap_or(limits.frame_timeout);
    limits.idle_timeout = arguments.idle_timeout.filter(|limit| !limit.is_zero());
    limits
}

pub(crate) fn parse_seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().and_then(|it| Duration::try_from_secs_f64(it).ok());
    seconds.context("expected a number of seconds, such as 600")
}

fn parse_bytes(text: &str) -> Result<u64> {
    text.parse().ok().context("expected a number of bytes, such as 67108864")
}

fn parse_count(text: &str) -> Result<usize> {
    text.parse().ok().context("expected a whole number, such as 1000")
}

/// A worker for the server that these options would start.
fn show_worker(arguments: &Arguments, queues: &[(String, QueueOptions)]) -> Result<()> {
    let (key, is_int) = match (&arguments.key.authkey_int_file, &arguments.key.authkey_file) {
        (Some(path), _) => (path.clone(), true),
        (None, Some(path)) => (path.clone(), false),
        (None, None) => (key::kept_path()?, false),
    };
    let address = arguments.listen.first().context("no address to listen on")?.parse()?;
    print(&Place { address: &address, key: &key, is_int }.worker(queues))
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
    if let (Some(address), Some(key_path)) = (server.addresses().first(), &key.path) {
        let place = Place { address, key: key_path, is_int: key.is_int };
        text.push_str(&place.lines());
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

/// Writes `text` to standard output; nobody may be reading.
pub(crate) fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
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

/// Returns when a signal or a client asks the server to stop. `tell_ready` is called once signals are
/// listened to: whoever is told may send one at once.
fn stop_on_signal(stopper: &Stopper, tell_ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let signal = signal()?;
        tell_ready()?;
        tokio::select! {
            signal = signal => tracing::info!("{} received; stopping", signal?),
            () = stopper.stopped() => {}
        }
        Ok(())
    })
}

/// The next signal to end, from now on.
#[cfg(unix)]
fn signal() -> io::Result<impl Future<Output = io::Result<&'static str>>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        Ok(tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        })
    })
}

#[cfg(windows)]
fn signal() -> io::Result<impl Future<Output = io::Result<&'static str>>> {
    let mut interrupt = tokio::signal::windows::ctrl_c()?;
    Ok(async move {
        interrupt.recv().await;
        Ok("Ctrl-C")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_none_are_told_what_was_expected() {
        let error = |text: &str| format!("{:#}", parse_seconds(text).unwrap_err());
        for text in ["10m", "", "-1", "nan", "1e30"] {
            assert_eq!(error(text), "expected a number of seconds, such as 600");
        }
        assert!(parse_bytes("1GiB").is_err() && parse_count("-1").is_err());
    }

    fn with_data() -> Arguments {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        Line::parse_from(["serve", "--data", "/nonexistent/data"]).arguments
    }

    #[test]
    fn a_server_that_ends_on_a_full_disk_says_on_which_and_how_much_to_free() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let file = "0000000009.spare".to_owned();
        for (error, bytes) in [
            (JournalError::DiskFull { file: file.clone(), bytes: 1 << 20 }, "1048576"),
            (JournalError::Io { action: "write", file, error: full.into() }, "67108864"),
        ] {
            let error = JournalError::Stopped(error.into());
            let text = explain_end(io::Error::other(error), &with_data()).to_string();
            assert!(text.contains("--data /nonexistent/data: "), "{text}");
            assert!(text.contains(&format!("free at least {bytes} bytes on the disk")), "{text}");
        }
    }

    #[test]
    fn a_full_disk_is_told_how_much_is_needed() {
        let arguments = with_data();
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let file = "0000000001.seg".to_owned();
        let error = JournalError::Io { action: "allocate", file, error: full.into() };
        let text = explain(StartError::Journal(error), &arguments).to_string();
        assert!(text.starts_with("--data /nonexistent/data: "), "{text}");
        assert!(text.contains("a server begins with 320 MiB there, 128 MiB at least"), "{text}");
    }

    #[test]
    fn every_option_with_a_default_shows_it() {
        let help = command().render_long_help().to_string();
        let options = help.split("\n      --").skip(1);
        let silent = options.filter(|it| it.contains("_MAX") || it.contains("SECONDS"));
        let silent = silent.filter(|it| !it.contains("[default: "));
        assert_eq!(silent.collect::<Vec<_>>(), Vec::<&str>::new());
    }
}
