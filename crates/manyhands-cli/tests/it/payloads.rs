//! Items that are no pickles: a Rust program puts JSON and bytes, and every Python gets a `str` and
//! `bytes`.

use std::path::Path;
use std::process::Command;

use manyhands::Peek;
use manyhands::wire::pickle::{Codec, Payload};
use manyhands_server::{QueueOptions, Server};

use crate::support::{KEY, binary, for_each_python, pythons, write_secret};

const JSON: &str = "{\"name\": \"ä\", \"n\": 7}";

fn start(data: Option<&Path>) -> Server {
    let builder = Server::builder()
        .address("127.0.0.1:0")
        .authkey(KEY)
        .queue("tasks", QueueOptions::default())
        .queue("sorted", QueueOptions::priority())
        .queue("results", QueueOptions::default());
    let builder = if let Some(data) = data { builder.data(data) } else { builder };
    builder.start().expect("it starts")
}

fn payloads() -> [Payload; 4] {
    let bytes = |bytes: &[u8]| Payload::bytes(bytes).expect("they are few");
    let json = Payload::json(JSON).expect("it is short");
    [json, bytes(b"\0\xff"), bytes(b""), bytes(&b"\0\xff".repeat(100_000))]
}

fn put(server: &Server) {
    let put = |queue: &str, payload: &Payload| {
        let queue = server.queue::<u64>(queue).expect("it is declared");
        queue.put_payload(payload, None).expect("there is room");
    };
    payloads().iter().for_each(|payload| put("tasks", payload));
    for value in [b"b", b"a"] {
        put("sorted", &Payload::bytes(value).expect("it is short"));
    }
}

#[test]
fn every_python_gets_a_str_of_json_and_bytes_of_bytes_also_after_a_restart() {
    let home = tempfile::tempdir().expect("there is room");
    let key_file = home.path().join("key");
    write_secret(&key_file, KEY);
    for_each_python(pythons(), |python| {
        for data in [None, Some(home.path().join(python.name()))] {
            let mut server = start(data.as_deref());
            put(&server);
            if data.is_some() {
                server.stop().expect("it stops");
                server = start(data.as_deref());
            }
            let address = server.addresses()[0].to_string();
            let port = address.rsplit(':').next().unwrap_or_default();
            python.script("payloads.py").arg(port).arg(&key_file).run();
            let results = server.queue::<u64>("results").expect("it is declared");
            assert_eq!(results.try_get().expect("the script put it"), 49);
            server.stop().expect("it stops");
            if let Some(data) = data {
                let mut dump = Command::new(binary());
                let shown = dump.args(["journal", "dump", "--json"]).arg(data).output();
                let shown = String::from_utf8(shown.expect("it runs").stdout).unwrap_or_default();
                let number = |codec: &str| shown.matches(&format!("\"codec\":\"{codec}\"")).count();
                assert_eq!(
                    (number("json"), number("bytes"), number("pickle")),
                    (1, 5, 1),
                    "{shown}"
                );
            }
        }
    });
}

#[test]
fn a_rust_program_gets_them_as_they_were_put() {
    let server = start(None);
    put(&server);
    let tasks = server.queue::<String>("tasks").expect("it is declared");
    for payload in payloads() {
        let got = tasks.get_payload(None).expect("it is there");
        assert_eq!((got.codec, got.content()), (payload.codec, payload.content()));
    }
    tasks.put_payload(&payloads()[0], None).expect("there is room");
    assert_eq!(tasks.get().expect("a str is a String"), JSON);

    let client = manyhands::blocking::Client::connect(&server.addresses()[0].to_string(), KEY);
    let remote = client.expect("it runs").queue::<String>("tasks").expect("it is declared");
    tasks.put_payload(&payloads()[0], None).expect("there is room");
    for peek in [remote.peek(Peek::default()), tasks.peek(Peek::default())] {
        let item = peek.expect("it is there").remove(0).item.expect("it was asked for");
        assert_eq!((item.codec, item.content()), (Codec::Json, JSON.into()));
    }
    let key_file = tempfile::NamedTempFile::new().expect("there is room");
    write_secret(key_file.path(), KEY);
    let mut peek = Command::new(binary());
    peek.args(["peek", "tasks", "--connect", &server.addresses()[0].to_string(), "--authkey-file"]);
    let shown = peek.arg(key_file.path()).output().expect("it runs").stdout;
    let shown = String::from_utf8(shown).unwrap_or_default();
    assert!(shown.contains(JSON) && shown.contains("attempt 1, json"), "{shown}");
    assert_eq!(remote.get().expect("a str is a String"), JSON);
    // What a client puts stays what it is, too.
    for payload in payloads() {
        remote.put_payload(&payload, None).expect("there is room");
        for queue_of in ["the program", "a client"] {
            let got = match queue_of {
                "the program" => tasks.get_payload(None).expect("it is there"),
                _ => remote.get_payload(None).expect("it is there"),
            };
            assert_eq!(
                (got.codec, got.content()),
                (payload.codec, payload.content()),
                "{queue_of}"
            );
            remote.put_payload(&got, None).expect("there is room");
        }
        tasks.get_payload(None).expect("it is there");
    }
}
