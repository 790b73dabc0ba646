//! What one version of Python puts, every other version gets.
//!
//! CPython's own server cannot do this: it answers in its own pickle protocol. Only a Python 2 cannot
//! read what a Python 3 pickled; it is told so, and the item stays for others.

use serde_json::Value;

use crate::support::{Python, Server, announce, for_each_python, newest_python, pythons};

#[test]
fn every_version_gets_what_every_other_version_put() {
    let server = Server::with_options(&[]);
    let pythons = pythons();
    if pythons.len() < 2 {
        announce("one Python only: items between versions are not tested");
    }
    for_each_python(pythons, |python| {
        talk(python, &server, "put", python);
    });
    for_each_python(pythons, |python| {
        for (sender, saw, left) in talk(python, &server, "get", python) {
            if python.is_2() && sender != "2.7" {
                assert_is_refused_clearly(&saw);
                assert_eq!(left, 1, "what {sender} put stays for others");
            } else {
                assert_eq!((saw.as_str(), left), ("equal", 0), "what {sender} put");
            }
        }
    });
    for python in pythons.iter().filter(|python| python.is_2() && !newest_python().is_2()) {
        let left_over = talk(newest_python(), &server, "get", python);
        for (sender, saw, _) in left_over.iter().filter(|(sender, ..)| sender != "2.7") {
            assert_eq!(saw, "equal", "what {sender} put for Python 2, got by Python 3");
        }
    }
}

/// Puts or gets, on `python`, the items between `subject` and all versions: sender, what was seen, items left.
fn talk(
    python: &Python,
    server: &Server,
    role: &str,
    subject: &Python,
) -> Vec<(String, String, u64)> {
    let script = python.script("mixed.py").arg(role).server(server).arg(subject.name());
    let output = pythons().iter().fold(script, |script, other| script.arg(other.name())).run();
    output
        .lines()
        .map(|line| {
            let said: Value = serde_json::from_str(line).expect("scripts say JSON");
            let text = |field: &str| said[field].as_str().expect("a text").to_owned();
            (text("sender"), text("saw"), said["left"].as_u64().expect("a count"))
        })
        .collect()
}

fn assert_is_refused_clearly(saw: &str) {
    let is_clear = saw.contains("cannot read") && saw.contains("stays in the queue");
    assert!(saw.starts_with("raised ") && is_clear, "no clear refusal: {saw}");
}
