//! One client from first byte to last.
//!
//! A connection is a handshake, one control request and, if that is `accept_connection`, a session:
//! request, reply, request, reply, until the client closes. [`serve`] is the whole of it.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manyhands::wire::auth::{Handshake, NONCE_LEN, Step};
use manyhands::wire::control::Control;
use manyhands::wire::frame::{AUTH_FRAME_BYTES_MAX, Outbound};
use manyhands::wire::pickle::Call;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::control::{self, Answer};
use super::foreign::forward;
use super::lists;
use super::session::Session;
use super::shared::Shared;
use crate::error::ConnectionError;
use crate::memory::Room;
use crate::slots::{Member, Slot};
use crate::socket::{Socket, Wire, within};

/// Serves one client until it leaves. It has a `slot` until it has shown that it knows the key.
pub(crate) async fn serve(
    socket: impl Socket,
    peer: &Arc<str>,
    shared: &Arc<Shared>,
    slot: Slot,
) -> Result<(), ConnectionError> {
    let limit = shared.limits.handshake_timeout;
    let mut wire = Wire::new(socket);
    let mut room = shared.engine.memory().room();
    // In a box: a session that is open and silent need not have room for its handshake.
    let opening = Box::pin(open(&mut wire, shared, slot, &mut room));
    let opened = tokio::select! {
        opened = timeout(limit, opening) => {
            opened.map_err(|_| ConnectionError::HandshakeTimeout(limit))??
        }
        () = shared.stop.cancelled() => return Err(ConnectionError::Stopping),
    };
    let Some((request, _place)) = opened else { return Ok(()) };
    shared.classic.look_at_unused();
    let call = Call::parse(request.clone(), &shared.pickle_limits);
    let control = call.as_ref().map_err(ToString::to_string).and_then(Control::decode);
    if let (Some(reception), Ok(control)) = (&shared.reception, &control)
        && forward::is_foreign(control, &shared.classic)
    {
        return Box::pin(forward::pass_control_on(wire, shared, reception, request)).await;
    }
    drop(request);
    let protocol = call.as_ref().map_or(2, Call::protocol);
    drop(call);
    let told =
        control.as_ref().ok().and_then(|control| lists::told_bytes(control, &shared.classic));
    let answer = match told {
        Some(bytes) => {
            tokio::select! {
                () = room.grow_to(bytes) => {}
                () = shared.stop.cancelled() => return Err(ConnectionError::Stopping),
            }
            let shared = shared.clone();
            let listing = spawn_blocking(move || control::answer(control, protocol, &shared));
            listing.await.map_err(|_| ConnectionError::Stopping)?
        }
        None => control::answer(control, protocol, shared),
    };
    let Answer { outbound, session, promise } = answer;
    shared.engine.until_durable(promise).await.map_err(|_| ConnectionError::NotDurable)?;
    Box::pin(send_first(&mut wire, outbound, &room, limit)).await?;
    room.clear();
    match session {
        None => Ok(()),
        Some(name) => {
            let mut session = Session::new(&mut wire, shared, name, peer);
            Box::pin(session.run()).await
        }
    }
}

/// Sends the reply to the first request, which may be a long list.
async fn send_first<S: Socket>(
    wire: &mut Wire<S>,
    outbound: Outbound,
    room: &Room,
    limit: Duration,
) -> Result<(), ConnectionError> {
    let sending = wire.send_parts(outbound, |sent| room.moved(sent));
    within(limit, pin!(async { Ok(room.unless_cut_off(sending).await) })).await???;
    Ok(())
}

/// Authenticates the client and reads its first request; `None` if it left before that.
async fn open<S: Socket>(
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
