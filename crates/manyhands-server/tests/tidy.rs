//! What the compiler does not enforce of the architecture.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

use std::collections::{BTreeMap, BTreeSet};
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

/// Who uses the journal: what turns changes into records, what opens the directory, and what says
/// why the server ended. Tests and the simulator look at it, too.
const USERS_OF_THE_JOURNAL: [&str; 4] = ["engine/persist", "data_dir", "error", "journal"];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source in `directory`, and in those below it.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn the_queue_is_pure() {
    let mut sources = sources(&src().join("queue"));
    sources.push(src().join("queue.rs"));
    assert!(sources.len() > 5, "the sources have moved: {sources:?}");
    for path in sources {
        let code = code(&path);
        for (number, line) in code.lines().enumerate() {
            let found = IMPURE.iter().find(|word| line.contains(**word));
            assert_eq!(found, None, "{}, line of code {number}: {line}", path.display());
        }
    }
}

#[test]
fn only_what_writes_records_and_what_opens_the_directory_know_the_journal() {
    let mut users = 0;
    for path in sources(&src()) {
        let module = path.strip_prefix(src()).unwrap().with_extension("");
        let is_user = USERS_OF_THE_JOURNAL.iter().any(|user| module.starts_with(user));
        if module.iter().any(|part| is_test(Path::new(part))) {
            continue;
        }
        let code = code(&path);
        let line = code.lines().find(|line| line.contains("crate::journal"));
        users += usize::from(is_user && line.is_some());
        assert!(is_user || line.is_none(), "{}: {line:?}", module.display());
    }
    assert!(users > 5, "the journal has moved");
}

/// The code of a module and of those below it, without tests.
fn code(path: &Path) -> String {
    if path.is_dir() {
        let inner = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        return inner.filter(|path| !is_test(path)).map(|path| code(&path)).collect();
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| ["tests", "sim", "simulated"].iter().any(|it| stem == *it))
}

/// The names that stand behind `prefix`, in braces or not.
fn named(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let list = rest.strip_prefix('{').map_or(rest, |list| list.split("};").next().unwrap());
        let mut depth = 0;
        let mut items = list.split(|char| {
            depth += i32::from(char == '{') - i32::from(char == '}');
            char == ',' && depth == 0
        });
        let count = if rest.starts_with('{') { usize::MAX } else { 1 };
        let is_name = |char: &char| char.is_alphanumeric() || *char == '_';
        let items = items.by_ref().take(count);
        names.extend(items.map(|item| item.trim().chars().take_while(is_name).collect()));
    }
    names
}

/// The modules in a directory that import each other, with what each imports. What `parent` exports
/// is of the module that it has it from.
fn circles(directory: &Path, parent: &Path, prefix: &str) -> BTreeMap<String, BTreeSet<String>> {
    let parent = code(parent);
    let mut imports: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !is_test(&path) && name != "lib" && name != "mod" {
            imports.entry(name).or_default().extend(named(&code(&path), prefix));
        }
    }
    let modules = imports.keys();
    let exports =
        modules.map(|module| (module.clone(), named(&parent, &format!("self::{module}::"))));
    let exports: Vec<_> = exports.collect();
    for imported in imports.values_mut() {
        let from = exports.iter().filter(|(_, names)| !names.is_disjoint(imported));
        let from: Vec<_> = from.map(|(module, _)| module.clone()).collect();
        imported.extend(from);
    }
    loop {
        let modules: BTreeSet<_> = imports.keys().cloned().collect();
        for (name, imported) in &mut imports {
            imported.retain(|other| other != name && modules.contains(other));
        }
        imports.retain(|_, imported| !imported.is_empty());
        if imports.len() == modules.len() {
            return imports;
        }
    }
}

#[test]
fn no_front_end_that_speaks_to_clients_knows_the_other() {
    let frontend = src().join("frontend");
    for (one, other) in [("native", "classic"), ("classic", "native")] {
        let mut sources = sources(&frontend.join(one));
        assert!(sources.len() > 5, "the sources have moved: {sources:?}");
        sources.push(frontend.join(one).with_extension("rs"));
        for path in sources {
            let code = code(&path);
            let line = code.lines().find(|line| line.contains(&format!("{other}::")));
            assert_eq!(line, None, "{}", path.display());
        }
    }
}

#[test]
fn no_two_modules_import_each_other() {
    let src = src();
    let circles_in = |directory: &str, parent: &str, prefix| {
        circles(&src.join(directory), &src.join(parent), prefix)
    };
    assert_eq!(circles_in("", "lib.rs", "crate::"), BTreeMap::new());
    assert_eq!(circles_in("queue", "queue.rs", "super::"), BTreeMap::new());
    assert_eq!(circles_in("journal", "journal/mod.rs", "super::"), BTreeMap::new());
}
