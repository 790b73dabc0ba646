//! Length-prefixed frames on a socket whose options keep an unmodified client from stalling.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of the length in front of every frame.
const HEADER_LEN: usize = 4;
/// Room for a read, in bytes, so that a small frame takes one.
const ROOM: usize = 16 << 10;

/// A socket that carries frames.
pub(crate) struct Framed {
    socket: TcpStream,
    inbound: BytesMut,
}

impl Framed {
    pub(crate) fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        acknowledge_at_once(&socket)?;
        Ok(Self { socket, inbound: BytesMut::new() })
    }

    /// Receives the next frame with its header; `None` once the peer has left.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(frame) = split(&mut self.inbound) {
                return Ok(Some(frame));
            }
            if !self.inbound.is_empty() {
                acknowledge_at_once(&self.socket)?;
            }
            self.inbound.reserve(ROOM);
            match self.socket.read_buf(&mut self.inbound).await {
                Ok(0) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                read => read?,
            };
        }
    }

    /// Whether the next frame is there already.
    pub(crate) fn has_frame(&self) -> bool {
        frame_len(&self.inbound).is_some()
    }

    /// Receives a message of the handshake, without its header; a peer that leaves here is an error.
    pub(crate) async fn receive_in_handshake(&mut self) -> io::Result<Bytes> {
        let frame = self.receive().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        acknowledge_at_once(&self.socket)?;
        Ok(body(&frame))
    }

    /// Sends frames, which already have their headers, in one write.
    pub(crate) async fn send(&mut self, frames: &[u8]) -> io::Result<()> {
        self.socket.write_all(frames).await
    }
}

/// Puts the length in front of `body`.
pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), body].concat()
}

/// The body of a whole frame.
pub(crate) fn body(frame: &Bytes) -> Bytes {
    let mut body = frame.clone();
    body.advance(HEADER_LEN.min(frame.len()));
    body
}

fn split(inbound: &mut BytesMut) -> Option<Bytes> {
    let whole = frame_len(inbound)?;
    Some(inbound.split_to(whole).freeze())
}

/// Bytes of the first frame with its header, once all of it has come.
fn frame_len(inbound: &[u8]) -> Option<usize> {
    let length = usize::try_from(u32::from_be_bytes(*inbound.first_chunk::<HEADER_LEN>()?)).ok()?;
    let whole = HEADER_LEN.checked_add(length)?;
    (inbound.len() >= whole).then_some(whole)
}

/// Acknowledges what has arrived now instead of 40 ms later; a client whose next small write waits for it goes on.
fn acknowledge_at_once(socket: &TcpStream) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    socket.set_quickack(true)?;
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
    Ok(())
}
