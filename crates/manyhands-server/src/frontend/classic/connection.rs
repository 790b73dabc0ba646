//! One client from its first request to its end.
//!
//! A connection is a [handshake](crate::frontend::handshake), one control request and, if that is
//! `accept_connection`, a session: request, reply, request, reply, until the client closes. [`serve`]
//! is what follows the handshake.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manyhands::wire::control::Control;
use manyhands::wire::frame::Outbound;
use manyhands::wire::pickle::Call;
use tokio::task::spawn_blocking;

use super::control::{self, Answer};
use super::foreign::forward;
use super::lists;
use super::session::Session;
use super::shared::Shared;
use crate::error::ConnectionError;
use crate::memory::Room;
use crate::socket::{Socket, Wire, within};

/// Serves one client from its first request until it leaves. That request has taken `room`.
pub(crate) async fn serve<S: Socket>(
    mut wire: Wire<S>,
    request: Bytes,
    mut room: Room,
    peer: &Arc<str>,
    shared: &Arc<Shared>,
) -> Result<(), ConnectionError> {
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
    let Answer { outbound, session } = answer;
    Box::pin(send_first(&mut wire, outbound, &room, shared.limits.handshake_timeout)).await?;
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
