//! What the compiler does not enforce of the architecture.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// What the pure part of the server must not know.
const IMPURE: [&str; 9] = [
    "tokio",
    "std::fs",
    "std::net",
    "std::io",
    "std::thread",
    "async ",
    "Mutex",
    "Instant",
    "getrandom",
];

/// Who uses the journal: what turns changes into records, and what opens the directory. Tests and the
/// simulator look at it, too.
const USERS_OF_THE_JOURNAL: [&str; 3] = ["engine/persist", "data_dir.rs", "journal"];
const TESTS: [&str; 4] = ["tests", "sim", "simulated.rs", "tests.rs"];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source in `directory`, by its path from there.
fn sources(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            sources.extend(self::sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
    Ok(sources)
}

fn code(path: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(path)?;
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    Ok(lines.map(str::to_owned).collect())
}

#[test]
fn the_queue_is_pure() {
    let mut sources = sources(&src().join("queue")).unwrap();
    sources.push(src().join("queue.rs"));
    assert!(sources.len() > 5, "the sources have moved: {sources:?}");
    for path in sources {
        for (number, line) in code(&path).unwrap().iter().enumerate() {
            let found = IMPURE.iter().find(|word| line.contains(**word));
            assert_eq!(found, None, "{}, line of code {number}: {line}", path.display());
        }
    }
}

#[test]
fn only_what_writes_records_and_what_opens_the_directory_know_the_journal() {
    let mut users = 0;
    for path in sources(&src()).unwrap() {
        let within = path.strip_prefix(src()).unwrap();
        let is_user = USERS_OF_THE_JOURNAL
            .iter()
            .any(|user| within.starts_with(user) || within == Path::new(user).with_extension("rs"));
        let is_test = within.iter().any(|part| TESTS.iter().any(|test| part == *test));
        let line = code(&path).unwrap().into_iter().find(|line| line.contains("crate::journal"));
        users += usize::from(is_user && line.is_some());
        assert!(is_user || is_test || line.is_none(), "{}: {line:?}", within.display());
    }
    assert!(users > 5, "the journal has moved");
}
