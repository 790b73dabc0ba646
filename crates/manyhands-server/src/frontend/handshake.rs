//! The handshake, which is the same whatever a client speaks after it: both sides show that they know
//! the key.

use std::io;

use bytes::Bytes;
use manyhands::wire::auth::{Handshake, NONCE_LEN, Step};
use manyhands::wire::frame::AUTH_FRAME_BYTES_MAX;

use super::shared::Shared;
use crate::error::ConnectionError;
use crate::memory::Room;
use crate::slots::{Member, Slot};
use crate::socket::{Socket, Wire};

/// Authenticates the client and reads its first message; `None` if it left before that.
pub(super) async fn open<S: Socket>(
    wire: &mut Wire<S>,
    shared: &Shared,
    slot: Slot,
    room: &mut Room,
) -> Result<Option<(Bytes, Member)>, ConnectionError> {
    let nonce = nonce()?;
    let (mut handshake, greeting) =
        Handshake::server(shared.key.clone(), shared.policy.accept_md5, nonce);
    wire.send_frame(&greeting).await?;
    let proof = tokio::select! {
        biased;
        proof = wire.frame(AUTH_FRAME_BYTES_MAX) => proof?,
        () = slot.is_evicted() => return Err(ConnectionError::Evicted),
    };
    let Some(proof) = proof else { return Ok(None) };
    let mut is_done = advance(&mut handshake, wire, &proof).await?;
    let place = slot.admit();
    wire.socket().prepare();
    while !is_done {
        let Some(message) = wire.frame(AUTH_FRAME_BYTES_MAX).await? else { return Ok(None) };
        is_done = advance(&mut handshake, wire, &message).await?;
    }
    let request = wire.frame_in(shared.limits.control_bytes_max, room).await?;
    Ok(request.map(|request| (request, place)))
}

/// Answers the next message of a handshake; whether the two sides know each other now.
async fn advance<S: Socket>(
    handshake: &mut Handshake,
    wire: &mut Wire<S>,
    message: &[u8],
) -> Result<bool, ConnectionError> {
    match handshake.receive(message) {
        Ok(Step::Send(message)) => wire.send_frame(&message).await?,
        Ok(Step::Done(_)) => return Ok(true),
        Err(error) => {
            if let Some(farewell) = error.farewell() {
                wire.send_frame(farewell).await?;
            }
            return Err(error.into());
        }
    }
    Ok(false)
}

fn nonce() -> io::Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}
