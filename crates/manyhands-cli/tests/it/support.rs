//! What every behaviour test needs: the Pythons of this machine, a server, a script with a time limit.
//!
//! Nothing outlives its test: servers and scripts are killed on drop. Waiting is for a condition,
//! and every wait has an end.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use std::{env, fs, io, panic, thread};

/// The key of every server that does not need another one.
pub(crate) const KEY: &[u8] = b"a key for the behaviour tests";

/// How long a server may take to start, and a script to say its next line.
const PATIENCE: Duration = Duration::from_secs(60);

/// Scripts of this many Pythons run at one time.
const PYTHONS_AT_ONCE: usize = 2;

/// A CPython of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    /// Major and minor version.
    pub(crate) version: (u8, u8),
    program: PathBuf,
}

impl Python {
    /// The version as users write it: `3.13`.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    pub(crate) fn is_2(&self) -> bool {
        self.version.0 == 2
    }

    /// A script of `tests/it/python` to run on this Python.
    pub(crate) fn script(&self, file: &str) -> Script {
        self.program(&python_dir().join(file))
    }

    /// Any program to run on this Python.
    pub(crate) fn program(&self, path: &Path) -> Script {
        let mut command = Command::new(&self.program);
        command
            .arg(path)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            .env("PYTHONIOENCODING", "utf-8");
        Script { command, what: format!("{} on Python {}", path.display(), self.name()) }
    }

    pub(crate) fn probe(program: &Path) -> Option<Self> {
        let ask =
            "import sys; print('%d %d %s' % (sys.version_info[:2] + (sys.version.split()[0],)))";
        let output = Command::new(program).args(["-c", ask]).stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let mut words = text.split_whitespace();
        let version = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Self { version, program: program.to_owned() })
    }
}

/// Every CPython from 2.7 on that this machine has, one per minor version, oldest first.
///
/// # Panics
///
/// When there is none: behaviour tests without a Python would prove nothing.
pub(crate) fn pythons() -> &'static [Python] {
    static FOUND: OnceLock<Vec<Python>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut found = BTreeMap::new();
        for program in candidates() {
            if let Some(python) = Python::probe(&program)
                && is_wanted(&python)
            {
                found.entry(python.version).or_insert(python);
            }
        }
        assert!(
            !found.is_empty(),
            "no CPython found: put pythonX.Y on PATH, or install one by pyenv"
        );
        let names: Vec<_> = found.values().map(Python::name).collect();
        announce(&format!("behaviour tests run on Python {}", names.join(", ")));
        found.into_values().collect()
    })
}

/// The newest Python found, for helpers that are no test subject.
pub(crate) fn newest_python() -> &'static Python {
    pythons().last().expect("pythons() is never empty")
}

fn is_wanted(python: &Python) -> bool {
    let supported = python.version == (2, 7) || python.version >= (3, 6);
    supported
        && env::var("MANYHANDS_PYTHONS")
            .map_or(true, |wanted| wanted.split(',').any(|name| name.trim() == python.name()))
}

fn candidates() -> Vec<PathBuf> {
    let names =
        ["python2.7".to_owned()].into_iter().chain((6..30).map(|minor| format!("python3.{minor}")));
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> = env::split_paths(&path).collect();
    let mut programs: Vec<_> = names
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(&name)).collect::<Vec<_>>())
        .filter(|program| program.is_file())
        .collect();
    let versions = env::home_dir().map(|home| home.join(".pyenv").join("versions"));
    for entry in versions.and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten() {
        programs.push(entry.path().join("bin").join("python"));
    }
    programs
}

/// Runs `test` for every Python of `pythons`, two at a time, and fails with all that went wrong.
pub(crate) fn for_each_python(pythons: &[Python], test: impl Fn(&Python) + Sync) {
    let queue = Mutex::new(pythons.iter());
    let failures = Mutex::new(Vec::new());
    let worker = || {
        loop {
            let Some(python) = queue.lock().expect("no worker panics with the lock").next() else {
                return;
            };
            if let Err(panic) = panic::catch_unwind(panic::AssertUnwindSafe(|| test(python))) {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let text = text.unwrap_or_default();
                failures
                    .lock()
                    .expect("no worker panics with the lock")
                    .push((python.name(), text));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..PYTHONS_AT_ONCE {
            scope.spawn(worker);
        }
    });
    let failures = failures.into_inner().expect("no worker panics with the lock");
    let report: Vec<_> =
        failures.iter().map(|(name, text)| format!("Python {name}: {text}")).collect();
    assert!(report.is_empty(), "{}", report.join("\n\n"));
}

/// A note that is seen even when the test passes (`print!` would be captured).
pub(crate) fn announce(note: &str) {
    writeln!(io::stderr(), "note: {note}").expect("stderr is open");
}

/// The directory of the Python scripts.
pub(crate) fn python_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/python")
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A program about to be run.
#[derive(Debug)]
pub(crate) struct Script {
    command: Command,
    what: String,
}

impl Script {
    /// A program that is no script of a Python.
    #[allow(dead_code, reason = "for those that start one")]
    pub(crate) fn of(command: Command, what: &str) -> Self {
        Self { command, what: what.to_owned() }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Port and key file of `server`, the first two arguments of most scripts.
    pub(crate) fn server(self, server: &Server) -> Self {
        self.arg(server.port().to_string()).arg(server.key_file())
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it; its output is collected, it has no input.
    pub(crate) fn start(self) -> Running {
        self.start_on(Stdio::piped(), Stdio::piped())
    }

    /// Starts it with an input, which it is told line by line.
    #[allow(dead_code, reason = "for those that talk with a client")]
    pub(crate) fn talk(mut self) -> (Running, ChildStdin) {
        self.command.stdin(Stdio::piped());
        let mut running = self.spawn(Stdio::piped(), Stdio::piped());
        let input = running.child.stdin.take().expect("it is piped");
        (running, input)
    }

    /// Starts it with other outputs, which are not collected then.
    fn start_on(mut self, stdout: Stdio, stderr: Stdio) -> Running {
        self.command.stdin(Stdio::null());
        self.spawn(stdout, stderr)
    }

    fn spawn(mut self, stdout: Stdio, stderr: Stdio) -> Running {
        self.command.stdout(stdout).stderr(stderr);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut self.command, 0);
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.what));
        let lines = child.stdout.take().map_or_else(|| channel().1, lines_of);
        let errors = child.stderr.take().map_or_else(|| channel().1, lines_of);
        Running { child, what: self.what, lines, errors, heard: String::new() }
    }

    /// Runs it to its end and returns its standard output.
    ///
    /// # Panics
    ///
    /// With both its outputs, when it fails or is silent for too long.
    pub(crate) fn run(self) -> String {
        self.start().finish()
    }
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A program that runs; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    what: String,
    lines: Receiver<String>,
    pub(crate) errors: Receiver<String>,
    heard: String,
}

impl Running {
    /// Its next line of standard output; `None` when it closed it.
    pub(crate) fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                self.heard.push_str(&line);
                self.heard.push('\n');
                Some(line)
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                self.fail("said nothing for too long")
            }
        }
    }

    /// Waits until it has said a line that `wanted` accepts, `count` times.
    pub(crate) fn wait_for(&mut self, count: usize, wanted: impl Fn(&str) -> bool) {
        for _ in 0..count {
            loop {
                match self.line() {
                    Some(line) if wanted(&line) => break,
                    Some(_) => {}
                    None => self.fail("ended before it said what was waited for"),
                }
            }
        }
    }

    /// Kills it at once (SIGKILL), and the processes that it started, and returns what it had said.
    pub(crate) fn kill(mut self) -> String {
        self.kill_group();
        self.child.wait().expect("the program was started by us");
        while self.line().is_some() {}
        std::mem::take(&mut self.heard)
    }

    /// Waits for its end and returns all its standard output.
    pub(crate) fn finish(mut self) -> String {
        while self.line().is_some() {}
        let status = self.child.wait().expect("the program was started by us");
        if !status.success() {
            self.fail(&format!("ended with {status}"));
        }
        std::mem::take(&mut self.heard)
    }

    fn fail(&mut self, how: &str) -> ! {
        self.child.kill().ok();
        let errors: Vec<_> = self.errors.iter().collect();
        panic!(
            "{} {how}\n--- its output:\n{}--- its errors:\n{}\n---",
            self.what,
            tail(&self.heard),
            errors.join("\n")
        );
    }
}

impl Running {
    /// A master's own server is a process that survives it.
    fn kill_group(&mut self) {
        if cfg!(unix) {
            let group = format!("-{}", self.child.id());
            Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status().ok();
        }
        self.child.kill().ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
        self.child.wait().ok();
    }
}

fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(4000);
    text.char_indices().find(|(at, _)| *at >= start).map_or("", |(at, _)| &text[at..])
}

/// A server that listens on a port of its own, ours or CPython's; it dies on drop.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Mutex<Running>, // a test's threads share the server
    port: u16,
    dir: tempfile::TempDir,
}

impl Server {
    /// `manyhands serve` with these queues (`NAME[,order=…][,maxsize=…]`) and [`KEY`].
    pub(crate) fn start(queues: &[&str]) -> Self {
        let options: Vec<_> = queues.iter().flat_map(|queue| ["--queue", queue]).collect();
        Self::with_options(&options)
    }

    /// `manyhands serve` with [`KEY`] and these options.
    pub(crate) fn with_options(options: &[&str]) -> Self {
        let key = Key::Bytes(KEY);
        Self::at("127.0.0.1:0", key, options).unwrap_or_else(|why| panic!("{why}"))
    }

    /// `manyhands serve` on `address`; an error when it ends before it is ready.
    pub(crate) fn at(address: &str, key: Key<'_>, options: &[&str]) -> Result<Self, String> {
        Self::with_outputs(address, key, options, Stdio::piped(), Stdio::piped())
    }

    /// The same with outputs that are not collected.
    pub(crate) fn with_outputs(
        address: &str,
        key: Key<'_>,
        options: &[&str],
        stdout: Stdio,
        stderr: Stdio,
    ) -> Result<Self, String> {
        let mut command = Command::new(binary());
        command.args(["serve", "--listen", address, "--allow-weak-key"]).args(options);
        let script = Script { command, what: "manyhands serve".to_owned() };
        Self::await_ready(script, key, |script| script.start_on(stdout, stderr))
    }

    /// CPython's manager server on `python` with these queues and [`KEY`]: the oracle.
    pub(crate) fn cpython(python: &Python, queues: &[&str]) -> Self {
        let mut script = python.script("oracle_server.py");
        for queue in queues {
            script = script.arg("--queue").arg(queue);
        }
        Self::await_ready(script, Key::Bytes(KEY), Script::start)
            .unwrap_or_else(|why| panic!("{why}"))
    }

    fn await_ready(
        script: Script,
        key: Key<'_>,
        start: impl FnOnce(Script) -> Running,
    ) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let (key_file, ready_file) = (dir.path().join("key"), dir.path().join("ready"));
        let (option, content) = match key {
            Key::Bytes(bytes) => ("--authkey-file", bytes.to_vec()),
            Key::Int(number) => ("--authkey-int-file", number.to_string().into_bytes()),
        };
        write_secret(&key_file, &content);
        let script = script.arg(option).arg(&key_file).arg("--ready-file").arg(&ready_file);
        let mut process = start(script);
        let ready = wait_until(|| {
            if let Ok(Some(status)) = process.child.try_wait() {
                let errors: Vec<_> = process.errors.iter().collect();
                return Some(Err(format!("the server ended with {status}: {}", errors.join("\n"))));
            }
            fs::read_to_string(&ready_file).ok().filter(|text| text.ends_with('\n')).map(Ok)
        });
        let text = ready.unwrap_or_else(|| Err("the server was not ready in time".to_owned()))?;
        Ok(Self { process: Mutex::new(process), port: port_in(&text), dir })
    }

    /// The port of its first address.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The file with its key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// Its number among the processes.
    pub(crate) fn id(&self) -> u32 {
        self.process.lock().expect("no test panics with the lock").child.id()
    }

    /// Memory that it holds now, in KiB, where the system tells.
    pub(crate) fn resident_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

/// What opens a server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Key<'a> {
    /// Raw bytes.
    Bytes(&'a [u8]),
    /// A script's `authkey=510210`.
    Int(u32),
}

impl Key<'_> {
    /// What the key is to the handshake.
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Int(count) => vec![0; usize::try_from(count).expect("it fits into memory")],
        }
    }
}

pub(crate) fn binary() -> PathBuf {
    env::var_os("MANYHANDS_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_manyhands").into(), PathBuf::from)
}

fn port_in(ready: &str) -> u16 {
    let ready: serde_json::Value = serde_json::from_str(ready).expect("the ready file is JSON");
    let address = ready["addresses"][0].as_str().expect("the ready file has an address");
    let (_, port) = address.rsplit_once(':').expect("the address has a port");
    port.parse().expect("the port is a number")
}

pub(crate) fn write_secret(path: &Path, secret: &[u8]) {
    fs::write(path, secret).expect("the temporary directory can be written");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    }
}

/// True when nobody listens on `port` of the loopback interface.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Asks `condition` until it has an answer; `None` when it never had one.
pub(crate) fn wait_until<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let pause = Duration::from_millis(5);
    let rounds = PATIENCE.as_millis() / pause.as_millis();
    (0..rounds).find_map(|_| {
        condition().or_else(|| {
            thread::sleep(pause);
            None
        })
    })
}
