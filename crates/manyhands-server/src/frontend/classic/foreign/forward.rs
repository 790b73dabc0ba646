//! The session's side of what is for the embedding program: what is passed on to it, and how its
//! replies come back.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use manyhands::wire::control::Control;
use manyhands::wire::method::{Method, Refusal};
use manyhands::wire::pickle::{Call, Payload};
use memchr::memmem;

#[cfg(unix)]
use super::handoff::{self, Handback, HandedSocket};
use super::{Reception, Request};
use crate::error::ConnectionError;
use crate::frontend::classic::session::Session;
use crate::frontend::classic::shared::Shared;
use crate::frontend::classic::verbs::Classic;
use crate::socket::{Socket, Wire, within};

/// What a pickled proxy names: CPython's `managers.RebuildProxy`. Only where these bytes are, a look
/// at the item's structure can find one.
const PROXY_MARK: &[u8] = b"RebuildProxy";

/// Whether a control request is about more than queues.
pub(in crate::frontend::classic) fn is_foreign(control: &Control, classic: &Classic) -> bool {
    match control {
        Control::Dummy | Control::AcceptConnection { .. } => false,
        Control::Incref(ident) | Control::Decref(ident) => !classic.is_own(ident),
        _ => true,
    }
}

/// Has the embedding program answer a control request, with as many replies as it likes.
pub(in crate::frontend::classic) async fn pass_control_on<S: Socket>(
    mut wire: Wire<S>,
    shared: &Shared,
    reception: &Reception,
    request: Bytes,
) -> Result<(), ConnectionError> {
    let mut guest = reception.open(None);
    guest.ask(Request::Control(request));
    loop {
        let reply = tokio::select! {
            biased;
            reply = guest.reply() => reply,
            () = shared.stop.cancelled() => return Err(ConnectionError::Stopping),
        };
        let Some(reply) = reply else { return Ok(()) };
        within(shared.limits.frame_timeout, pin!(wire.send_frame(&reply))).await?;
    }
}

/// The request if the embedding program has to answer it: a call that is for none of our queues.
pub(in crate::frontend::classic) fn foreign_call(shared: &Shared, body: Bytes) -> Option<Request> {
    shared.reception.as_ref()?;
    let ident = Call::addressee(&body, &shared.pickle_limits).ok()??;
    (!shared.classic.is_own(&ident)).then_some(Request::Call { ident, body })
}

/// The objects whose proxies a call puts into a queue, where an embedding program counts them; `None`
/// if there are none.
pub(in crate::frontend::classic) fn carried(
    shared: &Shared,
    body: &Bytes,
    asked: &Result<Method, Refusal>,
) -> Option<BTreeSet<String>> {
    shared.reception.as_ref()?;
    let asked = asked.as_ref().ok().filter(|_| memmem::find(body, PROXY_MARK).is_some())?;
    let carried = asked.item().map(Payload::proxies).unwrap_or_default();
    Some(carried).filter(|carried| !carried.is_empty())
}

impl<S: Socket> Session<'_, S> {
    /// Has the embedding program take note of something.
    pub(in crate::frontend::classic) async fn tell_guest(
        &mut self,
        request: Request,
    ) -> Result<(), ConnectionError> {
        let Some(reception) = &self.shared.reception else { return Ok(()) };
        let guest = self.guest.get_or_insert_with(|| reception.open(Some(&self.name)));
        guest.ask(request);
        tokio::select! {
            reply = guest.reply() => reply.map(drop).ok_or(ConnectionError::Stopping),
            () = self.shared.stop.cancelled() => Err(ConnectionError::Stopping),
        }
    }

    /// Has the embedding program answer a request, and sends its reply.
    pub(in crate::frontend::classic) async fn pass_on(
        &mut self,
        request: Request,
    ) -> Result<(), ConnectionError> {
        let Some(reception) = &self.shared.reception else { return Ok(()) };
        let guest = self.guest.get_or_insert_with(|| reception.open(Some(&self.name)));
        #[cfg(unix)]
        if let Some((socket, mut handback)) = hand_off(self.wire, self.shared) {
            guest.ask_with_socket(request, socket);
            let returned = tokio::select! {
                returned = handback.returned() => returned.ok_or(ConnectionError::Stopping)?,
                () = self.shared.stop.cancelled() => {
                    handback.revoke();
                    return Err(ConnectionError::Stopping);
                }
            };
            self.wire.push(&returned);
            return Ok(());
        }
        guest.ask(request);
        let mut is_wanted = true;
        let reply = loop {
            tokio::select! {
                biased;
                reply = guest.reply() => break reply.ok_or(ConnectionError::Stopping)?,
                read = self.wire.read(), if is_wanted => match read? {
                    0 => return Err(ConnectionError::Cut("a call that waited")),
                    // As in `wait`; but the program cannot be interrupted, so that its reply is
                    // passed over when it comes.
                    _ => is_wanted = false,
                },
                () = self.shared.stop.cancelled() => return Err(ConnectionError::Stopping),
            }
        };
        if is_wanted {
            let limit = self.patience(reply.len() as u64);
            within(limit, pin!(self.wire.send_frame(&reply))).await?;
        }
        Ok(())
    }
}

/// Hands the socket off to the thread of the embedding program, if nothing else has come on it.
#[cfg(unix)]
fn hand_off<S: Socket>(
    wire: &Wire<S>,
    shared: &Arc<Shared>,
) -> Option<(HandedSocket<Request>, Handback)> {
    if !wire.inbound().is_empty() {
        return None;
    }
    let (limit, shared) = (shared.limits.frame_timeout, shared.clone());
    let judge = Box::new(move |body| foreign_call(&shared, body));
    Some(handoff::hand_off(wire.socket().duplicate()?, judge, limit))
}
