//! What all connections of a server share.

use std::sync::Arc;

use manyhands::wire::auth::AuthKey;
use manyhands::wire::pickle;
use tokio_util::sync::CancellationToken;

use super::foreign::Reception;
use super::turns::Turns;
use super::verbs::Classic;
use crate::config::{Limits, Policy};
use crate::engine::Engine;

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    /// What sessions have in hand, and the verbs as they call them.
    pub(crate) classic: Arc<Classic>,
    pub(crate) key: AuthKey,
    pub(crate) limits: Limits,
    pub(crate) pickle_limits: pickle::Limits,
    pub(crate) policy: Policy,
    /// For what is no queue, if the embedding program serves that.
    pub(crate) reception: Option<Reception>,
    /// Cancelled when the server stops.
    pub(crate) stop: CancellationToken,
    /// Of connections that end.
    pub(crate) turns: Turns,
}
