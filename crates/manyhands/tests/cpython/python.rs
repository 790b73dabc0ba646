//! The Pythons of this machine and their manager servers.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// One interpreter.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    path: PathBuf,
    /// Major and minor.
    pub(crate) version: (u32, u32),
}

impl fmt::Display for Python {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Python {}.{}", self.version.0, self.version.1)
    }
}

/// Every version found, oldest first: on the path, and where pyenv keeps them.
pub(crate) fn pythons() -> &'static [Python] {
    static FOUND: OnceLock<Vec<Python>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let minors = (6..30).map(|minor| format!("python3.{minor}"));
        let names = ["python3", "python2.7"].map(String::from).into_iter().chain(minors);
        let candidates = names.map(PathBuf::from).chain(pyenv());
        let found: BTreeMap<_, _> = candidates
            .filter_map(|path| Some((version(&path)?, path)))
            .filter(|(version, _)| *version == (2, 7) || *version >= (3, 6))
            .collect();
        let found: Vec<_> =
            found.into_iter().map(|(version, path)| Python { path, version }).collect();
        assert!(!found.is_empty(), "no Python 2.7 or 3.6 and later on this machine");
        // Past the capture of the test harness: everybody should see what was tested.
        let names: Vec<_> = found.iter().map(Python::to_string).collect();
        writeln!(std::io::stderr(), "manager servers of {}", names.join(", ")).ok();
        found
    })
}

fn pyenv() -> Vec<PathBuf> {
    let versions = env::home_dir().map(|home| home.join(".pyenv/versions"));
    let entries = versions.and_then(|versions| versions.read_dir().ok());
    entries.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python")).collect()
}

fn version(path: &Path) -> Option<(u32, u32)> {
    let script = "import sys; print('%d.%d' % sys.version_info[:2])";
    let output = Command::new(path).args(["-c", script]).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A manager server of a Python; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Host and port, or the path of a socket.
    pub(crate) address: String,
}

impl Server {
    pub(crate) const KEY: &str = "a key";

    pub(crate) fn start(python: &Python) -> Self {
        Self::start_at(python, "127.0.0.1:0")
    }

    #[cfg(unix)]
    pub(crate) fn start_at_socket(python: &Python) -> Self {
        let (major, minor) = python.version;
        let name = format!("manyhands-{}-{major}.{minor}.socket", std::process::id());
        let path = env::temp_dir().join(name);
        Self::start_at(python, path.to_str().unwrap())
    }

    pub(crate) fn start_at(python: &Python, address: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cpython/server.py");
        let mut child = Command::new(&python.path)
            .arg("-B")
            .arg(script)
            .args([Self::KEY, address])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{python} does not serve at {address}");
        Self { child, address: line.trim().to_owned() }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        // A killed server leaves its socket behind.
        std::fs::remove_file(&self.address).ok();
    }
}
