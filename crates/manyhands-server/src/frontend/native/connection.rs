//! A client that speaks the native protocol, from its hello to its end.

use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use manyhands::wire::native::{Answer, Hello, HelloError, SessionLimits, Welcome};

use super::session::Session;
use crate::config::Limits;
use crate::error::ConnectionError;
use crate::frontend::shared::Shared;
use crate::queue::Cause;
use crate::socket::{Socket, Wire, within};

/// Most items of a batch.
pub(super) const BATCH_MAX: u32 = 16_384;
/// Most requests of a session that wait.
pub(super) const PENDING_MAX: u32 = 4096;
/// Most queues that a session has open.
pub(super) const QUEUES_MAX: u16 = 1024;
/// Most tasks of one queue that a session gives credit for.
pub(super) const CREDIT_MAX: u32 = 16_384;
/// What the server says of itself.
const SERVER: &str = concat!("manyhands ", env!("CARGO_PKG_VERSION"));

/// Whether the first message of a connection opens a native session.
pub(in crate::frontend) fn is_native(first: &Bytes) -> bool {
    !matches!(Hello::decode(first), Err(HelloError::OtherProtocol))
}

/// Serves one client from its hello until it leaves.
pub(in crate::frontend) async fn serve<S: Socket>(
    mut wire: Wire<S>,
    hello: Bytes,
    peer: &Arc<str>,
    shared: &Arc<Shared>,
) -> Result<(), ConnectionError> {
    shared.engine.look_at_unused();
    let (answer, hello) = answer(&hello, shared);
    let mut body = BytesMut::new();
    answer.write(&mut body);
    within(shared.limits.handshake_timeout, pin!(wire.send_frame(&body))).await?;
    drop(body);
    let Some(hello) = hello else { return Ok(()) };
    let mut session = Session::new(wire, shared, hello, peer);
    let end = session.run().await;
    let cause = if end.is_ok() { Cause::Unanswered } else { Cause::Crashed };
    Box::pin(session.leave(cause)).await;
    end
}

/// What a hello is answered; and the hello, unless that is no.
fn answer(hello: &Bytes, shared: &Shared) -> (Answer, Option<Hello>) {
    let refused = |text: String| (Answer::Refused(text), None);
    let hello = match Hello::decode(hello) {
        Ok(hello) => hello,
        Err(error) => return refused(error.to_string()),
    };
    let Some(version) = hello.version() else {
        let (oldest, newest) = (hello.versions.start(), hello.versions.end());
        return refused(format!(
            "the client speaks versions {oldest} to {newest} of the protocol, the server speaks 1"
        ));
    };
    let welcome = Welcome {
        version,
        is_durable: shared.engine.journal().is_some(),
        creates: shared.policy.create_on_use,
        limits: session_limits(&shared.limits),
        server: SERVER.to_owned(),
    };
    (Answer::Welcome(welcome), Some(hello))
}

fn session_limits(limits: &Limits) -> SessionLimits {
    SessionLimits {
        frame_max: u32::try_from(limits.frame_bytes_max).unwrap_or(u32::MAX),
        batch_max: BATCH_MAX,
        pending_max: PENDING_MAX,
        queues_max: QUEUES_MAX.into(),
        credit_max: CREDIT_MAX,
    }
}
