//! What the replies of the native protocol say to each [`Verb`].

use std::io;
use std::sync::Arc;

use super::calls::Decided;
use crate::Error;
use crate::answer::{Added, Answer, Task, unknown_queue};
use crate::server::Server;
use crate::verb::Verb;
use crate::wire::native::reply::read_list;
use crate::wire::native::{self, Code, Codes, DecodeError, Fate, Reply, Settlement};

/// What became of a call, for whoever made it.
pub(crate) fn answer(server: &Server, decided: Decided) -> Result<Answer, Error> {
    let Decided { verb, outcome, is_repeated, added: before, .. } = decided;
    let unreadable = |error: DecodeError| server.unexpected(&error);
    Ok(match (verb, outcome?) {
        (Verb::Open { name }, Reply::Error { code: Code::UnknownQueue, text }) => {
            return Err(unknown_queue(server, &name, &text));
        }
        (Verb::PutMany { .. }, Reply::Error { code, text }) if before > 0 => {
            let refusal = Some(refused(code, text));
            Answer::Added(Added { count: before, refusal, ..Added::default() })
        }
        (_, Reply::Error { code, text }) => return Err(refused(code, text)),
        (Verb::Put { .. } | Verb::PutMany { .. }, Reply::Added(added)) => {
            let native::Added { count, refusal, numbers } = added;
            Answer::Added(Added {
                count: before.saturating_add(usize::try_from(count).unwrap_or(usize::MAX)),
                refusal: refusal.map(|(code, text)| refused(code, text)),
                numbers: numbers.into_iter().flatten().collect(),
                is_repeated,
            })
        }
        (Verb::Put { .. } | Verb::PutMany { .. }, Reply::Settled(codes)) => {
            Answer::Added(answered(server, before, codes, is_repeated))
        }
        (Verb::Get { .. }, Reply::Tasks { tasks, .. }) => {
            let mut taken = Vec::with_capacity(tasks.capacity());
            for task in tasks {
                taken.push(task.map_err(unreadable)?.into());
            }
            Answer::Tasks(taken)
        }
        (Verb::Settle { settlements, .. }, Reply::Settled(codes)) => {
            let codes = codes.chain(std::iter::repeat(None));
            let settled = settlements.iter().zip(codes);
            let settled = settled.map(|(it, code)| settled_as(server, it, code, is_repeated));
            Answer::Settled(settled.collect())
        }
        (Verb::Size, Reply::Size { qsize, .. }) => Answer::Count(qsize),
        (Verb::IsEmpty, Reply::Size { qsize, .. }) => Answer::Flag(qsize == 0),
        (Verb::IsFull, Reply::Size { qsize, maxsize }) => {
            Answer::Flag(maxsize > 0 && qsize >= maxsize)
        }
        (Verb::Peek(_), Reply::Peeked(tasks)) => {
            Answer::Peeked(tasks.collect::<Result<_, _>>().map_err(unreadable)?)
        }
        (
            Verb::Redrive { .. } | Verb::Purge | Verb::Drop { .. } | Verb::Revoke { .. },
            Reply::Count(count),
        ) => Answer::Count(count),
        (Verb::List { .. }, Reply::Text { json, more }) => {
            Answer::Queues(read_list(&json).map_err(unreadable)?, more)
        }
        (Verb::Open { .. }, Reply::Opened(_)) | (Verb::Connect, _) => Answer::Done,
        (
            Verb::Close
            | Verb::TaskDone
            | Verb::Join
            | Verb::Shutdown { .. }
            | Verb::Credit { .. }
            | Verb::Configure { .. },
            Reply::Done,
        ) => Answer::Done,
        (_, reply) => return Err(server.unexpected(&format_args!("{reply:?}"))),
    })
}

/// What became of items that are the results of tasks in hand.
fn answered(server: &Server, before: usize, codes: Codes, is_repeated: bool) -> Added {
    let mut added = Added { count: before, is_repeated, ..Added::default() };
    for code in codes {
        match code.map(|code| (code, settled(server, true, code, is_repeated))) {
            None | Some((_, Ok(()))) => added.count += 1,
            Some((_, Err(Error::Stale { message }))) => {
                // As CPython's clients are told.
                let class = "ValueError".to_owned();
                added.refusal = Some(Error::Remote { class, message: format!("stale: {message}") });
                break;
            }
            Some((_, Err(error))) => {
                added.refusal = Some(error);
                break;
            }
        }
    }
    added
}

impl From<native::Task> for Task {
    fn from(task: native::Task) -> Self {
        let native::Task { payload, token, info } = task;
        Self { payload, token, info }
    }
}

/// The error that a code stands for.
pub(super) fn refused(code: Code, text: String) -> Error {
    match code {
        Code::Empty => Error::Empty,
        Code::Full => Error::Full,
        Code::ShutDown => Error::ShutDown,
        Code::Stale | Code::Waits => Error::Stale { message: text },
        Code::SettledBefore => Error::SettledBefore,
        Code::NoResult
        | Code::NoResults
        | Code::Unasked
        | Code::NoOrder
        | Code::TooMany
        | Code::Differs
        | Code::BadOptions
        | Code::TooLong
        | Code::Refused => Error::Remote { class: "ValueError".to_owned(), message: text },
        Code::UnknownQueue => Error::Remote { class: "KeyError".to_owned(), message: text },
        Code::InUse => Error::Remote { class: "RuntimeError".to_owned(), message: text },
        code => Error::Remote { class: code.name().to_owned(), message: text },
    }
}

/// What became of one settlement.
fn settled_as(
    server: &Server,
    settlement: &Settlement,
    code: Option<Code>,
    is_repeated: bool,
) -> Result<(), Error> {
    let Some(code) = code else { return Ok(()) };
    match &settlement.fate {
        Fate::Ack { .. } | Fate::Done { .. } | Fate::GiveUp { .. } => {
            settled(server, true, code, is_repeated)
        }
        Fate::Nack { .. } | Fate::Return => settled(server, false, code, is_repeated),
        Fate::Extend { .. } | Fate::Start => Err(refused(code, told(code).to_owned())),
    }
}

/// What a code says of a settlement that ends a lease. Where the call was made twice,
/// `settled_before` says that the first time did it, and `stale` does not say whether it did.
fn settled(server: &Server, is_done: bool, code: Code, is_repeated: bool) -> Result<(), Error> {
    match refused(code, told(code).to_owned()) {
        // It was not decided when the server stopped.
        _ if code == Code::Cancelled => Err(server.lost(io::Error::other("the server stops"))),
        Error::SettledBefore if is_repeated => Ok(()),
        // The task was to go back, and is back.
        Error::Stale { .. } if is_repeated && !is_done => Ok(()),
        Error::Stale { message } if is_repeated => {
            let error = io::Error::other(format!("asked again, the server says: {message}"));
            Err(Error::InDoubt { address: Arc::clone(&server.address), error })
        }
        error => Err(error),
    }
}

/// What a code says of a settlement.
fn told(code: Code) -> &'static str {
    match code {
        Code::Stale => "somebody else has had this task since, or it was given up",
        Code::Waits => "an earlier result of this task waits for room",
        Code::NoResult => {
            "no result: results of this queue go to a queue of results; write ack_with(&result), \
             or ack_with(&()) for none"
        }
        Code::NoResults => "no results: the queue declares no queue of results (results=NAME)",
        Code::ShutDown => "the queue of results is shut down",
        code => code.name(),
    }
}
