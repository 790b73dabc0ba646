//! What the engine says, in the codes of this protocol: the one table from outcomes and failures to
//! replies.

use std::borrow::Cow;

use manyhands::wire::native::{Code, DecodeError};

use crate::engine::{NotConfigured, NotDropped};
use crate::error::{CallError, NoQueue};
use crate::queue::Outcome;

/// A code, and the same in words.
pub(super) type Refusal = (Code, Cow<'static, str>);

/// Why a call failed.
pub(super) fn failure(error: &CallError) -> Refusal {
    let code = match error {
        CallError::NoQueue => Code::UnknownQueue,
        CallError::NegativeTimeout => Code::Malformed,
        CallError::Stale | CallError::StaleToken => Code::Stale,
        CallError::Started => Code::Started,
        CallError::Answering => Code::Waits,
        CallError::SettledBefore => Code::SettledBefore,
        CallError::NoResults => Code::NoResults,
        CallError::NoResult(_) => Code::NoResult,
        CallError::NoOrder(_) | CallError::Order(_) => Code::NoOrder,
        CallError::Unasked => Code::Unasked,
        CallError::TooManyTaskDone(_) => Code::TooMany,
    };
    (code, error.to_string().into())
}

/// What an outcome refuses; nothing if the call did what it was to do.
pub(super) fn refusal(outcome: &Outcome) -> Option<Refusal> {
    let text = match outcome {
        Outcome::Accepted(_)
        | Outcome::Known
        | Outcome::Task(_)
        | Outcome::Joined
        | Outcome::Done => return None,
        Outcome::Empty => (Code::Empty, "no task came in time".into()),
        Outcome::Full => full(),
        Outcome::NoRoom => {
            let text = "no room for more tasks on the disk of the server; settling some goes on";
            (Code::Full, text.into())
        }
        Outcome::ShutDown => (Code::ShutDown, "the queue is shut down".into()),
        Outcome::Unorderable(error) => (Code::NoOrder, error.to_string().into()),
        Outcome::Unreadable { protocol } => {
            let text = format!(
                "the next item is a pickle of protocol {protocol}, which this client cannot read; it \
                 stays in the queue for others"
            );
            (Code::Unreadable, text.into())
        }
    };
    Some(text)
}

/// No slot came free in time.
pub(super) fn full() -> Refusal {
    (Code::Full, "no slot came free in time".into())
}

/// What became of a call that was ended without an answer.
pub(super) fn cancelled() -> Refusal {
    (Code::Cancelled, "cancelled before it was decided".into())
}

/// There is no memory for a request that would wait.
pub(super) fn no_memory() -> Refusal {
    (Code::Full, "no memory for another request that waits".into())
}

pub(super) fn malformed(error: &DecodeError) -> Refusal {
    (error.code(), error.to_string().into())
}

/// Why there is no such queue.
pub(super) fn no_queue(error: &NoQueue) -> Refusal {
    let code = match error {
        NoQueue::Undeclared { .. } => Code::UnknownQueue,
        NoQueue::BadName(_) => Code::Malformed,
        NoQueue::TooMany(_) => Code::Refused,
        NoQueue::Declared(_) => Code::Differs,
        NoQueue::NoResults(_) | NoQueue::Loop(..) => Code::BadOptions,
    };
    (code, error.to_string().into())
}

pub(super) fn not_dropped(error: &NotDropped) -> Refusal {
    let code = match error {
        NotDropped::NoQueue(_) => Code::UnknownQueue,
        NotDropped::Declared(_) => Code::Refused,
        NotDropped::InUse { .. } => Code::InUse,
    };
    (code, error.to_string().into())
}

pub(super) fn not_configured(error: &NotConfigured) -> Refusal {
    let code = match error {
        NotConfigured::NoQueue(error) => return no_queue(error),
        NotConfigured::Differs { .. } => Code::Differs,
        NotConfigured::Fixed(_) => Code::Refused,
        NotConfigured::NoData(_) => Code::BadOptions,
    };
    (code, error.to_string().into())
}
