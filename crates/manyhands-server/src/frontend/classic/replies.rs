//! What the engine says, in CPython's words: the one table from outcomes and failures to replies.

use manyhands::wire::method::Refusal;
use manyhands::wire::reply::{Exception, Reply};
use manyhands::wire::text::repr;

use crate::error::CallError;
use crate::queue::Outcome;

/// Why a queue is full that has room.
const NO_ROOM: &str = "no room for more tasks on the disk of the server; settling some goes on";

pub(super) fn reply_to(outcome: Outcome, on_shut_down: Exception) -> Reply {
    match outcome {
        Outcome::Accepted(_) | Outcome::Known | Outcome::Joined | Outcome::Done => Reply::None,
        Outcome::Task(grant) => Reply::Item(grant.payload),
        Outcome::Empty => Reply::Error(Exception::Empty),
        Outcome::Full => Reply::Error(Exception::Full),
        Outcome::NoRoom => Reply::Error(Exception::FullBecause(NO_ROOM.into())),
        Outcome::ShutDown => Reply::Error(on_shut_down),
        Outcome::Unorderable(error) => Reply::Error(Exception::TypeError(error.to_string())),
        Outcome::Unreadable { protocol } => Reply::Error(Exception::ValueError(format!(
            "the next item is a pickle of protocol {protocol}, which this Python cannot read; \
             it stays in the queue for others"
        ))),
    }
}

pub(super) fn refuse(refusal: Refusal) -> Reply {
    match refusal {
        Refusal::Unknown(text) => traceback(&text),
        Refusal::Arguments(exception) => Reply::Error(exception),
        Refusal::Pickle(error) => traceback(&error.to_string()),
    }
}

pub(super) fn fail(error: CallError) -> Reply {
    let text = error.to_string();
    match error {
        CallError::NoQueue => traceback(&text),
        CallError::Order(_) => Reply::Error(Exception::TypeError(text)),
        _ => Reply::Error(Exception::ValueError(text)),
    }
}

/// A text that `RemoteError` shows; ours name nothing of the server's machine.
pub(super) fn traceback(text: &str) -> Reply {
    Reply::Traceback(format!("{text}\n"))
}

pub(super) fn unknown_ident(ident: &str) -> Reply {
    traceback(&format!(
        "the server does not know this object; it may have been restarted\nKeyError: {}",
        repr(ident)
    ))
}
