//! The handshake of manyhands' port, and the first message after it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use manyhands::wire::auth::{self, AuthKey, Handshake};
use manyhands::wire::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Largest message that is expected, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

pub(crate) fn read_key(file: &Path) -> Result<AuthKey> {
    Ok(AuthKey::new(std::fs::read(file).with_context(|| format!("read {}", file.display()))?))
}

/// Connects, authenticates and sends a first message; returns the answer to it.
pub(crate) async fn first_message(
    address: &str,
    key: &AuthKey,
    message: &[u8],
) -> Result<(TcpStream, Bytes)> {
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
    send(&mut socket, &[verdict.unwrap_or_default(), message]).await?;
    let answer = receive(&mut socket, &mut inbound).await?;
    Ok((socket, answer))
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
