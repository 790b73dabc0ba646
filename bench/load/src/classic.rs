//! CPython's protocol: a stock client's `put` and `get`, or the methods of `manyhands/1`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use manyhands::wire::auth::{self, AuthKey, Handshake};
use manyhands::wire::frame;
use manyhands::wire::pickle::{Limits, Value};
use manyhands::wire::request::{self, Answer, Parameter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::speaker::{Reply, Speaker, Step, To};

const QUEUE: &str = "get_task_queue";
/// What every successful reply says, manyhands after its protocol number, CPython a little later.
const RETURN: &[u8] = b"#RETURN";
/// How many bytes may stand in front of that.
const PREFIX_LEN_MAX: usize = 16;
/// Largest frame that is expected before the work begins, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What a session asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `put` and `get`, as every client may.
    Stock,
    /// Batches of them as well, which needs `manyhands/1`.
    Extension,
    /// `lease` and `ack`, which needs it too.
    Leases,
}

/// One session.
pub(crate) struct Manyhands {
    ident: String,
    kind: Kind,
}

/// Opens a session.
pub(crate) async fn connect(
    address: &str,
    key: &Path,
    kind: Kind,
) -> Result<(TcpStream, Manyhands)> {
    let key = AuthKey::new(std::fs::read(key).with_context(|| format!("read {}", key.display()))?);
    let create = request::encode(None, "create", &[Parameter::Text(QUEUE)]);
    let (_, created) = first_call(address, &key, &create).await?;
    let Value::Tuple(created) = created else { bail!("a queue without an ident") };
    let Some(Value::Str(ident)) = created.into_iter().next() else { bail!("no ident") };
    let name = if kind == Kind::Stock { "bench" } else { "manyhands/1 bench" };
    let accept = request::encode(None, "accept_connection", &[Parameter::Text(name)]);
    let (socket, _) = first_call(address, &key, &accept).await?;
    Ok((socket, Manyhands { ident, kind }))
}

/// Connects, authenticates and makes the first call.
async fn first_call(address: &str, key: &AuthKey, call: &[u8]) -> Result<(TcpStream, Value)> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut nonce = [0; auth::NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
    let mut handshake = Handshake::client(key.clone(), true, nonce);
    let mut inbound = BytesMut::new();
    let verdict = loop {
        match handshake.receive(&receive(&mut socket, &mut inbound).await?)? {
            auth::Step::Send(answer) => send(&mut socket, &[&answer]).await?,
            auth::Step::Done(verdict) => break verdict,
        }
    };
    send(&mut socket, &[verdict.unwrap_or_default(), call]).await?;
    let answer = Answer::decode(&receive(&mut socket, &mut inbound).await?, &Limits::default())?;
    ensure!(answer.kind == request::Kind::Return, "refused: {}", answer.text(&Limits::default()));
    Ok((socket, answer.value.value(&Limits::default())?))
}

async fn receive(socket: &mut TcpStream, inbound: &mut BytesMut) -> Result<Bytes> {
    loop {
        if let Some(message) = frame::split(inbound, ANSWER_BYTES_MAX)? {
            return Ok(message);
        }
        ensure!(socket.read_buf(inbound).await? > 0, "closed by the server");
    }
}

async fn send(socket: &mut TcpStream, messages: &[&[u8]]) -> Result<()> {
    let mut out = BytesMut::new();
    messages.iter().for_each(|message| frame::push(message, &mut out));
    Ok(socket.write_all(&out).await?)
}

impl Speaker for Manyhands {
    fn ask(&mut self, _: usize, token: &[u8], step: Step<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(b"\x80\x03(");
        text(self.ident.as_bytes(), out);
        match step {
            Step::Put(items, 1) => {
                text(b"put", out);
                out.push(b'(');
                object(items.make(), out);
            }
            Step::Put(items, count) => {
                text(b"put_many", out);
                out.extend_from_slice(b"(](");
                (0..count).for_each(|_| pickled(items.make(), out));
                out.push(b'e');
            }
            Step::Take(1) => {
                text(if self.kind == Kind::Leases { b"lease" } else { b"get" }, out);
                out.push(b'(');
            }
            Step::Take(count) => {
                text(b"get_many", out);
                out.extend_from_slice(b"(J");
                out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
            }
            Step::Settle => {
                text(b"ack", out);
                out.push(b'(');
                text(token, out);
            }
        }
        out.extend_from_slice(b"t}t.");
        let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out.get_mut(start..start + 4).unwrap_or_default().copy_from_slice(&length.to_be_bytes());
    }

    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>> {
        let Some((header, rest)) = inbound.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let value = (0..PREFIX_LEN_MAX).find_map(|at| body.get(at..)?.strip_prefix(RETURN));
        let value = value.with_context(|| format!("the server answers {}", body.escape_ascii()))?;
        Ok(Some(Reply { len: 4 + length, to: To::Oldest, receipt: token(value) }))
    }

    fn settles(&self) -> bool {
        self.kind == Kind::Leases
    }
}

/// The text that a tuple begins with: of a lease, its token.
fn token(value: &[u8]) -> &[u8] {
    let text = match value {
        [b'(', b'X', a, b, c, d, rest @ ..] => {
            rest.get(..u32::from_le_bytes([*a, *b, *c, *d]) as usize)
        }
        [b'(', b'U', length, rest @ ..] => rest.get(..usize::from(*length)),
        _ => None,
    };
    text.unwrap_or_default()
}

/// A short name, as Python 2 writes its `str`.
fn text(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'U', u8::try_from(text.len()).unwrap_or(u8::MAX)]);
    out.extend_from_slice(text);
}

/// A `bytes` object.
fn object(bytes: &[u8], out: &mut Vec<u8>) {
    object_header(bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn object_header(len: usize, out: &mut Vec<u8>) {
    match u8::try_from(len) {
        Ok(len) => out.extend_from_slice(&[b'C', len]),
        Err(_) => {
            out.push(b'B');
            out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        }
    }
}

/// A `bytes` object that holds the pickle of one.
fn pickled(bytes: &[u8], out: &mut Vec<u8>) {
    let header_len = if bytes.len() < 256 { 2 } else { 5 };
    object_header(2 + header_len + bytes.len() + 1, out);
    out.extend_from_slice(b"\x80\x03");
    object(bytes, out);
    out.push(b'.');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speaker::Items;

    #[test]
    fn a_lease_is_known_by_its_token() {
        let session = Manyhands { ident: "q1".into(), kind: Kind::Leases };
        let reply = b"\0\0\0\x1a\x80\x03U\x07#RETURN(X\x03\0\0\x000.1K\0K\x01C\0t\x86.";
        assert!(session.reply(&reply[..29]).unwrap().is_none());
        let reply = session.reply(reply).unwrap().unwrap();
        assert_eq!(reply, Reply { len: 30, to: To::Oldest, receipt: b"0.1" });
        assert!(session.reply(b"\0\0\0\x0b\x80\x02U\x06#ERRORN").is_err());
    }

    #[test]
    fn requests_are_frames_of_pickled_calls() {
        let mut session = Manyhands { ident: "q1".into(), kind: Kind::Leases };
        let (mut out, mut items) = (Vec::new(), Items::new(16).unwrap());
        session.ask(0, b"", Step::Put(&mut items, 1), &mut out);
        assert_eq!(out, b"\0\0\0\x23\x80\x03(U\x02q1U\x03put(C\x100000000000000000t}t.");
        out.clear();
        session.ask(0, b"", Step::Put(&mut items, 2), &mut out);
        let call = b"\x80\x03(U\x02q1U\x08put_many(](";
        let first = b"C\x15\x80\x03C\x100000000000000001.";
        let second = b"C\x15\x80\x03C\x100000000000000002.";
        assert_eq!(out[4..], [call.as_slice(), first, second, b"et}t."].concat());
    }
}
