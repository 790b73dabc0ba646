//! The Rust client against CPython's own manager servers, of every Python on this machine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod python;

use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use manyhands::blocking;
use manyhands::wire::pickle::{Limits, Payload};
use manyhands::{Client, ConnectOptions, Error, PutOptions, Taken, Value};

use python::{Server, pythons};

const SHORT: Duration = Duration::from_millis(20);
/// Long enough for any machine; nothing waits for its end unless it fails.
const LONG: Duration = Duration::from_secs(60);

fn text(text: &str) -> Value {
    Value::Str(text.to_owned())
}

fn ints(range: std::ops::Range<i64>) -> Vec<Value> {
    range.map(Value::Int).collect()
}

/// The same values as in `server.py`.
fn values() -> Vec<(&'static str, Value)> {
    let pair = Value::List(vec![text("a"), text("b")]);
    let inner = Value::Dict(vec![(text("x"), Value::None)]);
    vec![
        ("none", Value::None),
        ("true", Value::Bool(true)),
        ("false", Value::Bool(false)),
        ("zero", Value::Int(0)),
        ("byte", Value::Int(255)),
        ("short", Value::Int(65535)),
        ("negative", Value::Int(-1)),
        ("int", Value::Int((1 << 31) - 1)),
        ("long", Value::Int(1 << 31)),
        ("lowest", Value::Int(i64::MIN)),
        ("large", Value::int_from_le_bytes(&(1i128 << 64).to_le_bytes())),
        ("larger", Value::int_from_le_bytes(&(-1i128 << 70).to_le_bytes())),
        ("float", Value::Float(-1.5)),
        ("infinity", Value::Float(f64::INFINITY)),
        ("text", text("ä€😀 '\\n\\")),
        ("empty text", text("")),
        ("bytes", Value::Bytes(vec![0, 255])),
        ("many bytes", Value::Bytes(vec![255; 70_000])),
        ("bytearray", Value::ByteArray(vec![1, 255])),
        (
            "list",
            Value::List(vec![Value::Int(1), Value::List(vec![Value::Int(2), Value::List(vec![])])]),
        ),
        ("many items", Value::List(ints(0..2500))),
        ("shared items", Value::List(vec![pair.clone(), pair.clone(), pair])),
        ("no tuple", Value::Tuple(vec![])),
        ("tuple of 1", Value::Tuple(ints(1..2))),
        ("tuple of 2", Value::Tuple(vec![Value::Int(1), text("b")])),
        ("tuple of 3", Value::Tuple(ints(1..4))),
        ("tuple of 4", Value::Tuple([ints(1..4), vec![Value::Tuple(ints(4..5))]].concat())),
        ("dict", Value::Dict(vec![(text("a"), Value::Int(1))])),
        ("dict by number", Value::Dict(vec![(Value::Int(2), inner)])),
        ("set", Value::Set(ints(1..2))),
        ("frozenset", Value::FrozenSet(vec![text("a")])),
    ]
}

fn connect(server: &Server) -> blocking::Client {
    blocking::Client::connect(&server.address, Server::KEY).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn python_finds_what_rust_puts() {
    for python in pythons() {
        let server = Server::start(python);
        let client = connect(&server);
        let to_check = client.queue::<(String, Value)>("to_check").unwrap();
        let verdicts = client.queue::<(String, bool, String)>("verdicts").unwrap();
        for (name, value) in values() {
            to_check.put(&(name.to_owned(), value)).unwrap();
            let (judged, is_same, shown) = verdicts.get_timeout(LONG).unwrap();
            assert_eq!(judged, name);
            assert!(is_same, "{python}: {name} arrived as {shown}");
        }
    }
}

#[test]
fn rust_finds_what_python_puts() {
    for python in pythons() {
        let server = Server::start(python);
        let queue = connect(&server).queue::<(String, Value)>("values").unwrap();
        let mut found = 0;
        while let Ok((name, value)) = queue.try_get() {
            let expected = values().into_iter().find(|(known, _)| *known == name).unwrap();
            assert_eq!(value, expected.1, "{python}: {name}");
            found += 1;
        }
        assert_eq!(found, values().len(), "{python}");
    }
}

#[test]
fn pickles_of_every_protocol_are_read() {
    for python in pythons() {
        let server = Server::start(python);
        let queue = connect(&server).queue::<(String, u8, String)>("pickles").unwrap();
        let mut found = 0;
        while let Ok((name, protocol, hex)) = queue.try_get() {
            let (_, expected) = values().into_iter().find(|(known, _)| *known == name).unwrap();
            let digits: Vec<_> = hex.chars().map(|digit| digit.to_digit(16).unwrap()).collect();
            let pickle: Vec<_> = digits
                .chunks(2)
                .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
                .collect();
            let limits = Limits::default();
            let value = Payload::from_standalone(pickle.into(), &limits)
                .and_then(|payload| payload.value(&limits));
            assert_eq!(value, Ok(expected), "{python}, protocol {protocol}: {name}");
            found += 1;
        }
        assert!(found >= 3 * values().len(), "{python} wrote {found} pickles");
    }
}

#[test]
fn an_object_goes_through_rust_as_it_is() {
    for python in pythons() {
        let server = Server::start(python);
        let client = connect(&server);
        let object = client.queue::<Value>("objects").unwrap().get_payload(None).unwrap();
        let Ok(Value::Object(seen)) = object.value(&Limits::default()) else {
            panic!("{python}: not an object")
        };
        assert_eq!(seen.to_string(), "__main__.Task");

        // Put back, it is still what it was: as an item of its own it is read by type...
        let tasks = client.queue::<u64>("tasks").unwrap();
        tasks.put_payload(&object, None).unwrap();
        let error = tasks.try_get().unwrap_err();
        let Error::Item { payload, .. } = &error else { panic!("{python}: {error}") };
        assert!(error.to_string().contains("the Python object __main__.Task"), "{error}");

        // ... and inside a pair Python recognises it.
        let pair = manyhands::wire::pickle::Payload {
            codec: payload.codec,
            prelude_len: payload.prelude_len,
            bytes: [payload.prelude(), b"U\x06object", payload.object(), b"\x86"].concat().into(),
        };
        client.queue::<Value>("to_check").unwrap().put_payload(&pair, None).unwrap();
        let verdicts = client.queue::<(String, bool, String)>("verdicts").unwrap();
        let (_, is_same, shown) = verdicts.get_timeout(LONG).unwrap();
        assert!(is_same, "{python}: the object arrived as {shown}");
    }
}

/// Every verb, once; `$await` is `.await` or nothing.
macro_rules! exercise {
    ($client:ident, $witness:expr, $python:ident $(, $($await:tt)+)?) => {{
        let tasks = $client.queue::<u64>("tasks")$($($await)+)?.unwrap();
        assert!(tasks.is_empty()$($($await)+)?.unwrap());
        assert!(!tasks.is_full()$($($await)+)?.unwrap());
        tasks.put(&1)$($($await)+)?.unwrap();
        tasks.put_timeout(&2, LONG)$($($await)+)?.unwrap();
        tasks.try_put(&3)$($($await)+)?.unwrap();
        assert_eq!(tasks.qsize()$($($await)+)?.unwrap(), 3);
        assert_eq!(tasks.get()$($($await)+)?.unwrap(), 1);
        assert_eq!(tasks.get_timeout(LONG)$($($await)+)?.unwrap(), 2);
        assert_eq!(tasks.clone().try_get()$($($await)+)?.unwrap(), 3);
        assert!(tasks.try_get()$($($await)+)?.unwrap_err().is_empty());
        assert!(tasks.get_timeout(SHORT)$($($await)+)?.unwrap_err().is_empty());
        for _ in 0..3 {
            tasks.task_done()$($($await)+)?.unwrap();
        }
        tasks.join()$($($await)+)?.unwrap();
        let error = tasks.task_done()$($($await)+)?.unwrap_err();
        assert_eq!(error.to_string(), "ValueError: task_done() called too many times");

        let small = $client.queue::<Option<String>>("small")$($($await)+)?.unwrap();
        small.put(&Some("ä".to_owned()))$($($await)+)?.unwrap();
        assert!(small.is_full()$($($await)+)?.unwrap());
        assert!(small.try_put(&None)$($($await)+)?.unwrap_err().is_full());
        assert!(small.put_timeout(&None, SHORT)$($($await)+)?.unwrap_err().is_full());
        assert_eq!(small.get()$($($await)+)?.unwrap(), Some("ä".to_owned()));

        let ending = $client.queue::<u64>("ending")$($($await)+)?.unwrap();
        let shutdown = ending.shutdown(false)$($($await)+)?;
        if $python.version >= (3, 13) {
            shutdown.unwrap();
            assert!(ending.put(&1)$($($await)+)?.unwrap_err().is_shut_down());
            assert!(ending.get()$($($await)+)?.unwrap_err().is_shut_down());
        } else {
            let Err(Error::Remote { class, .. }) = shutdown else {
                panic!("{}: {shutdown:?}", $python)
            };
            assert_eq!(class, "KeyError", "{}", $python);
        }

        assert!($client.debug_info()$($($await)+)?.unwrap().contains("refcount="));
        let error = $client.queue::<u64>("nothing")$($($await)+)?.unwrap_err();
        let expected = format!("{}: no queue is called 'nothing'", $client.address());
        assert_eq!(error.to_string(), expected);

        let before = $client.number_of_objects()$($($await)+)?.unwrap();
        small.close()$($($await)+)?.unwrap();
        assert_eq!($client.number_of_objects()$($($await)+)?.unwrap(), before - 1);
        $client.close()$($($await)+)?.unwrap();
        let left = $witness.number_of_objects().unwrap();
        assert_eq!(left, before - 3, "{}: every reference is given back", $python);
        drop((tasks, ending));
        assert_eq!($witness.number_of_objects().unwrap(), left, "and only once");
    }};
}

#[test]
fn every_verb_means_what_it_means_in_python() {
    for python in pythons() {
        let server = Server::start(python);
        let client = connect(&server);
        exercise!(client, connect(&server), python);
    }
}

#[test]
fn every_async_verb_means_what_it_means_in_python() {
    for python in pythons() {
        let server = Server::start(python);
        runtime().block_on(async {
            let client = Client::connect(&server.address, Server::KEY).await.unwrap();
            exercise!(client, connect(&server), python, .await);
        });
    }
}

/// What Python's own server lacks, once; `$await` is `.await` or nothing.
macro_rules! exercise_extras {
    ($client:ident $(, $($await:tt)+)?) => {{
        let tasks = $client.queue::<u64>("tasks")$($($await)+)?.unwrap();
        assert_eq!(tasks.put_many(&[1, 2, 3])$($($await)+)?.unwrap(), 3);
        assert_eq!(tasks.get_many(2, Some(LONG))$($($await)+)?.unwrap(), [1, 2]);
        assert_eq!(tasks.get_many(2, None)$($($await)+)?.unwrap(), [3]);
        assert!(tasks.get_many(2, Some(SHORT))$($($await)+)?.unwrap_err().is_empty());
        let timed = PutOptions { timeout: Some(LONG), ..PutOptions::default() };
        assert!(tasks.put_with(&4, &timed)$($($await)+)?.unwrap());
        let taken = tasks.take_with_info(Some(LONG))$($($await)+)?.unwrap();
        assert_eq!(taken, Taken { item: 4, info: None });
        let keyed = PutOptions { key: Some(b"k".to_vec()), ..PutOptions::default() };
        let refused = [
            tasks.put_with(&5, &keyed)$($($await)+)?.unwrap_err(),
            tasks.lease(None)$($($await)+)?.unwrap_err(),
            tasks.redrive(1)$($($await)+)?.unwrap_err(),
            tasks.purge()$($($await)+)?.unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        }
        let small = $client.queue::<u64>("small")$($($await)+)?.unwrap();
        assert_eq!(small.put_many_timeout(&[1, 2], SHORT)$($($await)+)?.unwrap(), 1);
        assert!(small.put_many_timeout(&[2], SHORT)$($($await)+)?.unwrap_err().is_full());
        $client.close()$($($await)+)?.unwrap();
    }};
}

#[test]
fn verbs_that_python_lacks_become_plain_calls_or_are_refused() {
    for python in pythons() {
        let server = Server::start(python);
        let client = connect(&server);
        exercise_extras!(client);
        let server = Server::start(python);
        runtime().block_on(async {
            let client = Client::connect(&server.address, Server::KEY).await.unwrap();
            exercise_extras!(client, .await);
        });
    }
}

#[test]
fn a_dropped_queue_gives_its_reference_back() {
    for python in pythons() {
        let server = Server::start(python);
        let client = connect(&server);
        let before = client.number_of_objects().unwrap();
        let queue = client.queue::<u64>("tasks").unwrap();
        let clone = queue.clone();
        drop(queue);
        assert_eq!(client.number_of_objects().unwrap(), before + 1);
        drop(clone);
        assert_eq!(client.number_of_objects().unwrap(), before, "{python}");
    }
}

#[test]
fn a_worker_that_panics_does_not_take_leave() {
    let server = Server::start(pythons().last().unwrap());
    let client = connect(&server);
    let before = client.number_of_objects().unwrap();
    let worker = thread::scope(|scope| {
        let work = || {
            let _tasks = client.queue::<u64>("tasks").unwrap();
            std::panic::resume_unwind(Box::new("a worker's bug"));
        };
        scope.spawn(work).join()
    });
    assert!(worker.is_err());
    assert_eq!(client.number_of_objects().unwrap(), before + 1);
}

#[test]
fn a_wrong_key_is_refused_by_name() {
    for python in pythons() {
        let server = Server::start(python);
        let expected =
            format!("{}: authentication failed: the peer refused our authkey", server.address);
        let error = blocking::Client::connect(&server.address, b"another key").unwrap_err();
        assert_eq!(error.to_string(), expected, "{python}");
        let error = runtime().block_on(Client::connect(&server.address, b"another key"));
        assert_eq!(error.unwrap_err().to_string(), expected, "{python}");
    }
}

#[test]
fn an_address_without_a_server_is_an_error_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = blocking::Client::connect(&address, b"key").unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().starts_with(&format!("cannot connect to {address}: ")), "{error}");
    let error = runtime().block_on(Client::connect(&address, b"key")).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[test]
fn a_silent_server_is_an_error_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let options = || ConnectOptions { connect_timeout: SHORT, ..ConnectOptions::default() };
    let error = blocking::Client::connect_with(&address, b"key", options()).unwrap_err();
    assert_eq!(error.to_string(), format!("{address}: no answer within 20ms"));
    let connecting = Client::connect_with(&address, b"key", options());
    let error = runtime().block_on(connecting).unwrap_err();
    assert_eq!(error.to_string(), format!("{address}: no answer within 20ms"));
}

#[cfg(unix)]
#[test]
fn a_unix_socket_is_a_server_too() {
    for python in pythons() {
        let server = Server::start_at_socket(python);
        let address = format!("unix:{}", server.address);
        let client = blocking::Client::connect(&address, Server::KEY).unwrap();
        let tasks = client.queue::<u64>("tasks").unwrap();
        tasks.put(&5).unwrap();
        assert_eq!(client.address().to_string(), address);
        runtime().block_on(async {
            let client = Client::connect(&address, Server::KEY).await.unwrap();
            let tasks = client.queue::<u64>("tasks").await.unwrap();
            assert_eq!(tasks.get().await.unwrap(), 5, "{python}");
        });
    }
}

#[test]
fn a_killed_server_ends_a_waiting_get() {
    for python in pythons() {
        let mut server = Server::start(python);
        let tasks = connect(&server).queue::<u64>("tasks").unwrap();
        assert!(tasks.is_empty().unwrap());
        let (ended, end) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| ended.send(tasks.get()).unwrap());
            server.kill();
            let error = end.recv_timeout(LONG).unwrap().unwrap_err();
            assert!(error.is_retryable(), "{python}: {error}");
        });
    }
}

#[test]
fn closing_a_client_ends_the_calls_of_its_clones() {
    for python in pythons() {
        let server = Server::start(python);
        let client = connect(&server);
        let tasks = client.queue::<u64>("tasks").unwrap();
        let (ended, end) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| ended.send(tasks.get()).unwrap());
            client.close().unwrap();
            let error = end.recv_timeout(LONG).unwrap().unwrap_err();
            assert!(matches!(error, Error::Closed { .. }), "{python}: {error}");
        });
        for error in [tasks.put(&1).unwrap_err(), client.queue::<u64>("tasks").unwrap_err()] {
            assert_eq!(error.to_string(), format!("{}: the client was closed", server.address));
        }
        client.close().unwrap();
    }
}

#[test]
fn closing_an_async_client_ends_the_calls_of_its_clones() {
    for python in pythons() {
        let server = Server::start(python);
        runtime().block_on(async {
            let client = Client::connect(&server.address, Server::KEY).await.unwrap();
            let tasks = client.queue::<u64>("tasks").await.unwrap();
            assert!(tasks.is_empty().await.unwrap());
            let both = async { tokio::join!(tasks.get(), client.close()) };
            let (got, closed) = tokio::time::timeout(LONG, both).await.unwrap();
            closed.unwrap();
            let error = got.unwrap_err();
            assert!(matches!(error, Error::Closed { .. }), "{python}: {error}");
            let error = client.queue::<u64>("tasks").await.unwrap_err();
            assert!(matches!(error, Error::Closed { .. }), "{python}: {error}");
        });
    }
}

#[test]
fn a_reference_that_cannot_be_given_back_is_kept() {
    let mut server = Server::start(pythons().last().unwrap());
    runtime().block_on(async {
        let client = Client::connect(&server.address, Server::KEY).await.unwrap();
        drop(client.queue::<u64>("tasks").await.unwrap());
        server.kill();
        for _again in 0..2 {
            let error = client.close().await.unwrap_err();
            assert!(matches!(error, Error::Connect { .. }), "it is not forgotten: {error}");
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_unix_socket_is_an_error_in_time() {
    let path = std::env::temp_dir().join(format!("manyhands-full-{}", std::process::id()));
    let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
    let listener = listener.unwrap();
    listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let address = format!("unix:{}", path.display());
    let options = ConnectOptions { connect_timeout: SHORT, ..ConnectOptions::default() };
    let (ended, end) = mpsc::channel();
    let connecting = address.clone();
    thread::spawn(move || {
        ended.send(blocking::Client::connect_with(&connecting, b"key", options)).unwrap();
    });
    let error = end.recv_timeout(LONG).unwrap().unwrap_err();
    assert_eq!(error.to_string(), format!("{address}: no answer within 20ms"));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_client_finds_a_restarted_server_again() {
    for python in pythons() {
        let mut server = Server::start(python);
        let client = connect(&server);
        client.queue::<u64>("tasks").unwrap().put(&1).unwrap();
        server.kill();
        let server = Server::start_at(python, &server.address);
        let tasks = client.queue::<u64>("tasks").unwrap();
        assert_eq!(tasks.qsize().unwrap(), 0, "{python} at {}", server.address);
    }
}

#[test]
fn threads_share_a_queue_without_losing_an_item() {
    const ITEMS: u64 = 60;
    let python = pythons().last().unwrap();
    let server = Server::start(python);
    let tasks = connect(&server).queue::<u64>("tasks").unwrap();
    let mut taken: Vec<u64> = thread::scope(|scope| {
        let takers: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| (0..ITEMS / 6).map(|_| tasks.get().unwrap()).collect::<Vec<_>>())
            })
            .collect();
        for item in 0..ITEMS {
            tasks.put(&item).unwrap();
        }
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
    });
    taken.sort_unstable();
    assert_eq!(taken, (0..ITEMS).collect::<Vec<_>>());
}

#[test]
fn a_cancelled_call_does_not_mistake_replies() {
    for python in pythons() {
        let server = Server::start(python);
        runtime().block_on(async {
            let client = Client::connect(&server.address, Server::KEY).await.unwrap();
            let tasks = client.queue::<u64>("tasks").await.unwrap();
            assert_eq!(tasks.qsize().await.unwrap(), 0, "and a session is open now");
            tokio::select! {
                biased;
                item = tasks.get() => panic!("{python}: {item:?} out of nothing"),
                () = std::future::ready(()) => {}
            }
            // CPython's server may give an item to the call that nobody waits for any more, but
            // none of its replies is taken for another's.
            tasks.put(&10).await.unwrap();
            tasks.put(&20).await.unwrap();
            let left = tasks.qsize().await.unwrap();
            assert!((1..=2).contains(&left), "{python}: {left} items");
            let item = tasks.get().await.unwrap();
            assert!([10, 20].contains(&item), "{python}: item {item}");
        });
    }
}
