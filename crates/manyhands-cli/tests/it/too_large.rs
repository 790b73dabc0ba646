//! An item that is larger than the server takes: whoever puts it learns both sizes and the option.

use manyhands::Error;
use manyhands::blocking::Client;

use crate::support::{KEY, Server, binary, for_each_python, pythons};

const OPTIONS: &[&str] = &["--frame-bytes-max", "100000", "--queue", "tasks"];
/// Length of the item, in bytes; its request is a little longer.
const LEN: usize = 300_000;

/// Says both numbers and what to do.
#[track_caller]
fn is_told(text: &str) {
    let numbers = text.split(|char: char| !char.is_ascii_digit());
    let mut numbers = numbers.filter_map(|digits| digits.parse().ok());
    assert!(numbers.any(|number| (LEN..LEN + 200).contains(&number)), "no size: {text}");
    assert!(text.contains("100000"), "no limit: {text}");
    assert!(text.contains("--frame-bytes-max"), "no option: {text}");
}

#[test]
fn a_stock_client_is_told_and_its_session_goes_on() {
    for_each_python(pythons(), |python| {
        let server = Server::with_options(OPTIONS);
        is_told(&python.script("too_large.py").server(&server).arg(LEN.to_string()).run());
    });
}

#[test]
fn the_rust_client_is_told_by_each_way_to_put() {
    let server = Server::with_options(OPTIONS);
    let address = format!("127.0.0.1:{}", server.port());
    let client = Client::connect(&address, KEY).expect("the server runs");
    let tasks = client.queue::<String>("tasks").expect("it is there");
    let item = "x".repeat(LEN);
    let told = |failure: Error| {
        assert!(
            matches!(&failure, Error::Remote { class, .. } if class == "ValueError"),
            "{failure:?}"
        );
        is_told(&failure.to_string());
    };
    told(tasks.put(&item).expect_err("it is too large"));
    told(tasks.put_many([&item]).expect_err("it is too large"));
    assert_eq!(tasks.qsize().ok(), Some(0));
    tasks.put(&"small".to_owned()).expect("the session goes on");
}

#[test]
fn the_command_is_told() {
    let server = Server::with_options(OPTIONS);
    let item = "x".repeat(LEN);
    let mut put = std::process::Command::new(binary());
    put.args(["put", "--connect", &format!("127.0.0.1:{}", server.port()), "--authkey-file"]);
    put.arg(server.key_file()).arg("tasks").stdin(std::process::Stdio::piped());
    put.stderr(std::process::Stdio::piped());
    let mut put = put.spawn().expect("it can be started");
    let mut input = put.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut input, item.as_bytes()).expect("it reads");
    drop(input);
    let output = put.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    is_told(&String::from_utf8_lossy(&output.stderr));
}
