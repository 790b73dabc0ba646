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

fn sources_of_the_queue() -> std::io::Result<Vec<PathBuf>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = vec![src.join("queue.rs")];
    for entry in fs::read_dir(src.join("queue"))? {
        sources.push(entry?.path());
    }
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    Ok(sources)
}

#[test]
fn the_queue_is_pure() {
    let sources = sources_of_the_queue().unwrap();
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
