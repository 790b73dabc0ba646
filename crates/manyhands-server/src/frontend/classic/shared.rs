//! What all connections that speak CPython's protocol share.

use std::ops::Deref;
use std::sync::Arc;

use super::foreign::Reception;
use super::verbs::Classic;
use crate::frontend::shared;

/// What all of them share, beside what [all connections](shared::Shared) do.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) all: Arc<shared::Shared>,
    /// What sessions have in hand, and the verbs as they call them.
    pub(crate) classic: Arc<Classic>,
    /// For what is no queue, if the embedding program serves that.
    pub(crate) reception: Option<Reception>,
}

/// So that nobody need know which of the two has what.
impl Deref for Shared {
    type Target = shared::Shared;

    fn deref(&self) -> &shared::Shared {
        &self.all
    }
}
