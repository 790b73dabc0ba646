//! A manager whose queues are a fiction: a real handshake, then one fixed reply per method.
//!
//! Unmodified clients believe it, so it shows how fast they can go when the server has nothing to do.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha2::Sha256;
use tokio::net::TcpStream;

use crate::frame::{Framed, body, frame};

const CHALLENGE: &[u8] = b"#CHALLENGE#";
const WELCOME: &[u8] = b"#WELCOME#";
const SHA256: &[u8] = b"{sha256}";

/// `('#RETURN', None)`.
const NONE: &[u8] = b"\x80\x02U\x07#RETURNN\x86.";
/// `('#RETURN', 7)`: what every `get` and `qsize` finds.
const SEVEN: &[u8] = b"\x80\x02U\x07#RETURNK\x07\x86.";
/// `('#RETURN', ('q', ('get', 'put', 'qsize')))`: what every `create` finds.
const QUEUE: &[u8] = b"\x80\x02U\x07#RETURNU\x01q(U\x03getU\x03putU\x05qsizet\x86\x86.";

pub(crate) async fn serve(socket: TcpStream, key: &[u8]) -> Result<()> {
    let mut client = Framed::new(socket)?;
    authenticate(&mut client, key).await?;
    let (none, seven, queue) = (frame(NONE), frame(SEVEN), frame(QUEUE));
    let mut in_session = false;
    let mut replies = Vec::new();
    while let Some(request) = client.receive().await? {
        let request = body(&request);
        let reply = match method(&request).context("a request of unknown form")? {
            b"accept_connection" => {
                in_session = true;
                &none
            }
            b"create" => &queue,
            b"get" | b"qsize" => &seven,
            _ => &none,
        };
        replies.extend_from_slice(reply);
        // Those to requests that came together leave together.
        if !client.has_frame() {
            client.send(&replies).await?;
            replies.clear();
        }
        if !in_session {
            return Ok(());
        }
    }
    Ok(())
}

/// Challenges the client, then answers its challenge in the digest it asks for.
async fn authenticate(client: &mut Framed, key: &[u8]) -> Result<()> {
    let mut nonce = [0; 40];
    getrandom::fill(&mut nonce)?;
    let question = [SHA256, &nonce].concat();
    client.send(&frame(&[CHALLENGE, &question].concat())).await?;
    let answer = client.receive_in_handshake().await?;
    let right = match answer.strip_prefix(SHA256) {
        Some(digest) => digest == sha256(key, &question)?,
        None => answer == md5(key, &question)?,
    };
    if !right {
        bail!("the client has another key");
    }
    client.send(&frame(WELCOME)).await?;

    let challenge = client.receive_in_handshake().await?;
    let question = challenge.strip_prefix(CHALLENGE).context("the client does not challenge")?;
    let answer = if question.starts_with(SHA256) {
        [SHA256, &sha256(key, question)?].concat()
    } else {
        md5(key, question)?
    };
    client.send(&frame(&answer)).await?;
    if client.receive_in_handshake().await? != WELCOME {
        bail!("the client rejects our key");
    }
    Ok(())
}

fn md5(key: &[u8], question: &[u8]) -> Result<Vec<u8>> {
    Ok(Hmac::<Md5>::new_from_slice(key)?.chain_update(question).finalize().into_bytes().to_vec())
}

fn sha256(key: &[u8], question: &[u8]) -> Result<Vec<u8>> {
    Ok(Hmac::<Sha256>::new_from_slice(key)?.chain_update(question).finalize().into_bytes().to_vec())
}

/// The method's name in a request as a CPython client pickles it: a 4-tuple of ident, method, arguments, keywords.
fn method(request: &Bytes) -> Option<&[u8]> {
    let rest = request.strip_prefix(b"\x80")?.get(1..)?;
    let rest = rest.strip_prefix(b"\x95").and_then(|rest| rest.get(8..)).unwrap_or(rest);
    let rest = rest.strip_prefix(b"(")?;
    let rest = match rest.strip_prefix(b"N") {
        Some(rest) => rest,
        None => after_memo(text(rest)?.1),
    };
    Some(text(rest)?.0)
}

/// Splits a short text, in the opcode of any version, off the front.
fn text(pickle: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, header) = match pickle {
        [b'U' | b'\x8c', length, ..] => (usize::from(*length), 2),
        [b'X', length, 0, 0, 0, ..] => (usize::from(*length), 5),
        _ => return None,
    };
    pickle.get(header..)?.split_at_checked(length)
}

/// What follows an optional memo store.
fn after_memo(pickle: &[u8]) -> &[u8] {
    match pickle {
        [b'\x94', rest @ ..] | [b'q', _, rest @ ..] => rest,
        rest => rest,
    }
}
