//! Servers, commands and Pythons for the tests.

use std::env;
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// A key that is fit for an open network.
pub(crate) const KEY: &str = "a key of more than sixteen bytes";

/// Waits until `condition` gives something. Fails after a minute, which is long enough for any
/// machine.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..6000 {
        if let Some(value) = condition() {
            return value;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("in vain: {what}")
}

/// A process that dies with its test, and its children with it.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        Self(command.spawn().unwrap())
    }

    /// Its exit code; `None` if a signal ended it.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        eventually("a process ends", || self.0.try_wait().unwrap()).code()
    }

    /// What it prints until its end, and its exit code.
    pub(crate) fn finish(mut self) -> (String, Option<i32>) {
        let mut text = String::new();
        let mut stdout = self.0.stdout.take().unwrap();
        let reader = thread::spawn(move || {
            std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
            text
        });
        let code = self.wait();
        (reader.join().unwrap(), code)
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: &str) {
        kill(signal, self.0.id());
    }
}

#[cfg(unix)]
pub(crate) fn kill(signal: &str, pid: u32) {
    let killed = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
    assert!(killed.unwrap().success());
}

impl Drop for Process {
    fn drop(&mut self) {
        #[cfg(unix)]
        drop(Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).output());
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A directory with a private key file.
#[derive(Debug)]
pub(crate) struct Home {
    directory: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file that only its owner reads.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        #[cfg(unix)]
        set_mode(&path, 0o600);
        path
    }

    /// The command `manyhands`, with this directory for its configuration.
    pub(crate) fn manyhands(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manyhands"));
        command
            .args(args)
            .env("XDG_CONFIG_HOME", self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        self.manyhands(args).output().unwrap().into()
    }
}

#[cfg(unix)]
pub(crate) fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    /// What it printed; it must have succeeded without a word to standard error.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// It must have failed with one line that contains `expected`.
    #[track_caller]
    pub(crate) fn failed(self, expected: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{}", self.stderr);
        let line = self.stderr.strip_suffix('\n').unwrap();
        assert!(line.starts_with("manyhands: ") && !line.contains('\n'), "{line}");
        assert!(line.contains(expected), "{line}");
    }
}

/// A running `manyhands serve`.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) home: Home,
    pub(crate) process: Process,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", options)
    }

    pub(crate) fn start_at(address: &str, options: &[&str]) -> Self {
        let home = Home::new();
        std::fs::create_dir(home.path("manyhands")).unwrap();
        home.file("manyhands/authkey", KEY);
        Self::start_in(home, address, options)
    }

    pub(crate) fn start_in(home: Home, address: &str, options: &[&str]) -> Self {
        let ready = home.path("ready");
        let mut command = home.manyhands(&["serve", "--log", "warn", "--listen", address]);
        command.args(options).arg("--ready-file").arg(&ready);
        let process = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::inherit()));
        let line = eventually("the server is ready", || std::fs::read_to_string(&ready).ok());
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = line.pointer("/addresses/0").unwrap().as_str().unwrap().to_owned();
        Self { home, process, address }
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.home.path("manyhands/authkey")
    }

    /// A command for this server.
    pub(crate) fn command(&self, verb: &str, args: &[&str]) -> Command {
        let mut command = self.home.manyhands(&[verb, "--connect", &self.address]);
        command.args(args);
        command
    }

    pub(crate) fn run(&self, verb: &str, args: &[&str]) -> Finished {
        self.command(verb, args).output().unwrap().into()
    }

    /// Runs a command with `input` for its standard input.
    pub(crate) fn feed(&self, verb: &str, args: &[&str], input: &str) -> Finished {
        let mut command = self.command(verb, args);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        // It may have failed without reading.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        child.wait_with_output().unwrap().into()
    }
}

/// The newest Python 3 of this machine.
pub(crate) fn python() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let names = (6..=14).rev().map(|minor| PathBuf::from(format!("python3.{minor}")));
        let candidates = names.chain(["python3".into()]).chain(pyenv());
        let is_python3 = |path: &PathBuf| {
            let script = "import sys; sys.exit(sys.version_info < (3, 6))";
            let status = Command::new(path).args(["-c", script]).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        candidates.into_iter().find(is_python3).expect("a Python 3.6 or later on this machine")
    })
}

fn pyenv() -> Vec<PathBuf> {
    let versions = env::home_dir().map(|home| home.join(".pyenv/versions"));
    let entries = versions.and_then(|versions| versions.read_dir().ok());
    entries.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python")).collect()
}

/// One of the scripts beside the tests.
pub(crate) fn script(name: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/python").join(name);
    let mut command = Command::new(python());
    command.arg("-B").arg(path).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}
