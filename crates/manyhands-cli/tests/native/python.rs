//! Clients in Python: the plain one, and unmodified ones of CPython's protocol.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::{env, fs};

use serde_json::{Value, json};

use crate::face::{Call, Face};
use crate::support::{Python, Running, Server, newest_python};

fn script(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/native").join(file)
}

/// `client.py`, told what to do by `face.py`.
pub(crate) struct PlainPython(Talk);

/// A program that answers lines.
struct Talk {
    process: Running,
    input: ChildStdin,
}

impl Talk {
    fn say(&mut self, line: &str) {
        let said = writeln!(self.input, "{line}").and_then(|()| self.input.flush());
        said.unwrap_or_else(|error| panic!("{error}: {}", self.errors()));
    }

    fn hear(&mut self) -> String {
        self.process.line().unwrap_or_else(|| panic!("it ended: {}", self.errors()))
    }

    fn errors(&mut self) -> String {
        self.process.child.kill().ok();
        self.process.errors.iter().collect::<Vec<_>>().join("\n")
    }
}

impl Face for PlainPython {
    fn connect(server: &Server, name: &str, reader: u8) -> Self {
        let script = newest_python().program(&script("face.py")).server(server);
        let (process, input) = script.arg(name).arg(reader.to_string()).talk();
        Self(Talk { process, input })
    }

    fn start(&mut self, number: u64, call: Call<'_>) {
        self.0.say(&json!({ "start": number, "call": call }).to_string());
    }

    fn flush(&mut self) {
        self.0.say(&json!({ "send": [] }).to_string());
    }

    fn finish(&mut self, number: u64) -> Value {
        self.0.say(&json!({ "finish": number }).to_string());
        serde_json::from_str(&self.0.hear()).unwrap()
    }
}

/// The clients of the Python package, told what to do by `package.py`.
pub(crate) struct Packaged<const AWAITED: bool>(PlainPython);

pub(crate) type BlockingPython = Packaged<false>;
pub(crate) type AwaitedPython = Packaged<true>;

impl<const AWAITED: bool> Face for Packaged<AWAITED> {
    fn connect(server: &Server, name: &str, reader: u8) -> Self {
        let mode = if AWAITED { "awaited" } else { "blocking" };
        let script = packaged_python().program(&script("package.py")).arg(mode).server(server);
        let (process, input) = script.arg(name).arg(reader.to_string()).talk();
        Self(PlainPython(Talk { process, input }))
    }

    fn start(&mut self, number: u64, call: Call<'_>) {
        self.0.start(number, call);
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn finish(&mut self, number: u64) -> Value {
        self.0.finish(number)
    }
}

/// A client that knows nothing of the native protocol, nor of manyhands.
pub(crate) struct Classic(Talk);

impl Classic {
    pub(crate) fn connect(server: &Server, python: &Python) -> Self {
        let (process, input) = python.program(&script("classic.py")).server(server).talk();
        Self(Talk { process, input })
    }

    /// Puts what a Python expression says.
    pub(crate) fn put(&mut self, queue: &str, expression: &str) {
        self.0.say(&format!("put {queue} {expression}"));
        assert_eq!(self.0.hear(), "done");
    }

    /// Gets what a Python expression says, or the test fails.
    pub(crate) fn get(&mut self, queue: &str, expression: &str) {
        self.0.say(&format!("get {queue} {expression}"));
        assert_eq!(self.0.hear(), "same");
    }
}

#[test]
fn the_plain_client_is_short_enough_to_be_read() {
    let client = fs::read_to_string(script("client.py")).unwrap();
    assert!(client.lines().count() <= 150, "it is an example");
}

/// The Python that has the package.
///
/// # Panics
///
/// If nobody says which one that is.
fn packaged_python() -> Python {
    const NAME: &str = "MANYHANDS_PACKAGE_PYTHON";
    let hint = "names the Python that has the package; every_python.py builds it and sets this";
    let program = env::var_os(NAME).unwrap_or_else(|| panic!("{NAME} {hint}"));
    let python = Python::probe(Path::new(&program));
    python.unwrap_or_else(|| panic!("{NAME}: {} is no Python", program.display()))
}
