//! CPython's protocol: a stock client's `put` and `get`.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use manyhands::wire::auth::AuthKey;
use manyhands::wire::pickle::{Limits, Value};
use manyhands::wire::request::{self, Answer, Parameter};
use tokio::net::TcpStream;

use crate::login;
use crate::speaker::{Reply, Speaker, Step, To};

const QUEUE: &str = "get_task_queue";
/// What every successful reply says, manyhands after its protocol number, CPython a little later.
const RETURN: &[u8] = b"#RETURN";
/// How many bytes may stand in front of that.
const PREFIX_LEN_MAX: usize = 16;

/// One session.
pub(crate) struct Classic {
    ident: String,
}

/// Opens a session.
pub(crate) async fn connect(address: &str, key: &Path) -> Result<(TcpStream, Classic)> {
    let key = login::read_key(key)?;
    let create = request::encode(None, "create", &[Parameter::Text(QUEUE)]);
    let (_, created) = first_call(address, &key, &create).await?;
    let Value::Tuple(created) = created else { bail!("a queue without an ident") };
    let Some(Value::Str(ident)) = created.into_iter().next() else { bail!("no ident") };
    let accept = request::encode(None, "accept_connection", &[Parameter::Text("bench")]);
    let (socket, _) = first_call(address, &key, &accept).await?;
    Ok((socket, Classic { ident }))
}

async fn first_call(address: &str, key: &AuthKey, call: &[u8]) -> Result<(TcpStream, Value)> {
    let (socket, answer) = login::first_message(address, key, call).await?;
    let answer = Answer::decode(&answer, &Limits::default())?;
    ensure!(answer.kind == request::Kind::Return, "refused: {}", answer.text(&Limits::default()));
    Ok((socket, answer.value.value(&Limits::default())?))
}

impl Speaker for Classic {
    /// It has neither batches nor settlements.
    fn ask(&mut self, _: usize, _: &[u8], step: Step<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(b"\x80\x03(");
        text(self.ident.as_bytes(), out);
        match step {
            Step::Put(items, _) => {
                text(b"put", out);
                out.push(b'(');
                object(items.make(), out);
            }
            Step::Take(_) | Step::Settle => {
                text(b"get", out);
                out.push(b'(');
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
        let is_good = (0..PREFIX_LEN_MAX)
            .any(|at| body.get(at..).is_some_and(|value| value.starts_with(RETURN)));
        ensure!(is_good, "the server answers {}", body.escape_ascii());
        Ok(Some(Reply { len: 4 + length, to: To::Oldest, receipt: b"" }))
    }

    fn settles(&self) -> bool {
        false
    }
}

/// A short name, as Python 2 writes its `str`.
fn text(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'U', u8::try_from(text.len()).unwrap_or(u8::MAX)]);
    out.extend_from_slice(text);
}

/// A `bytes` object.
fn object(bytes: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(bytes.len()) {
        Ok(len) => out.extend_from_slice(&[b'C', len]),
        Err(_) => {
            out.push(b'B');
            out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speaker::Items;

    #[test]
    fn a_reply_is_a_success_or_an_error() {
        let session = Classic { ident: "q1".into() };
        let reply = b"\0\0\0\x0c\x80\x03U\x07#RETURNN";
        assert!(session.reply(&reply[..15]).unwrap().is_none());
        let reply = session.reply(reply).unwrap().unwrap();
        assert_eq!(reply, Reply { len: 16, to: To::Oldest, receipt: b"" });
        assert!(session.reply(b"\0\0\0\x0b\x80\x02U\x06#ERRORN").is_err());
    }

    #[test]
    fn requests_are_frames_of_pickled_calls() {
        let mut session = Classic { ident: "q1".into() };
        let (mut out, mut items) = (Vec::new(), Items::new(16).unwrap());
        session.ask(0, b"", Step::Put(&mut items, 1), &mut out);
        assert_eq!(out, b"\0\0\0\x23\x80\x03(U\x02q1U\x03put(C\x100000000000000000t}t.");
    }
}
