//! Arguments that we cut out of requests load, in the Python that pickled them, as what was put in.
//!
//! `oracle.py` pickles random calls and checks our answers; this side scans and cuts. More calls:
//! `MANYHANDS_ORACLE_CALLS`; the calls of an earlier run: `MANYHANDS_ORACLE_SEED`.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use bytes::{Bytes, BytesMut};
use manyhands::wire::pickle::{Argument, Atom, Call, Limits, Payload, PickleError};

use crate::pythons::{self, Python};

const CALLS: &str = "200";

#[test]
fn arguments_load_as_they_were_put_in_every_python() {
    let calls = std::env::var("MANYHANDS_ORACLE_CALLS").unwrap_or(CALLS.into());
    let seed = std::env::var("MANYHANDS_ORACLE_SEED").unwrap_or_else(|_| random_seed());
    for python in pythons::all() {
        println!("Python {}: {calls} calls, seed {seed}", python.version);
        check(&python, &calls, &seed);
    }
}

fn random_seed() -> String {
    getrandom::u32().expect("the system has random numbers").to_string()
}

fn check(python: &Python, calls: &str, seed: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/oracle.py");
    let mut child = Command::new(&python.path)
        .args([script, calls, seed])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut requests = child.stdout.take().expect("stdout is a pipe");
    let mut answers = child.stdin.take().expect("stdin is a pipe");
    // An error here means that Python gave up; it says why on its standard error.
    while let Ok(request) = read_block(&mut requests) {
        let mut answer = Vec::new();
        match answer_to(request) {
            Ok(blocks) => blocks.iter().for_each(|block| push_block(block, &mut answer)),
            Err(error) => push_block(format!("error: {error}").as_bytes(), &mut answer),
        }
        if answers.write_all(&answer).is_err() {
            break;
        }
    }
    drop(answers);
    let status = child.wait().expect("Python ends");
    assert!(status.success(), "Python {} disagrees, see above; seed {seed}", python.version);
}

/// What we make of a request: the number of blocks that follow, ident, method, and four blocks per
/// argument.
fn answer_to(request: Bytes) -> Result<Vec<Bytes>, PickleError> {
    let limits = Limits::default();
    let call = Call::parse(request, &limits)?;
    let ident = call.ident().unwrap_or_default().to_owned();
    let mut blocks = vec![Bytes::from(ident), Bytes::from(call.method().to_owned())];
    let positional = call.args().iter().map(|argument| ("", *argument));
    for (name, argument) in positional.chain(call.kwargs()) {
        blocks.push(Bytes::from(name.to_owned()));
        blocks.extend(renderings(&call, &argument, &limits)?);
    }
    blocks.insert(0, Bytes::from(blocks.len().to_string()));
    Ok(blocks)
}

/// The argument as a pickle of its own, as a reply, and as an atom.
fn renderings(
    call: &Call,
    argument: &Argument,
    limits: &Limits,
) -> Result<[Bytes; 3], PickleError> {
    let payload = call.payload(argument, limits)?;
    let mut reply = BytesMut::new();
    payload.write_reply(&mut reply);
    let standalone = payload.standalone();
    let again = Payload::from_standalone(standalone.clone(), limits)?;
    assert!(again.standalone().len() <= standalone.len());
    let mut reply_again = BytesMut::new();
    again.write_reply(&mut reply_again);
    // Half of the replies take the way through a file.
    let reply = if reply.len().is_multiple_of(2) { reply } else { reply_again };
    Ok([standalone, reply.freeze(), rendered(call.atom(argument))])
}

fn rendered(atom: Option<Atom>) -> Bytes {
    match atom {
        None => Bytes::new(),
        Some(Atom::None) => Bytes::from_static(b"None"),
        Some(Atom::Bool(value)) => Bytes::from(format!("bool {}", u8::from(value))),
        Some(Atom::Int(value)) => Bytes::from(format!("int {value}")),
        Some(Atom::Float(value)) => Bytes::from(format!("float {:016x}", value.to_bits())),
        Some(Atom::Text(value)) => Bytes::from(format!("text {value}")),
        Some(Atom::Bytes(value)) => Bytes::from([b"bytes ", &value[..]].concat()),
    }
}

fn read_block(from: &mut impl Read) -> io::Result<Bytes> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let mut block = vec![0; u32::from_be_bytes(len).try_into().expect("a block fits memory")];
    from.read_exact(&mut block)?;
    Ok(block.into())
}

fn push_block(block: &[u8], to: &mut Vec<u8>) {
    to.extend(u32::try_from(block.len()).expect("a block is small").to_be_bytes());
    to.extend(block);
}
