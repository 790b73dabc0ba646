//! What clients speak: each front end turns its bytes, or calls, into verbs of the engine and their
//! outcomes back. None knows another, but that the program's own queues without a name
//! ([`PinnedQueue`](embedded::PinnedQueue)) have idents by which classic clients call them.
//!
//! A connection begins with a [handshake]; the first message after it says what the client speaks.

pub(crate) mod alone;
pub(crate) mod classic;
pub(crate) mod embedded;
mod handshake;
mod lists;
#[cfg(not(any(test, fuzzing)))]
mod native;
#[cfg(any(test, fuzzing))]
pub(crate) mod native;
mod outbox;
pub(crate) mod shared;
pub(crate) mod turns;

use std::sync::Arc;

use tokio::time::timeout;

use self::classic::connection;
use self::classic::shared::Shared;
use crate::error::ConnectionError;
use crate::slots::Slot;
use crate::socket::{Socket, Wire};

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
    let opening = Box::pin(handshake::open(&mut wire, shared, slot, &mut room));
    let opened = tokio::select! {
        opened = timeout(limit, opening) => {
            opened.map_err(|_| ConnectionError::HandshakeTimeout(limit))??
        }
        () = shared.stop.cancelled() => return Err(ConnectionError::Stopping),
    };
    let Some((first, _place)) = opened else { return Ok(()) };
    if native::connection::is_native(&first) {
        drop(room);
        return Box::pin(native::connection::serve(wire, first, peer, &shared.all)).await;
    }
    connection::serve(wire, first, room, peer, shared).await
}
