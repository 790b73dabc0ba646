//! The first request of a connection: one call of the manager itself, in CPython's words.

use manyhands::wire::control::{Control, Parameter};
use manyhands::wire::frame::Outbound;
use manyhands::wire::pickle::Atom;
use manyhands::wire::reply::{Reader, Reply};
use manyhands::wire::text::repr;

use super::lists;
use super::replies::{traceback, unknown_ident};
use super::shared::Shared;
use super::verbs::Classic;
use crate::error::NoReference;
use crate::queue::QueueOptions;

/// Names that a `SyncManager` registers for types that are no queues.
const NOT_QUEUES: [&str; 16] = [
    "Array",
    "AsyncResult",
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "Iterator",
    "Lock",
    "Namespace",
    "Pool",
    "RLock",
    "Semaphore",
    "Value",
    "dict",
    "list",
    "set",
];
/// Names that a `SyncManager` registers for fresh queues.
const FRESH_QUEUES: [&str; 2] = ["JoinableQueue", "Queue"];
/// How much of a session's name is kept, in characters: those of Python are shorter.
const SESSION_NAME_CHARS_MAX: usize = 200;
/// What the first request comes to.
pub(super) struct Answer {
    pub(super) outbound: Outbound,
    /// The name of the session that begins.
    pub(super) session: Option<String>,
}

/// Answers the first request, of a client that reads pickles of `protocol`.
pub(super) fn answer(control: Result<Control, String>, protocol: u8, shared: &Shared) -> Answer {
    let session = match &control {
        Ok(Control::AcceptConnection { name }) => Some(shortened(name)),
        _ => None,
    };
    let reply = match control {
        Ok(control) => reply_to(control, shared),
        Err(text) => traceback(&text),
    };
    let mut outbound = Outbound::default();
    reply.push_frame(Reader::new(protocol), &mut outbound);
    Answer { outbound, session }
}

/// A session's name as long as it is kept.
fn shortened(name: &str) -> String {
    name.chars().take(SESSION_NAME_CHARS_MAX).collect()
}

fn reply_to(control: Control, shared: &Shared) -> Reply {
    let classic = &shared.classic;
    let counted = |known, ident: &str| {
        if known { Reply::None } else { unknown_ident(ident) }
    };
    match control {
        Control::Dummy | Control::AcceptConnection { .. } => Reply::None,
        Control::Create { typeid, parameters } => match create(classic, &typeid, &parameters) {
            Ok(ident) => Reply::Created(ident),
            Err(text) => traceback(&text),
        },
        Control::Incref(ident) => counted(classic.incref(&ident), &ident),
        Control::Decref(ident) => counted(classic.decref(&ident), &ident),
        Control::GetMethods(ident) if classic.resolve(&ident).is_some() => Reply::Methods,
        Control::GetMethods(ident) => unknown_ident(&ident),
        Control::NumberOfObjects => Reply::Count(classic.number_of_references()),
        Control::DebugInfo => Reply::Text(lists::debug_info(classic)),
        Control::Shutdown if shared.policy.accept_shutdown => {
            tracing::info!("a client stops the server");
            shared.stop.cancel();
            Reply::None
        }
        Control::Shutdown => {
            tracing::warn!("a client asked the server to stop; it goes on");
            Reply::None
        }
    }
}

/// A new reference to what is registered as `typeid`: its ident, or the text of a traceback.
fn create(classic: &Classic, typeid: &str, parameters: &[Parameter]) -> Result<String, String> {
    let is_free = |name: &str| !classic.engine.has_queue(name);
    let reference = if FRESH_QUEUES.contains(&typeid) && is_free(typeid) {
        classic.refer_to_new(QueueOptions::default().maxsize(maxsize(parameters)?))
    } else if NOT_QUEUES.contains(&typeid) && is_free(typeid) {
        return Err(format!(
            "manyhands serves queues. {typeid} objects live in Python: start this manager with \
             the Python drop-in, `python -m manyhands script.py`, which serves both\n\
             KeyError: {}",
            repr(typeid)
        ));
    } else {
        without_parameters(typeid, parameters)?;
        classic.refer_to(typeid)
    };
    reference.map_err(|error| match error {
        NoReference::NoQueue(error) => format!("{error}\nKeyError: {}", repr(typeid)),
        NoReference::TooMany(_) => format!("RuntimeError: {error}"),
    })
}

fn without_parameters(typeid: &str, parameters: &[Parameter]) -> Result<(), String> {
    match parameters.len() {
        0 => Ok(()),
        given => Err(format!("TypeError: {typeid}() takes no arguments but {given} were given")),
    }
}

/// The argument of `Queue(maxsize=0)`. Zero and less mean no bound.
fn maxsize(parameters: &[Parameter]) -> Result<usize, String> {
    match parameters {
        [] => Ok(0),
        [Parameter { keyword, value: Some(Atom::Int(maxsize)) }]
            if keyword.as_deref().is_none_or(|keyword| keyword == "maxsize") =>
        {
            Ok(usize::try_from(*maxsize).unwrap_or(0))
        }
        _ => Err("TypeError: Queue() takes one argument, an int: maxsize".into()),
    }
}
