//! What the compiler does not enforce of the architecture.

use std::fs;
use std::path::{Path, PathBuf};

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

fn sources_of_the_queue() -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let parts = fs::read_dir(src.join("queue")).unwrap().map(|entry| entry.unwrap().path());
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    parts.filter(is_source).chain([src.join("queue.rs")]).collect()
}

#[test]
fn the_queue_is_pure() {
    let sources = sources_of_the_queue();
    assert!(sources.len() > 5, "the sources have moved: {sources:?}");
    for path in sources {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for (number, line) in code.enumerate() {
            let found = IMPURE.iter().find(|word| line.contains(**word));
            assert_eq!(found, None, "{}, line of code {number}: {line}", path.display());
        }
    }
}
