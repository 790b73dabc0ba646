//! The Python interpreters of this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An interpreter that runs.
#[derive(Debug)]
pub(crate) struct Python {
    /// Such as `3.12.1`.
    pub(crate) version: String,
    pub(crate) path: PathBuf,
}

/// Every CPython on PATH, and of pyenv, once per version, oldest first.
///
/// # Panics
///
/// If there is none: tests against Python would otherwise pass by doing nothing.
pub(crate) fn all() -> Vec<Python> {
    let mut found = BTreeMap::new();
    for path in candidates() {
        if let Some((order, version)) = version(&path) {
            found.entry(order).or_insert(Python { version, path });
        }
    }
    assert!(!found.is_empty(), "these tests need a CPython, 2.7 or 3.6 and later, on PATH");
    found.into_values().collect()
}

fn candidates() -> Vec<PathBuf> {
    let names = (6..30).map(|minor| format!("python3.{minor}"));
    let names: Vec<_> = names.chain(["python2.7".into(), "python3".into()]).collect();
    let mut paths = Vec::new();
    for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        paths.extend(names.iter().map(|name| folder.join(name)).filter(|path| path.is_file()));
    }
    let home = std::env::var_os("HOME").unwrap_or_default();
    for version in std::fs::read_dir(Path::new(&home).join(".pyenv/versions")).into_iter().flatten()
    {
        paths.extend(version.map(|version| version.path().join("bin/python")));
    }
    paths
}

/// The version as numbers and as text; `None` if this is not a CPython that we speak with.
fn version(path: &Path) -> Option<((u32, u32, u32), String)> {
    const SCRIPT: &str = "import platform; \
        print(platform.python_implementation() + ' ' + platform.python_version())";
    let output = Command::new(path).args(["-c", SCRIPT]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.trim().strip_prefix("CPython ")?;
    let mut numbers = version.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    });
    let order = (numbers.next()?, numbers.next()?, numbers.next()?);
    ((2, 7, 0) <= order).then(|| (order, version.to_owned()))
}
