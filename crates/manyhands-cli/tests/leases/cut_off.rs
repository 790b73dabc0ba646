//! A worker whose connection is cut while its process goes on, and that puts its result after all.

use super::*;
use crate::support::{KEY, Key};

/// Only results of tasks may be put to this queue of results.
const WORKERS_ONLY: &[&str] = &[STRICT_SOON[0], "results,unasked=refuse"];
/// Tasks come back without a pause, those of a thread that ended soon.
const STRICT_SOON: &[&str] = &["tasks,results=results,backoff=0,lease=2"];

/// When the worker comes back.
#[derive(Debug, Clone, Copy)]
enum When {
    /// Before the server has decided what becomes of its task.
    AtOnce,
    /// When the task has been given back.
    GivenBack,
    /// When somebody else has taken it.
    TakenByAnother,
}

/// Lets a worker be cut off with its second task in hand, and come back to put the result. Says
/// what it was told, which tasks are ready then, and what is in the queue of results.
fn come_back(python: &Python, queues: &[&str], way: &str, when: When) -> (Value, Value, Value) {
    let server = filled(python, queues);
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let signal = |name: &str| std::fs::write(dir.path().join(name), "").expect("it can be written");
    let path = dir.path().to_str().expect("a plain path");
    let mut worker = took(script(python, &server, way, &[path]), json!(1));
    said(&mut worker, "cut");
    let mut other = None;
    if !matches!(when, When::AtOnce) {
        wait_for_verdicts(&server);
    }
    if matches!(when, When::TakenByAnother) {
        other = Some(took(script(python, &server, "work_for_ever", &[]), json!(1)));
    }
    signal("go");
    let mut told: Value =
        serde_json::from_str(&worker.line().expect("it is told something")).expect("JSON");
    drop(other);
    let ready = settled(python, &server);
    let results = drain(python, &server, "results");
    signal("end");
    worker.finish();
    if let Some(refused) = told["refused"].as_str() {
        told = json!({ "refused": refused.lines().last() });
    }
    (told, ready, results)
}

#[test]
fn the_result_of_a_worker_that_was_cut_off_is_kept_once_and_its_task_is_not_done_again() {
    let kept = |python: &Python, way: &str| {
        for when in [When::AtOnce, When::GivenBack] {
            let (told, ready, results) = come_back(python, STRICT_SOON, way, when);
            assert_eq!(told, json!({ "answered": 1 }), "{way}, {when:?}");
            assert_eq!((ready, results), (json!([2]), json!([0, 1])), "{way}, {when:?}");
        }
    };
    for_each_python(pythons(), |python| kept(python, "cut_off"));
    kept(newest_python(), "cut_off_thread");
}

#[test]
fn the_result_of_a_task_that_somebody_else_has_by_now_is_refused() {
    for way in ["cut_off", "cut_off_thread"] {
        let (told, ready, results) =
            come_back(newest_python(), STRICT_SOON, way, When::TakenByAnother);
        assert!(told["refused"].is_string(), "{way}: {told}");
        // The other one was killed over it.
        assert_eq!((ready, results), (json!([1, 2]), json!([0])), "{way}");
    }
}

#[test]
fn a_worker_that_comes_back_with_new_proxies_is_not_known_and_unasked_keeps_one_result() {
    let (python, way) = (newest_python(), "cut_off_manager");
    let (told, ready, results) = come_back(python, STRICT_SOON, way, When::GivenBack);
    assert_eq!(told, json!({ "answered": 1 }));
    assert_eq!((ready, results), (json!([1, 2]), json!([0, 1])), "two results in the end");
    let (told, ready, results) = come_back(python, WORKERS_ONLY, way, When::GivenBack);
    assert!(told["refused"].is_string(), "{told}");
    assert_eq!((ready, results), (json!([1, 2]), json!([0])), "one result in the end");
}

/// Between the get and the put of a worker the server is killed and started on what it has on disk.
/// Says how the worker failed, what it was told, which tasks are ready, and which results there are.
fn survive_a_restart(queues: &[&str]) -> (Vec<Value>, Value, Value, Value) {
    let python = newest_python();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let data = dir.path().join("data");
    let mut options = vec!["--data", data.to_str().expect("a plain path")];
    options.extend(queues.iter().flat_map(|queue| ["--queue", queue]));
    let serve = |port| {
        let address = format!("127.0.0.1:{port}");
        Server::at(&address, Key::Bytes(KEY), &options).unwrap_or_else(|why| panic!("{why}"))
    };
    let server = serve(0);
    fill(python, &server, TASKS);
    let signal = |name: &str| std::fs::write(dir.path().join(name), "").expect("it can be written");
    let path = dir.path().to_str().expect("a plain path");
    let mut worker = took(script(python, &server, "restarted", &[path]), json!(1));
    let port = server.port();
    drop(server);
    let server = serve(port);
    signal("go");
    let failed = (0..3).map(|_| said(&mut worker, "failed")).collect();
    let line = worker.line().expect("it is told something");
    let mut told: Value = serde_json::from_str(&line).expect("scripts say JSON");
    if let Some(refused) = told["refused"].as_str() {
        told = json!({ "refused": refused.lines().last() });
    }
    let ready = settled(python, &server);
    let results = drain(python, &server, "results");
    signal("end");
    worker.finish();
    (failed, told, ready, results)
}

#[test]
fn after_a_restart_no_worker_is_known_and_unasked_keeps_one_result() {
    let (failed, told, ready, results) = survive_a_restart(STRICT_SOON);
    // Its session is gone, then Python's connection is broken, then its reference is unknown.
    assert_eq!(failed.len(), 3, "it can only go on with new proxies: {failed:?}");
    assert_eq!(failed[2], json!("RemoteError"), "{failed:?}");
    assert_eq!(told, json!({ "answered": 1 }));
    assert_eq!((ready, results), (json!([1, 2]), json!([0, 1])), "two results in the end");
    let (_, told, ready, results) = survive_a_restart(WORKERS_ONLY);
    assert!(told["refused"].is_string(), "{told}");
    assert_eq!((ready, results), (json!([1, 2]), json!([0])), "one result in the end");
}
