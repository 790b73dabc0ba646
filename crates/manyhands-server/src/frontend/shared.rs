//! What all connections of a server share, whatever they speak.

use std::sync::Arc;

use manyhands::wire::auth::AuthKey;
use manyhands::wire::pickle;
use tokio_util::sync::CancellationToken;

use super::turns::Turns;
use crate::config::{Limits, Policy};
use crate::engine::Engine;

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) key: AuthKey,
    pub(crate) limits: Limits,
    pub(crate) pickle_limits: pickle::Limits,
    pub(crate) policy: Policy,
    /// Cancelled when the server stops.
    pub(crate) stop: CancellationToken,
    /// Of connections that end.
    pub(crate) turns: Turns,
}
